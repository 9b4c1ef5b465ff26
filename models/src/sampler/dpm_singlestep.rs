//! DPM-Solver in groups of up to three evaluations, each group one step of that order: DPM++ 2S and DPM++ SDE.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::dpm::{ALGORITHMS, Settings, SolverType, lambda};
use super::plan::{Evaluation, Plan, Solver};
use super::schedule::Schedule;
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::{FinalSigma, SchedulerConfig, Spacing};

/// What the singlestep form reads from the config.
#[derive(Clone, Debug)]
pub(super) struct DpmSinglestep {
    settings: Settings,
    lower_order_final: bool,
}

impl DpmSinglestep {
    pub(super) fn from_config(config: &SchedulerConfig, final_sigma: FinalSigma) -> Result<Self> {
        Ok(Self {
            settings: Settings::from_config(config, final_sigma, &ALGORITHMS[..4])?,
            lower_order_final: config.lower_order_final.unwrap_or(false),
        })
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let visited = self.settings.visited(&schedule.alphas_cumprod)?;
        // The class has no timestep_spacing.
        let plan = Plan::preserving(schedule, Spacing::Linspace, n, visited, true)?;
        let orders = self.orders(n, schedule.final_sigma);
        Ok((plan, Box::new(Steps { settings: self.settings, orders, history: VecDeque::new(), group: None })))
    }

    /// The order of each evaluation: groups count up to the solver's order; the last may have to be of first order.
    fn orders(&self, n: usize, final_sigma: FinalSigma) -> Vec<usize> {
        let order = self.settings.order;
        let mut orders: Vec<usize> = (0..n).map(|i| i % order + 1).collect();
        if final_sigma == FinalSigma::Zero || self.lower_order_final && n.is_multiple_of(order) {
            orders[n - 1] = 1;
        }
        orders
    }
}

#[derive(Debug)]
struct Steps {
    settings: Settings,
    orders: Vec<usize>,
    /// What is integrated, the newest first.
    history: VecDeque<Tensor>,
    /// The sample that the group started from.
    group: Option<Tensor>,
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let Settings { algorithm, solver_type, order, .. } = self.settings;
        self.history.push_front(algorithm.integrand(&at)?);
        self.history.truncate(order);
        let fresh = algorithm.draw(&at, noise)?;

        // A run that starts within a group has only what it has seen.
        let order = self.orders[at.index].min(self.history.len());
        if order == 1 {
            self.group = Some(at.sample.clone());
        }
        let first = at.index + 1 - order;
        let weights = algorithm.weights(at.plan.sigmas[first], at.next_sigma());
        let since_first = |i: usize| lambda(at.plan, i) - lambda(at.plan, first);
        let h = since_first(at.index + 1);
        let of_values = match order {
            1 => vec![weights.value],
            2 => {
                // The first derivative is (m0 - m1) / r.
                let first = weights.first(solver_type) * h / since_first(at.index);
                vec![first, weights.value - first]
            }
            _ => {
                // d0 = (m1 - m2) / r1 and d1 = (m0 - m2) / r0.
                let (r0, r1) = (since_first(at.index) / h, since_first(at.index - 1) / h);
                let (d0, d1) = match solver_type {
                    SolverType::Midpoint => (0.0, weights.heun),
                    SolverType::Heun => {
                        let (first, second) = (weights.heun / (r0 - r1), 2.0 * weights.second / (r0 - r1));
                        (first * r0 - second, second - first * r1)
                    }
                };
                vec![d1 / r0, d0 / r1, weights.value - d0 / r1 - d1 / r0]
            }
        };
        let mut terms = vec![(weights.sample, self.group.as_ref().unwrap_or(at.sample))];
        terms.extend(of_values.into_iter().zip(&self.history));
        terms.extend(fresh.iter().map(|noise| (weights.noise, noise)));
        Ok(aquatint_kernels::weighted_sum(&terms)?)
    }
}
