//! Weights onto a GPU through pinned memory: a stretch of a file is copied there by all cores while those before it
//! travel. The driver copies other memory by way of a small buffer of its own, on one core, and waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, PinnedHostSlice, result,
};
use candle_core::cuda_backend::{CudaDType, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

/// Bytes that travel together, and how many such stretches there are: enough for copying to be ahead of travelling.
const SLOT: usize = 8 << 20;
const SLOTS: usize = 4;
/// Bytes that one core copies at a time.
const PIECE: usize = 1 << 20;

struct Slot {
    memory: PinnedHostSlice<u8>,
    /// Recorded when what lies in it has arrived.
    arrived: CudaEvent,
}

impl Slot {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        // SAFETY: it is written before it is read.
        let memory = unsafe { context.alloc_pinned::<u8>(SLOT) }.w()?;
        Ok(Self { memory, arrived: context.new_event(None).w()? })
    }

    /// Copies at most [`SLOT`] bytes and sends them to `address`.
    fn send(&mut self, bytes: &[u8], address: u64, stream: &CudaStream) -> Result<()> {
        self.arrived.synchronize().w()?;
        let memory = self.memory.as_mut_slice().w()?;
        let memory = &mut memory[..bytes.len()];
        memory
            .par_chunks_mut(PIECE)
            .zip(bytes.par_chunks(PIECE))
            .for_each(|(to, from)| to.copy_from_slice(from));
        // SAFETY: there is room for them at the address, and the slot is not touched before the event.
        unsafe { result::memcpy_htod_async(address, memory, stream.cu_stream()) }.w()?;
        self.arrived.record(stream).w()
    }
}

/// The slots of each GPU, made at first use.
static SLOTS_OF: OnceLock<Mutex<HashMap<usize, Vec<Slot>>>> = OnceLock::new();

/// A tensor of these elements, little-endian, on a GPU. Work on candle's stream finds it there; it need not have arrived
/// when this returns.
pub(super) fn upload(bytes: &[u8], dtype: DType, shape: &Shape, device: &CudaDevice) -> Result<Tensor> {
    match dtype {
        DType::F32 => upload_as::<f32>(bytes, shape, device),
        DType::F16 => upload_as::<f16>(bytes, shape, device),
        DType::BF16 => upload_as::<bf16>(bytes, shape, device),
        _ => bail!("weights of {dtype:?} are not uploaded: F32, F16 and BF16 are"),
    }
}

fn upload_as<T: CudaDType + DeviceRepr>(bytes: &[u8], shape: &Shape, device: &CudaDevice) -> Result<Tensor> {
    let stream = device.cuda_stream();
    // SAFETY: all of it is written before anything reads it on this stream.
    let mut slice: CudaSlice<T> = unsafe { stream.alloc(shape.elem_count()) }.w()?;
    let address = slice.device_ptr_mut(&stream).0;
    let mut all = SLOTS_OF.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let slots = all.entry(stream.context().ordinal()).or_default();
    while slots.len() < SLOTS {
        slots.push(Slot::new(stream.context())?);
    }
    for (i, bytes) in bytes.chunks(SLOT).enumerate() {
        let Some(slot) = slots.get_mut(i % SLOTS) else { continue };
        slot.send(bytes, address + (i * SLOT) as u64, &stream)?;
    }
    // The next tensor begins with the slot that has waited longest.
    slots.rotate_left(bytes.len().div_ceil(SLOT) % SLOTS);
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Ok(Tensor::from_storage(storage, shape.clone(), BackpropOp::none(), false))
}
