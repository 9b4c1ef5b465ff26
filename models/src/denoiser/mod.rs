//! Denoisers: networks that predict what a noisy sample holds.

pub mod config;
pub mod flux;
pub mod transformer;
pub mod unet;

pub use config::UnetConfig;
pub use flux::{FluxConditioning, FluxConfig, FluxContext, FluxTransformer};
pub use unet::{AddedConditioning, Conditioning, UNet2DCondition, UnetContext};
