//! The queue inside this process: first come, first served.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::{Semaphore, oneshot};

use super::{Caller, Cost, Depth, JobQueue, Place, Refusal, Ticket};
use crate::engine::{EngineError, Job, JobPhase, JobSource, Observer, Progress, Work};

/// What a job is taken to last before one has been seen.
const FIRST_GUESS_S: f64 = 10.0;

/// A bounded queue in memory. Clones share it.
#[derive(Clone)]
pub struct LocalQueue {
    shared: Arc<Shared>,
}

struct Shared {
    places: Arc<Semaphore>,
    capacity: usize,
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    waiting: VecDeque<(u64, Job)>,
    next_id: u64,
    /// When the job at work was taken.
    running_since: Option<Instant>,
    /// A moving average over the last jobs.
    mean_job_s: f64,
    closed: bool,
}

impl LocalQueue {
    /// A queue in which one job runs and `waiting` more may wait.
    pub fn new(waiting: usize) -> Self {
        let capacity = waiting + 1;
        let state = State {
            waiting: VecDeque::new(),
            next_id: 0,
            running_since: None,
            mean_job_s: FIRST_GUESS_S,
            closed: false,
        };
        let places = Arc::new(Semaphore::new(capacity));
        Self {
            shared: Arc::new(Shared { places, capacity, state: Mutex::new(state), arrived: Condvar::new() }),
        }
    }
}

impl Shared {
    /// Nothing in a critical section can panic, so a poisoned state is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl JobQueue for LocalQueue {
    fn admit(&self, _caller: &Caller, _cost: Cost) -> Result<Place, Refusal> {
        let shared = &self.shared;
        match shared.places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Place(Box::new(permit))),
            Err(_) => {
                let retry_after_s = shared.state().mean_job_s.ceil().clamp(1.0, 600.0) as u64;
                Err(Refusal::Full { capacity: shared.capacity, retry_after_s })
            }
        }
    }

    fn submit(&self, place: Place, work: Work) -> Ticket {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.shared.state();
        let progress = Observer::new(Progress::waiting(work.requests.len(), state.waiting.len()));
        let id = state.next_id;
        state.next_id += 1;
        if state.closed {
            drop(state);
            let _unread = sender.send(Err(EngineError::Stopping));
        } else {
            state
                .waiting
                .push_back((id, Job { work, reply: sender, progress: progress.clone(), place: place.0 }));
            drop(state);
            self.shared.arrived.notify_one();
        }
        Ticket::new(receiver, progress, Box::new(Leave { id, shared: self.shared.clone() }))
    }

    fn depth(&self) -> Depth {
        let running = usize::from(self.shared.state().running_since.is_some());
        let taken = self.shared.capacity - self.shared.places.available_permits();
        Depth { running, waiting: taken.saturating_sub(running), capacity: self.shared.capacity }
    }

    fn close(&self) {
        let mut state = self.shared.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.shared.arrived.notify_all();
        for (_, job) in waiting {
            job.progress.set(|p| p.phase = JobPhase::Done);
            let _gone = job.reply.send(Err(EngineError::Stopping));
        }
    }
}

impl JobSource for LocalQueue {
    fn next(&self) -> Option<Job> {
        let mut state = self.shared.state();
        if let Some(since) = state.running_since.take() {
            state.mean_job_s += (since.elapsed().as_secs_f64() - state.mean_job_s) * 0.25;
        }
        loop {
            if let Some((_, job)) = state.waiting.pop_front() {
                state.running_since = Some(Instant::now());
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.shared.arrived.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Takes a job out of the line when its caller leaves. One that runs already is ended by its closed reply.
struct Leave {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let left = state.waiting.binary_search_by_key(&self.id, |(id, _)| *id).ok();
        let job = left.and_then(|index| state.waiting.remove(index));
        // The job's place is freed outside the lock.
        drop(state);
        drop(job);
    }
}
