//! OpenAI Images: generations, edits and variations, streamed or not, and the list of models.
//!
//! Source: `openai/types` of OpenAI's Python package, which is generated from their OpenAPI document.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::fault::{Fault, Kind};
use super::models;

mod form;
pub mod images;
pub mod store;
mod stream;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// `GET /v1/models`
pub async fn list_models(State(app): State<App>) -> Result<Json<Value>, Error> {
    app.engine.info(None).await.map_err(|error| Error(error.into()))?;
    let models: Vec<_> = app.engine.models().iter().map(|status| model(&status.name)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

/// `GET /v1/models/{id}`
pub async fn one_model(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Error> {
    let chosen = models::choose(&app, Some(&id)).await?;
    Ok(Json(model(&chosen.info.name)))
}

fn model(name: &str) -> Value {
    static STARTED: OnceLock<u64> = OnceLock::new();
    json!({"id": name, "object": "model", "created": STARTED.get_or_init(now_s), "owned_by": "aquatint"})
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `{"error": {message, type, param, code}}`
pub struct Error(Fault);

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl Error {
    fn body(&self) -> Value {
        let (kind, code) = match self.0.kind {
            Kind::Invalid | Kind::BrokenOff => ("invalid_request_error", "invalid_value"),
            Kind::TooLarge => ("invalid_request_error", "request_too_large"),
            Kind::UnknownModel => ("invalid_request_error", "model_not_found"),
            Kind::OwnQuota => ("rate_limit_error", "rate_limit_exceeded"),
            Kind::QueueFull => ("server_error", "queue_full"),
            Kind::OutOfMemory => ("server_error", "out_of_memory"),
            Kind::Loading | Kind::Stopping | Kind::DeviceLost => ("server_error", "unavailable"),
            Kind::WaitedTooLong | Kind::RanTooLong => ("server_error", "timeout"),
            Kind::BadFile | Kind::Unsupported | Kind::Failed => ("server_error", "server_error"),
        };
        json!({"error": {"message": self.0.message, "type": kind, "param": self.0.field, "code": code}})
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.0.kind.status(), Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // OpenAI's packages repeat every 429 and 5xx unless told not to.
        if self.0.kind.is_final() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
