//! The UNet's transformer: self-attention, cross-attention to the prompt, and a gated feed-forward, over the pixels of
//! a feature map as tokens.
//!
//! Source: `Transformer2DModel` and `BasicTransformerBlock` of diffusers; Rombach et al. 2022.

use std::sync::Arc;

use aquatint_kernels::{attention, geglu};
use candle_core::Tensor;

use crate::Result;
use crate::checkpoint::Weights;
use crate::layers::{Activation, GroupNorm, LayerNorm, Linear};

/// Keys and values of one cross-attention, both `(batch, tokens, channels)`. They depend on the prompt alone, so they
/// are computed once a request.
pub type KeyValue = (Tensor, Tensor);

/// Multi-head attention with an output projection.
#[derive(Debug)]
struct Attention {
    to_q: Arc<Linear>,
    to_k: Arc<Linear>,
    to_v: Arc<Linear>,
    to_out: Arc<Linear>,
    heads: usize,
}

impl Attention {
    fn new(weights: &Weights, channels: usize, context_channels: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: weights.linear("to_q", channels, channels, false)?,
            to_k: weights.linear("to_k", context_channels, channels, false)?,
            to_v: weights.linear("to_v", context_channels, channels, false)?,
            to_out: weights.linear("to_out.0", channels, channels, true)?,
            heads,
        })
    }

    fn key_value(&self, context: &Tensor) -> Result<KeyValue> {
        Ok((self.to_k.forward(context)?, self.to_v.forward(context)?))
    }

    /// Attends from `x` to `kv` and adds the result to `residual`.
    fn forward(&self, x: &Tensor, kv: &KeyValue, residual: &Tensor) -> Result<Tensor> {
        let q = self.to_q.forward(x)?;
        let y = attention(&q, &kv.0, &kv.1, self.heads, aquatint_kernels::attention::Mask::None)?;
        Ok(self.to_out.forward_with(&y, Activation::None, Some(residual))?)
    }
}

#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Arc<Linear>,
    ff_out: Arc<Linear>,
}

impl TransformerBlock {
    fn new(weights: &Weights, channels: usize, context_channels: usize, heads: usize) -> Result<Self> {
        let w = weights;
        let norm = |name| w.layer_norm(name, channels, 1e-5);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(&w.pp("attn1"), channels, channels, heads)?,
            norm2: norm("norm2")?,
            attn2: Attention::new(&w.pp("attn2"), channels, context_channels, heads)?,
            norm3: norm("norm3")?,
            ff_in: w.linear("ff.net.0.proj", channels, channels * 8, true)?,
            ff_out: w.linear("ff.net.2", channels * 4, channels, true)?,
        })
    }

    /// `x`: `(batch, tokens, channels)`.
    fn forward(&self, x: &Tensor, prompt: &KeyValue) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = self.attn1.forward(&h, &self.attn1.key_value(&h)?, x)?;
        let x = self.attn2.forward(&self.norm2.forward(&x)?, prompt, &x)?;
        let h = geglu(&self.ff_in.forward(&self.norm3.forward(&x)?)?)?;
        Ok(self.ff_out.forward_with(&h, Activation::None, Some(&x))?)
    }
}

/// diffusers' `Transformer2DModel` over continuous inputs.
#[derive(Debug)]
pub struct Transformer2D {
    norm: GroupNorm,
    proj_in: Arc<Linear>,
    blocks: Vec<TransformerBlock>,
    proj_out: Arc<Linear>,
}

impl Transformer2D {
    /// `layers` transformer blocks of `channels` with `heads` heads, attending to prompts of `context_channels`.
    pub fn new(
        weights: &Weights,
        channels: usize,
        context_channels: usize,
        heads: usize,
        layers: usize,
        groups: usize,
    ) -> Result<Self> {
        let blocks = weights.pp("transformer_blocks").rounded();
        Ok(Self {
            norm: weights.group_norm("norm", groups, channels, 1e-6)?,
            proj_in: weights.linear("proj_in", channels, channels, true)?,
            blocks: (0..layers)
                .map(|i| TransformerBlock::new(&blocks.pp(i), channels, context_channels, heads))
                .collect::<Result<_>>()?,
            proj_out: weights.linear("proj_out", channels, channels, true)?,
        })
    }

    /// Keys and values of the prompt for each block; `prompt_embeds`: `(batch, tokens, context channels)`.
    pub fn key_values(&self, prompt_embeds: &Tensor) -> Result<Vec<KeyValue>> {
        self.blocks.iter().map(|b| b.attn2.key_value(prompt_embeds)).collect()
    }

    /// `x`: `(batch, height, width, channels)`; `prompt`: what [`Self::key_values`] returned; the shape stays.
    pub fn forward(&self, x: &Tensor, prompt: &[KeyValue]) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let tokens = (batch, height * width, channels);
        let mut h = self.proj_in.forward(&self.norm.forward(x, Activation::None)?.reshape(tokens)?)?;
        for (block, prompt) in self.blocks.iter().zip(prompt) {
            h = block.forward(&h, prompt)?;
        }
        let y = self.proj_out.forward_with(&h, Activation::None, Some(&x.reshape(tokens)?))?;
        Ok(y.reshape((batch, height, width, channels))?)
    }
}
