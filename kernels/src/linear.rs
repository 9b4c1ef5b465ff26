//! `y = activation(x W^T + b) + residual`: a matrix product with its bias and what follows it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{D, DType, Device, Result, Tensor, bail};

use crate::cpu::{self, CpuWeight, Epilogue, Level, Rows, Shared};
use crate::eight_bit_rows::{self, EightBitRows};
use crate::floats::floats;
use crate::gpu::{self, Launch};
use crate::in_place::{moved, overwrite};
use crate::quantise::round_rows;
use crate::weight::{ReplaceableWeight, Weight};
use crate::{Activation, EightBits, EncodedWeight, LowRank, StoredRows};

/// A linear layer that owns its weight in the layout its device wants.
#[derive(Debug)]
pub struct Linear {
    weight: ReplaceableWeight,
    beside: RwLock<Beside>,
    in_features: usize,
    out_features: usize,
}

/// What is added to the product with the weight.
#[derive(Debug)]
struct Beside {
    bias: Option<Tensor>,
    low_rank: Vec<LowRank>,
}

impl Linear {
    /// `weight`: `(out, in)`, f32, f16 or bf16; `bias`: `(out)`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::with(ReplaceableWeight::new(weight)?, weight.dims2()?, bias)
    }

    /// `weight`: `(out, in)` in a format that it keeps, on `device`; `bias`: `(out)`.
    ///
    /// On the CPU the products are those of the decoded weight in f32, to the byte. On other devices candle multiplies
    /// with block formats, and may round activations to eight bits.
    pub fn encoded(weight: &EncodedWeight, bias: Option<&Tensor>, device: &Device) -> Result<Self> {
        Self::with(ReplaceableWeight::encoded(weight, device)?, weight.dims(), bias)
    }

    /// A layer on the CPU whose weight, `(out, in)`, stays as its file has it.
    pub fn stored(weight: StoredRows, bias: Option<&Tensor>) -> Result<Self> {
        let &[out_features, in_features] = weight.dims() else {
            bail!("linear: a weight of shape {:?} is no matrix", weight.dims());
        };
        Self::with(ReplaceableWeight::stored(weight)?, (out_features, in_features), bias)
    }

    /// A layer whose weight is not in memory: [`Self::replace_weight`] brings it, and [`Self::forward`] needs it.
    ///
    /// `rounding`: weights are rounded row by row when they come, inputs whenever they are multiplied with such a
    /// weight. Weights in a format stay as they are, unless it is that of these codes.
    pub fn without_weight(
        in_features: usize,
        out_features: usize,
        bias: Option<&Tensor>,
        rounding: Option<EightBits>,
    ) -> Result<Self> {
        Self::with(ReplaceableWeight::absent(rounding), (out_features, in_features), bias)
    }

    /// What weights and inputs are rounded to, row by row; `None` where they are not.
    pub fn rounding(&self) -> Option<EightBits> {
        self.weight.rounding()
    }

    fn with(
        weight: ReplaceableWeight,
        (out_features, in_features): (usize, usize),
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let bias = bias.map(|b| checked_bias(b, &weight.read(), out_features)).transpose()?;
        let beside = RwLock::new(Beside { bias, low_rank: Vec::new() });
        Ok(Self { weight, beside, in_features, out_features })
    }

    /// Frees the weight, until another one is put in its place.
    pub fn drop_weight(&self) {
        self.weight.drop_weight();
    }

    /// What the weight takes in memory; 0 where it is not there.
    pub fn weight_bytes(&self) -> usize {
        self.weight.read().bytes()
    }

    /// Channels of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Channels of the output.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Puts another weight of the same shape in place of the present one: how LoRAs are merged and undone.
    pub fn replace_weight(&self, weight: &Tensor) -> Result<()> {
        self.same_shape(weight.dims())?;
        self.weight.replace(weight)
    }

    /// The same with a weight in a format, on `device`.
    pub fn replace_encoded(&self, weight: &EncodedWeight, device: &Device) -> Result<()> {
        self.same_shape(&[weight.dims().0, weight.dims().1])?;
        self.weight.replace_encoded(weight, device)
    }

    /// The same with a weight on the CPU that stays as its file has it.
    pub fn replace_stored(&self, weight: StoredRows) -> Result<()> {
        self.same_shape(weight.dims())?;
        self.weight.replace_stored(weight)
    }

    /// Whether a bias is added.
    pub fn has_bias(&self) -> bool {
        self.beside().bias.is_some()
    }

    /// Puts another bias, `(out)`, in place of the present one; a layer without one gets none.
    pub fn replace_bias(&self, bias: &Tensor) -> Result<()> {
        let bias = checked_bias(bias, &self.weight.read(), self.out_features)?;
        match &mut self.beside_mut().bias {
            Some(present) if !present.device().is_cpu() && overwrite(present, &bias)? => {}
            Some(present) => *present = bias,
            None => bail!("linear: there is no bias to replace"),
        }
        Ok(())
    }

    fn same_shape(&self, dims: &[usize]) -> Result<()> {
        if dims != [self.out_features, self.in_features] {
            let present = (self.out_features, self.in_features);
            bail!("linear: a weight of shape {dims:?} cannot replace one of {present:?}");
        }
        Ok(())
    }

    /// Low-rank differences to apply beside the weight, in place of those that are; with none, the weight alone is
    /// left.
    pub fn replace_low_rank(&self, low_rank: Vec<LowRank>) -> Result<()> {
        for l in &low_rank {
            if (l.out_features(), l.in_features()) != (self.out_features, self.in_features) {
                bail!(
                    "linear: a difference of ({}, {}) does not fit a weight of ({}, {})",
                    l.out_features(),
                    l.in_features(),
                    self.out_features,
                    self.in_features
                );
            }
        }
        let mut beside = self.beside_mut();
        if !low_rank.is_empty() || !beside.low_rank.is_empty() {
            moved();
        }
        beside.low_rank = low_rank;
        Ok(())
    }

    fn beside(&self) -> RwLockReadGuard<'_, Beside> {
        self.beside.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn beside_mut(&self) -> RwLockWriteGuard<'_, Beside> {
        self.beside.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// `x`: `(.., in)`; returns `(.., out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::None, None)
    }

    /// `scale (x W^T + b)` for a power of two below 1, without the larger sum ever being rounded to the type of `x`: what
    /// f16 cannot hold may come out smaller.
    pub fn forward_scaled(&self, x: &Tensor, scale: f64) -> Result<Tensor> {
        let on_cpu = x.device().is_cpu();
        if scale == 1.0 {
            self.forward(x)
        } else if x.dtype() != DType::F16 || on_cpu {
            // The CPU's sums are f32 in any case.
            let x_type = x.dtype();
            let x = if on_cpu { x.to_dtype(DType::F32)? } else { x.clone() };
            (self.forward(&x)? * scale)?.to_dtype(x_type)
        } else {
            let (x, Beside { bias, low_rank }) = ((x * scale)?, &*self.beside());
            let bias = bias.as_ref().map(|b| b * scale).transpose()?;
            let y = match &*self.weight.read() {
                Weight::Plain(w) => definition(&x, w, bias.as_ref(), Activation::None, None)?,
                Weight::Encoded(w) => rest(w.product(&x)?, bias.as_ref(), Activation::None, None)?,
                Weight::EightBits(EightBitRows::Device(w)) => {
                    eight_bit_rows::linear(&x, w, bias.as_ref(), Activation::None, None)?
                }
                Weight::Cpu(_) | Weight::EightBits(EightBitRows::Cpu(..)) | Weight::Absent => {
                    bail!("linear: no weight of this layer is on the input's device")
                }
            };
            low_rank.iter().try_fold(y, |y, difference| difference.forward(&x, Some(&y)))
        }
    }

    /// `activation(x W^T + b + low-rank differences) + residual`; `residual` has the result's shape.
    pub fn forward_with(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.in_features => *last = self.out_features,
            _ => bail!("linear: an input of shape {:?} has no {} channels", x.dims(), self.in_features),
        }
        if let Some(r) = residual
            && r.dims() != shape
        {
            bail!("linear: the residual has shape {:?}, the result {shape:?}", r.dims());
        }
        let Beside { bias, low_rank } = &*self.beside();
        let product = |activation, residual: Option<&Tensor>| match &*self.weight.read() {
            Weight::Cpu(w) => on_cpu(Level::best(), x, w, bias.as_ref(), activation, residual, shape),
            Weight::Plain(w) => match gpu::linear(x, w, bias.as_ref(), activation, residual)? {
                Some(y) => Ok(y),
                None => definition(x, w, bias.as_ref(), activation, residual),
            },
            Weight::Encoded(w) => rest(w.product(x)?, bias.as_ref(), activation, residual),
            Weight::EightBits(EightBitRows::Cpu(to, w)) => {
                let x = round_rows(x, *to)?;
                on_cpu(Level::best(), &x, w, bias.as_ref(), activation, residual, shape)
            }
            Weight::EightBits(EightBitRows::Device(w)) => {
                eight_bit_rows::linear(x, w, bias.as_ref(), activation, residual)
            }
            Weight::Absent => bail!("linear: the weight is not in memory"),
        };
        let mut difference = None;
        for l in low_rank {
            difference = Some(l.forward(x, difference.as_ref())?);
        }
        let Some(difference) = difference else { return product(activation, residual) };
        // What the product takes as a residual is added after the activation, the difference before it.
        let y = activation.forward(&product(Activation::None, Some(&difference))?)?;
        match residual {
            Some(r) => y + r,
            None => Ok(y),
        }
    }
}

