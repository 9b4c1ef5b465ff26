//! The residual block of UNet and VAE: two convolutions, each behind a GroupNorm and a SiLU.

use std::sync::Arc;

use candle_core::Tensor;

use crate::Result;
use crate::checkpoint::Weights;
use crate::layers::{Activation, Conv2d, GroupNorm, Linear, Padding};
use crate::range::Range;

/// diffusers' `ResnetBlock2D` with `time_embedding_norm="default"`.
#[derive(Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Arc<Conv2d>,
    time_emb_proj: Option<Arc<Linear>>,
    norm2: GroupNorm,
    conv2: Arc<Conv2d>,
    conv_shortcut: Option<Arc<Linear>>,
}

impl ResnetBlock {
    /// `time_channels`: channels of the time embedding, none in a VAE; `range`: that of `x`, of what is between, and of
    /// the result.
    pub fn new(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        time_channels: Option<usize>,
        (groups, eps): (usize, f64),
        range: Range,
    ) -> Result<Self> {
        let (w, eps) = (range.writing(weights), range.eps(eps));
        let conv = |name, from| w.conv2d(name, from, out_channels, 3, 1, Padding::same(1));
        Ok(Self {
            norm1: w.group_norm("norm1", groups, in_channels, eps)?,
            conv1: conv("conv1", in_channels)?,
            time_emb_proj: time_channels
                .map(|c| w.linear("time_emb_proj", c, out_channels, true))
                .transpose()?,
            norm2: w.group_norm("norm2", groups, out_channels, eps)?,
            conv2: conv("conv2", out_channels)?,
            conv_shortcut: (in_channels != out_channels)
                .then(|| range.passing(weights).linear("conv_shortcut", in_channels, out_channels, true))
                .transpose()?,
        })
    }

    /// `x`: `(batch, height, width, in)`; `time`: `(batch, time channels)`, already through a SiLU; returns
    /// `(batch, height, width, out)`.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let time = match (&self.time_emb_proj, time) {
            (Some(proj), Some(t)) => Some(proj.forward(t)?),
            _ => None,
        };
        // One variable, so that each tensor goes when the next is there.
        let mut h = self.norm1.forward(x, Activation::Silu)?;
        h = self.conv1.forward_with(&h, time.as_ref(), None)?;
        h = self.norm2.forward(&h, Activation::Silu)?;
        match &self.conv_shortcut {
            Some(shortcut) => Ok(self.conv2.forward_with(&h, None, Some(&shortcut.forward(x)?))?),
            None => Ok(self.conv2.forward_with(&h, None, Some(x))?),
        }
    }
}
