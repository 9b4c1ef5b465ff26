//! Who may wait for the engine, how many, how long, and for how much.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::{Seat, Work};

pub mod admission;
pub mod cache;
pub mod local;
#[cfg(feature = "nats")]
pub mod nats;
pub mod shared;
pub mod ticket;

pub use admission::{Caller, Cost, Refusal};
pub use local::{Limits, LocalQueue};
pub use shared::SharedJobs;
pub use ticket::Ticket;

/// An answer that may come from another machine.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A bounded queue in front of the engine.
pub trait JobQueue: Send + Sync {
    /// Takes a place, to be filled by [`submit`](Self::submit) or given back by dropping it.
    ///
    /// # Errors
    /// When every place is taken, the work would be too much, or the caller has its share.
    fn admit(&self, caller: &Caller, cost: Cost) -> Result<Place, Refusal>;

    /// Puts work into an admitted place. Several processes may fill one queue, so this may still find it full.
    fn submit(&self, place: Place, work: Work) -> Pending<'_, Result<Ticket, Refusal>>;

    /// How full it is.
    fn depth(&self) -> Depth;

    /// Jobs whose callers wait in this process.
    fn awaited_here(&self) -> usize {
        let depth = self.depth();
        depth.running + depth.waiting
    }

    /// Whether it can be asked at all.
    fn is_reachable(&self) -> bool {
        true
    }

    /// The same jobs by their ids, where every process that shares the queue can see them.
    fn shared(&self) -> Option<Arc<dyn SharedJobs>> {
        None
    }

    /// Jobs answered with pictures made before, and those for which there were none, where such are kept.
    fn picture_cache(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Ends it: work that waits is answered with `EngineError::Stopping`, as is all that still comes.
    fn close(&self);
}

/// A place in the queue; whoever drops it last frees it.
pub struct Place(pub(crate) Box<dyn Seat>);

impl Place {
    /// One place for two jobs that follow on each other: it is free once both are done.
    pub fn shared(self) -> (Self, Self) {
        let whole = Arc::new(Whole { place: self, begun: AtomicBool::new(false) });
        (Self(Box::new(Half(whole.clone()))), Self(Box::new(Half(whole))))
    }
}

/// A place that two jobs share.
struct Whole {
    place: Place,
    begun: AtomicBool,
}

struct Half(Arc<Whole>);

impl Seat for Half {
    /// The second job is the first one going on.
    fn begin(&self) {
        if !self.0.begun.swap(true, Ordering::Relaxed) {
            self.0.place.0.begin();
        }
    }
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Depth {
    /// Jobs at work, halfway ones included.
    pub running: usize,
    /// Places taken by others.
    pub waiting: usize,
    /// Places there are.
    pub capacity: usize,
}
