//! The gated GELU of the UNet's feed-forward blocks.

use candle_core::{D, Result, Tensor};

/// `x[.., :c] * gelu(x[.., c:])` for `x` of `2c` channels, through the error function. Source: Shazeer 2020.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    &halves[0] * halves[1].gelu_erf()?
}
