//! Denoisers: networks that predict what a noisy sample holds.

pub mod config;
pub mod flux;
pub mod step_cache;
pub mod transformer;
pub mod unet;

use candle_core::{Tensor, TensorId};

pub use config::UnetConfig;
pub use flux::{FluxConditioning, FluxConfig, FluxContext, FluxTransformer};
pub use step_cache::{DeepCache, StepCache};
pub use unet::{AddedConditioning, Conditioning, UNet2DCondition, UnetContext};

use self::step_cache::Features;
use crate::checkpoint::Weights;
use crate::{Error, Result};

/// The denoiser of a model.
#[derive(Debug)]
pub enum Denoiser {
    /// Of Stable Diffusion and SDXL.
    Unet(Box<UNet2DCondition>),
    /// Of FLUX.
    Flux(Box<FluxTransformer>),
}

/// What a denoiser needs of the prompt, computed once a picture.
#[derive(Clone, Debug)]
pub enum Context {
    /// For a UNet.
    Unet(UnetContext),
    /// For FLUX.
    Flux(FluxContext),
}

impl Denoiser {
    /// The model output for `latents`, `(batch, height, width, channels)`, each sample at its own timestep.
    ///
    /// # Errors
    /// Where shapes do not fit, or the context is another denoiser's.
    pub fn forward(&self, latents: &Tensor, timesteps: &[f64], context: &Context) -> Result<Tensor> {
        match (self, context) {
            (Self::Unet(unet), Context::Unet(context)) => unet.forward(latents, timesteps, context),
            (Self::Flux(flux), Context::Flux(context)) => flux.forward(latents, timesteps, context),
            _ => Err(Error::invalid("the context was made for another denoiser")),
        }
    }

    /// The same with `features` of earlier steps where those are to be reused, and kept where not. `index`: that of the
    /// timestep, counted from the picture's first. Which layers are run may depend on values: a GPU is waited for, and no
    /// graph of the step can be captured.
    ///
    /// # Errors
    /// As [`Self::forward`]; where the features are another denoiser's.
    pub fn forward_reusing(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &Context,
        features: &mut Features,
        index: usize,
    ) -> Result<Tensor> {
        match (self, context, features) {
            (Self::Unet(unet), Context::Unet(context), Features::Deep(features)) => {
                unet.forward_reusing(latents, timesteps, context, features, index)
            }
            (Self::Flux(flux), Context::Flux(context), Features::FirstBlock(features)) => {
                flux.forward_reusing(latents, timesteps, context, features)
            }
            _ => Err(Error::invalid("the context or the features are another denoiser's")),
        }
    }

    /// Its weights, into which LoRAs are merged.
    pub fn weights(&self) -> &Weights {
        match self {
            Self::Unet(unet) => unet.weights(),
            Self::Flux(flux) => flux.weights(),
        }
    }

    /// Channels of what it is given: those of the latents, and for inpainting those of the mask and the masked
    /// picture.
    pub fn input_channels(&self) -> usize {
        match self {
            Self::Unet(unet) => unet.config().in_channels,
            // Its tokens are 2x2 latents.
            Self::Flux(flux) => flux.config().in_channels / 4,
        }
    }
}

impl Context {
    /// Whether the samples of both can go through the denoiser in one batch.
    pub fn joins(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unet(a), Self::Unet(b)) => a.joins(b),
            (Self::Flux(a), Self::Flux(b)) => a.joins(b),
            _ => false,
        }
    }

    /// What a context and its clones have in common, and no other context has.
    pub(crate) fn id(&self) -> Option<TensorId> {
        match self {
            Self::Unet(context) => context.id(),
            Self::Flux(context) => context.id(),
        }
    }

    /// All samples of several contexts, in their order.
    ///
    /// # Errors
    /// Where they do not [join](Self::joins).
    pub fn cat(contexts: &[&Self]) -> Result<Self> {
        let unets: Vec<_> = contexts.iter().filter_map(|c| c.as_unet()).collect();
        if unets.len() == contexts.len() {
            return Ok(Self::Unet(UnetContext::cat(&unets)?));
        }
        let fluxes: Vec<_> = contexts.iter().filter_map(|c| c.as_flux()).collect();
        if fluxes.len() == contexts.len() {
            return Ok(Self::Flux(FluxContext::cat(&fluxes)?));
        }
        Err(Error::invalid("contexts of different denoisers cannot be joined"))
    }

    fn as_unet(&self) -> Option<&UnetContext> {
        if let Self::Unet(context) = self { Some(context) } else { None }
    }

    fn as_flux(&self) -> Option<&FluxContext> {
        if let Self::Flux(context) = self { Some(context) } else { None }
    }
}
