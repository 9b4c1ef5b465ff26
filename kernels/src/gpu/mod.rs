//! What the ops' CUDA arms are made of: which tensors they take, and the launch of a kernel.
//!
//! An op's kernels are in the `.cu` file beside it. Its arm is written once and runs on two backends: `cuda`, where the
//! feature is on and tensors are on a GPU; and in tests `emulator`, which runs the same kernels, compiled as C++, on
//! tensors of the CPU. So what an arm computes, from the choice of a kernel to its arithmetic, is tested on any machine,
//! and by the same tests on a GPU where there is one.
//!
//! Convolutions and attention are asked of cuDNN first, see [`cudnn`], and go by kernels of ours where it is not there or
//! has no plan.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use crate::eight_bit_rows::Coded;
use crate::{Activation, EightBits};

#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(target_os = "linux")]
pub mod cudnn;
#[cfg(test)]
mod emulator;
#[cfg(feature = "cuda")]
pub(crate) mod graph;
#[cfg(feature = "cuda")]
pub(crate) mod memory;
#[cfg(any(feature = "cuda", test))]
mod product;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "cuda")]
mod upload;

#[cfg(feature = "cuda")]
use cuda::compute_capability;
#[cfg(feature = "cuda")]
pub use cuda::open;

/// Threads of a block, unless a launch says otherwise.
const THREADS: usize = 256;
const WARP: usize = 32;

/// Whether kernels can be run on `x`: it is on a GPU, and of a type that they are compiled for.
pub(crate) fn takes(x: &Tensor) -> bool {
    cfg!(feature = "cuda") && x.device().is_cuda() && suffix(x.dtype()).is_some()
}

/// Whether the tensor cores of the device that `x` is on multiply its type, f16 or bf16.
pub(crate) fn multiplies(x: &Tensor) -> bool {
    let needed = match x.dtype() {
        DType::F16 => (7, 5),
        DType::BF16 => (8, 0),
        _ => return false,
    };
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return compute_capability(x.device()).is_ok_and(|present| present >= needed);
    }
    // The emulator has all of it.
    let _ = needed;
    true
}

/// A tensor of these elements, little-endian, on `device`.
pub(crate) fn upload(bytes: &[u8], dtype: DType, shape: &Shape, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return upload::upload(bytes, dtype, shape, device);
    }
    Tensor::from_raw_buffer(bytes, dtype, shape.dims(), device)
}

/// Whether a device computes in bf16: all but GPUs before sm_80, such as the T4.
pub fn computes_in_bf16(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return compute_capability(device).is_ok_and(|present| present >= (8, 0));
    }
    let _of_the_cpu = device;
    true
}

/// Whether a device has tensor cores for numbers of eight bits.
pub fn multiplies_codes(device: &Device, of: EightBits) -> bool {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let needed = match of {
            EightBits::F8E4M3 => (8, 9),
            EightBits::Int8 => (7, 5),
        };
        return compute_capability(device).is_ok_and(|present| present >= needed);
    }
    let _of_the_cpu = (device, of);
    false
}

/// What the names of a type's kernels end with.
fn suffix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
        _ => None,
    }
}

/// Elements that one thread works on: 16 bytes of them.
pub(crate) fn width(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// One kernel's launch. Arguments come in the order of the kernel's parameters.
pub(crate) struct Launch<'a> {
    module: &'static str,
    function: String,
    arguments: Vec<Argument<'a>>,
    outputs: Vec<(Shape, DType)>,
    shared_bytes: usize,
}

#[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "there is nothing to launch on"))]
enum Argument<'a> {
    Input(&'a Tensor),
    /// A pointer to nothing.
    Absent,
    /// The output of this index.
    Output(usize),
    I32(i32),
    I64(i64),
    F32(f32),
}

/// Blocks of a launch, and threads of a block.
struct Grid {
    blocks: [usize; 3],
    threads: usize,
}

