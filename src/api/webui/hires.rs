//! Hires fix: pictures are made small, enlarged, and worked over at their new size.

use image::RgbImage;
use image::imageops::{self, FilterType};

use super::form::{Form, combine};
use super::prompt;
use crate::api::fault::Fault;
use crate::api::fields::Fields;
use crate::api::parameters::{Parameters, Size, Steps};
use crate::api::{App, fit};
use crate::engine::recipe::Recipe;
use crate::engine::{Interpolation, LoraChoice, Mode, Picture};
use crate::picture::MAX_SIDE_PX;
use crate::queue::Cost;
use crate::settings::MAX_STEPS;

const DEFAULT_STRENGTH: f64 = 0.75;
/// As many timesteps as models are trained on.
const MAX_SCHEDULE_STEPS: f64 = 1000.0;

/// `(width, height)` in pixels.
type Pixels = (u32, u32);

/// The second pass.
pub(super) struct Hires {
    strength: f64,
    /// Steps that are taken, whatever the strength; `None` is as many as in the first pass.
    steps: Option<usize>,
    target: Target,
    upscaler: &'static Upscaler,
    scheduler: Option<String>,
    model: Option<String>,
    /// Without its LoRA tags, and the LoRAs of those.
    prompt: Option<(String, Vec<LoraChoice>)>,
    negative_prompt: Option<String>,
}

/// The size of the second pass.
#[derive(Clone, Copy)]
enum Target {
    Scale(f64),
    /// 0 leaves a side to the proportions.
    Sides(u32, u32),
}

/// A way to enlarge pictures.
pub(super) struct Upscaler {
    pub(super) name: &'static str,
    how: How,
}

enum How {
    Pixels(FilterType),
    Latents(Interpolation),
}

/// The web UI's "None" enlarges too.
pub(super) const UPSCALERS: [Upscaler; 8] = [
    Upscaler { name: "None", how: How::Pixels(FilterType::Lanczos3) },
    Upscaler { name: "Lanczos", how: How::Pixels(FilterType::Lanczos3) },
    Upscaler { name: "Nearest", how: How::Pixels(FilterType::Nearest) },
    Upscaler { name: "Latent", how: How::Latents(Interpolation::Bilinear) },
    // Antialiasing changes nothing where latents are enlarged bilinearly.
    Upscaler { name: "Latent (antialiased)", how: How::Latents(Interpolation::Bilinear) },
    Upscaler { name: "Latent (bicubic)", how: How::Latents(Interpolation::Bicubic) },
    Upscaler { name: "Latent (nearest)", how: How::Latents(Interpolation::Nearest) },
    Upscaler { name: "Latent (nearest-exact)", how: How::Latents(Interpolation::NearestExact) },
];

impl Upscaler {
    pub(super) fn is_latent(&self) -> bool {
        matches!(self.how, How::Latents(_))
    }
}

const DEFAULT_UPSCALER: &Upscaler = &UPSCALERS[3];

impl Hires {
    /// `None` where `enable_hr` is not set; may change the size of the first pass.
    pub(super) fn new(app: &App, fields: &Fields<'_>, form: &mut Form) -> Result<Option<Self>, Fault> {
        let strength = fields.number("denoising_strength", 0.0..=1.0)?.unwrap_or(DEFAULT_STRENGTH);
        if !fields.flag("enable_hr")?.unwrap_or(false) {
            return Ok(None);
        }
        if strength == 0.0 {
            let message = "denoising_strength must be above 0 with enable_hr, not 0.";
            return Err(Fault::invalid("denoising_strength", message));
        }
        let target = target(fields, form)?;
        if let Size::Exact(size) = form.parameters.size {
            target.of(size)?;
        }
        let text = |name: &str, same: &str| {
            Ok::<_, Fault>(fields.text(name)?.filter(|text| !text.is_empty() && *text != same))
        };
        let negative_prompt = text("hr_negative_prompt", "")?.map(str::to_owned);
        let prompt = match text("hr_prompt", "")? {
            Some(prompt) => Some(prompt::loras(app, prompt, "hr_prompt")?),
            None => None,
        };
        let schedule = text("hr_scheduler", "Use same scheduler")?;
        let scheduler = match (text("hr_sampler_name", "Use same sampler")?, schedule) {
            (None, None) => None,
            (Some(sampler), schedule) => Some(combine("hr_sampler_name", sampler, "hr_scheduler", schedule)?),
            (None, Some(schedule)) => match &form.parameters.scheduler {
                Some(sampler) => Some(combine("sampler_name", sampler, "hr_scheduler", Some(schedule))?),
                None => {
                    let message = "sampler_name or hr_sampler_name is required where hr_scheduler is given.";
                    return Err(Fault::invalid("sampler_name", message));
                }
            },
        };
        let steps = fields.whole("hr_second_pass_steps", 0..=MAX_STEPS)?.filter(|steps| *steps > 0);
        Ok(Some(Self {
            strength,
            steps: steps.map(|steps| steps as usize),
            target,
            upscaler: upscaler(fields)?,
            scheduler,
            model: text("hr_checkpoint_name", "Use same checkpoint")?.map(str::to_owned),
            prompt,
            negative_prompt,
        }))
    }

