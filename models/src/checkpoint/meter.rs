//! How much was read of all weights, and what the bytes add up to: progress while a model loads, and the proof that
//! everything was read.

use std::sync::atomic::{AtomicU64, Ordering};

static BYTES: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);

/// Bytes of tensors that this process has read from files, and the sum of them all as unsigned numbers.
pub fn bytes_read() -> (u64, u64) {
    (BYTES.load(Ordering::Relaxed), SUM.load(Ordering::Relaxed))
}

/// Counts bytes that were read.
pub(super) fn count(bytes: &[u8]) {
    // In 32 bits a stretch of 2^24 bytes cannot overflow.
    let sum = |stretch: &[u8]| u64::from(stretch.iter().map(|&byte| u32::from(byte)).sum::<u32>());
    BYTES.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    SUM.fetch_add(bytes.chunks(1 << 24).map(sum).sum(), Ordering::Relaxed);
}
