//! Who may wait for the engine, and how many.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{oneshot, watch};

use crate::engine::{EngineError, Observer, Progress, Reply, Work};

pub mod admission;
pub mod local;

pub use admission::{Caller, Cost, Refusal};
pub use local::LocalQueue;

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

    /// Ends it: work that waits is answered with [`EngineError::Stopping`], as is all that still comes.
    fn close(&self);
}

/// A place in the queue; whoever drops it last frees it.
pub struct Place(pub(crate) Box<dyn Send + Sync>);

impl Place {
    /// One place for two jobs that follow on each other: it is free once both are done.
    pub fn shared(self) -> (Self, Self) {
        let place = Arc::new(self);
        (Self(Box::new(place.clone())), Self(Box::new(place)))
    }
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Depth {
    /// Jobs at work: 0 or 1.
    pub running: usize,
    /// Places taken by others.
    pub waiting: usize,
    /// Places there are.
    pub capacity: usize,
}

/// Waits for a job's pictures. Dropping it gives the job up, wherever it is.
pub struct Ticket {
    reply: oneshot::Receiver<Reply>,
    progress: Observer,
    /// Takes the job out of the queue when dropped.
    _leave: Box<dyn Send + Sync>,
}

impl Ticket {
    /// A ticket for the job at the other end of `reply`; `leave` is dropped with it.
    pub fn new(reply: oneshot::Receiver<Reply>, progress: Observer, leave: Box<dyn Send + Sync>) -> Self {
        Self { reply, progress, _leave: leave }
    }

    /// Watches the job; as long as the receiver is kept, previews are made. The end is `JobPhase::Done`.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.watch()
    }

    /// Reads the job's progress without watching it; may be kept when the ticket is given away.
    pub fn observer(&self) -> Observer {
        self.progress.clone()
    }
}

impl Future for Ticket {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let reply = ready!(Pin::new(&mut self.reply).poll(cx));
        Poll::Ready(reply.unwrap_or(Err(EngineError::Stopping)))
    }
}
