//! Prompts to prompt_embeds: chunks, emphasis, skipped layers, and SDXL's two encoders side by side.

use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor};

use super::clip::{self, ClipTextModel};
use super::prompt::{Chunk, chunks};
use super::tokenizer::Tokenizer;
use crate::checkpoint::{ModelFolder, Weights};
use crate::{Error, Result};

/// A text and how much of the encoder it goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// Of any length; see [`super::prompt`] for emphasis.
    pub text: &'a str,
    /// Layers to leave out at the end: 0 uses all of them. diffusers' `clip_skip`, one less than the web UI's "Clip
    /// skip". diffusers leaves none out for a negative prompt.
    pub clip_skip: usize,
}

impl<'a> Prompt<'a> {
    /// A prompt that goes through all layers.
    pub fn new(text: &'a str) -> Self {
        Self { text, clip_skip: 0 }
    }
}

/// Which hidden states a denoiser was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenStates {
    /// The last layer's, through the final norm: SD 1.x and 2.x.
    Final,
    /// Those of the layer before the last, as they are: SDXL.
    Penultimate,
}

/// Prompts, encoded.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// prompt_embeds, `(prompts, 77 * chunks, channels)`: all prompts are filled up to as many chunks as the longest
    /// has. Several encoders stand side by side in the channels.
    pub hidden: Tensor,
    /// pooled_prompt_embeds of the encoder that has a projection, `(prompts, projection_dim)`. A prompt of several
    /// chunks is represented by its first, as in the web UI.
    pub pooled: Option<Tensor>,
}

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    model: ClipTextModel,
    weights: Weights,
}

