//! `GET` and `POST /sdapi/v1/options`, and the same settings for one request.

use std::sync::{Mutex, MutexGuard};

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::{Error, object};
use crate::api::fault::Fault;
use crate::api::fields::Fields;
use crate::api::{App, models};
use crate::picture::{Format, JPEG_QUALITY};

/// The settings that hold for all requests of the web UI's routes.
#[derive(Default)]
pub(super) struct Options {
    kept: Mutex<Overrides>,
}

/// Settings that hold for one request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Overrides {
    /// `None` is the server's default model.
    pub(super) model: Option<String>,
    /// Text encoder layers left out at the end.
    pub(super) clip_skip: usize,
    pub(super) format: Format,
    pub(super) jpeg_quality: u8,
}

impl Default for Overrides {
    fn default() -> Self {
        Self { model: None, clip_skip: 0, format: Format::Png, jpeg_quality: JPEG_QUALITY }
    }
}

/// What can be changed, and then what is only told.
const NAMES: [&str; 6] = [
    "sd_model_checkpoint",
    "CLIP_stop_at_last_layers",
    "samples_format",
    "jpeg_quality",
    "sd_vae",
    "sd_checkpoint_hash",
];

impl Options {
    /// The settings with some of them overridden.
    pub(super) fn overridden(&self, fields: &Fields<'_>) -> Result<Overrides, Fault> {
        let mut overrides = self.kept().clone();
        if let Some(name) = fields.others(&NAMES).first() {
            let names: Vec<_> = NAMES.iter().map(|name| format!("'{name}'")).collect();
            let message = format!("There is no option {name:?}. There are {}.", names.join(", "));
            return Err(Fault::invalid(*name, message));
        }
        if let Some(name) = fields.text("sd_model_checkpoint")? {
            overrides.model = Some(name.to_owned()).filter(|name| !name.is_empty());
        }
        // There 1 means that no layer is left out.
        if let Some(stop) = fields.whole("CLIP_stop_at_last_layers", 1..=12)? {
            overrides.clip_skip = stop as usize - 1;
        }
        match fields.choice("samples_format", &["png", "jpg", "jpeg", "webp"])? {
            Some("png") => overrides.format = Format::Png,
            Some("webp") => overrides.format = Format::WebP,
            Some(_) => overrides.format = Format::Jpeg,
            None => {}
        }
        if let Some(quality) = fields.whole("jpeg_quality", 1..=100)? {
            overrides.jpeg_quality = quality as u8;
        }
        fields.choice("sd_vae", &["Automatic", "None", ""])?;
        fields.choice("sd_checkpoint_hash", &[""])?;
        Ok(overrides)
    }

    /// The settings as they are.
    pub(super) fn now(&self) -> Overrides {
        self.kept().clone()
    }

    fn set(&self, overrides: Overrides) {
        *self.kept() = overrides;
    }

    /// Nothing in a critical section can panic, so poisoned options are still whole.
    fn kept(&self) -> MutexGuard<'_, Overrides> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// `GET /sdapi/v1/options`
pub async fn get(State(app): State<App>) -> Result<Json<Value>, Error> {
    let options = app.webui.options.now();
    let model = models::choose(&app, options.model.as_deref()).await?;
    Ok(Json(json!({
        "sd_model_checkpoint": model.info.name,
        "CLIP_stop_at_last_layers": options.clip_skip + 1,
        "samples_format": match options.format {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::WebP => "webp",
        },
        "jpeg_quality": options.jpeg_quality,
        "sd_vae": "Automatic",
        "sd_checkpoint_hash": "",
    })))
}

/// `POST /sdapi/v1/options`: `null` is the answer.
pub async fn set(State(app): State<App>, request: Request) -> Result<Json<Value>, Error> {
    let body: Map<String, Value> = object(request).await?;
    let mut options = app.webui.options.overridden(&Fields::new(&body))?;
    if options.model.is_some() {
        options.model = models::choose(&app, options.model.as_deref()).await?.name;
    }
    app.webui.options.set(options);
    Ok(Json(Value::Null))
}
