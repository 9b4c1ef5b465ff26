//! Fields of a JSON object, checked one by one.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::api::fastapi::ApiError;

/// An object's fields, each found under its camelCase and its snake_case name. `null` is as good as absent.
pub(super) struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    /// How errors name the object: empty, or `config.`.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map: Some(map), prefix: "" }
    }

    /// The object in field `config`; an absent one is empty.
    pub(super) fn config(body: &'a Map<String, Value>) -> Result<Self, ApiError> {
        match body.get("config") {
            None | Some(Value::Null) => Ok(Self { map: None, prefix: "config." }),
            Some(Value::Object(map)) => Ok(Self { map: Some(map), prefix: "config." }),
            Some(_) => Err(ApiError::invalid("config must be an object.")),
        }
    }

    /// The first of these names that is there.
    pub(super) fn any(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().find_map(|name| self.map?.get(*name)).filter(|value| !value.is_null())
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.any(&[name]).or_else(|| self.any(&[&snake_case(name)]))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| self.refuse(name, "a string"))).transpose()
    }

    /// A whole number; `5.0` is one too, as JavaScript cannot tell it from `5`.
    pub(super) fn whole(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let from_float = || value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f < 2f64.powi(53));
        let number = value.as_u64().or_else(|| from_float().map(|f| f as u64));
        let number = number.filter(|n| range.contains(n)).ok_or_else(|| {
            self.refuse(name, format!("an integer from {} to {}", range.start(), range.end()))
        })?;
        Ok(Some(number))
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|n| range.contains(n)).ok_or_else(|| {
            self.refuse(name, format!("a number from {} to {}", range.start(), range.end()))
        })?;
        Ok(Some(number))
    }

    fn refuse(&self, name: &str, allowed: impl Display) -> ApiError {
        ApiError::invalid(format!("{}{name} must be {allowed}.", self.prefix))
    }
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
