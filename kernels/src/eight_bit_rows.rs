//! Matrices whose products are made of numbers of eight bits: a layer's weight is rounded when it is loaded, its input at
//! every use, both row by row.
//!
//! Tensor cores multiply such numbers twice as fast as those of 16 bits, and the weight takes half the memory. It is
//! lossy: see [`crate::quantise_rows`] for the rounding. Sums are exact for whole numbers, f32 or cublasLt's for floats.
//!
//! Source: `Float8DynamicActivationFloat8WeightConfig(PerRow())` and `Int8DynamicActivationInt8WeightConfig` of torchao.

use candle_core::{DType, Device, Result, Tensor};

use crate::cpu::CpuWeight;
use crate::gpu;
use crate::in_place::overwrite;
use crate::quantise::{decode_rows, quantise_rows};
use crate::{Activation, EightBits, EncodedWeight};

/// Rows in eight bits: codes, `(.., channels)`, bytes; and scales, `(rows, 1)`, f32.
#[derive(Debug)]
pub(crate) struct Coded {
    pub(crate) of: EightBits,
    pub(crate) codes: Tensor,
    pub(crate) scales: Tensor,
}

impl Coded {
    /// Rounds the rows of `x`.
    pub(crate) fn of(x: &Tensor, of: EightBits) -> Result<Self> {
        let (codes, scales) = quantise_rows(x, of)?;
        Ok(Self { of, codes, scales })
    }

    /// What they stand for.
    pub(crate) fn decode(&self, dtype: DType) -> Result<Tensor> {
        decode_rows(&self.codes, &self.scales, self.of, dtype)
    }
}

/// A weight, `(out, in)`, in eight bits.
#[derive(Debug)]
pub(crate) enum EightBitRows {
    /// On the CPU, which multiplies the rounded numbers in f32.
    Cpu(EightBits, CpuWeight),
    /// On any other device.
    Device(Coded),
}

impl EightBitRows {
    /// Rounds a weight, on its device.
    pub(crate) fn new(weight: &Tensor, of: EightBits) -> Result<Self> {
        let coded = Coded::of(weight, of)?;
        if !weight.device().is_cpu() {
            return Ok(Self::Device(coded));
        }
        let (codes, scales) = (coded.codes.flatten_all()?.to_vec1()?, coded.scales.flatten_all()?.to_vec1()?);
        let encoded = EncodedWeight::new(of.format(), weight.dims2()?, codes, Some(scales))?;
        Ok(Self::Cpu(of, CpuWeight::encoded(&encoded)?))
    }

    /// Takes over a weight that is in such codes, for `device`.
    pub(crate) fn encoded(weight: &EncodedWeight, of: EightBits, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::Cpu(of, CpuWeight::encoded(weight)?));
        }
        let scales = match &weight.row_scales {
            Some(scales) => Tensor::from_slice(scales, (weight.rows, 1), device)?,
            None => Tensor::ones((weight.rows, 1), DType::F32, device)?,
        };
        Ok(Self::Device(Coded {
            of,
            codes: Tensor::from_slice(&weight.bytes, weight.dims(), device)?,
            scales,
        }))
    }

    /// Puts another weight where the present one is, if that is possible.
    pub(crate) fn overwrite(&self, weight: &Tensor) -> Result<bool> {
        let Self::Device(present) = self else { return Ok(false) };
        if !present.codes.device().same_device(weight.device()) {
            return Ok(false);
        }
        let new = Coded::of(weight, present.of)?;
        Ok(overwrite(&present.codes, &new.codes)? && overwrite(&present.scales, &new.scales)?)
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(_, weight) => weight.bytes(),
            Self::Device(coded) => coded.codes.elem_count() + 4 * coded.scales.elem_count(),
        }
    }
}

/// `activation(x W^T + bias) + residual` with a weight on a device, whose tensor cores multiply the codes where they can.
pub(crate) fn linear(
    x: &Tensor,
    weight: &Coded,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (dtype, x) = (x.dtype(), Coded::of(x, weight.of)?);
    match gpu::eight_bit_linear(&x, weight, dtype, bias, activation, residual)? {
        Some(y) => Ok(y),
        None => {
            crate::linear::definition(&x.decode(dtype)?, &weight.decode(dtype)?, bias, activation, residual)
        }
    }
}

