//! Layer normalisation over the last dimension.

use std::mem::MaybeUninit;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::cpu::{self, Level, by_level, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// Normalises the channels of every token to mean 0 and variance 1, then scales and shifts.
///
/// `x`: `(.., channels)`, `weight` and `bias`: `(channels)`. Source: Ba et al. 2016.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    if channels == 0 || weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("layer_norm: scale {:?} and shift {:?} for {channels} channels", weight.dims(), bias.dims());
    }
    if x.device().is_cpu() {
        on_cpu(Level::best(), x, weight, bias, eps)
    } else if gpu::takes(x) {
        on_gpu(x, weight, bias, x.elem_count() / channels, 0.0, eps)
    } else {
        definition(x, weight, bias, eps)
    }
}

fn definition(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let g = x.to_dtype(DType::F32)?;
    let g = g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
    let variance = g.sqr()?.mean_keepdim(D::Minus1)?;
    let y = g.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let wide = |t: &Tensor| t.to_dtype(DType::F32);
    y.broadcast_mul(&wide(weight)?)?.broadcast_add(&wide(bias)?)?.to_dtype(x.dtype())
}

/// `(offset + scale) norm(x) + shift`; scale and shift have a row for every `tokens` tokens.
pub(crate) fn on_gpu(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    tokens: usize,
    offset: f64,
    eps: f64,
) -> Result<Tensor> {
    let (channels, dtype) = (x.dim(D::Minus1)?, x.dtype());
    let (x, scale, shift) = (x.contiguous()?, floats(scale)?, floats(shift)?);
    let rows = x.elem_count() / channels;
    let launch = Launch::typed("layer_norm", "layer_norm", dtype)?;
    let launch = launch.input(&x).input(&scale).input(&shift).output(x.shape(), dtype);
    launch.int(rows).int(tokens.max(1)).int(channels).float(offset).float(eps).for_each_row(rows)
}

/// Floats of a piece of work.
const PIECE: usize = 16 << 10;

fn on_cpu(level: Level, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let (x, weight, bias) = (floats(x)?, floats(weight)?, floats(bias)?);
    let (x, weight, bias) = (cpu::elements(&x)?, cpu::elements(&weight)?, cpu::elements(&bias)?);
    let chunk = (PIECE / weight.len()).max(1) * weight.len();
    // SAFETY: `normalise` writes every element of the tokens in its chunk.
    let y = unsafe {
        cpu::from_chunks(shape, chunk, |i, out| {
            normalise(level, &x[i * chunk..][..out.len()], &weight, &bias, eps as f32, out);
        })
    }?;
    y.to_dtype(dtype)
}

/// The sum of `f` over `x`, in two registers' lanes: one addition need not wait for the one before.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 32];
    let (chunks, rest) = x.as_chunks::<32>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane += f(x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += f(x));
    math::fold(std::array::from_fn(|i| lanes[i] + lanes[i + 16]), |a, b| a + b)
}

#[inline(always)]
fn normalise_body<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [MaybeUninit<f32>],
) {
    let channels = weight.len();
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        let mean = sum(x, |x| x) / channels as f32;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / channels as f32;
        let inverse = 1.0 / (variance + eps).sqrt();
        for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            out.write(math::mul_add::<FUSED>((x - mean) * inverse, *w, *b));
        }
    }
}

by_level! {
    /// Normalises tokens of `weight.len()` channels.
    pub(crate) fn normalise(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) = normalise_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for shape in [vec![1, 1], vec![3, 17], vec![2, 77, 40], vec![300, 1280]] {
            let channels = shape[shape.len() - 1];
            let x = ((random(shape, 1)? * 4.0)? + 2.0)?;
            let (w, b) = (random(channels, 2)?, random(channels, 3)?);
            let expected = f64s(&definition(&x, &w, &b, 1e-5)?)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &x, &w, &b, 1e-5)?, &expected, 5e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, w, b) = (random((4, 600, 320), 1)?, random(320, 2)?, random(320, 3)?);
        let all = with_threads(1, || layer_norm(&x, &w, &b, 1e-5))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || layer_norm(&x, &w, &b, 1e-5))?, &all)?;
        }
        for i in 0..4 {
            same_bytes(&layer_norm(&x.narrow(0, i, 1)?, &w, &b, 1e-5)?, &all.narrow(0, i, 1)?)?;
        }
        assert!(layer_norm(&x, &w, &random(319, 3)?, 1e-5).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for shape in [vec![1, 1], vec![3, 17], vec![2, 77, 40], vec![9, 1280]] {
                let channels = shape[shape.len() - 1];
                let x = put(&((random(shape, 1)? * 4.0)? + 2.0)?, dtype)?;
                let (w, b) = (put(&random(channels, 2)?, DType::F32)?, put(&random(channels, 3)?, dtype)?);
                let expected = definition(&seen(&x)?, &seen(&w)?, &seen(&b)?, 1e-5)?;
                let y = on_gpu(&x, &w, &b, x.elem_count() / channels, 0.0, 1e-5)?;
                assert_result(&y, dtype, &expected, tolerance)?;
            }
        }
        Ok(())
    }
}
