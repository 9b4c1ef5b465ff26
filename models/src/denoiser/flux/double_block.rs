//! A double block: text and picture have weights of their own and attend to each other.
//!
//! Source: `FluxTransformerBlock` of diffusers; Esser et al. 2024.

use std::sync::Arc;

use aquatint_kernels::attention::Mask;
use aquatint_kernels::{Rotation, attention, gated_residual, modulated_layer_norm, rms_norm_rope};
use candle_core::Tensor;

use super::config::FluxConfig;
use super::residual::Residual;
use crate::Result;
use crate::checkpoint::Weights;
use crate::layers::{Activation, Linear};

/// Epsilon of the normalisation of queries and keys.
pub(super) const QK_EPS: f64 = 1e-6;

/// The weights of one of the two streams.
#[derive(Debug)]
struct Stream {
    to_q: Arc<Linear>,
    to_k: Arc<Linear>,
    to_v: Arc<Linear>,
    norm_q: Tensor,
    norm_k: Tensor,
    to_out: Arc<Linear>,
    ff_in: Arc<Linear>,
    ff_out: Arc<Linear>,
}

/// What its layers are called below the block.
struct Names {
    qkv: [&'static str; 3],
    norms: [&'static str; 2],
    out: &'static str,
    ff: &'static str,
}

const PICTURE: Names = Names {
    qkv: ["to_q", "to_k", "to_v"],
    norms: ["norm_q.weight", "norm_k.weight"],
    out: "to_out.0",
    ff: "ff",
};
const TEXT: Names = Names {
    qkv: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q.weight", "norm_added_k.weight"],
    out: "to_add_out",
    ff: "ff_context",
};

impl Stream {
    fn new(config: &FluxConfig, weights: &Weights, names: &Names) -> Result<Self> {
        let (attn, ff) = (weights.pp("attn"), weights.pp(names.ff));
        let (inner, d) = (config.inner_dim(), config.attention_head_dim);
        let [q, k, v] = names.qkv;
        let [norm_q, norm_k] = names.norms;
        Ok(Self {
            to_q: attn.linear(q, inner, inner, true)?,
            to_k: attn.linear(k, inner, inner, true)?,
            to_v: attn.linear(v, inner, inner, true)?,
            norm_q: attn.tensor(norm_q, &[d])?,
            norm_k: attn.tensor(norm_k, &[d])?,
            to_out: attn.linear(names.out, inner, inner, true)?,
            ff_in: ff.linear("net.0.proj", inner, 4 * inner, true)?,
            ff_out: ff.linear("net.2", 4 * inner, inner, true)?,
        })
    }

    /// Queries, keys and values of the modulated tokens.
    fn qkv(&self, x: &Tensor, m: &[Tensor; 6], residual: Residual) -> Result<[Tensor; 3]> {
        let [shift, scale, ..] = m;
        let h = modulated_layer_norm(x, scale, shift, residual.eps())?;
        Ok([self.to_q.forward(&h)?, self.to_k.forward(&h)?, self.to_v.forward(&h)?])
    }

    /// What follows the attention: its projection, and the feed-forward.
    fn finish(&self, x: &Tensor, attended: &Tensor, m: &[Tensor; 6], residual: Residual) -> Result<Tensor> {
        let [_, _, gate, mlp_shift, mlp_scale, mlp_gate] = m;
        let x = gated_residual(x, gate, &residual.write(&self.to_out, attended)?)?;
        let h = modulated_layer_norm(&x, mlp_scale, mlp_shift, residual.eps())?;
        let h = self.ff_in.forward_with(&h, Activation::GeluTanh, None)?;
        Ok(gated_residual(&x, mlp_gate, &residual.write(&self.ff_out, &h)?)?)
    }
}

/// A double block.
#[derive(Debug)]
pub(super) struct DoubleBlock {
    picture: Stream,
    text: Stream,
    heads: usize,
}

impl DoubleBlock {
    /// `weights`: those of the block.
    pub(super) fn new(config: &FluxConfig, weights: &Weights) -> Result<Self> {
        Ok(Self {
            picture: Stream::new(config, weights, &PICTURE)?,
            text: Stream::new(config, weights, &TEXT)?,
            heads: config.num_attention_heads,
        })
    }

    /// `text` and `picture`: `(batch, tokens, inner)`; their modulation vectors: shift, scale and gate of the
    /// attention, then of the feed-forward. Returns the same two.
    pub(super) fn forward(
        &self,
        (text, picture): (&Tensor, &Tensor),
        (text_m, picture_m): (&[Tensor; 6], &[Tensor; 6]),
        rotation: &Rotation,
        residual: Residual,
    ) -> Result<(Tensor, Tensor)> {
        let [tq, tk, tv] = self.text.qkv(text, text_m, residual)?;
        let [pq, pk, pv] = self.picture.qkv(picture, picture_m, residual)?;
        let (t, p) = (&self.text, &self.picture);
        let q = rms_norm_rope(&[(&tq, &t.norm_q), (&pq, &p.norm_q)], self.heads, rotation, QK_EPS)?;
        let k = rms_norm_rope(&[(&tk, &t.norm_k), (&pk, &p.norm_k)], self.heads, rotation, QK_EPS)?;
        let v = Tensor::cat(&[&tv, &pv], 1)?;
        let y = attention(&q, &k, &v, self.heads, Mask::None)?;
        let (text_tokens, picture_tokens) = (text.dim(1)?, picture.dim(1)?);
        Ok((
            t.finish(text, &y.narrow(1, 0, text_tokens)?, text_m, residual)?,
            p.finish(picture, &y.narrow(1, text_tokens, picture_tokens)?, picture_m, residual)?,
        ))
    }
}
