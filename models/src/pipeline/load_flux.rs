//! Reading a model folder of FLUX into a [`Pipeline`].

use std::sync::OnceLock;

use candle_core::{DType, Device};

use super::flux::{FluxEncoders, MAX_SEQUENCE_LENGTH};
use super::load::{
    ModelIndex, PROMPTS_KEPT, has_random_weights, last_names, replaced_vae, scheduler, weight_bytes,
};
use super::memory::flux::{WeightSizes, Widths};
use super::memory::{Budget, Extent, FluxNeeds, MemoryPlan, Needs, Place, overhead};
use super::{DeviceShare, Family, LoadOptions, ModelInfo, Pipeline, Precision, Preset};
use crate::checkpoint::flux_shape::shape_facts;
use crate::checkpoint::{ModelFolder, Weights};
use crate::denoiser::flux::{BlockWeights, FluxOptions, ModulationWeights};
use crate::denoiser::{Denoiser, FluxConfig, FluxTransformer};
use crate::sampler::{FlowMatch, flow_match};
use crate::text::TextEncoder;
use crate::text::cache::PromptCache;
use crate::text::t5::{T5_LAYER, T5Encoder, T5Options};
use crate::vae::{AutoencoderKl, AutoencoderKlConfig};
use crate::{Error, Result};

/// Side of the square pictures that FLUX.1 was trained on.
const NATIVE_SIZE_PX: usize = 1024;

/// Schnell was trained on shorter prompts than dev.
const SCHNELL_SEQUENCE_LENGTH: usize = 256;

/// By what the residual stream is divided in f16: values up to 4 million fit.
const HALF_RESIDUAL_SCALE: f64 = 64.0;

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
        let share = DeviceShare(device.clone());
        if let Some(path) = &options.refiner {
            return Err(Error::file(path, "a refiner is SDXL's second stage, this model is flux"));
        }
        if let Some(path) = options.textual_inversions.first() {
            return Err(Error::file(
                path,
                "textual inversions are for Stable Diffusion: FLUX sees words through T5",
            ));
        }
        let dtype = options.precision.dtype(&device);
        let config = config(folder, options, &device)?;
        let vae_config: AutoencoderKlConfig = folder.json("vae/config.json")?;
        let info = info(folder, index, options, &config, &vae_config)?;
        let scheduler = scheduler(folder, Family::Flux)?;
        FlowMatch::from_config(&scheduler).map_err(|e| Error::file(folder.path("scheduler"), e))?;
        let parts = Parts { folder, options, config: &config, dtype, device: &device };
        let needs = parts.memory(&vae_config)?;
        let room = super::memory::room(options.memory_bytes, &device);
        let plan = MemoryPlan::new(&needs, room, &extent(&info, max_sequence_length(&config)))?;
        tracing::info!("memory: {plan}");
        let (prompts, length) = (PromptCache::new(PROMPTS_KEPT), max_sequence_length(&config));
        // Most of what is read is the transformer. What is needed before it, and after, is loaded and used meanwhile.
        let (rest, transformer) = std::thread::scope(|scope| {
            let transformer =
                scope.spawn(|| parts.transformer(plan.modulation, plan.blocks, plan.eight_bits));
            let rest = || -> Result<_> {
                let (clip, t5) = (parts.text_encoder()?, parts.t5(plan.t5, plan.eight_bits)?);
                if let Some(request) = &options.first_request {
                    let encoders = FluxEncoders { clip: &clip, t5: &t5, cache: &prompts, device: &device };
                    // What is wrong with it is told when it is asked for.
                    let _encoded = encoders.encode(request, length, &[&request.prompt]);
                }
                let vae = match &options.vae {
                    None => AutoencoderKl::load(folder, "vae", dtype, &device)?,
                    Some(path) => replaced_vae(path, folder, dtype, &device)?,
                };
                Ok((clip, t5, vae))
            };
            (rest(), transformer.join())
        });
        let transformer = transformer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (clip, t5, vae) = rest?;
        Ok(Self {
            info: ModelInfo { device: super::load::device_name(&device), memory: Some(plan), ..info },
            text_encoder: Some(clip),
            text_encoder_2: None,
            t5: Some(t5),
            denoiser: Denoiser::Flux(Box::new(transformer)),
            vae,
            vae_tiling: options.vae_tiling || plan.vae_tiling,
            scheduler,
            force_zeros_for_empty_prompt: false,
            max_sequence_length: length,
            loras: Default::default(),
            lora_preset: None,
            refiner: None,
            prompts,
            preview: OnceLock::new(),
            weight_bytes: weight_bytes(folder),
            memory: Budget::new(Needs::Flux(needs, plan), room, options.memory_bytes.is_some()),
            device,
            _memory: share,
        })
    }

    /// What a model of FLUX would be.
    pub(super) fn describe_flux(folder: &ModelFolder, index: &ModelIndex) -> Result<ModelInfo> {
        let config = config(folder, &LoadOptions::default(), &Device::Cpu)?;
        let vae: AutoencoderKlConfig = folder.json("vae/config.json")?;
        info(folder, index, &LoadOptions::default(), &config, &vae)
    }
}

