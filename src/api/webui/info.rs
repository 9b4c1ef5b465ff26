//! The `info` text of replies.
//!
//! Source: `Processed.js` in the web UI's `modules/processing.py`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::form::Form;
use crate::engine::Picture;
use aquatint_models::sampler::SamplerSettings;

/// What the web UI tells of finished pictures, as a JSON text.
pub(super) fn info(form: &Form, model: &str, made: &[Picture]) -> String {
    let recipe = made.first().map(|picture| &picture.recipe);
    let of_each = |tell: &dyn Fn(&Picture) -> Value| -> Vec<Value> { made.iter().map(tell).collect() };
    let scheduler = recipe.map(|r| r.scheduler.as_str()).or(form.parameters.scheduler.as_deref());
    let sampler = scheduler.and_then(|name| SamplerSettings::web_ui_names(name).ok());
    let negative = form.parameters.negative_prompt.clone().unwrap_or_default();
    let varied = u64::from(form.subseed_strength > 0.0);
    let subseeds: Vec<_> = (0..made.len() as u64).map(|i| form.subseed.wrapping_add(i * varied)).collect();
    let extra: serde_json::Map<String, Value> = recipe
        .map(|r| r.extra.iter().map(|(k, v)| (k.clone().into_owned(), json!(v))).collect())
        .unwrap_or_default();
    json!({
        "prompt": form.prompt,
        "all_prompts": of_each(&|_| json!(form.prompt)),
        "negative_prompt": negative,
        "all_negative_prompts": of_each(&|_| json!(negative)),
        "seed": form.seed,
        "all_seeds": of_each(&|picture| json!(picture.recipe.seed)),
        "subseed": form.subseed,
        "all_subseeds": subseeds,
        "subseed_strength": form.subseed_strength,
        "width": recipe.map(|r| r.width),
        "height": recipe.map(|r| r.height),
        "sampler_name": sampler.map(|(name, _)| name),
        "cfg_scale": recipe.map(|r| r.guidance_scale),
        "steps": recipe.map(|r| r.num_inference_steps),
        "batch_size": form.batch_size,
        "restore_faces": false,
        "face_restoration_model": null,
        "sd_model_name": model,
        // Files are not hashed.
        "sd_model_hash": null,
        "sd_vae_name": null,
        "sd_vae_hash": null,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": recipe.and_then(|r| r.strength),
        "extra_generation_params": extra,
        "index_of_first_image": 0,
        "infotexts": of_each(&|picture| json!(picture.recipe.parameters())),
        "styles": [],
        "job_timestamp": timestamp(Duration::ZERO),
        "clip_skip": form.parameters.clip_skip + 1,
        "is_using_inpainting_conditioning": false,
        "version": format!("aquatint {}", env!("CARGO_PKG_VERSION")),
    })
    .to_string()
}

/// The time of `ago`, as in `20260131235959`, in UTC.
pub(super) fn timestamp(ago: Duration) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ago);
    civil(since.as_secs())
}

/// Days are counted in eras of 400 years that begin on 1 March, so that leap days come last.
///
/// Source: `civil_from_days` of Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html>.
fn civil(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    /// By `date -u -d @SECONDS +%Y%m%d%H%M%S`.
    #[test]
    fn dates_are_right() {
        for (seconds, expected) in [
            (0, "19700101000000"),
            (951_782_400, "20000229000000"),
            (1_709_251_199, "20240229235959"),
            (1_709_251_200, "20240301000000"),
            (1_800_000_000, "20270115080000"),
        ] {
            assert_eq!(super::civil(seconds), expected);
        }
    }
}
