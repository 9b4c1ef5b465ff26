//! Launches on a GPU, through cudarc, on candle's device and stream.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

use super::cudnn::{Request, Session};
use super::{Argument, Grid, Launch};
use crate::in_place::moved;

/// The compiled kernels of every `.cu` file by its name: machine code for sm_75, sm_80 and sm_90, and PTX for what
/// comes after them.
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/compiled.rs"));
}

/// Opens the first GPU, once a process: all models share it, and its stream.
///
/// # Errors
/// Says what is missing: the driver, one of CUDA's libraries, or a GPU.
pub fn open() -> std::result::Result<Device, String> {
    static OPENED: OnceLock<std::result::Result<Device, String>> = OnceLock::new();
    OPENED.get_or_init(open_once).clone()
}

fn open_once() -> std::result::Result<Device, String> {
    aquatint_cuda_loader::open()?;
    // The lines behind the first are a backtrace.
    let said = |e: candle_core::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
    // A stream of its own, unlike the default one, can be captured as a graph.
    let device = Device::new_cuda_with_stream(0).map_err(said)?;
    // SAFETY: there is one stream, on which everything happens in order. There are no tensors yet.
    unsafe { device.as_cuda_device().map_err(said)?.disable_event_tracking() };
    super::memory::keep(&device).map_err(said)?;
    Ok(device)
}

/// Major and minor number of what the GPU can do, as far as the kernels were compiled for it.
pub(super) fn compute_capability(device: &Device) -> Result<(i32, i32)> {
    let present = device.as_cuda_device()?.cuda_stream().context().compute_capability().w()?;
    let only = option_env!("AQUATINT_KERNELS_AS").and_then(|of| of.parse::<i32>().ok());
    Ok(only.map_or(present, |of| present.min((of / 10, of % 10))))
}

/// Modules and functions of one GPU, loaded at first use: a graph must not be captured before.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, std::sync::Arc<CudaModule>>,
    functions: HashMap<String, CudaFunction>,
}

static LOADED: OnceLock<Mutex<HashMap<usize, Loaded>>> = OnceLock::new();

fn function(launch: &Launch<'_>, stream: &CudaStream) -> Result<CudaFunction> {
    let context = stream.context();
    let mut all = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = all.entry(context.ordinal()).or_default();
    if let Some(function) = loaded.functions.get(&launch.function) {
        return Ok(function.clone());
    }
    let module = match loaded.modules.get(launch.module) {
        Some(module) => module,
        None => {
            let Some((_, image)) = compiled::MODULES.iter().find(|(name, _)| *name == launch.module) else {
                bail!("there are no compiled kernels of {}", launch.module);
            };
            let module = context.load_module(Ptx::from_binary(image.to_vec())).w()?;
            loaded.modules.entry(launch.module).or_insert(module)
        }
    };
    let function = module.load_function(&launch.function).w()?;
    loaded.functions.insert(launch.function.clone(), function.clone());
    Ok(function)
}

/// Where a contiguous tensor's elements begin on the GPU.
///
/// The address stays good after the tensor is dropped as far as work on the same stream is concerned: memory is freed
/// in the stream's order.
pub(super) fn address(x: &Tensor, stream: &CudaStream) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("a tensor of shape {:?} is not contiguous", x.dims());
    };
    let Storage::Cuda(storage) = &*storage else {
        bail!("a tensor of shape {:?} is not on the GPU", x.dims())
    };
    let first = match &storage.slice {
        CudaStorageSlice::F32(s) => s.device_ptr(stream).0,
        CudaStorageSlice::F16(s) => s.device_ptr(stream).0,
        CudaStorageSlice::BF16(s) => s.device_ptr(stream).0,
        CudaStorageSlice::U8(s) => s.device_ptr(stream).0,
        CudaStorageSlice::I32(s) => s.device_ptr(stream).0,
        _ => bail!("kernels take no tensors of {:?}", storage.dtype()),
    };
    Ok(first + (start * x.dtype().size_in_bytes()) as u64)
}

enum Value {
    Address(u64),
    I32(i32),
    I64(i64),
    F32(f32),
}

