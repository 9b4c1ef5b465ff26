//! `scheduler_config.json`.

use serde::Deserialize;

/// The fields of a diffusers `scheduler_config.json` that bear on sampling. A field that is absent takes the default
/// of the scheduler class that reads it; what that class does not know is ignored, as diffusers ignores it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The scheduler class, such as `EulerDiscreteScheduler`.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Timesteps that the model was trained on.
    pub num_train_timesteps: Option<usize>,
    /// The first beta, 0 to 1.
    pub beta_start: Option<f64>,
    /// The last beta, 0 to 1.
    pub beta_end: Option<f64>,
    /// How the betas go from one to the other: `linear`, `scaled_linear` or `squaredcos_cap_v2`.
    pub beta_schedule: Option<String>,
    /// The betas themselves, one a training timestep, in place of the three fields before.
    pub trained_betas: Option<Vec<f64>>,
    /// Whether the betas are rescaled so that the last training timestep is pure noise.
    pub rescale_betas_zero_snr: Option<bool>,
    /// What the model predicts: `epsilon`, `v_prediction` or `sample`.
    pub prediction_type: Option<String>,
    /// Which timesteps are visited: `leading`, `trailing` or `linspace`.
    pub timestep_spacing: Option<String>,
    /// What `leading` adds to each timestep.
    pub steps_offset: Option<usize>,
    /// Sigmas spaced as in Karras et al. 2022.
    pub use_karras_sigmas: Option<bool>,
    /// Sigmas spaced evenly in their logarithm.
    pub use_exponential_sigmas: Option<bool>,
    /// Sigmas spaced by quantiles of a beta distribution.
    pub use_beta_sigmas: Option<bool>,
    /// The last sigma of the three spacings before, where it is not that of the schedule.
    pub sigma_min: Option<f64>,
    /// The first sigma of the three spacings before, where it is not that of the schedule.
    pub sigma_max: Option<f64>,
    /// Where the sigmas end: `zero` or `sigma_min`.
    pub final_sigmas_type: Option<String>,
    /// How sigmas are read between training timesteps; only `linear` is supported.
    pub interpolation_type: Option<String>,
    /// Only `discrete` is supported.
    pub timestep_type: Option<String>,
    /// Whether the predicted sample is clipped to `clip_sample_range`.
    pub clip_sample: Option<bool>,
    /// The largest magnitude that `clip_sample` leaves.
    pub clip_sample_range: Option<f64>,
    /// Dynamic thresholding, for models of pixels; unsupported.
    pub thresholding: Option<bool>,
    /// Whether the step after the last goes to a clean sample, rather than to that of training timestep 0.
    pub set_alpha_to_one: Option<bool>,
    /// PNDM without its Runge-Kutta start.
    pub skip_prk_steps: Option<bool>,
    /// Which variance DDPM adds: `fixed_small`, `fixed_small_log` or `fixed_large`.
    pub variance_type: Option<String>,
    /// The order of DPM-Solver or UniPC, 1 to 3.
    pub solver_order: Option<usize>,
    /// DPM-Solver: `dpmsolver`, `dpmsolver++`, `sde-dpmsolver` or `sde-dpmsolver++`.
    pub algorithm_type: Option<String>,
    /// DPM-Solver: `midpoint` or `heun`; UniPC: `bh1` or `bh2`.
    pub solver_type: Option<String>,
    /// Whether the order falls at the end of a short run.
    pub lower_order_final: Option<bool>,
    /// Whether the last step is of first order.
    pub euler_at_final: Option<bool>,
    /// The least half log signal-to-noise ratio that is visited; absent is minus infinity.
    pub lambda_min_clipped: Option<f64>,
    /// Unsupported.
    pub use_lu_lambdas: Option<bool>,
    /// Flow matching with a solver that was not made for it; unsupported.
    pub use_flow_sigmas: Option<bool>,
    /// Flow matching: how far sigmas are moved towards noise.
    pub shift: Option<f64>,
    /// Flow matching: whether the shift grows with the picture, as the next four fields say.
    pub use_dynamic_shifting: Option<bool>,
    /// Flow matching: the shift at `base_image_seq_len`.
    pub base_shift: Option<f64>,
    /// Flow matching: the shift at `max_image_seq_len`.
    pub max_shift: Option<f64>,
    /// Flow matching: a small picture's number of tokens.
    pub base_image_seq_len: Option<f64>,
    /// Flow matching: a large picture's number of tokens.
    pub max_image_seq_len: Option<f64>,
    /// Flow matching: `exponential` or `linear`.
    pub time_shift_type: Option<String>,
    /// Flow matching: the last sigma, to which all are stretched.
    pub shift_terminal: Option<f64>,
    /// Flow matching: fresh noise at every step.
    pub stochastic_sampling: Option<bool>,
    /// Flow matching from the picture to noise; unsupported.
    pub invert_sigmas: Option<bool>,
    /// UniPC in terms of the predicted sample rather than the predicted noise.
    pub predict_x0: Option<bool>,
    /// Steps after which UniPC does not correct.
    pub disable_corrector: Option<Vec<usize>>,
    /// Another scheduler as UniPC's predictor; unsupported.
    pub solver_p: Option<serde_json::Value>,
    /// Steps of the schedule that an LCM or TCD was distilled from.
    pub original_inference_steps: Option<usize>,
    /// What LCM's boundary condition multiplies timesteps by.
    pub timestep_scaling: Option<f64>,
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`. Python writes minus infinity, a default of DPM-Solver, as `-Infinity`, which is
    /// no JSON; it is read as absent.
    ///
    /// # Errors
    /// The text is no JSON, or a field is not of its type.
    pub fn from_json(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(&without_minus_infinity(text))
    }

    /// The config as `StableDiffusionPipeline` (not SDXL's) corrects it when it is built: such models were trained
    /// with `steps_offset` 1, and their latents are not clipped, whatever the oldest configs say.
    #[must_use]
    pub fn corrected_for_stable_diffusion(self) -> Self {
        Self { steps_offset: Some(1), clip_sample: Some(false), ..self }
    }
}

/// `-Infinity` outside strings becomes `null`.
fn without_minus_infinity(text: &[u8]) -> Vec<u8> {
    const TOKEN: &[u8] = b"-Infinity";
    let mut out = Vec::with_capacity(text.len());
    let (mut i, mut in_string) = (0, false);
    while let Some(&byte) = text.get(i) {
        if !in_string && text[i..].starts_with(TOKEN) {
            out.extend_from_slice(b"null");
            i += TOKEN.len();
            continue;
        }
        in_string ^= byte == b'"';
        out.push(byte);
        i += 1;
        if in_string && byte == b'\\' {
            out.extend(text.get(i));
            i += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_writes_minus_infinity() {
        let text = br#"{"_class_name": "A \"-Infinity", "lambda_min_clipped": -Infinity, "solver_order": 2}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(config.class_name.as_deref(), Some("A \"-Infinity"));
        assert_eq!((config.lambda_min_clipped, config.solver_order), (None, Some(2)));
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        let error = SchedulerConfig::from_json(br#"{"steps_offset": -1}"#).unwrap_err();
        assert!(error.to_string().contains("usize"), "{error}");
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let config = SchedulerConfig::from_json(br#"{"_diffusers_version": "0.35.2"}"#).unwrap();
        assert_eq!(config, SchedulerConfig::default());
    }
}
