//! The body of `POST /jobs`, and what is made of it.

use aquatint_models::sampler::SamplerSettings;
use image::{DynamicImage, GrayImage, Luma};

use crate::api::App;
use crate::api::fault::Fault;
use crate::api::parameters::{CACHE_NAMES, Guidance, Parameters, Size, Steps, step_cache};
use crate::api::pictures::{self, Source};
use crate::api::schema::{Rule, body, list, number, one_of, optional, picture, text, whole, words};
use crate::api::sizes;
use crate::engine::{LoraChoice, Mode};
use crate::picture::{MAX_SIDE_PX, on_white};
use crate::settings::{MAX_CACHE_BRANCH_ID, MAX_CACHE_INTERVAL, MAX_GUIDANCE_SCALE, MAX_IMAGES, MAX_STEPS};

const MAX_PROMPT_CHARS: usize = 20_000;
const MAX_NAME_CHARS: usize = 200;
const MAX_LORAS: usize = 8;
const DEFAULT_STRENGTH: f64 = 0.6;
const DEFAULT_RATIO: &str = "1:1";

body! {
    /// What to make. With `image` it starts from that picture, with `mask` it repaints a part of it.
    pub(super) struct JobRequest {
        /// What the picture should show; `(word:1.2)` weights a part.
        prompt: String = words(MAX_PROMPT_CHARS),
        /// What it should not show.
        negative_prompt: Option<String> = optional(text(MAX_PROMPT_CHARS)),
        /// The shape, made at the size that `/health` lists for it. Without it and without a size: 1:1, or the size of
        /// `image`.
        aspect_ratio: Option<&'static str> = optional(one_of(sizes::ratios().collect())),
        /// Which of the two sizes of a shape; standard where it is not said.
        resolution: Option<&'static str> = optional(one_of(vec!["standard", "high"])),
        /// Width in pixels, a multiple of 8; together with `height`, and instead of `aspect_ratio`.
        width: Option<u64> = optional(side()),
        /// Height in pixels, a multiple of 8.
        height: Option<u64> = optional(side()),
        /// How many pictures, with seeds in a row; 1 where it is not said.
        num_images: Option<u64> = optional(whole(1, MAX_IMAGES)),
        /// Denoising steps; the model's where it is not said.
        steps: Option<u64> = optional(whole(1, MAX_STEPS)),
        /// How closely the prompt is followed; 1 turns guidance off. The model's where it is not said.
        guidance_scale: Option<f64> = optional(number(0.0, MAX_GUIDANCE_SCALE)),
        /// Guidance of FLUX beside its own, which takes a negative prompt; above 1, each step takes twice as long.
        true_cfg_scale: Option<f64> = optional(number(0.0, MAX_GUIDANCE_SCALE)),
        /// Tokens of the prompt that FLUX reads; 512 where it is not said, with schnell 256.
        max_sequence_length: Option<u64> = optional(whole(1, 512)),
        /// Changes the picture. FLUX leaves out all blocks but the first in steps where that one changes by less than this
        /// part, as diffusers' FirstBlockCache does with its threshold: 0.05 changes little. Off where it is not said.
        first_block_cache: Option<f64> = optional(number(0.0, 1.0)),
        /// Changes the picture. UNets compute all but the finest layers once every so many steps, as DeepCache does: 2 or
        /// 3 change little with 20 steps and more. Off where it is not said.
        cache_interval: Option<u64> = optional(whole(1, MAX_CACHE_INTERVAL)),
        /// DeepCache's branch: 0 is fastest and holds where it is not said; higher ones, up to three a block of the UNet,
        /// change less.
        cache_branch_id: Option<u64> = optional(whole(0, MAX_CACHE_BRANCH_ID)),
        /// Where the noise starts; drawn where it is not said.
        seed: Option<u64> = optional(whole(0, u64::MAX)),
        /// Scheduler by its diffusers or web UI name, for example "DPM++ 2M Karras".
        scheduler: Option<String> = optional(text(MAX_NAME_CHARS)),
        /// Text encoder layers to leave out at the end.
        clip_skip: Option<u64> = optional(whole(0, 31)),
        /// The model by its name; the server's first where it is not said.
        model: Option<String> = optional(text(MAX_NAME_CHARS)),
        /// LoRAs to merge, by the names that `/health` lists.
        loras: Option<Vec<LoraRequest>> = optional(list::<LoraRequest>(MAX_LORAS)),
        /// A picture to start from.
        image: Option<String> = optional(picture()),
        /// Which part of `image` to repaint: white is repainted, black and transparent is kept.
        mask: Option<String> = optional(picture()),
        /// How much of `image` to change; 0.6 where it is not said, and 1 with Kontext, which sees `image` beside.
        strength: Option<f64> = optional(number(0.0, 1.0)),
    }
}

body! {
    /// A LoRA and how much of it.
    pub(super) struct LoraRequest {
        /// Its name.
        name: String = words(MAX_NAME_CHARS),
        /// What its difference is multiplied by; 1 where it is not said.
        scale: Option<f64> = optional(number(-4.0, 4.0)),
    }
}

