//! FastAPI's shapes: what clients of the replaced service read when something is wrong.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{ENDPOINTS, json_error};
use crate::queue::Refusal;

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

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.is_callers_own() {
            true => StatusCode::TOO_MANY_REQUESTS,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let detail = Value::from(refusal.to_string());
        Self { status, detail, retry_after_s: Some(refusal.retry_after_s()) }
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

/// 405 with the method that is allowed.
pub fn method_not_allowed(allowed: &Method) -> Response {
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    ([(header::ALLOW, allowed.to_string())], error).into_response()
}

/// 404, or 307 to the same path without its trailing slash where that is a route.
pub async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_end_matches('/');
    if path.len() < uri.path().len() && ENDPOINTS.contains(&path) {
        let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let location = match headers.get(header::HOST).and_then(|h| h.to_str().ok()) {
            Some(host) => format!("{}://{host}{path}{query}", scheme(&headers)),
            None => format!("{path}{query}"),
        };
        if let Ok(location) = HeaderValue::try_from(location) {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
        }
    }
    ApiError::new(StatusCode::NOT_FOUND, "Not Found").into_response()
}

/// Behind a proxy that ends TLS, a redirect to http would be refused by the browser.
fn scheme(headers: &HeaderMap) -> &'static str {
    let https = headers.get("x-forwarded-proto").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"https"));
    if https { "https" } else { "http" }
}

/// The body of a route that takes any JSON object, of at most `limit_bytes`, checked in FastAPI's order.
pub async fn dict_body(request: Request, limit_bytes: usize) -> Result<Map<String, Value>, ApiError> {
    let is_json = is_json(request.headers());
    let bytes = read(request, limit_bytes).await?;
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

async fn read(request: Request, limit_bytes: usize) -> Result<axum::body::Bytes, ApiError> {
    let too_large = || {
        let mib = limit_bytes >> 20;
        let text = format!("Request body is too large: at most {mib} MiB are accepted.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit_bytes as u64) {
        return Err(too_large());
    }
    to_bytes(request.into_body(), limit_bytes).await.map_err(|error| {
        // axum says "length limit exceeded" in the source of its error, and a broken connection otherwise.
        let over = std::error::Error::source(&error).is_some_and(|s| s.to_string().contains("limit"));
        if over { too_large() } else { ApiError::new(StatusCode::BAD_REQUEST, "The request body broke off.") }
    })
}

/// FastAPI reads `application/json` and `application/*+json` and takes everything else as a text.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
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

/// Logs each request, and turns a handler's panic into a 500 that still passes the CORS layer: without its headers
/// a browser shows every error as "Failed to fetch".
pub async fn log_and_catch(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = pin!(next.run(request));
    let polled = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    });
    let response = polled.await.unwrap_or_else(|| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error").into_response()
    });
    let (status, elapsed_ms) = (response.status().as_u16(), started.elapsed().as_millis() as u64);
    // Every open page asks for /health every few hundred milliseconds.
    if path == "/health" {
        tracing::debug!(%method, path, status, elapsed_ms, "request");
    } else {
        tracing::info!(%method, path, status, elapsed_ms, "request");
    }
    response.map(Body::new)
}
