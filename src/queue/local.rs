//! The queue inside this process. It bounds what is admitted; the engine chooses among what waits.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::cache::{Key, PictureCache};
use super::ticket::Deadlines;
use super::{Caller, Cost, Depth, JobQueue, Pending, Place, Refusal, Ticket};
use crate::engine::{Choose, EngineError, Job, JobPhase, JobSource, Observer, Progress, Seat, Waited, Work};

/// What a job is taken to last before one has been seen.
const FIRST_GUESS_S: f64 = 10.0;
/// And a megapixel-step.
const FIRST_GUESS_PER_COST_S: f64 = 0.5;
/// A new measurement counts for this part of the estimate.
const NEWEST: f64 = 0.25;
const LONGEST_RETRY_S: f64 = 600.0;

/// What a queue takes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Jobs that may wait while one runs.
    pub waiting: usize,
    /// Megapixel-steps of all jobs together. A job that is alone is always admitted.
    pub cost: Option<f64>,
    /// Jobs of one named caller.
    pub per_caller: Option<usize>,
    /// Longest time in the queue.
    pub wait: Option<Duration>,
    /// Longest time from begin to end.
    pub run: Option<Duration>,
    /// Memory for finished pictures, which answer a repeated job at once.
    pub picture_cache_bytes: usize,
}

impl Limits {
    /// A bound on the number of jobs alone.
    pub fn waiting(waiting: usize) -> Self {
        Self { waiting, cost: None, per_caller: None, wait: None, run: None, picture_cache_bytes: 0 }
    }
}

/// A bounded queue in memory. Clones share it.
#[derive(Clone)]
pub struct LocalQueue {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    cache: Option<Arc<PictureCache>>,
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    waiting: VecDeque<(u64, Job)>,
    next_id: u64,
    /// Places taken, and what they cost together.
    taken: usize,
    held: f64,
    /// Places of each named caller.
    callers: HashMap<Caller, usize>,
    running: usize,
    /// When the last job ended, or the first of those that run was begun.
    since: Instant,
    /// Moving averages: seconds from one end to the next, and for one unit of cost.
    between_ends_s: f64,
    per_cost_s: f64,
    closed: bool,
    hits: u64,
    misses: u64,
}

impl LocalQueue {
    /// A queue in which one job runs and `waiting` more may wait.
    pub fn new(waiting: usize) -> Self {
        Self::with_limits(Limits::waiting(waiting))
    }

    /// A queue with all its limits.
    pub fn with_limits(limits: Limits) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            next_id: 0,
            taken: 0,
            held: 0.0,
            callers: HashMap::new(),
            running: 0,
            since: Instant::now(),
            between_ends_s: FIRST_GUESS_S,
            per_cost_s: FIRST_GUESS_PER_COST_S,
            closed: false,
            hits: 0,
            misses: 0,
        };
        let bytes = limits.picture_cache_bytes;
        let cache = (bytes > 0).then(|| Arc::new(PictureCache::new(bytes)));
        Self { shared: Arc::new(Shared { limits, cache, state: Mutex::new(state), arrived: Condvar::new() }) }
    }

    fn capacity(&self) -> usize {
        self.shared.limits.waiting + 1
    }

    /// Puts work into an admitted place.
    pub fn put(&self, place: Place, work: Work) -> Ticket {
        let (sender, receiver) = oneshot::channel();
        let (submitted, span) = (Instant::now(), tracing::Span::current());
        let pictures = work.requests.len();
        let cache = self.shared.cache.as_ref();
        let key = cache.and_then(|_| Key::of(&work));
        let found = cache.zip(key).and_then(|(cache, key)| cache.get(key));
        let mut state = self.shared.state();
        let progress = Observer::new(Progress::waiting(pictures, state.waiting.len()));
        let limits = &self.shared.limits;
        let deadlines = Deadlines { submitted, wait: limits.wait, run: limits.run };
        let (timer, observer) = (None, progress.clone());
        let mut ticket =
            Ticket { reply: receiver, progress: observer, deadlines, timer, keep: None, leave: None };
        if key.is_some() {
            let count = if found.is_some() { &mut state.hits } else { &mut state.misses };
            *count += 1;
        }
        let answer = match found {
            _ if state.closed => Err(EngineError::Stopping),
            Some(pictures) => Ok(pictures),
            None => {
                let id = state.next_id;
                state.next_id += 1;
                state
                    .waiting
                    .push_back((id, Job { work, reply: sender, progress, submitted, span, place: place.0 }));
                drop(state);
                self.shared.arrived.notify_one();
                ticket.keep = key.zip(cache.cloned());
                ticket.leave = Some(Box::new(Leave { id, shared: self.shared.clone() }));
                return ticket;
            }
        };
        drop(state);
        drop(place);
        progress.set(|p| {
            p.phase = JobPhase::Done;
            p.picture = answer.as_ref().map_or(0, Vec::len);
        });
        let _unread = sender.send(answer);
        ticket
    }
}

impl Shared {
    /// Nothing in a critical section can panic, so a poisoned state is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole seconds to wait, for a header.
fn retry_after_s(seconds: f64) -> u64 {
    seconds.ceil().clamp(1.0, LONGEST_RETRY_S) as u64
}

impl State {
    /// Tells those who wait how many wait before them.
    fn tell_positions(&self) {
        for (ahead, (_, job)) in self.waiting.iter().enumerate() {
            job.progress.set(|p| p.phase = JobPhase::Waiting { ahead });
        }
    }