/// A bias as it is held: in f32, but on a GPU in the type of the weight, as the product's library takes it.
fn checked_bias(bias: &Tensor, weight: &Weight, out_features: usize) -> Result<Tensor> {
    if bias.dims() != [out_features] {
        bail!("linear: the bias has shape {:?}, the weight {out_features} outputs", bias.dims());
    }
    let dtype = if let Weight::Plain(weight) = weight { weight.dtype() } else { DType::F32 };
    bias.to_dtype(dtype)?.contiguous()
}

pub(crate) fn definition(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (mut shape, depth) = (x.dims().to_vec(), weight.dim(1)?);
    // As one matrix: the weight would be copied for every sample of a batch.
    let rows = x.reshape((x.elem_count() / depth, depth))?;
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let y = gpu::product(&rows, &weight.to_dtype(x.dtype())?.t()?)?.reshape(shape)?;
    rest(y, bias, activation, residual)
}

/// What follows the product.
fn rest(
    mut y: Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    if gpu::takes(&y) {
        return epilogue_on_gpu(y, bias, None, activation, residual);
    }
    if let Some(b) = bias {
        y = y.broadcast_add(&b.to_dtype(y.dtype())?)?;
    }
    y = activation.forward(&y)?;
    match residual {
        Some(r) => y + r,
        None => Ok(y),
    }
}

