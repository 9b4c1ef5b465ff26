//! From a request to the first latents.

use candle_core::{D, Tensor};
use image::{GrayImage, RgbImage};

use super::denoising::{Inpaint, Stage};
use super::flux::{REFERENCE_TOKENS, mask_channels};
use super::memory::Extent;
use super::variation::slerp;
use super::{Denoising, Family, GenerationRequest, MaskedContent, Mode, Pipeline, Variation, latent_resize};
use crate::denoiser::Denoiser;
use crate::noise::TorchGenerator;
use crate::sampler::{FlowMatch, Sampler, SamplerSettings};
use crate::schedule::SchedulerConfig;
use crate::vae::picture;
use crate::{Error, Result};

/// The largest side of a picture: beyond it attention over pixels is no longer a sensible request.
const MAX_SIDE_PX: usize = 4096;

impl Pipeline {
    /// Checks a request, encodes its prompts and draws or encodes its first latents.
    ///
    /// Random values are drawn in diffusers' order: a picture's latents, the noise, the masked picture's latents.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field, its value and what is allowed.
    pub fn start(&self, request: &GenerationRequest) -> Result<Denoising> {
        let info = self.info();
        let (width, height) =
            (request.width.unwrap_or(info.native_size_px), request.height.unwrap_or(info.native_size_px));
        for (name, side) in [("width", width), ("height", height)] {
            if side == 0 || side > MAX_SIDE_PX {
                return Err(Error::invalid(format!(
                    "{name} is {side}: 1 to {MAX_SIDE_PX} pixels are allowed"
                )));
            }
        }
        let steps = request.num_inference_steps.unwrap_or(info.num_inference_steps);
        let guidance_scale = request.guidance_scale.unwrap_or_else(|| info.guidance_scale_for(&request.mode));
        if !guidance_scale.is_finite() || !(0.0..=100.0).contains(&guidance_scale) {
            return Err(Error::invalid(format!("guidance_scale is {guidance_scale}: 0 to 100 is allowed")));
        }
        let cfg_scale = self.cfg_scale(request, guidance_scale)?;
        let guided = cfg_scale.is_some();
        let features = request.step_cache.map(|cache| cache.features(&self.denoiser)).transpose()?.flatten();
        let rounded = |side: usize| side.next_multiple_of(info.multiple_px);
        let (rows, columns) = (rounded(height), rounded(width));

        let name = request.scheduler.as_deref().or(info.preset.and_then(|preset| preset.scheduler));
        let mut sampler = match self.info.family {
            Family::Flux => {
                // Its tokens are 2x2 latents.
                let tokens = (rows / info.multiple_px) * (columns / info.multiple_px);
                let flow = name.map_or_else(
                    || FlowMatch::from_config(&self.scheduler),
                    |name| FlowMatch::named(name, &self.scheduler),
                )?;
                flow.sampler(steps, tokens)?
            }
            _ => sampler(name, &self.scheduler, steps)?,
        };
        if let Mode::ImageToImage { strength, .. } | Mode::Inpaint { strength, .. } = request.mode {
            start_at_strength(&mut sampler, strength)?;
        }
        let refiner = self.start_refiner(request, &mut sampler, steps, guidance_scale, (rows, columns))?;
        let extent = self.extent(request, (rows, columns), if guided { 2 } else { 1 });
        self.memory.check(&extent, self.memory.room_on(&self.device))?;
        let timesteps = &sampler.timesteps()[sampler.position()..sampler.len()];
        let context = self.context(request, guidance_scale, guided, (rows, columns), timesteps)?;
        let mut noise = TorchGenerator::new(request.seed);
        let (latents, inpaint) = self.first_latents(request, &sampler, &mut noise, rows, columns)?;
        Ok(Denoising {
            width: width as u32,
            height: height as u32,
            latents,
            last: None,
            noise,
            stage: Stage {
                began_at: sampler.position(),
                sampler,
                context,
                joined: None,
                guidance_scale: cfg_scale,
                refining: false,
                features,
            },
            refiner,
            inpaint,
            extent,
            done: 0,
        })
    }

    /// The most that is in memory while a picture is made, in bytes, by the planner's estimate. Guidance is taken to be
    /// what the request or the model says.
    pub fn memory_for(&self, request: &GenerationRequest) -> u64 {
        let side = |side: Option<usize>| {
            side.unwrap_or(self.info.native_size_px).next_multiple_of(self.info.multiple_px)
        };
        let guidance_scale = request.guidance_scale.unwrap_or(self.info.guidance_scale);
        let guided = self.cfg_scale(request, guidance_scale).is_ok_and(|scale| scale.is_some());
        let size = (side(request.height), side(request.width));
        let extent = self.extent(request, size, if guided { 2 } else { 1 });
        self.memory.peak(&extent, self.vae_tiling)
    }

