//! Features that are held smaller than they are, so that f16 can hold them.
//!
//! SDXL's VAE has features beyond the 65504 of f16. All that reads them are group normalisations, which give the same for
//! `x / s` with epsilon `e / s^2` as for `x` with `e`, and layers without an activation, which give `y / s` for `x / s`
//! where their bias is divided too. So features are held divided by a power of two, and what is divided for it are
//! weights and biases, once, as they are read: nothing is computed more often, and nothing is rounded by it but
//! f16 weights that become smaller than 2^-14, by 2^-25 at most.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::checkpoint::Weights;

/// What features are held divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    divisor: f64,
}

impl Range {
    /// Features as they are.
    pub const FULL: Self = Self { divisor: 1.0 };
    /// Features up to 4 million fit into f16.
    pub const HALF: Self = Self { divisor: 64.0 };

    /// Features divided by another power of two: for tests.
    #[doc(hidden)]
    pub fn divided_by(divisor: f64) -> Self {
        Self { divisor }
    }

    /// Weights for layers that read values of true size, and write features.
    pub(crate) fn writing(self, weights: &Weights) -> Weights {
        weights.divided(self.divisor, self.divisor)
    }

    /// Weights for layers that read features and write features.
    pub(crate) fn passing(self, weights: &Weights) -> Weights {
        weights.divided(1.0, self.divisor)
    }

    /// The epsilon of a normalisation that reads features; what it gives is of true size.
    pub(crate) fn eps(self, eps: f64) -> f64 {
        eps / (self.divisor * self.divisor)
    }
}

/// Whether all values are numbers, and none infinite. Waits for the device.
pub(crate) fn is_finite(x: &Tensor) -> Result<bool> {
    // NaN and infinity stay in a sum; numbers of which f32 cannot hold the sum are no picture either.
    Ok(x.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite())
}
