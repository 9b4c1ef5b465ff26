//! What a run of so many steps visits: the part of a sampler that is fixed before the first evaluation.

use candle_core::Tensor;

use super::schedule::Schedule;
use crate::noise::TorchGenerator;
use crate::schedule::noise_level::Mix;
use crate::schedule::{NoiseLevel, Prediction, SigmaKind, Spacing};
use crate::{Error, Result};

/// What each evaluation of a run is about.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What the denoiser is told, one an evaluation.
    pub(super) timesteps: Vec<f64>,
    /// Noise to signal, one an evaluation and one for the end; empty where the class has none.
    pub(super) sigmas: Vec<f64>,
    /// What the sample holds, one an evaluation.
    pub(super) levels: Vec<NoiseLevel>,
    pub(super) prediction: Prediction,
    /// The largest magnitude of a denoised sample.
    pub(super) clip: Option<f64>,
    pub(super) init_noise_sigma: f64,
}

impl Plan {
    /// A run of whole training timesteps, whose noise levels are looked up.
    pub(super) fn looked_up(schedule: &Schedule, timesteps: Vec<f64>) -> Result<Self> {
        let last = schedule.num_train_timesteps - 1;
        if let Some(t) = timesteps.iter().find(|t| **t > last as f64) {
            return Err(Error::invalid(format!(
                "{}: so many steps with steps_offset {} reach timestep {t}, but the model knows 0 to {last}: \
                 take fewer steps",
                schedule.class_name, schedule.steps_offset
            )));
        }
        let level = |t: &f64| NoiseLevel::from_alpha_cumprod(schedule.alphas_cumprod[*t as usize]);
        let levels: Vec<NoiseLevel> = timesteps.iter().map(level).collect();
        if schedule.prediction == Prediction::Epsilon && levels.iter().any(|level| level.alpha == 0.0) {
            return Err(Error::invalid(format!(
                "{}: prediction_type epsilon says nothing of the sample at the zero signal of \
                 rescale_betas_zero_snr: use timestep_spacing leading, or a scheduler with sigmas",
                schedule.class_name
            )));
        }
        Ok(Self {
            timesteps,
            sigmas: Vec::new(),
            levels,
            prediction: schedule.prediction,
            clip: schedule.clip,
            init_noise_sigma: 1.0,
        })
    }

    /// A run whose samples keep the scale of their signal: the samplers of k-diffusion.
    pub(super) fn exploding(schedule: &Schedule, n: usize) -> Self {
        let table = &schedule.table;
        let round = |t: f64| f64::from(t as f32);
        let train = schedule.num_train_timesteps;
        let mut timesteps: Vec<f64> =
            schedule.spacing.timesteps(train, n, schedule.steps_offset).into_iter().map(round).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).collect();
        let ends = sigmas.first().copied().zip(sigmas.last().copied());
        if let Some(spaced) = ends.and_then(|(max, min)| schedule.spaced_sigmas(max, min, sigmas.len())) {
            timesteps = spaced.iter().map(|sigma| round(table.timestep(*sigma))).collect();
            sigmas = spaced;
        }
        sigmas.push(schedule.last_sigma());
        let sigmas: Vec<f64> = sigmas.into_iter().map(round).collect();
        let max = sigmas.iter().copied().fold(0.0, f64::max);
        Self {
            levels: timesteps.iter().zip(&sigmas).map(|(_, sigma)| NoiseLevel::exploding(*sigma)).collect(),
            timesteps,
            prediction: schedule.prediction,
            clip: schedule.clip,
            init_noise_sigma: match schedule.spacing {
                Spacing::Leading => max.hypot(1.0),
                Spacing::Trailing | Spacing::Linspace => max,
            },
            sigmas,
        }
    }

    /// A run whose samples keep their variance: DPM-Solver and UniPC. `visited`: how many of the training timesteps
    /// may be visited, from 0 on. `round_karras`: whether the timesteps of Karras sigmas are rounded before the
    /// fraction is dropped.
    pub(super) fn preserving(
        schedule: &Schedule,
        spacing: Spacing,
        n: usize,
        visited: usize,
        round_karras: bool,
    ) -> Result<Self> {
        let table = &schedule.table;
        let train = schedule.num_train_timesteps;
        let mut timesteps = spacing.solver_timesteps(train, visited, n, schedule.steps_offset);
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).collect();
        if let Some(spaced) = schedule.spaced_sigmas(table.max(), table.min(), n) {
            let round = round_karras && schedule.sigma_kind == SigmaKind::Karras;
            let whole = |t: f64| if round { t.round_ties_even() } else { t.trunc() };
            timesteps = spaced.iter().map(|sigma| whole(table.timestep(*sigma))).collect();
            sigmas = spaced;
        }
        sigmas.push(schedule.last_sigma());
        let sigmas: Vec<f64> = sigmas.into_iter().map(|s| f64::from(s as f32)).collect();
        if sigmas[..timesteps.len()].windows(2).any(|pair| pair[0] <= pair[1]) {
            return Err(Error::invalid(format!(
                "num_inference_steps: {n} steps of {} visit one noise level twice: take fewer steps",
                schedule.class_name
            )));
        }
        Ok(Self {
            levels: timesteps.iter().zip(&sigmas).map(|(_, sigma)| NoiseLevel::preserving(*sigma)).collect(),
            timesteps,
            sigmas,
            prediction: schedule.prediction,
            clip: schedule.clip,
            init_noise_sigma: 1.0,
        })
    }
}

