//! The fields of generations, edits and variations, as JSON or as a form.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use image::{DynamicImage, GrayImage, Luma, RgbImage};
use serde_json::{Map, Value};

use crate::api::fault::{Fault, Kind};
use crate::api::fields::Fields;
use crate::api::parameters::{CACHE_NAMES, Guidance, Parameters, Size, Steps};
use crate::api::pictures::{Source, decode};
use crate::api::{App, body, fit};
use crate::engine::Mode;
use crate::picture::{Format, MAX_SIDE_PX, on_white};

/// Pictures a request may ask for, all in all.
const MAX_PICTURES: u64 = 10;
/// How much of a picture an edit or a variation changes where there is no mask.
const DEFAULT_STRENGTH: f64 = 0.6;
const QUALITIES: [&str; 6] = ["auto", "low", "medium", "high", "standard", "hd"];

/// A request, checked.
pub(super) struct Form {
    pub(super) parameters: Parameters,
    pub(super) output: Output,
    /// The number of partial images, where the reply is to be streamed.
    pub(super) stream: Option<u64>,
}

/// What the reply looks like.
#[derive(Clone)]
pub(super) struct Output {
    pub(super) format: Format,
    /// 1 to 100.
    pub(super) jpeg_quality: u8,
    pub(super) as_url: bool,
    pub(super) quality: &'static str,
    pub(super) background: &'static str,
    /// Who asks, in the caller's own words; told back.
    pub(super) user: Option<String>,
}

/// What a form brings beside its texts.
#[derive(Default)]
pub(super) struct Files {
    images: Vec<Bytes>,
    mask: Option<Bytes>,
}

/// A JSON object.
pub(super) async fn json(request: Request) -> Result<Map<String, Value>, Fault> {
    body::object(&body::read(request, body::MAX_TEXT_BYTES).await?)
}

/// A multipart form: its texts, and its pictures.
pub(super) async fn multipart(request: Request) -> Result<(Map<String, Value>, Files), Fault> {
    let (parts, unread) = request.into_parts();
    let bytes = body::read(Request::from_parts(parts.clone(), unread), body::MAX_PICTURES_BYTES).await?;
    let wrong =
        |what: String| Fault::new(Kind::Invalid, format!("The body must be a multipart form: {what}."));
    let request = Request::from_parts(parts, Body::from(bytes));
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| wrong(e.body_text()))?;
    let (mut texts, mut files) = (Map::new(), Files::default());
    while let Some(field) = form.next_field().await.map_err(|e| wrong(e.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(|e| wrong(e.body_text()))?;
        match name.as_str() {
            "image" | "image[]" => files.images.push(bytes),
            "mask" => files.mask = Some(bytes),
            _ => {
                texts.insert(name, String::from_utf8_lossy(&bytes).into());
            }
        }
    }
    Ok((texts, files))
}

impl Form {
    /// `POST /v1/images/generations`
    pub(super) fn generation(app: &App, body: &Map<String, Value>) -> Result<Self, Fault> {
        let fields = Fields::new(body);
        let form = Self::new(app, &fields, fields.required_text("prompt")?)?;
        if fields.get("strength").is_some() {
            return Err(Fault::invalid("strength", "strength needs a picture: use /v1/images/edits."));
        }
        Ok(form)
    }

    /// `POST /v1/images/edits`
    pub(super) async fn edit(app: &App, texts: &Map<String, Value>, files: Files) -> Result<Self, Fault> {
        let fields = Fields::form(texts);
        let form = Self::new(app, &fields, fields.required_text("prompt")?)?;
        form.start_from(&fields, files).await
    }

    /// `POST /v1/images/variations`
    pub(super) async fn variation(
        app: &App,
        texts: &Map<String, Value>,
        files: Files,
    ) -> Result<Self, Fault> {
        let fields = Fields::form(texts);
        if files.mask.is_some() {
            return Err(Fault::invalid("mask", "mask has no meaning for a variation."));
        }
        let form = Self::new(app, &fields, fields.text("prompt")?.unwrap_or_default())?;
        form.start_from(&fields, files).await
    }

