//! Two-dimensional convolution over channels-last features, with what follows it.

use candle_core::{DType, Result, Tensor, bail};

use crate::cpu::{self, CpuWeight, Epilogue, Level, Rows, Shared};
use crate::floats::floats;
use crate::gpu::{self, Launch};
use crate::linear::epilogue_on_gpu;
use crate::weight::{ReplaceableWeight, Weight};
use crate::{Activation, StoredRows};

/// Zero rows and columns added around the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub fn same(n: usize) -> Self {
        Self { top: n, bottom: n, left: n, right: n }
    }

    /// One row below and one column to the right: the VAE encoder's downsampling.
    pub fn bottom_right() -> Self {
        Self { bottom: 1, right: 1, ..Self::default() }
    }
}

/// A convolution that owns its filters in the layout its device wants.
#[derive(Debug)]
pub struct Conv2d {
    weight: ReplaceableWeight,
    bias: Option<Tensor>,
    shape: (usize, usize, usize, usize),
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// `weight`: `(out, in, kernel height, kernel width)` as checkpoints store it; `bias`: `(out)`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        Self::with(ReplaceableWeight::new(&held(weight)?)?, weight.dims4()?, bias, stride, padding)
    }

    /// Filters on the CPU, `(out, in, kernel height, kernel width)`, that stay as their file has them.
    pub fn stored(
        weight: StoredRows,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        let &[out, channels, height, width] = weight.dims() else {
            bail!("conv2d: filters have four dimensions, not {:?}", weight.dims());
        };
        let shape = (out, channels, height, width);
        Self::with(ReplaceableWeight::stored(weight)?, shape, bias, stride, padding)
    }

    fn with(
        weight: ReplaceableWeight,
        shape: (usize, usize, usize, usize),
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        let bias = bias.map(|b| b.to_dtype(DType::F32)?.contiguous()).transpose()?;
        if let Some(b) = &bias
            && b.dims() != [shape.0]
        {
            bail!("conv2d: the bias has shape {:?}, the filters {shape:?}", b.dims());
        }
        if stride == 0 {
            bail!("conv2d: the stride is 0, it must be at least 1");
        }
        Ok(Self { weight, bias, shape, stride, padding })
    }

    /// `(out, in, kernel height, kernel width)`.
    pub fn shape(&self) -> (usize, usize, usize, usize) {
        self.shape
    }

    /// Puts other filters of the same shape in place of the present ones: how LoRAs are merged and undone.
    pub fn replace_weight(&self, weight: &Tensor) -> Result<()> {
        if weight.dims4()? != self.shape {
            bail!("conv2d: filters of shape {:?} cannot replace {:?}", weight.dims(), self.shape);
        }
        self.weight.replace(&held(weight)?)
    }

    /// The same with filters on the CPU that stay as their file has them.
    pub fn replace_stored(&self, weight: StoredRows) -> Result<()> {
        let (out, channels, height, width) = self.shape;
        if weight.dims() != [out, channels, height, width] {
            bail!("conv2d: filters of shape {:?} cannot replace {:?}", weight.dims(), self.shape);
        }
        self.weight.replace_stored(weight)
    }

    /// `x`: `(batch, height, width, in)`; returns `(batch, out height, out width, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, None, None)
    }

    /// `conv(x) + b + per_sample[:, None, None, :] + residual`.
    ///
    /// `per_sample`: `(batch, out)`, the time embedding of a residual block; `residual`: the result's shape.
    pub fn forward_with(
        &self,
        x: &Tensor,
        per_sample: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let geometry = self.geometry(x)?;
        let (batch, channels) = (x.dim(0)?, self.shape.0);
        if let Some(t) = per_sample
            && t.dims() != [batch, channels]
        {
            bail!("conv2d: per_sample has shape {:?}, it must have {:?}", t.dims(), [batch, channels]);
        }
        let shape = (batch, geometry.out_height, geometry.out_width, channels);
        if let Some(r) = residual
            && r.dims4()? != shape
        {
            bail!("conv2d: the residual has shape {:?}, the result {shape:?}", r.dims());
        }
        match &*self.weight.read() {
            Weight::Cpu(w) => on_cpu(Level::best(), x, w, self.bias.as_ref(), per_sample, residual, geometry),
            Weight::Plain(w) if gpu::takes(x) => {
                on_gpu(x, w, self.bias.as_ref(), per_sample, residual, geometry)
            }
            Weight::Plain(w) => {
                let w = w.permute((0, 3, 1, 2))?;
                definition(x, &w, self.bias.as_ref(), per_sample, residual, (self.stride, self.padding))
            }
            Weight::Absent => bail!("conv2d: the weight is not in memory"),
            Weight::Encoded(_) | Weight::EightBits(_) => {
                bail!("conv2d: filters are held in one of candle's types")
            }
        }
    }

    fn geometry(&self, x: &Tensor) -> Result<Geometry> {
        let ((_, height, width, channels), (_, in_channels, kernel_height, kernel_width)) =
            (x.dims4()?, self.shape);
        let Padding { top, bottom, left, right } = self.padding;
        if channels != in_channels {
            bail!("conv2d: an input of shape {:?} has no {in_channels} channels", x.dims());
        }
        if height + top + bottom < kernel_height || width + left + right < kernel_width {
            bail!(
                "conv2d: an input of {height}x{width} is smaller than the {kernel_height}x{kernel_width} filter"
            );
        }
        Ok(Geometry {
            height,
            width,
            channels,
            kernel_height,
            kernel_width,
            stride: self.stride,
            padding: self.padding,
            out_height: (height + top + bottom - kernel_height) / self.stride + 1,
            out_width: (width + left + right - kernel_width) / self.stride + 1,
        })
    }
}

