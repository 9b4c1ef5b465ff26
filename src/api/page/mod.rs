//! The web page at `/`: three files in the program, nothing from elsewhere.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ENDPOINTS;

/// Everything comes from this server; pictures arrive as base64.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'self'";

/// The page for a browser, a list of endpoints for everyone else.
pub async fn index(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut response = if accept.contains("text/html") {
        ([(header::CONTENT_SECURITY_POLICY, POLICY)], file("text/html", include_str!("index.html")))
            .into_response()
    } else {
        let message = "Aquatint image generation server";
        Json(json!({"status": "ok", "message": message, "endpoints": ENDPOINTS})).into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// The page's style sheet.
pub async fn style() -> Response {
    file("text/css", include_str!("style.css"))
}

/// The page's script.
pub async fn script() -> Response {
    file("text/javascript", include_str!("page.js"))
}

/// A new version of the program is a new version of the page, so browsers must ask again.
fn file(kind: &str, text: &'static str) -> Response {
    let kind = format!("{kind}; charset=utf-8");
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache".to_owned())], text).into_response()
}
