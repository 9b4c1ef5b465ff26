//! From a request to a picture: encode the prompt, start from noise or a picture, step, decode.
//!
//! [`Pipeline`] is the model on its device. [`Pipeline::start`] turns a [`GenerationRequest`] into a [`Denoising`],
//! whose [`Pipeline::step`] runs the denoiser once, so that whoever drives it may stop, report or interleave between any two
//! steps; [`Pipeline::decode`] makes the picture.

pub mod conditioning;
pub mod denoising;
mod flux;
mod latent_resize;
pub mod load;
mod load_flux;
pub mod memory;
pub mod preset;
mod preview;
pub mod request;
mod start;
mod variation;
mod warm_up;

use std::path::PathBuf;
use std::sync::OnceLock;

use candle_core::{Device, IndexOp};
use image::RgbImage;
use serde::{Deserialize, Serialize};

pub use crate::denoiser::{DeepCache, StepCache};
pub use aquatint_kernels::DeviceMemory;
pub use aquatint_kernels::EightBits;
pub use denoising::Denoising;
pub use latent_resize::Interpolation;
pub use load::{DeviceChoice, LoadOptions, ModelSource, Precision};
pub use memory::{MemoryPlan, Place};
pub use preset::Preset;
pub use request::{GenerationRequest, MaskedContent, MicroConditioning, Mode};
pub use variation::Variation;

use memory::Budget;

use crate::denoiser::Denoiser;
use crate::lora::{LoraFile, LoraReport, MergedLoras, Target};
use crate::schedule::SchedulerConfig;
use crate::text::TextEncoder;
use crate::text::cache::PromptCache;
use crate::text::t5::T5Encoder;
use crate::vae::AutoencoderKl;
use crate::{Error, Result};

/// The architectures that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Stable Diffusion 1.x: one CLIP-L text encoder.
    Sd15,
    /// Stable Diffusion 2.x: one OpenCLIP ViT-H text encoder.
    Sd21,
    /// SDXL: two text encoders and size conditioning.
    Sdxl,
    /// The second stage of SDXL alone: one text encoder and an aesthetic score.
    SdxlRefiner,
    /// FLUX.1: a transformer, CLIP's pooled vector and T5.
    Flux,
}

impl Family {
    /// A short name for listings and replies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd15 => "sd15",
            Self::Sd21 => "sd21",
            Self::Sdxl => "sdxl",
            Self::SdxlRefiner => "sdxl-refiner",
            Self::Flux => "flux",
        }
    }
}

/// What a loaded model is, and what a request that leaves something open gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The folder's name, or `builtin`.
    pub name: String,
    /// The architecture.
    pub family: Family,
    /// Side of the square pictures it was trained on.
    pub native_size_px: usize,
    /// Sides of what it can make are multiples of this; other sizes are rounded up and cropped.
    pub multiple_px: usize,
    /// Steps of a request that names none.
    pub num_inference_steps: usize,
    /// Guidance of a request that names none.
    pub guidance_scale: f64,
    /// Scheduler of a request that names none, by its diffusers class name.
    pub scheduler: String,
    /// `cpu`, or `cuda:0` and the like.
    pub device: String,
    /// The denoiser takes a mask and a masked picture beside the latents, and so makes no picture without them.
    pub needs_mask: bool,
    /// A picture is shown to the denoiser beside what it makes, and the prompt says what to change (Kontext).
    pub edits_pictures: bool,
    /// The weights were never trained: pictures are noise.
    pub random_weights: bool,
    /// What it was found to be distilled to; the defaults above are of it.
    pub preset: Option<Preset>,
    /// Which of its parts stay in memory, where that was decided by what is free.
    #[serde(skip)]
    pub memory: Option<MemoryPlan>,
    /// The model that was asked for, where this one stands in for it.
    pub fallback_for: Option<String>,
}

impl ModelInfo {
    /// Guidance of a request that names none. FLUX dev follows an initial picture closely, and takes twice as much to
    /// leave it: diffusers' default.
    pub fn guidance_scale_for(&self, mode: &Mode) -> f64 {
        let dev = self.preset == Some(Preset::FLUX_DEV) && !self.edits_pictures;
        if dev && !matches!(mode, Mode::TextToImage) {
            2.0 * self.guidance_scale
        } else {
            self.guidance_scale
        }
    }

    /// With the defaults of a preset.
    fn with(mut self, preset: Preset) -> Self {
        self.num_inference_steps = preset.num_inference_steps;
        self.guidance_scale = preset.guidance_scale;
        if let Some(scheduler) = preset.scheduler {
            self.scheduler = scheduler.to_owned();
        }
        self.preset = Some(preset);
        self
    }
}

/// A LoRA to merge.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// A safetensors file.
    pub path: PathBuf,
    /// What its difference is multiplied by: 1 is as trained.
    pub scale: f64,
    /// It distils the model to few steps; see [`LoraChoice::new`].
    pub preset: Option<Preset>,
}

impl LoraChoice {
    /// A LoRA whose file or folder name says whether it distils, and to what: published ones carry no other sign of it.
    pub fn new(path: impl Into<PathBuf>, scale: f64) -> Self {
        let path = path.into();
        let preset = Preset::of_lora(&path);
        Self { path, scale, preset }
    }
}

