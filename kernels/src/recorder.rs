//! Networks that run on tensors of the same shapes again and again: on a GPU their kernels are recorded once and then
//! started as a whole, a CUDA graph, instead of one by one.
//!
//! A recording reads its own copies of the inputs and writes its own outputs, at addresses that stay; a run copies what
//! has changed into the former and the results out of the latter. Whatever differs from run to run is therefore an input
//! and a tensor: latents, embedded timesteps, the prompt's keys and values. Weights are read where they are, so every
//! recording goes when a layer [moves](crate::layer_moves); LoRAs are merged in place and move none.
//!
//! It is off unless [`keep_recordings`] allows some: recordings were tested against a stand-in for the driver and never
//! on a device so far.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use candle_core::Tensor;

#[cfg(feature = "cuda")]
use crate::recordings::Recordings;

static CAPACITY: AtomicUsize = AtomicUsize::new(0);
static PAUSES: AtomicUsize = AtomicUsize::new(0);

/// How many recordings each network keeps, the last used ones; 0 is none, and how it begins. Each takes the memory of
/// its inputs and outputs, and all share that of one run.
pub fn keep_recordings(capacity: usize) {
    CAPACITY.store(capacity, Ordering::Release);
}

/// While one of these is, nothing is recorded: other threads put work on the device.
#[derive(Debug)]
pub struct NoRecording(());

impl NoRecording {
    /// Begins.
    pub fn start() -> Self {
        PAUSES.fetch_add(1, Ordering::AcqRel);
        Self(())
    }
}

impl Drop for NoRecording {
    fn drop(&mut self) {
        PAUSES.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(feature = "cuda")]
type OnGpu = Mutex<Recordings<crate::gpu::graph::Recorded>>;

/// Those of all networks that have recorded something.
#[cfg(feature = "cuda")]
static ALL: Mutex<Vec<Weak<OnGpu>>> = Mutex::new(Vec::new());

/// Drops all recordings, for their memory. What comes again is recorded again. Not to be called by recorded work.
pub fn forget_recordings() {
    #[cfg(feature = "cuda")]
    for recordings in ALL.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
        recordings.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The recordings of one network.
#[derive(Default)]
pub struct Recorder {
    #[cfg(feature = "cuda")]
    on_gpu: OnceLock<Arc<OnGpu>>,
}

impl Recorder {
    #[cfg(feature = "cuda")]
    fn enrolled() -> Arc<OnGpu> {
        let new = Arc::default();
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|recordings| recordings.strong_count() > 0);
        all.push(Arc::downgrade(&new));
        new
    }

    /// `work` on `inputs`: recorded at the second run with inputs of the same types and shapes, started as a whole from
    /// then on. It must depend on nothing else that changes but weights, and must not wait for the device.
    ///
    /// # Errors
    /// Those of `work`. Where it cannot be recorded it is run.
    pub fn run<E: From<candle_core::Error> + Display>(
        &self,
        inputs: &[&Tensor],
        work: impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, E>,
    ) -> std::result::Result<Vec<Tensor>, E> {
        #[cfg(feature = "cuda")]
        if let Some(device) = inputs.first().map(|x| x.device()).filter(|device| device.is_cuda()) {
            let capacity = CAPACITY.load(Ordering::Acquire);
            if capacity > 0 && PAUSES.load(Ordering::Acquire) == 0 {
                let driver = crate::gpu::graph::Driver::new(device)?;
                let recordings = self.on_gpu.get_or_init(Self::enrolled);
                let mut recordings = recordings.lock().unwrap_or_else(PoisonError::into_inner);
                return recordings.run(&driver, (crate::layer_moves(), capacity), inputs, &work);
            }
        }
        work(&owned(inputs))
    }
}

/// The same tensors.
pub(crate) fn owned(inputs: &[&Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|x| (*x).clone()).collect()
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result};

    use super::*;

    #[test]
    fn the_cpu_runs_as_ever() -> Result<()> {
        let recorder = Recorder::default();
        keep_recordings(2);
        for value in 0..4u32 {
            let x = Tensor::new(&[value, value + 1], &Device::Cpu)?;
            let y = recorder.run(&[&x], |inputs| Result::Ok(vec![(&inputs[0] + &inputs[0])?]))?;
            assert_eq!(y[0].to_vec1::<u32>()?, [2 * value, 2 * value + 2]);
        }
        keep_recordings(0);
        Ok(())
    }
}