    fn new(app: &App, fields: &Fields<'_>, prompt: &str) -> Result<Self, Fault> {
        let quality = fields.choice("quality", &QUALITIES)?.unwrap_or("auto");
        let steps = match fields.steps("steps")? {
            Some(steps) => Some(steps),
            None => fields.steps("num_inference_steps")?,
        };
        let parameters = Parameters {
            negative_prompt: fields.text("negative_prompt")?.map(str::to_owned),
            size: size(fields)?,
            num_images: fields.whole("n", 1..=MAX_PICTURES)?.unwrap_or(1) as usize,
            seed: fields.seed("seed")?,
            steps: steps.map_or(Steps::Times(effort(quality)), Steps::Exact),
            guidance: guidance(fields)?,
            scheduler: fields.scheduler("scheduler")?,
            clip_skip: fields.whole("clip_skip", 0..=31)?.unwrap_or(0) as usize,
            loras: fields.loras(app, "lora", "lora_scale")?,
            step_cache: fields.step_cache(CACHE_NAMES)?,
            model: fields.text("model")?.filter(|name| !name.is_empty()).map(str::to_owned),
            ..Parameters::new(prompt)
        };
        if let Some("auto") = fields.choice("moderation", &["low", "auto"])? {
            let message = "moderation must be 'low', not \"auto\": this server filters nothing.";
            return Err(Fault::invalid("moderation", message));
        }
        Ok(Self { parameters, output: Output::new(fields, quality)?, stream: stream(fields)? })
    }

    /// With the pictures that it starts from: each is edited by itself; the mask is for the first.
    async fn start_from(mut self, fields: &Fields<'_>, files: Files) -> Result<Self, Fault> {
        let count = files.images.len();
        if count == 0 {
            return Err(Fault::invalid("image", "image is required."));
        }
        if count * self.parameters.num_images > MAX_PICTURES as usize {
            let n = self.parameters.num_images;
            let message =
                format!("image: {count} pictures with n = {n} are more than {MAX_PICTURES} in all.");
            return Err(Fault::invalid("image", message));
        }
        let strength = fields.number("strength", 0.0..=1.0)?;
        let mut sources: Vec<_> =
            files.images.into_iter().map(|bytes| ("image".to_owned(), Source::File(bytes))).collect();
        sources.extend(files.mask.map(|bytes| ("mask".to_owned(), Source::File(bytes))));
        let mut pictures = decode(sources).await?;
        let mask = if pictures.len() > count { pictures.pop() } else { None };
        let mut mask = mask.map(|mask| mask_of(&mask, pictures.first())).transpose()?;
        let exact = match self.parameters.size {
            Size::Exact(size) => Some(size),
            _ => None,
        };
        let mode = |picture: &DynamicImage| {
            let own_mask = picture.color().has_alpha().then(|| transparency(picture)).filter(any_white);
            let mask = mask.take().or(own_mask);
            let image = opaque(picture, mask.is_some());
            let fitted = |size| fit::cover(&image, size);
            let image = exact.map_or_else(|| image.clone(), fitted);
            match mask {
                Some(mask) => {
                    let mask = exact.map_or_else(|| mask.clone(), |size| fit::cover(&mask, size));
                    Mode::Inpaint { image, mask, strength: strength.unwrap_or(1.0) }
                }
                None => Mode::ImageToImage { image, strength: strength.unwrap_or(DEFAULT_STRENGTH) },
            }
        };
        self.parameters.default_strength = strength.is_none();
        self.parameters.modes = pictures.iter().map(mode).collect();
        Ok(self)
    }
}

impl Output {
    fn new(fields: &Fields<'_>, quality: &'static str) -> Result<Self, Fault> {
        let format = match fields.choice("output_format", &["png", "jpeg", "webp"])? {
            Some("jpeg") => Format::Jpeg,
            Some("webp") => Format::WebP,
            _ => Format::Png,
        };
        let compression = fields.whole("output_compression", 0..=100)?;
        if let (Some(0..100), Format::Png | Format::WebP) = (compression, format) {
            let message =
                "output_compression below 100 needs output_format 'jpeg': PNG and WebP are lossless here.";
            return Err(Fault::invalid("output_compression", message));
        }
        let background = fields.choice("background", &["auto", "opaque", "transparent"])?.unwrap_or("auto");
        if background == "transparent" {
            let message =
                "background must be 'opaque' or 'auto', not \"transparent\": pictures have no alpha channel.";
            return Err(Fault::invalid("background", message));
        }
        let user = match fields.text("safety_identifier")?.filter(|user| !user.is_empty()) {
            Some(user) => Some(user),
            None => fields.text("user")?,
        };
        Ok(Self {
            format,
            jpeg_quality: compression.unwrap_or(100).max(1) as u8,
            as_url: fields.choice("response_format", &["url", "b64_json"])? == Some("url"),
            quality: match quality {
                "standard" => "medium",
                "hd" => "high",
                other => other,
            },
            background,
            user: user.map(str::to_owned),
        })
    }

