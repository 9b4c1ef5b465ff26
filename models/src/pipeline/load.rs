//! Reading a model folder into a [`Pipeline`].

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aquatint_kernels::EightBits;
use candle_core::{DType, Device};
use serde::Deserialize;

use super::conditioning::PromptEncoding;
use super::load_flux::is_flux;
use super::memory::{self, Budget, Needs, UnetNeeds};
use super::{DeviceShare, Family, GenerationRequest, ModelInfo, Pipeline, Preset, Refiner};
use crate::checkpoint::published::Dummy;
use crate::checkpoint::{ModelFolder, Weights, builtin};
use crate::denoiser::{Denoiser, UNet2DCondition, UnetConfig};
use crate::sampler::SamplerSettings;
use crate::schedule::SchedulerConfig;
use crate::text::TextEncoder;
use crate::text::cache::PromptCache;
use crate::text::textual_inversion::TextualInversion;
use crate::vae::{AutoencoderKl, AutoencoderKlConfig};
use crate::{Error, Result};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The tiny model in the program itself.
    Builtin,
    /// A folder in the diffusers layout, or a single file.
    Folder(PathBuf),
    /// Shapes with random weights, to measure with.
    Dummy(Dummy),
}

/// What weights are held in. Arithmetic on the CPU is f32 whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the checkpoint stores them, and f16 on GPUs that do not compute in bf16.
    #[default]
    Auto,
    /// 32 bits.
    Fp32,
    /// 16 bits, 5 of them exponent.
    Fp16,
    /// 16 bits, 8 of them exponent.
    Bf16,
}

impl Precision {
    /// The type for weights on a device; `None` is as stored.
    pub(super) fn dtype(self, device: &Device) -> Option<DType> {
        match self {
            Self::Auto => (!aquatint_kernels::computes_in_bf16(device)).then_some(DType::F16),
            Self::Fp32 => Some(DType::F32),
            Self::Fp16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
        }
    }
}

/// Which device to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU, or an error.
    Cuda,
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// What weights are held in.
    pub precision: Precision,
    /// What the matrices of the denoiser's transformer blocks and their inputs are rounded to, row by row. Lossy.
    pub quantisation: Option<EightBits>,
    /// Which device to compute on.
    pub device: DeviceChoice,
    /// A safetensors file whose UNet replaces the folder's, or a safetensors or GGUF file whose transformer does.
    pub unet: Option<PathBuf>,
    /// A safetensors or GGUF file whose T5 replaces the folder's.
    pub t5: Option<PathBuf>,
    /// A file whose CLIP text encoder replaces the model's first.
    pub text_encoder: Option<PathBuf>,
    /// What Stable Diffusion's UNet predicts (`epsilon`, `v_prediction` or `sample`), where its config or a guess is
    /// wrong.
    pub prediction_type: Option<String>,
    /// What will be asked for first: its prompts are encoded while the denoiser is being read.
    pub first_request: Option<GenerationRequest>,
    /// Bytes that the model and its pictures may take; `None` is what is free.
    pub memory_bytes: Option<u64>,
    /// A safetensors file, or a folder with a config beside it, whose VAE replaces the folder's.
    pub vae: Option<PathBuf>,
    /// A folder or single file with SDXL's refiner, which does the last part of every schedule.
    pub refiner: Option<PathBuf>,
    /// The part of the schedule that the base model does before the refiner, 0.8 where it is not said.
    pub refiner_starts_at: Option<f64>,
    /// Encode and decode pictures in overlapping tiles: memory is bounded by the tile, seams are blended.
    pub vae_tiling: bool,
    /// Textual inversions; each is asked for by its token, the file's name where it has none.
    pub textual_inversions: Vec<PathBuf>,
    /// More of them, which are left out where they do not fit the model.
    pub fitting_textual_inversions: Vec<PathBuf>,
}

/// `model_index.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct ModelIndex {
    pub(super) _class_name: String,
    #[serde(default = "yes")]
    force_zeros_for_empty_prompt: bool,
    #[serde(default)]
    requires_aesthetics_score: bool,
    /// Ours: the number of steps a model with no published habit looks best at.
    pub(super) default_num_inference_steps: Option<usize>,
    pub(super) default_guidance_scale: Option<f64>,
}

fn yes() -> bool {
    true
}

