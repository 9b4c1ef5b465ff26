//! What the engine counts as it works. Reading never waits, and is exact once the engine is idle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::DeviceMemory;

/// Durations or counts sorted into buckets, as Prometheus has them.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    /// Upper bounds, rising; what is larger is counted beyond the last.
    bounds: [f64; N],
    buckets: [AtomicU64; N],
    beyond: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// Empty, with these upper bounds.
    pub fn new(bounds: [f64; N]) -> Self {
        let buckets = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, buckets, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts one value.
    pub fn record(&self, value: f64) {
        let bucket = self.bounds.iter().zip(&self.buckets).find(|(bound, _)| value <= **bound);
        bucket.map_or(&self.beyond, |(_, bucket)| bucket).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    /// Counts one duration in seconds.
    pub fn record_time(&self, time: Duration) {
        self.record(time.as_secs_f64());
    }

    /// `(upper bound, values up to it)` for every bound, rising.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let mut sum = 0;
        let up_to = self.bounds.iter().zip(&self.buckets).map(|(bound, bucket)| {
            sum += bucket.load(Ordering::Relaxed);
            (*bound, sum)
        });
        up_to.collect()
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        let within: u64 = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum();
        within + self.beyond.load(Ordering::Relaxed)
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The device's memory as it was when it was last asked.
#[derive(Debug, Default)]
pub struct MemoryGauge(Mutex<Option<DeviceMemory>>);

impl MemoryGauge {
    /// Takes a reading, where there is one.
    pub fn take(&self, memory: Option<DeviceMemory>) {
        if let Some(memory) = memory {
            *self.last() = Some(memory);
        }
    }

    /// Nothing is left that could be asked: the pool is empty.
    pub fn all_given_back(&self) {
        if let Some(memory) = &mut *self.last() {
            *memory = DeviceMemory { free: memory.attainable(), held: 0, used: 0, ..*memory };
        }
    }

    /// The last reading; `None` where the device has no memory of its own, or before the first.
    pub fn get(&self) -> Option<DeviceMemory> {
        *self.last()
    }

    fn last(&self) -> MutexGuard<'_, Option<DeviceMemory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Everything the engine counts.
#[derive(Debug)]
pub struct Meter {
    /// Seconds jobs waited before they were begun.
    pub wait_s: Histogram<12>,
    /// Seconds of one call for a denoising step, whatever its batch.
    pub step_s: Histogram<12>,
    /// Seconds of decoding one picture.
    pub decode_s: Histogram<12>,
    /// Seconds of encoding prompts and drawing noise for one picture.
    pub start_s: Histogram<12>,
    /// Seconds of merging one LoRA set.
    pub merge_s: Histogram<12>,
    /// Seconds of loading a model.
    pub load_s: Histogram<12>,
    /// Pictures in one step.
    pub batch: Histogram<5>,
    /// Pictures made.
    pub pictures: Counter,
    /// Jobs answered with pictures.
    pub jobs_done: Counter,
    /// Jobs whose caller left.
    pub jobs_cancelled: Counter,
    /// Jobs answered with an error.
    pub jobs_failed: Counter,
    /// Jobs that failed because something was computed to NaN or infinity.
    pub not_finite: Counter,
    /// Runs of the VAE that were repeated in f32 for the same reason.
    pub repeated: Counter,
    /// Prompts found encoded.
    pub prompt_hits: Counter,
    /// Prompts that had to be encoded.
    pub prompt_misses: Counter,
    /// The device's memory.
    pub memory: MemoryGauge,
}

impl Default for Meter {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        Self {
            wait_s: seconds(),
            step_s: seconds(),
            decode_s: seconds(),
            start_s: seconds(),
            merge_s: seconds(),
            load_s: seconds(),
            batch: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0]),
            pictures: Counter::default(),
            jobs_done: Counter::default(),
            jobs_cancelled: Counter::default(),
            jobs_failed: Counter::default(),
            not_finite: Counter::default(),
            repeated: Counter::default(),
            prompt_hits: Counter::default(),
            prompt_misses: Counter::default(),
            memory: MemoryGauge::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_up_to_their_bound() {
        let histogram = Histogram::new([1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            histogram.record(value);
        }
        assert_eq!(histogram.cumulative(), [(1.0, 2), (2.0, 3)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 12.0));
    }
}