/// The transformer's config: the folder's, or what the tensors of a file in its place say.
fn config(folder: &ModelFolder, options: &LoadOptions, device: &Device) -> Result<FluxConfig> {
    let file = "transformer/config.json";
    let config: FluxConfig = if folder.contains(file) { folder.json(file)? } else { FluxConfig::default() };
    let weights = match &options.unet {
        Some(path) => Weights::open("transformer", std::slice::from_ref(path), None, device)?,
        None if folder.contains(file) => return Ok(config),
        None => folder.weights("transformer", None, device)?,
    };
    let shape = shape_facts(&weights)?;
    Ok(FluxConfig {
        in_channels: shape.in_channels,
        out_channels: Some(shape.out_channels),
        num_layers: shape.double_blocks,
        num_single_layers: shape.single_blocks,
        attention_head_dim: shape.head_dim,
        num_attention_heads: shape.heads(),
        joint_attention_dim: shape.joint_attention_dim,
        pooled_projection_dim: shape.pooled_projection_dim,
        guidance_embeds: shape.guidance_embeds,
        // These cannot be seen in a file.
        patch_size: config.patch_size,
        axes_dims_rope: config.axes_dims_rope,
    })
}

/// The parts of a model that may be held in different ways.
struct Parts<'a> {
    folder: &'a ModelFolder,
    options: &'a LoadOptions,
    config: &'a FluxConfig,
    dtype: Option<DType>,
    device: &'a Device,
}

