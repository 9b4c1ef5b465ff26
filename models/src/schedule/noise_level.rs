//! What a noisy sample is made of, and what the model's output says of it.

/// What the denoiser predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// `alpha * noise - sigma * sample`: Salimans and Ho 2022, <https://arxiv.org/abs/2202.00512>.
    V,
    /// The denoised sample itself.
    Sample,
    /// `noise - sample`, the direction of a straight line from one to the other: see
    /// [`flow_match`](crate::sampler::FlowMatch).
    Flow,
}

/// The amounts of signal and noise in a sample: `x = scale * (alpha * x0 + sigma * noise)`, with
/// `alpha^2 + sigma^2 = 1`, or `alpha + sigma = 1` where samples lie on a straight line. The denoiser is given
/// `x / scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Amount of signal, 0 to 1.
    pub alpha: f64,
    /// Amount of noise, 0 to 1.
    pub sigma: f64,
    /// 1 where samples keep the variance of the data; `1 / alpha` where they keep its scale.
    pub scale: f64,
}

/// A quantity as `sample * x + output * model_output`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Weight of the noisy sample.
    pub sample: f64,
    /// Weight of the model's output.
    pub output: f64,
}

impl NoiseLevel {
    /// Of a sample that keeps its variance, by the signal's part of it.
    pub fn from_alpha_cumprod(alpha_cumprod: f32) -> Self {
        let alpha_cumprod = f64::from(alpha_cumprod);
        Self { alpha: alpha_cumprod.sqrt(), sigma: (1.0 - alpha_cumprod).sqrt(), scale: 1.0 }
    }

    /// Of a sample that keeps its variance, by the ratio `sigma` of noise to signal.
    pub fn preserving(sigma: f64) -> Self {
        let scale = sigma.hypot(1.0);
        Self { alpha: 1.0 / scale, sigma: sigma / scale, scale: 1.0 }
    }

    /// Of a sample that keeps the scale of its signal, `x = x0 + sigma * noise`.
    pub fn exploding(sigma: f64) -> Self {
        Self { scale: sigma.hypot(1.0), ..Self::preserving(sigma) }
    }

    /// Of a sample on the straight line from signal to noise, `x = (1 - sigma) * x0 + sigma * noise`.
    pub fn straight(sigma: f64) -> Self {
        Self { alpha: 1.0 - sigma, sigma, scale: 1.0 }
    }

    /// Half the logarithm of the signal-to-noise ratio; infinite for a clean sample.
    pub fn lambda(self) -> f64 {
        (self.alpha / self.sigma).ln()
    }

    /// The denoised sample that a model output implies.
    pub fn denoised(self, prediction: Prediction) -> Mix {
        let Self { alpha, sigma, scale } = self;
        match prediction {
            Prediction::Epsilon => Mix { sample: 1.0 / (scale * alpha), output: -sigma / alpha },
            Prediction::V => Mix { sample: alpha / scale, output: -sigma },
            Prediction::Sample => Mix { sample: 0.0, output: 1.0 },
            Prediction::Flow => Mix { sample: 1.0 / scale, output: -sigma },
        }
    }

    /// The noise that a model output implies.
    pub fn epsilon(self, prediction: Prediction) -> Mix {
        let Self { alpha, sigma, scale } = self;
        match prediction {
            Prediction::Epsilon => Mix { sample: 0.0, output: 1.0 },
            Prediction::V => Mix { sample: sigma / scale, output: alpha },
            Prediction::Sample => Mix { sample: 1.0 / (scale * sigma), output: -alpha / sigma },
            Prediction::Flow => Mix { sample: 1.0 / scale, output: alpha },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of known parts, and the output of a perfect model.
    #[test]
    fn a_perfect_prediction_gives_back_both_parts() {
        let (x0, noise) = (0.3, -1.7);
        for level in [
            NoiseLevel::from_alpha_cumprod(0.4),
            NoiseLevel::preserving(14.6),
            NoiseLevel::exploding(14.6),
            NoiseLevel::exploding(0.03),
        ] {
            let NoiseLevel { alpha, sigma, scale } = level;
            let x = scale * (alpha * x0 + sigma * noise);
            for (prediction, output) in [
                (Prediction::Epsilon, noise),
                (Prediction::V, alpha * noise - sigma * x0),
                (Prediction::Sample, x0),
            ] {
                let of = |mix: Mix| mix.sample * x + mix.output * output;
                assert!((of(level.denoised(prediction)) - x0).abs() < 1e-12, "{level:?} {prediction:?}");
                assert!((of(level.epsilon(prediction)) - noise).abs() < 1e-12, "{level:?} {prediction:?}");
            }
        }
    }

    #[test]
    fn a_perfect_direction_gives_back_both_parts() {
        let (x0, noise, level) = (0.3, -1.7, NoiseLevel::straight(0.7));
        let x = 0.3 * x0 + 0.7 * noise;
        let of = |mix: Mix| mix.sample * x + mix.output * (noise - x0);
        assert!((of(level.denoised(Prediction::Flow)) - x0).abs() < 1e-12);
        assert!((of(level.epsilon(Prediction::Flow)) - noise).abs() < 1e-12);
    }

    #[test]
    fn exploding_is_signal_plus_sigma_times_noise() {
        let level = NoiseLevel::exploding(3.0);
        assert!((level.scale * level.alpha - 1.0).abs() < 1e-15);
        assert!((level.scale * level.sigma - 3.0).abs() < 1e-15);
        assert!((level.lambda() + 3.0f64.ln()).abs() < 1e-15);
    }
}
