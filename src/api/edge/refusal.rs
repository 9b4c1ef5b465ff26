//! Refusals made before a route is reached, in the shape that the route's clients read.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Whose error shape a path has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"detail": text}`
    FastApi,
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"error": text}`
    HuggingFace,
    /// `{"error": class, "detail", "body", "errors"}`
    WebUi,
}

impl Shape {
    /// By the first part of the path.
    pub fn of(method: &Method, path: &str) -> Self {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match first {
            "v1" => Self::OpenAi,
            "models" => Self::HuggingFace,
            "" if method == Method::POST => Self::HuggingFace,
            "sdapi" => Self::WebUi,
            _ => Self::FastApi,
        }
    }

    /// An answer with this status and text. `retry_after_s` says when to come back.
    pub fn refuse(self, status: StatusCode, text: &str, retry_after_s: Option<u64>) -> Response {
        let body = match self {
            Self::FastApi => json!({ "detail": text }),
            Self::OpenAi => {
                let (kind, code) = openai_kind(status);
                json!({"error": {"message": text, "type": kind, "param": null, "code": code}})
            }
            Self::HuggingFace => json!({ "error": text }),
            Self::WebUi => json!({"error": "HTTPException", "detail": text, "body": "", "errors": text}),
        };
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// OpenAI's `type` and `code`.
fn openai_kind(status: StatusCode) -> (&'static str, Option<&'static str>) {
    match status {
        StatusCode::UNAUTHORIZED => ("invalid_request_error", Some("invalid_api_key")),
        StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", Some("rate_limit_exceeded")),
        s if s.is_server_error() => ("server_error", None),
        _ => ("invalid_request_error", None),
    }
}
