//! Bodies and replies that describe themselves: one declaration makes the struct, its check or its JSON, and its part
//! of `/openapi.json`.

use serde_json::{Map, Value, json};

use super::fault::{Fault, shown};

/// A type with a JSON Schema.
pub(super) trait Schema {
    /// The schema, in place; named types refer to [`Schema::definitions`].
    fn schema() -> Value;

    /// Name and full schema of a named type and of those it refers to.
    fn definitions(_into: &mut Map<String, Value>) {}
}

/// A body that is read from a JSON object.
pub(super) trait Body: Schema + Sized {
    /// Checks every field.
    ///
    /// # Errors
    /// 422 that names the field, its value and what is allowed.
    fn read(map: &Map<String, Value>) -> Result<Self, Fault>;
}

/// The schema of a named type: `$fill` adds the properties to `$object`, and their definitions to `$into`.
macro_rules! described {
    ($name:ident, $about:expr, $end:ident, |$object:ident, $into:ident| $fill:block) => {
        impl $crate::api::schema::Schema for $name {
            fn schema() -> serde_json::Value {
                serde_json::json!({"$ref": concat!("#/components/schemas/", stringify!($name))})
            }

            fn definitions($into: &mut serde_json::Map<String, serde_json::Value>) {
                let mut $object = $crate::api::schema::Object::new($about);
                $fill
                $into.insert(stringify!($name).into(), $object.$end());
            }
        }
    };
}

