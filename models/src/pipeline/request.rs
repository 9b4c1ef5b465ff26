//! What a pipeline is asked for.

use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use super::{Interpolation, Variation};
use crate::denoiser::StepCache;

/// One picture to be made. What is `None` is filled in from the model's own defaults. Serialised, it lacks its mode:
/// pictures travel by themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GenerationRequest {
    /// What the picture should show; `(word:1.2)` weights a part, any length is allowed.
    pub prompt: String,
    /// What it should not show. Absent and empty differ for models with `force_zeros_for_empty_prompt`.
    pub negative_prompt: Option<String>,
    /// Width of the picture in pixels; a size the model cannot make is rounded up, then cropped back.
    pub width: Option<usize>,
    /// Height of the picture in pixels.
    pub height: Option<usize>,
    /// Denoising steps: 1 to 1000.
    pub num_inference_steps: Option<usize>,
    /// Classifier-free guidance; 1 and below runs the denoiser once a step. FLUX dev takes it as an input instead.
    pub guidance_scale: Option<f64>,
    /// Classifier-free guidance of FLUX, which with a negative prompt and above 1 runs the denoiser twice a step.
    pub true_cfg_scale: Option<f64>,
    /// Tokens of T5 that a prompt of FLUX has, 1 to 512: longer ones are cut.
    pub max_sequence_length: Option<usize>,
    /// Where the noise starts; equal seeds give equal pictures.
    pub seed: u64,
    /// Another seed's noise mixed into it.
    pub variation: Option<Variation>,
    /// A sampler by one of its names, see [`crate::schedule`].
    pub scheduler: Option<String>,
    /// Text encoder layers to leave out at the end: 0 (all are used) to the number of layers less one.
    pub clip_skip: usize,
    /// What the picture starts from.
    #[serde(skip)]
    pub mode: Mode,
    /// An initial picture of another size is encoded at its own, and its latents are resized; `None` resizes the
    /// picture.
    pub latent_resize: Option<Interpolation>,
    /// What inpainting starts from where the mask is white.
    pub masked_content: MaskedContent,
    /// Steps reuse what earlier ones computed: faster, and another picture.
    #[serde(default)]
    pub step_cache: Option<StepCache>,
    /// SDXL's size conditioning, where it is not the picture's own size.
    pub micro_conditioning: MicroConditioning,
}

impl GenerationRequest {
    /// A text-to-image request with the model's defaults.
    pub fn new(prompt: impl Into<String>, seed: u64) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: None,
            width: None,
            height: None,
            num_inference_steps: None,
            guidance_scale: None,
            true_cfg_scale: None,
            max_sequence_length: None,
            seed,
            variation: None,
            scheduler: None,
            clip_skip: 0,
            mode: Mode::TextToImage,
            latent_resize: None,
            masked_content: MaskedContent::default(),
            step_cache: None,
            micro_conditioning: MicroConditioning::default(),
        }
    }
}

/// What a picture starts from.
#[derive(Clone, Debug, Default)]
pub enum Mode {
    /// Noise alone.
    #[default]
    TextToImage,
    /// Another picture, noised as far as `strength` says.
    ImageToImage {
        /// The picture; resized to the request's size where it differs.
        image: RgbImage,
        /// 0 to 1: the part of the schedule it goes through.
        strength: f64,
    },
    /// Another picture of which a part is repainted.
    Inpaint {
        /// The picture; resized to the request's size where it differs.
        image: RgbImage,
        /// White is repainted, black is kept.
        mask: GrayImage,
        /// 0 to 1: the part of the schedule it goes through.
        strength: f64,
    },
}

impl Mode {
    /// Changes how much of the initial picture is kept, where there is one.
    pub fn set_strength(&mut self, value: f64) {
        match self {
            Self::TextToImage => {}
            Self::ImageToImage { strength, .. } | Self::Inpaint { strength, .. } => *strength = value,
        }
    }
}

/// What inpainting starts from where the mask is white, before the schedule's noise is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MaskedContent {
    /// The picture's own latents.
    #[default]
    Picture,
    /// Noise in their stead.
    Noise,
    /// Zeros in their stead.
    Zeros,
}

/// SDXL's conditioning on sizes, `(height, width)` in pixels as in diffusers; `None` is the picture's own size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MicroConditioning {
    /// Size the training picture had before scaling.
    pub original_size: Option<(usize, usize)>,
    /// Top and left corner of the crop.
    pub crops_coords_top_left: (usize, usize),
    /// Size the picture is meant to have.
    pub target_size: Option<(usize, usize)>,
}
