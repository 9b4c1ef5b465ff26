//! The noise that training adds at each of its timesteps, and what is left of the signal after them.

use std::f64::consts::PI;

/// How the betas go from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaSchedule {
    /// In equal steps.
    Linear,
    /// In equal steps of their square roots: the latent diffusion models.
    ScaledLinear,
    /// From a squared cosine, whatever the first and last beta.
    SquaredcosCapV2,
}

impl BetaSchedule {
    /// `n` betas, one a training timestep.
    ///
    /// Source: the constructors of diffusers' schedulers; `betas_for_alpha_bar`.
    pub fn betas(self, start: f64, end: f64, n: usize) -> Vec<f32> {
        match self {
            Self::Linear => linspace_f32(start, end, n),
            Self::ScaledLinear => {
                linspace_f32(start.sqrt(), end.sqrt(), n).into_iter().map(|b| b * b).collect()
            }
            Self::SquaredcosCapV2 => {
                let alpha_bar = |i: usize| ((i as f64 / n as f64 + 0.008) / 1.008 * PI / 2.0).cos().powi(2);
                (0..n).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999) as f32).collect()
            }
        }
    }
}

/// `torch.linspace` in f32, to the last bit: it counts from both ends, with one rounding a value.
fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n as f32 - 1.0);
    let value = |i: usize| match i {
        i if i < n / 2 => step.mul_add(i as f32, start),
        i => (-step).mul_add((n - 1 - i) as f32, end),
    };
    (0..n).map(value).collect()
}

/// The part of the signal's variance that is left at each training timestep: products of `1 - beta`, summed up in
/// f64 and rounded to f32, as torch does.
pub fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let product = betas.iter().scan(1.0, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    product.collect()
}

/// Betas of which the last leaves no signal at all.
///
/// Source: Lin et al. 2023, algorithm 1, <https://arxiv.org/abs/2305.08891>.
pub fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let scale = first / (first - last);
    roots.iter_mut().for_each(|root| *root = (*root - last) * scale);
    let bars: Vec<f32> = roots.into_iter().map(|root| root * root).collect();
    let alphas = bars.iter().enumerate().map(|(i, bar)| if i == 0 { *bar } else { bar / bars[i - 1] });
    alphas.map(|alpha| 1.0 - alpha).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_those_asked_for() {
        let linear = BetaSchedule::Linear.betas(0.0001, 0.02, 1000);
        assert_eq!((linear[0], linear[999]), (0.0001, 0.02));
        let scaled = BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000);
        assert!((scaled[0] - 0.00085).abs() < 1e-9 && (scaled[999] - 0.012).abs() < 1e-8);
        assert_eq!(BetaSchedule::SquaredcosCapV2.betas(0.0, 0.0, 1000)[999], 0.999);
    }

    #[test]
    fn stable_diffusion_goes_to_sigma_14() {
        // 14.6146 and 0.0292: the sigma_max and sigma_min that k-diffusion's users know of Stable Diffusion.
        let left = alphas_cumprod(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000));
        let sigma = |a: f32| ((1.0 - a) / a).sqrt();
        assert!((sigma(left[999]) - 14.6146).abs() < 1e-4 && (sigma(left[0]) - 0.0292).abs() < 1e-4);
    }

    #[test]
    fn zero_terminal_snr_ends_at_zero_and_keeps_the_start() {
        let betas = BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000);
        let (before, after) = (alphas_cumprod(&betas), alphas_cumprod(&rescale_zero_terminal_snr(&betas)));
        assert_eq!(after[999], 0.0);
        assert!((after[0] - before[0]).abs() < 1e-6);
        assert!(rescale_zero_terminal_snr(&[]).is_empty());
    }
}
