//! `POST /sdapi/v1/txt2img` and `/img2img`.

use axum::Json;
use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{DynamicImage, RgbImage};
use serde_json::{Map, Value, json};

use super::form::Form;
use super::hires::Hires;
use super::inpaint::{self, Finish};
use super::jobs::{Job, Waiting};
use super::{Error, info, object};
use crate::api::fault::{Fault, internal};
use crate::api::fields::Fields;
use crate::api::parameters::{Size, Submitted};
use crate::api::pictures::{Source, decode, encode_at};
use crate::api::{App, caller, fit};
use crate::engine::{Interpolation, MaskedContent, Mode, Picture, Progress};
use crate::picture::{self, on_white};
use crate::queue::Caller;

const DEFAULT_STRENGTH: f64 = 0.75;
const DEFAULT_MASK_BLUR: f64 = 4.0;
const MAX_MASK_BLUR: f64 = 64.0;
const MAX_INIT_IMAGES: usize = 8;

/// `POST /sdapi/v1/txt2img`
pub async fn txt2img(State(app): State<App>, request: Request) -> Result<Json<Value>, Error> {
    let caller = caller(request.extensions());
    let body = object(request).await?;
    let mut form = Form::new(&app, &body)?;
    let hires = Hires::new(&app, &Fields::new(&body), &mut form)?;
    let plan = Plan { name: "txt2img", form, hires, finishes: Vec::new() };
    Ok(plan.run(&app, caller, body).await?)
}

/// `POST /sdapi/v1/img2img`
pub async fn img2img(State(app): State<App>, request: Request) -> Result<Json<Value>, Error> {
    let caller = caller(request.extensions());
    let mut body = object(request).await?;
    let mut form = Form::new(&app, &body)?;
    let start = Start::new(&Fields::new(&body), &form)?;
    let finishes = start.put_into(&mut form).await?;
    // Replies repeat the request, but not its pictures.
    for name in ["init_images", "mask"] {
        body.entry(name).and_modify(|value| *value = Value::Null);
    }
    let plan = Plan { name: "img2img", form, hires: None, finishes };
    Ok(plan.run(&app, caller, body).await?)
}

/// What img2img starts from, checked but for the pictures.
struct Start {
    images: Vec<(String, Source)>,
    mask: Option<(String, Source)>,
    strength: f64,
    resize_mode: u64,
    content: u64,
    options: inpaint::Options,
}

impl Start {
    fn new(fields: &Fields<'_>, form: &Form) -> Result<Self, Fault> {
        let texts = fields.get("init_images").and_then(Value::as_array);
        let texts: Option<Vec<_>> = texts.map(|all| all.iter().filter_map(Value::as_str).collect());
        let texts = texts.filter(|texts| (1..=MAX_INIT_IMAGES).contains(&texts.len())).ok_or_else(|| {
            let message = format!("init_images must be a list of 1 to {MAX_INIT_IMAGES} pictures in base64.");
            Fault::invalid("init_images", message)
        })?;
        let resize_mode = fields.whole("resize_mode", 0..=3)?.unwrap_or(0);
        let mask = fields.text("mask")?.filter(|text| !text.is_empty());
        if resize_mode == 3 && mask.is_some() {
            let message = "resize_mode 3 resizes latents, which masks do not go with: use 0, 1 or 2.";
            return Err(Fault::invalid("resize_mode", message));
        }
        let padding = fields.whole("inpaint_full_res_padding", 0..=1024)?.unwrap_or(0) as u32;
        let only_masked = fields.flag("inpaint_full_res")?.unwrap_or(true).then_some(padding);
        let blur = fields.number("mask_blur", 0.0..=MAX_MASK_BLUR)?;
        let either = |name: &str| {
            // `mask_blur` stands for both, and goes before them.
            let own = fields.number(name, 0.0..=MAX_MASK_BLUR)?;
            Ok::<_, Fault>(blur.or(own).unwrap_or(DEFAULT_MASK_BLUR) as f32)
        };
        let content = fields.whole("inpainting_fill", 0..=3)?.unwrap_or(0);
        let (resize, resize_mask): (inpaint::Resize<_>, inpaint::Resize<_>) = match resize_mode {
            1 => (fit::cover, fit::cover),
            2 => (fit::contain, fit::contain),
            _ => (fit::stretch, fit::stretch),
        };
        let options = inpaint::Options {
            blur_x: either("mask_blur_x")?,
            blur_y: either("mask_blur_y")?,
            invert: fields.flag("inpainting_mask_invert")?.unwrap_or(false),
            only_masked,
            fill: content == 0,
            size: match form.parameters.size {
                Size::Exact(size) => Some(size),
                _ => None,
            },
            resize,
            resize_mask,
        };
        let named = |name: &str, text: &str| (name.to_owned(), Source::Base64(text.to_owned()));
        Ok(Self {
            images: texts.into_iter().map(|text| named("init_images", text)).collect(),
            mask: mask.map(|text| named("mask", text)),
            strength: fields.number("denoising_strength", 0.0..=1.0)?.unwrap_or(DEFAULT_STRENGTH),
            resize_mode,
            content,
            options,
        })
    }

