//! Flow matching: samples on the straight line from noise to picture, `x = (1 - sigma) x0 + sigma * noise`, and a
//! model that predicts its direction, `noise - x0` (Lipman et al. 2022, <https://arxiv.org/abs/2210.02747>; Liu et al.
//! 2022, <https://arxiv.org/abs/2209.03003>).
//!
//! Numbers equal those of diffusers' `FlowMatchEulerDiscreteScheduler` as the pipelines of FLUX use it: sigmas evenly
//! from 1 to `1 / n`, then shifted towards noise. Larger pictures hold more of their content at a given sigma, so the
//! shift may grow with the number of image tokens (Esser et al. 2024, <https://arxiv.org/abs/2403.03206>, 5.3.2).

use candle_core::Tensor;

use super::Sampler;
use super::names;
use super::plan::{Evaluation, Plan, Solver};
use super::schedule::{choice, sigma_kind, unsupported};
use crate::noise::TorchGenerator;
use crate::schedule::noise_level::Mix;
use crate::schedule::spacing::linspace;
use crate::schedule::{NoiseLevel, Prediction, SchedulerConfig, SigmaKind};
use crate::{Error, Result};

/// The diffusers class that this equals.
pub const CLASS_NAME: &str = "FlowMatchEulerDiscreteScheduler";

/// More steps than anyone takes; a bound on what one request costs.
const MAX_STEPS: usize = 1000;

/// How sigmas are moved towards noise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shift {
    /// The same for every picture.
    Fixed(f64),
    /// By the number of image tokens: a line through two points.
    Dynamic { tokens: [f64; 2], shifts: [f64; 2], exponential: bool },
}

/// A flow-matching sampler's settings: a `scheduler_config.json` understood and checked.
#[derive(Clone, Debug)]
pub struct FlowMatch {
    num_train_timesteps: usize,
    shift: Shift,
    shift_terminal: Option<f64>,
    sigma_kind: SigmaKind,
    stochastic: bool,
}

impl FlowMatch {
    /// From the config of a flow-matching model.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field and the value that is not supported, and what is.
    pub fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let class = config.class_name.as_deref();
        if class != Some(CLASS_NAME) {
            return Err(unsupported("_class_name", class.unwrap_or("absent"), CLASS_NAME));
        }
        let num_train_timesteps = config.num_train_timesteps.unwrap_or(1000);
        if !(1..=100_000).contains(&num_train_timesteps) {
            return Err(unsupported("num_train_timesteps", num_train_timesteps, "1 to 100000"));
        }
        if config.invert_sigmas == Some(true) {
            return Err(unsupported("invert_sigmas", true, "false"));
        }
        let shift_terminal = config.shift_terminal.filter(|s| *s != 0.0);
        if let Some(end) = shift_terminal.filter(|s| !(0.0..1.0).contains(s)) {
            return Err(unsupported("shift_terminal", end, "0 to 1"));
        }
        Ok(Self {
            num_train_timesteps,
            shift: shift(config)?,
            shift_terminal,
            sigma_kind: sigma_kind(config)?,
            stochastic: config.stochastic_sampling == Some(true),
        })
    }

    /// The sampler of a name on a model's config: `Euler`, which may end in a schedule type.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the name is of another sampler: those know nothing of flow matching.
    pub fn named(name: &str, base: &SchedulerConfig) -> Result<Self> {
        let found = names::find(name)?;
        if found.name != "Euler" {
            return Err(Error::invalid(format!(
                "scheduler: {name:?} does not know flow matching, which this model was trained with; allowed are \
                 Euler, Euler Karras, Euler Exponential, Euler Beta"
            )));
        }
        let mut config = base.clone();
        if let Some(schedule_type) = found.schedule_type {
            names::set_schedule_type(schedule_type, &mut config)?;
        }
        Self::from_config(&config)
    }

    /// The sampler of one run, at its start. `image_tokens`: patches of 2x2 latents in the picture.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are no steps, or too many.
    pub fn sampler(&self, num_inference_steps: usize, image_tokens: usize) -> Result<Sampler> {
        if !(1..=MAX_STEPS).contains(&num_inference_steps) {
            return Err(Error::invalid(format!(
                "num_inference_steps: {num_inference_steps} is not allowed with {CLASS_NAME}: 1 to {MAX_STEPS}"
            )));
        }
        let sigmas = self.sigmas(num_inference_steps, image_tokens);
        let train = self.num_train_timesteps as f32;
        let plan = Plan {
            timesteps: sigmas.iter().map(|s| f64::from(s * train)).collect(),
            levels: sigmas.iter().map(|s| NoiseLevel::straight(f64::from(*s))).collect(),
            sigmas: sigmas.iter().chain(&[0.0]).map(|s| f64::from(*s)).collect(),
            prediction: Prediction::Flow,
            clip: None,
            init_noise_sigma: 1.0,
        };
        let solver = Box::new(FlowMatchEuler { stochastic: self.stochastic });
        Ok(Sampler::straight(num_inference_steps, self.num_train_timesteps, plan, solver))
    }

    /// One sigma a step, from 1 down; f32 where the reference's arithmetic is.
    fn sigmas(&self, n: usize, image_tokens: usize) -> Vec<f32> {
        let even = linspace(1.0, 1.0 / n as f64, n).into_iter().map(|s| s as f32);
        let mut sigmas: Vec<f32> = match self.shift {
            Shift::Fixed(shift) => {
                even.map(|s| shift as f32 * s / (1.0 + (shift - 1.0) as f32 * s)).collect()
            }
            Shift::Dynamic { tokens, shifts, exponential } => {
                let slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0]);
                let mu = image_tokens as f64 * slope + (shifts[0] - slope * tokens[0]);
                let e = if exponential { mu.exp() } else { mu } as f32;
                even.map(|s| e / (e + (1.0 / s - 1.0))).collect()
            }
        };
        // A run of one step has nothing between its ends to stretch.
        if let (Some(end), Some(&last), true) = (self.shift_terminal, sigmas.last(), n > 1) {
            let scale = (1.0 - last) / (1.0 - end as f32);
            sigmas.iter_mut().for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
        }
        let ends = sigmas.first().copied().zip(sigmas.last().copied());
        let spaced = ends.and_then(|(max, min)| self.sigma_kind.sigmas(max.into(), min.into(), n));
        spaced.map_or(sigmas, |spaced| spaced.into_iter().map(|s| s as f32).collect())
    }
}