    /// Whether the VAE works in tiles: because that was asked for, or nothing else fits.
    pub(super) fn tiles(&self, pixels: usize) -> bool {
        let picture = Extent { pixels: pixels as u64, ..Extent::default() };
        self.vae_tiling || self.memory.needs_tiles(&picture, self.memory.room_on(&self.device))
    }

    fn extent(&self, request: &GenerationRequest, (rows, columns): (usize, usize), samples: u64) -> Extent {
        let tokens = (rows / self.info.multiple_px) * (columns / self.info.multiple_px);
        let reference = match request.mode {
            Mode::TextToImage => 0,
            _ if self.info.edits_pictures => REFERENCE_TOKENS,
            _ => 0,
        };
        Extent {
            pixels: (rows * columns) as u64,
            image_tokens: tokens as u64 + reference,
            text_tokens: request.max_sequence_length.unwrap_or(self.max_sequence_length) as u64,
            samples,
            step_cache: request.step_cache,
        }
    }

    /// The scale of classifier-free guidance, where the denoiser is to run twice a step.
    fn cfg_scale(&self, request: &GenerationRequest, guidance_scale: f64) -> Result<Option<f64>> {
        match &self.denoiser {
            Denoiser::Unet(_) if request.true_cfg_scale.is_some() => {
                Err(Error::invalid("true_cfg_scale is for FLUX: this model's guidance is guidance_scale"))
            }
            Denoiser::Unet(_) if request.max_sequence_length.is_some() => {
                Err(Error::invalid("max_sequence_length is for FLUX: this model reads prompts of any length"))
            }
            // A denoiser that was told of the guidance needs no second run.
            Denoiser::Unet(unet) => {
                let outside = unet.config().time_cond_proj_dim.is_none();
                Ok((guidance_scale > 1.0 && outside).then_some(guidance_scale))
            }
            Denoiser::Flux(_) => {
                let scale = request.true_cfg_scale.unwrap_or(1.0);
                if !(0.0..=100.0).contains(&scale) {
                    return Err(Error::invalid(format!("true_cfg_scale is {scale}: 0 to 100 is allowed")));
                }
                Ok((scale > 1.0 && request.negative_prompt.is_some()).then_some(scale))
            }
        }
    }

    /// Cuts the base's schedule where the refiner takes over, and prepares the refiner's share.
    fn start_refiner(
        &self,
        request: &GenerationRequest,
        base: &mut Sampler,
        steps: usize,
        guidance_scale: f64,
        size: (usize, usize),
    ) -> Result<Option<Stage>> {
        let Some(refiner) = &self.refiner else { return Ok(None) };
        base.end_at(base.index_of_denoising_end(refiner.starts_at));
        let mut sampler = sampler(request.scheduler.as_deref(), &refiner.scheduler, steps)?;
        sampler.start_at(sampler.index_of_denoising_start(refiner.starts_at));
        let guided = guidance_scale > 1.0;
        let context = self.refiner_context(refiner, request, guided, size)?;
        Ok(Some(Stage {
            began_at: sampler.position(),
            sampler,
            context,
            joined: None,
            guidance_scale: guided.then_some(guidance_scale),
            refining: true,
            // Its few steps are all computed.
            features: None,
        }))
    }

    fn first_latents(
        &self,
        request: &GenerationRequest,
        sampler: &Sampler,
        noise: &mut TorchGenerator,
        rows: usize,
        columns: usize,
    ) -> Result<(Tensor, Option<Inpaint>)> {
        let channels = self.vae.config().latent_channels;
        let scale = self.vae.downscale();
        let (height, width) = (rows / scale, columns / scale);
        // The noise that the picture comes from, as opposed to what samples the VAE's distribution.
        let first_noise = |noise: &mut TorchGenerator| {
            let drawn = noise.latents(channels, height, width, &self.device)?;
            let Some(Variation { seed, strength }) = request.variation else { return Ok(drawn) };
            let other = TorchGenerator::new(seed).latents(channels, height, width, &self.device)?;
            slerp(&drawn, &other, strength)
        };
        let draw = |noise: &mut TorchGenerator| noise.latents(channels, height, width, &self.device);
        let (needs_mask, edits) = (self.info.needs_mask, self.info.edits_pictures);
        match &request.mode {
            Mode::TextToImage if needs_mask => {
                Err(Error::invalid("this model is for inpainting: an image and a mask are needed"))
            }
            Mode::ImageToImage { .. } if needs_mask => {
                Err(Error::invalid("this model is for inpainting: a mask is needed beside the image"))
            }
            Mode::TextToImage => Ok(((first_noise(noise)? * sampler.init_noise_sigma())?, None)),
            // The picture is seen beside the latents; they need not come from it too.
            Mode::ImageToImage { strength, .. } if edits && *strength >= 1.0 => {
                Ok((first_noise(noise)?, None))
            }
            Mode::ImageToImage { image, .. } => {
                let latents = match request.latent_resize {
                    None => self.encode_picture(&self.pixels(image, rows, columns)?, &draw(noise)?)?,
                    Some(how) => {
                        let latents = self.encode_at_own_size(image, noise)?;
                        latent_resize::resize(&latents, height, width, how)?
                    }
                };
                Ok((sampler.add_noise(&latents, &first_noise(noise)?, sampler.position())?, None))
            }
            Mode::Inpaint { image, mask, strength } => {
                let pixels = self.pixels(image, rows, columns)?;
                let mask = self.mask(mask, rows, columns)?;
                let from_noise = *strength >= 1.0;
                // diffusers encodes, and so draws, for FLUX in any case.
                let flux = self.info.family == Family::Flux;
                let image_latents = if flux || !needs_mask || !from_noise {
                    Some(self.encode_picture(&pixels, &draw(noise)?)?)
                } else {
                    None
                };
                let first = first_noise(noise)?;
                let small_mask = picture::mask_to_latents(&mask, scale)?;
                let latents = match &image_latents {
                    Some(image_latents) if !from_noise => {
                        let start = masked(image_latents, &small_mask, &first, request.masked_content)?;
                        sampler.add_noise(&start, &first, sampler.position())?
                    }
                    _ => (&first * sampler.init_noise_sigma())?,
                };
                // diffusers encodes the masked picture in both kinds, and so draws in both.
                let third = draw(noise)?;
                let inpaint = match image_latents {
                    Some(image_latents) if !needs_mask => {
                        Inpaint::Blend { mask: small_mask, image_latents, noise: first }
                    }
                    _ => {
                        let masked = picture::masked_image(&pixels, &mask)?;
                        let masked = self.encode_picture(&masked, &third)?;
                        let extra = match flux {
                            true => [masked, mask_channels(&mask, scale)?],
                            false => [small_mask, masked],
                        };
                        Inpaint::Concatenate(Tensor::cat(&extra, D::Minus1)?)
                    }
                };
                Ok((latents, Some(inpaint)))
            }
        }
    }