/// Declares a body: each field with its rule. Unknown fields are refused by name.
macro_rules! body {
    ($(#[doc = $about:literal])+ pub(super) struct $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $rule:expr,)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub(in crate::api) struct $name { $($(#[doc = $doc])+ pub(in crate::api) $field: $type,)+ }

        $crate::api::schema::described!($name, concat!($($about, "\n"),+), closed, |object, into| {$(
            let rule = $rule;
            object.property(stringify!($field), concat!($($doc, "\n"),+), rule.schema, rule.required);
            (rule.definitions)(into);
        )+});

        impl $crate::api::schema::Body for $name {
            fn read(map: &serde_json::Map<String, serde_json::Value>) -> Result<Self, $crate::api::fault::Fault> {
                $crate::api::schema::refuse_unknown(map, &[$(stringify!($field)),+])?;
                Ok(Self { $($field: $rule.read(map, stringify!($field))?,)+ })
            }
        }
    };
}

/// Declares a reply.
macro_rules! reply {
    ($(#[doc = $about:literal])+ pub(super) struct $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $type:ty,)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, serde::Serialize)]
        pub(in crate::api) struct $name { $($(#[doc = $doc])+ pub(in crate::api) $field: $type,)+ }

        $crate::api::schema::described!($name, concat!($($about, "\n"),+), open, |object, into| {$(
            let schema = <$type as $crate::api::schema::Schema>::schema();
            object.property(stringify!($field), concat!($($doc, "\n"),+), schema, true);
            <$type as $crate::api::schema::Schema>::definitions(into);
        )+});
    };
}

pub(super) use {body, described, reply};

/// An object's schema as it grows.
pub(super) struct Object {
    about: String,
    properties: Map<String, Value>,
    required: Vec<Value>,
}

impl Object {
    /// Without properties yet; `about` is a doc comment.
    pub(super) fn new(about: &str) -> Self {
        Self { about: prose(about), properties: Map::new(), required: Vec::new() }
    }

    /// One more property; `about` is a doc comment.
    pub(super) fn property(&mut self, name: &str, about: &str, mut schema: Value, required: bool) {
        if let Value::Object(map) = &mut schema {
            map.insert("description".into(), prose(about).into());
        }
        self.properties.insert(name.into(), schema);
        if required {
            self.required.push(name.into());
        }
    }

    /// Other properties are refused.
    pub(super) fn closed(self) -> Value {
        let mut schema = self.open();
        schema["additionalProperties"] = false.into();
        schema
    }

    /// Other properties may be there.
    pub(super) fn open(self) -> Value {
        json!({
            "type": "object", "description": self.about, "properties": self.properties, "required": self.required,
        })
    }
}

/// The lines of a doc comment as one text.
fn prose(lines: &str) -> String {
    lines.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// What a field of a body may be.
pub(super) struct Rule<T> {
    /// As JSON Schema.
    pub(super) schema: Value,
    /// Whether it must be there.
    pub(super) required: bool,
    /// The definitions that the schema refers to.
    pub(super) definitions: fn(&mut Map<String, Value>),
    /// In words, for the error.
    allowed: String,
    #[allow(clippy::type_complexity, reason = "named once")]
    convert: Box<dyn Fn(Option<&Value>) -> Result<Option<T>, Option<Fault>>>,
}

impl<T: 'static> Rule<T> {
    fn new(
        schema: Value,
        allowed: impl Into<String>,
        convert: impl Fn(&Value) -> Option<T> + 'static,
    ) -> Self {
        let convert = move |value: Option<&Value>| match value {
            None | Some(Value::Null) => Ok(None),
            Some(value) => convert(value).map(Some).ok_or(None),
        };
        let (allowed, convert) = (allowed.into(), Box::new(convert));
        Self { schema, required: true, definitions: |_| {}, allowed, convert }
    }

    /// Only multiples of this number.
    pub(super) fn multiple_of(self, step: u64) -> Self
    where
        T: Into<u64> + Copy,
    {
        let Self { mut schema, required, definitions, allowed, convert } = self;
        schema["multipleOf"] = step.into();
        let allowed = format!("{allowed}, a multiple of {step}");
        let convert = Box::new(move |value: Option<&Value>| match convert(value)? {
            Some(number) if !Into::<u64>::into(number).is_multiple_of(step) => Err(None),
            number => Ok(number),
        });
        Self { schema, required, definitions, allowed, convert }
    }

    /// The field of a body.
    ///
    /// # Errors
    /// 422 that names the field, its value and what is allowed.
    pub(super) fn read(&self, map: &Map<String, Value>, name: &str) -> Result<T, Fault> {
        let value = map.get(name);
        match (self.convert)(value) {
            Ok(Some(read)) => Ok(read),
            Ok(None) => Err(Fault::invalid(name, format!("{name} is required: {}.", self.allowed))),
            Err(Some(inner)) => Err(inner),
            Err(None) => Err(Fault::must_be(name, &self.allowed, value.unwrap_or(&Value::Null))),
        }
    }
}

/// The field may be left out; null is as good as absent.
pub(super) fn optional<T: 'static>(rule: Rule<T>) -> Rule<Option<T>> {
    let Rule { mut schema, definitions, allowed, convert, .. } = rule;
    match schema.get_mut("type") {
        Some(kind) => *kind = json!([kind.take(), "null"]),
        None => schema = json!({"anyOf": [schema, {"type": "null"}]}),
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    }
    let convert = Box::new(move |value: Option<&Value>| convert(value).map(Some));
    Rule { schema, required: false, definitions, allowed, convert }
}

/// A whole number; `5.0` is one too, as JavaScript cannot tell it from `5`.
pub(super) fn whole(min: u64, max: u64) -> Rule<u64> {
    let schema = json!({"type": "integer", "minimum": min, "maximum": max});
    Rule::new(schema, format!("an integer from {min} to {max}"), move |value| {
        let from_float = || value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..2f64.powi(53)).contains(f));
        let number = value.as_u64().or_else(|| from_float().map(|f| f as u64));
        number.filter(|n| (min..=max).contains(n))
    })
}

/// A number.
pub(super) fn number(min: f64, max: f64) -> Rule<f64> {
    let schema = json!({"type": "number", "minimum": min, "maximum": max});
    Rule::new(schema, format!("a number from {min} to {max}"), move |value| {
        value.as_f64().filter(|n| (min..=max).contains(n))
    })
}

/// A text of at most so many characters.
pub(super) fn text(max: usize) -> Rule<String> {
    let schema = json!({"type": "string", "maxLength": max});
    Rule::new(schema, format!("a string of at most {max} characters"), move |value| {
        value.as_str().filter(|text| text.chars().count() <= max).map(str::to_owned)
    })
}

/// A text with something in it.
pub(super) fn words(max: usize) -> Rule<String> {
    let schema = json!({"type": "string", "minLength": 1, "maxLength": max, "pattern": r"\S"});
    Rule::new(schema, format!("a string of 1 to {max} characters that is not blank"), move |value| {
        let text = value.as_str().filter(|text| !text.trim().is_empty());
        text.filter(|text| text.chars().count() <= max).map(str::to_owned)
    })
}

/// A picture as base64, with or without a data URI before it; decoded later.
pub(super) fn picture() -> Rule<String> {
    let schema = json!({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"});
    Rule::new(schema, "a PNG, JPEG or WebP picture in base64", |value| value.as_str().map(str::to_owned))
}

/// One of a few texts.
pub(super) fn one_of(names: Vec<&'static str>) -> Rule<&'static str> {
    let allowed = format!("one of {}", names.join(", "));
    Rule::new(json!({"type": "string", "enum": names}), allowed, move |value| {
        names.iter().find(|name| value.as_str() == Some(**name)).copied()
    })
}

/// A list of at most so many bodies.
pub(super) fn list<T: Body + 'static>(max: usize) -> Rule<Vec<T>> {
    let schema = json!({"type": "array", "items": T::schema(), "maxItems": max});
    let convert = move |value: Option<&Value>| -> Result<Option<Vec<T>>, Option<Fault>> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
        let items = value.as_array().filter(|items| items.len() <= max).ok_or(None::<Fault>)?;
        let read = |item: &Value| T::read(item.as_object().ok_or(None::<Fault>)?).map_err(Some);
        items.iter().map(read).collect::<Result<Vec<T>, _>>().map(Some)
    };
    let (allowed, convert) = (format!("a list of at most {max} objects"), Box::new(convert));
    Rule { schema, required: true, definitions: T::definitions, allowed, convert }
}

/// A field that is not declared is a typing error, and must not be passed over.
pub(super) fn refuse_unknown(map: &Map<String, Value>, known: &[&str]) -> Result<(), Fault> {
    match map.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            let shown = shown(&Value::from(name.as_str()));
            Err(Fault::invalid(
                name.as_str(),
                format!("Unknown field {shown}. Known are: {}.", known.join(", ")),
            ))
        }
        None => Ok(()),
    }
}

macro_rules! plain {
    ($($type:ty => $schema:tt,)+) => {
        $(impl Schema for $type { fn schema() -> Value { json!($schema) } })+
    };
}

plain! {
    String => {"type": "string"},
    &'static str => {"type": "string"},
    bool => {"type": "boolean"},
    usize => {"type": "integer", "minimum": 0},
    u32 => {"type": "integer", "minimum": 0},
    u64 => {"type": "integer", "minimum": 0},
    f64 => {"type": "number"},
    Value => {},
    Map<String, Value> => {"type": "object"},
}

impl<T: Schema> Schema for Option<T> {
    fn schema() -> Value {
        json!({"anyOf": [T::schema(), {"type": "null"}]})
    }

    fn definitions(into: &mut Map<String, Value>) {
        T::definitions(into);
    }
}

impl<T: Schema> Schema for Vec<T> {
    fn schema() -> Value {
        json!({"type": "array", "items": T::schema()})
    }

    fn definitions(into: &mut Map<String, Value>) {
        T::definitions(into);
    }
}
