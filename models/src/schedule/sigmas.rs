//! Noise as the ratio `sigma` of its standard deviation to the signal's, and the ways to space it.

use super::beta_quantile;
use super::spacing::linspace;

/// How the sigmas between the first and the last are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaKind {
    /// Those of the timesteps.
    Schedule,
    /// Evenly in `sigma^(1/7)`: Karras et al. 2022, <https://arxiv.org/abs/2206.00364>.
    Karras,
    /// Evenly in `ln(sigma)`.
    Exponential,
    /// Quantiles of Beta(0.6, 0.6): Lee et al. 2024, <https://arxiv.org/abs/2407.12173>.
    Beta,
}

impl SigmaKind {
    /// `n` sigmas from `max` down to `min`; `None` for [`SigmaKind::Schedule`], which these do not determine.
    pub fn sigmas(self, max: f64, min: f64, n: usize) -> Option<Vec<f64>> {
        const RHO: f64 = 7.0;
        let sigmas: Vec<f64> = match self {
            Self::Schedule => return None,
            Self::Karras => {
                let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
                linspace(0.0, 1.0, n).into_iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect()
            }
            Self::Exponential => linspace(max.ln(), min.ln(), n).into_iter().map(f64::exp).collect(),
            Self::Beta => {
                let quantile = |ramp: f64| min + beta_quantile::beta_quantile(1.0 - ramp) * (max - min);
                linspace(0.0, 1.0, n).into_iter().map(quantile).collect()
            }
        };
        Some(sigmas)
    }
}

/// Where the sigmas end, after the last evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalSigma {
    /// At a clean sample.
    Zero,
    /// At the least sigma of training.
    SigmaMin,
}

/// The sigma of every training timestep.
#[derive(Clone, Debug)]
pub(crate) struct SigmaTable {
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl SigmaTable {
    /// From the signal's part of the variance at each of two timesteps or more, see
    /// [`alphas_cumprod`](super::betas::alphas_cumprod).
    pub(crate) fn new(alphas_cumprod: &[f32]) -> Self {
        let sigmas: Vec<f32> = alphas_cumprod.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        let logs = sigmas.iter().copied().map(ln_as_numpy).collect();
        Self { sigmas, logs }
    }

    /// The least sigma of training.
    pub(crate) fn min(&self) -> f64 {
        self.sigmas.first().copied().unwrap_or_default().into()
    }

    /// The largest sigma of training.
    pub(crate) fn max(&self) -> f64 {
        self.sigmas.last().copied().unwrap_or_default().into()
    }

    /// The sigma at a timestep that need not be whole: between two it is linear, beyond the ends it is theirs.
    pub(crate) fn at(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = (timestep.max(0.0) as usize).min(last);
        let (a, b) = (f64::from(self.sigmas[low]), f64::from(self.sigmas[(low + 1).min(last)]));
        (b - a) * (timestep.max(0.0) - low as f64).min(1.0) + a
    }

    /// The timestep of a sigma, linear in the logarithms between two of the table, and within it.
    ///
    /// Source: `_sigma_to_t`, from `k_diffusion/external.py`.
    pub(crate) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let below = self.logs.iter().rposition(|l| log - f64::from(*l) >= 0.0).unwrap_or(0);
        let low = below.min(self.logs.len() - 2);
        let (a, b) = (self.logs[low], self.logs[low + 1]);
        let w = ((f64::from(a) - log) / f64::from(a - b)).clamp(0.0, 1.0);
        (1.0 - w) * low as f64 + w * (low + 1) as f64
    }
}

/// The natural logarithm of a positive normal f32 as numpy's vector loops compute it, which is up to two units in the
/// last place off. Timesteps that are looked up in a table of these are truncated to whole numbers by some
/// schedulers, so that the last bit of the largest sigma decides between timesteps 999 and 998.
///
/// Source: `loops_exponent_log.dispatch.c.src` of numpy.
fn ln_as_numpy(x: f32) -> f32 {
    const P: [f32; 6] = [0.025_899_792, 0.380_883_78, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
    const Q: [f32; 6] = [0.005_875_095_3, 0.154_647_63, 0.986_494_3, 2.453_006, 2.612_677_6, 1.0];
    // x = mantissa * 2^exponent, with the mantissa within a factor of sqrt(2) of 1.
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 127;
    let mut mantissa = f32::from_bits(bits & 0x7f_ffff | 0x3f80_0000);
    if mantissa > std::f32::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    let y = mantissa - 1.0;
    let polynomial = |c: [f32; 6]| c[1..].iter().fold(c[0], |sum, c| sum.mul_add(y, *c));
    (exponent as f32).mul_add(std::f32::consts::LN_2, polynomial(P) / polynomial(Q))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::betas::{BetaSchedule, alphas_cumprod};

    fn stable_diffusion() -> SigmaTable {
        SigmaTable::new(&alphas_cumprod(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000)))
    }

    #[test]
    fn the_logarithm_is_one() {
        for x in [1e-3, 0.029, 0.7, 0.999, 1.0, 1.5, 14.6, 4096.0f32] {
            let exact = f64::from(x).ln();
            assert!((f64::from(ln_as_numpy(x)) - exact).abs() <= 4e-7 * exact.abs(), "ln({x})");
        }
    }

    #[test]
    fn every_kind_goes_from_max_to_min() {
        for kind in [SigmaKind::Karras, SigmaKind::Exponential, SigmaKind::Beta] {
            let sigmas = kind.sigmas(14.6, 0.03, 10).unwrap();
            assert!(
                (sigmas[0] - 14.6).abs() < 1e-9 && (sigmas[9] - 0.03).abs() < 1e-9,
                "{kind:?}: {sigmas:?}"
            );
            assert!(sigmas.windows(2).all(|w| w[0] > w[1]), "{kind:?}: {sigmas:?}");
        }
        // exp((ln 14.6 + ln 0.03) / 2), and the middle of the Karras ramp, from their formulas.
        let middle = |kind: SigmaKind| kind.sigmas(14.6, 0.03, 3).unwrap()[1];
        assert!((middle(SigmaKind::Exponential) - (14.6f64 * 0.03).sqrt()).abs() < 1e-12);
        let karras = ((14.6f64.powf(1.0 / 7.0) + 0.03f64.powf(1.0 / 7.0)) / 2.0).powi(7);
        assert!((middle(SigmaKind::Karras) - karras).abs() < 1e-12);
        assert!((middle(SigmaKind::Beta) - (14.6 + 0.03) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn timesteps_and_sigmas_are_inverse() {
        let table = stable_diffusion();
        for t in [0.0, 1.0, 37.0, 500.0, 998.0] {
            assert!((table.timestep(table.at(t)) - t).abs() < 1e-3, "{t}");
        }
        assert_eq!((table.timestep(1e-6), table.timestep(100.0)), (0.0, 999.0));
        assert_eq!((table.at(-1.0), table.at(2000.0)), (table.min(), table.max()));
        assert_eq!(table.at(10.5), (table.at(10.0) + table.at(11.0)) / 2.0);
    }
}