/// `activation(y + bias + per_sample) + residual` in one pass.
///
/// `y`: `(batch, .., channels)`; `bias`: `(channels)`; `per_sample`: `(batch, channels)`; `residual`: as `y`.
pub(crate) fn epilogue_on_gpu(
    y: Tensor,
    bias: Option<&Tensor>,
    per_sample: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    if bias.is_none() && per_sample.is_none() && residual.is_none() && activation == Activation::None {
        return Ok(y);
    }
    let (channels, dtype) = (y.dim(D::Minus1)?, y.dtype());
    let rows = y.elem_count() / channels.max(1);
    let same = |t: &Tensor| t.to_dtype(dtype)?.contiguous();
    let (y, bias) = (y.contiguous()?, bias.map(floats).transpose()?);
    let (per_sample, residual) = (per_sample.map(same).transpose()?, residual.map(same).transpose()?);
    let launch = Launch::typed("linear", "epilogue", dtype)?.input(&y).optional(bias.as_ref());
    let launch = launch.optional(per_sample.as_ref()).optional(residual.as_ref()).output(y.shape(), dtype);
    let launch =
        launch.int(rows).int((rows / y.dim(0)?.max(1)).max(1)).int(channels).int(activation.number());
    launch.for_each_pack(rows, channels, dtype)
}