impl<'a> Launch<'a> {
    /// The kernel `name`, which is not for one type only, of the file `module`.
    pub(crate) fn new(module: &'static str, name: &str) -> Self {
        Self {
            module,
            function: name.to_owned(),
            arguments: Vec::new(),
            outputs: Vec::new(),
            shared_bytes: 0,
        }
    }

    /// The kernel `name` of the file `module` for activations of a type.
    pub(crate) fn typed(module: &'static str, name: &str, dtype: DType) -> Result<Self> {
        let Some(suffix) = suffix(dtype) else { bail!("{name}: there is no kernel for {dtype:?}") };
        Ok(Self::new(module, &format!("{name}_{suffix}")))
    }

    /// A tensor to read, contiguous.
    pub(crate) fn input(mut self, x: &'a Tensor) -> Self {
        self.arguments.push(Argument::Input(x));
        self
    }

    /// A tensor to read, or null.
    pub(crate) fn optional(mut self, x: Option<&'a Tensor>) -> Self {
        self.arguments.push(x.map_or(Argument::Absent, Argument::Input));
        self
    }

    /// A tensor that the kernel writes, every element of it.
    pub(crate) fn output(mut self, shape: impl Into<Shape>, dtype: DType) -> Self {
        self.arguments.push(Argument::Output(self.outputs.len()));
        self.outputs.push((shape.into(), dtype));
        self
    }

    /// A number, `int` or `unsigned` there.
    pub(crate) fn int(mut self, value: usize) -> Self {
        // What does not fit is refused by the checks of `run`: no launch has that many threads.
        self.arguments.push(Argument::I32(i32::try_from(value).unwrap_or(i32::MAX)));
        self
    }

    /// A number, `Index` there.
    pub(crate) fn index(mut self, value: usize) -> Self {
        self.arguments.push(Argument::I64(value as i64));
        self
    }

    /// A number, `float` there.
    pub(crate) fn float(mut self, value: f64) -> Self {
        self.arguments.push(Argument::F32(value as f32));
        self
    }

    /// Bytes of shared memory whose size the kernel leaves to the launch; 48 KiB at most.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// Runs it with a thread for each of `count` pieces; returns the only output.
    pub(crate) fn for_each(self, count: usize) -> Result<Tensor> {
        self.blocks([count.div_ceil(THREADS), 1, 1], THREADS)
    }

    /// Runs it with a thread for each pack of columns of a row-major matrix.
    pub(crate) fn for_each_pack(self, rows: usize, columns: usize, dtype: DType) -> Result<Tensor> {
        self.for_each(rows * columns.div_ceil(width(dtype)))
    }

    /// Runs it with a warp for each row.
    pub(crate) fn for_each_row(self, rows: usize) -> Result<Tensor> {
        self.for_each(rows * WARP)
    }

    /// The same for kernels of two outputs.
    pub(crate) fn for_each_row_of_two(self, rows: usize) -> Result<(Tensor, Tensor)> {
        pair(self.run(&Grid { blocks: [(rows * WARP).div_ceil(THREADS), 1, 1], threads: THREADS })?)
    }

    /// Runs it on a grid of blocks; returns the only output.
    pub(crate) fn blocks(self, blocks: [usize; 3], threads: usize) -> Result<Tensor> {
        let outputs = self.run(&Grid { blocks, threads })?;
        match <[Tensor; 1]>::try_from(outputs) {
            Ok([y]) => Ok(y),
            Err(all) => bail!("a kernel of one output has {}", all.len()),
        }
    }

    /// The same for kernels of two outputs.
    pub(crate) fn blocks_of_two(self, blocks: [usize; 3], threads: usize) -> Result<(Tensor, Tensor)> {
        pair(self.run(&Grid { blocks, threads })?)
    }

