//! Who may wait for the engine, how many, how long, and for how much.

use crate::engine::Work;

pub mod admission;
pub mod cache;
pub mod local;
pub mod ticket;

pub use admission::{Caller, Cost, Refusal};
pub use local::{Limits, LocalQueue};
pub use ticket::Ticket;

/// A bounded queue in front of the engine.
pub trait JobQueue: Send + Sync {
    /// Takes a place, to be filled by [`submit`](Self::submit) or given back by dropping it.
    ///
    /// # Errors
    /// When every place is taken, the work would be too much, or the caller has its share.
    fn admit(&self, caller: &Caller, cost: Cost) -> Result<Place, Refusal>;

    /// Puts work into an admitted place.
    fn submit(&self, place: Place, work: Work) -> Ticket;

    /// How full it is.
    fn depth(&self) -> Depth;

    /// Jobs answered with pictures made before, and those for which there were none, where such are kept.
    fn picture_cache(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Ends it: work that waits is answered with `EngineError::Stopping`, as is all that still comes.
    fn close(&self);
}

/// A place in the queue; whoever drops it last frees it.
pub struct Place(pub(crate) Box<dyn crate::engine::Seat>);

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