/// `activation(row scale * column scale * sums + bias) + residual` in one pass.
///
/// `sums`: `(.., channels)`, i32 or f32; the scales, f32: one a row, one a channel; `bias`: `(channels)`; `residual`: as
/// the result, which is of `dtype`.
#[cfg(any(feature = "cuda", test))]
pub(crate) fn apply_scales(
    sums: &Tensor,
    (row_scales, column_scales): (&Tensor, &Tensor),
    dtype: DType,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let channels = sums.dim(candle_core::D::Minus1)?;
    let rows = sums.elem_count() / channels.max(1);
    let name = if sums.dtype() == DType::I32 { "scale_whole" } else { "scale_float" };
    let bias = bias.map(crate::floats::floats).transpose()?;
    let residual = residual.map(|r| r.to_dtype(dtype)?.contiguous()).transpose()?;
    let launch =
        gpu::Launch::typed("eight_bit_rows", name, dtype)?.input(sums).input(row_scales).input(column_scales);
    let launch = launch.optional(bias.as_ref()).optional(residual.as_ref()).output(sums.shape(), dtype);
    launch.int(rows).int(channels).int(activation.number()).for_each_pack(rows, channels, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes};
    use crate::{Format, Linear};

    const BOTH: [EightBits; 2] = [EightBits::F8E4M3, EightBits::Int8];

    fn layer(w: &Tensor, b: Option<&Tensor>, of: EightBits) -> Result<Linear> {
        let (out, depth) = w.dims2()?;
        let layer = Linear::without_weight(depth, out, b, Some(of))?;
        layer.replace_weight(w)?;
        Ok(layer)
    }

    #[test]
    fn the_cuda_arm_scales_sums() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for (batch, rows, channels) in [(1, 1, 1), (2, 9, 17), (3, 50, 64)] {
                let shape = (batch, rows, channels);
                let sums = (random(shape, 1)? * 1e4)?.round()?;
                let r = put(&random(shape, 2)?, dtype)?;
                let bias = put(&random(channels, 3)?, dtype)?;
                let row_scales = (random((batch * rows, 1), 4)?.abs()? * 1e-2)?;
                let column_scales = (random((channels, 1), 5)?.abs()? * 1e-2)?;
                for sum_type in [DType::I32, DType::F32] {
                    for f in [Activation::None, Activation::GeluTanh] {
                        for (bias, r) in [(None, None), (Some(&bias), None), (Some(&bias), Some(&r))] {
                            let scaled = sums.broadcast_mul(&row_scales.reshape((batch, rows, 1))?)?;
                            let mut expected = scaled.broadcast_mul(&column_scales.reshape(channels)?)?;
                            if let Some(bias) = bias {
                                expected = expected.broadcast_add(&seen(bias)?)?;
                            }
                            expected = f.definition(&expected)?;
                            if let Some(r) = r {
                                expected = (expected + seen(r)?)?;
                            }
                            let scales = (&put(&row_scales, DType::F32)?, &put(&column_scales, DType::F32)?);
                            let y = apply_scales(&put(&sums, sum_type)?, scales, dtype, bias, f, r)?;
                            assert_result(&y, dtype, &expected, tolerance)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The product of what both were rounded to, in f64.
    fn expected(x: &Tensor, w: &Tensor, b: &Tensor, of: EightBits) -> Result<Vec<f64>> {
        let (x, w) = (Coded::of(x, of)?.decode(DType::F64)?, Coded::of(w, of)?.decode(DType::F64)?);
        f64s(&x.broadcast_matmul(&w.t()?)?.broadcast_add(&b.to_dtype(DType::F64)?)?)
    }

    #[test]
    fn a_layer_multiplies_what_both_are_rounded_to() -> Result<()> {
        let b = random(50, 3)?;
        for of in BOTH {
            let (x, w) = (random((2, 9, 80), 1)?, random((50, 80), 2)?);
            let exact = f64s(&x.broadcast_matmul(&w.t()?)?.broadcast_add(&b)?)?;
            let linear = layer(&w, Some(&b), of)?;
            assert_eq!((linear.rounding(), linear.weight_bytes()), (Some(of), 50 * (80 + 4)));
            let y = linear.forward(&x)?;
            assert_close(&y, &expected(&x, &w, &b, of)?, 1e-5)?;
            assert!(f64s(&y)?.iter().zip(&exact).any(|(a, b)| (a - b).abs() > 1e-3), "it is lossy");
            // Another weight is rounded as the first was, wherever it comes from.
            let other = random((50, 80), 7)?;
            linear.replace_weight(&other)?;
            assert_close(&linear.forward(&x)?, &expected(&x, &other, &b, of)?, 1e-5)?;
            linear.replace_weight(&w)?;
            same_bytes(&linear.forward(&x)?, &y)?;
        }
        Ok(())
    }

    /// On a GPU what cublasLt does; elsewhere what is done without it. f16 and bf16 round decoded numbers once more, and
    /// Hopper's sums of eight-bit floats keep 14 bits.
    #[test]
    fn the_cuda_arm_multiplies_what_both_are_rounded_to() -> Result<()> {
        for of in BOTH {
            for (dtype, rounding) in TYPES {
                for (tokens, depth, out) in [(1, 16, 16), (48, 96, 64), (77, 640, 320)] {
                    let x = put(&random((2, tokens, depth), 1)?, dtype)?;
                    let w = put(&(random((out, depth), 2)? / (depth as f64).sqrt())?, dtype)?;
                    let (b, r) = (random(out, 3)?, put(&random((2, tokens, out), 4)?, dtype)?);
                    let weight = Coded::of(&w, of)?;
                    for (f, r) in [(Activation::None, Some(&r)), (Activation::GeluTanh, None)] {
                        let bias = put(&b, dtype)?;
                        let y = super::linear(&x, &weight, Some(&bias), f, r)?;
                        let product = expected(&seen(&x)?, &seen(&w)?, &seen(&bias)?, of)?;
                        let product = Tensor::from_vec(product, (2, tokens, out), &Device::Cpu)?;
                        let mut expected = f.definition(&product.to_dtype(DType::F32)?)?;
                        if let Some(r) = r {
                            expected = (expected + seen(r)?)?;
                        }
                        assert_result(&y, dtype, &expected, 3.0 * rounding + 1e-3)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Relative to the size of the product of normally distributed numbers: rounding errors of both, which are
    /// uniform in a step, add up as independent ones do.
    #[test]
    fn the_error_is_that_of_the_codes() -> Result<()> {
        let x = Tensor::randn(0f32, 1.0, (64, 1024), &Device::Cpu)?;
        let w = Tensor::randn(0f32, 0.03, (256, 1024), &Device::Cpu)?;
        let exact = f64s(&x.matmul(&w.t()?)?)?;
        for (of, least, most) in [(EightBits::F8E4M3, 0.02, 0.05), (EightBits::Int8, 0.004, 0.016)] {
            let y = f64s(&layer(&w, None, of)?.forward(&x)?)?;
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
            let error = square(&mut exact.iter().zip(&y).map(|(a, b)| a - b));
            let error = (error / square(&mut exact.iter().copied())).sqrt();
            println!("{of:?}: {error:.4}");
            assert!(error > least && error < most, "{of:?}: {error}");
        }
        Ok(())
    }

    #[test]
    fn codes_of_a_file_are_taken_over() -> Result<()> {
        let (x, b) = (random((9, 80), 1)?, random(50, 3)?);
        let codes: Vec<u8> =
            (0..50 * 80).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0xbf).collect();
        for scales in [None, Some((0..50).map(|i| 0.01 * (i + 1) as f32).collect::<Vec<_>>())] {
            for of in BOTH {
                let weight = EncodedWeight::new(of.format(), (50, 80), codes.clone(), scales.clone())?;
                let decoded = weight.decode(&Device::Cpu)?;
                let linear = Linear::without_weight(80, 50, Some(&b), Some(of))?;
                linear.replace_encoded(&weight, &Device::Cpu)?;
                let rounded = Coded::of(&x, of)?.decode(DType::F64)?;
                let product = rounded.matmul(&decoded.to_dtype(DType::F64)?.t()?)?;
                let expected = f64s(&product.broadcast_add(&b.to_dtype(DType::F64)?)?)?;
                assert_close(&linear.forward(&x)?, &expected, 1e-4)?;
            }
            // Another format is no such weight: it is used as it is, and the input too.
            let weight = EncodedWeight::new(Format::F8E5M2, (50, 80), vec![0x3c; 4000], None)?;
            let linear = Linear::without_weight(80, 50, Some(&b), Some(EightBits::Int8))?;
            linear.replace_encoded(&weight, &Device::Cpu)?;
            let plain = Linear::encoded(&weight, Some(&b), &Device::Cpu)?;
            same_bytes(&linear.forward(&x)?, &plain.forward(&x)?)?;
        }
        Ok(())
    }

    /// The arm of devices, on candle's CPU.
    #[test]
    fn a_weight_on_a_device_stays_where_it_is() -> Result<()> {
        for of in BOTH {
            let held = EightBitRows::Device(Coded::of(&random((32, 16), 1)?, of)?);
            let EightBitRows::Device(seen) = &held else { unreachable!() };
            let (codes, scales, other) = (seen.codes.clone(), seen.scales.clone(), random((32, 16), 2)?);
            assert!(held.overwrite(&other)?);
            let new = Coded::of(&other, of)?;
            assert_eq!(codes.to_vec2::<u8>()?, new.codes.to_vec2::<u8>()?);
            same_bytes(&scales, &new.scales)?;
        }
        Ok(())
    }
}
