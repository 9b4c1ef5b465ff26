//! The network, candle-transformers' `blip`, and greedy generation with it.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, Module, VarBuilder};
use candle_transformers::models::blip::BlipForConditionalGeneration;

use super::BlipConfig;
use crate::checkpoint::Weights;
use crate::{Error, Result};

/// BLIP with its captioning head.
pub struct Blip {
    config: BlipConfig,
    model: BlipForConditionalGeneration,
    device: Device,
}

impl std::fmt::Debug for Blip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blip").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Blip {
    /// The network of this config.
    ///
    /// # Errors
    /// A config that fits no model, weights that do not fit the config.
    pub fn new(config: BlipConfig, weights: &Weights) -> Result<Self> {
        config.check().map_err(Error::invalid)?;
        let device = weights.device().clone();
        let refusal = Mutex::default();
        let tied = config.text_config.tie_word_embeddings;
        let backend = Box::new(CandleWeights { weights, tied, refusal: &refusal });
        let builder = VarBuilder::from_backend(backend, DType::F32, device.clone());
        let model = BlipForConditionalGeneration::new(&config.to_candle(), builder);
        let refusal = refusal.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (model, refusal) {
            (Ok(model), _) => Ok(Self { config, model, device }),
            (Err(_), Some(refusal)) => Err(refusal),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// What the text decoder sees of a picture: `(1, 1 + patches, channels)`.
    ///
    /// `pixel_values`: `(1, 3, image_size, image_size)`.
    ///
    /// # Errors
    /// Pixel values of another shape.
    pub fn encode(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let size = self.config.vision_config.image_size;
        if pixel_values.dims() != [1, 3, size, size] {
            return Err(Error::invalid(format!(
                "pixel_values have shape {:?}, this model takes [1, 3, {size}, {size}]",
                pixel_values.dims()
            )));
        }
        Ok(self.model.vision_model().forward(pixel_values)?)
    }

    /// The token ids of the caption, from `bos_token_id` to `sep_token_id` or the longest length.
    ///
    /// Source: `BlipForConditionalGeneration.generate` and `GenerationMixin._sample`, greedy.
    ///
    /// # Errors
    /// `image_embeds` that [`Blip::encode`] did not make.
    pub fn generate(&self, image_embeds: &Tensor) -> Result<Vec<u32>> {
        let text = &self.config.text_config;
        let mut decoder = Decoder::new(self, image_embeds);
        let mut ids = vec![text.bos_token_id];
        while let [.., last] = ids[..]
            && ids.len() < text.max_caption_tokens()
        {
            let next = decoder.logits(last)?.argmax(0)?.to_scalar::<u32>()?;
            ids.push(next);
            if next == text.sep_token_id {
                break;
            }
        }
        Ok(ids)
    }

    /// How likely each token is to be the first of the caption, before the softmax: `(vocab_size)`.
    ///
    /// # Errors
    /// `image_embeds` that [`Blip::encode`] did not make.
    pub fn first_logits(&self, image_embeds: &Tensor) -> Result<Tensor> {
        Decoder::new(self, image_embeds).logits(self.config.text_config.bos_token_id)
    }
}

/// One caption in the making, with the keys and values of its tokens so far.
struct Decoder<'a> {
    model: BlipForConditionalGeneration,
    image_embeds: &'a Tensor,
    device: &'a Device,
}

impl<'a> Decoder<'a> {
    /// The keys and values live in candle's model: a copy, which shares the weights, keeps captions apart.
    fn new(blip: &'a Blip, image_embeds: &'a Tensor) -> Self {
        Self { model: blip.model.clone(), image_embeds, device: &blip.device }
    }

    /// The logits of the token after `id`: `(vocab_size)`.
    fn logits(&mut self, id: u32) -> Result<Tensor> {
        let id = Tensor::from_slice(&[id], (1, 1), self.device)?;
        Ok(self.model.text_decoder().forward(&id, self.image_embeds)?.squeeze(0)?.squeeze(0)?)
    }
}

const EMBEDDINGS: &str = "text_decoder.bert.embeddings.word_embeddings.weight";
const OUTPUT: &str = "text_decoder.cls.predictions.decoder.weight";
const OUTPUT_BIAS: &str = "text_decoder.cls.predictions.bias";

/// [`Weights`] as candle's layers ask for them.
struct CandleWeights<'a> {
    weights: &'a Weights,
    tied: bool,
    /// Our own error, which candle's result cannot carry.
    refusal: &'a Mutex<Option<Error>>,
}

impl SimpleBackend for CandleWeights<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let has = |name: &str| self.weights.contains(name);
        // Files hold one of two tensors that are the same, under either name.
        let name = match name {
            OUTPUT if self.tied && has(EMBEDDINGS) => EMBEDDINGS,
            EMBEDDINGS if self.tied && !has(EMBEDDINGS) && has(OUTPUT) => OUTPUT,
            OUTPUT_BIAS if !has(OUTPUT_BIAS) => "text_decoder.cls.predictions.decoder.bias",
            name => name,
        };
        self.weights.tensor(name, shape.dims()).map_err(|refusal| {
            let text = refusal.to_string();
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            candle_core::Error::Msg(text)
        })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!("{name} was asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}