impl Pipeline {
    /// Loads a model onto its device.
    ///
    /// # Errors
    /// Names the file that is missing, malformed or does not fit its config.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Self> {
        // Several threads put weights on the device.
        let _alone = aquatint_kernels::NoRecording::start();
        let device = device(options.device)?;
        let share = DeviceShare(device.clone());
        if let Some(to) = options.quantisation {
            tell_of(to, &device);
        }
        let folder = source.folder()?;
        let index: ModelIndex = folder.json("model_index.json")?;
        if is_flux(&index) {
            return Self::load_flux(&folder, &index, options, device);
        }
        if let Some(path) = &options.t5 {
            return Err(Error::file(path, "T5 is FLUX's text encoder, and this model has none"));
        }
        let dtype = options.precision.dtype(&device);
        let unet_config: UnetConfig = folder.json("unet/config.json")?;
        let family = family(&folder, &index, &unet_config)?;
        let scheduler = scheduler(&folder, family)?;
        let scheduler = SchedulerConfig {
            prediction_type: options.prediction_type.clone().or(scheduler.prediction_type),
            ..scheduler
        };
        let force_zeros_for_empty_prompt =
            !matches!(family, Family::Sd15 | Family::Sd21) && index.force_zeros_for_empty_prompt;
        let vae_config: AutoencoderKlConfig = folder.json("vae/config.json")?;
        let mut needs = UnetNeeds::before_loading(&folder, options, (&unet_config, &vae_config), &device)?;
        let room = memory::room(options.memory_bytes, &device);
        needs.check_model(room)?;
        let prompts = PromptCache::new(PROMPTS_KEPT);
        // Most of what is read is the UNet. What is needed before it, and after, is loaded and used meanwhile.
        let (rest, unet) = std::thread::scope(|scope| {
            let unet = scope.spawn(|| unet(&folder, unet_config, options.unet.as_deref(), options, &device));
            let rest = || -> Result<_> {
                let encoders = TextEncoders::load(&folder, family, options, &device)?;
                if let Some(request) = &options.first_request {
                    let guided = request.guidance_scale.is_none_or(|scale| scale > 1.0);
                    let encoding = PromptEncoding { cache: &prompts, family, force_zeros_for_empty_prompt };
                    // What is wrong with it is told when it is asked for.
                    let _encoded = encoding.encode(0, &encoders.all(), request, guided);
                }
                let vae = match &options.vae {
                    None => AutoencoderKl::load(&folder, "vae", dtype, &device)?,
                    Some(path) => replaced_vae(path, &folder, dtype, &device)?,
                };
                Ok((encoders, vae))
            };
            (rest(), unet.join())
        });
        let unet = unet.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (TextEncoders { text_encoder, text_encoder_2 }, vae) = rest?;
        let refiner =
            options.refiner.as_ref().map(|path| refiner(path, family, options, &device)).transpose()?;
        needs.activation = unet.activations().size_in_bytes() as u64;
        needs.vae_activation = vae.activations().size_in_bytes() as u64;
        let info = info(&folder, &index, family, unet.config(), &scheduler, vae.downscale())?;
        let replaced = options.unet.as_deref().and_then(|path| Preset::of_model(&last_names(path)));
        let info = match replaced {
            Some(preset) => info.with(preset),
            None => info,
        };
        let info = ModelInfo { device: device_name(&device), ..info };
        Ok(Self {
            info,
            device,
            text_encoder,
            text_encoder_2,
            t5: None,
            denoiser: Denoiser::Unet(Box::new(unet)),
            vae,
            scheduler,
            force_zeros_for_empty_prompt,
            vae_tiling: options.vae_tiling,
            max_sequence_length: 0,
            loras: Default::default(),
            lora_preset: None,
            refiner,
            prompts,
            preview: OnceLock::new(),
            weight_bytes: weight_bytes(&folder),
            memory: Budget::new(Needs::Unet(needs), room, options.memory_bytes.is_some()),
            _memory: share,
        })
    }

    /// What a model would be and, from its files, about how much memory its weights would take. Only its configs are
    /// read; the device is left empty.
    ///
    /// # Errors
    /// As [`Self::load`], as far as the configs are concerned.
    pub fn describe(source: &ModelSource) -> Result<(ModelInfo, u64)> {
        let folder = source.folder()?;
        let index: ModelIndex = folder.json("model_index.json")?;
        if is_flux(&index) {
            return Ok((Self::describe_flux(&folder, &index)?, weight_bytes(&folder)));
        }
        let unet: UnetConfig = folder.json("unet/config.json")?;
        let vae: AutoencoderKlConfig = folder.json("vae/config.json")?;
        let family = family(&folder, &index, &unet)?;
        let scheduler = scheduler(&folder, family)?;
        let info = info(&folder, &index, family, &unet, &scheduler, vae.downscale())?;
        Ok((info, weight_bytes(&folder)))
    }
}

