//! The part of a `scheduler_config.json` that all samplers read, with their class's defaults filled in.

use super::kind::{Class, ZeroSnr};
use crate::schedule::betas::{BetaSchedule, alphas_cumprod, rescale_zero_terminal_snr};
use crate::schedule::sigmas::SigmaTable;
use crate::schedule::{FinalSigma, Prediction, SchedulerConfig, SigmaKind, Spacing};
use crate::{Error, Result};

/// What all samplers know of the model and of where to step.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) class_name: &'static str,
    pub(super) num_train_timesteps: usize,
    /// The signal's part of the variance, one a training timestep.
    pub(super) alphas_cumprod: Vec<f32>,
    pub(super) table: SigmaTable,
    /// Whether the betas are a squared cosine.
    pub(super) cosine_betas: bool,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) steps_offset: usize,
    pub(super) sigma_kind: SigmaKind,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) final_sigma: FinalSigma,
    /// The largest magnitude of a denoised sample.
    pub(super) clip: Option<f64>,
}

impl Schedule {
    pub(super) fn from_config(class: &Class, config: &SchedulerConfig) -> Result<Self> {
        refuse_unsupported(config)?;
        let betas = betas(class, config)?;
        let mut alphas_cumprod = alphas_cumprod(&betas);
        if let (true, ZeroSnr::Floored, Some(last)) =
            (config.rescale_betas_zero_snr == Some(true), class.zero_snr, alphas_cumprod.last_mut())
        {
            // A sigma of 4096 in place of an infinite one.
            *last = 2f32.powi(-24);
        }
        let spacings =
            [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
        let final_sigmas = [("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::SigmaMin)];
        let final_sigma = config.final_sigmas_type.as_deref().filter(|_| class.final_sigma);
        let clip = class.clip_sample.is_some_and(|default| config.clip_sample.unwrap_or(default));
        Ok(Self {
            class_name: class.name,
            num_train_timesteps: alphas_cumprod.len(),
            table: SigmaTable::new(&alphas_cumprod),
            alphas_cumprod,
            cosine_betas: config.beta_schedule.as_deref() == Some("squaredcos_cap_v2"),
            prediction: choice(
                "prediction_type",
                config.prediction_type.as_deref(),
                Prediction::Epsilon,
                class.predictions,
            )?,
            spacing: choice(
                "timestep_spacing",
                config.timestep_spacing.as_deref(),
                class.spacing,
                &spacings,
            )?,
            steps_offset: config.steps_offset.unwrap_or(0),
            sigma_kind: if class.sigma_kinds { sigma_kind(config)? } else { SigmaKind::Schedule },
            sigma_min: config.sigma_min,
            sigma_max: config.sigma_max,
            final_sigma: choice("final_sigmas_type", final_sigma, FinalSigma::Zero, &final_sigmas)?,
            clip: clip.then(|| config.clip_sample_range.unwrap_or(1.0)),
        })
    }

    /// Sigmas of a kind that has its own, within these ends or the config's.
    pub(super) fn spaced_sigmas(&self, max: f64, min: f64, n: usize) -> Option<Vec<f64>> {
        self.sigma_kind.sigmas(self.sigma_max.unwrap_or(max), self.sigma_min.unwrap_or(min), n)
    }

    /// The sigma after the last evaluation.
    pub(super) fn last_sigma(&self) -> f64 {
        match self.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => self.table.min(),
        }
    }

    /// Whole training timesteps, the noisiest first.
    pub(super) fn whole_timesteps(&self, n: usize) -> Vec<f64> {
        let t = self.spacing.timesteps(self.num_train_timesteps, n, self.steps_offset);
        t.into_iter().map(f64::round_ties_even).collect()
    }

    /// The signal's part of the variance at a timestep of the model; `end` before the first.
    pub(super) fn alpha_cumprod(&self, timestep: f64, end: f64) -> f64 {
        if timestep < 0.0 { end } else { f64::from(self.alphas_cumprod[timestep as usize]) }
    }
}

/// The betas of training, rescaled where the config says so.
fn betas(class: &Class, config: &SchedulerConfig) -> Result<Vec<f32>> {
    let n = config.num_train_timesteps.unwrap_or(1000);
    if !(2..=100_000).contains(&n) {
        return Err(unsupported("num_train_timesteps", n, "2 to 100000"));
    }
    let schedules = [
        ("linear", BetaSchedule::Linear),
        ("scaled_linear", BetaSchedule::ScaledLinear),
        ("squaredcos_cap_v2", BetaSchedule::SquaredcosCapV2),
    ];
    let schedule = choice("beta_schedule", config.beta_schedule.as_deref(), class.beta_schedule, &schedules)?;
    let start = config.beta_start.unwrap_or(class.beta_start);
    let end = config.beta_end.unwrap_or(class.beta_end);
    let betas = match &config.trained_betas {
        Some(betas) if betas.len() != n => {
            return Err(unsupported(
                "trained_betas",
                format!("{} values", betas.len()),
                &format!("{n} values"),
            ));
        }
        Some(betas) => betas.iter().map(|b| *b as f32).collect(),
        None => schedule.betas(start, end, n),
    };
    if let Some(beta) = betas.iter().find(|b| !(0.0 < **b && **b < 1.0)) {
        return Err(unsupported("beta_start, beta_end or trained_betas", beta, "between 0 and 1"));
    }
    match (config.rescale_betas_zero_snr, class.zero_snr) {
        (Some(true), ZeroSnr::Unknown) => {
            let allowed = format!(
                "false, with {}: a model without terminal signal needs another scheduler",
                class.name
            );
            Err(unsupported("rescale_betas_zero_snr", true, &allowed))
        }
        (Some(true), _) => Ok(rescale_zero_terminal_snr(&betas)),
        _ => Ok(betas),
    }
}

/// How the config spaces the sigmas.
pub(super) fn sigma_kind(config: &SchedulerConfig) -> Result<SigmaKind> {
    let flags = [
        (config.use_karras_sigmas, SigmaKind::Karras),
        (config.use_exponential_sigmas, SigmaKind::Exponential),
        (config.use_beta_sigmas, SigmaKind::Beta),
    ];
    let mut kinds = flags.iter().filter(|(flag, _)| *flag == Some(true)).map(|(_, kind)| *kind);
    match (kinds.next(), kinds.next()) {
        (kind, None) => Ok(kind.unwrap_or(SigmaKind::Schedule)),
        _ => Err(unsupported(
            "use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas",
            "true for more than one",
            "true for one at most",
        )),
    }
}

/// What no sampler here does, and what would change the picture if it were ignored.
fn refuse_unsupported(config: &SchedulerConfig) -> Result<()> {
    for (field, value) in [
        ("thresholding", config.thresholding),
        ("use_lu_lambdas", config.use_lu_lambdas),
        ("use_flow_sigmas", config.use_flow_sigmas),
    ] {
        if value == Some(true) {
            return Err(unsupported(field, true, "false"));
        }
    }
    choice("interpolation_type", config.interpolation_type.as_deref(), (), &[("linear", ())])?;
    choice("timestep_type", config.timestep_type.as_deref(), (), &[("discrete", ())])?;
    if let Some(variance) = config.variance_type.as_deref().filter(|v| v.starts_with("learned")) {
        return Err(unsupported("variance_type", variance, "fixed_small, fixed_small_log, fixed_large"));
    }
    for (field, value) in [("sigma_min", config.sigma_min), ("sigma_max", config.sigma_max)] {
        if let Some(value) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
            return Err(unsupported(field, value, "more than 0"));
        }
    }
    if let (Some(min), Some(max)) = (config.sigma_min, config.sigma_max)
        && min >= max
    {
        return Err(unsupported("sigma_min", min, &format!("less than sigma_max, {max}")));
    }
    Ok(())
}

/// The value that a word of the config stands for.
pub(super) fn choice<T: Copy>(
    field: &str,
    word: Option<&str>,
    default: T,
    allowed: &[(&str, T)],
) -> Result<T> {
    let Some(word) = word else { return Ok(default) };
    let found = allowed.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = allowed.iter().map(|(name, _)| *name).collect();
        unsupported(field, format!("{word:?}"), &names.join(", "))
    })
}

/// The error of a field whose value is not supported.
pub(super) fn unsupported(field: &str, value: impl std::fmt::Display, allowed: &str) -> Error {
    Error::invalid(format!("scheduler: {field} is {value}, allowed: {allowed}"))
}
