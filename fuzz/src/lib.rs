//! What is fuzzed: every reader of what a client or a file says. A target fails by panicking, by a 500 from the server
//! (panics in handlers and in the engine end as such), or by never ending.
//!
//! `scripts/fuzz.sh` runs the targets under libFuzzer; `tests/it/fuzz.rs` runs the same functions for a moment each in
//! every test run.

use std::collections::BTreeMap;

use aquatint::picture;
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::view::Views;
use aquatint_models::checkpoint::{CheckpointFile, Component};
use aquatint_models::lora::{LoraFile, Target};
use aquatint_models::text::prompt;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use candle_core::Device;

mod seeds;
mod server;

pub use seeds::seeds;

/// A target: it reads these bytes.
pub type Run = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Run); 8] = [
    ("json", json),
    ("multipart", multipart),
    ("picture", picture),
    ("png_text", png_text),
    ("safetensors", safetensors),
    ("lora", lora),
    ("runpod", runpod),
    ("prompt", prompt),
];

/// Routes that take JSON.
pub const ROUTES: [&str; 9] = [
    "/generate",
    "/refine",
    "/jobs",
    "/v1/images/generations",
    "/models/fake",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
    "/sdapi/v1/options",
    "/sdapi/v1/png-info",
];

/// The first byte chooses the route, the others are the body.
pub fn json(data: &[u8]) {
    if let Some((route, body)) = data.split_first() {
        server::post(ROUTES[usize::from(*route) % ROUTES.len()], "application/json", body);
    }
}

/// The first byte chooses the route, the others are a body of parts; the boundary is `x`.
pub fn multipart(data: &[u8]) {
    if let Some((route, body)) = data.split_first() {
        let routes = ["/v1/images/edits", "/v1/images/variations"];
        server::post(routes[usize::from(*route) % routes.len()], "multipart/form-data; boundary=x", body);
    }
}

/// A picture's file, as bytes and in base64, and the bytes as if they were base64.
pub fn picture(data: &[u8]) {
    if let Ok(image) = picture::decode(data) {
        assert!(image.width() <= picture::MAX_SIDE_PX && image.height() <= picture::MAX_SIDE_PX);
        picture::on_white(&image);
    }
    for text in [BASE64.encode(data), String::from_utf8_lossy(data).into_owned()] {
        let body = serde_json::json!({"prompt": "a", "image": text, "steps": 1}).to_string();
        server::post("/jobs", "application/json", body.as_bytes());
    }
}

/// A PNG's texts, and the parameters in them.
pub fn png_text(data: &[u8]) {
    let _texts = picture::texts(data).is_ok();
    let body = serde_json::json!({"image": BASE64.encode(data)}).to_string();
    server::post("/sdapi/v1/png-info", "application/json", body.as_bytes());
}

/// A file of weights: its header, every tensor, and what its names stand for in each component.
pub fn safetensors(data: &[u8]) {
    let open = || SafetensorsFile::from_bytes("fuzzed", data.to_vec());
    let Ok(file) = open() else { return };
    for name in file.entries().keys() {
        let _tensor = file.tensor(name, &Device::Cpu).is_ok();
    }
    for component in Component::ALL {
        let Ok(file) = open() else { return };
        let Ok(views) = Views::of_component(component, vec![CheckpointFile::Safetensors(file)]) else {
            continue;
        };
        for name in views.names() {
            let _stored = views.read(name).is_ok();
            let _rows = views.read_rows(name, 0..1).is_ok();
        }
    }
}

/// A LoRA's file: its keys, and where they belong.
pub fn lora(data: &[u8]) {
    let Ok(file) = SafetensorsFile::from_bytes("fuzzed", data.to_vec()).and_then(LoraFile::new) else {
        return;
    };
    let _tokens = file.textual_inversions().is_ok();
    let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let text = "text_model.encoder.layers.0.self_attn.q_proj";
    let layers = |name: &str| BTreeMap::from([(name.to_owned(), vec![8, 8])]);
    let components = [(Target::Unet, layers(attention)), (Target::TextEncoder, layers(text))];
    let _report = file.check(&components).is_ok();
}

/// What RunPod's job API hands out.
pub fn runpod(data: &[u8]) {
    server::runpod(data);
}

/// A prompt with emphasis. Its words are its own, in order.
pub fn prompt(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parts = prompt::parse(text);
    assert!(!parts.is_empty());
    for part in parts {
        if let prompt::Part::Text(words, weight) = part {
            assert!(!weight.is_nan() && words.len() <= text.len(), "{words:?}: {weight}");
        }
    }
}