impl JobRequest {
    /// What is asked for, once no two fields contradict each other and the pictures are decoded.
    pub(super) async fn parameters(self, app: &App) -> Result<Parameters, Fault> {
        self.check()?;
        let size = self.size();
        let loras = self.loras(app)?;
        let (threshold, interval) = (self.first_block_cache, self.cache_interval);
        let step_cache = step_cache(threshold, interval, self.cache_branch_id, CACHE_NAMES)?;
        Ok(Parameters {
            negative_prompt: self.negative_prompt,
            size,
            num_images: self.num_images.unwrap_or(1) as usize,
            seed: self.seed,
            steps: Steps::or_default(self.steps.map(|n| n as usize)),
            guidance: Guidance::or_default(self.guidance_scale),
            scheduler: self.scheduler,
            clip_skip: self.clip_skip.unwrap_or(0) as usize,
            loras,
            model: self.model,
            default_strength: self.strength.is_none(),
            true_cfg_scale: self.true_cfg_scale,
            max_sequence_length: self.max_sequence_length.map(|n| n as usize),
            step_cache,
            modes: vec![mode(self.image, self.mask, self.strength.unwrap_or(DEFAULT_STRENGTH)).await?],
            ..Parameters::new(self.prompt)
        })
    }

    /// What no single field can say.
    fn check(&self) -> Result<(), Fault> {
        let table = [
            (self.width.is_some() && self.height.is_none(), "width", "width is given: height is required."),
            (self.height.is_some() && self.width.is_none(), "height", "height is given: width is required."),
            (
                self.width.is_some() && self.aspect_ratio.is_some(),
                "aspect_ratio",
                "aspect_ratio cannot be given beside width and height.",
            ),
            (
                self.resolution.is_some() && (self.width.is_some() || self.keeps_size()),
                "resolution",
                "resolution has no effect here: it chooses between the sizes of an aspect_ratio.",
            ),
            (self.mask.is_some() && self.image.is_none(), "mask", "mask needs an image to repaint."),
            (
                self.strength.is_some() && self.image.is_none(),
                "strength",
                "strength needs an image to start from.",
            ),
        ];
        if let Some((_, field, text)) = table.into_iter().find(|(wrong, ..)| *wrong) {
            return Err(Fault::invalid(field, text));
        }
        let unknown = |error| Fault::invalid("scheduler", format!("scheduler: {error}"));
        self.scheduler.as_deref().map(SamplerSettings::web_ui_names).transpose().map_err(unknown)?;
        Ok(())
    }

    /// The pictures are as large as `image`.
    fn keeps_size(&self) -> bool {
        self.image.is_some() && self.aspect_ratio.is_none()
    }

    fn size(&self) -> Size {
        if let (Some(width), Some(height)) = (self.width, self.height) {
            return Size::Exact((width as u32, height as u32));
        }
        if self.keeps_size() {
            return Size::Default;
        }
        let high = self.resolution == Some("high");
        sizes::size(self.aspect_ratio.unwrap_or(DEFAULT_RATIO), high).map_or(Size::Default, Size::Table)
    }

    fn loras(&self, app: &App) -> Result<Vec<LoraChoice>, Fault> {
        let choose = |lora: &LoraRequest| {
            let path = app.loras.get(&lora.name).ok_or_else(|| {
                let names = app.loras.names();
                let known = if names.is_empty() { "none".into() } else { names.join(", ") };
                Fault::invalid("loras", format!("Unknown lora {:?}. Known are: {known}.", lora.name))
            })?;
            Ok(LoraChoice::new(path, lora.scale.unwrap_or(1.0)))
        };
        self.loras.iter().flatten().map(choose).collect()
    }
}

/// A side of a picture in pixels.
fn side() -> Rule<u64> {
    whole(8, MAX_SIDE_PX.into()).multiple_of(8)
}

async fn mode(image: Option<String>, mask: Option<String>, strength: f64) -> Result<Mode, Fault> {
    let Some(image) = image else { return Ok(Mode::TextToImage) };
    let sources = [Some(("image", image)), mask.map(|mask| ("mask", mask))].into_iter().flatten();
    let sources = sources.map(|(name, text)| (name.to_owned(), Source::Base64(text))).collect();
    let mut decoded = pictures::decode(sources).await?.into_iter();
    let image = decoded.next().map(|image| on_white(&image)).unwrap_or_default();
    Ok(match decoded.next() {
        None => Mode::ImageToImage { image, strength },
        Some(mask) => Mode::Inpaint { image, mask: on_black(&mask), strength },
    })
}

/// A mask in grey; where it is transparent it keeps.
fn on_black(mask: &DynamicImage) -> GrayImage {
    if !mask.color().has_alpha() {
        return mask.to_luma8();
    }
    let grey = mask.to_luma_alpha8();
    GrayImage::from_fn(grey.width(), grey.height(), |x, y| {
        let [value, alpha] = grey.get_pixel(x, y).0.map(u32::from);
        Luma([((value * alpha + 127) / 255) as u8])
    })
}
