//! The web page at `/` and the API's description at `/docs`: files in the program, nothing from elsewhere.

use axum::Json;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ENDPOINTS;
use super::fastapi::ApiError;

/// Everything comes from this server; pictures are blobs and data.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// `(name, content type, text)` of every file beside the pages themselves.
const FILES: [(&str, &str, &str); 11] = [
    ("style.css", CSS, include_str!("style.css")),
    ("page.js", SCRIPT, include_str!("page.js")),
    ("jobs.js", SCRIPT, include_str!("jobs.js")),
    ("gallery.js", SCRIPT, include_str!("gallery.js")),
    ("settings.js", SCRIPT, include_str!("settings.js")),
    ("start.js", SCRIPT, include_str!("start.js")),
    ("mask.js", SCRIPT, include_str!("mask.js")),
    ("png.js", SCRIPT, include_str!("png.js")),
    ("docs.css", CSS, include_str!("docs.css")),
    ("docs.js", SCRIPT, include_str!("docs.js")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The page for a browser, a list of endpoints for everyone else.
pub async fn index(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut response = if accept.contains("text/html") {
        page(include_str!("index.html"))
    } else {
        let message = "Aquatint image generation server";
        Json(json!({"status": "ok", "message": message, "endpoints": ENDPOINTS})).into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// `/docs` and `/redoc`: the same page, which reads `/openapi.json`; at `/docs` requests can be tried.
pub async fn docs() -> Response {
    page(include_str!("docs.html"))
}

/// A page's script, style or icon.
pub async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => asset(kind, text),
        None => ApiError::new(StatusCode::NOT_FOUND, "Not Found").into_response(),
    }
}

fn page(html: &'static str) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], asset(HTML, html)).into_response()
}

/// A new version of the program is a new version of the page, so browsers must ask again.
fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
