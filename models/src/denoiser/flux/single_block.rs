//! A single block: text and picture are one sequence, and the feed-forward runs beside the attention.
//!
//! Source: `FluxSingleTransformerBlock` of diffusers; Dehghani et al. 2023.

use std::sync::Arc;

use aquatint_kernels::attention::Mask;
use aquatint_kernels::{Rotation, attention, gated_residual, modulated_layer_norm, rms_norm_rope};
use candle_core::{D, Tensor};

use super::config::FluxConfig;
use super::double_block::QK_EPS;
use super::residual::Residual;
use crate::Result;
use crate::checkpoint::Weights;
use crate::layers::{Activation, Linear};

/// A single block.
#[derive(Debug)]
pub(super) struct SingleBlock {
    to_q: Arc<Linear>,
    to_k: Arc<Linear>,
    to_v: Arc<Linear>,
    norm_q: Tensor,
    norm_k: Tensor,
    proj_mlp: Arc<Linear>,
    proj_out: Arc<Linear>,
    heads: usize,
}

impl SingleBlock {
    /// `weights`: those of the block.
    pub(super) fn new(config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let (inner, d) = (config.inner_dim(), config.attention_head_dim);
        let attn = weights.pp("attn");
        Ok(Self {
            to_q: attn.linear("to_q", inner, inner, true)?,
            to_k: attn.linear("to_k", inner, inner, true)?,
            to_v: attn.linear("to_v", inner, inner, true)?,
            norm_q: attn.tensor("norm_q.weight", &[d])?,
            norm_k: attn.tensor("norm_k.weight", &[d])?,
            proj_mlp: weights.linear("proj_mlp", inner, 4 * inner, true)?,
            proj_out: weights.linear("proj_out", 5 * inner, inner, true)?,
            heads: config.num_attention_heads,
        })
    }

    /// `x`: `(batch, text and picture tokens, inner)`; the modulation: shift, scale and gate. The shape stays.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        [shift, scale, gate]: &[Tensor; 3],
        rotation: &Rotation,
        residual: Residual,
    ) -> Result<Tensor> {
        let h = modulated_layer_norm(x, scale, shift, residual.eps())?;
        let q = rms_norm_rope(&[(&self.to_q.forward(&h)?, &self.norm_q)], self.heads, rotation, QK_EPS)?;
        let k = rms_norm_rope(&[(&self.to_k.forward(&h)?, &self.norm_k)], self.heads, rotation, QK_EPS)?;
        let y = attention(&q, &k, &self.to_v.forward(&h)?, self.heads, Mask::None)?;
        let mlp = self.proj_mlp.forward_with(&h, Activation::GeluTanh, None)?;
        let y = residual.write(&self.proj_out, &Tensor::cat(&[&y, &mlp], D::Minus1)?)?;
        Ok(gated_residual(x, gate, &y)?)
    }
}
