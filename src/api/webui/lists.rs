//! What there is: models, samplers, LoRAs and the like, and how much memory.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::Error;
use super::hires::UPSCALERS;
use crate::api::App;
use crate::api::fault::{Fault, Kind};
use crate::api::loras::Embedding;
use aquatint_models::sampler::SamplerSettings;

/// `GET /sdapi/v1/sd-models`
pub async fn sd_models(State(app): State<App>) -> Result<Json<Value>, Error> {
    app.engine.info(None).await.map_err(Fault::from)?;
    // Where files lie on this server is none of the clients' business, and they are not hashed.
    let model = |name: &str| {
        json!({
            "title": name, "model_name": name, "hash": null, "sha256": null, "filename": name, "config": null,
        })
    };
    Ok(Json(app.engine.models().iter().map(|status| model(&status.name)).collect()))
}

/// `GET /sdapi/v1/samplers`
pub async fn samplers() -> Json<Value> {
    let sampler = |name: &str| json!({"name": name, "aliases": [], "options": {}});
    Json(SamplerSettings::names().map(sampler).collect())
}

/// `GET /sdapi/v1/schedulers`
pub async fn schedulers() -> Json<Value> {
    let scheduler = |label: &str| {
        json!({
            "name": label.to_lowercase().replace(' ', "_"), "label": label, "aliases": null,
            "default_rho": if label == "Karras" { 7.0 } else { -1.0 }, "need_inner_model": false,
        })
    };
    Json(SamplerSettings::schedule_types().map(scheduler).collect())
}

/// `GET /sdapi/v1/loras`
pub async fn loras(State(app): State<App>) -> Json<Value> {
    let lora = |name: String| json!({"name": name, "alias": name, "path": format!("{name}.safetensors"), "metadata": {}});
    Json(app.loras.names().into_iter().map(lora).collect())
}

/// `GET /sdapi/v1/upscalers`
pub async fn upscalers() -> Json<Value> {
    let upscaler = |name: &str| json!({"name": name, "model_name": null, "model_path": null, "model_url": null, "scale": 4});
    Json(UPSCALERS.iter().filter(|u| !u.is_latent()).map(|u| upscaler(u.name)).collect())
}

/// `GET /sdapi/v1/latent-upscale-modes`
pub async fn latent_upscale_modes() -> Json<Value> {
    Json(UPSCALERS.iter().filter(|u| u.is_latent()).map(|u| json!({"name": u.name})).collect())
}

/// `GET /sdapi/v1/sd-vae` and others of which there are none here.
pub async fn none() -> Json<Value> {
    Json(json!([]))
}

/// `GET /sdapi/v1/scripts`
pub async fn scripts() -> Json<Value> {
    Json(json!({"txt2img": [], "img2img": []}))
}

/// `GET /sdapi/v1/embeddings`
pub async fn embeddings(State(app): State<App>) -> Json<Value> {
    let embedding = |(token, embedding): (&str, &Embedding)| {
        let shown = json!({
            "step": null, "sd_checkpoint": null, "sd_checkpoint_name": null,
            "shape": embedding.channels, "vectors": embedding.vectors,
        });
        (token.to_owned(), shown)
    };
    let loaded: Map<String, Value> = app.loras.embeddings().map(embedding).collect();
    Json(json!({"loaded": loaded, "skipped": {}}))
}

/// `GET /sdapi/v1/cmd-flags`
pub async fn cmd_flags() -> Json<Value> {
    Json(json!({"api": true, "nowebui": false, "listen": true, "skip_install": true}))
}

/// `GET /sdapi/v1/memory`: the machine's, in bytes, where the system tells.
pub async fn memory() -> Json<Value> {
    let ram = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let bytes = |name: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
        };
        let (total, free) = (bytes("MemTotal:")?, bytes("MemAvailable:")?);
        Some(json!({"free": free, "used": total.saturating_sub(free), "total": total}))
    });
    let unknown = || json!({"error": "the system does not tell"});
    let cuda: Map<String, Value> = Map::new();
    Json(json!({"ram": ram.unwrap_or_else(unknown), "cuda": cuda}))
}

/// `POST /sdapi/v1/refresh-checkpoints`: the models are those that the server was started with, and stay so.
pub async fn refresh_checkpoints() -> Json<Value> {
    Json(Value::Null)
}

/// `POST /sdapi/v1/unload-checkpoint`
pub async fn unload_checkpoint() -> Error {
    unsupported("unload-checkpoint", "a model that is not used is unloaded after --unload-seconds")
}

/// `POST /sdapi/v1/reload-checkpoint`
pub async fn reload_checkpoint() -> Error {
    unsupported("reload-checkpoint", "a model that a request names is loaded for it")
}

fn unsupported(what: &str, instead: &str) -> Error {
    Fault::new(Kind::Unsupported, format!("{what} is not supported: {instead}.")).into()
}
