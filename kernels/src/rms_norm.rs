//! Root-mean-square normalisation over the last dimension.

use std::mem::MaybeUninit;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::cpu::{self, Level, by_level, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// `x / sqrt(mean(x^2) + eps) * weight`: layer normalisation without mean and shift.
///
/// `x`: `(.., channels)`, `weight`: `(channels)`. To norm every head on its own, give heads as a dimension:
/// `(batch, tokens, heads, d)`. The result has `x`'s type; squares are summed in f32. Source: Zhang and Sennrich 2019.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    if channels == 0 || weight.dims() != [channels] {
        bail!("rms_norm: a scale of shape {:?} for {channels} channels", weight.dims());
    }
    if x.device().is_cpu() {
        on_cpu(Level::best(), x, weight, eps)
    } else if gpu::takes(x) {
        on_gpu(x, weight, eps)
    } else {
        definition(x, weight, eps)
    }
}

fn definition(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let g = x.to_dtype(DType::F32)?;
    let mean = g.sqr()?.mean_keepdim(D::Minus1)?;
    let y = g.broadcast_div(&(mean + eps)?.sqrt()?)?;
    y.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

fn on_gpu(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (channels, dtype) = (x.dim(D::Minus1)?, x.dtype());
    let (x, weight) = (x.contiguous()?, floats(weight)?);
    let rows = x.elem_count() / channels;
    let launch =
        Launch::typed("rms_norm", "rms_norm", dtype)?.input(&x).input(&weight).output(x.shape(), dtype);
    launch.int(rows).int(channels).float(eps).for_each_row(rows)
}

/// Floats of a piece of work.
const PIECE: usize = 16 << 10;

fn on_cpu(level: Level, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let (x, weight) = (floats(x)?, floats(weight)?);
    let (x, weight) = (cpu::elements(&x)?, cpu::elements(&weight)?);
    let chunk = (PIECE / weight.len()).max(1) * weight.len();
    // SAFETY: `normalise` writes every element of the tokens in its chunk.
    let y = unsafe {
        cpu::from_chunks(shape, chunk, |i, out| {
            normalise(level, &x[i * chunk..][..out.len()], &weight, eps as f32, out);
        })
    }?;
    y.to_dtype(dtype)
}

/// The sum of squares, in two registers' lanes: one addition need not wait for the one before.
#[inline(always)]
fn sum_of_squares<const FUSED: bool>(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 32];
    let (chunks, rest) = x.as_chunks::<32>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = math::mul_add::<FUSED>(x, x, *lane));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane = math::mul_add::<FUSED>(x, x, *lane));
    math::fold(std::array::from_fn(|i| lanes[i] + lanes[i + 16]), |a, b| a + b)
}

#[inline(always)]
fn normalise_body<const FUSED: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
    let channels = weight.len();
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        let mean = sum_of_squares::<FUSED>(x) / channels as f32;
        let inverse = 1.0 / (mean + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            out.write(x * inverse * w);
        }
    }
}

by_level! {
    fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) = normalise_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_and_the_definition_give_the_formula() -> Result<()> {
        for shape in [vec![1, 1], vec![3, 17], vec![2, 7, 3, 40], vec![300, 1280], vec![2, 4096]] {
            let channels = shape[shape.len() - 1];
            let x = ((random(shape, 1)? * 4.0)? + 2.0)?;
            let w = random(channels, 2)?;
            let (values, scales) = (f64s(&x)?, f64s(&w)?);
            let expected: Vec<f64> = values
                .chunks(channels)
                .flat_map(|x| {
                    let mean = x.iter().map(|x| x * x).sum::<f64>() / channels as f64;
                    x.iter().zip(&scales).map(move |(x, w)| x / (mean + 1e-2).sqrt() * w)
                })
                .collect();
            assert_close(&definition(&x, &w, 1e-2)?, &expected, 2e-6)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &x, &w, 1e-2)?, &expected, 2e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn half_inputs_whose_squares_are_beyond_half() -> Result<()> {
        let x = (random((5, 300), 1)? * 3e4)?.to_dtype(DType::F16)?;
        let w = random(300, 2)?;
        let expected = f64s(&definition(&x.to_dtype(DType::F32)?, &w, 1e-6)?)?;
        for y in [definition(&x, &w, 1e-6)?, rms_norm(&x, &w, 1e-6)?] {
            assert_eq!(y.dtype(), DType::F16);
            assert_close(&y, &expected, 1e-3)?;
        }
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, w) = (random((4, 600, 320), 1)?, random(320, 2)?);
        let all = with_threads(1, || rms_norm(&x, &w, 1e-6))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || rms_norm(&x, &w, 1e-6))?, &all)?;
        }
        for i in 0..4 {
            same_bytes(&rms_norm(&x.narrow(0, i, 1)?, &w, 1e-6)?, &all.narrow(0, i, 1)?)?;
        }
        assert!(rms_norm(&x, &random(319, 3)?, 1e-6).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for shape in [vec![1, 1], vec![3, 17], vec![2, 7, 3, 40], vec![2, 4096]] {
                let x = put(&((random(shape, 1)? * 4.0)? + 2.0)?, dtype)?;
                let w = put(&random(x.dim(D::Minus1)?, 2)?, dtype)?;
                let expected = definition(&seen(&x)?, &seen(&w)?, 1e-6)?;
                assert_result(&on_gpu(&x, &w, 1e-6)?, dtype, &expected, tolerance)?;
            }
        }
        Ok(())
    }
}