impl ModelSource {
    fn folder(&self) -> Result<ModelFolder> {
        match self {
            Self::Builtin => Ok(builtin::folder()),
            Self::Folder(path) => ModelFolder::open(path),
            Self::Dummy(Dummy::Published(model)) => Ok(ModelFolder::Published(model)),
            Self::Dummy(Dummy::Folder(path)) => ModelFolder::untrained(path),
        }
    }
}

/// Prompts whose encoding is kept. SDXL's take about 1 MB each.
pub(super) const PROMPTS_KEPT: usize = 64;

pub(super) fn weight_bytes(folder: &ModelFolder) -> u64 {
    ["unet", "transformer", "vae", "text_encoder", "text_encoder_2"]
        .iter()
        .map(|part| folder.weight_bytes(part))
        .sum()
}

/// What a model is, but for the device.
fn info(
    folder: &ModelFolder,
    index: &ModelIndex,
    family: Family,
    unet: &UnetConfig,
    scheduler: &SchedulerConfig,
    multiple_px: usize,
) -> Result<ModelInfo> {
    let (steps, guidance) = match family {
        Family::Sd15 | Family::Sd21 => (50, 7.5),
        Family::Sdxl | Family::SdxlRefiner | Family::Flux => (50, 5.0),
    };
    let info = ModelInfo {
        name: folder.name(),
        family,
        native_size_px: unet.native_latent_size() * multiple_px,
        multiple_px,
        num_inference_steps: steps,
        guidance_scale: guidance,
        scheduler: SamplerSettings::from_config(scheduler)?.kind().class_name().to_owned(),
        device: String::new(),
        needs_mask: unet.in_channels == 9,
        edits_pictures: false,
        memory: None,
        fallback_for: None,
        random_weights: has_random_weights(folder),
        preset: None,
    };
    let mut info = match preset(folder, scheduler) {
        Some(preset) => info.with(preset),
        None => info,
    };
    // What the folder says itself goes before what its name says.
    info.num_inference_steps = index.default_num_inference_steps.unwrap_or(info.num_inference_steps);
    info.guidance_scale = index.default_guidance_scale.unwrap_or(info.guidance_scale);
    Ok(info)
}

/// Whether the weights were never trained.
pub(super) fn has_random_weights(folder: &ModelFolder) -> bool {
    match folder {
        ModelFolder::Disk(_) | ModelFolder::Single(_) => false,
        ModelFolder::Embedded(_) => !builtin::TRAINED,
        ModelFolder::Published(_) | ModelFolder::Untrained(_) => true,
    }
}

/// What a model is distilled to, by its name or its scheduler. A scheduler config that was made for it stays.
fn preset(folder: &ModelFolder, scheduler: &SchedulerConfig) -> Option<Preset> {
    let lcm = scheduler.class_name.as_deref() == Some("LCMScheduler");
    let named = match folder {
        ModelFolder::Disk(path) | ModelFolder::Untrained(path) => Preset::of_model(&last_names(path)),
        ModelFolder::Single(file) => Preset::of_model(&last_names(file.path())),
        ModelFolder::Published(model) => Preset::of_model(model.name),
        ModelFolder::Embedded(_) => None,
    };
    let preset = if lcm { Preset::LCM } else { named? };
    let own = lcm || scheduler.timestep_spacing.as_deref() == Some("trailing");
    Some(Preset { scheduler: preset.scheduler.filter(|_| !own), ..preset })
}

/// The name of a file or folder; in the hub's cache, where folders are named after commits, also the repository's.
pub(super) fn last_names(path: &Path) -> String {
    // Files in the hub's cache are links to blobs: the name of the link is the one that says something.
    let whole = match path.file_name() {
        Some(_) => path.to_owned(),
        None => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
    };
    let mut names = whole.components().rev().map(|c| c.as_os_str().to_string_lossy().into_owned());
    let last = names.next().unwrap_or_default();
    match names.next().as_deref() {
        Some("snapshots") => names.next().unwrap_or_default(),
        _ => last,
    }
}

