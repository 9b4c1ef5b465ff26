//! Samplers: how a picture is got from noise by repeated evaluation of the denoiser.
//!
//! [`SamplerSettings`] says which sampler and schedule, from a model's `scheduler_config.json` or by name. Each run has
//! its own [`Sampler`], a state machine that takes one evaluation a step, so that steps of many runs can be
//! interleaved:
//!
//! ```text
//! let mut sampler = settings.sampler(num_inference_steps)?;
//! let mut sample = noise * sampler.init_noise_sigma();
//! while !sampler.is_done() {
//!     let model_output = denoiser(sampler.scale_model_input(&sample)?, sampler.timesteps()[sampler.position()]);
//!     sample = sampler.step(&model_output, &sample, &mut generator)?;
//! }
//! ```
//!
//! Samples and model outputs are `(1, height, width, channels)`; every update is a weighted sum of a few of them.
//! Numbers equal those of diffusers 0.35.2's schedulers.

mod ddim;
mod ddpm;
mod dpm;
mod dpm_multistep;
mod dpm_singlestep;
mod euler;
mod euler_ancestral;
pub mod flow_match;
mod heun;
mod kind;
mod lcm;
mod lms;
mod names;
mod plan;
mod pndm;
mod schedule;
mod settings;
mod tcd;
#[cfg(test)]
mod tests;
mod unipc;

use aquatint_kernels::weighted_sum;
use candle_core::Tensor;

use crate::noise::TorchGenerator;
use crate::{Error, Result};
pub use flow_match::FlowMatch;
pub use kind::SamplerKind;
use plan::{Evaluation, Plan, Solver};
pub use settings::SamplerSettings;

/// One run of a sampler.
#[derive(Debug)]
pub struct Sampler {
    /// Evaluations in a full step.
    order: usize,
    /// Whether image-to-image does the whole of a step of which strength leaves a part.
    rounds_up: bool,
    num_inference_steps: usize,
    num_train_timesteps: usize,
    plan: Plan,
    solver: Box<dyn Solver>,
    position: usize,
    end: usize,
}

impl Sampler {
    fn new(settings: &SamplerSettings, steps: usize, plan: Plan, solver: Box<dyn Solver>) -> Self {
        Self {
            order: if settings.kind() == SamplerKind::Heun { 2 } else { 1 },
            rounds_up: false,
            num_inference_steps: steps,
            num_train_timesteps: settings.num_train_timesteps(),
            end: plan.timesteps.len(),
            plan,
            solver,
            position: 0,
        }
    }

    /// One of flow matching.
    fn straight(steps: usize, num_train_timesteps: usize, plan: Plan, solver: Box<dyn Solver>) -> Self {
        Self {
            order: 1,
            rounds_up: true,
            num_inference_steps: steps,
            num_train_timesteps,
            end: plan.timesteps.len(),
            plan,
            solver,
            position: 0,
        }
    }

    /// Where the run ends, counted in evaluations from the start of the schedule.
    #[expect(clippy::len_without_is_empty, reason = "a run has at least one evaluation")]
    pub fn len(&self) -> usize {
        self.end
    }

    /// The evaluation that comes next, counted from the start of the schedule.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether every evaluation has been made.
    pub fn is_done(&self) -> bool {
        self.position >= self.end
    }

    /// What the denoiser is told at each evaluation of the whole schedule: training timesteps, in order, not always
    /// whole.
    pub fn timesteps(&self) -> &[f64] {
        &self.plan.timesteps
    }

    /// Noise to signal at each evaluation and at the end, as diffusers' `sigmas`; empty for samplers that have none.
    pub fn sigmas(&self) -> &[f64] {
        &self.plan.sigmas
    }

    /// Evaluations in a full step.
    pub fn order(&self) -> usize {
        self.order
    }

    /// What standard normal noise is multiplied by to be the first sample.
    pub fn init_noise_sigma(&self) -> f64 {
        self.plan.init_noise_sigma
    }

    /// Begins at evaluation `index` of the schedule (image-to-image); to be called before the first step. What is past
    /// the end is the end.
    pub fn start_at(&mut self, index: usize) {
        self.position = index.min(self.end);
    }

