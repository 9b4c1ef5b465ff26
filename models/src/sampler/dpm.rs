//! DPM-Solver: Lu et al. 2022, <https://arxiv.org/abs/2206.00927> and <https://arxiv.org/abs/2211.01095>. What its
//! multistep and singlestep forms share: the exponential integrator's weights.

use candle_core::Tensor;

use super::plan::{Evaluation, Plan};
use super::schedule::{choice, unsupported};
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::{FinalSigma, NoiseLevel, SchedulerConfig};

/// What is integrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// The predicted noise.
    DpmSolver,
    /// The predicted sample.
    DpmSolverPlusPlus,
    /// The predicted noise, with fresh noise at each step.
    SdeDpmSolver,
    /// The predicted sample, with fresh noise at each step.
    SdeDpmSolverPlusPlus,
}

/// How the derivative of what is integrated is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SolverType {
    Midpoint,
    Heun,
}

/// What both forms read from the config.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) algorithm: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) order: usize,
    pub(super) lambda_min_clipped: f64,
}

/// `algorithm_type` and what it stands for. `deis`, another scheduler's, is read as the default, as in diffusers.
pub(super) const ALGORITHMS: [(&str, Algorithm); 5] = [
    ("dpmsolver++", Algorithm::DpmSolverPlusPlus),
    ("dpmsolver", Algorithm::DpmSolver),
    ("sde-dpmsolver++", Algorithm::SdeDpmSolverPlusPlus),
    ("deis", Algorithm::DpmSolverPlusPlus),
    ("sde-dpmsolver", Algorithm::SdeDpmSolver),
];

impl Settings {
    /// `algorithms`: those of [`ALGORITHMS`] that the form has.
    pub(super) fn from_config(
        config: &SchedulerConfig,
        final_sigma: FinalSigma,
        algorithms: &[(&str, Algorithm)],
    ) -> Result<Self> {
        let algorithm = config.algorithm_type.as_deref();
        let algorithm = choice("algorithm_type", algorithm, Algorithm::DpmSolverPlusPlus, algorithms)?;
        // The values of other multistep schedulers are read as the default, as in diffusers.
        let solver_types = [
            ("midpoint", SolverType::Midpoint),
            ("heun", SolverType::Heun),
            ("logrho", SolverType::Midpoint),
            ("bh1", SolverType::Midpoint),
            ("bh2", SolverType::Midpoint),
        ];
        let solver_type = config.solver_type.as_deref();
        let solver_type = choice("solver_type", solver_type, SolverType::Midpoint, &solver_types)?;
        let order = config.solver_order.unwrap_or(2);
        if !(1..=3).contains(&order) {
            return Err(unsupported("solver_order", order, "1 to 3"));
        }
        if !algorithm.integrates_sample() && final_sigma == FinalSigma::Zero {
            return Err(unsupported("final_sigmas_type", "zero", "sigma_min, with this algorithm_type"));
        }
        let lambda_min_clipped = config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY);
        Ok(Self { algorithm, solver_type, order, lambda_min_clipped })
    }

    /// How many of the training timesteps, from 0 on, have a lambda of at least `lambda_min_clipped`.
    pub(super) fn visited(&self, alphas_cumprod: &[f32]) -> Result<usize> {
        let lambda = |a: f32| a.sqrt().ln() - (1.0 - a).sqrt().ln();
        let clipped = |a: &&f32| f64::from(lambda(**a)) < self.lambda_min_clipped;
        match alphas_cumprod.len() - alphas_cumprod.iter().rev().take_while(clipped).count() {
            0 | 1 => Err(unsupported(
                "lambda_min_clipped",
                self.lambda_min_clipped,
                "what leaves two of the model's timesteps at least",
            )),
            visited => Ok(visited),
        }
    }
}

impl Algorithm {
    pub(super) fn integrates_sample(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }

    fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }

    /// What is integrated, as a tensor to be remembered.
    pub(super) fn integrand(self, at: &Evaluation<'_>) -> Result<Tensor> {
        if self.integrates_sample() { at.denoised() } else { at.epsilon() }
    }

    /// The noise of a step, where it takes any.
    pub(super) fn draw(self, at: &Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Option<Tensor>> {
        self.is_stochastic().then(|| at.draw(noise)).transpose()
    }

    /// The weights of a step from the noise level of one sigma to that of another.
    pub(super) fn weights(self, from: f64, to: f64) -> Weights {
        let h = from.ln() - to.ln();
        let (from, to) = (NoiseLevel::preserving(from), NoiseLevel::preserving(to));
        match self {
            Self::DpmSolverPlusPlus => Weights::new(to.sigma / from.sigma, -to.alpha, -h, 0.0),
            Self::DpmSolver => Weights::new(to.alpha / from.alpha, -to.sigma, h, 0.0),
            Self::SdeDpmSolverPlusPlus => {
                let added = to.sigma * (-(-2.0 * h).exp_m1()).sqrt();
                let weights = Weights::new(to.sigma / from.sigma * (-h).exp(), -to.alpha, -2.0 * h, added);
                // The reference has the half of the second derivative's weight on the wrong side, and the pictures of
                // its third order are those that users know.
                Weights { second: weights.second - to.alpha, ..weights }
            }
            Self::SdeDpmSolver => {
                let added = to.sigma * (2.0 * h).exp_m1().sqrt();
                Weights::new(to.alpha / from.alpha, -2.0 * to.sigma, h, added)
            }
        }
    }
}

/// The weights of a step: of the sample it goes from, of what is integrated there (`value`), of its first
/// derivative by two rules and its second, each times the length of the step, and of fresh noise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub(super) sample: f64,
    pub(super) value: f64,
    pub(super) midpoint: f64,
    pub(super) heun: f64,
    pub(super) second: f64,
    pub(super) noise: f64,
}

impl Weights {
    /// Exponential integrals over a step of signed length `h`, times `scale`.
    fn new(sample: f64, scale: f64, h: f64, noise: f64) -> Self {
        let phi_1 = h.exp_m1();
        // Where two sigmas are equal, the step has no length and these their limit.
        let (phi_2, phi_3) =
            if h == 0.0 { (0.0, 0.0) } else { (phi_1 / h - 1.0, (phi_1 - h) / (h * h) - 0.5) };
        Self {
            sample,
            value: scale * phi_1,
            midpoint: scale * phi_1 / 2.0,
            heun: scale * phi_2,
            second: scale * phi_3,
            noise,
        }
    }

    /// The weight of the first derivative.
    pub(super) fn first(self, solver_type: SolverType) -> f64 {
        match solver_type {
            SolverType::Midpoint => self.midpoint,
            SolverType::Heun => self.heun,
        }
    }
}

/// Minus the logarithm of a sigma: half the logarithm of its signal-to-noise ratio.
pub(super) fn lambda(plan: &Plan, index: usize) -> f64 {
    -plan.sigmas[index].ln()
}
