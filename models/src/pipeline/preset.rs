//! Models and LoRAs that need few steps, and what they need: a sampler, a number of steps, a guidance.
//!
//! Published ones say what they are in their names alone, so names are what is read. Numbers are those of the models'
//! own pages: [LCM](https://huggingface.co/latent-consistency/lcm-lora-sdxl),
//! [SDXL-Lightning](https://huggingface.co/ByteDance/SDXL-Lightning),
//! [SDXL-Turbo](https://huggingface.co/stabilityai/sdxl-turbo),
//! [Hyper-SD](https://huggingface.co/ByteDance/Hyper-SD),
//! [FLUX.1](https://huggingface.co/black-forest-labs),
//! [FLUX.1-Turbo-Alpha](https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha).

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

/// What a distilled model asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Preset {
    /// `lcm`, `lightning`, `turbo`, `hyper`, `schnell`, `dev`, `fill`, `kontext` or `krea`.
    pub name: &'static str,
    /// The sampler by name; `None` is the one of the model's own config.
    pub scheduler: Option<&'static str>,
    /// Steps of a request that names none.
    pub num_inference_steps: usize,
    /// Steps beyond which nothing is gained.
    pub max_inference_steps: usize,
    /// Guidance of a request that names none. 0 and 1 are none.
    pub guidance_scale: f64,
    /// The guidance is part of the distillation: a default from elsewhere does not fit.
    pub fixes_guidance: bool,
}

/// Every name and sampler that a preset may have: what is read from elsewhere is one of them.
const KNOWN: [&str; 14] = [
    "lcm",
    "lightning",
    "turbo",
    "hyper",
    "schnell",
    "dev",
    "fill",
    "kontext",
    "krea",
    "LCMScheduler",
    "Euler SGM Uniform",
    "Euler a SGM Uniform",
    "DDIM SGM Uniform",
    "TCD",
];

/// A preset as it is read.
#[derive(Deserialize)]
struct PresetText {
    name: String,
    scheduler: Option<String>,
    num_inference_steps: usize,
    max_inference_steps: usize,
    guidance_scale: f64,
    fixes_guidance: bool,
}

impl<'de> Deserialize<'de> for Preset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = PresetText::deserialize(deserializer)?;
        let known = |text: String| {
            let found = KNOWN.into_iter().find(|known| *known == text);
            found.ok_or_else(|| serde::de::Error::custom(format!("no preset has {text:?}")))
        };
        Ok(Self {
            name: known(text.name)?,
            scheduler: text.scheduler.map(known).transpose()?,
            num_inference_steps: text.num_inference_steps,
            max_inference_steps: text.max_inference_steps,
            guidance_scale: text.guidance_scale,
            fixes_guidance: text.fixes_guidance,
        })
    }
}

impl Preset {
    /// A latent consistency model's LoRA.
    pub const LCM_LORA: Self = Self {
        name: "lcm",
        scheduler: Some("LCMScheduler"),
        num_inference_steps: 4,
        max_inference_steps: 8,
        guidance_scale: 1.0,
        fixes_guidance: true,
    };

    /// A latent consistency model. It takes its guidance as an input; diffusers' default is 8.5.
    pub const LCM: Self = Self { guidance_scale: 8.5, ..Self::LCM_LORA };

    /// FLUX.1 schnell, which takes no guidance.
    pub const FLUX_SCHNELL: Self = Self {
        name: "schnell",
        scheduler: None,
        num_inference_steps: 4,
        max_inference_steps: 4,
        guidance_scale: 0.0,
        fixes_guidance: true,
    };

    /// FLUX.1 dev, which takes its guidance as an input.
    pub const FLUX_DEV: Self = Self {
        name: "dev",
        scheduler: None,
        num_inference_steps: 28,
        max_inference_steps: usize::MAX,
        guidance_scale: 3.5,
        fixes_guidance: true,
    };

    /// FLUX.1 Fill.
    pub const FLUX_FILL: Self =
        Self { name: "fill", num_inference_steps: 50, guidance_scale: 30.0, ..Self::FLUX_DEV };