impl Parts<'_> {
    fn transformer(&self, modulation: Place, blocks: Place, eight_bits: bool) -> Result<FluxTransformer> {
        let open = |dtype| match &self.options.unet {
            None => self.folder.weights("transformer", dtype, self.device),
            Some(path) => Weights::open("transformer", std::slice::from_ref(path), dtype, self.device),
        };
        let weights = open(self.dtype_of("transformer_blocks.0.attn.to_q", open)?)?;
        let weights = weights.quantised(self.options.quantisation);
        let weights = if eight_bits { weights.in_eight_bits() } else { weights };
        let options = FluxOptions {
            modulation: match modulation {
                Place::Resident => ModulationWeights::Resident,
                Place::Streamed => ModulationWeights::Streamed,
            },
            blocks: match blocks {
                Place::Resident => BlockWeights::Resident,
                Place::Streamed => BlockWeights::Streamed,
            },
            ..self.activations()
        };
        FluxTransformer::with_options(self.config.clone(), &weights, options).map_err(|e| match e {
            Error::Invalid(text) => Error::file(self.folder.path("transformer/config.json"), text),
            other => other,
        })
    }

    /// The type for weights of which `layer` is one: unless it was asked for, those in a format of GGUF files keep it.
    fn dtype_of(
        &self,
        layer: &str,
        open: impl Fn(Option<DType>) -> Result<Weights>,
    ) -> Result<Option<DType>> {
        let chosen_here = self.dtype.is_some() && self.options.precision == Precision::Auto;
        Ok(if chosen_here && open(None)?.is_encoded(layer) { None } else { self.dtype })
    }

    /// f32 on the CPU, whose kernels know nothing else; 16 bits elsewhere, scaled where they could overflow.
    fn activations(&self) -> FluxOptions {
        let activations = match self.dtype {
            _ if self.device.is_cpu() => DType::F32,
            Some(dtype) => dtype,
            None => DType::BF16,
        };
        let residual_scale = if activations == DType::F16 { HALF_RESIDUAL_SCALE } else { 1.0 };
        FluxOptions { activations, residual_scale, ..FluxOptions::default() }
    }

    fn text_encoder(&self) -> Result<TextEncoder> {
        let file = self.options.text_encoder.as_deref();
        TextEncoder::load(self.folder, "text_encoder", "tokenizer", file, self.dtype, self.device)
    }

    fn t5(&self, place: Place, eight_bits: bool) -> Result<T5Encoder> {
        let streamed = place == Place::Streamed;
        let dtype = self.dtype_of(T5_LAYER, |dtype| match &self.options.t5 {
            None => self.folder.weights("text_encoder_2", dtype, self.device),
            Some(path) => Weights::open("text_encoder_2", std::slice::from_ref(path), dtype, self.device),
        })?;
        let options = T5Options { dtype, file: self.options.t5.as_deref(), streamed, eight_bits };
        T5Encoder::load(self.folder, "text_encoder_2", "tokenizer_2", &options, self.device)
    }

    /// What is needed: looked up with everything streamed, which reads almost nothing.
    fn memory(&self, vae: &AutoencoderKlConfig) -> Result<FluxNeeds> {
        let transformer = self.transformer(Place::Streamed, Place::Streamed, false)?;
        let t5 = self.t5(Place::Streamed, false)?;
        let (report, (t5_bytes, t5_transient)) = (transformer.weight_report(), t5.weight_bytes());
        let rest = [("text_encoder", &self.options.text_encoder), ("vae", &self.options.vae)];
        let rest = rest.map(|(part, file)| match file {
            None => super::memory::held_bytes(self.folder, part, self.dtype, self.device),
            // Widened to 32 bits at most.
            Some(path) => Ok(2 * path.metadata().map_or(0, |file| file.len())),
        });
        Ok(FluxNeeds {
            sizes: WeightSizes {
                blocks: report.blocks.total,
                modulation: report.modulation.total,
                embedders: report.other.total,
                transient: report.transient,
                t5: t5_bytes,
                t5_transient,
                rest: rest.into_iter().sum::<Result<u64>>()?,
                can_shrink: self.options.precision == Precision::Auto
                    && self.options.quantisation.is_none()
                    && transformer.weights().is_wide(),
            },
            widths: Widths {
                hidden: self.config.inner_dim() as u64,
                t5_inner: t5.model().config().d_ff as u64,
                vae: vae.block_out_channels.first().copied().unwrap_or(0) as u64,
                activation: self.activations().activations.size_in_bytes() as u64,
            },
            overhead: overhead(self.device),
        })
    }
}

/// A picture of the model's own size with the longest prompt.
fn extent(info: &ModelInfo, text_tokens: usize) -> Extent {
    let side = info.native_size_px as u64;
    let tokens = side / info.multiple_px.max(1) as u64;
    // Kontext sees a picture of the same size beside.
    let pictures = if info.edits_pictures { 2 } else { 1 };
    Extent {
        pixels: side * side,
        image_tokens: pictures * tokens * tokens,
        text_tokens: text_tokens as u64,
        samples: 1,
        step_cache: None,
    }
}

fn max_sequence_length(config: &FluxConfig) -> usize {
    if config.guidance_embeds { MAX_SEQUENCE_LENGTH } else { SCHNELL_SEQUENCE_LENGTH }
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
        random_weights: has_random_weights(folder),
        preset: None,
        memory: None,
        fallback_for: None,
    };
    let mut info = info.with(preset);
    info.num_inference_steps = index.default_num_inference_steps.unwrap_or(info.num_inference_steps);
    info.guidance_scale = index.default_guidance_scale.unwrap_or(info.guidance_scale);
    Ok(info)
}