/// How listings call a device.
pub(super) fn device_name(device: &Device) -> String {
    if device.is_cpu() { "cpu".to_owned() } else { "cuda:0".to_owned() }
}

/// The one place that opens a device.
fn device(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda => cuda(),
        DeviceChoice::Auto => Ok(cuda().unwrap_or_else(|reason| {
            if cfg!(feature = "cuda") {
                tracing::warn!("computing on the CPU: {reason}");
            } else {
                tracing::info!("computing on the CPU: {reason}");
            }
            Device::Cpu
        })),
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Device> {
    aquatint_kernels::open_gpu().map_err(|e| Error::invalid(format!("device cuda: no usable GPU: {e}")))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Device> {
    Err(Error::invalid("device cuda: this program was built without CUDA support, cpu is available"))
}

/// Says what a device makes of matrices in eight bits.
fn tell_of(quantisation: EightBits, device: &Device) {
    let multiplies = aquatint_kernels::multiplies_codes(device, quantisation);
    match (multiplies, device.is_cpu()) {
        (true, _) => tracing::info!(?quantisation, "the denoiser's blocks multiply in eight bits"),
        (false, true) => {
            tracing::warn!(?quantisation, "the CPU rounds as a GPU would, and is no faster for it")
        }
        (false, false) => tracing::warn!(
            ?quantisation,
            "this GPU has no tensor cores for it: it takes less memory, and more time"
        ),
    }
}

/// The text encoders of Stable Diffusion.
struct TextEncoders {
    text_encoder: Option<TextEncoder>,
    text_encoder_2: Option<TextEncoder>,
}

impl TextEncoders {
    /// Those that the family has, with their textual inversions.
    fn load(folder: &ModelFolder, family: Family, options: &LoadOptions, device: &Device) -> Result<Self> {
        let dtype = options.precision.dtype(device);
        let encoder = |component: &str, tokenizer: &str, file: Option<&Path>| {
            folder
                .contains(&format!("{component}/config.json"))
                .then(|| TextEncoder::load(folder, component, tokenizer, file, dtype, device))
                .transpose()
        };
        let mut text_encoder = match family {
            Family::SdxlRefiner => None,
            _ => encoder("text_encoder", "tokenizer", options.text_encoder.as_deref())?,
        };
        let mut text_encoder_2 = encoder("text_encoder_2", "tokenizer_2", None)?;
        let missing = |name: &str| Error::file(folder.path(name), "this model needs it");
        match family {
            Family::Sd15 | Family::Sd21 if text_encoder.is_none() => return Err(missing("text_encoder")),
            Family::Sdxl if text_encoder.is_none() => return Err(missing("text_encoder")),
            Family::Sdxl | Family::SdxlRefiner if text_encoder_2.is_none() => {
                return Err(missing("text_encoder_2"));
            }
            _ => {}
        }
        for path in &options.textual_inversions {
            load_textual_inversion(path, text_encoder.as_mut(), text_encoder_2.as_mut())?;
        }
        for path in &options.fitting_textual_inversions {
            if let Err(error) = load_textual_inversion(path, text_encoder.as_mut(), text_encoder_2.as_mut()) {
                tracing::warn!("left out: {error}");
            }
        }
        Ok(Self { text_encoder, text_encoder_2 })
    }

    fn all(&self) -> Vec<&TextEncoder> {
        self.text_encoder.iter().chain(&self.text_encoder_2).collect()
    }
}

fn unet(
    folder: &ModelFolder,
    config: UnetConfig,
    file: Option<&Path>,
    options: &LoadOptions,
    device: &Device,
) -> Result<UNet2DCondition> {
    let dtype = options.precision.dtype(device);
    let weights = match file {
        None => folder.weights("unet", dtype, device)?,
        Some(path) => Weights::open("unet", &[path.to_owned()], dtype, device)?,
    };
    UNet2DCondition::new(config, &weights.quantised(options.quantisation))
}

/// A VAE from a file, or from the folder of one component as `madebyollin/sdxl-vae-fp16-fix` is published.
pub(super) fn replaced_vae(
    path: &Path,
    model: &ModelFolder,
    dtype: Option<DType>,
    device: &Device,
) -> Result<AutoencoderKl> {
    match (path.is_dir(), path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (true, Some(parent), Some(name)) => {
            AutoencoderKl::load(&ModelFolder::Disk(parent.to_owned()), name, dtype, device)
        }
        _ => AutoencoderKl::load_file(path, model.json("vae/config.json")?, dtype, device),
    }
}

fn family(folder: &ModelFolder, index: &ModelIndex, unet: &UnetConfig) -> Result<Family> {
    let class = index._class_name.as_str();
    let sdxl = class.starts_with("StableDiffusionXL");
    let sd = class.starts_with("StableDiffusion") || class.starts_with("LatentConsistencyModel");
    match (sdxl, unet.addition_embed_type.is_some()) {
        (true, true) if index.requires_aesthetics_score => Ok(Family::SdxlRefiner),
        (true, true) => Ok(Family::Sdxl),
        (false, false) if sd && unet.context_channels(0) == 1024 => Ok(Family::Sd21),
        (false, false) if sd => Ok(Family::Sd15),
        _ => Err(Error::file(
            folder.path("model_index.json"),
            format!(
                "_class_name is {class} with addition_embed_type {:?}: StableDiffusionPipeline, \
                 LatentConsistencyModelPipeline, StableDiffusionXLPipeline (text_time) and FluxPipeline, their \
                 Img2Img and Inpaint kinds included, FluxFillPipeline and FluxKontextPipeline are supported",
                unet.addition_embed_type
            ),
        )),
    }
}

pub(super) fn scheduler(folder: &ModelFolder, family: Family) -> Result<SchedulerConfig> {
    let file = "scheduler/scheduler_config.json";
    let config =
        SchedulerConfig::from_json(&folder.read(file)?).map_err(|e| Error::file(folder.path(file), e))?;
    Ok(match family {
        Family::Sd15 | Family::Sd21 => config.corrected_for_stable_diffusion(),
        Family::Sdxl | Family::SdxlRefiner | Family::Flux => config,
    })
}

fn refiner(path: &Path, base: Family, options: &LoadOptions, device: &Device) -> Result<Refiner> {
    if base != Family::Sdxl {
        let text = format!("a refiner is SDXL's second stage, this model is {}", base.name());
        return Err(Error::file(path, text));
    }
    let folder = ModelFolder::open(path)?;
    let index: ModelIndex = folder.json("model_index.json")?;
    let unet = unet(&folder, folder.json("unet/config.json")?, None, options, device)?;
    if family(&folder, &index, unet.config())? != Family::SdxlRefiner {
        return Err(Error::file(
            path,
            "this is no refiner: its model_index.json lacks requires_aesthetics_score",
        ));
    }
    let starts_at = options.refiner_starts_at.unwrap_or(0.8);
    if !(starts_at > 0.0 && starts_at < 1.0) {
        return Err(Error::invalid(format!(
            "the refiner starts at {starts_at}: a part between 0 and 1 is allowed"
        )));
    }
    Ok(Refiner {
        text_encoder_2: TextEncoder::load(
            &folder,
            "text_encoder_2",
            "tokenizer_2",
            None,
            options.precision.dtype(device),
            device,
        )?,
        unet: Denoiser::Unet(Box::new(unet)),
        scheduler: scheduler(&folder, Family::SdxlRefiner)?,
        starts_at,
    })
}

/// Adds a textual inversion to each encoder that it has vectors for.
fn load_textual_inversion(
    path: &Path,
    first: Option<&mut TextEncoder>,
    second: Option<&mut TextEncoder>,
) -> Result<()> {
    let inversion = TextualInversion::open(path)?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let Some(token) = inversion.token.clone().or(stem) else {
        return Err(Error::file(path, "neither the file nor its name says which token it is"));
    };
    let mut added = false;
    for (encoder, vectors) in [(first, &inversion.text_encoder), (second, &inversion.text_encoder_2)] {
        if let (Some(encoder), Some(vectors)) = (encoder, vectors) {
            encoder.add_textual_inversion(&token, vectors).map_err(|e| Error::file(path, e))?;
            added = true;
        }
    }
    if !added {
        return Err(Error::file(path, "it has vectors for none of this model's text encoders"));
    }
    Ok(())
}
