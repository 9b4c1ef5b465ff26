//! Who may wait for the engine, and how many.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::engine::{EngineError, Reply, Work};

pub mod local;

pub use local::LocalQueue;

/// A bounded queue in front of the engine.
pub trait JobQueue: Send + Sync {
    /// Takes a place, to be filled by [`submit`](Self::submit) or given back by dropping it.
    ///
    /// # Errors
    /// When every place is taken.
    fn admit(&self) -> Result<Place, QueueFull>;

    /// Puts work into an admitted place.
    fn submit(&self, place: Place, work: Work) -> Ticket;

    /// How full it is.
    fn depth(&self) -> Depth;

    /// Ends it: work that waits is answered with [`EngineError::Stopping`], as is all that still comes.
    fn close(&self);
}

/// A place in the queue; whoever drops it last frees it.
pub struct Place(pub(crate) Box<dyn Send + Sync>);

/// Every place is taken.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the queue is full: {capacity} jobs are running or waiting")]
pub struct QueueFull {
    /// Places there are.
    pub capacity: usize,
    /// When one should be free, judged by the last jobs.
    pub retry_after_s: u64,
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
    /// Takes the job out of the queue when dropped.
    _leave: Box<dyn Send + Sync>,
}

impl Ticket {
    /// A ticket for the job at the other end of `reply`; `leave` is dropped with it.
    pub fn new(reply: oneshot::Receiver<Reply>, leave: Box<dyn Send + Sync>) -> Self {
        Self { reply, _leave: leave }
    }
}

impl Future for Ticket {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let reply = ready!(Pin::new(&mut self.reply).poll(cx));
        Poll::Ready(reply.unwrap_or(Err(EngineError::Stopping)))
    }
}
