//! A queue that several machines share, on NATS JetStream. Whoever takes requests puts jobs into it; workers, one an
//! engine, take them out.
//!
//! - `IMAGE_JOBS`: jobs, each until it is done. A worker has a lease on the one it makes, and renews it only while the job
//!   gets on; a job whose lease runs out goes to another worker. [`worker`] is that side of it.
//! - `IMAGE_EVENTS`: what happens to each job, for whoever watches (`follow`). Its last event is its end: the server takes one
//!   and refuses every other, so that a job that was made twice has one result, and a cancelled one has none.
//! - `IMAGE_INPUTS`, `IMAGE_RESULTS`: object stores for pictures.
//! - `IMAGE_MODELS`: what the workers have ([`catalog`]).
//! - `IMAGE_FAILURES`: jobs that were delivered as often as may be (`janitor` ends them).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use self::broker::{Broker, Handed};
use self::follow::{Awaited, Counted, Follower, Reader};
use super::local::LocalQueue;
use super::shared::{End, JobEvent, JobEvents, PictureFile, SharedJobs, Submitted};
use super::ticket::Deadlines;
use super::{Caller, Cost, Depth, JobQueue, Pending, Place, Refusal, Ticket};
use crate::engine::{EngineError, Observer, Progress, Work};
use crate::settings::Secret;

mod broker;
pub mod catalog;
pub mod doctor;
mod follow;
mod janitor;
mod message;
mod results;
mod subject;
pub mod worker;

pub use catalog::{Card, Catalog};
pub use worker::Worker;

/// How the queue is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where NATS is: one `nats://` or `tls://` address, or several with commas between them.
    pub url: Secret,
    /// Jobs that may wait or be at work.
    pub capacity: usize,
    /// How long a job may stand still before another worker gets it.
    pub lease: Duration,
    /// How often a job is given to a worker before it counts as failed.
    pub deliveries: u32,
    /// How long events and finished pictures are kept.
    pub keep: Duration,
    /// Servers of the cluster that hold a copy of everything.
    pub replicas: usize,
    /// Jobs of one caller, in this process.
    pub per_caller: Option<usize>,
    /// Longest time in the queue.
    pub wait: Option<Duration>,
    /// Longest time from begin to end.
    pub run: Option<Duration>,
    /// This process takes requests, so it says what the bounds are.
    pub sets_limits: bool,
}

/// The queue as the program holds it. Clones share it.
#[derive(Clone)]
pub struct NatsQueue {
    shared: Arc<Shared>,
}

struct Shared {
    broker: Broker,
    catalog: watch::Receiver<Catalog>,
    /// As it was a moment ago.
    depth: Arc<Mutex<Depth>>,
    /// Bounds what one caller may have here.
    callers: LocalQueue,
    awaited: Awaited,
    closed: AtomicBool,
}

impl NatsQueue {
    /// Begins to connect, and to keep the streams in order. It need not succeed at once: jobs are refused until it does.
    ///
    /// # Errors
    /// When the address is none.
    pub async fn connect(settings: Settings) -> Result<Self, EngineError> {
        let depth = Depth { capacity: settings.capacity, ..Depth::default() };
        let depth = Arc::new(Mutex::new(depth));
        let callers = LocalQueue::with_limits(super::Limits {
            per_caller: settings.per_caller,
            ..super::Limits::waiting(usize::MAX - 1)
        });
        let broker = Broker::connect(settings).await?;
        let (announced, catalog) = watch::channel(Catalog::default());
        tokio::spawn(janitor::Janitor::new(broker.clone(), announced, depth.clone()).run());
        let (awaited, closed) = (Awaited::default(), AtomicBool::new(false));
        Ok(Self { shared: Arc::new(Shared { broker, catalog, depth, callers, awaited, closed }) })
    }

    /// What the workers have, and hears of every change.
    pub fn catalog(&self) -> watch::Receiver<Catalog> {
        self.shared.catalog.clone()
    }

    /// Puts work into the queue under an id of 32 hexadecimal digits; twice the same is one job.
    ///
    /// # Errors
    /// When the queue is full or does not answer.
    pub async fn submit_as(&self, id: &str, work: Work) -> Result<Submitted, Refusal> {
        let Shared { broker, catalog, closed, .. } = &*self.shared;
        if closed.load(Ordering::Relaxed) {
            return Err(unreachable("the server is shutting down"));
        }
        let default = catalog.borrow().default_model().map(str::to_owned);
        let model =
            work.model.clone().or(default).ok_or_else(|| unreachable("no worker has been seen yet"))?;
        let (pictures, depth) = (work.requests.len(), self.depth());
        let payload = message::pack(broker, id, &model, work).await.map_err(unreachable)?;
        let event = JobEvent::Queued { pictures, ahead: depth.waiting, created: message::now_s() };
        // Both at once: each takes the server a write to its disk.
        let (handed, number) =
            tokio::join!(broker.publish_job(&model, id, payload), broker.record_event(id, &event));
        match handed.map_err(unreachable)? {
            Handed::Stored => {
                Ok(Submitted { id: id.to_owned(), number: number.map_err(unreachable)?, event })
            }
            Handed::Full => {
                let _or_it_is_left_to_its_age = broker.events.purge().filter(subject::events(id)).await;
                Err(Refusal::Full { capacity: depth.capacity, retry_after_s: RETRY_S })
            }
        }
    }

