//! The jobs that web UI clients wait for: what `progress` tells of and `interrupt` ends.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::engine::{JobPhase, Observer, Progress};
use crate::queue::Caller;

/// All of them, the oldest first.
#[derive(Default)]
pub(super) struct Jobs {
    waited_for: Mutex<Vec<Arc<Job>>>,
}

/// One of them.
pub(super) struct Job {
    /// `txt2img` or `img2img`.
    pub(super) name: &'static str,
    pub(super) caller: Caller,
    pub(super) since: Instant,
    pub(super) interrupted: Notify,
    /// Pictures asked for at a time.
    pub(super) batches: usize,
    now: Mutex<Now>,
}

/// The part of a job that is at work.
struct Now {
    observer: Option<Observer>,
    /// Kept once somebody has looked: previews are made while somebody watches.
    watching: Option<watch::Receiver<Progress>>,
    /// Parts done and in all: hires fix has two.
    part: usize,
    parts: usize,
}

impl Job {
    pub(super) fn new(name: &'static str, caller: Caller, batches: usize, parts: usize) -> Arc<Self> {
        let now = Now { observer: None, watching: None, part: 0, parts };
        let (since, interrupted) = (Instant::now(), Notify::new());
        Arc::new(Self { name, caller, since, interrupted, batches, now: Mutex::new(now) })
    }

    /// Its next part has been put into the queue.
    pub(super) fn begin(&self, part: usize, observer: Observer) {
        let mut now = self.now();
        now.watching = now.watching.take().map(|_| observer.watch());
        now.part = part;
        now.observer = Some(observer);
    }

    /// How far the part at work is; with `look`, previews are made from now on.
    pub(super) fn progress(&self, look: bool) -> Option<Progress> {
        let mut now = self.now();
        let observer = now.observer.clone()?;
        if look && now.watching.is_none() {
            now.watching = Some(observer.watch());
        }
        Some(observer.now())
    }

    /// How much of all is done, from 0 to 1.
    pub(super) fn share_done(&self) -> f64 {
        let now = self.now();
        let Some(progress) = now.observer.as_ref().map(Observer::now) else { return 0.0 };
        let picture = match progress.phase {
            JobPhase::Done => progress.pictures as f64,
            _ => progress.picture as f64 + progress.step as f64 / progress.steps.max(1) as f64,
        };
        let part = picture / progress.pictures.max(1) as f64;
        ((now.part as f64 + part) / now.parts as f64).clamp(0.0, 1.0)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Jobs {
    /// Adds a job for as long as the guard lives.
    pub(super) fn wait_for(self: &Arc<Self>, job: Arc<Job>) -> Waiting {
        self.all().push(job.clone());
        Waiting { jobs: self.clone(), job }
    }

    /// The caller's job that is at work, else its first in the queue.
    pub(super) fn of(&self, caller: &Caller) -> Option<Arc<Job>> {
        let all = self.all();
        let own = || all.iter().filter(|job| job.caller == *caller);
        let runs = |job: &&Arc<Job>| {
            job.progress(false).is_some_and(|p| !matches!(p.phase, JobPhase::Waiting { .. }))
        };
        own().find(runs).or_else(|| own().next()).cloned()
    }

    /// How many jobs the caller has.
    pub(super) fn count(&self, caller: &Caller) -> usize {
        self.all().iter().filter(|job| job.caller == *caller).count()
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        self.waited_for.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Ends with the request, whether or not it was answered.
pub(super) struct Waiting {
    jobs: Arc<Jobs>,
    pub(super) job: Arc<Job>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.jobs.all().retain(|job| !Arc::ptr_eq(job, &self.job));
    }
}