pub(super) fn run(launch: &Launch<'_>, grid: &Grid, device: &Device) -> Result<Vec<Tensor>> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let function = function(launch, &stream)?;
    let mut outputs = Vec::with_capacity(launch.outputs.len());
    for (shape, dtype) in &launch.outputs {
        // SAFETY: the kernel writes every element; nothing on this stream reads them before it has run.
        outputs.push(unsafe { Tensor::empty(shape, *dtype, device) }?);
    }
    let values = launch.arguments.iter().map(|argument| {
        Ok(match argument {
            Argument::Input(x) => Value::Address(address(x, &stream)?),
            Argument::Absent => Value::Address(0),
            Argument::Output(i) => match outputs.get(*i) {
                Some(y) => Value::Address(address(y, &stream)?),
                None => bail!("{}: there is no output {i}", launch.function),
            },
            Argument::I32(v) => Value::I32(*v),
            Argument::I64(v) => Value::I64(*v),
            Argument::F32(v) => Value::F32(*v),
        })
    });
    let values = values.collect::<Result<Vec<_>>>()?;
    let mut builder = stream.launch_builder(&function);
    for value in &values {
        match value {
            Value::Address(v) => builder.arg(v),
            Value::I32(v) => builder.arg(v),
            Value::I64(v) => builder.arg(v),
            Value::F32(v) => builder.arg(v),
        };
    }
    let config = LaunchConfig {
        grid_dim: (grid.blocks[0] as u32, grid.blocks[1] as u32, grid.blocks[2] as u32),
        block_dim: (grid.threads as u32, 1, 1),
        shared_mem_bytes: launch.shared_bytes as u32,
    };
    // SAFETY: the arguments are those of the kernel's parameters, which tests of every arm check on the emulator; the
    // sizes that go with the addresses are those of the tensors.
    unsafe { builder.launch(config) }.w()?;
    Ok(outputs)
}

/// cuDNN on each GPU, or nothing where it is not there.
static SESSIONS: OnceLock<Mutex<HashMap<usize, Option<Session>>>> = OnceLock::new();

/// What an address must be a multiple of.
const ALIGNMENT: u64 = 16;

pub(super) fn ask_cudnn(
    request: &Request,
    tensors: &[(i64, &Tensor)],
    y: i64,
    shape: Shape,
    dtype: DType,
) -> Result<Option<Tensor>> {
    let Some(device) = tensors.first().map(|(_, x)| x.device()) else { return Ok(None) };
    // On a newer GPU that is to behave as an older one, too.
    if matches!(request, Request::Attention(_)) && compute_capability(device)? < (8, 0) {
        return Ok(None);
    }
    let stream = device.as_cuda_device()?.cuda_stream();
    let context = stream.context();
    let mut sessions = SESSIONS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let session = match sessions.entry(context.ordinal()) {
        Entry::Occupied(present) => present.into_mut(),
        Entry::Vacant(none) => {
            context.bind_to_thread().w()?;
            none.insert(Session::new().ok())
        }
    };
    let Some(session) = session else { return Ok(None) };
    // Recordings may run the kernels of any plan.
    let may_go = || {
        moved();
        stream.synchronize().is_ok()
    };
    let Some(workspace_bytes) = session.prepare(request, may_go) else { return Ok(None) };
    // Freed in the stream's order, so it may go when this function ends.
    // SAFETY: cuDNN expects nothing of what is in it.
    let workspace = unsafe { Tensor::empty(workspace_bytes.max(1), DType::U8, device) }?;
    // SAFETY: the plan writes every element; nothing on this stream reads them before it has run.
    let result = unsafe { Tensor::empty(shape, dtype, device) }?;
    let all = tensors.iter().copied().chain([(y, &result)]);
    let all = all.map(|(number, x)| Ok((number, address(x, &stream)?))).collect::<Result<Vec<_>>>()?;
    if all.iter().any(|(_, address)| address % ALIGNMENT != 0) {
        return Ok(None);
    }
    let workspace = address(&workspace, &stream)?;
    // SAFETY: the addresses are those of the request's tensors, whose sizes the request was made from; tests compute every
    // request on tensors of the same sizes.
    unsafe { session.run(request, stream.cu_stream() as u64, &all, workspace) }
        .map_err(candle_core::Error::msg)?;
    Ok(Some(result))
}
