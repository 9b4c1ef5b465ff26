//! What is on its way from the hub: whoever downloads says so here, and the engine tells it while a model loads.

use std::sync::atomic::{AtomicU64, Ordering};

static EXPECTED: AtomicU64 = AtomicU64::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Bytes of all downloads of this process that have begun and not ended: those that arrived, and all of them.
pub fn under_way() -> (u64, u64) {
    (ARRIVED.load(Ordering::Relaxed), EXPECTED.load(Ordering::Relaxed))
}

/// One download, counted until it is dropped.
#[derive(Debug)]
pub struct Download {
    expected: u64,
    arrived: AtomicU64,
}

impl Download {
    /// So many bytes will come.
    pub fn begin(expected: u64) -> Self {
        EXPECTED.fetch_add(expected, Ordering::Relaxed);
        Self { expected, arrived: AtomicU64::new(0) }
    }

    /// Bytes of it that are here.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Of a part of it, of which `before` bytes were here, there are `now`. It may be fewer: a file that turned out wrong
    /// starts again.
    pub fn moved(&self, before: u64, now: u64) {
        for count in [&self.arrived, &ARRIVED] {
            count.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        EXPECTED.fetch_sub(self.expected, Ordering::Relaxed);
        ARRIVED.fetch_sub(self.arrived(), Ordering::Relaxed);
    }
}
