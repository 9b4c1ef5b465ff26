//! DDPM: Ho et al. 2020, <https://arxiv.org/abs/2006.11239>.

use candle_core::Tensor;

use super::plan::{Evaluation, Plan, Solver};
use super::schedule::{Schedule, choice};
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::SchedulerConfig;

/// What DDPM reads from the config.
#[derive(Clone, Debug)]
pub(super) struct Ddpm {
    variance: Variance,
}

#[derive(Clone, Copy, Debug)]
enum Variance {
    Small,
    Large,
}

impl Ddpm {
    pub(super) fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let allowed = [
            ("fixed_small", Variance::Small),
            ("fixed_small_log", Variance::Small),
            ("fixed_large", Variance::Large),
        ];
        let variance = choice("variance_type", config.variance_type.as_deref(), Variance::Small, &allowed)?;
        Ok(Self { variance })
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let plan = Plan::looked_up(schedule, schedule.whole_timesteps(n))?;
        let next = plan.timesteps.iter().skip(1).map(|t| schedule.alpha_cumprod(*t, 1.0));
        let previous = next.chain([1.0]).collect();
        Ok((plan, Box::new(Steps { previous, variance: self.variance })))
    }
}

#[derive(Debug)]
struct Steps {
    /// The signal's part of the variance after each step.
    previous: Vec<f64>,
    variance: Variance,
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let (current, previous) = (at.level().alpha.powi(2), self.previous[at.index]);
        let alpha = current / previous;
        let beta = 1.0 - alpha;
        let of_denoised = previous.sqrt() * beta / (1.0 - current);
        let of_sample = alpha.sqrt() * (1.0 - previous) / (1.0 - current);
        if at.plan.timesteps[at.index] == 0.0 {
            return at.combine(of_sample, of_denoised, 0.0, &[]);
        }
        let variance = match self.variance {
            Variance::Small => ((1.0 - previous) / (1.0 - current) * beta).max(1e-20),
            Variance::Large => beta,
        };
        at.combine(of_sample, of_denoised, 0.0, &[(variance.sqrt(), &at.draw(noise)?)])
    }
}
