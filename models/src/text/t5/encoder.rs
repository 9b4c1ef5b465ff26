//! The encoder of T5 v1.1.
//!
//! Papers: Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>; Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
//! Source: `transformers/models/t5/modeling_t5.py`.
//!
//! # Half precision
//! T5's hidden states and the products inside its feed-forward networks grow far beyond the 65504 that f16 can hold.
//! Nothing but norms reads the hidden states, and a norm gives the same for `x / s` with `eps / s^2`. So with
//! [`Precision::Half`] everything that is written into them is `s` times smaller:
//! - the embedded tokens are divided by `s`;
//! - so are the norms' scales, and with them all queries, keys and values: the attention's output is `s` times smaller,
//!   and its scores, `s^2` times smaller, are multiplied by `s^2` in f32;
//! - the gate of a feed-forward network is multiplied by `s` within the op that applies GELU to it. The other factor
//!   stays `s` times smaller, so the product and what is made of it are too.
//!
//! `s` is a power of two: nothing is rounded by it, nothing is clamped, and in f32 the result is the same, bit for bit.
//! No matrix is changed, so it holds for quantised ones as well.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use aquatint_kernels::{Recorder, biased_attention, gated_gelu, rms_norm};
use candle_core::{DType, Tensor};

use super::T5Config;
use super::position_bias::position_bias;
use crate::checkpoint::Weights;
use crate::checkpoint::stream::{Stage, one_ahead, transient_bytes};
use crate::layers::{Activation, Linear};
use crate::{Error, Result};

/// The most tokens of a prompt: position biases of more would take gigabytes.
pub const MAX_TOKENS: usize = 4096;

/// What activations are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32, at their true size.
    #[default]
    Full,
    /// bf16, whose range is that of f32, at their true size.
    Brain,
    /// f16, made smaller so that they fit; see the module's documentation.
    Half,
}

impl Precision {
    /// By what hidden states are divided in f16: they fit up to 4 million. Much more, and small scores, which are divided
    /// by its square, would lose digits.
    pub const HALF_SCALE: f64 = 64.0;

    /// The type, and by what hidden states are divided.
    fn parts(self) -> (DType, f64) {
        match self {
            Self::Full => (DType::F32, 1.0),
            Self::Brain => (DType::BF16, 1.0),
            Self::Half => (DType::F16, Self::HALF_SCALE),
        }
    }
}

/// Activations in `dtype`, `scale` times smaller than the reference's.
#[derive(Clone, Copy, Debug)]
struct Activations {
    dtype: DType,
    scale: f64,
}

/// `RMSNorm` of hidden states that are `s` times smaller.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    /// `shrink`: by what the result is divided.
    fn new(config: &T5Config, weights: &Weights, name: &str, s: f64, shrink: f64) -> Result<Self> {
        let weight = weights.tensor(&format!("{name}.weight"), &[config.d_model])?;
        Ok(Self { weight: (weight / shrink)?, eps: config.layer_norm_epsilon / (s * s) })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.weight, self.eps)?)
    }
}

#[derive(Debug)]
struct SelfAttention {
    q: Arc<Linear>,
    k: Arc<Linear>,
    v: Arc<Linear>,
    o: Arc<Linear>,
    heads: usize,
    /// What the products of queries and keys are multiplied by: T5 itself scales nothing.
    score_scale: f64,
}

impl SelfAttention {
    fn new(config: &T5Config, weights: &Weights, s: f64) -> Result<Self> {
        let (d, inner) = (config.d_model, config.inner());
        let linear = |name, from, to| weights.linear(name, from, to, false);
        Ok(Self {
            q: linear("q", d, inner)?,
            k: linear("k", d, inner)?,
            v: linear("v", d, inner)?,
            o: linear("o", inner, d)?,
            heads: config.num_heads,
            score_scale: s * s,
        })
    }

    fn forward(&self, x: &Tensor, position_bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        let x = biased_attention(&q, &k, &v, self.heads, self.score_scale, position_bias)?;
        Ok(self.o.forward_with(&x, Activation::None, Some(residual))?)
    }
}

