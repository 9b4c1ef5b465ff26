//! A job's input, as the popular SDXL worker takes it, and its output.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::api::App;
use crate::api::fault::Fault;
use crate::api::fields::Fields;
use crate::api::parameters::{CACHE_NAMES, Guidance, Parameters, Size, Steps};
use crate::api::pictures::{Source, decode, encode};
use crate::engine::Mode;
use crate::picture::{Format, on_white};
use crate::queue::Caller;
use crate::settings::MAX_IMAGES;

const DEFAULT_STRENGTH: f64 = 0.3;
const NAMES: [&str; 18] = [
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "seed",
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "strength",
    "image_url",
    "num_images",
    "lora",
    "lora_scale",
    "model",
    "clip_skip",
    "first_block_cache",
    "cache_interval",
    "cache_branch_id",
];

/// What a job's input comes to.
pub(super) async fn output(app: &App, input: &Value) -> Result<Value, Fault> {
    let parameters = parameters(app, input).await?;
    let job = parameters.submit(app, &Caller::named("runpod")).await?;
    let made = job.ticket.await?;
    let seed = made.first().map(|picture| picture.recipe.seed);
    let files = encode(made, Format::Png).await?;
    let uri = |file: &Vec<u8>| format!("data:image/png;base64,{}", BASE64.encode(file));
    let images: Vec<_> = files.iter().map(uri).collect();
    Ok(json!({"images": images, "image_url": images.first(), "seed": seed}))
}

async fn parameters(app: &App, input: &Value) -> Result<Parameters, Fault> {
    let Value::Object(map) = input else {
        return Err(Fault::must_be("input", "an object", input));
    };
    let fields = Fields::new(map);
    if let Some(name) = fields.others(&NAMES).first() {
        let names: Vec<_> = NAMES.iter().map(|name| format!("'{name}'")).collect();
        let message =
            format!("Unexpected input. {name} is not a valid input option: there are {}.", names.join(", "));
        return Err(Fault::invalid(*name, message));
    }
    let mut parameters = Parameters {
        negative_prompt: fields.text("negative_prompt")?.map(str::to_owned),
        size: match (fields.side("width")?, fields.side("height")?) {
            (Some(width), Some(height)) => Size::Exact((width, height)),
            (None, None) => Size::Default,
            (Some(side), None) | (None, Some(side)) => Size::Exact((side, side)),
        },
        num_images: fields.whole("num_images", 1..=MAX_IMAGES)?.unwrap_or(1) as usize,
        seed: fields.seed("seed")?,
        steps: Steps::or_default(fields.steps("num_inference_steps")?),
        guidance: Guidance::or_default(fields.guidance_scale("guidance_scale")?),
        scheduler: fields.scheduler("scheduler")?,
        clip_skip: fields.whole("clip_skip", 0..=31)?.unwrap_or(0) as usize,
        loras: fields.loras(app, "lora", "lora_scale")?,
        step_cache: fields.step_cache(CACHE_NAMES)?,
        model: fields.text("model")?.map(str::to_owned),
        ..Parameters::new(fields.required_text("prompt")?)
    };
    let strength = fields.number("strength", 0.0..=1.0)?;
    match fields.text("image_url")?.filter(|text| !text.is_empty()) {
        Some(text) if text.trim_start().starts_with("data:") => {
            let source = ("image_url".to_owned(), Source::Base64(text.to_owned()));
            let images = decode(vec![source]).await?;
            parameters.default_strength = strength.is_none();
            let strength = strength.unwrap_or(DEFAULT_STRENGTH);
            let mode = |image| Mode::ImageToImage { image: on_white(image), strength };
            parameters.modes = images.iter().map(mode).collect();
        }
        Some(_) => {
            let message = "image_url must be a data URI: nothing that a client names is fetched.";
            return Err(Fault::invalid("image_url", message));
        }
        None if strength.is_some() => {
            return Err(Fault::invalid("strength", "strength needs an image_url, and there is none."));
        }
        None => {}
    }
    Ok(parameters)
}