/// A model on its device.
#[derive(Debug)]
pub struct Pipeline {
    info: ModelInfo,
    device: Device,
    text_encoder: Option<TextEncoder>,
    text_encoder_2: Option<TextEncoder>,
    t5: Option<T5Encoder>,
    denoiser: Denoiser,
    vae: AutoencoderKl,
    vae_tiling: bool,
    scheduler: SchedulerConfig,
    force_zeros_for_empty_prompt: bool,
    /// Of T5, where a request says nothing.
    max_sequence_length: usize,
    loras: MergedLoras,
    /// Of the LoRAs that are merged.
    lora_preset: Option<Preset>,
    refiner: Option<Refiner>,
    prompts: PromptCache,
    preview: OnceLock<preview::LatentToRgb>,
    weight_bytes: u64,
    memory: Budget,
    /// The last field: what the others free goes back to the device.
    _memory: DeviceShare,
}

/// Gives memory back to the device when it is dropped, which is to be after the tensors that were in it.
#[derive(Debug)]
struct DeviceShare(Device);

impl Drop for DeviceShare {
    fn drop(&mut self) {
        if let Err(error) = aquatint_kernels::give_back_memory(&self.0) {
            tracing::warn!(%error, "memory could not be given back");
        }
    }
}

/// SDXL's second stage: another UNet and text encoder over the same latents.
#[derive(Debug)]
struct Refiner {
    text_encoder_2: TextEncoder,
    unet: Denoiser,
    scheduler: SchedulerConfig,
    /// The part of the schedule that the base model does.
    starts_at: f64,
}

impl Pipeline {
    /// What this model is, with the defaults that hold for the LoRAs merged now.
    pub fn info(&self) -> ModelInfo {
        match self.lora_preset {
            Some(preset) => self.info.clone().with(preset),
            None => self.info.clone(),
        }
    }

    /// Where it computes; other models of the same program belong there too.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Merges exactly these LoRAs into the weights, undoing whatever was merged before. On an error nothing changes.
    ///
    /// A LoRA among them that distils to few steps brings its defaults; of several, the last.
    pub fn set_loras(&mut self, choices: &[LoraChoice]) -> Result<Vec<LoraReport>> {
        let files = choices.iter().map(|c| LoraFile::open(&c.path)).collect::<Result<Vec<_>>>()?;
        let loras: Vec<_> = files.iter().zip(choices).map(|(file, choice)| (file, choice.scale)).collect();
        let mut targets = vec![(self.denoiser_target(), self.denoiser.weights())];
        targets.extend(self.text_encoder.iter().map(|t| (Target::TextEncoder, t.weights())));
        targets.extend(self.text_encoder_2.iter().map(|t| (Target::TextEncoder2, t.weights())));
        targets.extend(self.t5.iter().map(|t| (Target::TextEncoder2, t.weights())));
        let in_text = |l: &MergedLoras| l.changes(Target::TextEncoder) || l.changes(Target::TextEncoder2);
        let before = in_text(&self.loras);
        let reports = self.loras.set(&targets, &loras);
        if before || in_text(&self.loras) {
            self.prompts.clear();
        }
        let reports = reports?;
        self.lora_preset = choices.iter().rev().find_map(|c| c.preset);
        Ok(reports)
    }

    /// What LoRA files call the denoiser.
    fn denoiser_target(&self) -> Target {
        match self.denoiser {
            Denoiser::Unet(_) => Target::Unet,
            Denoiser::Flux(_) => Target::Transformer,
        }
    }

    /// `(found, encoded)` of the prompts so far.
    pub fn prompt_counts(&self) -> (u64, u64) {
        self.prompts.counts()
    }

    /// Runs of the VAE that were repeated in f32, because 16 bits could not hold what they computed.
    pub fn repeated(&self) -> u64 {
        self.vae.repeated()
    }

    /// Forgets what can be computed again, and gives free memory back to the device.
    ///
    /// # Errors
    /// The device's.
    pub fn free_memory(&self) -> Result<()> {
        self.prompts.clear();
        aquatint_kernels::forget_recordings();
        Ok(aquatint_kernels::give_back_memory(&self.device)?)
    }

    /// What of the device's memory is taken, by whatever; `None` on the CPU.
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        DeviceMemory::of(&self.device)
    }

    /// What its weights take in their files, which is about what they take on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Makes the picture of finished latents, at the size that was asked for.
    pub fn decode(&self, denoising: &Denoising) -> Result<RgbImage> {
        self.decode_with(denoising, self.tiles(denoising.extent.pixels as usize))
    }

    /// The same in overlapping tiles: less memory, and seams that are blended.
    pub fn decode_tiled(&self, denoising: &Denoising) -> Result<RgbImage> {
        self.decode_with(denoising, true)
    }

    fn decode_with(&self, denoising: &Denoising, tiled: bool) -> Result<RgbImage> {
        let latents = self.vae.unscale_latents(&denoising.latents)?;
        let pixels = match tiled {
            true => self.vae.decode_tiled(&latents, self.vae.config().tile_px())?,
            false => self.vae.decode(&latents)?,
        };
        let pixels = pixels.i(0)?;
        let (rows, columns) = (denoising.height as usize, denoising.width as usize);
        let pixels = pixels.narrow(0, 0, rows)?.narrow(1, 0, columns)?.contiguous()?;
        let bytes = aquatint_kernels::rgb8(&pixels)?;
        RgbImage::from_raw(denoising.width, denoising.height, bytes)
            .ok_or_else(|| Error::invalid("the decoded picture does not have the size that was asked for"))
    }

    /// Start, all steps and decode in one go.
    pub fn generate(&self, request: &GenerationRequest) -> Result<RgbImage> {
        let mut denoising = self.start(request)?;
        while !denoising.is_done() {
            self.step(&mut denoising)?;
        }
        self.decode(&denoising)
    }
}
