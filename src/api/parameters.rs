//! What a request asks for, whatever API it came by, and how that becomes a job.

use image::RgbImage;

use super::fault::Fault;
use super::fields::or_random;
use super::{App, models, sizes};
use crate::engine::{
    DeepCache, GenerationRequest, Interpolation, LoraChoice, MaskedContent, Mode, ModelInfo, Preset,
    StepCache, Variation, Work,
};
use crate::queue::{Caller, Cost, Place, Ticket};
use crate::settings::MAX_GUIDANCE_SCALE;

/// The fields of a request, checked. Where they are silent the server's settings hold, then the model's.
#[derive(Clone)]
pub(super) struct Parameters {
    pub(super) prompt: String,
    pub(super) negative_prompt: Option<String>,
    pub(super) size: Size,
    /// Pictures for each of `modes`.
    pub(super) num_images: usize,
    pub(super) seed: Option<u64>,
    /// Noise of another seed mixed in: then that seed is what rises from picture to picture.
    pub(super) variation: Option<Variation>,
    pub(super) steps: Steps,
    pub(super) guidance: Guidance,
    pub(super) scheduler: Option<String>,
    pub(super) clip_skip: usize,
    pub(super) loras: Vec<LoraChoice>,
    pub(super) model: Option<String>,
    /// What pictures start from.
    pub(super) modes: Vec<Mode>,
    /// The strength in `modes` is the API's default, not the caller's word.
    pub(super) default_strength: bool,
    pub(super) true_cfg_scale: Option<f64>,
    pub(super) max_sequence_length: Option<usize>,
    pub(super) latent_resize: Option<Interpolation>,
    pub(super) masked_content: MaskedContent,
    /// Steps reuse what earlier ones computed.
    pub(super) step_cache: Option<StepCache>,
    /// Pictures to caption for the prompt.
    pub(super) based_on: Vec<RgbImage>,
    /// Pictures made before for the same request may be sent.
    pub(super) use_cache: bool,
}

/// Strength where nothing is said, for models that are shown the picture beside what they make.
const EDITING_STRENGTH: f64 = 1.0;

/// The size of the pictures, `(width, height)` in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Size {
    /// The initial picture's, else the model's.
    Default,
    /// This one.
    Exact((u32, u32)),
    /// One of the table of sizes: a small model has a table of its own.
    Table((u32, u32)),
}

/// The names of the fields of a [`StepCache`]: its threshold for FLUX, its interval and its branch for UNets.
pub(super) type CacheNames = [&'static str; 3];
/// In snake_case.
pub(super) const CACHE_NAMES: CacheNames = ["first_block_cache", "cache_interval", "cache_branch_id"];

/// The step cache that these fields ask for, once none contradicts another.
pub(super) fn step_cache(
    threshold: Option<f64>,
    interval: Option<u64>,
    branch_id: Option<u64>,
    [for_flux, for_unets, branch]: CacheNames,
) -> Result<Option<StepCache>, Fault> {
    match (threshold, interval, branch_id) {
        (Some(_), Some(_), _) => {
            let message =
                format!("{for_unets} cannot be given beside {for_flux}: one is for UNets, one for FLUX.");
            Err(Fault::invalid(for_unets, message))
        }
        (_, None, Some(_)) => {
            Err(Fault::invalid(branch, format!("{branch} needs {for_unets}, and there is none.")))
        }
        (Some(threshold), None, None) => Ok(Some(StepCache::FirstBlock { threshold })),
        (None, Some(interval), branch_id) => {
            let branch_id = branch_id.unwrap_or(0) as usize;
            Ok(Some(StepCache::Deep(DeepCache { interval: interval as usize, branch_id })))
        }
        (None, None, None) => Ok(None),
    }
}

/// Denoising steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Steps {
    /// So many times the default.
    Times(f64),
    /// This number.
    Exact(usize),
}

/// Classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Guidance {
    /// The default.
    Default,
    /// This scale.
    Exact(f64),
    /// 0 is none, 1 the default, 2 as far beyond. A model that is not meant to have guidance keeps to that.
    Tempered(f64),
}

