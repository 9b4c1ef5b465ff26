//! Cross-origin requests, answered as Starlette's `CORSMiddleware` does with credentials on and all methods and
//! headers allowed, but on every response: Starlette loses the headers on unhandled errors.
//!
//! Source: `starlette/middleware/cors.py` of Starlette 1.10.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY";
const PREFLIGHT_VARY: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                              Access-Control-Request-Private-Network";
const PREFLIGHT_MAX_AGE_S: &str = "600";
const PRIVATE_NETWORK: &str = "access-control-request-private-network";

/// The origins whose pages may read our answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Origins {
    /// Every one.
    All,
    /// These, and any port of this machine.
    Listed(Vec<String>),
}

impl Origins {
    /// From a comma-separated list; without one, the development servers of the known web apps.
    pub fn new(list: Option<&str>) -> Self {
        let list = list.unwrap_or("http://localhost:8081,http://localhost:5173");
        let origins: Vec<_> = list.split(',').map(str::trim).filter(|o| !o.is_empty()).collect();
        if origins.contains(&"*") {
            return Self::All;
        }
        Self::Listed(origins.into_iter().map(str::to_owned).collect())
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(list) => list.iter().any(|o| o == origin) || is_local(origin),
        }
    }
}

/// `http://(localhost|127\.0\.0\.1):\d+`
fn is_local(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://");
    let port = rest.and_then(|r| r.strip_prefix("localhost:").or_else(|| r.strip_prefix("127.0.0.1:")));
    port.is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// The layer: answers preflights itself and marks every other response.
pub async fn cors(State(origins): State<Arc<Origins>>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        let mut response = next.run(request).await;
        vary(response.headers_mut());
        return response;
    };
    let allowed = origin.to_str().is_ok_and(|o| origins.allows(o));
    if request.method() == Method::OPTIONS
        && let Some(method) = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return preflight(request.headers(), method, origin, allowed);
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    if allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    vary(headers);
    response
}

/// A cache must keep answers to different origins apart.
fn vary(headers: &mut HeaderMap) {
    let before = headers.get(header::VARY).and_then(|v| v.to_str().ok());
    let value = before.and_then(|before| HeaderValue::try_from(format!("{before}, Origin")).ok());
    headers.insert(header::VARY, value.unwrap_or(HeaderValue::from_static("Origin")));
}

fn preflight(request: &HeaderMap, method: &HeaderValue, origin: HeaderValue, allowed: bool) -> Response {
    let mut headers = HeaderMap::new();
    let mut set = |name, value: HeaderValue| headers.insert(name, value);
    set(header::VARY, HeaderValue::from_static(PREFLIGHT_VARY));
    set(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    set(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_MAX_AGE_S));
    set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    if let Some(asked) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    let mut refused = Vec::new();
    if allowed {
        set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    } else {
        refused.push("origin");
    }
    if !METHODS.split(", ").any(|known| known.as_bytes() == method.as_bytes()) {
        refused.push("method");
    }
    if request.contains_key(PRIVATE_NETWORK) {
        refused.push("private-network");
    }
    if refused.is_empty() {
        return (headers, "OK").into_response();
    }
    (StatusCode::BAD_REQUEST, headers, format!("Disallowed CORS {}", refused.join(", "))).into_response()
}