impl TextEncoder {
    /// Loads the folders `component` (`text_encoder` or `text_encoder_2`) and `tokenizer` of a model. `file`: where the
    /// weights are in place of the folder. `dtype`: what matrices are held in; `None` chooses by size.
    ///
    /// # Errors
    /// Where a file is missing, malformed, or does not fit the others.
    pub fn load(
        folder: &ModelFolder,
        component: &str,
        tokenizer: &str,
        file: Option<&Path>,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self> {
        let config_file = format!("{component}/config.json");
        let config: clip::Config = folder.json(&config_file)?;
        let weights = match file {
            None => folder.weights(component, dtype, device)?,
            Some(path) => Weights::open(component, &[path.to_owned()], dtype, device)?,
        };
        let model = ClipTextModel::new(config, &weights).map_err(|e| match e {
            Error::Invalid(text) => Error::file(folder.path(&config_file), text),
            other => other,
        })?;
        let tokenizer = Tokenizer::load(folder, tokenizer)?;
        Ok(Self { tokenizer, model, weights })
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The network.
    pub fn model(&self) -> &ClipTextModel {
        &self.model
    }

    /// The network's weights, into which LoRAs are merged.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Adds a textual inversion: the prompt's token `name` stands for `vectors`, `(n, hidden_size)`.
    ///
    /// # Errors
    /// Where the name is taken or the vectors have another number of channels than the encoder.
    pub fn add_textual_inversion(&mut self, name: &str, vectors: &Tensor) -> Result<()> {
        let (tokens, embeddings) = (self.tokenizer.vocab_size(), self.model.vocab_size());
        if tokens != embeddings {
            let text = format!(
                "{name:?}: the tokenizer has {tokens} tokens, the text encoder {embeddings}: no place is free"
            );
            return Err(Error::invalid(text));
        }
        // On a copy, so that both sides take the token or none.
        let mut tokenizer = self.tokenizer.clone();
        tokenizer.add_tokens(name, vectors.dims().first().copied().unwrap_or(0))?;
        self.model.add_embeddings(vectors)?;
        self.tokenizer = tokenizer;
        Ok(())
    }

    /// Encodes prompts with this encoder alone; see [`encode`].
    pub fn encode(&self, prompts: &[Prompt<'_>], hidden_states: HiddenStates) -> Result<Encoded> {
        encode(&[self], prompts, hidden_states)
    }

    /// The pooled vectors of texts as they are, brackets included, cut where the encoder's positions end:
    /// `(texts, hidden_size)`.
    ///
    /// # Errors
    /// Where a text cannot be tokenized.
    pub fn pooled(&self, texts: &[&str]) -> Result<Tensor> {
        let length = self.model.config().max_position_embeddings;
        let ids = |text: &&str| -> Result<Vec<u32>> {
            let tokens = self.tokenizer.encode(text)?.into_iter().flatten().take(length.saturating_sub(2));
            let mut ids = vec![self.tokenizer.bos_token_id()];
            ids.extend(tokens);
            ids.push(self.tokenizer.eos_token_id());
            ids.resize(length, self.tokenizer.pad_token_id());
            Ok(ids)
        };
        Ok(self.model.forward(&texts.iter().map(ids).collect::<Result<Vec<_>>>()?)?.pooled)
    }

    fn chunks(&self, text: &str) -> Result<Vec<Chunk>> {
        chunks(text, &self.tokenizer, self.model.config().max_position_embeddings)
    }

    /// `(prompts, 77 * count, hidden_size)` and, of the first chunks, `(prompts, projection_dim)`.
    fn forward(&self, batch: &[Prompted<'_>], count: usize, which: HiddenStates) -> Result<(Tensor, Tensor)> {
        let empty = Chunk::empty(&self.tokenizer, self.model.config().max_position_embeddings);
        let (mut hidden, mut pooled) = (Vec::with_capacity(count), None);
        for i in 0..count {
            let row: Vec<_> = batch.iter().map(|p| p.chunks.get(i).unwrap_or(&empty)).collect();
            let output = self.model.forward(&row.iter().map(|c| c.ids.clone()).collect::<Vec<_>>())?;
            let states = row.iter().zip(batch).enumerate().map(|(b, (chunk, prompted))| {
                emphasise(&self.states(&output, b, which, prompted.prompt.clip_skip)?, chunk)
            });
            hidden.push(Tensor::cat(&states.collect::<Result<Vec<_>>>()?, 0)?);
            pooled.get_or_insert(output.pooled);
        }
        let pooled = pooled.ok_or_else(|| Error::invalid("no chunk to encode"))?;
        Ok((Tensor::cat(&hidden, 1)?, pooled))
    }

    /// The hidden states of the batch's row `b`, `(1, tokens, hidden_size)`.
    fn states(
        &self,
        output: &clip::Output,
        b: usize,
        which: HiddenStates,
        clip_skip: usize,
    ) -> Result<Tensor> {
        let layers = self.model.config().num_hidden_layers;
        let (back, most) = match which {
            HiddenStates::Final => (0, layers),
            HiddenStates::Penultimate => (1, layers - 1),
        };
        if clip_skip > most {
            let text = format!(
                "clip_skip is {clip_skip}: 0 to {most} is allowed, the text encoder has {layers} layers"
            );
            return Err(Error::invalid(text));
        }
        let states = output.hidden_states[layers - back - clip_skip].i(b..b + 1)?;
        match which {
            HiddenStates::Final => self.model.final_layer_norm().forward(&states.contiguous()?),
            HiddenStates::Penultimate => Ok(states),
        }
    }
}

/// A prompt and its chunks for one encoder.
struct Prompted<'a> {
    prompt: Prompt<'a>,
    chunks: Vec<Chunk>,
}

/// Encodes prompts with all of a model's encoders: one for SD, two for SDXL, SDXL's second for its refiner.
///
/// A prompt is never too long: beyond 75 tokens it goes through the encoders in chunks. The prompt and the negative
/// prompt of a picture belong into one call, which fills them up to equal length.
///
/// Source: `encode_prompt` of diffusers' `StableDiffusionPipeline` and `StableDiffusionXLPipeline`.
///
/// # Errors
/// Where there is no encoder or prompt, or `clip_skip` leaves no layer.
pub fn encode(
    encoders: &[&TextEncoder],
    prompts: &[Prompt<'_>],
    hidden_states: HiddenStates,
) -> Result<Encoded> {
    let mut batches = Vec::with_capacity(encoders.len());
    for encoder in encoders {
        let prompted = prompts.iter().map(|p| Ok(Prompted { prompt: *p, chunks: encoder.chunks(p.text)? }));
        batches.push(prompted.collect::<Result<Vec<_>>>()?);
    }
    // Over all encoders: a textual inversion that only one of them has changes the number of tokens.
    let count = batches.iter().flatten().map(|p| p.chunks.len()).max();
    let count = count.ok_or_else(|| Error::invalid("at least one text encoder and one prompt are needed"))?;
    let (mut hidden, mut pooled) = (Vec::with_capacity(encoders.len()), None);
    for (encoder, batch) in encoders.iter().zip(&batches) {
        let (states, end) = encoder.forward(batch, count, hidden_states)?;
        hidden.push(states);
        if encoder.model.has_projection() {
            pooled = Some(end);
        }
    }
    Ok(Encoded { hidden: Tensor::cat(&hidden, 2)?, pooled })
}

/// Multiplies each token's hidden states, `(1, tokens, channels)`, by its weight, and then all of them by what
/// restores their mean: the web UI's "Original" emphasis.
fn emphasise(states: &Tensor, chunk: &Chunk) -> Result<Tensor> {
    if !chunk.is_weighted() {
        return Ok(states.clone());
    }
    let mean = |t: &Tensor| -> Result<f64> { Ok(t.to_dtype(DType::F64)?.mean_all()?.to_scalar()?) };
    let weights = Tensor::from_slice(&chunk.weights, (1, chunk.weights.len(), 1), states.device())?;
    let weighted = states.broadcast_mul(&weights.to_dtype(states.dtype())?)?;
    let restore = mean(states)? / mean(&weighted)?;
    // Weights can bring the mean to 0, from which nothing restores it.
    if restore.is_finite() { Ok((weighted * restore)?) } else { Ok(weighted) }
}