impl Guidance {
    pub(super) fn or_default(scale: Option<f64>) -> Self {
        scale.map_or(Self::Default, Self::Exact)
    }
}

impl Steps {
    pub(super) fn or_default(steps: Option<usize>) -> Self {
        steps.map_or(Self::Times(1.0), Self::Exact)
    }
}

impl Parameters {
    /// One picture from a text, everything else left open.
    pub(super) fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: None,
            size: Size::Default,
            num_images: 1,
            seed: None,
            variation: None,
            steps: Steps::Times(1.0),
            guidance: Guidance::Default,
            scheduler: None,
            clip_skip: 0,
            loras: Vec::new(),
            model: None,
            modes: vec![Mode::TextToImage],
            default_strength: false,
            true_cfg_scale: None,
            max_sequence_length: None,
            latent_resize: None,
            masked_content: MaskedContent::Picture,
            step_cache: None,
            based_on: Vec::new(),
            use_cache: true,
        }
    }

    /// Puts it into the queue: admission, the model once it is loaded, the job.
    pub(super) async fn submit(self, app: &App, caller: &Caller) -> Result<Submitted, Fault> {
        let place = app.queue.admit(caller, self.cost(app))?;
        self.submit_to(app, place).await
    }

    /// Puts it into a place that it was admitted to.
    pub(super) async fn submit_to(self, app: &App, place: Place) -> Result<Submitted, Fault> {
        let (model, work) = self.choose(app).await?;
        let ticket = app.queue.submit(place, work).await?;
        Ok(Submitted { model, ticket })
    }

    /// What it comes to on the model that it gets, once one is loaded.
    pub(super) async fn choose(self, app: &App) -> Result<(models::Chosen, Work), Fault> {
        let model = models::choose(app, self.model.as_deref()).await?;
        let work = self.work(app, &model);
        Ok((model, work))
    }

    /// What it is admitted at.
    pub(super) fn cost(&self, app: &App) -> Cost {
        let steps = match self.steps {
            Steps::Exact(steps) => Some(steps),
            Steps::Times(_) => default_steps(app, self.preset(app, None)),
        };
        let size = |mode: &Mode| match (self.size, mode) {
            (Size::Exact(size) | Size::Table(size), _) => Some(size),
            (Size::Default, Mode::TextToImage) => None,
            (Size::Default, Mode::ImageToImage { image, .. } | Mode::Inpaint { image, .. }) => {
                Some(image.dimensions())
            }
        };
        let costs = self.modes.iter().map(|mode| Cost::of(self.num_images, size(mode), steps));
        costs.fold(Cost::default(), |sum, cost| sum + cost)
    }

    /// One request a picture, with seeds in a row.
    fn work(self, app: &App, model: &models::Chosen) -> Work {
        let first = self.request(app, &model.info);
        let mut seeds = 0..;
        let mut requests = Vec::with_capacity(self.modes.len() * self.num_images);
        for mode in &self.modes {
            let size = match (self.size, mode) {
                (Size::Exact(size), _) => Some(size),
                (Size::Table(size), _) => Some(sizes::for_model(size, &model.info)),
                (Size::Default, Mode::TextToImage) => None,
                (Size::Default, Mode::ImageToImage { image, .. } | Mode::Inpaint { image, .. }) => {
                    Some(image.dimensions())
                }
            };
            let mut mode = mode.clone();
            if self.default_strength && model.info.edits_pictures {
                mode.set_strength(EDITING_STRENGTH);
            }
            requests.extend(seeds.by_ref().take(self.num_images).map(|i| GenerationRequest {
                seed: if first.variation.is_some() { first.seed } else { first.seed.wrapping_add(i) },
                variation: first.variation.map(|v| Variation { seed: v.seed.wrapping_add(i), ..v }),
                width: size.map(|(width, _)| width as usize),
                height: size.map(|(_, height)| height as usize),
                mode: mode.clone(),
                ..first.clone()
            }));
        }
        Work {
            requests,
            based_on: self.based_on,
            loras: self.loras,
            model: model.name.clone(),
            seed_given: self.seed.is_some() && self.use_cache,
        }
    }

    fn request(&self, app: &App, model: &ModelInfo) -> GenerationRequest {
        let preset = self.preset(app, Some(model));
        let mut request = GenerationRequest::new(self.prompt.as_str(), or_random(self.seed));
        request.negative_prompt = self.negative_prompt.clone();
        request.num_inference_steps = match self.steps {
            Steps::Exact(steps) => Some(steps),
            Steps::Times(1.0) => default_steps(app, preset),
            Steps::Times(factor) => {
                let default = default_steps(app, preset).unwrap_or(model.num_inference_steps);
                Some(((default as f64 * factor).round() as usize).max(1))
            }
        };
        let default = default_guidance_scale(app, preset);
        request.guidance_scale = match self.guidance {
            Guidance::Exact(scale) => Some(scale),
            Guidance::Tempered(t) if !preset.is_some_and(|p| p.fixes_guidance) => {
                temper(default, model.guidance_scale, t)
            }
            Guidance::Default | Guidance::Tempered(_) => default,
        };
        request.true_cfg_scale = self.true_cfg_scale;
        request.max_sequence_length = self.max_sequence_length;
        request.scheduler = self.scheduler.clone().or_else(|| default_scheduler(app, preset));
        request.clip_skip = self.clip_skip;
        request.variation = self.variation;
        request.latent_resize = self.latent_resize;
        request.masked_content = self.masked_content;
        request.step_cache = self.step_cache;
        request
    }

    /// The last LoRA's that distils, or else the model's; before that is known, the default model's.
    fn preset(&self, app: &App, model: Option<&ModelInfo>) -> Option<Preset> {
        let of_model = || match (model, &self.model) {
            (Some(model), Some(_)) => model.preset,
            // What stands in for another model has its own.
            (Some(model), None) if model.fallback_for.is_some() => model.preset,
            (Some(model), None) => app.preset.or(model.preset),
            (None, _) => app.preset,
        };
        self.loras.iter().rev().find_map(|lora| lora.preset).or_else(of_model)
    }
}

