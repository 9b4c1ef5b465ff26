//! The Stable Diffusion web UI's API under `/sdapi/v1`.
//!
//! Source: `modules/api/api.py`, `modules/processing.py` and `modules/masking.py` of AUTOMATIC1111's web UI 1.10.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::body;
use super::fault::{Fault, Kind};

mod form;
pub mod generate;
mod hires;
mod info;
mod inpaint;
mod jobs;
pub mod lists;
pub mod options;
pub mod png_info;
pub mod progress;
mod prompt;

/// What the web UI's routes share between requests.
#[derive(Default)]
pub struct WebUi {
    options: options::Options,
    jobs: Arc<jobs::Jobs>,
}

/// An answer that is not 200: `{"error", "detail", "body", "errors"}`.
pub struct Error(Fault);

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

/// What the web UI answers to a sampler or a schedule type that it has not.
const NOT_FOUND: [(&str, &str); 4] = [
    ("sampler_name", "Sampler not found"),
    ("sampler_index", "Sampler not found"),
    ("scheduler", "Scheduler not found"),
    ("hr_scheduler", "Scheduler not found"),
];

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let Fault { kind, field, message, retry_after_s } = self.0;
        let missing =
            NOT_FOUND.iter().find(|(name, _)| field.as_deref() == Some(name) && kind == Kind::Invalid);
        let (status, class, detail) = match (kind, missing) {
            (_, Some((_, detail))) => (StatusCode::NOT_FOUND, "HTTPException", (*detail).to_owned()),
            (Kind::Invalid, None) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "RequestValidationError", message.clone())
            }
            (Kind::OutOfMemory, None) => (kind.status(), "OutOfMemoryError", message.clone()),
            (Kind::Failed | Kind::BadFile | Kind::DeviceLost, None) => {
                (kind.status(), "RuntimeError", message.clone())
            }
            _ => (kind.status(), "HTTPException", message.clone()),
        };
        let body = json!({"error": class, "detail": detail, "body": "", "errors": message});
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

async fn object(request: Request) -> Result<Map<String, Value>, Error> {
    Ok(body::object(&body::read(request, body::MAX_PICTURES_BYTES).await?)?)
}
