//! Pointwise activations, alone or as the last thing another op does to its result.

use candle_core::{DType, Result, Tensor};

use crate::cpu::{self, Level, math};

/// Floats of a piece of work.
const PIECE: usize = 8 << 10;

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
        match x.dtype() {
            DType::F32 if x.device().is_cpu() => self.on_cpu(Level::best(), x),
            _ => self.definition(x),
        }
    }

    fn definition(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x / ((x * -1.702)?.exp()? + 1.0)?,
            Self::Relu => x.relu(),
        }
    }

    fn on_cpu(self, level: Level, x: &Tensor) -> Result<Tensor> {
        if self == Self::None {
            return Ok(x.clone());
        }
        let x = cpu::floats(x)?;
        let elements = cpu::elements(&x)?;
        // SAFETY: the whole chunk is written.
        unsafe {
            cpu::from_chunks(x.shape(), PIECE, |i, out| {
                out.iter_mut().zip(&elements[i * PIECE..]).for_each(|(out, x)| _ = out.write(*x));
                // SAFETY: all elements have just been written.
                math::activate(level, self, cpu::written(out));
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, f64s, random};

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        use Activation::*;
        for shape in [vec![1], vec![3, 17], vec![2, 50, 320]] {
            let x = (random(shape, 1)? * 8.0)?;
            for f in [None, Silu, Gelu, GeluTanh, QuickGelu, Relu] {
                let expected = f64s(&f.definition(&x)?)?;
                for level in Level::available() {
                    assert_close(&f.on_cpu(level, &x)?, &expected, 1e-6)?;
                }
            }
        }
        Ok(())
    }
}