    /// Scaled latents of a picture at its own size, rounded up to what the model can make.
    fn encode_at_own_size(&self, image: &RgbImage, noise: &mut TorchGenerator) -> Result<Tensor> {
        let (channels, scale) = (self.vae.config().latent_channels, self.vae.downscale());
        let rounded = |side: u32| (side as usize).next_multiple_of(self.info.multiple_px);
        let (rows, columns) = (rounded(image.height()), rounded(image.width()));
        let drawn = noise.latents(channels, rows / scale, columns / scale, &self.device)?;
        self.encode_picture(&self.pixels(image, rows, columns)?, &drawn)
    }

    /// Scaled latents of a picture, one sample of the distribution the VAE gives.
    fn encode_picture(&self, pixels: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let (_, rows, columns, _) = pixels.dims4()?;
        let distribution = match self.tiles(rows * columns) {
            true => self.vae.encode_tiled(pixels, self.vae.config().tile_px())?,
            false => self.vae.encode(pixels)?,
        };
        self.vae.scale_latents(&distribution.sample(noise)?)
    }

    /// `(1, rows, columns, 3)` in -1..1.
    fn pixels(&self, image: &RgbImage, rows: usize, columns: usize) -> Result<Tensor> {
        if image.dimensions() == (columns as u32, rows as u32) {
            return picture::from_picture(image, &self.device);
        }
        picture::from_picture(&picture::resize(image, columns, rows)?, &self.device)
    }

    /// `(1, rows, columns, 1)`: 1 is repainted.
    fn mask(&self, mask: &GrayImage, rows: usize, columns: usize) -> Result<Tensor> {
        if mask.dimensions() == (columns as u32, rows as u32) {
            return picture::from_mask(mask, &self.device);
        }
        picture::from_mask(&picture::resize_mask(mask, columns, rows)?, &self.device)
    }
}

/// The latents with other content where the mask is 1.
fn masked(latents: &Tensor, mask: &Tensor, noise: &Tensor, content: MaskedContent) -> Result<Tensor> {
    let kept = || latents.broadcast_mul(&mask.affine(-1.0, 1.0)?);
    Ok(match content {
        MaskedContent::Picture => latents.clone(),
        MaskedContent::Zeros => kept()?,
        MaskedContent::Noise => (kept()? + noise.broadcast_mul(mask)?)?,
    })
}

fn sampler(name: Option<&str>, base: &SchedulerConfig, steps: usize) -> Result<Sampler> {
    match name {
        Some(name) => SamplerSettings::named(name, base)?.sampler(steps),
        None => SamplerSettings::from_config(base)?.sampler(steps),
    }
}

/// Leaves out the part of the schedule that an initial picture has behind it.
fn start_at_strength(sampler: &mut Sampler, strength: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&strength) {
        return Err(Error::invalid(format!("strength is {strength}: 0 to 1 is allowed")));
    }
    let start = sampler.index_of_strength(strength);
    if start >= sampler.len() {
        return Err(Error::invalid(format!(
            "strength {strength} leaves no step: strength * num_inference_steps must be at least 1"
        )));
    }
    sampler.start_at(start);
    Ok(())
}
