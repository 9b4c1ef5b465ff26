//! Sinusoidal embedding of timesteps and of SDXL's size conditioning.

use candle_core::{DType, Device, Result, Tensor};

use crate::gpu::{self, Launch};

/// Cosines, then sines (`flip_sin_to_cos`), of `t * exp(-ln(10000) i / (half - freq_shift))`, `half = channels / 2`.
///
/// Returns `(values.len(), channels)` in f32. Source: `get_timestep_embedding` of diffusers; Vaswani et al. 2017.
pub fn timestep_embedding(
    values: &[f32],
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    device: &Device,
) -> Result<Tensor> {
    if device.is_cuda() && channels >= 2 {
        let values = Tensor::from_slice(values, values.len(), device)?;
        if gpu::takes(&values) {
            return on_gpu(&values, channels, flip_sin_to_cos, freq_shift);
        }
    }
    let half = channels / 2;
    let mut out = vec![0f32; values.len() * channels];
    for (&t, row) in values.iter().zip(out.chunks_exact_mut(channels.max(1))) {
        for i in 0..half {
            // The reference computes exponent and product in f32; so do we.
            let exponent = -(10000f64.ln() as f32) * i as f32 / (half as f64 - freq_shift) as f32;
            let angle = t * exponent.exp();
            let (first, second) =
                (if flip_sin_to_cos { half } else { 0 }, if flip_sin_to_cos { 0 } else { half });
            row[first + i] = angle.sin();
            row[second + i] = angle.cos();
        }
    }
    Tensor::from_vec(out, (values.len(), channels), device)
}

/// The same of values on the GPU.
fn on_gpu(values: &Tensor, channels: usize, flip_sin_to_cos: bool, freq_shift: f64) -> Result<Tensor> {
    let count = values.elem_count();
    let launch = Launch::new("timestep_embedding", "timestep_embedding").input(values);
    let launch = launch.output((count, channels), DType::F32).int(count).int(channels);
    launch.int(usize::from(flip_sin_to_cos)).float(freq_shift).for_each(count * (channels / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{assert_result, put};

    #[test]
    fn the_cuda_arm_gives_the_same() -> Result<()> {
        let values = [0.0, 1.0, 37.5, 999.0];
        for (channels, flip, shift) in [(2, true, 0.0), (320, true, 0.0), (257, false, 1.0)] {
            let expected = timestep_embedding(&values, channels, flip, shift, &Device::Cpu)?;
            let there = put(&Tensor::new(&values[..], &Device::Cpu)?, DType::F32)?;
            let y = on_gpu(&there, channels, flip, shift)?;
            // An angle of 999 has a step of 6e-5.
            assert_result(&y, DType::F32, &expected, 2e-4)?;
        }
        Ok(())
    }
}
