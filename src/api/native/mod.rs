//! The native API, a drop-in for the Python service that this server replaces.

use std::time::Instant;

use axum::Json;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::App;
use super::fastapi::ApiError;
use crate::engine::{EngineError, ModelInfo, Picture, Work};
use crate::picture::{self, Format};
use crate::queue::Place;

mod fields;
pub mod generate;
pub mod health;
pub mod loras;
mod overrides;
pub mod refine;
pub mod sizes;

/// How a route words its failures.
struct Wording {
    out_of_memory: &'static str,
    failed: &'static str,
}

/// Submits work and waits for its pictures. A handler that is dropped here, because its client has left, drops the
/// job with it.
async fn pictures(app: &App, place: Place, work: Work, wording: &Wording) -> Result<Vec<Picture>, ApiError> {
    app.queue.submit(place, work).await.map_err(|error| refusal(error, wording))
}

/// What the engine's errors are to a client. Its file system is none of the client's business.
fn refusal(error: EngineError, wording: &Wording) -> ApiError {
    let failed = |reason: String| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {reason}", wording.failed))
    };
    match error {
        EngineError::Invalid(text) => ApiError::invalid(text),
        EngineError::OutOfMemory(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, wording.out_of_memory),
        EngineError::Stopping => {
            let text = EngineError::Stopping.to_string();
            ApiError { retry_after_s: Some(5), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text) }
        }
        EngineError::File { path, reason } => {
            failed(format!("{}: {reason}", path.file_name().unwrap_or_default().to_string_lossy()))
        }
        error @ (EngineError::WaitedTooLong { .. } | EngineError::DeviceLost(_)) => {
            let text = error.to_string();
            ApiError { retry_after_s: Some(30), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text) }
        }
        error @ EngineError::RanTooLong { .. } => {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, error.to_string())
        }
        error @ (EngineError::Cancelled | EngineError::Failed(_)) => failed(error.to_string()),
    }
}

/// `{"images": [...]}` and what else may help.
async fn reply(made: Vec<Picture>, model: &ModelInfo, started: Instant) -> Result<Json<Value>, ApiError> {
    let seeds: Vec<u64> = made.iter().map(|p| p.recipe.seed).collect();
    let recipe = made.first().map(|p| p.recipe.clone());
    let encode = |p: &Picture| picture::encode(p, Format::Png).map(|bytes| BASE64.encode(bytes));
    let images = tokio::task::spawn_blocking(move || made.iter().map(encode).collect::<Result<Vec<_>, _>>());
    let images = images.await.map_err(|e| internal(&e))?.map_err(|e| internal(&e))?;
    Ok(Json(json!({
        "images": images,
        "seeds": seeds,
        "seed": seeds.first(),
        "model": model.name,
        "provider": "aquatint",
        "processingTime": started.elapsed().as_millis() as u64,
        "parameters": recipe,
    })))
}

fn internal(error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, "a picture could not be encoded");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
}