    fn refusal(&self, limits: &Limits, caller: &Caller, cost: Cost) -> Option<Refusal> {
        let capacity = limits.waiting + 1;
        let jobs = self.callers.get(caller).copied().unwrap_or(0);
        if let Some(limit) = limits.per_caller.filter(|limit| caller.name().is_some() && jobs >= *limit) {
            // One of this caller's jobs among all of them.
            let seconds = self.between_ends_s * self.taken as f64 / jobs.max(1) as f64;
            return Some(Refusal::OverQuota { jobs, limit, retry_after_s: retry_after_s(seconds) });
        }
        if self.taken >= capacity {
            return Some(Refusal::Full { capacity, retry_after_s: retry_after_s(self.between_ends_s) });
        }
        let asked = cost.megapixel_steps();
        let limit = limits.cost.filter(|limit| self.taken > 0 && self.held + asked > *limit)?;
        // Nothing shortens a job that exceeds the limit alone: it waits for all others.
        let excess = (self.held + asked - limit).min(self.held);
        let retry_after_s = retry_after_s(excess * self.per_cost_s);
        Some(Refusal::TooMuchWork { held: self.held, limit, asked, retry_after_s })
    }
}

impl JobQueue for LocalQueue {
    fn admit(&self, caller: &Caller, cost: Cost) -> Result<Place, Refusal> {
        let mut state = self.shared.state();
        if let Some(refusal) = state.refusal(&self.shared.limits, caller, cost) {
            return Err(refusal);
        }
        state.taken += 1;
        state.held += cost.megapixel_steps();
        if caller.name().is_some() {
            *state.callers.entry(caller.clone()).or_default() += 1;
        }
        drop(state);
        let (shared, caller) = (self.shared.clone(), caller.clone());
        Ok(Place(Box::new(Held { shared, caller, cost, begun: AtomicBool::new(false) })))
    }

    fn submit(&self, place: Place, work: Work) -> Pending<'_, Result<Ticket, Refusal>> {
        let ticket = self.put(place, work);
        Box::pin(std::future::ready(Ok(ticket)))
    }

    fn depth(&self) -> Depth {
        let state = self.shared.state();
        let waiting = state.taken.saturating_sub(state.running);
        Depth { running: state.running, waiting, capacity: self.capacity() }
    }

    fn picture_cache(&self) -> (u64, u64) {
        let state = self.shared.state();
        (state.hits, state.misses)
    }

    fn close(&self) {
        let mut state = self.shared.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.shared.arrived.notify_all();
        for (_, job) in waiting {
            let Job { reply, place, progress, .. } = job;
            drop(place);
            progress.set(|p| p.phase = JobPhase::Done);
            let _gone = reply.send(Err(EngineError::Stopping));
        }
    }
}

impl JobSource for LocalQueue {
    fn take(&self, choose: &mut Choose<'_>) -> Option<Job> {
        let mut state = self.shared.state();
        if state.waiting.is_empty() {
            return None;
        }
        let index = choose(&mut state.waiting.iter().map(|(_, job)| job))?;
        let (_, job) = state.waiting.remove(index)?;
        state.tell_positions();
        drop(state);
        job.place.begin();
        Some(job)
    }

    fn wait(&self, limit: Option<Duration>) -> Waited {
        let mut state = self.shared.state();
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            if !state.waiting.is_empty() {
                return Waited::Job;
            }
            if state.closed {
                return Waited::Closed;
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Waited::Nothing,
                Some(left) => {
                    let waited = self.shared.arrived.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// A place that is taken.
struct Held {
    shared: Arc<Shared>,
    caller: Caller,
    cost: Cost,
    begun: AtomicBool,
}

impl Seat for Held {
    fn begin(&self) {
        let mut state = self.shared.state();
        if state.running == 0 {
            state.since = Instant::now();
        }
        state.running += 1;
        self.begun.store(true, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let cost = self.cost.megapixel_steps();
        state.taken = state.taken.saturating_sub(1);
        // Sums of fractions leave crumbs.
        state.held = if state.taken == 0 { 0.0 } else { (state.held - cost).max(0.0) };
        if let Some(jobs) = state.callers.get_mut(&self.caller) {
            *jobs = jobs.saturating_sub(1);
            if *jobs == 0 {
                state.callers.remove(&self.caller);
            }
        }
        if self.begun.load(Ordering::Relaxed) {
            let now = Instant::now();
            let seconds = now.duration_since(state.since).as_secs_f64();
            state.since = now;
            state.running = state.running.saturating_sub(1);
            state.between_ends_s += (seconds - state.between_ends_s) * NEWEST;
            if cost > 0.0 {
                state.per_cost_s += (seconds / cost - state.per_cost_s) * NEWEST;
            }
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
        if job.is_some() {
            state.tell_positions();
        }
        // The job's place is freed outside the lock.
        drop(state);
        if let Some((_, job)) = job {
            job.progress.set(|p| p.phase = JobPhase::Done);
        }
    }
}