    /// FLUX.1 Kontext.
    pub const FLUX_KONTEXT: Self = Self { name: "kontext", guidance_scale: 2.5, ..Self::FLUX_DEV };

    /// FLUX.1 Krea.
    pub const FLUX_KREA: Self = Self { name: "krea", guidance_scale: 4.5, ..Self::FLUX_DEV };

    /// Whether it was distilled to few steps, so that samplers and steps meant for other models do not fit.
    pub fn is_distilled(&self) -> bool {
        self.max_inference_steps < usize::MAX
    }

    /// Whether a sampler meant for other models does not fit: it was distilled with its own, or knows only flow matching.
    pub fn brings_its_sampler(&self) -> bool {
        self.is_distilled() || ["dev", "fill", "kontext", "krea"].contains(&self.name)
    }

    /// A model by the name of its folder or of the file that its denoiser came from.
    pub fn of_model(name: &str) -> Option<Self> {
        let words = Words::new(name);
        if words.has("flux") {
            // Fill, Kontext and Krea are dev's kin and have its name too.
            let kin = [Self::FLUX_FILL, Self::FLUX_KONTEXT, Self::FLUX_KREA, Self::FLUX_DEV];
            let kin = || kin.into_iter().find(|preset| words.is(preset.name));
            if let Some(preset) = Self::distilled_flux(&words).or_else(kin) {
                return Some(preset);
            }
        }
        if words.has("schnell") {
            return Some(Self::FLUX_SCHNELL);
        }
        // `has`, as merged models are called RealVisXL_Lightning or JuggernautXLLightning.
        Self::hyper(&words)
            .or_else(|| words.has("lightning").then(|| Self::lightning(&words)))
            // One step gives a picture; image-to-image takes a part of the steps, and needs more for one to be left.
            .or_else(|| words.has("turbo").then(|| Self::unguided("turbo", None, 4, 4)))
            .or_else(|| words.has("lcm").then_some(Self::LCM))
    }

    /// A LoRA by the names of its file and of its folder. A word alone may be what a LoRA paints; beside a number of
    /// steps or a base model it is what it does.
    pub fn of_lora(path: &Path) -> Option<Self> {
        let names = path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned());
        let names: Vec<_> = names.collect();
        // Neither sampler nor guidance of those for Stable Diffusion fits FLUX.
        let is_flux = names.iter().any(|name| Words::new(name).has("flux"));
        names.iter().find_map(|name| {
            let words = Words::new(name);
            if is_flux {
                return Self::distilled_flux(&words);
            }
            let turbo = || Self::unguided("turbo", Some("Euler a SGM Uniform"), 4, 4);
            Self::hyper(&words)
                .or_else(|| words.distils("lightning").then(|| Self::lightning(&words)))
                .or_else(|| words.distils("turbo").then(turbo))
                .or_else(|| words.has("lcm").then_some(Self::LCM_LORA))
        })
    }

    /// `Hyper-FLUX.1-dev-8steps-lora` and `FLUX.1-Turbo-Alpha`: dev's guidance is an input of the network, and stays.
    fn distilled_flux(words: &Words) -> Option<Self> {
        let name = ["hyper", "turbo"].into_iter().find(|name| words.distils(name))?;
        let steps = words.steps().unwrap_or(8);
        Some(Self { max_inference_steps: steps, ..Self::guided(name, steps, 3.5) })
    }

    fn lightning(words: &Words) -> Self {
        let steps = words.steps().unwrap_or(4);
        Self::unguided("lightning", Some("Euler SGM Uniform"), steps, steps)
    }

    /// `Hyper-SDXL-8steps-CFG-lora`: those with CFG in the name keep guidance, at 5 to 8. Those for one step are
    /// consistency models.
    fn hyper(words: &Words) -> Option<Self> {
        if !words.distils("hyper") && !words.has("hypersd") {
            return None;
        }
        let steps = words.steps().unwrap_or(8);
        let scheduler = if steps == 1 { "TCD" } else { "DDIM SGM Uniform" };
        let preset = match words.is("cfg") {
            true => Self { max_inference_steps: steps, ..Self::guided("hyper", steps, 5.0) },
            false => Self::unguided("hyper", None, steps, steps),
        };
        Some(Self { scheduler: Some(scheduler), ..preset })
    }

    fn unguided(
        name: &'static str,
        scheduler: Option<&'static str>,
        num_inference_steps: usize,
        max_inference_steps: usize,
    ) -> Self {
        let (guidance_scale, fixes_guidance) = (0.0, true);
        Self { name, scheduler, num_inference_steps, max_inference_steps, guidance_scale, fixes_guidance }
    }

    fn guided(name: &'static str, num_inference_steps: usize, guidance_scale: f64) -> Self {
        let max_inference_steps = usize::MAX;
        let fixes_guidance = false;
        Self {
            name,
            scheduler: None,
            num_inference_steps,
            max_inference_steps,
            guidance_scale,
            fixes_guidance,
        }
    }
}

