//! Denoisers: networks that predict what a noisy sample holds.

pub mod config;
pub mod transformer;
pub mod unet;

pub use config::UnetConfig;
pub use unet::{AddedConditioning, Conditioning, UNet2DCondition, UnetContext};
