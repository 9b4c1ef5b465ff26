//! Euler's method that goes too far down and adds fresh noise: `sample_euler_ancestral` of k-diffusion.

use candle_core::Tensor;

use super::plan::{Evaluation, Solver};
use crate::Result;
use crate::noise::TorchGenerator;

#[derive(Debug)]
pub(super) struct EulerAncestral;

impl Solver for EulerAncestral {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let (from, to) = (at.sigma(), at.next_sigma());
        let up = to * ((from.powi(2) - to.powi(2)) / from.powi(2)).sqrt();
        let down = (to.powi(2) - up.powi(2)).sqrt();
        // The last step adds none of its noise, but draws it: the reference's stream goes on from there.
        at.combine(1.0, 0.0, down - from, &[(up, &at.draw(noise)?)])
    }
}
