//! Which files of a repository are needed: as few as will do.
//!
//! Repositories hold the same weights several times: as pickles, for Flax, ONNX and OpenVINO, in 16 and 32 bits, as single
//! files for other programs. Of each component its config and one set of safetensors is taken, of the rest nothing.

use std::collections::BTreeMap;

use serde_json::Value;

/// Which of several sets of weights to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// The one without a name, `fp16` where that is the only one.
    #[default]
    Full,
    /// `fp16` where there is one, else the one without a name.
    Half,
}

/// Components that no pipeline here makes use of.
const UNUSED: [&str; 3] = ["safety_checker", "feature_extractor", "image_encoder"];

/// What a tokenizer may be stored as, beside its settings.
const TOKENIZER: [&str; 7] = [
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "added_tokens.json",
];

/// First parts of the names of weights in diffusers' and transformers' layouts.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// The files of a pipeline: what its `model_index.json` names. Paths are relative to the repository.
///
/// # Errors
/// Which component has no weights that can be read.
pub fn pipeline(listing: &[String], index: &Value, variant: &Variant) -> Result<Vec<String>, String> {
    let components = index.as_object().ok_or("model_index.json is no JSON object")?;
    let mut chosen = vec!["model_index.json".to_owned()];
    for (name, class) in components {
        // `[library, class]`; both null where the component is left out.
        let Some(class) = class.get(1).and_then(Value::as_str) else { continue };
        if UNUSED.contains(&name.as_str()) {
            continue;
        }
        if class.contains("Tokenizer") {
            chosen.extend(present(listing, name, &TOKENIZER));
        } else if class.contains("Scheduler") {
            chosen.extend(present(listing, name, &["scheduler_config.json"]));
        } else {
            chosen.extend(component(listing, name, variant)?);
        }
    }
    Ok(chosen)
}

/// The files of one model in a folder of the repository, "" for its root: config, weights and, where there is one, the
/// tokenizer.
///
/// # Errors
/// What the folder lacks.
pub fn component(listing: &[String], folder: &str, variant: &Variant) -> Result<Vec<String>, String> {
    let config = join(folder, "config.json");
    if !has_config(listing, folder) {
        return Err(format!("it has no {config}"));
    }
    let mut chosen = vec![config];
    chosen.extend(present(listing, folder, &["preprocessor_config.json"]));
    chosen.extend(present(listing, folder, &TOKENIZER));
    chosen.extend(weights(listing, folder, variant)?);
    Ok(chosen)
}

/// Whether a folder of the repository is one model.
pub fn has_config(listing: &[String], folder: &str) -> bool {
    listing.contains(&join(folder, "config.json"))
}

/// One file of weights: the one that is named, or else the only one there is.
///
/// # Errors
/// That there is none, or several, and which.
pub fn single_file(listing: &[String], named: Option<&str>) -> Result<String, String> {
    if let Some(named) = named.filter(|named| listing.iter().any(|file| file == named)) {
        return match is_readable(named) {
            true => Ok(named.to_owned()),
            false => Err(format!("{named} is neither safetensors nor GGUF: other formats can run code")),
        };
    }
    let within = named.map(|folder| format!("{folder}/")).unwrap_or_default();
    let inside = |file: &&String| file.starts_with(&within) && is_readable(file);
    let files: Vec<_> = listing.iter().filter(inside).collect();
    let top: Vec<_> = files.iter().filter(|file| !file[within.len()..].contains('/')).collect();
    let usual = top.iter().find(|file| file.ends_with("pytorch_lora_weights.safetensors"));
    match (usual, &top[..], &files[..]) {
        (Some(file), ..) | (None, [file], _) => Ok((**file).clone()),
        (None, [], [file]) => Ok((*file).clone()),
        (None, [], []) => Err(match named {
            Some(named) => format!("it has no {named}"),
            None => "it holds neither safetensors nor GGUF files".to_owned(),
        }),
        (None, ..) => {
            let names: Vec<_> = files.iter().take(8).map(|file| file.as_str()).collect();
            let more = if files.len() > names.len() { " and others" } else { "" };
            Err(format!("it holds several files, name one of them: {}{more}", names.join(", ")))
        }
    }
}

fn is_readable(file: &str) -> bool {
    [".safetensors", ".sft", ".gguf"].iter().any(|end| file.ends_with(end))
}

fn join(folder: &str, file: &str) -> String {
    if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") }
}

fn present(listing: &[String], folder: &str, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| join(folder, name)).filter(|path| listing.contains(path)).collect()
}

/// A file of weights by its name: `model.fp16-00001-of-00002.safetensors`.
#[derive(Debug, PartialEq)]
struct Weights<'a> {
    stem: &'a str,
    variant: Option<&'a str>,
    /// Which of how many.
    shard: Option<(usize, usize)>,
}

