//! `POST /generate`: a prompt to pictures.

use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value};

use super::{Wording, parameters, reply, strength};
use crate::api::fastapi::{ApiError, dict_body};
use crate::api::fields::Fields;
use crate::api::parameters::{Guidance, Parameters, Size};
use crate::api::{App, body, caller, sizes};

const WORDING: Wording = Wording {
    out_of_memory: "GPU memory insufficient. Try reducing steps or image size.",
    failed: "Generation failed",
};

/// The handler.
pub async fn generate(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let started = Instant::now();
    let caller = caller(request.extensions());
    let parameters = form(&dict_body(request, body::MAX_TEXT_BYTES).await?, &app)?;
    let job = parameters.submit(&app, &caller).await.map_err(|fault| WORDING.of(fault))?;
    let info = job.model.info.clone();
    reply(WORDING.pictures(job).await?, &info, started).await
}

/// The body, checked.
fn form(body: &Map<String, Value>, app: &App) -> Result<Parameters, ApiError> {
    let fields = Fields::new(body);
    let prompt = fields.any(&["prompt"]).and_then(Value::as_str).filter(|p| !p.trim().is_empty());
    let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt field is required."))?;
    let size = size(&fields)?;
    let temperature = temperature(&fields)?;
    let mut parameters = parameters(prompt, body, app)?;
    // There is no picture to change, but a strength that is none is still said to be.
    strength(body)?;
    parameters.size = Size::Table(size);
    if let (Guidance::Default, Some(t)) = (parameters.guidance, temperature) {
        parameters.guidance = Guidance::Tempered(t);
    }
    Ok(parameters)
}

fn size(fields: &Fields<'_>) -> Result<sizes::Size, ApiError> {
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
