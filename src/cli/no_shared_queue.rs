//! A program without NATS: no queue is shared, and every use of one is unreachable by its type.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use crate::api::LoraRegistry;
use crate::engine::{Engine, Hearsay};
use crate::queue::{JobQueue, LocalQueue};
use crate::settings::ServeArgs;

/// There is none.
pub(super) struct SharedQueue(Infallible);

/// Nor this.
pub(super) struct SharedWorker(Infallible);

impl SharedQueue {
    /// The settings have refused every other answer.
    pub(super) async fn connect(_: &ServeArgs) -> Result<Option<Self>, Failure> {
        Ok(None)
    }

    pub(super) fn queue(&self) -> Arc<dyn JobQueue> {
        match self.0 {}
    }

    pub(super) fn listen(&self, _: Hearsay, _: LoraRegistry) {
        match self.0 {}
    }

    pub(super) fn work(self, _: &Engine, _: &LocalQueue, _: LoraRegistry) -> SharedWorker {
        match self.0 {}
    }
}

impl SharedWorker {
    pub(super) fn take_no_more(&self) {
        match self.0 {}
    }

    pub(super) async fn end(self, _: Duration) {
        match self.0 {}
    }
}
