//! The range of the residual stream.

use candle_core::Tensor;

use crate::layers::Linear;
use crate::{Error, Result};

/// Epsilon of the blocks' layer normalisations.
const EPS: f64 = 1e-6;

/// The stream holds its values divided by `scale`. All that is written into it is divided on the way, and all that
/// reads it are layer normalisations, which give the same for `x / s` with epsilon `e / s^2` as for `x` with `e`: bit
/// for bit where `s` is a power of two and nothing leaves the type's range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Residual {
    scale: f64,
}

impl Residual {
    pub(super) fn new(scale: f64) -> Result<Self> {
        if !(1.0..=65536.0).contains(&scale) || scale.log2().fract() != 0.0 {
            return Err(Error::invalid(format!(
                "residual_scale is {scale}, a power of two from 1 to 65536 is needed"
            )));
        }
        Ok(Self { scale })
    }

    /// What a layer that writes into the stream gives, divided.
    pub(super) fn write(self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        Ok(layer.forward_scaled(x, 1.0 / self.scale)?)
    }

    /// The epsilon of a layer normalisation that reads the stream.
    pub(super) fn eps(self) -> f64 {
        EPS / (self.scale * self.scale)
    }
}
