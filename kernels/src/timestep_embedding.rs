//! Sinusoidal embedding of timesteps and of SDXL's size conditioning.

use candle_core::{Device, Result, Tensor};

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
