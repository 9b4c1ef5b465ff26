//! Heun's method: Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 2 without churn. Every step but
//! the last takes two evaluations.

use aquatint_kernels::weighted_sum;
use candle_core::Tensor;

use super::plan::{Evaluation, Plan, Solver};
use super::schedule::Schedule;
use crate::Result;
use crate::noise::TorchGenerator;

/// The second evaluation of a step is at the timestep of the next step's first.
pub(super) fn start(schedule: &Schedule, n: usize) -> (Plan, Box<dyn Solver>) {
    let plan = Plan::exploding(schedule, n);
    let twice = |i: usize| i.div_ceil(2);
    let evaluations = 2 * plan.timesteps.len() - 1;
    let last = plan.sigmas.len() - 1;
    let doubled = Plan {
        timesteps: (0..evaluations).map(|i| plan.timesteps[twice(i)]).collect(),
        levels: (0..evaluations).map(|i| plan.levels[twice(i)]).collect(),
        sigmas: (0..evaluations).map(|i| plan.sigmas[twice(i)]).chain([plan.sigmas[last]]).collect(),
        ..plan
    };
    (doubled, Box::new(Heun { first: None }))
}

#[derive(Debug)]
struct Heun {
    /// Between the two evaluations of a step.
    first: Option<First>,
}

#[derive(Debug)]
struct First {
    sample: Tensor,
    derivative: Tensor,
    /// How far the step goes in sigma.
    length: f64,
}

impl Solver for Heun {
    fn step(&mut self, at: Evaluation<'_>, _noise: &mut TorchGenerator) -> Result<Tensor> {
        // By way of the denoised sample, which may have been clipped.
        let derivative = at.combine(1.0 / at.sigma(), -1.0 / at.sigma(), 0.0, &[])?;
        if let Some(First { sample, derivative: first, length }) = self.first.take() {
            return Ok(weighted_sum(&[(1.0, &sample), (length / 2.0, &first), (length / 2.0, &derivative)])?);
        }
        let length = at.next_sigma() - at.sigma();
        let next = weighted_sum(&[(1.0, at.sample), (length, &derivative)])?;
        self.first = Some(First { sample: at.sample.clone(), derivative, length });
        Ok(next)
    }
}
