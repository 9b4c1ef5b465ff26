//! Fields of a JSON object or a form, checked one by one.

use std::ops::RangeInclusive;

use aquatint_models::sampler::SamplerSettings;
use serde_json::{Map, Value};

use super::App;
use super::fault::{Fault, shown};
use super::parameters::{CacheNames, step_cache};
use crate::engine::recipe::random_seed;
use crate::engine::{LoraChoice, StepCache};
use crate::picture::MAX_SIDE_PX;
use crate::settings::{MAX_CACHE_BRANCH_ID, MAX_CACHE_INTERVAL, MAX_GUIDANCE_SCALE, MAX_STEPS};

/// LoRAs are trained for 1; beyond this the weights are mostly difference.
const MAX_LORA_SCALE: f64 = 4.0;

/// An object's fields. `null` is as good as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    /// How errors name the object: empty, or `config.`.
    prefix: &'static str,
    /// A form has texts alone: those that are numbers count as such.
    form: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map: Some(map), prefix: "", form: false }
    }

    /// The fields of a form.
    pub(super) fn form(map: &'a Map<String, Value>) -> Self {
        Self { form: true, ..Self::new(map) }
    }

    /// The object in field `name`; an absent one is empty. `prefix` is the name and a dot.
    pub(super) fn object(&self, name: &str, prefix: &'static str) -> Result<Self, Fault> {
        match self.any(&[name]) {
            None => Ok(Self { map: None, prefix, form: false }),
            Some(Value::Object(map)) => Ok(Self { map: Some(map), prefix, form: false }),
            Some(other) => Err(self.must_be(name, "an object", other)),
        }
    }

    /// The first of these names that is there.
    pub(super) fn any(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().find_map(|name| self.map?.get(*name)).filter(|value| !value.is_null())
    }

    /// A field under its name or, where that is in camelCase, also in snake_case.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.any(&[name]).or_else(|| self.any(&[&snake_case(name)]))
    }

    /// Names that are there and not in the list.
    pub(super) fn others(&self, known: &[&str]) -> Vec<&'a str> {
        let names = self.map.into_iter().flat_map(|map| map.keys().map(String::as_str));
        names.filter(|name| !known.contains(name)).collect()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| self.must_be(name, "a string", v))).transpose()
    }

    /// A text that must be there and say something.
    pub(super) fn required_text(&self, name: &str) -> Result<&'a str, Fault> {
        let Some(value) = self.get(name) else {
            return Err(Fault::invalid(format!("{}{name}", self.prefix), format!("{name} is required.")));
        };
        let text = value.as_str().filter(|text| !text.trim().is_empty());
        text.ok_or_else(|| self.must_be(name, "a string that says something", value))
    }

    /// One of a few texts.
    pub(super) fn choice(&self, name: &str, allowed: &[&'static str]) -> Result<Option<&'static str>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let found = allowed.iter().find(|a| value.as_str() == Some(**a));
        found.copied().map(Some).ok_or_else(|| {
            let allowed: Vec<_> = allowed.iter().map(|a| format!("'{a}'")).collect();
            self.must_be(name, format!("one of {}", allowed.join(", ")), value)
        })
    }

    /// A whole number; `5.0` is one too, as JavaScript cannot tell it from `5`.
    pub(super) fn whole(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let from_float = || value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f < 2f64.powi(53));
        let from_text = || self.form.then(|| value.as_str()?.trim().parse().ok()).flatten();
        let number = value.as_u64().or_else(|| from_float().map(|f| f as u64)).or_else(from_text);
        let number = number.filter(|n| range.contains(n)).ok_or_else(|| {
            self.must_be(name, format!("an integer from {} to {}", range.start(), range.end()), value)
        })?;
        Ok(Some(number))
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let from_text = || self.form.then(|| value.as_str()?.trim().parse().ok()).flatten();
        let number = value.as_f64().or_else(from_text).filter(|n| range.contains(n)).ok_or_else(|| {
            self.must_be(name, format!("a number from {} to {}", range.start(), range.end()), value)
        })?;
        Ok(Some(number))
    }

    /// The step cache that three fields ask for.
    pub(super) fn step_cache(&self, names: CacheNames) -> Result<Option<StepCache>, Fault> {
        let [for_flux, for_unets, branch] = names;
        let threshold = self.number(for_flux, 0.0..=1.0)?;
        let interval = self.whole(for_unets, 1..=MAX_CACHE_INTERVAL)?;
        step_cache(threshold, interval, self.whole(branch, 0..=MAX_CACHE_BRANCH_ID)?, names)
    }

    /// True or false; 1 and 0 are as good, as are their texts in a form.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::Number(n) if n.as_f64() == Some(0.0) => Some(false),
            Value::Number(n) if n.as_f64() == Some(1.0) => Some(true),
            Value::String(text) if self.form => match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        };
        flag.map(Some).ok_or_else(|| self.must_be(name, "true or false", value))
    }

    pub(super) fn steps(&self, name: &str) -> Result<Option<usize>, Fault> {
        Ok(self.whole(name, 1..=MAX_STEPS)?.map(|n| n as usize))
    }

    pub(super) fn guidance_scale(&self, name: &str) -> Result<Option<f64>, Fault> {
        self.number(name, 0.0..=MAX_GUIDANCE_SCALE)
    }

    /// A side of a picture in pixels.
    pub(super) fn side(&self, name: &str) -> Result<Option<u32>, Fault> {
        Ok(self.whole(name, 8..=u64::from(MAX_SIDE_PX))?.map(|px| px as u32))
    }

    /// -1 is the web UI's way to ask for any seed.
    pub(super) fn seed(&self, name: &str) -> Result<Option<u64>, Fault> {
        if let Some(value) = self.get(name) {
            let is_text = self.form && value.as_str().is_some_and(|text| text.trim() == "-1");
            if value.as_f64() == Some(-1.0) || is_text {
                return Ok(None);
            }
        }
        self.whole(name, 0..=u64::MAX)
    }

    pub(super) fn scheduler(&self, name: &str) -> Result<Option<String>, Fault> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        SamplerSettings::web_ui_names(text)
            .map_err(|error| Fault::invalid(format!("{}{name}", self.prefix), error.to_string()))?;
        Ok(Some(text.to_owned()))
    }

    /// The LoRA that `name` names in the registry, and how much of it.
    pub(super) fn loras(&self, app: &App, name: &str, scale: &str) -> Result<Vec<LoraChoice>, Fault> {
        let scale = self.lora_scale(scale)?.unwrap_or(1.0);
        let Some(text) = self.text(name)?.filter(|text| !text.is_empty()) else {
            return Ok(Vec::new());
        };
        Ok(vec![lora(app, text, scale, &format!("{}{name}", self.prefix))?])
    }

    fn lora_scale(&self, name: &str) -> Result<Option<f64>, Fault> {
        self.number(name, -MAX_LORA_SCALE..=MAX_LORA_SCALE)
    }

    fn must_be(&self, name: &str, allowed: impl std::fmt::Display, value: &Value) -> Fault {
        Fault::must_be(&format!("{}{name}", self.prefix), allowed, value)
    }
}

/// A LoRA by its name in the registry; `field` named it.
pub(super) fn lora(app: &App, name: &str, scale: f64, field: &str) -> Result<LoraChoice, Fault> {
    if !(-MAX_LORA_SCALE..=MAX_LORA_SCALE).contains(&scale) {
        let allowed = format!("a number from -{MAX_LORA_SCALE} to {MAX_LORA_SCALE}");
        return Err(Fault::must_be(&format!("The scale of lora {name:?}"), allowed, &scale.into()));
    }
    let path = app.loras.get(name).ok_or_else(|| {
        let names: Vec<_> = app.loras.names().into_iter().map(|n| format!("'{n}'")).collect();
        let name = shown(&name.into());
        Fault::invalid(field, format!("Unknown lora {name}. Must be one of [{}]", names.join(", ")))
    })?;
    Ok(LoraChoice::new(path, scale))
}

/// The seed that was given, or one for whoever gave none.
pub(super) fn or_random(seed: Option<u64>) -> u64 {
    seed.unwrap_or_else(random_seed)
}

/// `guidanceScale` is `guidance_scale`.
fn snake_case(camel: &str) -> String {
    let mut snake = String::with_capacity(camel.len() + 4);
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
