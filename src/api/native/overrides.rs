//! What `config` may change, and what holds where it does not.

use crate::engine::GenerationRequest;
use aquatint_models::sampler::SamplerSettings;
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::api::App;
use crate::api::fastapi::ApiError;
use crate::engine::recipe::random_seed;
use crate::engine::{LoraChoice, ModelInfo};
use crate::queue::Cost;
use crate::settings::{MAX_GUIDANCE_SCALE, MAX_IMAGES, MAX_STEPS};

/// Steps beyond which an LCM-LoRA gains nothing.
const LCM_MAX_STEPS: usize = 8;
/// LoRAs are trained for 1; beyond this the weights are mostly difference.
const MAX_LORA_SCALE: f64 = 4.0;

/// The fields of `config`, checked.
pub(super) struct Overrides {
    pub(super) num_images: usize,
    seed: u64,
    pub(super) strength: Option<f64>,
    pub(super) loras: Vec<LoraChoice>,
    negative_prompt: Option<String>,
    steps: Option<usize>,
    guidance_scale: Option<f64>,
    scheduler: Option<String>,
    model: Option<String>,
}

impl Overrides {
    pub(super) fn new(body: &Map<String, Value>, app: &App) -> Result<Self, ApiError> {
        let config = Fields::config(body)?;
        let num_images = config.whole("numImages", 1..=MAX_IMAGES)?;
        Ok(Self {
            num_images: num_images.map_or(app.defaults.num_images, |n| n as usize),
            seed: seed(&config)?,
            strength: config.number("strength", 0.0..=1.0)?,
            loras: loras(&config, app)?,
            negative_prompt: config.text("negativePrompt")?.map(str::to_owned),
            steps: config.whole("steps", 1..=MAX_STEPS)?.map(|n| n as usize),
            guidance_scale: config.number("guidanceScale", 0.0..=MAX_GUIDANCE_SCALE)?,
            scheduler: scheduler(&config)?,
            model: config.text("model")?.map(str::to_owned),
        })
    }

    /// A request with these fields; where they are silent the server's settings hold, then the model's.
    pub(super) fn request(
        &self,
        prompt: &str,
        temperature: Option<f64>,
        app: &App,
        model: &ModelInfo,
    ) -> Result<GenerationRequest, ApiError> {
        if let Some(name) = self.model.as_deref().filter(|name| *name != model.name) {
            return Err(ApiError::invalid(format!(
                "Unknown model {name:?}. Must be one of ['{}']",
                model.name
            )));
        }
        let lcm = app.lcm || self.loras.iter().any(|l| l.lcm);
        let guidance_scale = || {
            let default = default_guidance_scale(app, lcm);
            if lcm { default } else { temper(default, model.guidance_scale, temperature) }
        };
        let mut request = GenerationRequest::new(prompt, self.seed);
        request.negative_prompt = self.negative_prompt.clone();
        request.num_inference_steps = self.steps.or(default_steps(app, lcm));
        request.guidance_scale = self.guidance_scale.or_else(guidance_scale);
        request.scheduler = self.scheduler.clone().or_else(|| default_scheduler(app, lcm));
        Ok(request)
    }

    /// What it is to be admitted at.
    pub(super) fn cost(&self, pictures: usize, size: Option<(u32, u32)>, app: &App) -> Cost {
        let lcm = app.lcm || self.loras.iter().any(|l| l.lcm);
        Cost::of(pictures, size, self.steps.or(default_steps(app, lcm)))
    }

    /// As many of it as pictures are asked for, with seeds in a row.
    pub(super) fn series(&self, first: &GenerationRequest) -> Vec<GenerationRequest> {
        let picture = |i| GenerationRequest { seed: first.seed.wrapping_add(i), ..first.clone() };
        (0..self.num_images as u64).map(picture).collect()
    }
}

/// Steps where a request names none and the server's settings do.
pub(super) fn default_steps(app: &App, lcm: bool) -> Option<usize> {
    app.defaults.steps.map(|steps| if lcm { steps.min(LCM_MAX_STEPS) } else { steps })
}

/// Guidance where a request names none and the server's settings do. An LCM-LoRA brings its own.
pub(super) fn default_guidance_scale(app: &App, lcm: bool) -> Option<f64> {
    app.defaults.guidance_scale.filter(|_| !lcm)
}

/// The scheduler where a request names none and the server's settings do. An LCM-LoRA works with its own alone.
pub(super) fn default_scheduler(app: &App, lcm: bool) -> Option<String> {
    app.defaults.scheduler.clone().filter(|_| !lcm)
}

/// The web app's temperature as guidance: 0 is none, 1 the default, 2 as far beyond. A model that is not meant to
/// have guidance keeps to that.
fn temper(setting: Option<f64>, model: f64, temperature: Option<f64>) -> Option<f64> {
    let default = setting.unwrap_or(model);
    match temperature {
        Some(t) if default > 1.0 => Some((1.0 + t.clamp(0.0, 2.0) * (default - 1.0)).min(MAX_GUIDANCE_SCALE)),
        _ => setting,
    }
}

/// -1 is the web UI's way to ask for any seed.
fn seed(config: &Fields<'_>) -> Result<u64, ApiError> {
    if config.any(&["seed"]).and_then(Value::as_f64) == Some(-1.0) {
        return Ok(random_seed());
    }
    Ok(config.whole("seed", 0..=u64::MAX)?.unwrap_or_else(random_seed))
}

fn scheduler(config: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(name) = config.text("scheduler")? else { return Ok(None) };
    SamplerSettings::web_ui_names(name).map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(Some(name.to_owned()))
}

fn loras(config: &Fields<'_>, app: &App) -> Result<Vec<LoraChoice>, ApiError> {
    let scale = config.number("loraScale", -MAX_LORA_SCALE..=MAX_LORA_SCALE)?.unwrap_or(1.0);
    let Some(name) = config.text("lora")?.filter(|name| !name.is_empty()) else {
        return Ok(Vec::new());
    };
    let path = app.loras.get(name).ok_or_else(|| {
        let names: Vec<_> = app.loras.names().map(|n| format!("'{n}'")).collect();
        ApiError::invalid(format!("Unknown lora {name:?}. Must be one of [{}]", names.join(", ")))
    })?;
    Ok(vec![LoraChoice::new(path, scale)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_moves_guidance_between_none_and_twice() {
        for (t, expected) in [(0.0, 1.0), (0.5, 4.25), (1.0, 7.5), (2.0, 14.0), (9.0, 14.0), (-3.0, 1.0)] {
            assert_eq!(temper(Some(7.5), 5.0, Some(t)), Some(expected), "{t}");
            assert_eq!(temper(None, 7.5, Some(t)), Some(expected), "{t}");
        }
        assert_eq!(temper(None, 7.5, None), None);
        assert_eq!(temper(Some(4.0), 7.5, None), Some(4.0));
        for fixed in [1.0, 0.0] {
            assert_eq!(temper(None, fixed, Some(0.2)), None);
        }
    }
}
