//! Text encoders, denoisers, VAEs, schedules, samplers, LoRA and the pipelines made of them.
//!
//! # The field's words
//! - *prompt, negative_prompt*: what the picture should and should not show.
//! - *prompt_embeds*: `(batch, tokens, channels)`, a text encoder's hidden states. *pooled_prompt_embeds*:
//!   `(batch, channels)`, one vector for the whole prompt.
//! - *time_ids*: SDXL's original size, crop corner and target size, in pixels.
//! - *conditioning*: all of the above, ready for the denoiser.
//! - *noise, seed*: standard normal values, drawn as torch's CPU generator draws them.
//! - *latents*: `(batch, height / 8, width / 8, channels)`, what is denoised and then decoded to a picture.
//! - *schedule*: the numbers (timesteps, sigmas). *sampler*: the loop that uses them. *scheduler*: what diffusers calls
//!   the two together, and so what configs and requests call them.
//! - *denoiser*: the UNet, or FLUX's transformer. Its *model output* is epsilon, v, the sample itself or, in *flow
//!   matching*, the direction from sample to noise; *denoised* is the sample it implies.
//! - *modulation*: what FLUX's timestep, guidance and pooled prompt do to its blocks: a shift, a scale and a gate each.
//! - *streamed*: read from the checkpoint when it is needed, rather than *resident* in memory.
//! - *guidance_scale*: classifier-free guidance, two passes a step; for FLUX an input of the transformer, and
//!   *true_cfg_scale* the two passes. *strength*: how much of the schedule an initial picture goes through.
//! - *scaling_factor, shift_factor*: what the VAE's latents are multiplied and moved by.
//! - *lora_scale*: what a LoRA's difference is multiplied by before it is merged.
//!
//! No networking, no async runtime, and no global randomness: noise comes from a seeded source in the request.

pub mod caption;
pub mod checkpoint;
pub mod convert;
pub mod denoiser;
pub mod error;
pub mod inspect;
pub mod layers;
pub mod lora;
pub mod noise;
pub mod pipeline;
pub mod range;
mod resample;
pub mod resnet;
pub mod sampler;
pub mod schedule;
pub mod text;
pub mod vae;

/// How many runs of each network are recorded on a GPU, and where measurements of its algorithms are kept.
pub use aquatint_kernels::{keep_recordings, tuning};
pub use error::{Error, Result};
