//! Work that is recorded once and then started as a whole: CUDA graphs, on candle's stream.
//!
//! What is allocated while a graph is recorded becomes the graph's own memory; all of it is freed within the recording,
//! and all inputs and outputs are older than it, so a graph can be started any number of times.
//!
//! Type-checked and never run on a device so far.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode, CUstreamCaptureStatus as Status,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Result, bail};

/// Whether what is put on the stream is recorded instead of run.
pub(super) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    Ok(stream.capture_status().w()? != Status::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// What is put on a stream is recorded until this is ended or dropped, by a panic too: a stream that is left so runs
/// nothing any more.
struct Capture<'a>(Option<&'a Arc<CudaStream>>);

impl<'a> Capture<'a> {
    fn begin(stream: &'a Arc<CudaStream>) -> Result<Self> {
        // Other threads may go on with what they do, as long as it is on other streams.
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        Ok(Self(Some(stream)))
    }

    fn end(mut self) -> std::result::Result<Option<CudaGraph>, DriverError> {
        self.0.take().map_or(Ok(None), |stream| stream.end_capture(Flags(0)))
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            let _of_no_use = stream.end_capture(Flags(0));
        }
    }
}

/// A recorded run.
pub(crate) struct Recorded(CudaGraph);

// SAFETY: a graph must not be used from two threads at a time. Its recorder holds it behind a mutex.
unsafe impl Send for Recorded {}

/// Candle's device and its stream.
pub(crate) struct Driver<'a> {
    device: &'a CudaDevice,
    stream: Arc<CudaStream>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(device: &'a Device) -> Result<Self> {
        let device = device.as_cuda_device()?;
        Ok(Self { device, stream: device.cuda_stream() })
    }
}

impl crate::recordings::Driver<Recorded> for Driver<'_> {
    fn prepare(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        // Shapes and strides that candle's kernels read are uploaded now and found again while it is recorded.
        let _uploads_stay = self.device.enable_cuda_graph_htod_cache();
        work()
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recorded> {
        let _uploads_stay = self.device.enable_cuda_graph_htod_cache();
        self.stream.synchronize().w()?;
        let capture = Capture::begin(&self.stream)?;
        let done = work();
        match (done, capture.end()) {
            (Ok(()), Ok(Some(graph))) => {
                graph.upload().w()?;
                Ok(Recorded(graph))
            }
            (done, graph) => {
                // What was freed in a recording that failed says so at the next call, which has nothing to do with it.
                let _of_the_recording = self.stream.context().check_err();
                done?;
                graph.w()?;
                bail!("nothing was recorded")
            }
        }
    }

    fn start(&self, graph: &Recorded, _: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        graph.0.launch().w()
    }
}
