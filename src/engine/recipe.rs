//! Everything that determined a picture: what its file carries and what replies echo.

use std::borrow::Cow;

use aquatint_models::sampler::SamplerSettings;
use serde::{Deserialize, Serialize};

use super::pipeline::name_of;
use super::{DeepCache, Family, GenerationRequest, LoraChoice, Mode, ModelInfo, StepCache, Variation};

/// A picture's recipe, complete: the model's defaults are filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What the picture shows.
    pub prompt: String,
    /// What it should not show.
    pub negative_prompt: Option<String>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Denoising steps asked for.
    pub num_inference_steps: usize,
    /// Classifier-free guidance.
    pub guidance_scale: f64,
    /// Where the noise started.
    pub seed: u64,
    /// The scheduler's name.
    pub scheduler: String,
    /// Text encoder layers left out at the end.
    pub clip_skip: usize,
    /// `text-to-image`, `image-to-image` or `inpaint`.
    pub mode: Cow<'static, str>,
    /// The part of the schedule an initial picture went through.
    pub strength: Option<f64>,
    /// What else determined it, as the web UI calls and orders it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<(Cow<'static, str>, String)>,
    /// The LoRAs in the model.
    pub loras: Vec<Lora>,
    /// The model's name.
    pub model: String,
    /// The model's family.
    pub family: Cow<'static, str>,
    /// The model that was asked for, where this one stands in for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_for: Option<String>,
    /// What the model or a LoRA in it was found to be distilled to; the defaults were of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Cow<'static, str>>,
    /// The version of this program.
    pub version: Cow<'static, str>,
}

/// A LoRA as recipes name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Its file's name without the extension.
    pub name: String,
    /// What its difference was multiplied by.
    pub scale: f64,
}