    async fn take(&self, place: Place, work: Work) -> Result<Ticket, Refusal> {
        let (id, submitted) = (new_id(), Instant::now());
        let (pictures, depth) = (work.requests.len(), self.depth());
        self.submit_as(&id, work).await?;
        let Shared { broker, awaited, .. } = &*self.shared;
        let (reply, receiver) = oneshot::channel();
        let progress = Observer::new(Progress::waiting(pictures, depth.waiting));
        let over = Arc::new(AtomicBool::new(false));
        let leave = Leave { broker: broker.clone(), id: id.clone(), over: over.clone() };
        let follower = Follower {
            broker: broker.clone(),
            id,
            progress: progress.clone(),
            reply,
            over,
            place,
            counted: Counted::new(awaited),
        };
        tokio::spawn(follower.run());
        let deadlines = Deadlines { submitted, wait: broker.settings.wait, run: broker.settings.run };
        let leave: Option<Box<dyn Send + Sync>> = Some(Box::new(leave));
        Ok(Ticket { reply: receiver, progress, deadlines, timer: None, keep: None, leave })
    }
}

/// When a place should be free; only the workers know how fast they are.
const RETRY_S: u64 = 5;

fn unreachable(reason: impl std::fmt::Display) -> Refusal {
    Refusal::Unreachable { reason: reason.to_string() }
}

impl JobQueue for NatsQueue {
    fn admit(&self, caller: &Caller, cost: Cost) -> Result<Place, Refusal> {
        if !self.is_reachable() {
            return Err(unreachable("there is no connection"));
        }
        self.shared.callers.admit(caller, cost)
    }

    fn submit(&self, place: Place, work: Work) -> Pending<'_, Result<Ticket, Refusal>> {
        Box::pin(self.take(place, work))
    }

    fn depth(&self) -> Depth {
        *self.shared.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn awaited_here(&self) -> usize {
        self.shared.awaited.load(Ordering::Relaxed)
    }

    fn is_reachable(&self) -> bool {
        self.shared.broker.is_up()
    }

    fn shared(&self) -> Option<Arc<dyn SharedJobs>> {
        Some(Arc::new(self.clone()))
    }

    /// Jobs that are in the queue already stay there: other processes make them.
    fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

impl SharedJobs for NatsQueue {
    fn submit(&self, place: Place, work: Work) -> Pending<'_, Result<Submitted, Refusal>> {
        Box::pin(async move {
            let submitted = self.submit_as(&new_id(), work).await;
            drop(place);
            submitted
        })
    }

    fn events(&self, id: &str, after: u64) -> Box<dyn JobEvents> {
        Box::new(Reader::new(self.shared.broker.clone(), id, after))
    }

    fn pictures<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Vec<PictureFile>, EngineError>> {
        Box::pin(results::fetch(&self.shared.broker, id))
    }

    fn cancel<'a>(&'a self, id: &'a str) -> Pending<'a, Result<(), EngineError>> {
        Box::pin(cancel(&self.shared.broker, id))
    }

    fn forget<'a>(&'a self, id: &'a str) -> Pending<'a, Result<(), EngineError>> {
        Box::pin(janitor::forget(&self.shared.broker, id))
    }
}

/// The end comes first: whoever takes the job from then on sees it. Then whoever makes the job is told, and one that
/// waits gives its place back.
async fn cancel(broker: &Broker, id: &str) -> Result<(), EngineError> {
    if broker.end(id, End::Cancelled).await? {
        let told = broker.client.publish(subject::cancel(id), Vec::new().into()).await;
        told.map_err(broker::failed("cancelling a job"))?;
        let removed = broker.jobs.purge().filter(subject::any_model(id)).await;
        removed.map(drop).map_err(broker::failed("cancelling a job"))?;
    }
    Ok(())
}

/// Ends a job whose caller left before it was done.
struct Leave {
    broker: Broker,
    id: String,
    over: Arc<AtomicBool>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let (broker, id) = (self.broker.clone(), std::mem::take(&mut self.id));
        runtime.spawn(async move {
            if let Err(error) = cancel(&broker, &id).await {
                tracing::warn!(%error, job = id, "a job that nobody waits for could not be cancelled");
            }
        });
    }
}

/// Whoever knows a job's id may have its pictures, so it has 128 bits of the system's random source: the standard
/// library keys each hasher from it.
fn new_id() -> String {
    let word = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}