    /// What the second pass is admitted at.
    pub(super) fn cost(&self, first: &Parameters) -> Cost {
        let size = match first.size {
            Size::Exact(size) => self.target.of(size).ok(),
            _ => None,
        };
        let steps = match first.steps {
            Steps::Exact(steps) => Some(steps),
            Steps::Times(_) => None,
        };
        Cost::of(first.num_images, size, self.steps.or(steps))
    }

    /// The second pass over the pictures of the first.
    pub(super) fn second_pass(&self, first: &Parameters, made: &[Picture]) -> Result<Parameters, Fault> {
        let mut second = first.clone();
        let Some(Picture { image, recipe, .. }) = made.first() else { return Ok(second) };
        let size = self.target.of(image.dimensions())?;
        let steps = self.steps.unwrap_or(recipe.num_inference_steps) as f64;
        // Image-to-image takes `strength` times the steps asked for, and all of these are to be taken.
        second.steps = Steps::Exact((steps / self.strength).ceil().min(MAX_SCHEDULE_STEPS) as usize);
        second.size = Size::Exact(size);
        second.num_images = 1;
        if let How::Latents(interpolation) = self.upscaler.how {
            second.latent_resize = Some(interpolation);
        }
        let (image, strength) = (|picture: &Picture| self.enlarge(&picture.image, size), self.strength);
        second.modes = made.iter().map(|p| Mode::ImageToImage { image: image(p), strength }).collect();
        if let Some((prompt, loras)) = &self.prompt {
            second.prompt.clone_from(prompt);
            second.loras.clone_from(loras);
        }
        second.negative_prompt = self.negative_prompt.clone().or(second.negative_prompt);
        second.scheduler = self.scheduler.clone().or(second.scheduler);
        second.model = self.model.clone().or(second.model);
        Ok(second)
    }

    /// Latents are enlarged later; what the new proportions leave out is cut off here in both cases.
    fn enlarge(&self, image: &RgbImage, size: Pixels) -> RgbImage {
        let cropped = fit::crop(image, size);
        match self.upscaler.how {
            How::Pixels(filter) => imageops::resize(&cropped, size.0, size.1, filter),
            How::Latents(_) => cropped,
        }
    }

    /// The recipe of a finished picture: the first pass, and what the second did.
    pub(super) fn recipe(&self, first: &Recipe, second: &Recipe) -> Recipe {
        let mut recipe = first.clone();
        let mut tell = |name: &'static str, value: String| recipe.extra.push((name.into(), value));
        tell("Denoising strength", self.strength.to_string());
        if second.scheduler != first.scheduler {
            tell("Hires sampler", second.scheduler.clone());
        }
        if second.prompt != first.prompt {
            tell("Hires prompt", second.prompt.clone());
        }
        match self.target {
            Target::Scale(scale) => tell("Hires upscale", scale.to_string()),
            Target::Sides(..) => tell("Hires resize", format!("{}x{}", second.width, second.height)),
        }
        if let Some(steps) = self.steps {
            tell("Hires steps", steps.to_string());
        }
        tell("Hires upscaler", self.upscaler.name.to_owned());
        recipe
    }
}

impl Target {
    /// Source: `calculate_target_resolution` of the web UI.
    fn of(self, (width, height): Pixels) -> Result<Pixels, Fault> {
        let scaled = |side: u32, by: f64| (f64::from(side) * by) as u32;
        let (name, size) = match self {
            Self::Scale(scale) => ("hr_scale", (scaled(width, scale), scaled(height, scale))),
            Self::Sides(x, 0) => ("hr_resize_x", (x, x * height / width.max(1))),
            Self::Sides(0, y) => ("hr_resize_y", (y * width / height.max(1), y)),
            Self::Sides(x, y) => ("hr_resize_x", (x, y)),
        };
        if size.0 < width.min(8) || size.1 < height.min(8) || size.0.max(size.1) > MAX_SIDE_PX {
            let (w, h) = size;
            let message =
                format!("{name} asks for {w}x{h} pixels: sides from 8 to {MAX_SIDE_PX} are allowed.");
            return Err(Fault::invalid(name, message));
        }
        Ok(size)
    }
}

fn target(fields: &Fields<'_>, form: &mut Form) -> Result<Target, Fault> {
    let sides = u64::from(MAX_SIDE_PX);
    let side = |name: &str| Ok::<_, Fault>(fields.whole(name, 0..=sides)?.unwrap_or(0) as u32);
    // Their old names: then width and height are the target.
    let first = (side("firstphase_width")?, side("firstphase_height")?);
    if let (1.., 1.., Size::Exact((width, height))) = (first.0, first.1, form.parameters.size) {
        form.parameters.size = Size::Exact(first);
        return Ok(Target::Sides(width, height));
    }
    match (side("hr_resize_x")?, side("hr_resize_y")?) {
        (0, 0) => Ok(Target::Scale(fields.number("hr_scale", 1.0..=8.0)?.unwrap_or(2.0))),
        (x, y) => Ok(Target::Sides(x, y)),
    }
}

fn upscaler(fields: &Fields<'_>) -> Result<&'static Upscaler, Fault> {
    let Some(value) = fields.get("hr_upscaler") else { return Ok(DEFAULT_UPSCALER) };
    UPSCALERS.iter().find(|upscaler| value.as_str() == Some(upscaler.name)).ok_or_else(|| {
        let names: Vec<_> = UPSCALERS.iter().map(|upscaler| format!("'{}'", upscaler.name)).collect();
        Fault::must_be("hr_upscaler", format!("one of {}", names.join(", ")), value)
    })
}
