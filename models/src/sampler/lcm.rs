//! Latent consistency models: Luo et al. 2023, <https://arxiv.org/abs/2310.04378>. Each step denoises all the way and
//! adds fresh noise.

use candle_core::Tensor;

use super::plan::{Evaluation, Plan, Solver};
use super::schedule::Schedule;
use crate::noise::TorchGenerator;
use crate::schedule::SchedulerConfig;
use crate::{Error, Result};

/// What LCM reads from the config.
#[derive(Clone, Debug)]
pub(super) struct Lcm {
    distilled: Distilled,
    timestep_scaling: f64,
}

impl Lcm {
    pub(super) fn from_config(config: &SchedulerConfig, num_train_timesteps: usize) -> Result<Self> {
        Ok(Self {
            distilled: Distilled::from_config(config, num_train_timesteps)?,
            timestep_scaling: config.timestep_scaling.unwrap_or(10.0),
        })
    }

    pub(super) fn max_steps(&self) -> usize {
        self.distilled.original_steps
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let plan = Plan::looked_up(schedule, self.distilled.timesteps(schedule.num_train_timesteps, n))?;
        let next = plan.timesteps.iter().skip(1).map(|t| schedule.alpha_cumprod(*t, 1.0)).collect();
        Ok((plan, Box::new(Steps { next, timestep_scaling: self.timestep_scaling })))
    }
}

#[derive(Debug)]
struct Steps {
    /// The signal's part of the variance after each step but the last.
    next: Vec<f64>,
    timestep_scaling: f64,
}

impl Steps {
    /// Weights of the sample and of its prediction, which make timestep 0 the identity.
    fn boundary(&self, timestep: f64) -> (f64, f64) {
        const SIGMA_DATA: f64 = 0.5;
        let t = timestep * self.timestep_scaling;
        let norm = t.hypot(SIGMA_DATA);
        ((SIGMA_DATA / norm).powi(2), t / norm)
    }
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let Some(next) = self.next.get(at.index) else {
            return self.denoised(at);
        };
        let (skip, out) = self.boundary(at.plan.timesteps[at.index]);
        let signal = next.sqrt();
        at.combine(signal * skip, signal * out, 0.0, &[((1.0 - next).sqrt(), &at.draw(noise)?)])
    }

    fn denoised(&self, at: Evaluation<'_>) -> Result<Tensor> {
        let (skip, out) = self.boundary(at.plan.timesteps[at.index]);
        at.combine(skip, out, 0.0, &[])
    }
}

/// The schedule of a distilled model: a few of the `original_inference_steps` it was distilled from.
#[derive(Clone, Debug)]
pub(super) struct Distilled {
    pub(super) original_steps: usize,
}

impl Distilled {
    pub(super) fn from_config(config: &SchedulerConfig, num_train_timesteps: usize) -> Result<Self> {
        let original_steps = config.original_inference_steps.unwrap_or(50);
        if !(1..=num_train_timesteps).contains(&original_steps) {
            return Err(Error::invalid(format!(
                "scheduler: original_inference_steps is {original_steps}, allowed are 1 to {num_train_timesteps}"
            )));
        }
        Ok(Self { original_steps })
    }

    /// `n` timesteps of `0..train`, the noisiest first.
    pub(super) fn timesteps(&self, train: usize, n: usize) -> Vec<f64> {
        let stride = train / self.original_steps;
        let step = self.original_steps as f64 / n as f64;
        let from_end = (0..n).map(|i| (i as f64 * step).floor() as usize);
        from_end.map(|i| ((self.original_steps - i) * stride - 1) as f64).collect()
    }
}
