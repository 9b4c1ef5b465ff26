//! Whether the server has been told to stop, for whoever answers slowly.

use std::sync::Arc;

use tokio::sync::watch;

/// Told once. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stopping(Arc<watch::Sender<bool>>);

impl Stopping {
    /// Tells everyone.
    pub fn tell(&self) {
        self.0.send_replace(true);
    }

    /// Whether it has been told.
    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is. A stream that could go on for long ends with this.
    pub async fn told(&self) {
        let mut told = self.0.subscribe();
        // The sender lives as long as `self`: this ends in no other way.
        let _heard = told.wait_for(|told| *told).await.is_ok();
    }
}
