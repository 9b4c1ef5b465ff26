//! The gated GELU of T5's feed-forward blocks, whose two halves are products of their own.

use std::mem::MaybeUninit;

use candle_core::{DType, Result, Tensor, bail};

use crate::cpu::{self, Level, by_level, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// `gelu(scale * gate) * x` with GELU's tanh approximation, computed in f32 whatever the type.
///
/// `gate` and `x` have one shape, which the result has too. `scale` is 1 unless a model keeps its activations small
/// for a half type: what a gate opens for must be seen at its true size. Source: Shazeer 2020.
pub fn gated_gelu(gate: &Tensor, x: &Tensor, scale: f64) -> Result<Tensor> {
    if gate.dims() != x.dims() {
        bail!("gated_gelu: a gate of shape {:?} for {:?}", gate.dims(), x.dims());
    }
    if x.device().is_cpu() {
        on_cpu(Level::best(), gate, x, scale)
    } else if gpu::takes(x) {
        on_gpu(gate, x, scale)
    } else {
        definition(gate, x, scale)
    }
}

fn definition(gate: &Tensor, x: &Tensor, scale: f64) -> Result<Tensor> {
    let gate = (gate.to_dtype(DType::F32)? * scale)?.gelu()?;
    (gate * x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

fn on_gpu(gate: &Tensor, x: &Tensor, scale: f64) -> Result<Tensor> {
    let (count, dtype) = (x.elem_count(), x.dtype());
    let (gate, x) = (gate.to_dtype(dtype)?.contiguous()?, x.contiguous()?);
    let launch =
        Launch::typed("gated_gelu", "gated_gelu", dtype)?.input(&gate).input(&x).output(x.shape(), dtype);
    launch.index(count).float(scale).for_each(count.div_ceil(gpu::width(dtype)))
}

/// Floats of a piece of work.
const PIECE: usize = 8 << 10;

fn on_cpu(level: Level, gate: &Tensor, x: &Tensor, scale: f64) -> Result<Tensor> {
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let (gate, x) = (floats(gate)?, floats(x)?);
    let (gate, x) = (cpu::elements(&gate)?, cpu::elements(&x)?);
    // SAFETY: `multiply` writes every element of its chunk.
    let y = unsafe {
        cpu::from_chunks(shape, PIECE, |i, out| {
            let (start, len) = (i * PIECE, out.len());
            multiply(level, &gate[start..][..len], &x[start..][..len], scale as f32, out);
        })
    }?;
    y.to_dtype(dtype)
}

#[inline(always)]
fn multiply_body<const FUSED: bool>(gate: &[f32], x: &[f32], scale: f32, out: &mut [MaybeUninit<f32>]) {
    for ((out, gate), x) in out.iter_mut().zip(gate).zip(x) {
        out.write(math::gelu_tanh::<FUSED>(scale * gate) * x);
    }
}

by_level! {
    fn multiply(gate: &[f32], x: &[f32], scale: f32, out: &mut [MaybeUninit<f32>]) = multiply_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_and_the_definition_give_the_formula() -> Result<()> {
        for shape in [vec![1], vec![3, 17], vec![2, 70, 1280]] {
            let (gate, x) = ((random(shape.clone(), 1)? * 6.0)?, random(shape, 2)?);
            let gelu = |x: f64| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            };
            let expected: Vec<f64> =
                f64s(&gate)?.iter().zip(f64s(&x)?).map(|(g, x)| gelu(0.25 * g) * x).collect();
            assert_close(&definition(&gate, &x, 0.25)?, &expected, 1e-6)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &gate, &x, 0.25)?, &expected, 1e-6)?;
            }
        }
        assert!(gated_gelu(&random((2, 3), 1)?, &random((3, 2), 1)?, 1.0).is_err());
        Ok(())
    }

    #[test]
    fn half_gates_may_be_larger_than_half_once_scaled() -> Result<()> {
        let gate = (random(500, 1)? * 3e4)?.to_dtype(DType::F16)?;
        let x = (random(500, 2)? * 1e-3)?.to_dtype(DType::F16)?;
        let floats = |t: &Tensor| t.to_dtype(DType::F32);
        let expected = f64s(&definition(&floats(&gate)?, &floats(&x)?, 64.0)?)?;
        for y in [definition(&gate, &x, 64.0)?, gated_gelu(&gate, &x, 64.0)?] {
            assert_eq!(y.dtype(), DType::F16);
            assert_close(&y, &expected, 1e-3)?;
        }
        Ok(())
    }

    #[test]
    fn threads_change_no_byte() -> Result<()> {
        let (gate, x) = (random((500, 1280), 1)?, random((500, 1280), 2)?);
        let one = with_threads(1, || gated_gelu(&gate, &x, 1.0))?;
        same_bytes(&with_threads(3, || gated_gelu(&gate, &x, 1.0))?, &one)
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for shape in [vec![1], vec![3, 17], vec![2, 70, 128]] {
                let (gate, x) =
                    (put(&(random(shape.clone(), 1)? * 6.0)?, dtype)?, put(&random(shape, 2)?, dtype)?);
                for scale in [1.0, 8.0] {
                    let expected = definition(&seen(&gate)?, &seen(&x)?, scale)?;
                    assert_result(&on_gpu(&gate, &x, scale)?, dtype, &expected, tolerance)?;
                }
            }
        }
        Ok(())
    }
}
