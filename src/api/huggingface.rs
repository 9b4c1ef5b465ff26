//! Hugging Face Inference: `POST /models/{id}` and `POST /`. The reply is the picture itself.
//!
//! Sources: `HFInferenceTask` of huggingface_hub and of @huggingface/inference.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use image::DynamicImage;
use serde_json::{Map, Value, json};

use super::fault::{Fault, Kind, internal};
use super::fields::Fields;
use super::parameters::{CACHE_NAMES, Guidance, Parameters, Size, Steps};
use super::pictures::{Source, decode, encode, looks_like_base64};
use super::{App, body, caller};
use crate::engine::{Mode, Phase};
use crate::picture::{Format, on_white};
use crate::queue::Caller;

const DEFAULT_STRENGTH: f64 = 0.6;
/// What the hosted API tells clients to wait while a model loads.
const ESTIMATED_LOADING_S: f64 = 20.0;
const MODEL: HeaderName = HeaderName::from_static("x-model");
const FALLBACK_FROM: HeaderName = HeaderName::from_static("x-fallback-from");
const SEED: HeaderName = HeaderName::from_static("x-seed");

/// `POST /`: the default model.
pub async fn default_model(State(app): State<App>, request: Request) -> Response {
    answer(app, None, request).await
}

/// `POST /models/{id}`
pub async fn named_model(State(app): State<App>, Path(id): Path<String>, request: Request) -> Response {
    answer(app, Some(id), request).await
}

async fn answer(app: App, id: Option<String>, request: Request) -> Response {
    let (headers, caller) = (request.headers().clone(), caller(request.extensions()));
    let picture = match said(&headers, "x-wait-for-model") == Some(false) && is_loading(&app) {
        true => Err(loading(&app, id.as_deref())),
        false => match body::read(request, body::MAX_PICTURES_BYTES).await {
            Ok(bytes) => picture(&app, id, &headers, bytes, &caller).await,
            Err(fault) => Err(fault),
        },
    };
    picture.unwrap_or_else(error)
}

