//! What the engine needs of a model. The real one is [`super::pipeline`]; tests script their own.

use image::RgbImage;

use super::{DeviceMemory, EngineError, GenerationRequest, LoraChoice, ModelInfo};

/// A loaded model. It need not be `Send`: it is made and used on the engine's thread.
///
/// A method that fails or panics leaves the model as usable as it was, but for the LoRAs: after a failed
/// [`set_loras`](Self::set_loras) the engine sets them anew.
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

    /// Takes one denoising step of each; where there are several, each [`joins`](Denoising::joins) the first. On an
    /// error those whose position has not moved can be stepped again.
    fn step(&self, batch: &mut [&mut Self::Denoising]) -> Result<(), EngineError>;

    /// Decodes what the last step left. `sparing` is set after it ran out of memory: slower ways that need less are
    /// to be taken.
    fn decode(&self, denoising: &Self::Denoising, sparing: bool) -> Result<RgbImage, EngineError>;

    /// A small picture of the present latents, where the model has a cheap way to make one.
    fn preview(&self, _denoising: &Self::Denoising) -> Result<Option<RgbImage>, EngineError> {
        Ok(None)
    }

    /// Makes what is made at first use, where that takes long; called once the default model is loaded. Nothing depends on
    /// its success.
    fn warm_up(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Lets go of everything that can be computed again, and gives what is free back to the device.
    fn free_memory(&self) {}

    /// What of the device's memory is taken, where the device has its own. Asked after every call; must not wait.
    fn device_memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// Memory that its weights take on the device.
    fn weight_bytes(&self) -> u64 {
        0
    }

    /// Runs of the VAE that were repeated in f32 since it was loaded, because 16 bits could not hold what they computed.
    fn repeated(&self) -> u64 {
        0
    }

    /// Prompts found encoded, and those that had to be, since it was loaded.
    fn prompt_cache(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// How far a picture is.
pub trait Denoising {
    /// Steps it takes in all; image-to-image takes `strength` times those asked for.
    fn steps(&self) -> usize;

    /// Steps taken.
    fn position(&self) -> usize;

    /// Whether both can go through the denoiser in one batch: the same shapes, at the same stage.
    fn joins(&self, other: &Self) -> bool;
}
