//! What the engine needs of a model. The real one is [`super::pipeline`]; tests script their own.

use aquatint_models::pipeline::{GenerationRequest, LoraChoice, ModelInfo};
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

    /// Says in a few English words what a picture shows; an error where no captioning model was loaded.
    fn caption(&self, image: &RgbImage) -> Result<String, EngineError>;

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
