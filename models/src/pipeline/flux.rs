//! What only FLUX does on the way from a request to a picture.
//!
//! Source: diffusers' `FluxPipeline`, `FluxImg2ImgPipeline`, `FluxInpaintPipeline`, `FluxFillPipeline` and
//! `FluxKontextPipeline`.

use candle_core::{Device, Tensor};
use image::RgbImage;

use super::{GenerationRequest, Mode, Pipeline};
use crate::denoiser::{Context, FluxConditioning, FluxContext, FluxTransformer};
use crate::text::cache::{PromptCache, PromptKey};
use crate::text::t5::T5Encoder;
use crate::text::{Encoded, TextEncoder};
use crate::vae::picture;
use crate::{Error, Result};

/// The longest prompt in T5 tokens: what dev was trained with.
pub(super) const MAX_SEQUENCE_LENGTH: usize = 512;

/// Sizes, `(width, height)`, that Kontext was trained to be shown.
const REFERENCE_SIZES: [(usize, usize); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// Tokens of the largest of them.
pub(super) const REFERENCE_TOKENS: u64 = 1328 / 16 * (800 / 16);

/// FLUX's text encoders, and what they encoded before.
pub(super) struct FluxEncoders<'a> {
    pub(super) clip: &'a TextEncoder,
    pub(super) t5: &'a T5Encoder,
    pub(super) cache: &'a PromptCache,
    pub(super) device: &'a Device,
}

impl FluxEncoders<'_> {
    /// T5's hidden states and CLIP's pooled vector. Both encoders take the text as it is, brackets included, as
    /// diffusers does: FLUX was trained on sentences, and nothing weights the words of T5. `length`: tokens of T5, where
    /// the request does not say.
    pub(super) fn encode(
        &self,
        request: &GenerationRequest,
        length: usize,
        prompts: &[&str],
    ) -> Result<(Tensor, Tensor)> {
        let length = request.max_sequence_length.unwrap_or(length);
        if !(1..=MAX_SEQUENCE_LENGTH).contains(&length) {
            return Err(Error::invalid(format!(
                "max_sequence_length is {length}: 1 to {MAX_SEQUENCE_LENGTH} is allowed"
            )));
        }
        // The length is part of the key in clip_skip's place, which FLUX does not have.
        let key = PromptKey {
            encoders: 0,
            prompts: prompts.iter().map(|prompt| ((*prompt).to_owned(), length)).collect(),
        };
        let encode = || -> Result<Encoded> {
            let pooled = self.clip.pooled(prompts)?;
            let hidden = self.t5.encode(prompts, length)?.to_device(self.device)?;
            Ok(Encoded { hidden, pooled: Some(pooled) })
        };
        let Encoded { hidden, pooled } = self.cache.get(key, encode)?;
        let pooled = pooled.ok_or_else(|| Error::invalid("FLUX needs a pooled prompt"))?;
        Ok((hidden, pooled))
    }
}

impl Pipeline {
    /// The transformer's context for the timesteps of a run: the negative prompt's sample first where there is true
    /// classifier-free guidance, then the prompt's.
    pub(super) fn flux_context(
        &self,
        flux: &FluxTransformer,
        request: &GenerationRequest,
        guidance_scale: f64,
        guided: bool,
        timesteps: &[f64],
    ) -> Result<Context> {
        let negative = request.negative_prompt.as_deref().filter(|_| guided);
        let prompts: Vec<&str> = negative.into_iter().chain([request.prompt.as_str()]).collect();
        let (Some(clip), Some(t5)) = (&self.text_encoder, &self.t5) else {
            return Err(Error::invalid("FLUX needs text_encoder and text_encoder_2"));
        };
        let encoders = FluxEncoders { clip, t5, cache: &self.prompts, device: &self.device };
        let (hidden, pooled) = encoders.encode(request, self.max_sequence_length, &prompts)?;
        let reference = self.reference(request)?;
        let context = |i: usize| {
            let conditioning = FluxConditioning {
                prompt_embeds: hidden.narrow(0, i, 1)?,
                pooled_prompt_embeds: pooled.narrow(0, i, 1)?,
                guidance: Some(guidance_scale),
                reference: reference.iter().cloned().collect(),
            };
            flux.context(&conditioning, timesteps)
        };
        let contexts = (0..prompts.len()).map(context).collect::<Result<Vec<_>>>()?;
        Ok(Context::Flux(FluxContext::cat(&contexts.iter().collect::<Vec<_>>())?))
    }

    /// What Kontext is shown: the latents of the request's picture, at the nearest of the sizes it was trained on.
    fn reference(&self, request: &GenerationRequest) -> Result<Option<Tensor>> {
        let image = match &request.mode {
            Mode::ImageToImage { image, .. } | Mode::Inpaint { image, .. } if self.info.edits_pictures => {
                image
            }
            _ => return Ok(None),
        };
        let (width, height) = reference_size(image);
        let pixels = picture::from_picture(&picture::resize(image, width, height)?, &self.device)?;
        let distribution = match self.tiles(width * height) {
            true => self.vae.encode_tiled(&pixels, self.vae.config().tile_px())?,
            false => self.vae.encode(&pixels)?,
        };
        Ok(Some(self.vae.scale_latents(distribution.mode())?))
    }
}

/// The size whose proportions are nearest; of two equally near the narrower, as in diffusers.
fn reference_size(image: &RgbImage) -> (usize, usize) {
    let wanted = f64::from(image.width()) / f64::from(image.height().max(1));
    let distance = |(w, h): (usize, usize)| (wanted - w as f64 / h as f64).abs();
    let nearest = |best: (usize, usize), size| if distance(size) < distance(best) { size } else { best };
    REFERENCE_SIZES.into_iter().reduce(nearest).unwrap_or((1024, 1024))
}

/// The mask as Fill sees it: the pixels under each latent as its channels, row by row.
///
/// `mask`: `(1, height, width, 1)`; returns `(1, height / scale, width / scale, scale * scale)`.
pub(super) fn mask_channels(mask: &Tensor, scale: usize) -> Result<Tensor> {
    let (_, height, width, _) = mask.dims4()?;
    let (rows, columns) = (height / scale, width / scale);
    let blocks = mask.reshape((rows, scale, columns, scale))?.permute((0, 2, 1, 3))?;
    Ok(blocks.contiguous()?.reshape((1, rows, columns, scale * scale))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_reference_keeps_its_proportions_as_near_as_training_allows() {
        for (width, height, expected) in [
            (512, 512, (1024, 1024)),
            (100, 1000, (672, 1568)),
            (1920, 1080, (1392, 752)),
            (3, 2, (1248, 832)),
        ] {
            assert_eq!(reference_size(&RgbImage::new(width, height)), expected, "{width} x {height}");
        }
    }

    #[test]
    fn a_latent_sees_the_mask_of_its_own_pixels() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mask = Tensor::from_vec(values, (1, 4, 6, 1), &Device::Cpu).unwrap();
        let channels = mask_channels(&mask, 2).unwrap();
        assert_eq!(channels.dims(), [1, 2, 3, 4]);
        let first = channels.narrow(2, 1, 1).unwrap().narrow(1, 1, 1).unwrap();
        // Pixels (2, 2), (2, 3), (3, 2), (3, 3) of rows of 6.
        assert_eq!(first.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [14.0, 15.0, 20.0, 21.0]);
    }
}