fn shift(config: &SchedulerConfig) -> Result<Shift> {
    let positive = |field: &str, value: f64| match value.is_finite() && value > 0.0 {
        true => Ok(value),
        false => Err(unsupported(field, value, "more than 0")),
    };
    if config.use_dynamic_shifting != Some(true) {
        return Ok(Shift::Fixed(positive("shift", config.shift.unwrap_or(1.0))?));
    }
    let tokens = [
        positive("base_image_seq_len", config.base_image_seq_len.unwrap_or(256.0))?,
        positive("max_image_seq_len", config.max_image_seq_len.unwrap_or(4096.0))?,
    ];
    if tokens[0] >= tokens[1] {
        return Err(unsupported("base_image_seq_len", tokens[0], "less than max_image_seq_len"));
    }
    let shifts = [
        positive("base_shift", config.base_shift.unwrap_or(0.5))?,
        positive("max_shift", config.max_shift.unwrap_or(1.15))?,
    ];
    let kinds = [("exponential", true), ("linear", false)];
    let exponential = choice("time_shift_type", config.time_shift_type.as_deref(), true, &kinds)?;
    Ok(Shift::Dynamic { tokens, shifts, exponential })
}

/// Euler's method along the line.
#[derive(Debug)]
struct FlowMatchEuler {
    /// Goes to the picture that the output implies, and back to the next sigma with fresh noise.
    stochastic: bool,
}

impl Solver for FlowMatchEuler {
    fn step(&mut self, at: Evaluation<'_>, noise: &mut TorchGenerator) -> Result<Tensor> {
        let next = at.next_sigma();
        if self.stochastic {
            return at.combine(0.0, 1.0 - next, 0.0, &[(next, &at.draw(noise)?)]);
        }
        at.mix(Mix { sample: 1.0, output: next - at.sigma() }, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> SchedulerConfig {
        let text = format!(r#"{{"_class_name": "{CLASS_NAME}", {text}}}"#);
        SchedulerConfig::from_json(text.as_bytes()).unwrap()
    }

    fn refused(text: &str) -> String {
        FlowMatch::from_config(&config(text)).unwrap_err().to_string()
    }

    #[test]
    fn schnell_goes_down_in_quarters() {
        let flow = FlowMatch::from_config(&config(r#""shift": 1.0"#)).unwrap();
        assert_eq!(flow.sigmas(4, 4096), [1.0, 0.75, 0.5, 0.25]);
        assert_eq!(flow.sampler(4, 4096).unwrap().timesteps(), [1000.0, 750.0, 500.0, 250.0]);
    }

    /// `e^mu / (e^mu + 1 / sigma - 1)`, and mu on the line from 0.5 at 256 tokens to 1.15 at 4096.
    #[test]
    fn larger_pictures_are_shifted_further() {
        let flow = FlowMatch::from_config(&config(r#""use_dynamic_shifting": true"#)).unwrap();
        for (tokens, mu) in [(256, 0.5f64), (4096, 1.15), (2176, 0.825)] {
            let sigmas = flow.sigmas(2, tokens);
            let half = mu.exp() / (mu.exp() + 1.0);
            assert!((f64::from(sigmas[1]) - half).abs() < 1e-7, "{tokens}: {sigmas:?}");
            assert_eq!(sigmas[0], 1.0);
        }
    }

    #[test]
    fn strength_keeps_the_broken_step_that_stable_diffusion_drops() {
        let sampler = FlowMatch::from_config(&config(r#""shift": 1.0"#)).unwrap().sampler(28, 16).unwrap();
        // 28 - 28 * 0.6 = 11.2
        assert_eq!(sampler.index_of_strength(0.6), 11);
        assert_eq!((sampler.index_of_strength(1.0), sampler.index_of_strength(0.0)), (0, 28));
    }

    #[test]
    fn names_of_other_samplers_are_refused() {
        let base = config(r#""shift": 1.0"#);
        assert!(FlowMatch::named("Euler Karras", &base).is_ok());
        assert!(FlowMatch::named(CLASS_NAME, &base).is_ok());
        let error = FlowMatch::named("DPM++ 2M", &base).unwrap_err().to_string();
        assert!(error.contains("DPM++ 2M") && error.contains("Euler Karras"), "{error}");
    }

    #[test]
    fn fields_out_of_range_are_named() {
        assert!(refused(r#""shift": 0.0"#).contains("shift is 0"));
        assert!(refused(r#""use_dynamic_shifting": true, "base_image_seq_len": 8192"#).contains("8192"));
        assert!(refused(r#""use_dynamic_shifting": true, "time_shift_type": "cubic""#).contains("cubic"));
        assert!(refused(r#""invert_sigmas": true"#).contains("invert_sigmas"));
        assert!(refused(r#""use_karras_sigmas": true, "use_beta_sigmas": true"#).contains("more than one"));
        let flow = FlowMatch::from_config(&config(r#""shift": 1.0"#)).unwrap();
        assert!(flow.sampler(0, 16).is_err() && flow.sampler(1001, 16).is_err());
    }
}
