//! `GET /openapi.json`: every route, what it takes and every status it answers with, in OpenAPI 3.1.0.
//!
//! Bodies and replies that are declared with [`super::schema`] describe themselves; the ranges in the others are the
//! constants that their routes check.

use std::sync::LazyLock;

use axum::Json;
use serde_json::{Map, Value, json};

mod jobs;
mod native;
mod operation;
mod others;
mod webui;

use operation::Operation;

/// Made once.
static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The handler.
pub(super) async fn openapi() -> Json<&'static Value> {
    Json(&*DOCUMENT)
}

fn document() -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for operation in operations() {
        operation.define(&mut schemas);
        let (path, method, value) = operation.finish();
        if let Value::Object(methods) = paths.entry(path).or_insert_with(|| json!({})) {
            methods.insert(method.to_owned(), value);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Aquatint",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Image generation with Stable Diffusion behind the APIs that clients already know.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "jobs", "description": "Submit a job, watch it, come back for its pictures, cancel it."},
            {"name": "native", "description": "One request, one answer."},
            {"name": "openai", "description": "OpenAI Images."},
            {"name": "huggingface", "description": "Hugging Face Inference."},
            {"name": "webui", "description": "The Stable Diffusion web UI's API."},
            {"name": "operations", "description": "For whoever runs the server."},
            {"name": "page", "description": "What people look at."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "Where the server has API keys."},
                "basic": {"type": "http", "scheme": "basic", "description": "On the web UI's routes: the key as password."},
            },
        },
        // Without keys the server is open.
        "security": [{}, {"bearer": []}],
    })
}

fn operations() -> Vec<Operation> {
    let all = [jobs::operations(), native::operations(), others::operations(), webui::operations()];
    all.into_iter().flatten().collect()
}