    /// Ends before evaluation `index` of the schedule (a second model goes on from there). The solver still knows the
    /// whole schedule.
    pub fn end_at(&mut self, index: usize) {
        self.end = index.min(self.plan.timesteps.len());
    }

    /// Where image-to-image begins: the share `strength` of the steps, 0 to 1, is left.
    ///
    /// Source: `get_timesteps` of `StableDiffusionImg2ImgPipeline` and `FluxImg2ImgPipeline`.
    pub fn index_of_strength(&self, strength: f64) -> usize {
        let steps = self.num_inference_steps;
        let left = steps as f64 * strength;
        let begun = match self.rounds_up {
            true => (steps as f64 - left).max(0.0) as usize,
            false => steps - (left as usize).min(steps),
        };
        begun * self.order
    }

    /// Where a run begins that takes over at the share `denoising_start` of the noise, 0 to 1.
    ///
    /// Source: `StableDiffusionXLImg2ImgPipeline.get_timesteps`.
    pub fn index_of_denoising_start(&self, denoising_start: f64) -> usize {
        let cutoff = self.cutoff(denoising_start);
        let mut left = self.plan.timesteps.iter().filter(|t| **t < cutoff).count();
        if self.order() == 2 && left % 2 == 0 {
            // Between the evaluations of a step the run cannot begin.
            left += 1;
        }
        self.plan.timesteps.len().saturating_sub(left)
    }

    /// Where a run ends that hands over at the share `denoising_end` of the noise, 0 to 1.
    ///
    /// Source: `StableDiffusionXLPipeline.__call__`.
    pub fn index_of_denoising_end(&self, denoising_end: f64) -> usize {
        let cutoff = self.cutoff(denoising_end);
        self.plan.timesteps.iter().filter(|t| **t >= cutoff).count()
    }

    /// The training timestep at which the share `done` of the noise is gone.
    fn cutoff(&self, done: f64) -> f64 {
        let train = self.num_train_timesteps as f64;
        (train - done * train).round_ties_even()
    }

    /// `original` with as much of `noise` as a sample has at evaluation `index`.
    ///
    /// # Errors
    /// `index` is past the end, or the shapes differ.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        let Some(level) = self.plan.levels.get(index) else {
            let evaluations = self.plan.levels.len();
            return Err(Error::invalid(format!("add_noise: evaluation {index} of {evaluations}")));
        };
        let (signal, sigma) = (level.scale * level.alpha, level.scale * level.sigma);
        Ok(weighted_sum(&[(signal, original), (sigma, noise)])?)
    }

    /// The sample as the denoiser is to see it at the next evaluation.
    ///
    /// # Errors
    /// The run is over.
    pub fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor> {
        self.check(self.position, sample, sample)?;
        let scale = self.plan.levels[self.position].scale;
        Ok(if scale == 1.0 { sample.clone() } else { weighted_sum(&[(1.0 / scale, sample)])? })
    }

    /// Goes one evaluation further: from the sample and the model's output for it to the next sample. Stochastic
    /// samplers draw from `noise`, in torch's order.
    ///
    /// # Errors
    /// The run is over, or the shapes differ.
    pub fn step(
        &mut self,
        model_output: &Tensor,
        sample: &Tensor,
        noise: &mut TorchGenerator,
    ) -> Result<Tensor> {
        self.check(self.position, model_output, sample)?;
        let at = Evaluation { plan: &self.plan, index: self.position, model_output, sample };
        let next = self.solver.step(at, noise)?;
        self.position += 1;
        Ok(next)
    }

    /// The denoised sample that the model's output implies at evaluation `index`, for previews.
    ///
    /// # Errors
    /// `index` is past the end, or the shapes differ.
    pub fn denoised(&self, index: usize, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        self.check(index, model_output, sample)?;
        self.solver.denoised(Evaluation { plan: &self.plan, index, model_output, sample })
    }

    fn check(&self, index: usize, model_output: &Tensor, sample: &Tensor) -> Result<()> {
        if index >= self.end {
            return Err(Error::invalid(format!("the sampler has made all its {} evaluations", self.end)));
        }
        if model_output.dims() != sample.dims() {
            let (output, sample) = (model_output.dims(), sample.dims());
            return Err(Error::invalid(format!(
                "a model output of shape {output:?} for a sample of {sample:?}"
            )));
        }
        Ok(())
    }
}
