//! Reading a model folder of FLUX into a [`Pipeline`].

use std::sync::OnceLock;

use candle_core::Device;

use super::flux::{MAX_SEQUENCE_LENGTH, T5};
use super::load::{ModelIndex, PROMPTS_KEPT, last_names, replaced_vae, scheduler, weight_bytes};
use super::{Family, LoadOptions, ModelInfo, Pipeline, Preset};
use crate::checkpoint::{ModelFolder, Weights};
use crate::denoiser::{Denoiser, FluxConfig, FluxTransformer};
use crate::sampler::{FlowMatch, flow_match};
use crate::text::TextEncoder;
use crate::text::cache::PromptCache;
use crate::text::t5::T5Encoder;
use crate::vae::{AutoencoderKl, AutoencoderKlConfig};
use crate::{Error, Result};

/// Side of the square pictures that FLUX.1 was trained on.
const NATIVE_SIZE_PX: usize = 1024;

/// Schnell was trained on shorter prompts than dev.
const SCHNELL_SEQUENCE_LENGTH: usize = 256;

/// Whether a `model_index.json` is of FLUX.
pub(super) fn is_flux(index: &ModelIndex) -> bool {
    index._class_name.starts_with("Flux")
}

impl Pipeline {
    pub(super) fn load_flux(
        folder: &ModelFolder,
        index: &ModelIndex,
        options: &LoadOptions,
        device: Device,
    ) -> Result<Self> {
        if let Some(path) = &options.refiner {
            return Err(Error::file(path, "a refiner is SDXL's second stage, this model is flux"));
        }
        if let Some(path) = options.textual_inversions.first() {
            return Err(Error::file(
                path,
                "textual inversions are for Stable Diffusion: FLUX sees words through T5",
            ));
        }
        let dtype = options.precision.dtype();
        let config: FluxConfig = folder.json("transformer/config.json")?;
        let weights = match &options.unet {
            None => folder.weights("transformer", dtype, &device)?,
            Some(path) => Weights::open("transformer", &[path.clone()], dtype, &device)?,
        };
        let vae = match &options.vae {
            None => AutoencoderKl::load(folder, "vae", dtype, &device)?,
            Some(path) => replaced_vae(path, folder, dtype, &device)?,
        };
        let info = info(folder, index, options, &config, vae.config())?;
        let scheduler = scheduler(folder, Family::Flux)?;
        FlowMatch::from_config(&scheduler).map_err(|e| Error::file(folder.path("scheduler"), e))?;
        let max_sequence_length = match config.guidance_embeds {
            true => MAX_SEQUENCE_LENGTH,
            false => SCHNELL_SEQUENCE_LENGTH,
        };
        let transformer = FluxTransformer::new(config, &weights).map_err(|e| match e {
            Error::Invalid(text) => Error::file(folder.path("transformer/config.json"), text),
            other => other,
        })?;
        let t5 = T5Encoder::load(folder, "text_encoder_2", "tokenizer_2", dtype, &device)?;
        Ok(Self {
            info: ModelInfo { device: super::load::device_name(&device), ..info },
            text_encoder: Some(TextEncoder::load(folder, "text_encoder", "tokenizer", dtype, &device)?),
            text_encoder_2: None,
            t5: Some(T5::Resident(t5)),
            denoiser: Denoiser::Flux(transformer),
            vae,
            vae_tiling: options.vae_tiling,
            scheduler,
            force_zeros_for_empty_prompt: false,
            max_sequence_length,
            loras: Default::default(),
            lora_preset: None,
            refiner: None,
            prompts: PromptCache::new(PROMPTS_KEPT),
            preview: OnceLock::new(),
            weight_bytes: weight_bytes(folder),
            device,
        })
    }

    /// What a model of FLUX would be.
    pub(super) fn describe_flux(folder: &ModelFolder, index: &ModelIndex) -> Result<ModelInfo> {
        let config: FluxConfig = folder.json("transformer/config.json")?;
        let vae: AutoencoderKlConfig = folder.json("vae/config.json")?;
        info(folder, index, &LoadOptions::default(), &config, &vae)
    }
}

/// What a model is, but for the device.
fn info(
    folder: &ModelFolder,
    index: &ModelIndex,
    options: &LoadOptions,
    config: &FluxConfig,
    vae: &AutoencoderKlConfig,
) -> Result<ModelInfo> {
    let (latents, scale) = (vae.latent_channels, vae.downscale());
    // Fill's tokens hold the latents, those of the masked picture, and the mask's pixels.
    let (plain, fill) = (4 * latents, 4 * (2 * latents + scale * scale));
    if config.in_channels != plain && config.in_channels != fill {
        return Err(Error::file(
            folder.path("transformer/config.json"),
            format!(
                "in_channels is {}: {plain} (text and image to image) and {fill} (Fill) fit this VAE; control models \
                 are not supported",
                config.in_channels
            ),
        ));
    }
    let edits_pictures = index._class_name.contains("Kontext");
    let path = options.unet.clone().unwrap_or_else(|| folder.path(""));
    let named = Preset::of_model(&last_names(&path));
    let preset = match (config.guidance_embeds, config.in_channels == fill) {
        (_, true) => Preset::FLUX_FILL,
        (false, _) => Preset::FLUX_SCHNELL,
        (true, _) if edits_pictures => Preset::FLUX_KONTEXT,
        (true, _) => named.unwrap_or(Preset::FLUX_DEV),
    };
    let info = ModelInfo {
        name: folder.name(),
        family: Family::Flux,
        native_size_px: NATIVE_SIZE_PX,
        multiple_px: 2 * scale,
        num_inference_steps: 0,
        guidance_scale: 0.0,
        scheduler: flow_match::CLASS_NAME.to_owned(),
        device: String::new(),
        needs_mask: config.in_channels == fill,
        edits_pictures,
        random_weights: false,
        preset: None,
        memory: None,
        fallback_for: None,
    };
    let mut info = info.with(preset);
    info.num_inference_steps = index.default_num_inference_steps.unwrap_or(info.num_inference_steps);
    info.guidance_scale = index.default_guidance_scale.unwrap_or(info.guidance_scale);
    Ok(info)
}
