//! `POST /generate`: a prompt to pictures.

use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value};

use super::fields::Fields;
use super::overrides::Overrides;
use super::{Wording, pictures, refusal, reply, sizes};
use crate::api::App;
use crate::api::fastapi::{ApiError, dict_body};
use crate::engine::{ModelInfo, Work};
use crate::queue::Caller;

const MAX_BODY_BYTES: usize = 1 << 20;

const WORDING: Wording = Wording {
    out_of_memory: "GPU memory insufficient. Try reducing steps or image size.",
    failed: "Generation failed",
};

/// The handler.
pub async fn generate(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let started = Instant::now();
    let form = Form::new(&dict_body(request, MAX_BODY_BYTES).await?, &app)?;
    let cost = form.overrides.cost(form.overrides.num_images, Some(form.size), &app);
    let place = app.queue.admit(&Caller::anonymous(), cost)?;
    let model = app.engine.model().await.map_err(|error| refusal(error, &WORDING))?;
    let work = form.work(&app, &model)?;
    let made = pictures(&app, place, work, &WORDING).await?;
    reply(made, &model, started).await
}

/// The body, checked.
struct Form {
    prompt: String,
    /// `(width, height)` in pixels by the table.
    size: (u32, u32),
    temperature: Option<f64>,
    overrides: Overrides,
}

impl Form {
    fn new(body: &Map<String, Value>, app: &App) -> Result<Self, ApiError> {
        let fields = Fields::new(body);
        let prompt = fields.any(&["prompt"]).and_then(Value::as_str).filter(|p| !p.trim().is_empty());
        let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt field is required."))?.to_owned();
        let size = size(&fields)?;
        Ok(Self { prompt, size, temperature: temperature(&fields)?, overrides: Overrides::new(body, app)? })
    }

    /// One request a picture, with seeds in a row.
    fn work(self, app: &App, model: &ModelInfo) -> Result<Work, ApiError> {
        let (width, height) = sizes::for_model(self.size, model);
        let mut first = self.overrides.request(&self.prompt, self.temperature, app, model)?;
        first.width = Some(width as usize);
        first.height = Some(height as usize);
        let requests = self.overrides.series(&first);
        Ok(Work { requests, loras: self.overrides.loras, ..Work::default() })
    }
}

fn size(fields: &Fields<'_>) -> Result<(u32, u32), ApiError> {
    let ratio = fields.any(&["aspectRatio", "aspect_ratio", "aspectratio"]);
    let ratio = ratio.filter(|ratio| ratio.as_str() != Some(""));
    let ratio = ratio.ok_or_else(|| ApiError::invalid("aspectRatio field is required."))?;
    let resolution = fields.any(&["resolution"]).and_then(Value::as_str);
    let high = resolution.is_some_and(|r| r.eq_ignore_ascii_case("high"));
    ratio.as_str().and_then(|ratio| sizes::size(ratio, high)).ok_or_else(|| {
        let names: Vec<_> = sizes::ratios().map(|name| format!("'{name}'")).collect();
        ApiError::invalid(format!("Invalid aspectRatio. Must be one of [{}]", names.join(", ")))
    })
}

/// A number, or a text that is one: Python's `float` took both.
fn temperature(fields: &Fields<'_>) -> Result<Option<f64>, ApiError> {
    let Some(value) = fields.any(&["temperature"]) else { return Ok(None) };
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|n| n.is_finite());
    number.map(Some).ok_or_else(|| ApiError::invalid("temperature must be a number."))
}
