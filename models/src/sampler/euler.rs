//! Euler's method on the probability flow: Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 2
//! without churn.

use candle_core::Tensor;

use super::plan::{Evaluation, Solver};
use crate::Result;
use crate::noise::TorchGenerator;

#[derive(Debug)]
pub(super) struct Euler;

impl Solver for Euler {
    fn step(&mut self, at: Evaluation<'_>, _noise: &mut TorchGenerator) -> Result<Tensor> {
        // The derivative of the sample by sigma is the noise in it.
        at.combine(1.0, 0.0, at.next_sigma() - at.sigma(), &[])
    }
}