/// A job in the queue.
pub(super) struct Submitted {
    pub(super) model: models::Chosen,
    pub(super) ticket: Ticket,
}

/// Steps where a request names none and the server's settings do, as many of them as a preset can use.
pub(super) fn default_steps(app: &App, preset: Option<Preset>) -> Option<usize> {
    app.defaults.steps.map(|steps| preset.map_or(steps, |preset| steps.min(preset.max_inference_steps)))
}

/// Guidance where a request names none and the server's settings do. Some presets bring their own.
pub(super) fn default_guidance_scale(app: &App, preset: Option<Preset>) -> Option<f64> {
    app.defaults.guidance_scale.filter(|_| !preset.is_some_and(|preset| preset.fixes_guidance))
}

/// The scheduler where a request names none and the server's settings do. What is distilled, and FLUX, works with its own alone.
pub(super) fn default_scheduler(app: &App, preset: Option<Preset>) -> Option<String> {
    app.defaults.scheduler.clone().filter(|_| !preset.is_some_and(|preset| preset.brings_its_sampler()))
}

fn temper(setting: Option<f64>, model: f64, temperature: f64) -> Option<f64> {
    let default = setting.unwrap_or(model);
    if default > 1.0 {
        Some((1.0 + temperature.clamp(0.0, 2.0) * (default - 1.0)).min(MAX_GUIDANCE_SCALE))
    } else {
        setting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_moves_guidance_between_none_and_twice() {
        for (t, expected) in [(0.0, 1.0), (0.5, 4.25), (1.0, 7.5), (2.0, 14.0), (9.0, 14.0), (-3.0, 1.0)] {
            assert_eq!(temper(Some(7.5), 5.0, t), Some(expected), "{t}");
            assert_eq!(temper(None, 7.5, t), Some(expected), "{t}");
        }
        for fixed in [1.0, 0.0] {
            assert_eq!(temper(None, fixed, 0.2), None);
        }
    }
}
