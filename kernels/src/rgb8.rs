//! The VAE's output as bytes.

use candle_core::{Device, Result, Tensor};

use crate::cpu::{self, Level, STEPS_A_FLOAT, by_level, for_each_chunk};

/// Floats of a piece of work.
const PIECE: usize = 16 << 10;

/// Maps `x` of `(height, width, 3)` from -1..1 to 0..255: `round((x / 2 + 0.5) * 255)` with halves to even, clamped,
/// as diffusers' `VaeImageProcessor` does through numpy.
pub fn rgb8(x: &Tensor) -> Result<Vec<u8>> {
    at_level(Level::best(), x)
}

fn at_level(level: Level, x: &Tensor) -> Result<Vec<u8>> {
    let x = cpu::floats(&x.to_device(&Device::Cpu)?)?;
    let x = cpu::elements(&x)?;
    let mut bytes = vec![0; x.len()];
    for_each_chunk(&mut bytes, PIECE, STEPS_A_FLOAT * x.len(), |i, bytes| {
        quantise(level, &x[i * PIECE..][..bytes.len()], bytes);
    });
    Ok(bytes)
}

#[inline(always)]
fn quantise_body<const FUSED: bool>(x: &[f32], bytes: &mut [u8]) {
    for (byte, x) in bytes.iter_mut().zip(x) {
        *byte = ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    }
}

by_level! { fn quantise(x: &[f32], bytes: &mut [u8]) = quantise_body; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_clamped_and_rounded() -> Result<()> {
        let x = [-1.0, 1.0, 0.0, -2.0, 3.0, f32::NEG_INFINITY, f32::INFINITY, 0.999, -0.5, 0.5];
        let expected = [0, 255, 128, 0, 255, 0, 255, 255, 64, 191];
        for level in Level::available() {
            // Long enough for whole registers and for what is left over.
            let many: Vec<f32> = x.iter().copied().cycle().take(20_003).collect();
            let bytes = at_level(level, &Tensor::new(many, &Device::Cpu)?)?;
            assert!(bytes.iter().enumerate().all(|(i, b)| *b == expected[i % x.len()]), "{level:?}");
        }
        Ok(())
    }
}
