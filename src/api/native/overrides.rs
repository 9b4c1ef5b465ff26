//! What `config` may change, and what holds where it does not.

use aquatint_models::pipeline::request::GenerationRequest;
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::api::App;
use crate::api::fastapi::ApiError;
use crate::engine::recipe::random_seed;
use crate::engine::{LoraChoice, ModelInfo};
use crate::settings::{MAX_GUIDANCE_SCALE, MAX_IMAGES, MAX_STEPS};

/// Steps beyond which an LCM-LoRA gains nothing.
const LCM_MAX_STEPS: usize = 8;
/// LoRAs are trained for 1; beyond this the weights are mostly difference.
const MAX_LORA_SCALE: f64 = 4.0;

/// The fields of `config`, checked.
pub(super) struct Overrides {
    pub(super) num_images: usize,
    pub(super) seed: u64,
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
            scheduler: config.text("scheduler")?.map(str::to_owned),
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
            return Err(ApiError::invalid(format!("Unknown model {name:?}. Must be one of ['{}']", model.name)));
        }
        let mut request = GenerationRequest::new(prompt, self.seed);
        request.negative_prompt = self.negative_prompt.clone();
        let steps = default_steps(app, model);
        request.num_inference_steps = Some(self.steps.unwrap_or(steps));
        let guidance_scale = default_guidance_scale(app, model);
        let tempered = || temper(guidance_scale, temperature);
        request.guidance_scale = Some(self.guidance_scale.unwrap_or_else(tempered));
        request.scheduler = self.scheduler.clone().or_else(|| default_scheduler(app));
        Ok(request)
    }
}

/// Steps where a request names none.
pub(super) fn default_steps(app: &App, model: &ModelInfo) -> usize {
    let steps = app.defaults.steps.unwrap_or(model.num_inference_steps);
    if app.lcm { steps.min(LCM_MAX_STEPS) } else { steps }
}

/// Guidance where a request names none.
pub(super) fn default_guidance_scale(app: &App, model: &ModelInfo) -> f64 {
    if app.lcm { 1.0 } else { app.defaults.guidance_scale.unwrap_or(model.guidance_scale) }
}

/// The scheduler where a request names none and the server's settings do. An LCM-LoRA works with its own alone.
pub(super) fn default_scheduler(app: &App) -> Option<String> {
    if app.lcm { None } else { app.defaults.scheduler.clone() }
}

/// The web app's temperature as guidance: 0 is none, 1 the default, 2 as far beyond. A model that is not meant to
/// have guidance keeps to that.
fn temper(guidance_scale: f64, temperature: Option<f64>) -> f64 {
    match temperature {
        Some(t) if guidance_scale > 1.0 => {
            (1.0 + t.clamp(0.0, 2.0) * (guidance_scale - 1.0)).min(MAX_GUIDANCE_SCALE)
        }
        _ => guidance_scale,
    }
}

/// -1 is the web UI's way to ask for any seed.
fn seed(config: &Fields<'_>) -> Result<u64, ApiError> {
    if config.any(&["seed"]).and_then(Value::as_f64) == Some(-1.0) {
        return Ok(random_seed());
    }
    Ok(config.whole("seed", 0..=u64::MAX)?.unwrap_or_else(random_seed))
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
    Ok(vec![LoraChoice { path: path.to_owned(), scale }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_moves_guidance_between_none_and_twice() {
        for (temperature, expected) in [(None, 7.5), (Some(0.0), 1.0), (Some(0.5), 4.25), (Some(1.0), 7.5)] {
            assert_eq!(temper(7.5, temperature), expected, "{temperature:?}");
        }
        assert_eq!(temper(7.5, Some(9.0)), 14.0);
        assert_eq!(temper(7.5, Some(-3.0)), 1.0);
        assert_eq!(temper(1.0, Some(0.2)), 1.0);
        assert_eq!(temper(0.0, Some(0.2)), 0.0);
    }
}
