//! Pointwise activations, alone or as the last thing another op does to its result.

use candle_core::{Result, Tensor};

/// A pointwise function of one value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    #[default]
    None,
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// `x * Phi(x)` through the error function: `gelu` in the published configs.
    Gelu,
    /// The tanh approximation of GELU: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, OpenAI CLIP's `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// Applies the function to every element of `x`; the shape stays.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x / ((x * -1.702)?.exp()? + 1.0)?,
            Self::Relu => x.relu(),
        }
    }
}