    /// Decodes the pictures, and says how the model's answers become whole pictures.
    async fn put_into(self, form: &mut Form) -> Result<Vec<Option<Finish>>, Fault> {
        let Self { mut images, mask, strength, resize_mode, content, options } = self;
        let count = images.len();
        images.extend(mask);
        let mut decoded = decode(images).await?;
        let mask = if decoded.len() > count { decoded.pop() } else { None };
        if count > 1 {
            // Several pictures are a batch.
            form.batch_size = count;
            form.parameters.num_images = form.n_iter;
        }
        let start =
            move || decoded.iter().map(|image| begin(image, mask.as_ref(), strength, &options)).unzip();
        let (modes, finishes): (Vec<_>, Vec<_>) =
            tokio::task::spawn_blocking(start).await.map_err(|error| internal(&error))?;
        form.parameters.modes = modes;
        form.parameters.latent_resize = (resize_mode == 3).then_some(Interpolation::Bilinear);
        form.parameters.masked_content = match content {
            2 => MaskedContent::Noise,
            3 => MaskedContent::Zeros,
            _ => MaskedContent::Picture,
        };
        Ok(finishes)
    }
}

/// What the model gets of a picture, and how its answer becomes the whole.
fn begin(
    image: &DynamicImage,
    mask: Option<&DynamicImage>,
    strength: f64,
    options: &inpaint::Options,
) -> (Mode, Option<Finish>) {
    let image = on_white(image);
    match mask.and_then(|mask| inpaint::prepare(&image, mask, options)) {
        Some(inpaint::Prepared { image, mask, finish }) => {
            (Mode::Inpaint { image, mask, strength }, Some(finish))
        }
        None => {
            let image = match options.size {
                Some(size) => (options.resize)(&image, size),
                None => image,
            };
            (Mode::ImageToImage { image, strength }, None)
        }
    }
}

/// A request ready to be run.
struct Plan {
    name: &'static str,
    form: Form,
    hires: Option<Hires>,
    /// For each initial picture.
    finishes: Vec<Option<Finish>>,
}

impl Plan {
    async fn run(
        self,
        app: &App,
        caller: Caller,
        parameters: Map<String, Value>,
    ) -> Result<Json<Value>, Fault> {
        let first = &self.form.parameters;
        let second_cost = self.hires.as_ref().map(|hires| hires.cost(first)).unwrap_or_default();
        let place = app.queue.admit(&caller, first.cost(app) + second_cost)?;
        let (place, next_place) = place.shared();
        let parts = 1 + usize::from(self.hires.is_some());
        let waiting = app.webui.jobs.wait_for(Job::new(self.name, caller, self.form.n_iter, parts));

        let job = first.clone().submit_to(app, place).await?;
        let model = job.model.info.name.clone();
        let Some(mut made) = part(&waiting, 0, job).await? else {
            return self.interrupted(&waiting, &model, parameters).await;
        };
        if let Some(hires) = &self.hires {
            let second = hires.second_pass(first, &made)?.submit_to(app, next_place).await?;
            let Some(enlarged) = part(&waiting, 1, second).await? else {
                return self.interrupted(&waiting, &model, parameters).await;
            };
            let recipes = made.iter().zip(&enlarged).map(|(a, b)| hires.recipe(&a.recipe, &b.recipe));
            let recipes: Vec<_> = recipes.collect();
            made = enlarged.into_iter().zip(recipes).map(|(p, recipe)| Picture { recipe, ..p }).collect();
        } else {
            drop(next_place);
        }
        self.reply(model, made, parameters).await
    }

    async fn reply(
        self,
        model: String,
        mut made: Vec<Picture>,
        parameters: Map<String, Value>,
    ) -> Result<Json<Value>, Fault> {
        let Self { form, finishes, .. } = self;
        let each = form.parameters.num_images;
        if finishes.iter().any(Option::is_some) {
            let finish = move || {
                for (i, picture) in made.iter_mut().enumerate() {
                    if let Some(Some(finish)) = finishes.get(i / each) {
                        picture.image = finish.apply(&picture.image);
                    }
                }
                made
            };
            made = tokio::task::spawn_blocking(finish).await.map_err(|error| internal(&error))?;
        }
        let info = info::info(&form, &model, &made);
        let made = if form.send_images { made } else { Vec::new() };
        let files = encode_at(made, form.overrides.format, form.overrides.jpeg_quality).await?;
        let images: Vec<_> = files.iter().map(|file| BASE64.encode(file)).collect();
        Ok(Json(json!({"images": images, "parameters": parameters, "info": info})))
    }

    /// What there is: the last preview, if anybody looked.
    async fn interrupted(
        &self,
        waiting: &Waiting,
        model: &str,
        parameters: Map<String, Value>,
    ) -> Result<Json<Value>, Fault> {
        let preview = waiting.job.progress(false).and_then(|Progress { preview, .. }| preview);
        let images = match preview.filter(|_| self.form.send_images) {
            Some(preview) => {
                let (format, quality) = (self.form.overrides.format, self.form.overrides.jpeg_quality);
                let image: RgbImage = match self.form.parameters.size {
                    Size::Exact(size) => fit::stretch(&preview, size),
                    _ => (*preview).clone(),
                };
                let encode = move || picture::encode_plain(&image, format, quality);
                let file = tokio::task::spawn_blocking(encode).await.map_err(|error| internal(&error))?;
                vec![BASE64.encode(file.map_err(|error| internal(&error))?)]
            }
            None => Vec::new(),
        };
        let info = info::info(&self.form, model, &[]);
        Ok(Json(json!({"images": images, "parameters": parameters, "info": info})))
    }
}

/// Waits for one of a plan's jobs; `None` where it was interrupted.
async fn part(waiting: &Waiting, index: usize, job: Submitted) -> Result<Option<Vec<Picture>>, Fault> {
    waiting.job.begin(index, job.ticket.observer());
    tokio::select! {
        reply = job.ticket => Ok(Some(reply?)),
        () = waiting.job.interrupted.notified() => Ok(None),
    }
}