impl<'a> Weights<'a> {
    fn named(file: &'a str) -> Option<Self> {
        let name = file.strip_suffix(".safetensors")?;
        let stem = STEMS.into_iter().find(|stem| name.starts_with(stem))?;
        let rest = &name[stem.len()..];
        // Older files say which shard before the variant.
        let (variant, shard) = match rest.split_once('-') {
            None => (rest.strip_prefix('.'), None),
            Some((before, after)) => {
                let (numbers, later) = after.split_once('.').map_or((after, None), |(n, v)| (n, Some(v)));
                let (at, of) = numbers.split_once("-of-")?;
                (before.strip_prefix('.').or(later), Some((at.parse().ok()?, of.parse().ok()?)))
            }
        };
        let begins = rest.is_empty() || rest.starts_with(['.', '-']);
        (begins && !variant.is_some_and(|v| v.contains('.'))).then_some(Self { stem, variant, shard })
    }
}

/// One set of weights of a folder, with the index where it is in several files.
fn weights(listing: &[String], folder: &str, variant: &Variant) -> Result<Vec<String>, String> {
    let here = |file: &'_ String| {
        let name = file.strip_prefix(folder)?;
        let name = if folder.is_empty() { name } else { name.strip_prefix('/')? };
        (!name.contains('/')).then(|| name.to_owned())
    };
    let names: Vec<String> = listing.iter().filter_map(here).collect();
    let mut sets: BTreeMap<Option<&str>, Vec<(&str, Weights<'_>)>> = BTreeMap::new();
    for name in &names {
        if let Some(weights) = Weights::named(name) {
            sets.entry(weights.variant).or_default().push((name, weights));
        }
    }
    let order = match variant {
        Variant::Full => [None, Some("fp16")],
        Variant::Half => [Some("fp16"), None],
    };
    let Some((of, set)) = order.iter().find_map(|of| Some((of, sets.get(of)?))) else {
        let pickle = names.iter().find(|name| name.ends_with(".bin") || name.ends_with(".ckpt"));
        let place = if folder.is_empty() { "it" } else { folder };
        return Err(match pickle {
            Some(pickle) => {
                format!("{place} has no safetensors: {pickle} is a Python pickle, which can run code")
            }
            None => format!("{place} has no weights in safetensors"),
        });
    };
    // Where the same weights are there whole and in parts, one file is simpler.
    if let Some((name, _)) = set.iter().find(|(_, weights)| weights.shard.is_none()) {
        return Ok(vec![join(folder, name)]);
    }
    shards(&names, *of, set).map(|files| files.iter().map(|file| join(folder, file)).collect())
}

/// The files of a set in several parts, all of which must be there.
fn shards(names: &[String], of: Option<&str>, set: &[(&str, Weights<'_>)]) -> Result<Vec<String>, String> {
    let stem = set.first().map_or("", |(_, weights)| weights.stem);
    let indices = match of {
        None => vec![format!("{stem}.safetensors.index.json")],
        Some(of) => {
            vec![format!("{stem}.safetensors.index.{of}.json"), format!("{stem}.{of}.safetensors.index.json")]
        }
    };
    let index = indices.iter().find(|index| names.contains(index));
    let index = index.ok_or_else(|| format!("{} is missing", indices.join(" or ")))?;
    let count = set.iter().filter_map(|(_, weights)| Some(weights.shard?.1)).max().unwrap_or(0);
    let mut files = vec![index.clone()];
    for part in 1..=count {
        let file = set.iter().find(|(_, weights)| weights.shard == Some((part, count)));
        let (file, _) = file.ok_or_else(|| format!("part {part} of {count} of {stem} is missing"))?;
        files.push((*file).to_owned());
    }
    Ok(files)
}

/// Whether a file is small and read before the weights are.
pub fn is_config(file: &str) -> bool {
    !is_readable(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_weights_are_taken_apart() {
        let named = |stem, variant, shard| Some(Weights { stem, variant, shard });
        for (name, expected) in [
            ("model.safetensors", named("model", None, None)),
            ("model.fp16.safetensors", named("model", Some("fp16"), None)),
            (
                "diffusion_pytorch_model.non_ema.safetensors",
                named("diffusion_pytorch_model", Some("non_ema"), None),
            ),
            ("model-00001-of-00002.safetensors", named("model", None, Some((1, 2)))),
            ("model.fp16-00002-of-00002.safetensors", named("model", Some("fp16"), Some((2, 2)))),
            ("model-00002-of-00002.fp16.safetensors", named("model", Some("fp16"), Some((2, 2)))),
            ("model.bin", None),
            ("model_old.safetensors", None),
            ("flux1-dev.safetensors", None),
            ("model-a-of-b.safetensors", None),
        ] {
            assert_eq!(Weights::named(name), expected, "{name}");
        }
    }
}
