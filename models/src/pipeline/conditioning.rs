//! From prompts to the denoiser's conditioning.

use candle_core::{DType, Tensor};

use super::{Family, GenerationRequest, MicroConditioning, Pipeline, Refiner};
use crate::denoiser::{AddedConditioning, Conditioning, Context, Denoiser, UNet2DCondition};
use crate::text::cache::{PromptCache, PromptKey};
use crate::text::encoder::encode;
use crate::text::{Encoded, HiddenStates, Prompt, TextEncoder};
use crate::{Error, Result};

/// What the refiner is told of how good the picture is, for the prompt and for the negative prompt: diffusers' values.
const AESTHETIC_SCORES: (f32, f32) = (6.0, 2.5);

impl Pipeline {
    /// The denoiser's context: the negative prompt's sample first where `guided`, then the prompt's. `size`: the
    /// picture's `(height, width)`; `timesteps`: those of the run.
    pub(super) fn context(
        &self,
        request: &GenerationRequest,
        guidance_scale: f64,
        guided: bool,
        size: (usize, usize),
        timesteps: &[f64],
    ) -> Result<Context> {
        match &self.denoiser {
            Denoiser::Unet(unet) => self.unet_context(unet, request, guidance_scale, guided, size),
            Denoiser::Flux(flux) => self.flux_context(flux, request, guidance_scale, guided, timesteps),
        }
    }

    fn unet_context(
        &self,
        unet: &UNet2DCondition,
        request: &GenerationRequest,
        guidance_scale: f64,
        guided: bool,
        size: (usize, usize),
    ) -> Result<Context> {
        let encoders: Vec<&TextEncoder> = self.text_encoder.iter().chain(&self.text_encoder_2).collect();
        let Encoded { hidden, pooled } = self.encoding().encode(0, &encoders, request, guided)?;
        let added = match self.info.family {
            Family::Sd15 | Family::Sd21 | Family::Flux => None,
            Family::Sdxl => {
                let ids = time_ids(&request.micro_conditioning, size);
                Some(added(pooled, if guided { vec![ids.clone(), ids] } else { vec![ids] })?)
            }
            Family::SdxlRefiner => {
                Some(added(pooled, aesthetic_ids(&request.micro_conditioning, size, guided))?)
            }
        };
        let guidance = Some(guidance_scale);
        Ok(Context::Unet(unet.context(&Conditioning { prompt_embeds: hidden, added, guidance })?))
    }

    /// The same for the refiner.
    pub(super) fn refiner_context(
        &self,
        refiner: &Refiner,
        request: &GenerationRequest,
        guided: bool,
        size: (usize, usize),
    ) -> Result<Context> {
        let Denoiser::Unet(unet) = &refiner.unet else {
            return Err(Error::invalid("a refiner is a UNet"));
        };
        let Encoded { hidden, pooled } =
            self.encoding().encode(1, &[&refiner.text_encoder_2], request, guided)?;
        let added = added(pooled, aesthetic_ids(&request.micro_conditioning, size, guided))?;
        let conditioning = Conditioning { prompt_embeds: hidden, added: Some(added), guidance: None };
        Ok(Context::Unet(unet.context(&conditioning)?))
    }

    fn encoding(&self) -> PromptEncoding<'_> {
        PromptEncoding {
            cache: &self.prompts,
            family: self.info.family,
            force_zeros_for_empty_prompt: self.force_zeros_for_empty_prompt,
        }
    }
}

/// What the encoding of Stable Diffusion's prompts depends on, beside the encoders.
pub(super) struct PromptEncoding<'a> {
    pub(super) cache: &'a PromptCache,
    pub(super) family: Family,
    pub(super) force_zeros_for_empty_prompt: bool,
}

impl PromptEncoding<'_> {
    /// Encodes the negative prompt (where `guided`) and the prompt with every encoder. `set` is 0 for the base model's
    /// encoders and 1 for the refiner's.
    pub(super) fn encode(
        &self,
        set: usize,
        encoders: &[&TextEncoder],
        request: &GenerationRequest,
        guided: bool,
    ) -> Result<Encoded> {
        let zeros = guided && request.negative_prompt.is_none() && self.force_zeros_for_empty_prompt;
        let prompt = Prompt { text: &request.prompt, clip_skip: request.clip_skip };
        let negative = Prompt::new(request.negative_prompt.as_deref().unwrap_or(""));
        let prompts = if guided && !zeros { vec![negative, prompt] } else { vec![prompt] };
        let states = match self.family {
            Family::Sd15 | Family::Sd21 | Family::Flux => HiddenStates::Final,
            Family::Sdxl | Family::SdxlRefiner => HiddenStates::Penultimate,
        };
        let key = PromptKey {
            encoders: set,
            prompts: prompts.iter().map(|p| (p.text.to_owned(), p.clip_skip)).collect(),
        };
        let Encoded { hidden, pooled } = self.cache.get(key, || encode(encoders, &prompts, states))?;
        if !zeros {
            return Ok(Encoded { hidden, pooled });
        }
        let with_zeros = |t: &Tensor| Tensor::cat(&[&t.zeros_like()?, t], 0);
        Ok(Encoded { hidden: with_zeros(&hidden)?, pooled: pooled.as_ref().map(with_zeros).transpose()? })
    }
}

fn added(pooled: Option<Tensor>, time_ids: Vec<Vec<f32>>) -> Result<AddedConditioning> {
    let missing = || Error::invalid("text_encoder_2 has no text_projection, which this model needs");
    let pooled_prompt_embeds = pooled.ok_or_else(missing)?.to_dtype(DType::F32)?;
    Ok(AddedConditioning { pooled_prompt_embeds, time_ids })
}

/// Original size, crop corner, target size; `size` is the picture's `(height, width)`.
fn time_ids(micro: &MicroConditioning, size: (usize, usize)) -> Vec<f32> {
    let pairs =
        [micro.original_size.unwrap_or(size), micro.crops_coords_top_left, micro.target_size.unwrap_or(size)];
    pairs.iter().flat_map(|&(h, w)| [h as f32, w as f32]).collect()
}

/// The refiner's: an aesthetic score in place of the target size.
fn aesthetic_ids(micro: &MicroConditioning, size: (usize, usize), guided: bool) -> Vec<Vec<f32>> {
    let ids = |score: f32| {
        let mut ids = time_ids(micro, size);
        ids.truncate(4);
        ids.push(score);
        ids
    };
    let (good, bad) = AESTHETIC_SCORES;
    if guided { vec![ids(bad), ids(good)] } else { vec![ids(good)] }
}