async fn picture(
    app: &App,
    id: Option<String>,
    headers: &HeaderMap,
    bytes: Bytes,
    caller: &Caller,
) -> Result<Response, Fault> {
    let mut parameters = read(app, headers, bytes).await?;
    parameters.model = id;
    parameters.use_cache = said(headers, "x-use-cache") != Some(false);
    let job = parameters.submit(app, caller).await?;
    let made = job.ticket.await?;
    let seed = made.first().map_or(0, |picture| picture.recipe.seed);
    let format = accepted(headers);
    let file = encode(made, format).await?.into_iter().next().ok_or_else(|| internal(&"no picture"))?;
    let mut response = ([(header::CONTENT_TYPE, format.media_type())], file).into_response();
    let headers = response.headers_mut();
    headers.insert(SEED, HeaderValue::from(seed));
    for (name, value) in
        [(MODEL, Some(&job.model.info.name)), (FALLBACK_FROM, job.model.fallback_from.as_ref())]
    {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// A body's fields, of whichever of the known shapes.
async fn read(app: &App, headers: &HeaderMap, bytes: Bytes) -> Result<Parameters, Fault> {
    let is_text = bytes.trim_ascii_start().starts_with(b"{");
    if body::is_json(headers) || is_text {
        return Form::new(app, &body::object(&bytes)?)?.parameters().await;
    }
    if bytes.is_empty() {
        return Err(Fault::invalid("inputs", "inputs is required: the body is empty."));
    }
    // Clients send a picture alone as it is.
    let form = Form {
        image: Some(Source::File(bytes)),
        mask: None,
        strength: None,
        parameters: Parameters::new(""),
    };
    form.parameters().await
}

/// A body, checked but for the pictures in it.
struct Form {
    image: Option<Source>,
    mask: Option<Source>,
    strength: Option<f64>,
    parameters: Parameters,
}

const TOP: [&str; 3] = ["inputs", "parameters", "options"];
const INPUTS: [&str; 4] = ["prompt", "image", "mask_image", "mask"];
const PARAMETERS: [&str; 18] = [
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "target_size",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
    "lora",
    "lora_scale",
    "strength",
    "clip_skip",
    "mask_image",
    "mask",
    "first_block_cache",
    "cache_interval",
    "cache_branch_id",
];

impl Form {
    fn new(app: &App, body: &Map<String, Value>) -> Result<Self, Fault> {
        let top = Fields::new(body);
        known(&top, "", &TOP)?;
        let fields = top.object("parameters", "parameters.")?;
        known(&fields, "", &PARAMETERS)?;
        // `options` is of an older version of the API; what is in it is in headers now.
        known(&top.object("options", "options.")?, "options.", &["use_cache", "wait_for_model"])?;
        let given = fields.text("prompt")?;
        let (prompt, image, mask) = inputs(&top, given)?;
        let mask = match mask {
            Some(mask) => Some(mask),
            None => mask_of(&fields)?,
        };
        if mask.is_some() && image.is_none() {
            return Err(Fault::invalid("inputs", "inputs must have an image where there is a mask."));
        }
        let clip_skip = fields.whole("clip_skip", 0..=31)?.unwrap_or(0) as usize;
        let strength = fields.number("strength", 0.0..=1.0)?;
        if image.is_none() && strength.is_some() {
            let message = "parameters.strength needs a picture in inputs, and there is none.";
            return Err(Fault::invalid("parameters.strength", message));
        }
        let parameters = Parameters {
            negative_prompt: fields.text("negative_prompt")?.map(str::to_owned),
            size: size(&fields)?,
            seed: fields.seed("seed")?,
            steps: Steps::or_default(fields.steps("num_inference_steps")?),
            guidance: Guidance::or_default(fields.guidance_scale("guidance_scale")?),
            scheduler: fields.scheduler("scheduler")?,
            clip_skip,
            loras: fields.loras(app, "lora", "lora_scale")?,
            step_cache: fields.step_cache(CACHE_NAMES)?,
            ..Parameters::new(prompt)
        };
        Ok(Self { image, mask, strength, parameters })
    }

    /// With its pictures decoded.
    async fn parameters(self) -> Result<Parameters, Fault> {
        let mut parameters = self.parameters;
        let Some(image) = self.image else { return Ok(parameters) };
        let named = std::iter::once(("inputs".to_owned(), image));
        let sources = named.chain(self.mask.map(|mask| ("mask_image".to_owned(), mask))).collect();
        let mut pictures = decode(sources).await?.into_iter();
        let image = pictures.next().map(|image| on_white(&image)).unwrap_or_default();
        parameters.default_strength = self.strength.is_none();
        let strength = self.strength.unwrap_or(DEFAULT_STRENGTH);
        parameters.modes = vec![match pictures.next() {
            None => Mode::ImageToImage { image, strength },
            Some(mask) => Mode::Inpaint { image, mask: white_is_repainted(&mask), strength },
        }];
        Ok(parameters)
    }
}

/// The prompt, the picture and the mask in `inputs`.
fn inputs(top: &Fields<'_>, prompt: Option<&str>) -> Result<(String, Option<Source>, Option<Source>), Fault> {
    match top.get("inputs") {
        None => Err(Fault::invalid("inputs", "inputs is required.")),
        Some(Value::String(text)) if prompt.is_some() || looks_like_base64(text) => {
            Ok((prompt.unwrap_or_default().to_owned(), Some(Source::Base64(text.clone())), None))
        }
        Some(Value::String(text)) if !text.trim().is_empty() => Ok((text.clone(), None, None)),
        Some(Value::Object(_)) => {
            let fields = top.object("inputs", "inputs.")?;
            known(&fields, "inputs.", &INPUTS)?;
            let prompt = fields.text("prompt")?.or(prompt);
            let image = fields.text("image")?.map(|text| Source::Base64(text.to_owned()));
            match (prompt, &image) {
                (None, None) => Err(Fault::invalid("inputs", "inputs must have a prompt or an image.")),
                _ => Ok((prompt.unwrap_or_default().to_owned(), image, mask_of(&fields)?)),
            }
        }
        Some(other) => Err(Fault::must_be("inputs", "a prompt, or an object with an image", other)),
    }
}

fn mask_of(fields: &Fields<'_>) -> Result<Option<Source>, Fault> {
    let text = match fields.text("mask_image")? {
        Some(text) => Some(text),
        None => fields.text("mask")?,
    };
    Ok(text.map(|text| Source::Base64(text.to_owned())))
}

/// `width` and `height`, or the two in `target_size`.
fn size(fields: &Fields<'_>) -> Result<Size, Fault> {
    let target = fields.object("target_size", "parameters.target_size.")?;
    known(&target, "target_size.", &["width", "height"])?;
    let pair = match (target.side("width")?, target.side("height")?) {
        (None, None) => (fields.side("width")?, fields.side("height")?),
        pair => pair,
    };
    match pair {
        (Some(width), Some(height)) => Ok(Size::Exact((width, height))),
        (None, None) => Ok(Size::Default),
        // One side alone: a square.
        (Some(side), None) | (None, Some(side)) => Ok(Size::Exact((side, side))),
    }
}

fn known(fields: &Fields<'_>, prefix: &str, names: &[&str]) -> Result<(), Fault> {
    let others = fields.others(names);
    if others.is_empty() {
        return Ok(());
    }
    let others: Vec<_> = others.iter().map(|name| format!("{prefix}{name}")).collect();
    let others = others.join(", ");
    Err(Fault::invalid(others.as_str(), format!("Unknown parameter(s): {others}")))
}

fn white_is_repainted(mask: &DynamicImage) -> image::GrayImage {
    DynamicImage::from(on_white(mask)).to_luma8()
}

/// The format that the `Accept` header likes best; PNG where it leaves the choice or names none that is made here.
fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut best = (0.0, Format::Png);
    for part in accept.split(',') {
        let (kind, rest) = part.split_once(';').unwrap_or((part, ""));
        let quality = rest.split(';').find_map(|p| p.trim().strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        let format = match kind.trim().to_ascii_lowercase().as_str() {
            "image/jpeg" | "image/jpg" => Format::Jpeg,
            "image/webp" => Format::WebP,
            "image/png" | "image/*" | "*/*" => Format::Png,
            _ => continue,
        };
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

/// What a header says that is either true or false.
fn said(headers: &HeaderMap, name: &str) -> Option<bool> {
    match headers.get(name)?.to_str().ok()?.trim().to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn is_loading(app: &App) -> bool {
    matches!(app.engine.status().phase, Phase::Loading)
}

fn loading(app: &App, id: Option<&str>) -> Fault {
    let names = app.engine.models();
    let name = id.or(names.first().map(|model| model.name.as_str())).unwrap_or("of this server");
    Fault::new(Kind::Loading, format!("Model {name} is currently loading"))
}

/// `{"error": "..."}`: the JavaScript client reads only texts, and repeats a 503 without a pause.
fn error(fault: Fault) -> Response {
    let status = match fault.kind {
        Kind::Loading => StatusCode::SERVICE_UNAVAILABLE,
        kind if kind.status() == StatusCode::SERVICE_UNAVAILABLE => StatusCode::TOO_MANY_REQUESTS,
        kind => kind.status(),
    };
    let mut body = json!({"error": fault.message});
    if fault.kind == Kind::Loading {
        body["estimated_time"] = json!(ESTIMATED_LOADING_S);
    }
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = fault.retry_after_s.unwrap_or(60);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
