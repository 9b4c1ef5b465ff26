//! `POST /sdapi/v1/png-info`: what a picture's file says of how it was made.

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::{Error, object};
use crate::api::App;
use crate::api::fault::Fault;
use crate::api::fields::Fields;
use crate::api::pictures::from_base64;
use crate::picture;

/// The handler.
pub async fn png_info(State(_): State<App>, request: Request) -> Result<Json<Value>, Error> {
    let body = object(request).await?;
    let fields = Fields::new(&body);
    let text = fields.required_text("image")?;
    let refused = |reason: String| Fault::invalid("image", format!("image {reason}."));
    let bytes = from_base64(text).map_err(refused)?;
    let texts = picture::texts(&bytes).map_err(|error| refused(error.to_string()))?;
    let info = texts.iter().find(|(keyword, _)| keyword == "parameters").map(|(_, text)| text.clone());
    let info = info.unwrap_or_default();
    let items: Map<String, Value> = texts.into_iter().map(|(k, v)| (k, v.into())).collect();
    let parameters = parse(&info);
    Ok(Json(json!({"info": info, "items": items, "parameters": parameters})))
}

/// The fields of the text that the web UI writes.
///
/// Source: `parse_generation_parameters` in the web UI's `modules/infotext_utils.py`.
fn parse(text: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    let lines: Vec<_> = text.trim().lines().collect();
    let Some((last, before)) = lines.split_last() else { return fields };
    let found = pairs(last);
    // A last line with fewer fields belongs to the prompt.
    let (before, found) = if found.len() < 3 { (&lines[..], Vec::new()) } else { (before, found) };
    let (mut prompts, mut at) = ([String::new(), String::new()], 0);
    for line in before {
        let line = line.trim();
        let line = match line.strip_prefix("Negative prompt:") {
            Some(rest) => {
                at = 1;
                rest.trim()
            }
            None => line,
        };
        if !prompts[at].is_empty() {
            prompts[at].push('\n');
        }
        prompts[at].push_str(line);
    }
    let [prompt, negative] = prompts;
    fields.insert("Prompt".into(), prompt.into());
    fields.insert("Negative prompt".into(), negative.into());
    for (name, value) in found {
        match value.split_once('x').filter(|(w, h)| is_number(w) && is_number(h)) {
            Some((width, height)) => {
                fields.insert(format!("{name}-1"), width.into());
                fields.insert(format!("{name}-2"), height.into());
            }
            None => {
                fields.insert(name, value.into());
            }
        }
    }
    fields
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `Name: value, Name: "quoted, value"`.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some((name, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let (value, next) = match after.starts_with('"') {
            true => {
                let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
                match values.next() {
                    Some(Ok(value)) => (value, &after[values.byte_offset()..]),
                    _ => break,
                }
            }
            false => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        pairs.push((name.trim().to_owned(), value));
        rest = next.trim_start_matches([',', ' ']);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_web_ui_writes() {
        let text = "a cat: on a mat,\nred\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, \
                    Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, Model: \"a, b\", Version: v1.10.1";
        let fields = parse(text);
        for (name, expected) in [
            ("Prompt", "a cat: on a mat,\nred"),
            ("Negative prompt", "blurry"),
            ("Steps", "20"),
            ("Sampler", "DPM++ 2M"),
            ("Size-1", "512"),
            ("Size-2", "768"),
            ("Model", "a, b"),
            ("Version", "v1.10.1"),
        ] {
            assert_eq!(fields[name], expected, "{name}");
        }
        assert_eq!(parse("only a prompt")["Prompt"], "only a prompt");
        assert!(parse("").is_empty());
    }
}
