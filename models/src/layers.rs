//! The normalisations with their learnt scale and shift; linear and convolutional layers come from
//! `aquatint_kernels` as they are.

use aquatint_kernels as kernels;
use candle_core::Tensor;

use crate::Result;
pub use kernels::{Activation, Conv2d, Linear, LowRank, Padding};

/// `GroupNorm`, with the activation that follows it.
#[derive(Debug)]
pub struct GroupNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl GroupNorm {
    /// `x`: `(batch, .., channels)`; the shape stays.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        Ok(kernels::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, activation)?)
    }
}

/// `LayerNorm` over the channels.
#[derive(Debug)]
pub struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

impl LayerNorm {
    /// `x`: `(.., channels)`; the shape stays.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}