impl Recipe {
    /// What a request means on a model; `size` is the finished picture's, `(width, height)` in pixels.
    pub fn new(
        request: &GenerationRequest,
        size: (u32, u32),
        info: &ModelInfo,
        loras: &[LoraChoice],
    ) -> Self {
        let preset = loras.iter().rev().find_map(|lora| lora.preset).or(info.preset);
        let (mode, strength) = match &request.mode {
            Mode::TextToImage => ("text-to-image", None),
            Mode::ImageToImage { strength, .. } => ("image-to-image", Some(*strength)),
            Mode::Inpaint { strength, .. } => ("inpaint", Some(*strength)),
        };
        Self {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone().filter(|_| uses_negative_prompt(request, info)),
            width: size.0,
            height: size.1,
            num_inference_steps: request.num_inference_steps.unwrap_or(info.num_inference_steps),
            guidance_scale: request.guidance_scale.unwrap_or_else(|| info.guidance_scale_for(&request.mode)),
            seed: request.seed,
            scheduler: request.scheduler.clone().unwrap_or_else(|| info.scheduler.clone()),
            clip_skip: request.clip_skip,
            mode: mode.into(),
            strength,
            extra: extra(request),
            loras: loras.iter().map(|l| Lora { name: lora_name(l), scale: l.scale }).collect(),
            model: info.name.clone(),
            family: info.family.name().into(),
            fallback_for: info.fallback_for.clone(),
            preset: preset.map(|preset| preset.name.into()),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// The text that the Stable Diffusion web UI writes into its pictures and reads back from them.
    ///
    /// Source: `create_infotext` in the web UI's `modules/processing.py`.
    pub fn parameters(&self) -> String {
        let unknown = |_| (self.scheduler.as_str(), "Automatic");
        let (sampler, schedule) = SamplerSettings::web_ui_names(&self.scheduler).unwrap_or_else(unknown);
        let mut fields = vec![
            ("Steps", self.num_inference_steps.to_string()),
            ("Sampler", sampler.to_owned()),
            ("Schedule type", schedule.to_owned()),
            ("CFG scale", self.guidance_scale.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
            ("Model", self.model.clone()),
        ];
        if let Some(strength) = self.strength {
            fields.push(("Denoising strength", strength.to_string()));
        }
        if self.clip_skip > 0 {
            // There 1 means the last layer, which is 0 here.
            fields.push(("Clip skip", (self.clip_skip + 1).to_string()));
        }
        fields.extend(self.extra.iter().map(|(name, value)| (&**name, value.clone())));
        fields.push(("Version", format!("aquatint {}", self.version)));
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
        let negative = match self.negative_prompt.as_deref() {
            None | Some("") => String::new(),
            Some(text) => format!("\nNegative prompt: {text}"),
        };
        // `<lora:name:scale>` in the prompt is how the web UI writes LoRAs, and how it finds them again.
        let loras: String = self.loras.iter().map(|l| format!(" <lora:{}:{}>", l.name, l.scale)).collect();
        format!("{}{loras}{negative}\n{}", self.prompt, fields.join(", "))
    }
}

fn extra(request: &GenerationRequest) -> Vec<(Cow<'static, str>, String)> {
    let mut extra = Vec::new();
    if let Some(Variation { seed, strength }) = request.variation {
        extra.push(("Variation seed".into(), seed.to_string()));
        extra.push(("Variation seed strength".into(), strength.to_string()));
    }
    extra.extend(request.true_cfg_scale.map(|scale| ("True CFG scale".into(), scale.to_string())));
    extra
        .extend(request.max_sequence_length.map(|length| ("Max sequence length".into(), length.to_string())));
    match request.step_cache {
        Some(StepCache::FirstBlock { threshold }) => {
            extra.push(("First block cache".into(), threshold.to_string()));
        }
        Some(StepCache::Deep(DeepCache { interval, branch_id })) => {
            extra.push(("DeepCache interval".into(), interval.to_string()));
            extra.push(("DeepCache branch".into(), branch_id.to_string()));
        }
        None => {}
    }
    extra
}

/// FLUX takes a negative prompt only with guidance beside its own.
fn uses_negative_prompt(request: &GenerationRequest, info: &ModelInfo) -> bool {
    info.family != Family::Flux || request.true_cfg_scale.is_some_and(|scale| scale > 1.0)
}

/// The file's name without its extension: how clients and recipes name a LoRA.
/// Its file's name; where that is what diffusers calls every LoRA, its folder's or repository's.
fn lora_name(lora: &LoraChoice) -> String {
    let stem = lora.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match lora.path.parent() {
        Some(folder) if stem == "pytorch_lora_weights" && folder.file_name().is_some() => name_of(folder),
        _ => stem,
    }
}

/// A seed for whoever names none. 32 bits, as the web UI draws them: every client can hold it exactly.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // The standard library seeds each hasher from the system's random source.
    RandomState::new().build_hasher().finish() >> 32
}

/// Values with a separator in them are quoted as JSON, so that the fields can be told apart.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let info = ModelInfo {
            name: "sdxl, base".into(),
            family: aquatint_models::pipeline::Family::Sdxl,
            device: "cpu".into(),
            native_size_px: 1024,
            multiple_px: 8,
            num_inference_steps: 20,
            guidance_scale: 5.0,
            scheduler: "Euler".into(),
            needs_mask: false,
            edits_pictures: false,
            memory: None,
            fallback_for: None,
            random_weights: false,
            preset: None,
        };
        let mut request = GenerationRequest::new("a red apple, on a table", 42);
        request.negative_prompt = Some("blurry".into());
        request.scheduler = Some("DPM++ 2M Karras".into());
        let loras = [LoraChoice::new("/loras/ink.safetensors", 0.8)];
        Recipe::new(&request, (896, 512), &info, &loras)
    }

    #[test]
    fn writes_what_the_web_ui_writes() {
        let expected = concat!(
            "a red apple, on a table <lora:ink:0.8>\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, ",
            "Schedule type: Karras, CFG scale: 5, Seed: 42, Size: 896x512, Model: \"sdxl, base\", Version: aquatint ",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(recipe().parameters(), expected);
    }

    #[test]
    fn names_samplers_as_the_web_ui_does() {
        for (scheduler, expected) in [
            ("EulerDiscreteScheduler", "Sampler: Euler, Schedule type: Automatic,"),
            ("EulerAncestralDiscreteScheduler", "Sampler: Euler a, Schedule type: Automatic,"),
            ("dpmpp_2m_karras", "Sampler: DPM++ 2M, Schedule type: Karras,"),
            ("LCMScheduler", "Sampler: LCM, Schedule type: Automatic,"),
        ] {
            let text = Recipe { scheduler: scheduler.into(), ..recipe() }.parameters();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn leaves_out_what_was_not_asked_for() {
        let mut recipe = recipe();
        recipe.negative_prompt = Some(String::new());
        recipe.clip_skip = 1;
        recipe.strength = Some(0.6);
        let text = recipe.parameters();
        assert!(!text.contains("Negative prompt"));
        assert!(text.contains(", Denoising strength: 0.6, Clip skip: 2, Version"));
    }
}
