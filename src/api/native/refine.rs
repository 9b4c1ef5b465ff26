//! `POST /refine`: pictures and what to change about them.

use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use image::RgbImage;
use serde_json::{Map, Value};

use super::{Wording, parameters, reply, strength};
use crate::api::fastapi::{ApiError, dict_body};
use crate::api::fields::Fields;
use crate::api::parameters::Parameters;
use crate::api::{App, body, caller, pictures};
use crate::engine::Mode;
use crate::picture::{self, PictureError};
use crate::settings::{MAX_IMAGES, RefineMode};

const DEFAULT_STRENGTH: f64 = 0.6;

const WORDING: Wording = Wording {
    out_of_memory: "GPU memory insufficient for refinement. Try with fewer images.",
    failed: "Refinement failed",
};

/// The handler.
pub async fn refine(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let started = Instant::now();
    let caller = caller(request.extensions());
    let form = Form::new(&dict_body(request, body::MAX_PICTURES_BYTES).await?, &app)?;
    let parameters = form.parameters(&app).await?;
    let job = parameters.submit(&app, &caller).await.map_err(|fault| WORDING.of(fault))?;
    let info = job.model.info.clone();
    reply(WORDING.pictures(job).await?, &info, started).await
}

/// The body, checked but for the pictures in it.
struct Form {
    parameters: Parameters,
    images: Vec<String>,
    strength: Option<f64>,
}

impl Form {
    fn new(body: &Map<String, Value>, app: &App) -> Result<Self, ApiError> {
        let fields = Fields::new(body);
        let prompt = fields.any(&["refinePrompt", "refine_prompt", "prompt"]).and_then(Value::as_str);
        let prompt = prompt.filter(|p| !p.trim().is_empty());
        let prompt = prompt.ok_or_else(|| ApiError::invalid("refinePrompt field is required."))?;
        let no_strings = || ApiError::invalid("images field must contain base64 strings.");
        let images = fields.any(&["images", "baseImages", "base_images"]).and_then(Value::as_array);
        let images: Option<Vec<_>> = images.and_then(|all| all.iter().map(Value::as_str).collect());
        let images = images.filter(|images| !images.is_empty()).ok_or_else(no_strings)?;
        if images.len() as u64 > MAX_IMAGES {
            return Err(ApiError::invalid(format!(
                "images field must contain at most {MAX_IMAGES} pictures."
            )));
        }
        Ok(Self {
            parameters: parameters(prompt, body, app)?,
            images: images.into_iter().map(str::to_owned).collect(),
            strength: strength(body)?,
        })
    }

    /// The pictures decoded, and what is made of them.
    async fn parameters(self, app: &App) -> Result<Parameters, ApiError> {
        let (images, default_strength) = (self.images, self.strength.is_none());
        let strength = self.strength.unwrap_or(DEFAULT_STRENGTH);
        let decoded = tokio::task::spawn_blocking(move || {
            images.iter().enumerate().map(|(i, text)| decode(i, text)).collect::<Result<Vec<_>, _>>()
        });
        let images = decoded.await.map_err(|_| undecodable())??;
        Ok(match app.defaults.refine_mode {
            // One refined picture for each picture, of its size.
            RefineMode::Img2Img => Parameters {
                num_images: 1,
                default_strength,
                modes: images.into_iter().map(|image| Mode::ImageToImage { image, strength }).collect(),
                ..self.parameters
            },
            // As many pictures as /generate makes, of the model's own size: they need not match those captioned.
            RefineMode::Caption => Parameters { based_on: images, ..self.parameters },
        })
    }
}

/// A picture from base64, with or without a data URI before it.
fn decode(index: usize, text: &str) -> Result<RgbImage, ApiError> {
    let bytes = pictures::from_base64(text).map_err(|_| undecodable())?;
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
