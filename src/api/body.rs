//! Bodies, bounded before they are parsed.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::fault::{Fault, Kind};

/// A body without pictures.
pub(super) const MAX_TEXT_BYTES: usize = 1 << 20;
/// A body with pictures.
pub(super) const MAX_PICTURES_BYTES: usize = 64 << 20;

/// The whole body, of at most `limit_bytes`.
pub(super) async fn read(request: Request, limit_bytes: usize) -> Result<Bytes, Fault> {
    check_length(request.headers(), limit_bytes)?;
    collect(request.into_body(), limit_bytes).await
}

/// Refuses a body by the length that it announces.
pub(super) fn check_length(headers: &HeaderMap, limit_bytes: usize) -> Result<(), Fault> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit_bytes as u64) {
        Err(too_large(limit_bytes))
    } else {
        Ok(())
    }
}

async fn collect(body: Body, limit_bytes: usize) -> Result<Bytes, Fault> {
    to_bytes(body, limit_bytes).await.map_err(|error| {
        // axum says "length limit exceeded" in the source of its error, and a broken connection otherwise.
        let over = std::error::Error::source(&error).is_some_and(|s| s.to_string().contains("limit"));
        if over { too_large(limit_bytes) } else { Fault::new(Kind::BrokenOff, "The request body broke off.") }
    })
}

pub(super) fn too_large(limit_bytes: usize) -> Fault {
    let text = format!("Request body is too large: at most {} MiB are accepted.", limit_bytes >> 20);
    Fault::new(Kind::TooLarge, text)
}

/// `application/json` and `application/*+json`.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let subtype = essence(headers).and_then(|e| e.strip_prefix("application/").map(str::to_owned));
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// The content type without its parameters, in lower case.
pub(super) fn essence(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// A JSON object, for APIs that have no words of their own for a text that is none.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, Fault> {
    let wrong = |what: String| Fault::new(Kind::Invalid, format!("The body must be a JSON object: {what}."));
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(wrong("it is another JSON value".into())),
        Err(error) => Err(wrong(error.to_string())),
    }
}
