//! Layer normalisation with a scale and shift of each sample's own: the adaptive normalisation of diffusion
//! transformers.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::cpu::{self, Level, STEPS_A_FLOAT, Shared, for_each_piece};
use crate::floats::floats;
use crate::gpu;
use crate::layer_norm::{self, normalise};

/// `(1 + scale) * norm(x) + shift`, where `norm` brings the channels of every token to mean 0 and variance 1.
///
/// `x`: `(batch, tokens, channels)`; `scale` and `shift`: `(batch, channels)`. Source: `AdaLayerNormZero` of diffusers;
/// Peebles and Xie 2022.
pub fn modulated_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    if channels == 0 || scale.dims() != [batch, channels] || shift.dims() != [batch, channels] {
        bail!("modulated layer norm: scale {:?}, shift {:?} for {:?}", scale.dims(), shift.dims(), x.dims());
    }
    if x.device().is_cpu() {
        on_cpu(Level::best(), x, scale, shift, eps)
    } else if gpu::takes(x) {
        layer_norm::on_gpu(x, scale, shift, tokens, 1.0, eps)
    } else {
        definition(x, scale, shift, eps)
    }
}

fn definition(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let each_token = |t: &Tensor| t.to_dtype(DType::F32)?.unsqueeze(1);
    let g = x.to_dtype(DType::F32)?;
    let g = g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
    let variance = g.sqr()?.mean_keepdim(D::Minus1)?;
    let y = g.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let y = y.broadcast_mul(&(each_token(scale)? + 1.0)?)?.broadcast_add(&each_token(shift)?)?;
    y.to_dtype(x.dtype())
}

/// Floats of a piece of work.
const PIECE: usize = 32 << 10;

fn on_cpu(level: Level, x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let scale = (scale.to_dtype(DType::F32)? + 1.0)?;
    let (x, scale, shift) = (floats(x)?, floats(&scale)?, floats(shift)?);
    let (x, scale, shift) = (cpu::elements(&x)?, cpu::elements(&scale)?, cpu::elements(&shift)?);
    let rows = (PIECE / channels).max(1);
    let pieces = tokens.div_ceil(rows);
    let fill = |out| {
        let out = Shared::new(out);
        for_each_piece(batch * pieces, STEPS_A_FLOAT * x.len(), |piece| {
            let (sample, first) = (piece / pieces, piece % pieces * rows);
            let from = (sample * tokens + first) * channels;
            let range = from..from + rows.min(tokens - first) * channels;
            let own = sample * channels..(sample + 1) * channels;
            // SAFETY: the range lies within the result, and no two pieces have a token in common.
            let out = unsafe { out.slice(range.clone()) };
            normalise(level, &x[range], &scale[own.clone()], &shift[own], eps as f32, out);
        });
    };
    // SAFETY: the pieces cover all tokens of all samples, and `normalise` writes all it gets.
    unsafe { cpu::from_parts(shape, fill) }?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for (b, t, c) in [(1, 1, 1), (2, 3, 17), (3, 77, 40), (2, 40, 3072)] {
            let x = ((random((b, t, c), 1)? * 4.0)? + 2.0)?;
            let (scale, shift) = (random((b, c), 2)?, random((b, c), 3)?);
            let expected = f64s(&definition(&x, &scale, &shift, 1e-6)?)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &x, &scale, &shift, 1e-6)?, &expected, 5e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, scale, shift) = (random((3, 301, 320), 1)?, random((3, 320), 2)?, random((3, 320), 3)?);
        let all = with_threads(1, || modulated_layer_norm(&x, &scale, &shift, 1e-6))?;
        same_bytes(&with_threads(3, || modulated_layer_norm(&x, &scale, &shift, 1e-6))?, &all)?;
        for i in 0..3 {
            let one = |t: &Tensor| t.narrow(0, i, 1);
            let y = modulated_layer_norm(&one(&x)?, &one(&scale)?, &one(&shift)?, 1e-6)?;
            same_bytes(&y, &one(&all)?)?;
        }
        assert!(modulated_layer_norm(&x, &scale.narrow(0, 0, 2)?, &shift, 1e-6).is_err());
        assert!(modulated_layer_norm(&x, &scale, &shift.narrow(1, 0, 319)?, 1e-6).is_err());
        Ok(())
    }

    /// Dividing the input by a power of two and epsilon by its square changes nothing.
    #[test]
    fn a_rescaled_input_gives_the_same_bytes() -> Result<()> {
        let (x, scale, shift) = (random((1, 20, 64), 1)?, random((1, 64), 2)?, random((1, 64), 3)?);
        let y = modulated_layer_norm(&x, &scale, &shift, 1e-6)?;
        same_bytes(&modulated_layer_norm(&(&x / 64.0)?, &scale, &shift, 1e-6 / 4096.0)?, &y)
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for (b, t, c) in [(1, 1, 1), (2, 3, 17), (3, 77, 40), (2, 4, 3072)] {
                let x = put(&((random((b, t, c), 1)? * 4.0)? + 2.0)?, dtype)?;
                let (scale, shift) = (put(&random((b, c), 2)?, dtype)?, put(&random((b, c), 3)?, dtype)?);
                let expected = definition(&seen(&x)?, &seen(&scale)?, &seen(&shift)?, 1e-6)?;
                let y = layer_norm::on_gpu(&x, &scale, &shift, t, 1.0, 1e-6)?;
                assert_result(&y, dtype, &expected, tolerance)?;
            }
        }
        Ok(())
    }
}
