//! The transformer of FLUX.1 (schnell, dev, Fill, Kontext, Krea).
//!
//! Source: `FluxTransformer2DModel` of diffusers; Black Forest Labs 2024; Esser et al. 2024 (double blocks), Dehghani
//! et al. 2023 (parallel single blocks), Su et al. 2021 (rotary positions).

pub mod config;
pub mod context;
pub mod options;

use candle_core::Tensor;

use crate::checkpoint::Weights;
use crate::{Error, Result};
pub use config::FluxConfig;
pub use context::{FluxConditioning, FluxContext};
pub use options::{BlockWeights, FluxOptions, ModulationWeights, WeightBytes, WeightReport};

/// diffusers' `FluxTransformer2DModel`.
#[derive(Debug)]
pub struct FluxTransformer {
    config: FluxConfig,
    options: FluxOptions,
    weights: Weights,
}

impl FluxTransformer {
    /// All weights in memory, f32 activations.
    ///
    /// # Errors
    /// Where the config is not one this transformer can be, or a tensor is missing or has another shape.
    pub fn new(config: FluxConfig, weights: &Weights) -> Result<Self> {
        Self::with_options(config, weights, FluxOptions::default())
    }

    /// As [`Self::new`], held as `options` says.
    ///
    /// # Errors
    /// As [`Self::new`]; where `residual_scale` is no power of two from 1 to 65536.
    pub fn with_options(config: FluxConfig, weights: &Weights, options: FluxOptions) -> Result<Self> {
        config.check()?;
        Ok(Self { config, options, weights: weights.clone() })
    }

    /// Its config.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// How it is held.
    pub fn options(&self) -> &FluxOptions {
        &self.options
    }

    /// Its weights, for merging LoRAs.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What its weights take.
    pub fn weight_report(&self) -> WeightReport {
        WeightReport::default()
    }

    /// Computes what does not depend on the latents, for all `timesteps` of a run (0 to 1000, as the schedule counts).
    ///
    /// # Errors
    /// If the conditioning lacks what the config asks for, or its shapes do not fit.
    pub fn context(&self, _conditioning: &FluxConditioning, _timesteps: &[f64]) -> Result<FluxContext> {
        Err(Error::invalid("the FLUX transformer is not there yet"))
    }

    /// Predicts the velocity (noise minus sample).
    ///
    /// `x`: `(batch, height, width, in_channels / 4)`, even sizes; `timesteps`: one a sample, each one of those its
    /// context was made for. Returns `(batch, height, width, out_channels / 4)` in f32.
    ///
    /// # Errors
    /// Where shapes do not fit, or a timestep is none of the context's.
    pub fn forward(&self, _x: &Tensor, _timesteps: &[f64], _context: &FluxContext) -> Result<Tensor> {
        Err(Error::invalid("the FLUX transformer is not there yet"))
    }
}
