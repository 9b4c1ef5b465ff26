//! DDIM: Song et al. 2020, <https://arxiv.org/abs/2010.02502>.

use candle_core::Tensor;

use super::plan::{Evaluation, Plan, Solver};
use super::schedule::Schedule;
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::SchedulerConfig;

/// What DDIM reads from the config.
#[derive(Clone, Debug)]
pub(super) struct Ddim {
    set_alpha_to_one: bool,
}

impl Ddim {
    pub(super) fn from_config(config: &SchedulerConfig) -> Self {
        Self { set_alpha_to_one: config.set_alpha_to_one.unwrap_or(true) }
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize, eta: f64) -> Result<(Plan, Box<dyn Solver>)> {
        let end = if self.set_alpha_to_one { 1.0 } else { schedule.alpha_cumprod(0.0, 1.0) };
        let plan = Plan::looked_up(schedule, schedule.whole_timesteps(n))?;
        // Whatever the spacing, a step is as long as one of `leading`.
        let length = (schedule.num_train_timesteps / n) as f64;
        let previous = plan.timesteps.iter().map(|t| schedule.alpha_cumprod(t - length, end)).collect();
        Ok((plan, Box::new(Steps { previous, eta })))
    }
}

#[derive(Debug)]
struct Steps {
    /// The signal's part of the variance after each step.
    previous: Vec<f64>,
    /// 0 is DDIM, 1 adds as much noise as DDPM.
    eta: f64,
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let (current, previous) = (at.level().alpha.powi(2), self.previous[at.index]);
        let variance = (1.0 - previous) / (1.0 - current) * (1.0 - current / previous);
        let deviation = self.eta * variance.sqrt();
        let direction = (1.0 - previous - deviation.powi(2)).sqrt();
        if self.eta > 0.0 {
            at.combine(0.0, previous.sqrt(), direction, &[(deviation, &at.draw(noise)?)])
        } else {
            at.combine(0.0, previous.sqrt(), direction, &[])
        }
    }
}
