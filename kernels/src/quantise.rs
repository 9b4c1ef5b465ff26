//! Rows of activations or weights in eight bits, each row with a scale of its own.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::floats::floats;
use crate::gpu::{self, Launch};
use crate::{Format, cpu, float8};

/// What eight bits stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EightBits {
    /// A float with four bits of exponent and three of mantissa, 448 at most.
    F8E4M3,
    /// An integer from -127 to 127, in two's complement.
    Int8,
}

impl EightBits {
    /// The format of weights whose codes these are.
    pub fn format(self) -> Format {
        match self {
            Self::F8E4M3 => Format::F8E4M3,
            Self::Int8 => Format::I8,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Self::F8E4M3 => float8::LARGEST_E4M3,
            Self::Int8 => 127.0,
        }
    }

    fn code(self, x: f32) -> u8 {
        match self {
            Self::F8E4M3 => float8::nearest_e4m3(x),
            Self::Int8 => (x.round_ties_even() as i8).cast_unsigned(),
        }
    }

    fn value(self, code: u8) -> f32 {
        match self {
            Self::F8E4M3 => float8::e4m3(code),
            Self::Int8 => f32::from(code.cast_signed()),
        }
    }
}

/// Codes, bytes in the shape of `x`, and a scale for each row, `(rows, 1)` in f32: code times scale is about `x`.
///
/// `x`: `(.., channels)`. A row's scale makes its largest element the largest code; codes are rounded to the nearest,
/// halves to even. A row with an element that is not finite has a scale that is not.
///
/// Source: the row-wise scaling of `torchao.float8` and of `torch._scaled_mm`.
pub fn quantise_rows(x: &Tensor, to: EightBits) -> Result<(Tensor, Tensor)> {
    let channels = x.dim(D::Minus1)?;
    if channels == 0 {
        bail!("quantise_rows: {:?} has no channels", x.dims());
    }
    if gpu::takes(x) { on_gpu(x, to) } else { definition(x, to) }
}

/// `x` with every row rounded to codes and back, on the CPU.
pub(crate) fn round_rows(x: &Tensor, to: EightBits) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    let values = floats(x)?;
    let values = cpu::elements(&values)?;
    let mut rounded = vec![0f32; values.len()];
    let rows = values.par_chunks(channels.max(1)).zip(rounded.par_chunks_mut(channels.max(1)));
    rows.for_each(|(row, rounded)| {
        let (scale, largest) = (scale_of(row, to), to.largest());
        let of = |v: &f32| scale * to.value(to.code((v / scale).clamp(-largest, largest)));
        rounded.iter_mut().zip(row).for_each(|(rounded, v)| *rounded = of(v));
    });
    Tensor::from_vec(rounded, x.shape(), x.device())?.to_dtype(x.dtype())
}

/// What codes of the shape `(.., channels)` and scales, one a row, stand for, in a type.
pub(crate) fn decode_rows(codes: &Tensor, scales: &Tensor, to: EightBits, dtype: DType) -> Result<Tensor> {
    let values: Vec<f32> = (0..=255).map(|code| to.value(code)).collect();
    let values = Tensor::from_vec(values, 256, codes.device())?;
    let channels = codes.dim(D::Minus1)?;
    // In 32 bits: the largest number of an index type selects nothing.
    let values =
        values.index_select(&codes.flatten_all()?.to_dtype(DType::U32)?, 0)?.reshape(((), channels))?;
    values.broadcast_mul(&scales.reshape(((), 1))?)?.reshape(codes.shape())?.to_dtype(dtype)
}

fn on_gpu(x: &Tensor, to: EightBits) -> Result<(Tensor, Tensor)> {
    let name = match to {
        EightBits::F8E4M3 => "quantise_e4m3",
        EightBits::Int8 => "quantise_int8",
    };
    let (channels, x) = (x.dim(D::Minus1)?, x.contiguous()?);
    let rows = x.elem_count() / channels;
    let launch = Launch::typed("quantise", name, x.dtype())?.input(&x);
    let launch = launch.output(x.shape(), DType::U8).output((rows, 1), DType::F32);
    launch.int(rows).int(channels).for_each_row_of_two(rows)
}

