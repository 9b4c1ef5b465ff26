//! Group normalisation over channels-last features, with an optional SiLU.

use candle_core::{DType, Result, Tensor, bail};

use crate::Activation;

/// Normalises each group of channels of each sample to mean 0 and variance 1, then scales, shifts and activates.
///
/// `x`: `(batch, .., channels)`, `weight` and `bias`: `(channels)`. Statistics are f32. Source: Wu and He 2018.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let dims = x.dims().to_vec();
    let (batch, channels) = (dims[0], dims[dims.len() - 1]);
    if groups == 0 || channels % groups != 0 {
        bail!("group_norm: {channels} channels cannot be divided into {groups} groups");
    }
    let g = x.reshape((batch, (), groups, channels / groups))?.to_dtype(DType::F32)?;
    let mean = g.mean_keepdim((1, 3))?;
    let g = g.broadcast_sub(&mean)?;
    let variance = g.sqr()?.mean_keepdim((1, 3))?;
    let y = g.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(dims)?;
    let y = y.broadcast_mul(weight)?.broadcast_add(bias)?.to_dtype(x.dtype())?;
    activation.forward(&y)
}
