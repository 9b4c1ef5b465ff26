//! A residual connection with a gate of each sample's own.

use std::mem::MaybeUninit;

use candle_core::{DType, Result, Tensor, bail};

use crate::cpu::{self, Level, STEPS_A_FLOAT, Shared, by_level, for_each_piece, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// `x + gate * y`.
///
/// `x` and `y`: `(batch, tokens, channels)`; `gate`: `(batch, channels)`. Source: Peebles and Xie 2022.
pub fn gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (batch, _, channels) = x.dims3()?;
    if y.dims() != x.dims() || gate.dims() != [batch, channels] {
        bail!("gated residual: gate {:?} and {:?} for {:?}", gate.dims(), y.dims(), x.dims());
    }
    if x.device().is_cpu() {
        on_cpu(Level::best(), x, gate, y)
    } else if gpu::takes(x) {
        on_gpu(x, gate, y)
    } else {
        definition(x, gate, y)
    }
}

fn definition(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let f32 = |t: &Tensor| t.to_dtype(DType::F32);
    let gated = f32(y)?.broadcast_mul(&f32(gate)?.unsqueeze(1)?)?;
    (f32(x)? + gated)?.to_dtype(x.dtype())
}

fn on_gpu(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let ((batch, tokens, channels), dtype) = (x.dims3()?, x.dtype());
    let (x, gate, y) = (x.contiguous()?, floats(gate)?, y.to_dtype(dtype)?.contiguous()?);
    let launch = Launch::typed("gated_residual", "gated_residual", dtype)?;
    let launch = launch.input(&x).input(&gate).input(&y).output(x.shape(), dtype);
    launch.int(batch * tokens).int(tokens).int(channels).for_each_pack(batch * tokens, channels, dtype)
}

/// Floats of a piece of work.
const PIECE: usize = 32 << 10;

fn on_cpu(level: Level, x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let (x, gate, y) = (floats(x)?, floats(gate)?, floats(y)?);
    let (x, gate, y) = (cpu::elements(&x)?, cpu::elements(&gate)?, cpu::elements(&y)?);
    let rows = (PIECE / channels.max(1)).max(1);
    let pieces = tokens.div_ceil(rows);
    let fill = |out| {
        let out = Shared::new(out);
        for_each_piece(batch * pieces, STEPS_A_FLOAT * x.len(), |piece| {
            let (sample, first) = (piece / pieces, piece % pieces * rows);
            let from = (sample * tokens + first) * channels;
            let range = from..from + rows.min(tokens - first) * channels;
            // SAFETY: the range lies within the result, and no two pieces have a token in common.
            let out = unsafe { out.slice(range.clone()) };
            add(level, &x[range.clone()], &gate[sample * channels..][..channels], &y[range], out);
        });
    };
    // SAFETY: the pieces cover all tokens of all samples, and `add` writes all it gets.
    unsafe { cpu::from_parts(shape, fill) }?.to_dtype(dtype)
}

#[inline(always)]
fn add_body<const FUSED: bool>(x: &[f32], gate: &[f32], y: &[f32], out: &mut [MaybeUninit<f32>]) {
    let channels = gate.len().max(1);
    let rows = x.chunks_exact(channels).zip(y.chunks_exact(channels)).zip(out.chunks_exact_mut(channels));
    for ((x, y), out) in rows {
        for (((out, x), gate), y) in out.iter_mut().zip(x).zip(gate).zip(y) {
            out.write(math::mul_add::<FUSED>(*gate, *y, *x));
        }
    }
}

by_level! { fn add(x: &[f32], gate: &[f32], y: &[f32], out: &mut [MaybeUninit<f32>]) = add_body; }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for (b, t, c) in [(1, 1, 1), (2, 3, 17), (3, 77, 40), (2, 40, 3072)] {
            let (x, gate, y) = (random((b, t, c), 1)?, random((b, c), 2)?, random((b, t, c), 3)?);
            let expected = f64s(&definition(&x, &gate, &y)?)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &x, &gate, &y)?, &expected, 1e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, gate, y) = (random((3, 301, 320), 1)?, random((3, 320), 2)?, random((3, 301, 320), 3)?);
        let all = with_threads(1, || gated_residual(&x, &gate, &y))?;
        same_bytes(&with_threads(3, || gated_residual(&x, &gate, &y))?, &all)?;
        for i in 0..3 {
            let one = |t: &Tensor| t.narrow(0, i, 1);
            same_bytes(&gated_residual(&one(&x)?, &one(&gate)?, &one(&y)?)?, &one(&all)?)?;
        }
        assert!(gated_residual(&x, &gate.narrow(0, 0, 2)?, &y).is_err());
        assert!(gated_residual(&x, &gate, &y.narrow(1, 0, 300)?).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for (b, t, c) in [(1, 1, 1), (2, 3, 17), (3, 77, 40)] {
                let x = put(&random((b, t, c), 1)?, dtype)?;
                let (gate, y) = (put(&random((b, c), 2)?, dtype)?, put(&random((b, t, c), 3)?, dtype)?);
                let expected = definition(&seen(&x)?, &seen(&gate)?, &seen(&y)?)?;
                assert_result(&on_gpu(&x, &gate, &y)?, dtype, &expected, tolerance)?;
            }
        }
        Ok(())
    }
}
