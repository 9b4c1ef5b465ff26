//! How much work a job is, before and while it is made.
//!
//! The unit is one run of the denoiser for one sample of one megapixel; how long that takes is measured.

use super::{Family, GenerationRequest, Mode, ModelInfo, Work};

/// What encoding a prompt and decoding a picture take together, in steps without guidance. SDXL's VAE alone is about
/// two of them.
const ENDS_IN_STEPS: f64 = 2.0;
/// A new measurement counts for this part of the estimate.
const NEWEST: f64 = 0.25;

/// Steps that a request will take.
pub(super) fn steps(request: &GenerationRequest, info: &ModelInfo) -> usize {
    let steps = request.num_inference_steps.unwrap_or(info.num_inference_steps);
    match request.mode {
        Mode::TextToImage => steps,
        Mode::ImageToImage { strength, .. } | Mode::Inpaint { strength, .. } => {
            (steps as f64 * strength.clamp(0.0, 1.0)).ceil() as usize
        }
    }
}

fn megapixels(request: &GenerationRequest, info: &ModelInfo) -> f64 {
    let side = |side: Option<usize>| side.unwrap_or(info.native_size_px) as f64;
    side(request.width) * side(request.height) / 1e6
}

/// One step of a request; guidance runs the denoiser twice.
pub(super) fn step_units(request: &GenerationRequest, info: &ModelInfo) -> f64 {
    let guided = match info.family {
        // Its own guidance is an input.
        Family::Flux => request.negative_prompt.is_some() && request.true_cfg_scale.is_some_and(|s| s > 1.0),
        _ => request.guidance_scale.unwrap_or(info.guidance_scale) > 1.0,
    };
    megapixels(request, info) * if guided { 2.0 } else { 1.0 }
}

/// What comes before the first and after the last step.
pub(super) fn end_units(request: &GenerationRequest, info: &ModelInfo) -> f64 {
    megapixels(request, info) * ENDS_IN_STEPS
}

/// A whole picture.
pub(super) fn picture_units(request: &GenerationRequest, info: &ModelInfo) -> f64 {
    steps(request, info) as f64 * step_units(request, info) + end_units(request, info)
}

/// A whole job.
pub(super) fn work_units(work: &Work, info: &ModelInfo) -> f64 {
    work.requests.iter().map(|request| picture_units(request, info)).sum()
}

/// A measured quantity that follows its newest values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    value: f64,
    measured: bool,
}

impl Moving {
    /// A guess, until there is a measurement.
    pub(super) fn guess(value: f64) -> Self {
        Self { value, measured: false }
    }

    pub(super) fn add(&mut self, value: f64) {
        if self.measured {
            self.value += (value - self.value) * NEWEST;
        } else {
            *self = Self { value, measured: true };
        }
    }

    pub(super) fn get(self) -> f64 {
        self.value
    }
}
