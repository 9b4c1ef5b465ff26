//! `<lora:name:scale>` in prompts.

use crate::api::App;
use crate::api::fault::Fault;
use crate::api::fields::lora;
use crate::engine::LoraChoice;

/// The prompt without its LoRA tags, and the LoRAs of the tags; `field` held the prompt.
pub(super) fn loras(app: &App, prompt: &str, field: &str) -> Result<(String, Vec<LoraChoice>), Fault> {
    let (mut text, mut loras) = (String::new(), Vec::new());
    let mut rest = prompt;
    while let Some((before, tag)) = rest.split_once("<lora:") {
        let Some((inside, after)) = tag.split_once('>') else { break };
        text.push_str(before);
        let (name, scale) = parts(inside, field)?;
        loras.push(lora(app, name, scale, field)?);
        rest = after;
    }
    text.push_str(rest);
    if loras.is_empty() { Ok((text, loras)) } else { Ok((text.trim().to_owned(), loras)) }
}

/// `name`, `name:scale`, or `name:scale:scale` with the text encoder's before the UNet's.
fn parts<'a>(inside: &'a str, field: &str) -> Result<(&'a str, f64), Fault> {
    let refused = |what: &str| Fault::invalid(field, format!("{field}: <lora:{inside}> {what}."));
    let mut parts = inside.split(':');
    let name = parts.next().unwrap_or_default().trim();
    let mut scales = Vec::new();
    for part in parts {
        let scale = part.trim().parse().ok().filter(|scale: &f64| scale.is_finite());
        scales.push(scale.ok_or_else(|| refused("has a scale that is no number"))?);
    }
    match scales[..] {
        [] => Ok((name, 1.0)),
        [scale] => Ok((name, scale)),
        [first, second] if first == second => Ok((name, first)),
        _ => Err(refused("has several scales: one is allowed, for text encoder and UNet alike")),
    }
}