fn definition(x: &Tensor, to: EightBits) -> Result<(Tensor, Tensor)> {
    let channels = x.dim(D::Minus1)?;
    let values = floats(&x.to_device(&Device::Cpu)?)?;
    let values = cpu::elements(&values)?;
    let (mut codes, mut scales) = (vec![0u8; values.len()], vec![0f32; values.len() / channels]);
    let rows = values.par_chunks(channels).zip(codes.par_chunks_mut(channels)).zip(&mut scales);
    rows.for_each(|((row, codes), scale)| {
        *scale = scale_of(row, to);
        let largest = to.largest();
        let of = |v: &f32| to.code((v / *scale).clamp(-largest, largest));
        codes.iter_mut().zip(row).for_each(|(code, v)| *code = of(v));
    });
    let rows = scales.len();
    Ok((Tensor::from_vec(codes, x.shape(), x.device())?, Tensor::from_vec(scales, (rows, 1), x.device())?))
}

fn scale_of(row: &[f32], to: EightBits) -> f32 {
    // Unlike f32::max, it keeps NaN.
    let most = row.iter().fold(0f32, |most, v| if most.is_nan() || v.abs() <= most { most } else { v.abs() });
    if most == 0.0 { 1.0 } else { most / to.largest() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, put, seen};
    use crate::testing::{f64s, random};

    fn decoded(codes: &Tensor, scales: &Tensor, to: EightBits) -> Result<Vec<f64>> {
        let (bytes, scales) = (codes.flatten_all()?.to_vec1::<u8>()?, f64s(scales)?);
        let channels = codes.dim(D::Minus1)?;
        let value = |b: u8| match to {
            EightBits::F8E4M3 => f64::from(float8::e4m3(b)),
            EightBits::Int8 => f64::from(b as i8),
        };
        Ok(bytes.iter().enumerate().map(|(i, b)| value(*b) * scales[i / channels]).collect())
    }

    #[test]
    fn values_come_back_within_half_a_step() -> Result<()> {
        let x = (random((5, 77), 1)? * 3.0)?;
        for (to, relative, absolute) in [(EightBits::F8E4M3, 1.0 / 16.0, 1e-4), (EightBits::Int8, 0.0, 0.5)] {
            let (codes, scales) = quantise_rows(&x, to)?;
            let (back, steps) = (decoded(&codes, &scales, to)?, f64s(&scales)?);
            for (i, (v, b)) in f64s(&x)?.into_iter().zip(back).enumerate() {
                let allowed = relative * v.abs() + absolute * steps[i / 77] * 1.001;
                assert!((v - b).abs() <= allowed, "{to:?}: {v} became {b}");
            }
        }
        assert!(quantise_rows(&random((3, 0), 1)?, EightBits::Int8).is_err());
        Ok(())
    }

    #[test]
    fn what_is_not_finite_stays_so() -> Result<()> {
        for to in [EightBits::F8E4M3, EightBits::Int8] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 40, 76] {
                    let mut row = vec![0.5f32; 77];
                    row[at] = bad;
                    let x = Tensor::from_vec(row, (1, 77), &Device::Cpu)?;
                    for (codes, scales) in [definition(&x, to)?, on_gpu(&x, to)?] {
                        let back = f64s(&decode_rows(&codes, &scales, to, DType::F32)?)?;
                        assert!(!back[at].is_finite(), "{to:?}: {bad} became {}", back[at]);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for to in [EightBits::F8E4M3, EightBits::Int8] {
            for (dtype, _) in TYPES {
                for shape in [vec![1, 1], vec![3, 17], vec![2, 7, 640]] {
                    let x = put(&(random(shape, 1)? * 3.0)?, dtype)?;
                    let (codes, scales) = on_gpu(&x, to)?;
                    let (expected_codes, expected_scales) = definition(&seen(&x)?, to)?;
                    assert_eq!(f64s(&scales)?, f64s(&expected_scales)?);
                    assert_eq!(
                        codes.flatten_all()?.to_vec1::<u8>()?,
                        expected_codes.flatten_all()?.to_vec1::<u8>()?
                    );
                }
            }
        }
        let zeros = put(&random((2, 9), 1)?.zeros_like()?, DType::F32)?;
        assert_eq!(f64s(&on_gpu(&zeros, EightBits::Int8)?.1)?, [1.0, 1.0]);
        Ok(())
    }
}
