//! The VAE's output as bytes.

use candle_core::{DType, Result, Tensor};

/// Maps `x` of `(height, width, 3)` from -1..1 to 0..255: `round((x / 2 + 0.5) * 255)` with halves to even, clamped,
/// as diffusers' `VaeImageProcessor` does through numpy.
pub fn rgb8(x: &Tensor) -> Result<Vec<u8>> {
    let x = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(x.into_iter().map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect())
}
