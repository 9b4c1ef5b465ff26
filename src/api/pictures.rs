//! Pictures in requests and replies.

use axum::body::Bytes;
use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use image::DynamicImage;

use super::fault::{Fault, internal};
use crate::engine::Picture;
use crate::picture::{self, Format};

/// Base64 as Python's `b64decode` reads it: padding may be missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes in a base64 text, with or without a data URI before them.
pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    let start = text.trim_start();
    if start.starts_with("http://") || start.starts_with("https://") {
        return Err("is a URL, and nothing a client names is fetched: send the picture as base64".into());
    }
    let is_uri = start.starts_with("data:");
    let text = if is_uri { text.split_once(',').map_or("", |(_, data)| data) } else { text };
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if text.is_empty() {
        return Err("is empty".into());
    }
    BASE64.decode(text).map_err(|_| "is no base64".into())
}

/// Whether a text looks like a picture in base64 rather than like words.
pub(super) fn looks_like_base64(text: &str) -> bool {
    // The first bytes of PNG, JPEG and WebP files.
    ["data:image/", "iVBORw0KGgo", "/9j/", "UklGR"].iter().any(|start| text.trim_start().starts_with(start))
}

/// A picture in a request.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Base64(String),
    File(Bytes),
}

/// Decodes a request's pictures; `field` is what errors call each.
pub(super) async fn decode(sources: Vec<(String, Source)>) -> Result<Vec<DynamicImage>, Fault> {
    let one = |(field, source): (String, Source)| {
        let refused = |reason: String| Fault::invalid(field.clone(), format!("{field} {reason}."));
        let image = match source {
            Source::Base64(text) => picture::decode(&from_base64(&text).map_err(refused)?),
            Source::File(bytes) => picture::decode(&bytes),
        };
        image.map_err(|error| refused(error.to_string()))
    };
    let all = tokio::task::spawn_blocking(move || sources.into_iter().map(one).collect());
    all.await.map_err(|error| internal(&error))?
}

/// The files of finished pictures, off the threads that answer requests.
pub(super) async fn encode(pictures: Vec<Picture>, format: Format) -> Result<Vec<Vec<u8>>, Fault> {
    encode_at(pictures, format, picture::JPEG_QUALITY).await
}

/// The same with a JPEG quality of 1 to 100.
pub(super) async fn encode_at(
    pictures: Vec<Picture>,
    format: Format,
    jpeg_quality: u8,
) -> Result<Vec<Vec<u8>>, Fault> {
    let one = move |picture: &Picture| match format {
        Format::Jpeg => picture::encode_plain(&picture.image, format, jpeg_quality),
        format => picture::encode(picture, format),
    };
    let all = move || pictures.iter().map(one).collect::<Result<Vec<_>, _>>();
    let encoded = tokio::task::spawn_blocking(all).await.map_err(|error| internal(&error))?;
    encoded.map_err(|error| internal(&error))
}

/// PNG files as base64.
pub(super) async fn encode_base64(pictures: Vec<Picture>) -> Result<Vec<String>, Fault> {
    Ok(encode(pictures, Format::Png).await?.iter().map(|bytes| STANDARD.encode(bytes)).collect())
}