/// One evaluation of the denoiser, from which a solver goes on.
#[derive(Clone, Copy)]
pub(super) struct Evaluation<'a> {
    pub(super) plan: &'a Plan,
    /// Its place in the plan.
    pub(super) index: usize,
    pub(super) model_output: &'a Tensor,
    pub(super) sample: &'a Tensor,
}

impl Evaluation<'_> {
    pub(super) fn level(&self) -> NoiseLevel {
        self.plan.levels[self.index]
    }

    /// The sigma of this evaluation.
    pub(super) fn sigma(&self) -> f64 {
        self.plan.sigmas[self.index]
    }

    /// The sigma that the step goes to.
    pub(super) fn next_sigma(&self) -> f64 {
        self.plan.sigmas[self.index + 1]
    }

    /// Whether no evaluation follows in the whole plan.
    pub(super) fn is_last(&self) -> bool {
        self.index + 1 == self.plan.timesteps.len()
    }

    /// The denoised sample, clipped where the config says so.
    pub(super) fn denoised(&self) -> Result<Tensor> {
        let x0 = self.mix(self.level().denoised(self.plan.prediction), &[])?;
        Ok(match self.plan.clip {
            Some(range) => x0.clamp(-range, range)?,
            None => x0,
        })
    }

    /// The noise in the sample.
    pub(super) fn epsilon(&self) -> Result<Tensor> {
        self.mix(self.level().epsilon(self.plan.prediction), &[])
    }

    /// `sample * x + denoised * x0 + epsilon * noise prediction + rest`, in one pass over the tensors unless the
    /// denoised sample is clipped.
    pub(super) fn combine(
        &self,
        sample: f64,
        denoised: f64,
        epsilon: f64,
        rest: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let mut mix = Mix { sample, output: 0.0 };
        let mut add = |weight: f64, part: Mix| {
            // A part that is not used may be infinite.
            if weight != 0.0 {
                mix.sample += weight * part.sample;
                mix.output += weight * part.output;
            }
        };
        add(epsilon, self.level().epsilon(self.plan.prediction));
        if self.plan.clip.is_none() || denoised == 0.0 {
            add(denoised, self.level().denoised(self.plan.prediction));
            return self.mix(mix, rest);
        }
        let x0 = self.denoised()?;
        self.mix(mix, &[&[(denoised, &x0)], rest].concat())
    }

    /// `sample * x + output * model output + rest`.
    pub(super) fn mix(&self, mix: Mix, rest: &[(f64, &Tensor)]) -> Result<Tensor> {
        let own = [(mix.sample, self.sample), (mix.output, self.model_output)];
        let used: Vec<_> = own.iter().chain(rest).copied().filter(|(weight, _)| *weight != 0.0).collect();
        if used.is_empty() {
            return Ok(self.sample.zeros_like()?);
        }
        Ok(aquatint_kernels::weighted_sum(&used)?)
    }

    /// Fresh noise of the sample's shape.
    pub(super) fn draw(&self, noise: &mut TorchGenerator) -> Result<Tensor> {
        let (batch, height, width, channels) = self.sample.dims4()?;
        if batch != 1 {
            return Err(Error::invalid(format!(
                "sample: a batch of {batch}, but each sample has its own noise"
            )));
        }
        noise.latents(channels, height, width, self.sample.device())
    }
}

/// How a sampler goes from one evaluation to the next, and what it remembers of those before.
pub(super) trait Solver: std::fmt::Debug + Send {
    /// The sample for the next evaluation.
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor>;

    /// The denoised sample, for previews.
    fn denoised(&self, at: Evaluation<'_>) -> Result<Tensor> {
        at.denoised()
    }
}
