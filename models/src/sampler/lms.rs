//! Linear multistep (Adams-Bashforth on uneven steps): `sample_lms` of k-diffusion.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::plan::{Evaluation, Solver};
use crate::Result;
use crate::noise::TorchGenerator;

const ORDER: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Lms {
    /// The newest first.
    derivatives: VecDeque<Tensor>,
}

impl Solver for Lms {
    fn step(&mut self, at: Evaluation<'_>, _noise: &mut TorchGenerator) -> Result<Tensor> {
        self.derivatives.push_front(at.epsilon()?);
        self.derivatives.truncate(ORDER);
        // The order follows the place in the schedule. Where a run starts further on (image-to-image), the weights of
        // derivatives that there are not yet are lost, in the reference as here.
        let order = ORDER.min(at.index + 1);
        let newest_first: Vec<f64> = (0..order).map(|k| at.plan.sigmas[at.index - k]).collect();
        let weight = |j| lagrange_integral(&newest_first, j, at.sigma(), at.next_sigma());
        let terms: Vec<_> =
            self.derivatives.iter().take(order).enumerate().map(|(j, d)| (weight(j), d)).collect();
        Ok(aquatint_kernels::weighted_sum(&[&[(1.0, at.sample)], terms.as_slice()].concat())?)
    }
}

/// The integral from `from` to `to` of the polynomial that is 1 at `nodes[j]` and 0 at the other nodes. Two points of
/// Gauss are exact up to degree 3, so for four nodes.
fn lagrange_integral(nodes: &[f64], j: usize, from: f64, to: f64) -> f64 {
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let polynomial = |x: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others.map(|(_, node)| (x - node) / (nodes[j] - node)).product()
    };
    let offset = half / 3f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}

#[cfg(test)]
mod tests {
    use super::lagrange_integral;

    #[test]
    fn evenly_spaced_nodes_are_adams_bashforth() {
        let nodes = [3.0, 2.0, 1.0, 0.0];
        let expected = [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0];
        for (j, weight) in expected.into_iter().enumerate() {
            assert!((lagrange_integral(&nodes, j, 3.0, 4.0) - weight).abs() < 1e-12);
        }
    }
}