/// Filters as they are held: `(out, kernel height, kernel width, in)` but for the CPU, which takes a file's order.
fn held(weight: &Tensor) -> Result<Tensor> {
    if weight.device().is_cpu() { Ok(weight.clone()) } else { weight.permute((0, 2, 3, 1))?.contiguous() }
}

fn definition(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    per_sample: Option<&Tensor>,
    residual: Option<&Tensor>,
    (stride, padding): (usize, Padding),
) -> Result<Tensor> {
    let Padding { top, bottom, left, right } = padding;
    let x = x.permute((0, 3, 1, 2))?;
    let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?.contiguous()?;
    let w = weight.to_dtype(x.dtype())?;
    let mut y = x.conv2d(&w, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    if let Some(b) = bias {
        y = y.broadcast_add(&b.to_dtype(y.dtype())?)?;
    }
    if let Some(t) = per_sample {
        y = y.broadcast_add(&t.to_dtype(y.dtype())?.unsqueeze(1)?.unsqueeze(1)?)?;
    }
    match residual {
        Some(r) => y + r,
        None => Ok(y),
    }
}

/// What is added to all pixels alike, in f32: `(out)`, or `(batch, out)` where each sample has its own.
fn bias_and_sample(bias: Option<&Tensor>, per_sample: Option<&Tensor>) -> Result<Option<Tensor>> {
    match (bias, per_sample) {
        (Some(b), Some(t)) => floats(&floats(t)?.broadcast_add(&floats(b)?)?).map(Some),
        (b, t) => b.or(t).map(floats).transpose(),
    }
}

/// A convolution's sizes, in pixels but for `channels`.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    height: usize,
    width: usize,
    channels: usize,
    kernel_height: usize,
    kernel_width: usize,
    stride: usize,
    padding: Padding,
    out_height: usize,
    out_width: usize,
}

impl Geometry {
    /// Whether an output pixel depends on the input pixel at its own place alone.
    fn is_pointwise(&self) -> bool {
        (self.kernel_height, self.kernel_width, self.stride, self.padding) == (1, 1, 1, Padding::default())
    }
}

/// The output pixels as rows: a part of a row is the input pixel under one tap, or zeros in the padding.
struct Pixels<'a> {
    x: &'a [f32],
    zeros: &'a [f32],
    geometry: Geometry,
}

impl Rows for Pixels<'_> {
    fn locate(&self, sample: usize, row: usize, parts: &mut [*const f32], stride: usize) {
        let g = &self.geometry;
        let (y, x) = (row / g.out_width * g.stride, row % g.out_width * g.stride);
        for tap_y in 0..g.kernel_height {
            for tap_x in 0..g.kernel_width {
                // Above and to the left of the input these wrap around and are too large as well.
                let y = (y + tap_y).wrapping_sub(g.padding.top);
                let x = (x + tap_x).wrapping_sub(g.padding.left);
                let pixel = if y < g.height && x < g.width {
                    &self.x[((sample * g.height + y) * g.width + x) * g.channels..][..g.channels]
                } else {
                    self.zeros
                };
                parts[(tap_y * g.kernel_width + tap_x) * stride] = pixel.as_ptr();
            }
        }
    }
}

