//! How much was read of all weights, and what the bytes add up to: progress while a model loads, and the proof that
//! everything was read.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

/// Bytes that one thread reads at a time.
const STRETCH: usize = 1 << 20;

static BYTES: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);

/// Bytes of tensors that this process has read from files, and the sum of them all as unsigned numbers.
pub fn bytes_read() -> (u64, u64) {
    (BYTES.load(Ordering::Relaxed), SUM.load(Ordering::Relaxed))
}

/// Counts bytes that were read. Those of a mapped file are read by this.
pub(super) fn count(bytes: &[u8]) {
    let count = |stretch: &[u8]| {
        BYTES.fetch_add(stretch.len() as u64, Ordering::Relaxed);
        SUM.fetch_add(sum(stretch), Ordering::Relaxed);
    };
    if bytes.len() > STRETCH {
        bytes.par_chunks(STRETCH).for_each(count);
    } else {
        count(bytes);
    }
}

/// The sum of unsigned bytes, at the speed of memory: 256 of them fit a lane of 16 bits.
fn sum(bytes: &[u8]) -> u64 {
    const LANES: usize = 32;
    let run = |run: &[u8]| {
        let mut lanes = [0u16; LANES];
        let blocks = run.chunks_exact(LANES);
        let rest = blocks.remainder().iter().map(|&byte| u64::from(byte)).sum::<u64>();
        for block in blocks {
            lanes.iter_mut().zip(block).for_each(|(lane, &byte)| *lane += u16::from(byte));
        }
        rest + lanes.iter().map(|&lane| u64::from(lane)).sum::<u64>()
    };
    bytes.chunks(256 * LANES).map(run).sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn sums_are_those_of_every_byte() {
        for len in [0, 1, 31, 32, 33, 8191, 8192, 8193, 100_000] {
            for bytes in [vec![255u8; len], (0..len).map(|i| (i * 31 % 256) as u8).collect()] {
                assert_eq!(super::sum(&bytes), bytes.iter().map(|&b| u64::from(b)).sum::<u64>(), "{len}");
            }
        }
    }
}
