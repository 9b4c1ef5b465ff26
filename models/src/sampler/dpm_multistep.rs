//! DPM-Solver that looks back at earlier steps: DPM++ 2M and 3M, and their SDE forms.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::dpm::{ALGORITHMS, Algorithm, Settings, lambda};
use super::plan::{Evaluation, Plan, Solver};
use super::schedule::{Schedule, unsupported};
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::{FinalSigma, SchedulerConfig};

/// What the multistep form reads from the config.
#[derive(Clone, Debug)]
pub(super) struct DpmMultistep {
    settings: Settings,
    lower_order_final: bool,
    euler_at_final: bool,
}

/// Runs of this many steps and more keep their order to the end.
const LONG_RUN: usize = 15;

impl DpmMultistep {
    pub(super) fn from_config(config: &SchedulerConfig, final_sigma: FinalSigma) -> Result<Self> {
        let settings = Settings::from_config(config, final_sigma, &ALGORITHMS)?;
        if settings.order == 3 && settings.algorithm == Algorithm::SdeDpmSolver {
            return Err(unsupported("solver_order", 3, "1 and 2, with algorithm_type sde-dpmsolver"));
        }
        Ok(Self {
            settings,
            lower_order_final: config.lower_order_final.unwrap_or(true),
            euler_at_final: config.euler_at_final.unwrap_or(false),
        })
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let visited = self.settings.visited(&schedule.alphas_cumprod)?;
        let plan = Plan::preserving(schedule, schedule.spacing, n, visited, !schedule.cosine_betas)?;
        let short = self.lower_order_final && plan.timesteps.len() < LONG_RUN;
        let last_is_first_order = self.euler_at_final || short || schedule.final_sigma == FinalSigma::Zero;
        let steps = Steps { settings: self.settings, short, last_is_first_order, history: VecDeque::new() };
        Ok((plan, Box::new(steps)))
    }
}

#[derive(Debug)]
struct Steps {
    settings: Settings,
    /// Whether the order falls towards the end.
    short: bool,
    last_is_first_order: bool,
    /// What is integrated, the newest first.
    history: VecDeque<Tensor>,
}

impl Steps {
    fn order(&self, at: &Evaluation<'_>) -> usize {
        if at.sigma() == at.next_sigma() {
            return 1; // no step at all, and so no derivative over it
        }
        let left = at.plan.timesteps.len() - at.index;
        let at_end = match left {
            1 if self.last_is_first_order => 1,
            2 if self.short => 2,
            _ => 3,
        };
        self.settings.order.min(self.history.len()).min(at_end)
    }
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let Settings { algorithm, solver_type, order, .. } = self.settings;
        self.history.push_front(algorithm.integrand(&at)?);
        self.history.truncate(order);
        let fresh = algorithm.draw(&at, noise)?;

        let weights = algorithm.weights(at.sigma(), at.next_sigma());
        let back = |k: usize| lambda(at.plan, at.index - k);
        let h = lambda(at.plan, at.index + 1) - back(0);
        // Of the newest value and those before it.
        let of_values = match self.order(&at) {
            1 => vec![weights.value],
            2 => {
                // The first derivative is (m0 - m1) / r.
                let first = weights.first(solver_type) * h / (back(0) - back(1));
                vec![weights.value + first, -first]
            }
            _ => {
                // Divided differences d0 = (m0 - m1) / r0 and d1 = (m1 - m2) / r1 give the derivatives
                // d0 + (d0 - d1) r0 / (r0 + r1) and (d0 - d1) / (r0 + r1).
                let (r0, r1) = ((back(0) - back(1)) / h, (back(1) - back(2)) / h);
                let difference = (weights.heun * r0 + weights.second) / (r0 + r1);
                let (d0, d1) = ((weights.heun + difference) / r0, -difference / r1);
                vec![weights.value + d0, d1 - d0, -d1]
            }
        };
        let mut terms = vec![(weights.sample, at.sample)];
        terms.extend(of_values.into_iter().zip(&self.history));
        terms.extend(fresh.iter().map(|noise| (weights.noise, noise)));
        Ok(aquatint_kernels::weighted_sum(&terms)?)
    }
}
