//! A low-rank difference that is applied beside a layer's weight: `scale up (down x)`.

use candle_core::{Result, Tensor, bail};

use crate::Linear;

/// The two factors of a LoRA, <https://arxiv.org/abs/2106.09685>, for a weight that they cannot be added to: a
/// quantised one would lose the difference in its steps.
///
/// Each input costs `rank (in + out)` products more than the weight alone.
#[derive(Debug)]
pub struct LowRank {
    down: Linear,
    up: Linear,
    scale: f64,
}

impl LowRank {
    /// `down`: `(rank, in)`; `up`: `(out, rank)`; each f32, f16 or bf16, and held so. `scale`: all that the product is
    /// multiplied by.
    pub fn new(down: &Tensor, up: &Tensor, scale: f64) -> Result<Self> {
        let (down, up) = (Linear::new(down, None)?, Linear::new(up, None)?);
        if down.out_features() != up.in_features() {
            bail!("low rank: {} rows of down for {} columns of up", down.out_features(), up.in_features());
        }
        Ok(Self { down, up, scale })
    }

    /// Channels of the input.
    pub fn in_features(&self) -> usize {
        self.down.in_features()
    }

    /// Channels of the output.
    pub fn out_features(&self) -> usize {
        self.up.out_features()
    }

    /// `x`: `(.., in)`; returns `scale up (down x)`, `(.., out)`, plus `residual` of that shape.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let through = (self.down.forward(x)? * self.scale)?;
        self.up.forward_with(&through, crate::Activation::None, residual)
    }
}
