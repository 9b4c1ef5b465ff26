//! Between pictures and latents.
//!
//! - [`autoencoder_kl`]: the VAE of the published models, both ways.
//! - [`tiling`]: the same in overlapping tiles, for pictures that do not fit in memory at once.
//! - [`taesd`]: tiny autoencoders, good enough for previews.
//! - [`picture`]: pictures and masks as tensors, and back; resized as Pillow does.

pub mod autoencoder_kl;
mod blocks;
pub mod config;
pub mod picture;
pub mod taesd;
pub mod tiling;

pub use autoencoder_kl::{AutoencoderKl, DiagonalGaussian};
pub use config::AutoencoderKlConfig;