/// Rows that lie one after the other.
struct Tokens<'a> {
    x: &'a [f32],
    channels: usize,
}

impl Rows for Tokens<'_> {
    fn locate(&self, _sample: usize, row: usize, parts: &mut [*const f32], _stride: usize) {
        parts[0] = self.x[row * self.channels..][..self.channels].as_ptr();
    }
}

fn on_cpu(
    level: Level,
    x: &Tensor,
    weight: &CpuWeight,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
    shape: Vec<usize>,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let (x, residual) = (floats(x)?, residual.map(floats).transpose()?);
    let (x, bias) = (cpu::elements(&x)?, bias.map(cpu::elements).transpose()?);
    let residual = residual.as_ref().map(cpu::elements).transpose()?;
    let rows = Tokens { x: &x, channels: weight.depth };
    let epilogue =
        Epilogue { bias: bias.as_deref(), activation, residual: residual.as_deref(), ..Epilogue::default() };
    let count = x.len() / weight.depth;
    // SAFETY: the result has `count` rows of `weight.columns`; the residual has its shape and the bias its columns.
    let y = unsafe {
        cpu::from_parts(shape, |out| {
            cpu::multiply(level, &rows, (1, count), weight, &epilogue, Shared::new(out))
        })
    }?;
    y.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};
    use crate::weight::EncodedOnDevice;

    /// The formula in f64.
    fn exact(x: &Tensor, w: &Tensor, b: Option<&Tensor>, r: Option<&Tensor>) -> Result<Vec<f64>> {
        let (out, depth) = w.dims2()?;
        let (x, w) = (f64s(x)?, f64s(w)?);
        let (b, r) = (b.map(f64s).transpose()?, r.map(f64s).transpose()?);
        let mut y = Vec::new();
        for row in x.chunks(depth) {
            for o in 0..out {
                let dot: f64 = row.iter().zip(&w[o * depth..]).map(|(a, b)| a * b).sum();
                y.push(dot + b.as_ref().map_or(0.0, |b| b[o]) + r.as_ref().map_or(0.0, |r| r[y.len()]));
            }
        }
        Ok(y)
    }

    #[test]
    fn every_level_and_type_gives_the_formula() -> Result<()> {
        for (i, (rows, depth, out)) in
            [(1, 1, 1), (3, 1, 17), (15, 64, 48), (29, 77, 33), (77, 1024, 40), (130, 1300, 80), (64, 400, 3)]
                .into_iter()
                .enumerate()
        {
            let x = random((rows, depth), i as u64)?;
            let (b, r) = (random(out, 7)?, random((rows, out), 8)?);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let w = (random((out, depth), 9)? / (depth as f64).sqrt())?.to_dtype(dtype)?;
                let packed = CpuWeight::new(&w)?;
                for level in Level::available() {
                    for (b, r) in [(None, None), (Some(&b), None), (Some(&b), Some(&r))] {
                        let y = on_cpu(level, &x, &packed, b, Activation::None, r, vec![rows, out])?;
                        assert_close(&y, &exact(&x, &w, b, r)?, 3e-6)?;
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn activations_come_before_the_residual() -> Result<()> {
        let (x, w, b, r) =
            (random((2, 9, 40), 1)?, random((50, 40), 2)?, random(50, 3)?, random((2, 9, 50), 4)?);
        let linear = Linear::new(&w, Some(&b))?;
        use Activation::*;
        for f in [None, Silu, Gelu, GeluTanh, QuickGelu, Relu] {
            let y = linear.forward_with(&x, f, Some(&r))?;
            assert_eq!(y.dims(), [2, 9, 50]);
            assert_close(&y, &f64s(&definition(&x, &w, Some(&b), f, Some(&r))?)?, 1e-5)?;
        }
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, w) = (random((4, 256, 320), 1)?, random((200, 320), 2)?);
        let linear = Linear::new(&w, None)?;
        let all = with_threads(1, || linear.forward(&x))?;
        for threads in [2, 3, 4] {
            same_bytes(&with_threads(threads, || linear.forward(&x))?, &all)?;
        }
        for i in 0..4 {
            same_bytes(&linear.forward(&x.narrow(0, i, 1)?)?, &all.narrow(0, i, 1)?)?;
        }
        Ok(())
    }

    /// A matrix of any bytes but for the scales, which are made finite: blocks hold them where the bytes are 0 here.
    fn encoded(format: Format, rows: usize, columns: usize) -> Result<EncodedWeight> {
        let bytes = rows * columns / format.block_len() * format.block_bytes();
        let mut bytes: Vec<u8> =
            random(bytes, 5)?.to_vec1::<f32>()?.iter().map(|v| (v * 127.0) as i8 as u8).collect();
        let scales_at: &[usize] = match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
            Format::F8E4M3 | Format::F8E5M2 | Format::I8 => &[],
        };
        for (i, block) in bytes.chunks_mut(format.block_bytes()).enumerate() {
            for &at in scales_at {
                let scale = half::f16::from_f32(1e-3 * (1.0 + (i % 7) as f32));
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            // No NaN, no infinity, and nothing so large that it hides the rest.
            if scales_at.is_empty() {
                block[0] &= 0xb7;
            }
        }
        let row_scales = scales_at.is_empty().then(|| (0..rows).map(|i| 0.01 * (i + 1) as f32).collect());
        EncodedWeight::new(format, (rows, columns), bytes, row_scales)
    }

    #[test]
    fn a_weight_in_a_format_gives_the_products_of_the_decoded_one() -> Result<()> {
        for format in Format::ALL {
            for (rows, blocks, out) in [(1, 1, 1), (7, 3, 17), (40, 5, 50), (200, 13, 33)] {
                let depth = blocks * format.block_len().max(32);
                let weight = encoded(format, out, depth)?;
                let decoded = weight.decode(&Device::Cpu)?;
                let (x, b) = (random((rows, depth), 1)?, random(out, 2)?);
                let (packed, wide) = (CpuWeight::encoded(&weight)?, CpuWeight::new(&decoded)?);
                assert!(f64s(&decoded)?.iter().any(|&v| v != 0.0), "{format:?}");
                for level in Level::available() {
                    let run = |w| on_cpu(level, &x, w, Some(&b), Activation::Silu, None, vec![rows, out]);
                    same_bytes(&run(&packed)?, &run(&wide)?)?;
                }
                let linear = Linear::encoded(&weight, Some(&b), &Device::Cpu)?;
                let plain = Linear::new(&decoded, Some(&b))?;
                same_bytes(&linear.forward(&x)?, &plain.forward(&x)?)?;
                linear.replace_weight(&decoded.zeros_like()?)?;
                same_bytes(&linear.forward(&x)?, &b.broadcast_as((rows, out))?.contiguous()?)?;
                linear.replace_encoded(&weight, &Device::Cpu)?;
                same_bytes(&linear.forward(&x)?, &plain.forward(&x)?)?;
            }
        }
        Ok(())
    }

    #[test]
    fn threads_change_no_byte_of_a_quantised_product() -> Result<()> {
        let (x, weight) = (random((300, 512), 1)?, encoded(Format::Q5K, 200, 512)?);
        let linear = Linear::encoded(&weight, None, &Device::Cpu)?;
        let all = with_threads(1, || linear.forward(&x))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || linear.forward(&x))?, &all)?;
        }
        same_bytes(&linear.forward(&x.narrow(0, 7, 1)?)?, &all.narrow(0, 7, 1)?)
    }

    /// The arm of other devices, run by candle's CPU: it rounds activations to eight bits for block formats.
    #[test]
    fn other_devices_multiply_with_the_same_weight() -> Result<()> {
        for format in Format::ALL {
            let weight = encoded(format, 30, 512)?;
            let x = random((2, 3, 512), 1)?;
            let expected = x.broadcast_matmul(&weight.decode(&Device::Cpu)?.t()?)?;
            let y = EncodedOnDevice::new(&weight, &Device::Cpu)?.product(&x)?;
            let largest = f64s(&expected)?.into_iter().fold(0f64, |m, v| m.max(v.abs()));
            let worst = f64s(&(y - expected)?)?.into_iter().fold(0f64, |m, v| m.max(v.abs()));
            let allowed = if format.block_len() > 1 { 2e-2 } else { 1e-5 };
            assert!(worst <= allowed * largest, "{format:?}: {worst} of {largest}");
        }
        Ok(())
    }

    #[test]
    fn a_weight_may_come_and_go() -> Result<()> {
        let (x, w, b) = (random((5, 20), 1)?, random((10, 20), 2)?, random(10, 3)?);
        let (resident, streamed) =
            (Linear::new(&w, Some(&b))?, Linear::without_weight(20, 10, Some(&b), None)?);
        assert_eq!(streamed.weight_bytes(), 0);
        assert!(streamed.forward(&x).is_err());
        streamed.replace_weight(&w)?;
        same_bytes(&streamed.forward(&x)?, &resident.forward(&x)?)?;
        assert_eq!(streamed.weight_bytes(), resident.weight_bytes());
        streamed.drop_weight();
        assert!(streamed.forward(&x).is_err());
        assert!(Linear::without_weight(20, 11, Some(&b), None).is_err());
        Ok(())
    }

    #[test]
    fn a_scaled_sum_stays_within_f16() -> Result<()> {
        let (x, w, b) =
            ((random((5, 20), 1)? * 300.0)?, (random((10, 20), 2)? * 300.0)?, (random(10, 3)? * 3e4)?);
        let linear = Linear::new(&w, Some(&b))?;
        let half = x.to_dtype(DType::F16)?;
        assert!(f64s(&linear.forward(&half)?)?.iter().any(|v| v.is_infinite()));
        let scaled = linear.forward_scaled(&half, 1.0 / 64.0)?;
        assert_eq!(scaled.dtype(), DType::F16);
        let exact = exact(&half, &w, Some(&b), None)?;
        assert_close(&scaled, &exact.iter().map(|v| v / 64.0).collect::<Vec<_>>(), 1e-3)?;
        same_bytes(&(linear.forward_scaled(&x, 1.0 / 64.0)? * 64.0)?, &linear.forward(&x)?)
    }

    #[test]
    fn strided_inputs_and_replaced_weights() -> Result<()> {
        let (x, w, other) = (random((30, 20), 1)?, random((10, 30), 2)?, random((10, 30), 3)?);
        let linear = Linear::new(&w, None)?;
        linear.replace_weight(&other)?;
        assert_close(&linear.forward(&x.t()?)?, &exact(&x.t()?, &other, None, None)?, 1e-5)?;
        assert!(linear.replace_weight(&random((30, 10), 2)?).is_err());
        assert!(linear.forward(&x).is_err());
        Ok(())
    }

    #[test]
    fn low_rank_differences_are_those_of_the_sum() -> Result<()> {
        let (x, w, b, r) =
            (random((2, 9, 40), 1)?, random((50, 40), 2)?, random(50, 3)?, random((2, 9, 50), 4)?);
        let factors =
            |rank, seed| -> Result<_> { Ok((random((rank, 40), seed)?, random((50, rank), seed + 1)?)) };
        let ((down, up), (second_down, second_up)) = (factors(3, 5)?, factors(7, 8)?);
        let sum = ((&w + (up.matmul(&down)? * 0.7)?)? + (second_up.matmul(&second_down)? * -1.5)?)?;
        let linear = Linear::new(&w, Some(&b))?;
        let base = linear.forward_with(&x, Activation::Silu, Some(&r))?;
        linear.replace_low_rank(vec![
            LowRank::new(&down, &up, 0.7)?,
            LowRank::new(&second_down, &second_up, -1.5)?,
        ])?;
        for activation in [Activation::None, Activation::GeluTanh] {
            for r in [None, Some(&r)] {
                let y = linear.forward_with(&x, activation, r)?;
                assert_close(&y, &f64s(&definition(&x, &sum, Some(&b), activation, r)?)?, 1e-5)?;
            }
        }
        linear.replace_low_rank(Vec::new())?;
        same_bytes(&linear.forward_with(&x, Activation::Silu, Some(&r))?, &base)?;

        let codes = (0..50 * 40).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0xbf).collect();
        let encoded = EncodedWeight::new(Format::F8E4M3, (50, 40), codes, None)?;
        let linear = Linear::encoded(&encoded, Some(&b), x.device())?;
        linear.replace_low_rank(vec![LowRank::new(&down, &up, 0.7)?])?;
        let sum = (encoded.decode(x.device())? + (up.matmul(&down)? * 0.7)?)?;
        let y = linear.forward_with(&x, Activation::Silu, Some(&r))?;
        assert_close(&y, &f64s(&definition(&x, &sum, Some(&b), Activation::Silu, Some(&r))?)?, 1e-5)?;

        assert!(linear.replace_low_rank(vec![LowRank::new(&up.t()?, &down.t()?, 1.0)?]).is_err());
        assert!(LowRank::new(&down, &second_up, 1.0).is_err());
        Ok(())
    }

    #[test]
    fn biases_are_replaced() -> Result<()> {
        let (x, w, b, other) = (random((9, 40), 1)?, random((50, 40), 2)?, random(50, 3)?, random(50, 4)?);
        let linear = Linear::new(&w, Some(&b))?;
        let base = linear.forward(&x)?;
        linear.replace_bias(&other)?;
        assert_close(&linear.forward(&x)?, &exact(&x, &w, Some(&other), None)?, 1e-5)?;
        linear.replace_bias(&b)?;
        same_bytes(&linear.forward(&x)?, &base)?;
        assert!(linear.replace_bias(&random(40, 4)?).is_err());
        assert!(Linear::new(&w, None)?.replace_bias(&b).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_what_follows_a_product() -> Result<()> {
        use Activation::*;
        for (dtype, tolerance) in TYPES {
            for (batch, rows, channels) in [(1, 1, 1), (2, 9, 17), (3, 50, 64)] {
                let shape = (batch, rows, channels);
                let (y, r) = (put(&random(shape, 1)?, dtype)?, put(&random(shape, 2)?, dtype)?);
                let (b, t) =
                    (put(&random(channels, 3)?, DType::F32)?, put(&random((batch, channels), 4)?, dtype)?);
                for f in [None, GeluTanh, Silu] {
                    for (b, t, r) in [
                        (Option::None, Option::None, Option::None),
                        (Some(&b), Option::None, Some(&r)),
                        (Option::None, Some(&t), Option::None),
                        (Some(&b), Some(&t), Some(&r)),
                    ] {
                        let mut expected = seen(&y)?;
                        if let Some(b) = b {
                            expected = expected.broadcast_add(&seen(b)?)?;
                        }
                        if let Some(t) = t {
                            expected = expected.broadcast_add(&seen(t)?.unsqueeze(1)?)?;
                        }
                        expected = f.definition(&expected)?;
                        if let Some(r) = r {
                            expected = (expected + seen(r)?)?;
                        }
                        assert_result(&epilogue_on_gpu(y.clone(), b, t, f, r)?, dtype, &expected, tolerance)?;
                    }
                }
            }
        }
        Ok(())
    }
}
