//! The fields that txt2img and img2img share.

use aquatint_models::sampler::SamplerSettings;
use serde_json::{Map, Value};

use super::options::Overrides;
use super::prompt;
use crate::api::App;
use crate::api::fault::Fault;
use crate::api::fields::{Fields, or_random};
use crate::api::parameters::{Guidance, Parameters, Size, Steps};
use crate::engine::Variation;

/// Pictures a request may ask for.
const MAX_PICTURES: u64 = 16;

/// The shared fields, checked.
pub(super) struct Form {
    pub(super) parameters: Parameters,
    /// The prompt with its LoRA tags, as replies repeat it.
    pub(super) prompt: String,
    pub(super) batch_size: usize,
    pub(super) n_iter: usize,
    pub(super) seed: u64,
    pub(super) subseed: u64,
    pub(super) subseed_strength: f64,
    pub(super) send_images: bool,
    pub(super) overrides: Overrides,
}

impl Form {
    pub(super) fn new(app: &App, body: &Map<String, Value>) -> Result<Self, Fault> {
        let fields = Fields::new(body);
        let prompt = fields.text("prompt")?.unwrap_or_default().to_owned();
        let (bare_prompt, loras) = prompt::loras(app, &prompt, "prompt")?;
        let batch_size = fields.whole("batch_size", 1..=MAX_PICTURES)?.unwrap_or(1) as usize;
        let n_iter = fields.whole("n_iter", 1..=MAX_PICTURES)?.unwrap_or(1) as usize;
        if batch_size * n_iter > MAX_PICTURES as usize {
            let message = format!(
                "batch_size {batch_size} times n_iter {n_iter} is more than {MAX_PICTURES} pictures in all."
            );
            return Err(Fault::invalid("n_iter", message));
        }
        let given = fields.seed("seed")?;
        // Both passes of hires fix need the same.
        let seed = or_random(given);
        let subseed = or_random(fields.seed("subseed")?);
        let subseed_strength = fields.number("subseed_strength", 0.0..=1.0)?.unwrap_or(0.0);
        let overrides =
            app.webui.options.overridden(&fields.object("override_settings", "override_settings.")?)?;
        let parameters = Parameters {
            negative_prompt: fields.text("negative_prompt")?.map(str::to_owned),
            size: size(&fields)?,
            num_images: batch_size * n_iter,
            seed: Some(seed),
            variation: (subseed_strength > 0.0)
                .then_some(Variation { seed: subseed, strength: subseed_strength }),
            steps: Steps::or_default(fields.steps("steps")?),
            guidance: Guidance::or_default(fields.guidance_scale("cfg_scale")?),
            scheduler: scheduler(&fields)?,
            clip_skip: overrides.clip_skip,
            loras,
            model: overrides.model.clone(),
            use_cache: given.is_some(),
            ..Parameters::new(bare_prompt)
        };
        let send_images = fields.flag("send_images")?.unwrap_or(true);
        Ok(Self {
            parameters,
            prompt,
            batch_size,
            n_iter,
            seed,
            subseed,
            subseed_strength,
            send_images,
            overrides,
        })
    }
}

fn size(fields: &Fields<'_>) -> Result<Size, Fault> {
    Ok(match (fields.side("width")?, fields.side("height")?) {
        (Some(width), Some(height)) => Size::Exact((width, height)),
        (None, None) => Size::Default,
        // One side alone: a square.
        (Some(side), None) | (None, Some(side)) => Size::Exact((side, side)),
    })
}

/// `sampler_name`, else its old name, together with `scheduler`.
fn scheduler(fields: &Fields<'_>) -> Result<Option<String>, Fault> {
    let named = |name: &'static str| {
        let text = fields.text(name)?.filter(|text| !text.is_empty());
        Ok::<_, Fault>(text.map(|text| (name, text)))
    };
    let sampler = match named("sampler_name")? {
        Some(found) => Some(found),
        None => named("sampler_index")?,
    };
    let schedule = named("scheduler")?.map(|(_, text)| text);
    match sampler {
        Some((field, sampler)) => combine(field, sampler, "scheduler", schedule).map(Some),
        None => match schedule.filter(|text| !text.eq_ignore_ascii_case("automatic")) {
            // Without a sampler the model's own is used, which has its own schedule.
            Some(_) => {
                Err(Fault::invalid("sampler_name", "sampler_name is required where scheduler is given."))
            }
            None => Ok(None),
        },
    }
}

/// One name of a sampler and a schedule type: `DPM++ 2M` and `karras` are `DPM++ 2M Karras`.
pub(super) fn combine(
    sampler_field: &str,
    sampler: &str,
    schedule_field: &str,
    schedule: Option<&str>,
) -> Result<String, Fault> {
    let (name, own) = SamplerSettings::web_ui_names(sampler).map_err(|_| {
        let names: Vec<_> = SamplerSettings::names().map(|n| format!("'{n}'")).collect();
        Fault::must_be(sampler_field, format!("one of {}", names.join(", ")), &sampler.into())
    })?;
    let schedule = match schedule {
        Some(text) => schedule_type(text).ok_or_else(|| {
            let names: Vec<_> = SamplerSettings::schedule_types().map(|n| format!("'{n}'")).collect();
            Fault::must_be(schedule_field, format!("one of {}", names.join(", ")), &text.into())
        })?,
        None => "Automatic",
    };
    // "DPM++ 2M Karras" says both, and a schedule that is given beside it goes before.
    Ok(match (schedule, own) {
        ("Automatic", "Automatic") => name.to_owned(),
        ("Automatic", own) => format!("{name} {own}"),
        (schedule, _) => format!("{name} {schedule}"),
    })
}

/// A schedule type by its label or its name: `SGM Uniform` is `sgm_uniform`.
fn schedule_type(text: &str) -> Option<&'static str> {
    let bare = |text: &str| text.replace([' ', '_', '-'], "").to_ascii_lowercase();
    SamplerSettings::schedule_types().find(|known| bare(known) == bare(text))
}
