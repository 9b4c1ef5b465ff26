//! `POST /refine`: pictures and what to change about them.

use std::time::Instant;

use crate::engine::{GenerationRequest, Mode};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use image::RgbImage;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::overrides::Overrides;
use super::{Wording, pictures, refusal, reply};
use crate::api::App;
use crate::api::fastapi::{ApiError, dict_body};
use crate::engine::{ModelInfo, Work};
use crate::picture::{self, PictureError};
use crate::queue::Caller;
use crate::settings::{MAX_IMAGES, RefineMode};

const MAX_BODY_BYTES: usize = 64 << 20;
const DEFAULT_STRENGTH: f64 = 0.6;

const WORDING: Wording = Wording {
    out_of_memory: "GPU memory insufficient for refinement. Try with fewer images.",
    failed: "Refinement failed",
};

/// Base64 as Python's `b64decode` reads it: padding may be missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The handler.
pub async fn refine(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let started = Instant::now();
    let form = Form::new(&dict_body(request, MAX_BODY_BYTES).await?, &app)?;
    let cost = form.overrides.cost(form.images.len(), None, &app);
    let place = app.queue.admit(&Caller::anonymous(), cost)?;
    let model = app.engine.model().await.map_err(|error| refusal(error, &WORDING))?;
    let work = form.work(&app, &model).await?;
    let made = pictures(&app, place, work, &WORDING).await?;
    reply(made, &model, started).await
}

/// The body, checked but for the pictures in it.
struct Form {
    prompt: String,
    images: Vec<String>,
    overrides: Overrides,
}

impl Form {
    fn new(body: &Map<String, Value>, app: &App) -> Result<Self, ApiError> {
        let fields = Fields::new(body);
        let prompt = fields.any(&["refinePrompt", "refine_prompt", "prompt"]).and_then(Value::as_str);
        let prompt = prompt.filter(|p| !p.trim().is_empty());
        let prompt = prompt.ok_or_else(|| ApiError::invalid("refinePrompt field is required."))?.to_owned();
        let no_strings = || ApiError::invalid("images field must contain base64 strings.");
        let images = fields.any(&["images", "baseImages", "base_images"]).and_then(Value::as_array);
        let images: Option<Vec<_>> = images.and_then(|all| all.iter().map(Value::as_str).collect());
        let images = images.filter(|images| !images.is_empty()).ok_or_else(no_strings)?;
        if images.len() as u64 > MAX_IMAGES {
            return Err(ApiError::invalid(format!(
                "images field must contain at most {MAX_IMAGES} pictures."
            )));
        }
        let images = images.into_iter().map(str::to_owned).collect();
        Ok(Self { prompt, images, overrides: Overrides::new(body, app)? })
    }

    /// The pictures decoded, and what is made of them.
    async fn work(self, app: &App, model: &ModelInfo) -> Result<Work, ApiError> {
        let images = self.images;
        let decoded = tokio::task::spawn_blocking(move || {
            images.iter().enumerate().map(|(i, text)| decode(i, text)).collect::<Result<Vec<_>, _>>()
        });
        let images = decoded.await.map_err(|_| undecodable())??;
        let first = self.overrides.request(&self.prompt, None, app, model)?;
        Ok(match app.defaults.refine_mode {
            RefineMode::Img2Img => image_to_image(images, &first, self.overrides),
            // As many pictures as /generate makes, of the model's own size: they need not match those captioned.
            RefineMode::Caption => Work {
                requests: self.overrides.series(&first),
                based_on: images,
                loras: self.overrides.loras,
                ..Work::default()
            },
        })
    }
}

/// One refined picture for each picture, of its size.
fn image_to_image(images: Vec<RgbImage>, first: &GenerationRequest, overrides: Overrides) -> Work {
    let strength = overrides.strength.unwrap_or(DEFAULT_STRENGTH);
    let refined = |(i, image): (u64, RgbImage)| GenerationRequest {
        seed: first.seed.wrapping_add(i),
        width: Some(image.width() as usize),
        height: Some(image.height() as usize),
        mode: Mode::ImageToImage { image, strength },
        ..first.clone()
    };
    let requests = (0..).zip(images).map(refined).collect();
    Work { requests, loras: overrides.loras, ..Work::default() }
}

/// A picture from base64, with or without a data URI before it.
fn decode(index: usize, text: &str) -> Result<RgbImage, ApiError> {
    let is_uri = text.trim_start().starts_with("data:");
    let text = if is_uri { text.split_once(',').map_or("", |(_, data)| data) } else { text };
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = BASE64.decode(text).map_err(|_| undecodable())?;
    match picture::decode(&bytes) {
        Ok(image) => Ok(picture::on_white(&image)),
        Err(error @ PictureError::TooLarge { .. }) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, format!("Image {} in images {error}.", index + 1)))
        }
        Err(_) => Err(undecodable()),
    }
}

fn undecodable() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "Invalid base64 string in images")
}
