//! CLIP's text encoder: OpenAI's ViT-L/14 (SD 1.x, SDXL's first) and OpenCLIP's ViT-H/14 (SD 2.x) and ViT-bigG/14
//! (SDXL's second), which differ in their configs alone.
//!
//! Paper: Radford et al. 2021, <https://arxiv.org/abs/2103.00020>.
//! Source: `transformers/models/clip/modeling_clip.py`.

use std::sync::Arc;

use aquatint_kernels::Recorder;
use aquatint_kernels::attention::{Mask, attention};
use candle_core::{DType, IndexOp, Tensor};
use serde::Deserialize;

use crate::checkpoint::Weights;
use crate::layers::{Activation, LayerNorm, Linear};
use crate::{Error, Result};

/// `config.json` of a `CLIPTextModel` or `CLIPTextModelWithProjection`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct Config {
    /// The class the weights were saved from; says whether there is a projection.
    pub architectures: Vec<String>,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Channels of the hidden states.
    pub hidden_size: usize,
    /// Channels inside the feed-forward network.
    pub intermediate_size: usize,
    /// Channels of the pooled embedding, where there is a projection.
    pub projection_dim: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Tokens the encoder takes at once.
    pub max_position_embeddings: usize,
    /// `quick_gelu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu` or `silu`.
    pub hidden_act: String,
    /// What the layer norms add to the variance.
    pub layer_norm_eps: f64,
    /// The token at which the text ends; 2 in the published configs, where it is wrong.
    pub eos_token_id: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl Config {
    fn activation(&self) -> Result<Activation> {
        Ok(match self.hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                let allowed = "quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu and silu";
                return Err(Error::invalid(format!("hidden_act {other:?} is not known: {allowed} are")));
            }
        })
    }

    fn check(&self) -> Result<()> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || hidden == 0 || hidden % heads != 0 {
            let text = format!("hidden_size {hidden} does not divide into num_attention_heads {heads}");
            return Err(Error::invalid(text));
        }
        if self.num_hidden_layers == 0 {
            return Err(Error::invalid("num_hidden_layers is 0: at least 1 is needed"));
        }
        if self.max_position_embeddings < 3 {
            let n = self.max_position_embeddings;
            let text =
                format!("max_position_embeddings is {n}: at least 3 are needed (begin, one token, end)");
            return Err(Error::invalid(text));
        }
        Ok(())
    }

    pub(crate) fn has_projection(&self) -> bool {
        self.architectures.iter().any(|a| a == "CLIPTextModelWithProjection")
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Arc<Linear>,
    k_proj: Arc<Linear>,
    v_proj: Arc<Linear>,
    out_proj: Arc<Linear>,
    heads: usize,
}

impl Attention {
    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let linear = |name| weights.linear(name, config.hidden_size, config.hidden_size, true);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        let x = attention(&q, &k, &v, self.heads, Mask::Causal)?;
        Ok(self.out_proj.forward_with(&x, Activation::None, Some(residual))?)
    }
}

#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Arc<Linear>,
    fc2: Arc<Linear>,
    activation: Activation,
}

impl EncoderLayer {
    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (channels, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            layer_norm1: weights.layer_norm("layer_norm1", channels, config.layer_norm_eps)?,
            self_attn: Attention::new(config, &weights.pp("self_attn"))?,
            layer_norm2: weights.layer_norm("layer_norm2", channels, config.layer_norm_eps)?,
            fc1: weights.linear("mlp.fc1", channels, inner, true)?,
            fc2: weights.linear("mlp.fc2", inner, channels, true)?,
            activation: config.activation()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.self_attn.forward(&self.layer_norm1.forward(x)?, x)?;
        let inner = self.fc1.forward_with(&self.layer_norm2.forward(&x)?, self.activation, None)?;
        Ok(self.fc2.forward_with(&inner, Activation::None, Some(&x))?)
    }
}

/// What a text encoder makes of token ids.
#[derive(Clone, Debug)]
pub struct Output {
    /// The token embeddings, then each layer's result, `(batch, tokens, hidden_size)`: one more than there are layers.
    pub hidden_states: Vec<Tensor>,
    /// The last of them after the final norm, `(batch, tokens, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// The last hidden state where the text ends, `(batch, hidden_size)`; where the encoder has a projection,
    /// projected to `(batch, projection_dim)`.
    pub pooled: Tensor,
}

/// The text encoder.
#[derive(Debug)]
pub struct ClipTextModel {
    config: Config,
    /// `(tokens, hidden_size)`; more rows than `config.vocab_size` after [`Self::add_embeddings`].
    token_embedding: Tensor,
    /// `(max_position_embeddings, hidden_size)`
    position_embedding: Tensor,
    activations: DType,
    recorder: Recorder,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Arc<Linear>>,
}

