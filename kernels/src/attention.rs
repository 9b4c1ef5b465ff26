//! Scaled dot-product attention.

use candle_core::{D, Result, Tensor, bail};

/// Which keys a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those at its own position and before: CLIP's text encoders.
    Causal,
}

/// `softmax(scale * q k^T) v`, head by head.
///
/// `q`: `(batch, queries, heads * d)`; `k`, `v`: `(batch, keys, heads * d)`, heads side by side in the channels;
/// returns `(batch, queries, heads * d)`. `scale` is `1 / sqrt(d)` in every model here.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (batch, queries, channels) = q.dims3()?;
    let (_, keys, _) = k.dims3()?;
    if heads == 0 || channels % heads != 0 {
        bail!("attention: {channels} channels cannot be divided into {heads} heads");
    }
    let d = channels / heads;
    let split = |t: &Tensor, n: usize| t.reshape((batch, n, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * (1.0 / (d as f64).sqrt()))?;
    if mask == Mask::Causal {
        let row = |i: usize| (0..keys).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
        let m: Vec<f32> = (0..queries).flat_map(row).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(m, (queries, keys), q.device())?)?;
    }
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((batch, queries, channels))
}