    fn run(&self, grid: &Grid) -> Result<Vec<Tensor>> {
        let Some(first) = self.arguments.iter().find_map(|a| match a {
            Argument::Input(x) => Some(x),
            _ => None,
        }) else {
            bail!("{}: a kernel without an input", self.function);
        };
        let [x, y, z] = grid.blocks;
        // Kernels count threads and rows in 32 bits.
        if x.saturating_mul(grid.threads) > i32::MAX as usize || y > 65_535 || z > 65_535 {
            bail!(
                "{}: {:?} is too large for one launch of {x} x {y} x {z} blocks",
                self.function,
                first.dims()
            );
        }
        let empty = self.outputs.iter().all(|(shape, _)| shape.elem_count() == 0);
        if empty || x * y * z == 0 {
            return self
                .outputs
                .iter()
                .map(|(shape, dtype)| Tensor::zeros(shape, *dtype, first.device()))
                .collect();
        }
        #[cfg(feature = "cuda")]
        if first.device().is_cuda() {
            return cuda::run(self, grid, first.device());
        }
        #[cfg(test)]
        if first.device().is_cpu() {
            return emulator::run(self, grid);
        }
        bail!("{} of {}: there is no device to run it on {:?}", self.function, self.module, first.device())
    }
}

/// A request to cuDNN on tensors by their numbers, all contiguous; `y` is the number of the result, whose shape and type
/// follow. `None` where the op has to go on by itself: there is no cuDNN, or it has no plan.
///
/// In tests on the CPU the request's graph is computed by what it means, so that it is known to ask for the right thing.
#[cfg(target_os = "linux")]
pub(crate) fn ask_cudnn(
    request: &cudnn::Request,
    tensors: &[(i64, &Tensor)],
    y: i64,
    shape: impl Into<Shape>,
    dtype: DType,
) -> Result<Option<Tensor>> {
    let Some((_, first)) = tensors.first() else { bail!("{request:?}: a request without a tensor") };
    let shape = shape.into();
    #[cfg(feature = "cuda")]
    if first.device().is_cuda() {
        return cuda::ask_cudnn(request, tensors, y, shape, dtype);
    }
    #[cfg(test)]
    if first.device().is_cpu() {
        return testing::evaluate(request, tensors, y, shape, dtype).map(Some);
    }
    let _ = (y, shape, dtype, first);
    Ok(None)
}

/// Whether it is worth to put a request for `x` together: not on a GPU without cuDNN.
#[cfg(target_os = "linux")]
pub(crate) fn has_cudnn(x: &Tensor) -> bool {
    !x.device().is_cuda() || cudnn::version().is_ok()
}

/// The type of elements as cuDNN calls it.
#[cfg(target_os = "linux")]
pub(crate) fn cudnn_type(dtype: DType) -> Option<cudnn::DataType> {
    match dtype {
        DType::F32 => Some(cudnn::DataType::F32),
        DType::F16 => Some(cudnn::DataType::F16),
        DType::BF16 => Some(cudnn::DataType::BF16),
        _ => None,
    }
}

fn pair(outputs: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    match <[Tensor; 2]>::try_from(outputs) {
        Ok([a, b]) => Ok((a, b)),
        Err(all) => bail!("a kernel of two outputs has {}", all.len()),
    }
}

/// A linear layer in one call of cublasLt; `None` where that cannot do it, or there is no GPU.
pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cublaslt::linear(x, weight, bias, activation, residual);
    }
    let _there_is_no_gpu = (x, weight, bias, activation, residual);
    Ok(None)
}

/// The same of rows in eight bits, with a result of `dtype`.
pub(crate) fn eight_bit_linear(
    x: &Coded,
    weight: &Coded,
    dtype: DType,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if x.codes.device().is_cuda() {
        return cublaslt::eight_bit_linear(x, weight, dtype, bias, activation, residual);
    }
    let _there_is_no_gpu = (x, weight, dtype, bias, activation, residual);
    Ok(None)
}

/// The product of two matrices, in their type, summed in f32.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(test)]
    if a.device().is_cpu() && a.dtype() != DType::F32 {
        // candle's CPU has no product of bf16, and the emulator takes its tensors.
        return a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(a.dtype());
    }
    a.matmul(b)
}
