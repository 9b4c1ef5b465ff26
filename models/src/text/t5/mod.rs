//! T5 v1.1: FLUX's text encoder for what a picture shows.
//!
//! A prompt is taken literally: `(word:1.2)` is text like any other here, as in diffusers' FLUX pipelines. The web UI
//! multiplies T5's hidden states by such weights; FLUX was not trained on anything like it, and parentheses and colons
//! occur in the long captions it was trained on. FLUX's CLIP gets the same literal text.
//!
//! Prompts are cut at `max_length` tokens, the end token included, and padded to it: FLUX.1-schnell was trained on 256
//! tokens, FLUX.1-dev on 512.

mod charsmap;
mod config;
mod encoder;
mod position_bias;
mod spiece;
mod tokenizer;

use std::path::Path;

use aquatint_kernels::computes_in_bf16;
use candle_core::{DType, Device, Tensor};

pub use config::T5Config;
pub use encoder::{MAX_TOKENS, Precision, T5Model};
pub use tokenizer::T5Tokenizer;

use crate::checkpoint::{ModelFolder, Weights};
use crate::{Error, Result};

/// A layer whose type says what T5 is held in.
pub(crate) const T5_LAYER: &str = "encoder.block.0.layer.0.SelfAttention.q";

/// How T5 is held.
#[derive(Clone, Copy, Debug, Default)]
pub struct T5Options<'a> {
    /// What matrices are held in; `None` chooses by size.
    pub dtype: Option<DType>,
    /// A file to read in place of the folder's.
    pub file: Option<&'a Path>,
    /// Each layer is read for every batch of prompts and dropped after it; two are in memory at a time.
    pub streamed: bool,
    /// Matrices of 16 bits or more are held in Q8_0.
    pub eight_bits: bool,
}

/// T5 with its tokenizer.
#[derive(Debug)]
pub struct T5Encoder {
    tokenizer: T5Tokenizer,
    model: T5Model,
    weights: Weights,
}

impl T5Encoder {
    /// Loads the folders `component` (`text_encoder_2` in FLUX's models) and `tokenizer` (`tokenizer_2`). On
    /// the CPU arithmetic is f32; on other devices activations have the type of matrices, in f16 with
    /// [`Precision::Half`].
    ///
    /// # Errors
    /// Where a file is missing, malformed, or does not fit the others.
    pub fn load(
        folder: &ModelFolder,
        component: &str,
        tokenizer: &str,
        options: &T5Options<'_>,
        device: &Device,
    ) -> Result<Self> {
        let file = format!("{component}/config.json");
        let config: T5Config = folder.json(&file)?;
        let in_config = |e| match e {
            Error::Invalid(text) => Error::file(folder.path(&file), text),
            other => other,
        };
        // Before the weights, which take long.
        config.check().map_err(in_config)?;
        let tokenizer_folder = folder.path(tokenizer);
        let tokenizer = T5Tokenizer::load(folder, tokenizer)?;
        if tokenizer.vocab_size() > config.vocab_size {
            let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
            let text = format!("has {tokens} tokens, the text encoder {rows} token embeddings");
            return Err(Error::file(tokenizer_folder, text));
        }
        let weights = match options.file {
            None => folder.weights(component, options.dtype, device)?,
            Some(path) => Weights::open(component, &[path.to_owned()], options.dtype, device)?,
        };
        let weights = if options.eight_bits { weights.in_eight_bits() } else { weights };
        let weights = if options.streamed { weights.streamed() } else { weights };
        let precision = match weights.activations(T5_LAYER) {
            DType::F16 => Precision::Half,
            DType::BF16 if computes_in_bf16(device) => Precision::Brain,
            DType::BF16 => Precision::Half,
            _ => Precision::Full,
        };
        let model = T5Model::new(config, &weights, precision).map_err(in_config)?;
        Ok(Self { tokenizer, model, weights })
    }

    /// Bytes of all weights in the types they are held in, and the most of them that is in memory at a time while they
    /// are streamed.
    pub fn weight_bytes(&self) -> (u64, u64) {
        let layers = self.weights.layer_shapes();
        let bytes = |layer: &String| self.weights.weight_bytes(layer).unwrap_or_default().0;
        let table = self.model.table_bytes();
        (layers.keys().map(bytes).sum::<u64>() + table, self.model.transient_bytes())
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &T5Tokenizer {
        &self.tokenizer
    }

    /// The network.
    pub fn model(&self) -> &T5Model {
        &self.model
    }

    /// The network's weights, into which LoRAs are merged.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The prompts' hidden states, `(batch, max_length, d_model)` in f32.
    ///
    /// # Errors
    /// Where there is no prompt, or `max_length` is not 1 to [`MAX_TOKENS`].
    pub fn encode(&self, prompts: &[&str], max_length: usize) -> Result<Tensor> {
        if prompts.is_empty() {
            return Err(Error::invalid("no prompt to encode"));
        }
        if max_length == 0 || max_length > MAX_TOKENS {
            let text = format!("max_length is {max_length}: 1 to {MAX_TOKENS} tokens are allowed");
            return Err(Error::invalid(text));
        }
        let ids = prompts.iter().map(|prompt| self.tokenizer.encode(prompt, max_length));
        self.model.forward(&ids.collect::<Result<Vec<_>>>()?)
    }
}
