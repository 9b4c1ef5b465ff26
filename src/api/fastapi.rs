//! FastAPI's shapes: what clients of the replaced service read when something is wrong.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{ENDPOINTS, body, json_error};

/// An answer that is not 200: `{"detail": ...}`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// A text, or FastAPI's list of validation errors.
    pub detail: Value,
    /// When to come back.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    /// A status and a text.
    pub fn new(status: StatusCode, detail: impl Into<Value>) -> Self {
        Self { status, detail: detail.into(), retry_after_s: None }
    }

    /// 422: a field is missing or not as it should be.
    pub fn invalid(detail: impl Into<Value>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "detail": self.detail }))).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// 405 with the methods that are allowed.
pub fn method_not_allowed(allowed: &str) -> Response {
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    ([(header::ALLOW, allowed.to_owned())], error).into_response()
}

/// 404, or 307 to the same path without its trailing slash where that is a route.
pub async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_end_matches('/');
    if path.len() < uri.path().len() && ENDPOINTS.contains(&path) {
        let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let location = format!("{}{path}{query}", origin(&headers).unwrap_or_default());
        if let Ok(location) = HeaderValue::try_from(location) {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
        }
    }
    ApiError::new(StatusCode::NOT_FOUND, "Not Found").into_response()
}

/// This server as the client called it, for example `http://localhost:7860`.
pub(super) fn origin(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    // Behind a proxy that ends TLS, a link to http would be refused by the browser.
    let https = headers.get("x-forwarded-proto").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"https"));
    Some(format!("{}://{host}", if https { "https" } else { "http" }))
}

/// The body of a route that takes any JSON object, of at most `limit_bytes`, checked in FastAPI's order.
pub async fn dict_body(request: Request, limit_bytes: usize) -> Result<Map<String, Value>, ApiError> {
    let is_json = body::is_json(request.headers());
    let bytes = body::read(request, limit_bytes).await?;
    if bytes.is_empty() {
        return Err(missing_body());
    }
    if !is_json {
        return Err(not_a_dict(Value::from(String::from_utf8_lossy(&bytes))));
    }
    match parse(&bytes)? {
        Value::Object(map) => Ok(map),
        other => Err(not_a_dict(other)),
    }
}

/// Parses JSON; errors carry the position and the words of Python's `json` module.
fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let unreadable = || ApiError::new(StatusCode::BAD_REQUEST, "There was an error parsing the body");
    let text = std::str::from_utf8(bytes).map_err(|_| unreadable())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).map_err(|_| match json_error::first(text) {
        Some((position, message)) => ApiError::invalid(json!([{
            "type": "json_invalid", "loc": ["body", position], "msg": "JSON decode error", "input": {},
            "ctx": {"error": message},
        }])),
        // What Python reads and this parser does not: NaN, lone surrogates, very deep nesting.
        None => unreadable(),
    })
}

fn missing_body() -> ApiError {
    ApiError::invalid(json!([{"type": "missing", "loc": ["body"], "msg": "Field required", "input": null}]))
}

fn not_a_dict(input: Value) -> ApiError {
    let msg = "Input should be a valid dictionary";
    ApiError::invalid(json!([{"type": "dict_type", "loc": ["body"], "msg": msg, "input": input}]))
}
