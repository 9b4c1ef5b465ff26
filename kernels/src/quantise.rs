//! Rows of activations or weights in eight bits, each row with a scale of its own.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use crate::float8;
use crate::gpu::{self, Launch};

/// What eight bits stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EightBits {
    /// A float with four bits of exponent and three of mantissa, 448 at most.
    F8E4M3,
    /// An integer from -127 to 127, in two's complement.
    Int8,
}

impl EightBits {
    fn largest(self) -> f32 {
        match self {
            Self::F8E4M3 => 448.0,
            Self::Int8 => 127.0,
        }
    }
}

/// Codes, bytes in the shape of `x`, and a scale for each row, `(rows, 1)` in f32: code times scale is about `x`.
///
/// `x`: `(.., channels)`. A row's scale makes its largest element the largest code; codes are rounded to the nearest,
/// halves to even.
pub fn quantise_rows(x: &Tensor, to: EightBits) -> Result<(Tensor, Tensor)> {
    let channels = x.dim(D::Minus1)?;
    if channels == 0 {
        bail!("quantise_rows: {:?} has no channels", x.dims());
    }
    if gpu::takes(x) { on_gpu(x, to) } else { definition(x, to) }
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
    let values: Vec<f32> = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut scales = Vec::with_capacity(values.len() / channels);
    let mut codes = Vec::with_capacity(values.len());
    for row in values.chunks(channels) {
        let most = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = if most > 0.0 { most / to.largest() } else { 1.0 };
        scales.push(scale);
        codes.extend(row.iter().map(|v| code((v / scale).clamp(-to.largest(), to.largest()), to)));
    }
    let rows = scales.len();
    Ok((Tensor::from_vec(codes, x.shape(), x.device())?, Tensor::from_vec(scales, (rows, 1), x.device())?))
}

fn code(x: f32, to: EightBits) -> u8 {
    match to {
        EightBits::Int8 => x.round_ties_even() as i8 as u8,
        EightBits::F8E4M3 => {
            // The codes of numbers that are not negative are in the numbers' order.
            let size = x.abs();
            let above = (0..=0x7e).find(|&c| float8::e4m3(c) >= size).unwrap_or(0x7e);
            let below = above.saturating_sub(1);
            let (up, down) = (float8::e4m3(above) - size, size - float8::e4m3(below));
            let nearest = if up < down || (up == down && above % 2 == 0) { above } else { below };
            let nearest = if above == 0 { 0 } else { nearest };
            nearest | if x.is_sign_negative() { 0x80 } else { 0 }
        }
    }
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
