//! Pointwise activations, alone or as the last thing another op does to its result.

use candle_core::{DType, Result, Tensor};

use crate::cpu::{self, Level, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

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
            _ if gpu::takes(x) => self.on_gpu(x),
            _ => self.definition(x),
        }
    }

    pub(crate) fn definition(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x / ((x * -1.702)?.exp()? + 1.0)?,
            Self::Relu => x.relu(),
        }
    }

    /// What kernels call it: the numbers of `activate` in gpu/common.cuh.
    pub(crate) fn number(self) -> usize {
        match self {
            Self::None => 0,
            Self::Silu => 1,
            Self::Gelu => 2,
            Self::GeluTanh => 3,
            Self::QuickGelu => 4,
            Self::Relu => 5,
        }
    }

    fn on_gpu(self, x: &Tensor) -> Result<Tensor> {
        if self == Self::None {
            return Ok(x.clone());
        }
        let (x, count, dtype) = (x.contiguous()?, x.elem_count(), x.dtype());
        let launch = Launch::typed("activation", "activation", dtype)?.input(&x).output(x.shape(), dtype);
        launch.index(count).int(self.number()).for_each(count.div_ceil(gpu::width(dtype)))
    }

    fn on_cpu(self, level: Level, x: &Tensor) -> Result<Tensor> {
        if self == Self::None {
            return Ok(x.clone());
        }
        let x = floats(x)?;
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
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
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

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        use Activation::*;
        for (dtype, tolerance) in TYPES {
            for shape in [vec![1], vec![3, 17], vec![2, 50, 32]] {
                let x = put(&(random(shape, 1)? * 8.0)?, dtype)?;
                for f in [None, Silu, Gelu, GeluTanh, QuickGelu, Relu] {
                    assert_result(&f.on_gpu(&x)?, dtype, &f.definition(&seen(&x)?)?, tolerance)?;
                }
            }
        }
        Ok(())
    }
}
