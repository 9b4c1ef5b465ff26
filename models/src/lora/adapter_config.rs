//! The alphas that PEFT keeps beside the weights: in `adapter_config.json`, or in the header of files that diffusers
//! 0.35 and later write.

use std::collections::BTreeMap;
use std::path::Path;

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Target;
use crate::Error;

/// A LoRA's, LoHa's or LoKr's config, as far as it changes the result. The names are PEFT's.
#[derive(Debug, Default, Deserialize)]
struct Config {
    r: Option<f64>,
    lora_alpha: Option<f64>,
    /// LoHa's and LoKr's name of `lora_alpha`.
    alpha: Option<f64>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    use_rslora: Option<bool>,
}

/// A config with its patterns compiled.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    rank: Option<f64>,
    alpha: Option<f64>,
    rank_patterns: Vec<(Regex, f64)>,
    alpha_patterns: Vec<(Regex, f64)>,
    rank_stabilized: bool,
}

impl AdapterConfig {
    /// `adapter_config.json` in the folder of the file, if there is one.
    pub(super) fn beside(path: &Path) -> crate::Result<Option<Self>> {
        let path = path.with_file_name("adapter_config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, e))?;
        let config = serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, e))?;
        Self::new(config).map(Some).map_err(|reason| Error::file(&path, reason))
    }

    /// The configs of a file's header, by component: one JSON object with keys such as `unet.lora_alpha`.
    pub(super) fn in_header(header: &BTreeMap<String, String>) -> Result<BTreeMap<Target, Self>, String> {
        const KEY: &str = "lora_adapter_metadata";
        let Some(json) = header.get(KEY) else { return Ok(BTreeMap::new()) };
        let fields: Map<String, Value> = serde_json::from_str(json).map_err(|e| format!("{KEY}: {e}"))?;
        let mut configs = BTreeMap::new();
        for target in [Target::Unet, Target::Transformer, Target::TextEncoder, Target::TextEncoder2] {
            let prefix = format!("{target}.");
            let own =
                fields.iter().filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?.to_owned(), v.clone())));
            let own: Map<String, Value> = own.collect();
            if !own.is_empty() {
                let config =
                    serde_json::from_value(own.into()).map_err(|e| format!("{KEY}: {target}: {e}"))?;
                configs.insert(target, Self::new(config)?);
            }
        }
        Ok(configs)
    }

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self {
            rank: config.r,
            alpha: config.lora_alpha.or(config.alpha),
            rank_patterns: compile(config.rank_pattern)?,
            alpha_patterns: compile(config.alpha_pattern)?,
            rank_stabilized: config.use_rslora.unwrap_or(false),
        })
    }

    /// What the factors of the layer `path` (with dots) are multiplied by; `rank` is what their shapes say.
    pub(super) fn scale(&self, path: &str, rank: Option<usize>) -> f64 {
        let rank = rank.map(|r| r as f64).or(first_match(&self.rank_patterns, path)).or(self.rank);
        let alpha = first_match(&self.alpha_patterns, path).or(self.alpha);
        match (alpha, rank) {
            (Some(alpha), Some(rank)) if self.rank_stabilized => alpha / rank.sqrt(),
            (Some(alpha), Some(rank)) => alpha / rank,
            _ => 1.0,
        }
    }
}

/// PEFT's rule (`get_pattern_key`): the first pattern that matches the whole name, or all of it from a dot on.
fn compile(patterns: Option<Map<String, Value>>) -> Result<Vec<(Regex, f64)>, String> {
    let compile = |(pattern, value): (String, Value)| {
        let number = value.as_f64().ok_or_else(|| format!("{pattern:?}: {value} is no number"))?;
        let regex =
            Regex::new(&format!(r"^(?:(.*\.)?({pattern})$)")).map_err(|e| format!("{pattern:?}: {e}"))?;
        Ok((regex, number))
    };
    patterns.unwrap_or_default().into_iter().map(compile).collect()
}

fn first_match(patterns: &[(Regex, f64)], path: &str) -> Option<f64> {
    // A pattern that gives up (it backtracks too much) matches nothing.
    patterns.iter().find(|(regex, _)| regex.is_match(path).unwrap_or(false)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> AdapterConfig {
        AdapterConfig::new(serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn patterns_are_whole_names_or_ends_of_names() {
        let config = config(
            r#"{"r": 8, "lora_alpha": 16, "alpha_pattern": {"^a.to_q": 2, "to_k": 3, ".*\\.ff\\.net\\.[02]": 4}}"#,
        );
        let scale = |path| config.scale(path, Some(1));
        assert_eq!(scale("a.to_q"), 2.0, "anchored");
        assert_eq!(scale("b.a.to_q"), 16.0, "anchored elsewhere");
        assert_eq!(scale("b.a.to_k"), 3.0, "an end");
        assert_eq!(scale("b.a.add_to_k"), 16.0, "an end, but not from a dot on");
        assert_eq!(scale("x.ff.net.2"), 4.0, "a regular expression");
        assert_eq!(config.scale("b", None), 2.0, "the rank of the config where shapes tell none");
    }

    #[test]
    fn rank_stabilized_alphas_are_divided_by_the_root() {
        assert_eq!(config(r#"{"lora_alpha": 8, "use_rslora": true}"#).scale("x", Some(16)), 2.0);
        assert_eq!(config(r#"{"r": 4}"#).scale("x", Some(16)), 1.0, "no alpha");
    }

    #[test]
    fn bad_patterns_are_named() {
        let refused = |json| AdapterConfig::new(serde_json::from_str(json).unwrap()).unwrap_err();
        assert!(refused(r#"{"alpha_pattern": {"to_(": 1}}"#).contains("to_("));
        assert!(refused(r#"{"rank_pattern": {"to_q": "x"}}"#).contains("no number"));
    }
}
