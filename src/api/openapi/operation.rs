//! One method of one path, described.

use serde_json::{Map, Value, json};

use crate::api::schema::Schema;

/// Statuses of the layers around every route.
const ANYWHERE: [(u16, &str); 4] = [
    (401, "The server has API keys, and none of them was given."),
    (
        429,
        "The caller asks more often, or has more jobs, than one caller may; `Retry-After` says when to try again.",
    ),
    (500, "Something went wrong that is not the caller's fault."),
    (503, "The server takes no jobs, or not this one now; `Retry-After` says when to try again."),
];

/// Whose shape errors have.
#[derive(Clone, Copy)]
pub(super) enum Errors {
    /// `{"detail": ...}`
    Detail,
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"error": text}`
    HuggingFace,
    /// `{"error", "detail", "body", "errors"}`
    WebUi,
}

impl Errors {
    fn name(self) -> &'static str {
        match self {
            Self::Detail => "Detail",
            Self::OpenAi => "OpenAiError",
            Self::HuggingFace => "HuggingFaceError",
            Self::WebUi => "WebUiError",
        }
    }

    fn schema(self) -> Value {
        let text = json!({"type": "string"});
        let (required, properties) = match self {
            Self::Detail => {
                let list = json!({"type": "array", "items": {"type": "object"}});
                (vec!["detail"], json!({"detail": {"anyOf": [text, list]}}))
            }
            Self::OpenAi => {
                let nullable = json!({"type": ["string", "null"]});
                let inner = json!({
                    "type": "object", "required": ["message", "type", "param", "code"],
                    "properties": {"message": text, "type": text, "param": nullable, "code": nullable},
                });
                (vec!["error"], json!({"error": inner}))
            }
            Self::HuggingFace => {
                (vec!["error"], json!({"error": text, "estimated_time": {"type": "number"}}))
            }
            Self::WebUi => (vec!["error", "detail"], json!({"error": text, "detail": text})),
        };
        json!({"type": "object", "description": "What went wrong.", "required": required, "properties": properties})
    }
}

/// One method of one path.
pub(super) struct Operation {
    path: String,
    method: &'static str,
    value: Value,
    errors: Errors,
    definitions: Vec<fn(&mut Map<String, Value>)>,
}

pub(super) fn get(path: &str, tag: &str, summary: &str) -> Operation {
    Operation::new("get", path, tag, summary)
}

pub(super) fn post(path: &str, tag: &str, summary: &str) -> Operation {
    Operation::new("post", path, tag, summary)
}

pub(super) fn delete(path: &str, tag: &str, summary: &str) -> Operation {
    Operation::new("delete", path, tag, summary)
}

impl Operation {
    fn new(method: &'static str, path: &str, tag: &str, summary: &str) -> Self {
        let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let id: Vec<_> = std::iter::once(method).chain(words).collect();
        let value = json!({
            "tags": [tag], "operationId": id.join("_"), "summary": summary, "parameters": [], "responses": {},
        });
        Self { path: path.to_owned(), method, value, errors: Errors::Detail, definitions: Vec::new() }
    }

    /// What the summary leaves out, in Markdown.
    pub(super) fn about(mut self, text: &str) -> Self {
        self.value["description"] = text.into();
        self
    }

    /// A part of the path.
    pub(super) fn part(self, name: &str, about: &str, schema: Value) -> Self {
        self.parameter(
            json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema}),
        )
    }

    /// A field of the query.
    pub(super) fn query(self, name: &str, about: &str, schema: Value) -> Self {
        self.parameter(json!({"name": name, "in": "query", "description": about, "schema": schema}))
    }

    /// A header of the request.
    pub(super) fn header(self, name: &str, about: &str, schema: Value) -> Self {
        self.parameter(json!({"name": name, "in": "header", "description": about, "schema": schema}))
    }

    fn parameter(mut self, parameter: Value) -> Self {
        if let Value::Array(all) = &mut self.value["parameters"] {
            all.push(parameter);
        }
        self
    }

    /// A JSON body.
    pub(super) fn takes<T: Schema>(mut self) -> Self {
        self.definitions.push(T::definitions);
        self.takes_as(&[("application/json", T::schema())])
    }

    /// A body of one of these media types.
    pub(super) fn takes_as(mut self, kinds: &[(&str, Value)]) -> Self {
        self.value["requestBody"] = json!({"required": true, "content": content(kinds)});
        self
    }

    /// A JSON reply.
    pub(super) fn gives<T: Schema>(mut self, status: u16, about: &str) -> Self {
        self.definitions.push(T::definitions);
        self.gives_as(status, about, &[("application/json", T::schema())])
    }

    /// A reply of one of these media types; of none, without a body.
    pub(super) fn gives_as(mut self, status: u16, about: &str, kinds: &[(&str, Value)]) -> Self {
        let mut response = json!({"description": about});
        if !kinds.is_empty() {
            response["content"] = content(kinds);
        }
        self.value["responses"][status.to_string()] = response;
        self
    }

    /// A reply that is an error.
    pub(super) fn refuses(self, status: u16, about: &str) -> Self {
        let schema = json!({"$ref": format!("#/components/schemas/{}", self.errors.name())});
        self.gives_as(status, about, &[("application/json", schema)])
    }

    /// The shape of the errors that follow.
    pub(super) fn errors(mut self, errors: Errors) -> Self {
        self.errors = errors;
        self
    }

    /// Puts the definitions of the types it names into the document.
    pub(super) fn define(&self, schemas: &mut Map<String, Value>) {
        for define in &self.definitions {
            define(schemas);
        }
        schemas.insert(self.errors.name().into(), self.errors.schema());
    }

    /// `(path, method, description)`
    pub(super) fn finish(mut self) -> (String, &'static str, Value) {
        for (status, about) in ANYWHERE {
            if self.value["responses"].get(status.to_string()).is_none() {
                self = self.refuses(status, about);
            }
        }
        (self.path, self.method, self.value)
    }
}

fn content(kinds: &[(&str, Value)]) -> Value {
    let entry = |(kind, schema): &(&str, Value)| ((*kind).to_owned(), json!({"schema": schema}));
    Value::Object(kinds.iter().map(entry).collect())
}

/// A picture's file.
pub(super) fn file() -> Value {
    json!({"type": "string", "format": "binary"})
}

/// A picture as base64.
pub(super) fn base64() -> Value {
    json!({"type": "string", "contentEncoding": "base64"})
}

/// An object; each property is `(name, schema, description)`. Other properties are passed over.
pub(super) fn object(required: &[&str], properties: &[(&str, Value, &str)]) -> Value {
    let describe = |(name, schema, about): &(&str, Value, &str)| {
        let mut schema = schema.clone();
        if let Value::Object(map) = &mut schema {
            map.insert("description".into(), (*about).into());
        }
        ((*name).to_owned(), schema)
    };
    let properties: Map<String, Value> = properties.iter().map(describe).collect();
    json!({"type": "object", "required": required, "properties": properties})
}
