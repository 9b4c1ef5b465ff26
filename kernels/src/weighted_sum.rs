//! A sum of tensors with scalar weights: classifier-free guidance and every sampler's update are one.

use std::mem::MaybeUninit;

use candle_core::{DType, Result, Tensor, bail};

use crate::cpu::{self, Level, by_level};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// `sum_i weight_i * tensor_i`, added from left to right in f32; all tensors have one shape.
pub fn weighted_sum(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let Some(((_, first), rest)) = terms.split_first() else {
        bail!("weighted_sum: no terms");
    };
    if let Some((_, other)) = rest.iter().find(|(_, t)| t.dims() != first.dims()) {
        bail!("weighted_sum: terms of shapes {:?} and {:?}", first.dims(), other.dims());
    }
    if terms.iter().all(|(_, t)| t.device().is_cpu() && t.dtype() == DType::F32) {
        on_cpu(Level::best(), terms)
    } else if terms.iter().all(|(_, t)| gpu::takes(t) && t.dtype() == first.dtype()) && terms.len() <= TERMS {
        on_gpu(terms)
    } else {
        definition(terms)
    }
}

fn definition(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum = terms[0].1.affine(terms[0].0, 0.0)?;
    for (w, t) in &terms[1..] {
        sum = (sum + t.affine(*w, 0.0)?)?;
    }
    Ok(sum)
}

/// What the kernel adds at once.
const TERMS: usize = 8;

fn on_gpu(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let first = terms[0].1;
    let (count, dtype) = (first.elem_count(), first.dtype());
    let tensors = terms.iter().map(|(_, t)| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let mut launch = Launch::typed("weighted_sum", "weighted_sum", dtype)?;
    for i in 0..TERMS {
        launch = launch.optional(tensors.get(i));
    }
    for i in 0..TERMS {
        launch = launch.float(terms.get(i).map_or(0.0, |(weight, _)| *weight));
    }
    let launch = launch.int(terms.len()).output(first.shape(), dtype).index(count);
    launch.for_each(count.div_ceil(gpu::width(dtype)))
}

/// Floats of a piece of work.
const PIECE: usize = 8 << 10;

fn on_cpu(level: Level, terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let tensors = terms.iter().map(|(_, t)| floats(t)).collect::<Result<Vec<_>>>()?;
    let tensors = tensors.iter().map(cpu::elements).collect::<Result<Vec<_>>>()?;
    let shape = terms[0].1.shape();
    // SAFETY: `start` writes every element of its chunk.
    unsafe {
        cpu::from_chunks(shape, PIECE, |i, out| {
            for (term, ((weight, _), tensor)) in terms.iter().zip(&tensors).enumerate() {
                let tensor = &tensor[i * PIECE..][..out.len()];
                if term == 0 {
                    start(level, *weight as f32, tensor, out);
                } else {
                    // SAFETY: the first term has written every element.
                    add(level, *weight as f32, tensor, cpu::written(out));
                }
            }
        })
    }
}

#[inline(always)]
fn start_body<const FUSED: bool>(weight: f32, x: &[f32], out: &mut [MaybeUninit<f32>]) {
    out.iter_mut().zip(x).for_each(|(out, x)| _ = out.write(weight * x));
}

#[inline(always)]
fn add_body<const FUSED: bool>(weight: f32, x: &[f32], out: &mut [f32]) {
    // Not fused: samplers are compared with a reference that rounds product and sum.
    out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
}

by_level! { fn start(weight: f32, x: &[f32], out: &mut [MaybeUninit<f32>]) = start_body; }
by_level! { fn add(weight: f32, x: &[f32], out: &mut [f32]) = add_body; }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{random, same_bytes};

    #[test]
    fn every_level_gives_the_definition_bit_for_bit() -> Result<()> {
        for shape in [vec![1], vec![3, 7, 5], vec![2, 100, 100, 4]] {
            let [a, b, c] = [random(shape.clone(), 1)?, random(shape.clone(), 2)?, random(shape, 3)?];
            for terms in [&[(1.5, &a)][..], &[(0.3, &a), (-0.7, &b)], &[(1.0, &a), (1e-3, &b), (7.1, &c)]] {
                let expected = definition(terms)?;
                for level in Level::available() {
                    same_bytes(&on_cpu(level, terms)?, &expected)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn shapes_must_agree() -> Result<()> {
        assert!(weighted_sum(&[]).is_err());
        assert!(weighted_sum(&[(1.0, &random((2, 3), 1)?), (1.0, &random(3, 1)?)]).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for shape in [vec![1], vec![3, 7, 5], vec![2, 10, 10, 4]] {
                let all =
                    (0..8).map(|i| put(&random(shape.clone(), i)?, dtype)).collect::<Result<Vec<_>>>()?;
                let wide = all.iter().map(seen).collect::<Result<Vec<_>>>()?;
                for count in [1, 2, 3, 8] {
                    let weight = |i: usize| 1.5 - 0.7 * i as f64;
                    let terms: Vec<_> =
                        all[..count].iter().enumerate().map(|(i, t)| (weight(i), t)).collect();
                    let wide: Vec<_> =
                        wide[..count].iter().enumerate().map(|(i, t)| (weight(i), t)).collect();
                    let exact = if dtype == DType::F32 { 0.0 } else { tolerance };
                    assert_result(&on_gpu(&terms)?, dtype, &definition(&wide)?, exact)?;
                }
            }
        }
        Ok(())
    }
}
