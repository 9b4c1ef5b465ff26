//! Layer normalisation over the last dimension.

use candle_core::{D, Result, Tensor};

/// Normalises the channels of every token to mean 0 and variance 1, then scales and shifts.
///
/// `x`: `(.., channels)`, `weight` and `bias`: `(channels)`. Source: Ba et al. 2016.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}
