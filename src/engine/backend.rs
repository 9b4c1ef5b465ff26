//! What the engine needs of a model. The real one is [`super::pipeline`]; tests script their own.

use std::path::PathBuf;

use aquatint_models::pipeline::request::GenerationRequest;
use image::RgbImage;

use super::EngineError;

/// A loaded model. It need not be `Send`: it is made and used on the engine's thread.
pub trait Backend {
    /// A picture on its way from noise to done.
    type Denoising: Denoising;

    /// The model and its defaults, which depend on the LoRAs merged into it.
    fn info(&self) -> ModelInfo;

    /// Merges exactly these LoRAs, taking out those merged before, also those of a merge that failed.
    fn set_loras(&mut self, loras: &[LoraChoice]) -> Result<(), EngineError>;

    /// Encodes the prompt and draws the noise.
    fn start(&self, request: &GenerationRequest) -> Result<Self::Denoising, EngineError>;

    /// Takes one denoising step.
    fn step(&self, denoising: &mut Self::Denoising) -> Result<(), EngineError>;

    /// Decodes what the last step left.
    fn decode(&self, denoising: &Self::Denoising) -> Result<RgbImage, EngineError>;
}

/// How far a picture is.
pub trait Denoising {
    /// Steps it takes in all; image-to-image takes `strength` times those asked for.
    fn steps(&self) -> usize;

    /// Steps taken.
    fn position(&self) -> usize;
}

/// A LoRA to merge.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// Its safetensors file.
    pub path: PathBuf,
    /// What its difference is multiplied by, usually 0 to 1.
    pub scale: f64,
}

impl LoraChoice {
    /// The file's name without its extension: how clients and recipes name it.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A loaded model and what it does unless told otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The folder's name, or `builtin`.
    pub name: String,
    /// `sd15`, `sd21`, `sdxl`, ...
    pub family: String,
    /// `cpu`, or `cuda` and its number.
    pub device: String,
    /// Side of the square pictures it was trained on, in pixels.
    pub native_size_px: usize,
    /// Sides it makes are multiples of this.
    pub multiple_px: usize,
    /// Default number of denoising steps.
    pub num_inference_steps: usize,
    /// Default classifier-free guidance; 1 and below means none, and that the model is not meant to have any.
    pub guidance_scale: f64,
    /// Default scheduler.
    pub scheduler: String,
    /// Whether the weights are random: its pictures then show nothing.
    pub random_weights: bool,
}