/// Bytes of the unfolded pixels that are in memory at once.
const UNFOLDED: usize = 256 << 20;

/// Through cuDNN, as much as it fuses; else by [`unfolded_product`].
///
/// `weight`: `(out, kernel height, kernel width, in)`
fn on_gpu(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    per_sample: Option<&Tensor>,
    residual: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.to_dtype(x.dtype())?.contiguous()?);
    #[cfg(target_os = "linux")]
    {
        if let Some(y) = on_cudnn(&x, &weight, bias, per_sample, residual, geometry)? {
            return Ok(y);
        }
        let is_plain = bias.is_none() && per_sample.is_none() && residual.is_none();
        if !is_plain && let Some(y) = on_cudnn(&x, &weight, None, None, None, geometry)? {
            return epilogue_on_gpu(y, bias, per_sample, Activation::None, residual);
        }
    }
    unfolded_product(&x, &weight, bias, per_sample, residual, geometry)
}

/// One kernel of cuDNN's, or `None` where it has none.
#[cfg(target_os = "linux")]
fn on_cudnn(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    per_sample: Option<&Tensor>,
    residual: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Option<Tensor>> {
    use gpu::cudnn::{Bias, Convolution, Request, convolution};

    let (batch, out, dtype) = (x.dim(0)?, weight.dim(0)?, x.dtype());
    let Some(of) = gpu::cudnn_type(dtype).filter(|_| gpu::has_cudnn(x)) else { return Ok(None) };
    let Geometry { height, width, channels, kernel_height, kernel_width, stride, padding, .. } = geometry;
    let Padding { top, bottom, left, right } = padding;
    let request = Convolution {
        of,
        batch,
        height,
        width,
        channels,
        out,
        kernel: [kernel_height, kernel_width],
        stride,
        before: [top, left],
        after: [bottom, right],
        bias: match (bias, per_sample) {
            (None, None) => None,
            (Some(_), None) => Some(Bias::Shared),
            (_, Some(_)) => Some(Bias::PerSample),
        },
        residual: residual.is_some(),
    };
    let bias = bias_and_sample(bias, per_sample)?;
    let residual = residual.map(|r| r.to_dtype(dtype)?.contiguous()).transpose()?;
    let mut tensors = vec![(convolution::X, x), (convolution::FILTERS, weight)];
    tensors.extend(bias.as_ref().map(|b| (convolution::BIAS, b)));
    tensors.extend(residual.as_ref().map(|r| (convolution::RESIDUAL, r)));
    let shape = (batch, geometry.out_height, geometry.out_width, out);
    gpu::ask_cudnn(&Request::Convolution(request), &tensors, convolution::Y, shape, dtype)
}

/// The pixels under the taps as rows of a matrix, some at a time, times the filters.
///
/// `weight`: `(out, kernel height, kernel width, in)`, of the type of `x`
fn unfolded_product(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    per_sample: Option<&Tensor>,
    residual: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor> {
    let Geometry { kernel_height, kernel_width, channels, out_height, out_width, .. } = geometry;
    let (batch, out, dtype) = (x.dim(0)?, weight.dim(0)?, x.dtype());
    let rows = batch * out_height * out_width;
    let depth = kernel_height * kernel_width * channels;
    let filters = weight.reshape((out, depth))?.t()?;
    let y = if geometry.is_pointwise() {
        gpu::product(&x.reshape((rows, depth))?, &filters)?
    } else {
        let most = (UNFOLDED / (depth * dtype.size_in_bytes())).max(1);
        let parts = (0..rows)
            .step_by(most)
            .map(|first| gpu::product(&unfolded(x, geometry, first, most.min(rows - first))?, &filters));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        if let [all] = &parts[..] { all.clone() } else { Tensor::cat(&parts, 0)? }
    };
    let y = y.reshape((batch, out_height, out_width, out))?;
    epilogue_on_gpu(y, bias, per_sample, Activation::None, residual)
}

/// `(rows, kernel height * kernel width * channels)`: what is under the taps of output pixels `first..first + rows`.
fn unfolded(x: &Tensor, geometry: Geometry, first: usize, rows: usize) -> Result<Tensor> {
    let Geometry { height, width, channels, kernel_height, kernel_width, .. } = geometry;
    let (taps, dtype) = (kernel_height * kernel_width, x.dtype());
    let launch = Launch::typed("conv2d", "unfold", dtype)?.input(x).output((rows, taps * channels), dtype);
    let launch = launch.int(first).int(rows).int(height).int(width).int(channels);
    let launch = launch.int(geometry.out_height).int(geometry.out_width).int(kernel_height).int(kernel_width);
    let launch = launch.int(geometry.stride).int(geometry.padding.top).int(geometry.padding.left);
    launch.for_each_pack(rows * taps, channels, dtype)
}

fn on_cpu(
    level: Level,
    x: &Tensor,
    weight: &CpuWeight,
    bias: Option<&Tensor>,
    per_sample: Option<&Tensor>,
    residual: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor> {
    let (batch, dtype) = (x.dim(0)?, x.dtype());
    let (x, residual) = (floats(x)?, residual.map(floats).transpose()?);
    let bias_and_sample = bias_and_sample(bias, per_sample)?;
    let (x, residual) = (cpu::elements(&x)?, residual.as_ref().map(cpu::elements).transpose()?);
    let bias = bias_and_sample.as_ref().map(cpu::elements).transpose()?;
    let epilogue = Epilogue {
        bias: bias.as_deref(),
        bias_per_sample: per_sample.is_some(),
        residual: residual.as_deref(),
        ..Epilogue::default()
    };
    let zeros = vec![0.0; geometry.channels];
    let rows = Pixels { x: &x, zeros: &zeros, geometry };
    let count = (batch, geometry.out_height * geometry.out_width);
    let shape = (batch, geometry.out_height, geometry.out_width, weight.columns);
    // SAFETY: the result has `count` rows of `weight.columns`; the residual has its shape and the bias its columns.
    let y = unsafe {
        cpu::from_parts(shape, |out| cpu::multiply(level, &rows, count, weight, &epilogue, Shared::new(out)))
    }?;
    y.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    const BOTTOM_RIGHT: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };

    struct Case {
        input: (usize, usize, usize, usize),
        out: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
    }

    fn case(
        input: (usize, usize, usize, usize),
        out: usize,
        kernel: usize,
        stride: usize,
        p: Padding,
    ) -> Case {
        Case { input, out, kernel, stride, padding: p }
    }

    #[test]
    fn every_level_and_type_gives_the_definition() -> Result<()> {
        let cases = [
            case((2, 5, 5, 3), 20, 3, 1, Padding::same(1)),
            case((1, 5, 7, 4), 17, 3, 2, Padding::same(1)),
            case((2, 8, 6, 33), 5, 3, 2, BOTTOM_RIGHT),
            case((1, 9, 4, 16), 3, 1, 1, Padding::default()),
            case((1, 3, 3, 400), 40, 3, 1, Padding::same(1)),
            case((1, 3, 2, 1024), 33, 3, 1, Padding::same(1)),
            case((1, 16, 16, 64), 64, 3, 1, Padding::same(1)),
            case((1, 6, 6, 5), 7, 5, 1, Padding { top: 0, bottom: 3, left: 2, right: 0 }),
        ];
        for (i, c) in cases.iter().enumerate() {
            let x = random(c.input, i as u64)?;
            let depth = c.input.3 * c.kernel * c.kernel;
            let w = (random((c.out, c.input.3, c.kernel, c.kernel), 9)? / (depth as f64).sqrt())?;
            let (b, t) = (random(c.out, 7)?, random((c.input.0, c.out), 8)?);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let w = w.to_dtype(dtype)?;
                let conv = Conv2d::new(&w, Some(&b), c.stride, c.padding)?;
                let g = conv.geometry(&x)?;
                let r = random((c.input.0, g.out_height, g.out_width, c.out), 10)?;
                let packed = CpuWeight::new(&w)?;
                for level in Level::available() {
                    for (b, t, r) in [
                        (None, None, None),
                        (Some(&b), None, Some(&r)),
                        (None, Some(&t), None),
                        (Some(&b), Some(&t), Some(&r)),
                    ] {
                        let y = on_cpu(level, &x, &packed, b, t, r, g)?;
                        let expected = definition(&x, &w, b, t, r, (c.stride, c.padding))?;
                        assert_eq!(y.dims(), expected.dims());
                        assert_close(&y, &f64s(&expected)?, 3e-6)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks the definition too, which other tests lean on: one output element written out.
    #[test]
    fn taps_read_the_pixels_around() -> Result<()> {
        let (x, w) = (random((1, 4, 5, 2), 1)?, random((1, 2, 3, 3), 2)?);
        let y = Conv2d::new(&w, None, 1, Padding::same(1))?.forward(&x)?;
        let (x, w, y) = (f64s(&x)?, f64s(&w)?, f64s(&y)?);
        let mut corner = 0.0;
        for (tap_y, tap_x, c) in
            [(1, 1, 0), (1, 1, 1), (1, 2, 0), (1, 2, 1), (2, 1, 0), (2, 1, 1), (2, 2, 0), (2, 2, 1)]
        {
            corner += x[((tap_y - 1) * 5 + tap_x - 1) * 2 + c] * w[(c * 3 + tap_y) * 3 + tap_x];
        }
        assert!((y[0] - corner).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, w) = (random((3, 20, 20, 48), 1)?, random((72, 48, 3, 3), 2)?);
        let conv = Conv2d::new(&w, None, 1, Padding::same(1))?;
        let all = with_threads(1, || conv.forward(&x))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || conv.forward(&x))?, &all)?;
        }
        for i in 0..3 {
            same_bytes(&conv.forward(&x.narrow(0, i, 1)?)?, &all.narrow(0, i, 1)?)?;
        }
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let conv = Conv2d::new(&random((8, 4, 3, 3), 1)?, None, 1, Padding::default())?;
        assert!(conv.forward(&random((1, 5, 5, 3), 1)?).is_err());
        assert!(conv.forward(&random((1, 2, 5, 4), 1)?).is_err());
        let x = random((1, 5, 5, 4), 1)?;
        assert!(conv.forward_with(&x, Some(&random((2, 8), 1)?), None).is_err());
        assert!(conv.forward_with(&x, None, Some(&random((1, 5, 5, 8), 1)?)).is_err());
        assert!(conv.replace_weight(&random((8, 4, 1, 1), 1)?).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        let cases = [
            case((2, 5, 5, 3), 20, 3, 1, Padding::same(1)),
            case((1, 5, 7, 4), 17, 3, 2, Padding::same(1)),
            case((2, 8, 6, 33), 5, 3, 2, BOTTOM_RIGHT),
            case((1, 9, 4, 16), 3, 1, 1, Padding::default()),
            case((1, 16, 16, 64), 24, 3, 1, Padding::same(1)),
            case((1, 6, 6, 5), 7, 5, 1, Padding { top: 0, bottom: 3, left: 2, right: 0 }),
        ];
        for (dtype, tolerance) in TYPES {
            for (i, c) in cases.iter().enumerate() {
                let x = put(&random(c.input, i as u64)?, dtype)?;
                let depth = c.input.3 * c.kernel * c.kernel;
                let w = (random((c.out, c.input.3, c.kernel, c.kernel), 9)? / (depth as f64).sqrt())?;
                let (w, t) = (put(&w, dtype)?, put(&random((c.input.0, c.out), 8)?, dtype)?);
                let b = put(&random(c.out, 7)?, DType::F32)?;
                let g = Conv2d::new(&w, Some(&b), c.stride, c.padding)?.geometry(&x)?;
                let r = put(&random((c.input.0, g.out_height, g.out_width, c.out), 10)?, dtype)?;
                let (x_seen, w_seen) = (seen(&x)?, seen(&w)?);
                let (b_seen, t_seen, r_seen) = (seen(&b)?, seen(&t)?, seen(&r)?);
                let held = w.permute((0, 2, 3, 1))?.contiguous()?;
                let how = (c.stride, c.padding);
                for (bias, per_sample, residual) in [
                    (false, false, false),
                    (true, false, false),
                    (true, false, true),
                    (false, true, true),
                    (true, true, true),
                ] {
                    let seen =
                        (bias.then_some(&b_seen), per_sample.then_some(&t_seen), residual.then_some(&r_seen));
                    let expected = definition(&x_seen, &w_seen, seen.0, seen.1, seen.2, how)?;
                    let (b, t, r) = (bias.then_some(&b), per_sample.then_some(&t), residual.then_some(&r));
                    // The product is rounded before what follows it is added, unless all of it is one kernel.
                    for arm in [on_gpu, unfolded_product] {
                        assert_result(&arm(&x, &held, b, t, r, g)?, dtype, &expected, 2.0 * tolerance)?;
                    }
                }
                // In parts, as larger inputs are.
                let rows = g.out_height * g.out_width * c.input.0;
                if !g.is_pointwise() {
                    let first = rows / 3;
                    let (whole, part) = (unfolded(&x, g, 0, rows)?, unfolded(&x, g, first, rows - first)?);
                    same_bytes(&seen(&part)?, &seen(&whole)?.narrow(0, first, rows - first)?.contiguous()?)?;
                }
            }
        }
        Ok(())
    }
}
