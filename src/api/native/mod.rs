//! The native API, a drop-in for the Python service that this server replaces.

use std::time::Instant;

use axum::Json;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::App;
use super::fastapi::ApiError;
use super::fault::{Fault, Kind};
use super::fields::Fields;
use super::parameters::{Guidance, Parameters, Steps, Submitted};
use super::pictures;
use crate::engine::{ModelInfo, Picture};
use crate::settings::MAX_IMAGES;

pub mod generate;
pub mod health;
pub mod refine;

/// How a route words its failures.
struct Wording {
    out_of_memory: &'static str,
    failed: &'static str,
}

impl Wording {
    fn of(&self, fault: Fault) -> ApiError {
        match fault.kind {
            Kind::OutOfMemory => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, self.out_of_memory),
            Kind::Failed | Kind::BadFile => {
                let text = format!("{}: {}", self.failed, fault.message);
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            _ => fault.into(),
        }
    }

    /// Waits for a job's pictures. A handler that is dropped here, because its client has left, drops the job with it.
    async fn pictures(&self, job: Submitted) -> Result<Vec<Picture>, ApiError> {
        job.ticket.await.map_err(|error| self.of(error.into()))
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let status = match fault.kind {
            Kind::Invalid | Kind::UnknownModel => StatusCode::UNPROCESSABLE_ENTITY,
            kind => kind.status(),
        };
        Self { retry_after_s: fault.retry_after_s, ..Self::new(status, fault.message) }
    }
}

/// A prompt and the fields of `config`.
fn parameters(prompt: &str, body: &Map<String, Value>, app: &App) -> Result<Parameters, ApiError> {
    let config = Fields::new(body).object("config", "config.")?;
    let num_images = config.whole("numImages", 1..=MAX_IMAGES)?;
    Ok(Parameters {
        num_images: num_images.map_or(app.defaults.num_images, |n| n as usize),
        seed: config.seed("seed")?,
        loras: config.loras(app, "lora", "loraScale")?,
        negative_prompt: config.text("negativePrompt")?.map(str::to_owned),
        steps: Steps::or_default(config.steps("steps")?),
        guidance: Guidance::or_default(config.guidance_scale("guidanceScale")?),
        scheduler: config.scheduler("scheduler")?,
        model: config.text("model")?.map(str::to_owned),
        step_cache: config.step_cache(["firstBlockCache", "cacheInterval", "cacheBranchId"])?,
        ..Parameters::new(prompt)
    })
}

/// `config.strength`.
fn strength(body: &Map<String, Value>) -> Result<Option<f64>, ApiError> {
    Ok(Fields::new(body).object("config", "config.")?.number("strength", 0.0..=1.0)?)
}

/// `{"images": [...]}` and what else may help.
async fn reply(made: Vec<Picture>, model: &ModelInfo, started: Instant) -> Result<Json<Value>, ApiError> {
    let seeds: Vec<u64> = made.iter().map(|p| p.recipe.seed).collect();
    let recipe = made.first().map(|p| p.recipe.clone());
    let images = pictures::encode_base64(made).await?;
    Ok(Json(json!({
        "images": images,
        "seeds": seeds,
        "seed": seeds.first(),
        "model": model.name,
        "fallback_for": model.fallback_for,
        "provider": "aquatint",
        "processingTime": started.elapsed().as_millis() as u64,
        "parameters": recipe,
    })))
}