impl ClipTextModel {
    /// Loads the encoder by the published keys, with `text_model.` before them (transformers 4) or not (5).
    ///
    /// # Errors
    /// Where the config contradicts itself or does not fit the weights.
    pub fn new(config: Config, weights: &Weights) -> Result<Self> {
        config.check()?;
        let prefixed = weights.contains("text_model.embeddings.token_embedding.weight");
        let text_model = if prefixed { weights.pp("text_model") } else { weights.clone() };
        let (channels, positions) = (config.hidden_size, config.max_position_embeddings);
        let embeddings = text_model.pp("embeddings");
        let layer = |i| EncoderLayer::new(&config, &text_model.pp("encoder.layers").pp(i));
        let text_projection = if config.has_projection() {
            Some(weights.linear("text_projection", channels, config.projection_dim, false)?)
        } else {
            None
        };
        Ok(Self {
            token_embedding: embeddings.tensor("token_embedding.weight", &[config.vocab_size, channels])?,
            position_embedding: embeddings.tensor("position_embedding.weight", &[positions, channels])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: text_model.layer_norm("final_layer_norm", channels, config.layer_norm_eps)?,
            text_projection,
            recorder: Recorder::default(),
            activations: text_model.activations("encoder.layers.0.self_attn.q_proj"),
            config,
        })
    }

    /// The same with activations of another type between operations; sums are f32 in any case.
    pub fn with_activations(self, activations: DType) -> Self {
        Self { activations, ..self }
    }

    /// The config it was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The norm after the last layer, which SD applies to an earlier layer's result where layers are skipped.
    pub fn final_layer_norm(&self) -> &LayerNorm {
        &self.final_layer_norm
    }

    /// Whether pooled embeddings go through `text_projection`.
    pub fn has_projection(&self) -> bool {
        self.text_projection.is_some()
    }

    /// The number of token embeddings, added ones included; the next added one gets this id.
    pub fn vocab_size(&self) -> usize {
        self.token_embedding.dims()[0]
    }

    /// Adds the embeddings of a textual inversion, `(vectors, hidden_size)`, under the ids from
    /// [`Self::vocab_size`] on.
    ///
    /// # Errors
    /// Where the vectors have another number of channels than the encoder.
    pub fn add_embeddings(&mut self, vectors: &Tensor) -> Result<()> {
        let hidden = self.config.hidden_size;
        if vectors.rank() != 2 || vectors.dims()[1] != hidden {
            let shape = vectors.dims();
            let text = format!(
                "the textual inversion's vectors have shape {shape:?}, this encoder takes (n, {hidden})"
            );
            return Err(Error::invalid(text));
        }
        let vectors =
            vectors.to_dtype(self.token_embedding.dtype())?.to_device(self.token_embedding.device())?;
        self.token_embedding = Tensor::cat(&[&self.token_embedding, &vectors], 0)?;
        Ok(())
    }

    /// `ids`: the prompts' token ids, all of one length of at most `max_position_embeddings`.
    ///
    /// # Errors
    /// Where there are no ids, lengths differ or are too large, or an id is beyond the vocabulary.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Output> {
        let embedded = self.embed(ids)?;
        let mut hidden_states = vec![embedded.clone()];
        hidden_states.extend(self.recorder.run(&[&embedded], |inputs| self.run(inputs))?);
        let last_hidden_state = hidden_states.pop().unwrap_or(embedded);
        let ends = ids.iter().enumerate().map(|(i, ids)| last_hidden_state.i((i, self.text_end(ids), ..)));
        let pooled = Tensor::stack(&ends.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let pooled = match &self.text_projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok(Output { hidden_states, last_hidden_state, pooled })
    }

    /// The results of all layers, and the last of them after the final norm.
    fn run(&self, embedded: &[Tensor]) -> Result<Vec<Tensor>> {
        let [embedded] = embedded else { return Err(Error::invalid("a text encoder takes one tensor")) };
        let (mut all, mut x) = (Vec::with_capacity(self.layers.len() + 1), embedded.clone());
        for layer in &self.layers {
            x = layer.forward(&x)?;
            all.push(x.clone());
        }
        all.push(self.final_layer_norm.forward(&x)?);
        Ok(all)
    }

    fn embed(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let (batch, tokens) = (ids.len(), ids.first().map_or(0, Vec::len));
        let positions = self.config.max_position_embeddings;
        if tokens == 0 || tokens > positions || ids.iter().any(|row| row.len() != tokens) {
            let lengths: Vec<_> = ids.iter().map(Vec::len).collect();
            let text = format!("prompts of {lengths:?} tokens: one length of 1 to {positions} is allowed");
            return Err(Error::invalid(text));
        }
        let rows = self.vocab_size();
        let flat: Vec<u32> = ids.iter().flatten().copied().collect();
        if let Some(id) = flat.iter().find(|id| **id as usize >= rows) {
            return Err(Error::invalid(format!(
                "token id {id}: the text encoder has {rows} token embeddings"
            )));
        }
        let flat = Tensor::from_vec(flat, batch * tokens, self.token_embedding.device())?;
        let x =
            self.token_embedding.index_select(&flat, 0)?.reshape((batch, tokens, self.config.hidden_size))?;
        Ok(x.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)?.to_dtype(self.activations)?)
    }

    /// The position at which a text ends: the first end token.
    ///
    /// Configs from before transformers 4.31 claim that token 2 ends a text. There the end is the highest id of the
    /// vocabulary; textual inversions, whose ids are higher still, do not count.
    fn text_end(&self, ids: &[u32]) -> usize {
        let eos = match self.config.eos_token_id {
            2 => ids.iter().copied().filter(|id| (*id as usize) < self.config.vocab_size).max(),
            eos => Some(eos),
        };
        ids.iter().position(|id| Some(*id) == eos).unwrap_or(0)
    }
}