    pub(super) fn format_name(&self) -> &'static str {
        match self.format {
            Format::Png => "png",
            Format::Jpeg => "jpeg",
            Format::WebP => "webp",
        }
    }
}

/// Steps as a multiple of the default.
fn effort(quality: &str) -> f64 {
    match quality {
        "low" => 0.5,
        "high" | "hd" => 1.5,
        _ => 1.0,
    }
}

/// `guidance_scale`, else `style`: vivid pictures follow the prompt closer.
fn guidance(fields: &Fields<'_>) -> Result<Guidance, Fault> {
    let style = fields.choice("style", &["vivid", "natural"])?;
    Ok(match (fields.guidance_scale("guidance_scale")?, style) {
        (Some(scale), _) => Guidance::Exact(scale),
        (None, Some("vivid")) => Guidance::Tempered(1.25),
        (None, Some(_)) => Guidance::Tempered(0.75),
        (None, None) => Guidance::Default,
    })
}

fn stream(fields: &Fields<'_>) -> Result<Option<u64>, Fault> {
    let partial_images = fields.whole("partial_images", 0..=3)?;
    match (fields.flag("stream")?.unwrap_or(false), partial_images) {
        (true, partial_images) => Ok(Some(partial_images.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(Fault::invalid("partial_images", "partial_images needs stream = true.")),
    }
}

/// `auto` or `WxH`.
fn size(fields: &Fields<'_>) -> Result<Size, Fault> {
    let Some(value) = fields.get("size").filter(|value| value.as_str() != Some("auto")) else {
        return Ok(Size::Default);
    };
    let side = |text: &str| text.parse().ok().filter(|px| (8..=MAX_SIDE_PX).contains(px));
    let sides = value.as_str().and_then(|text| text.split_once('x'));
    let sides = sides.and_then(|(width, height)| Some((side(width)?, side(height)?)));
    let allowed = format!("'auto' or WIDTHxHEIGHT with sides from 8 to {MAX_SIDE_PX}");
    sides.map(Size::Exact).ok_or_else(|| Fault::must_be("size", allowed, value))
}

/// What is transparent in a mask is to be repainted.
fn mask_of(mask: &DynamicImage, first: Option<&DynamicImage>) -> Result<GrayImage, Fault> {
    let size = |image: &DynamicImage| (image.width(), image.height());
    let (mask_size, image_size) = (size(mask), first.map(size).unwrap_or_default());
    if mask_size != image_size {
        let ((w, h), (width, height)) = (mask_size, image_size);
        let message = format!("mask is {w}x{h} pixels, and must be {width}x{height} as image is.");
        return Err(Fault::invalid("mask", message));
    }
    if !mask.color().has_alpha() {
        let message = "mask has no alpha channel: what is transparent in it is repainted.";
        return Err(Fault::invalid("mask", message));
    }
    Ok(transparency(mask))
}

/// White where a picture is transparent.
fn transparency(picture: &DynamicImage) -> GrayImage {
    let rgba = picture.to_rgba8();
    GrayImage::from_fn(rgba.width(), rgba.height(), |x, y| Luma([255 - rgba.get_pixel(x, y).0[3]]))
}

fn any_white(mask: &GrayImage) -> bool {
    mask.pixels().any(|pixel| pixel.0[0] >= 128)
}

/// What is repainted keeps its colours: the sampler may still make use of them.
fn opaque(picture: &DynamicImage, is_masked: bool) -> RgbImage {
    if is_masked { picture.to_rgb8() } else { on_white(picture) }
}
