//! `GET /health` and `GET /benchmark`.

use axum::Json;
use axum::extract::State;
use axum::http::{Extensions, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::Wording;
use crate::api::fastapi::ApiError;
use crate::api::parameters::{Parameters, default_guidance_scale, default_scheduler, default_steps};
use crate::api::ready::unready;
use crate::api::{App, caller, sizes};
use crate::engine::{ModelInfo, Phase};

/// What the server is doing. Answers at once, also while the model loads or paints.
pub async fn health(State(app): State<App>) -> Response {
    let waits = app.operations.health_until_ready && unready(&app).is_some();
    let status = if waits { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health_of(&app))).into_response()
}

fn health_of(app: &App) -> Value {
    let status = app.engine.status();
    let (state, model) = match &status.phase {
        Phase::Loading => ("loading", None),
        Phase::Ready(model) => ("ready", Some(&**model)),
        Phase::Failed(_) => ("failed", None),
    };
    let running = status
        .running
        .map(|r| json!({"picture": r.picture, "pictures": r.pictures, "step": r.step, "steps": r.steps}));
    json!({
        "status": "healthy",
        "state": state,
        "loading": app.engine.loading().map(|l| {
            json!({
                "model": l.model,
                "downloaded_bytes": l.downloaded_bytes,
                "download_bytes": l.download_bytes,
                "read_bytes": l.read_bytes,
                "weight_bytes": l.weight_bytes,
            })
        }),
        // A text at all times: clients look for "cuda" in it.
        "device": model.map_or("loading", |m| &m.device),
        "model": model.map(|m| &m.name),
        "family": model.map(|m| m.family.name()),
        "fallback_for": model.map(|m| &m.fallback_for),
        "memory": model.and_then(|m| m.memory).map(|plan| plan.to_string()),
        "device_memory": app.engine.meter().memory.get().map(|m| {
            json!({"total_bytes": m.total, "free_bytes": m.free, "held_bytes": m.held, "used_bytes": m.used,
                "peak_bytes": m.peak})
        }),
        "random_weights": model.map(|m| m.random_weights),
        "optimizations": {
            "steps": model.map(|m| default_steps(app, app.preset).unwrap_or(m.num_inference_steps)),
            "guidance_scale": model.map(|m| default_guidance_scale(app, app.preset).unwrap_or(m.guidance_scale)),
            "scheduler": model.map(|m| default_scheduler(app, app.preset).unwrap_or_else(|| m.scheduler.clone())),
            "memory_optimizations": model.and_then(|m| m.memory).map_or(Vec::new(), |plan| plan.savings()),
        },
        "preset": app.preset.map(|preset| preset.name),
        "size_table": model.map(size_table),
        "refine_mode": app.defaults.refine_mode,
        "models": app.engine.models().into_iter().map(|m| m.name).collect::<Vec<_>>(),
        "loras": app.loras.names(),
        "queue": app.queue.depth(),
        "running": running,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The sizes as this model makes them.
fn size_table(model: &ModelInfo) -> Value {
    let table = |high| -> Map<String, Value> {
        let entry = |ratio| {
            let (width, height) = sizes::for_model(sizes::size(ratio, high)?, model);
            Some((ratio.to_owned(), json!([width, height])))
        };
        sizes::ratios().filter_map(entry).collect()
    };
    let note = if sizes::is_scaled(model) {
        format!("scaled to the {0}x{0} pixels that this model was trained on", model.native_size_px)
    } else {
        "as documented".to_owned()
    };
    json!({"note": note, "standard": table(false), "high": table(true)})
}

const BENCHMARK_PROMPT: &str = "a photograph of a lighthouse on a cliff at sunset";

const WORDING: Wording = Wording {
    out_of_memory: "GPU memory insufficient. Try reducing steps or image size.",
    failed: "Benchmark failed",
};

/// Makes one picture of the model's own size with the defaults and a fixed seed, and tells how long it took.
pub async fn benchmark(State(app): State<App>, extensions: Extensions) -> Result<Json<Value>, ApiError> {
    let parameters = Parameters { seed: Some(0), use_cache: false, ..Parameters::new(BENCHMARK_PROMPT) };
    let job = parameters.submit(&app, &caller(&extensions)).await.map_err(|fault| WORDING.of(fault))?;
    let device = job.model.info.device.clone();
    let made = WORDING.pictures(job).await?;
    let seconds = made.iter().map(|p| p.elapsed_ms).sum::<f64>() / 1e3;
    let recipe = made.first().map(|p| &p.recipe);
    Ok(Json(json!({
        "benchmark": "text-to-image",
        "prompt": BENCHMARK_PROMPT,
        "generation_time_seconds": (seconds * 1e3).round() / 1e3,
        "steps": recipe.map(|r| r.num_inference_steps),
        "device": device,
        "guidance_scale": recipe.map(|r| r.guidance_scale),
        "images_generated": made.len(),
        "performance_rating": rating(seconds),
    })))
}

fn rating(seconds: f64) -> &'static str {
    match seconds {
        s if s < 5.0 => "excellent",
        s if s < 15.0 => "good",
        s if s < 60.0 => "fair",
        _ => "slow",
    }
}
