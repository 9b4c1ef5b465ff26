//! Trajectory consistency distillation: Zheng et al. 2024, <https://arxiv.org/abs/2402.19159>.

use candle_core::Tensor;

use super::lcm::Distilled;
use super::plan::{Evaluation, Plan, Solver};
use super::schedule::Schedule;
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::SchedulerConfig;

/// What TCD reads from the config.
#[derive(Clone, Debug)]
pub(super) struct Tcd {
    distilled: Distilled,
}

impl Tcd {
    pub(super) fn from_config(config: &SchedulerConfig, num_train_timesteps: usize) -> Result<Self> {
        Ok(Self { distilled: Distilled::from_config(config, num_train_timesteps)? })
    }

    pub(super) fn max_steps(&self) -> usize {
        self.distilled.original_steps
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize, eta: f64) -> Result<(Plan, Box<dyn Solver>)> {
        let plan = Plan::looked_up(schedule, self.distilled.timesteps(schedule.num_train_timesteps, n))?;
        let next = plan.timesteps.iter().skip(1).copied().chain([0.0]);
        // The reference multiplies in f32, which matters where the product is almost whole.
        let below = |t: f64| f64::from(((1.0 - eta) as f32 * t as f32).floor());
        let targets = next.map(|t| (schedule.alpha_cumprod(below(t), 1.0), schedule.alpha_cumprod(t, 1.0)));
        let targets = targets.collect();
        Ok((plan, Box::new(Steps { targets, eta })))
    }
}

#[derive(Debug)]
struct Steps {
    /// The signal's part of the variance where the model is taken to, and after noise is added again.
    targets: Vec<(f64, f64)>,
    /// 0 adds no noise, 1 denoises all the way as LCM does.
    eta: f64,
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let (below, next) = self.targets[at.index];
        if self.eta == 0.0 || at.is_last() {
            return at.combine(0.0, below.sqrt(), (1.0 - below).sqrt(), &[]);
        }
        let kept = next / below;
        let (signal, epsilon) = ((kept * below).sqrt(), (kept * (1.0 - below)).sqrt());
        at.combine(0.0, signal, epsilon, &[((1.0 - kept).sqrt(), &at.draw(noise)?)])
    }
}