/// A name in lower case, and its parts between hyphens, dots and the like.
struct Words {
    whole: String,
}

impl Words {
    fn new(name: &str) -> Self {
        Self { whole: name.to_lowercase() }
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        self.whole.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty())
    }

    /// It occurs anywhere.
    fn has(&self, text: &str) -> bool {
        self.whole.contains(text)
    }

    /// It is a part.
    fn is(&self, word: &str) -> bool {
        self.parts().any(|part| part == word)
    }

    /// `4step`, `8steps`, `4-step` and `4_steps` give the number.
    fn steps(&self) -> Option<usize> {
        let parts: Vec<_> = self.parts().collect();
        let number = |digits: &str| digits.parse().ok().filter(|n| (1..=64).contains(n));
        parts.iter().enumerate().find_map(|(i, part)| {
            let before = part.strip_suffix("steps").or_else(|| part.strip_suffix("step"))?;
            if before.is_empty() { number(parts.get(i.checked_sub(1)?)?) } else { number(before) }
        })
    }

    /// It is a part, and a number of steps is there too or a base model beside it, or with the model's version between.
    fn distils(&self, word: &str) -> bool {
        let is_base = |part: &str| ["sd", "xl", "flux"].iter().any(|base| part.starts_with(base));
        let is_version = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<_> = self.parts().filter(|part| !is_version(part)).collect();
        let beside = parts.windows(2).any(|pair| match pair {
            [first, second] => (*first == word && is_base(second)) || (*second == word && is_base(first)),
            _ => false,
        });
        self.is(word) && (beside || self.steps().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(name, sampler, steps, guidance)` as the pages of the published files say.
    type Expected = (&'static str, Option<&'static str>, usize, f64);

    fn of(preset: Option<Preset>) -> Option<Expected> {
        preset.map(|p| (p.name, p.scheduler, p.num_inference_steps, p.guidance_scale))
    }

    #[test]
    fn is_the_same_after_a_journey() {
        for name in ["LCM_Dreamshaper_v7", "Hyper-SDXL-1step-Unet", "sdxl-lightning-4step", "FLUX.1-dev"] {
            let preset = Preset::of_model(name).unwrap();
            let text = serde_json::to_string(&preset).unwrap();
            assert_eq!(serde_json::from_str::<Preset>(&text).unwrap(), preset);
            assert!(serde_json::from_str::<Preset>(&text.replace(preset.name, "other")).is_err());
        }
    }

    #[test]
    fn published_loras_are_known() {
        let (euler, ddim) = (Some("Euler SGM Uniform"), Some("DDIM SGM Uniform"));
        for (path, expected) in [
            ("LCM-LoRA-sdxl.safetensors", Some(("lcm", Some("LCMScheduler"), 4, 1.0))),
            ("lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", Some(("lcm", Some("LCMScheduler"), 4, 1.0))),
            ("sdxl_lightning_2step_lora.safetensors", Some(("lightning", euler, 2, 0.0))),
            ("sdxl_lightning_8step_lora.safetensors", Some(("lightning", euler, 8, 0.0))),
            ("Hyper-SDXL-2steps-lora.safetensors", Some(("hyper", ddim, 2, 0.0))),
            ("Hyper-SD15-4steps-lora.safetensors", Some(("hyper", ddim, 4, 0.0))),
            ("Hyper-SDXL-8steps-CFG-lora.safetensors", Some(("hyper", ddim, 8, 5.0))),
            ("Hyper-SDXL-1step-lora.safetensors", Some(("hyper", Some("TCD"), 1, 0.0))),
            ("sdxl-turbo-lora.safetensors", Some(("turbo", Some("Euler a SGM Uniform"), 4, 0.0))),
            ("Hyper-FLUX.1-dev-8steps-lora.safetensors", Some(("hyper", None, 8, 3.5))),
            ("Hyper-FLUX.1-dev-16steps-lora.safetensors", Some(("hyper", None, 16, 3.5))),
            ("flux/Hyper-16steps.safetensors", Some(("hyper", None, 16, 3.5))),
            ("FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors", Some(("turbo", None, 8, 3.5))),
            ("FLUX.1-Turbo-Alpha.safetensors", Some(("turbo", None, 8, 3.5))),
            ("flux_turbo_alpha_4steps.safetensors", Some(("turbo", None, 4, 3.5))),
            ("flux/turbo-engine.safetensors", None),
            ("flux-dev-lightning-storm.safetensors", None),
            ("/lcm/models/loras/pixel-art.safetensors", None),
            ("lightning-storm-xl.safetensors", None),
            ("hyperrealism-sdxl.safetensors", None),
            ("hyper-detail-sdxl.safetensors", None),
            ("turbo-engine.safetensors", None),
            ("watercolour.safetensors", None),
        ] {
            assert_eq!(of(Preset::of_lora(Path::new(path))), expected, "{path}");
        }
    }

    #[test]
    fn distilled_flux_keeps_its_guidance_and_caps_its_steps() {
        let hyper = Preset::of_lora(Path::new("Hyper-FLUX.1-dev-8steps-lora.safetensors")).unwrap();
        assert!(hyper.is_distilled() && !hyper.fixes_guidance);
        assert_eq!(hyper.max_inference_steps, 8);
        let hyper = Preset::of_lora(Path::new("Hyper-SDXL-8steps-lora.safetensors")).unwrap();
        assert!(hyper.fixes_guidance, "that of Stable Diffusion has none");
    }

    #[test]
    fn published_models_are_known() {
        let euler = Some("Euler SGM Uniform");
        for (name, expected) in [
            ("sdxl-turbo", Some(("turbo", None, 4, 0.0))),
            ("sd-turbo", Some(("turbo", None, 4, 0.0))),
            ("SDXL-Lightning", Some(("lightning", euler, 4, 0.0))),
            ("sdxl_lightning_8step_unet.safetensors", Some(("lightning", euler, 8, 0.0))),
            ("RealVisXL_V4.0_Lightning", Some(("lightning", euler, 4, 0.0))),
            ("LCM_Dreamshaper_v7", Some(("lcm", Some("LCMScheduler"), 4, 8.5))),
            ("Hyper-SD", Some(("hyper", Some("DDIM SGM Uniform"), 8, 0.0))),
            ("Hyper-SDXL-1step-Unet", Some(("hyper", Some("TCD"), 1, 0.0))),
            ("FLUX.1-schnell", Some(("schnell", None, 4, 0.0))),
            ("FLUX.1-dev", Some(("dev", None, 28, 3.5))),
            ("FLUX.1-Fill-dev", Some(("fill", None, 50, 30.0))),
            ("FLUX.1-Kontext-dev", Some(("kontext", None, 28, 2.5))),
            ("FLUX.1-Krea-dev", Some(("krea", None, 28, 4.5))),
            ("Hyper-FLUX.1-dev-8steps", Some(("hyper", None, 8, 3.5))),
            ("flux1-dev-Q4_K_S.gguf", Some(("dev", None, 28, 3.5))),
            ("flux1-schnell", Some(("schnell", None, 4, 0.0))),
            ("stable-diffusion-xl-base-1.0", None),
            ("stable-diffusion-v1-5", None),
            ("dev", None),
        ] {
            assert_eq!(of(Preset::of_model(name)), expected, "{name}");
        }
    }
}