#[derive(Debug)]
struct FeedForward {
    wi_0: Arc<Linear>,
    wi_1: Arc<Linear>,
    wo: Arc<Linear>,
    gate_scale: f64,
}

impl FeedForward {
    fn new(config: &T5Config, weights: &Weights, s: f64) -> Result<Self> {
        let (d, ff) = (config.d_model, config.d_ff);
        Ok(Self {
            wi_0: weights.linear("wi_0", d, ff, false)?,
            wi_1: weights.linear("wi_1", d, ff, false)?,
            wo: weights.linear("wo", ff, d, false)?,
            gate_scale: s,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let inner = gated_gelu(&self.wi_0.forward(x)?, &self.wi_1.forward(x)?, self.gate_scale)?;
        Ok(self.wo.forward_with(&inner, Activation::None, Some(residual))?)
    }
}

/// One layer: attention, then the feed-forward network, each behind its norm and added to the hidden states.
#[derive(Debug)]
struct T5Block {
    attention_norm: Norm,
    attention: SelfAttention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl T5Block {
    fn new(config: &T5Config, weights: &Weights, s: f64) -> Result<Self> {
        Ok(Self {
            attention_norm: Norm::new(config, weights, "layer.0.layer_norm", s, s)?,
            attention: SelfAttention::new(config, &weights.pp("layer.0.SelfAttention"), s)?,
            feed_forward_norm: Norm::new(config, weights, "layer.1.layer_norm", s, s)?,
            feed_forward: FeedForward::new(config, &weights.pp("layer.1.DenseReluDense"), s)?,
        })
    }

    fn forward(&self, x: &Tensor, position_bias: &Tensor) -> Result<Tensor> {
        let x = self.attention.forward(&self.attention_norm.forward(x)?, position_bias, x)?;
        self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?, &x)
    }
}

/// The vectors of the tokens, `(vocab_size, d_model)`.
#[derive(Debug)]
enum Embeddings {
    /// As they are held.
    Resident(Tensor),
    /// In the checkpoint.
    Streamed { weights: Weights, name: &'static str },
}

impl Embeddings {
    /// Those of `ids`, `(ids, d_model)` in f32.
    fn of(&self, ids: &[u32], shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::Resident(table) => {
                let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
                Ok(table.index_select(&ids, 0)?.to_dtype(DType::F32)?)
            }
            Self::Streamed { weights, name } => {
                // Most of a prompt's tokens are padding.
                let mut rows = BTreeMap::new();
                for &id in ids {
                    if let Entry::Vacant(row) = rows.entry(id) {
                        row.insert(weights.rows(name, shape, id as usize..id as usize + 1)?);
                    }
                }
                let all: Vec<_> = ids.iter().filter_map(|id| rows.get(id)).collect();
                Ok(Tensor::cat(&all, 0)?)
            }
        }
    }
}

/// The network, from token ids to hidden states.
#[derive(Debug)]
pub struct T5Model {
    config: T5Config,
    activations: Activations,
    recorder: Recorder,
    embeddings: Embeddings,
    /// `(buckets, heads)` in f32: the first layer's, which all layers share
    relative_attention_bias: Tensor,
    /// Each with what is streamed of it.
    blocks: Vec<(T5Block, Stage)>,
    final_norm: Norm,
}

impl T5Model {
    /// Loads the encoder by transformers' names; the embedding table may be `shared.weight` or
    /// `encoder.embed_tokens.weight`.
    ///
    /// # Errors
    /// Where the config is not T5 v1.1's, contradicts itself or does not fit the weights.
    pub fn new(config: T5Config, weights: &Weights, precision: Precision) -> Result<Self> {
        let (dtype, scale) = precision.parts();
        Self::with(config, weights, Activations { dtype, scale })
    }

    /// As [`Self::new`] with activations in `dtype`, hidden states divided by `scale`, a power of two. Tests need
    /// combinations that no [`Precision`] offers.
    #[doc(hidden)]
    pub fn with_scale(config: T5Config, weights: &Weights, dtype: DType, scale: f64) -> Result<Self> {
        Self::with(config, weights, Activations { dtype, scale })
    }

    fn with(config: T5Config, weights: &Weights, activations: Activations) -> Result<Self> {
        config.check()?;
        let s = activations.scale;
        let names = ["shared.weight", "encoder.embed_tokens.weight"];
        let table =
            if weights.contains(names[0]) || !weights.contains(names[1]) { names[0] } else { names[1] };
        let encoder = weights.pp("encoder");
        let relative = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let block = |i| {
            let weights = encoder.pp("block").pp(i);
            Ok((T5Block::new(&config, &weights, s)?, Stage::new(&weights)))
        };
        let shape_of_table = [config.vocab_size, config.d_model];
        Ok(Self {
            activations,
            recorder: Recorder::default(),
            embeddings: match weights.is_streaming() {
                true => Embeddings::Streamed { weights: weights.clone(), name: table },
                false => Embeddings::Resident(weights.table(table, &shape_of_table)?),
            },
            relative_attention_bias: encoder.tensor(relative, &shape)?,
            blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            final_norm: Norm::new(&config, &encoder, "final_layer_norm", s, 1.0)?,
            config,
        })
    }

    /// Bytes of the embedding table in the type it is held in.
    pub fn table_bytes(&self) -> u64 {
        let elements = self.config.vocab_size * self.config.d_model;
        let size = match &self.embeddings {
            Embeddings::Resident(table) => table.dtype().size_in_bytes(),
            Embeddings::Streamed { weights, name } => weights.held_size(name),
        };
        (elements * size) as u64
    }

    /// The most that is in memory of streamed weights at a time, in bytes.
    pub fn transient_bytes(&self) -> u64 {
        transient_bytes(self.blocks.iter().map(|(_, stage)| stage))
    }

    /// The config it was made from.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The last hidden states of `ids`, rows of one length of at most [`MAX_TOKENS`]: `(batch, tokens, d_model)` in
    /// f32. Padding is attended to like any token, as in diffusers' FLUX pipelines.
    ///
    /// # Errors
    /// Where there are no ids, lengths differ or are too large, or an id is beyond the vocabulary.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let x = self.embed(ids)?;
        let bias = position_bias(&self.relative_attention_bias, &self.config, x.dims()[1])?;
        let outputs = self.recorder.run(&[&x, &bias], |inputs| match inputs {
            [x, bias] => Ok(vec![self.run(x, bias)?]),
            _ => Err(Error::invalid("T5 takes tokens and a bias")),
        })?;
        outputs.into_iter().next().ok_or_else(|| Error::invalid("T5 without an output"))
    }

    /// All blocks, and the norm behind them.
    fn run(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        let stages: Vec<_> = self.blocks.iter().map(|(_, stage)| stage).collect();
        one_ahead(&stages, |i| {
            if let Some((block, _)) = self.blocks.get(i) {
                x = block.forward(&x, bias)?;
            }
            Ok(())
        })?;
        Ok(self.final_norm.forward(&x)?.to_dtype(DType::F32)?)
    }

    fn embed(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let (batch, tokens) = (ids.len(), ids.first().map_or(0, Vec::len));
        if tokens == 0 || tokens > MAX_TOKENS || ids.iter().any(|row| row.len() != tokens) {
            let lengths: Vec<_> = ids.iter().map(Vec::len).collect();
            let text = format!("prompts of {lengths:?} tokens: one length of 1 to {MAX_TOKENS} is allowed");
            return Err(Error::invalid(text));
        }
        let rows = self.config.vocab_size;
        let flat: Vec<u32> = ids.iter().flatten().copied().collect();
        if let Some(id) = flat.iter().find(|id| **id as usize >= rows) {
            let text = format!("token id {id}: the text encoder has {rows} token embeddings");
            return Err(Error::invalid(text));
        }
        let x = self.embeddings.of(&flat, &[rows, self.config.d_model])?;
        let x = (x / self.activations.scale)?.to_dtype(self.activations.dtype)?;
        Ok(x.reshape((batch, tokens, self.config.d_model))?)
    }
}
