//! `GET /ready` and `GET /info`: for load balancers, and for whoever wants to know what runs here.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use crate::engine::Phase;
use crate::picture::MAX_SIDE_PX;
use crate::settings::{MAX_GUIDANCE_SCALE, MAX_IMAGES, MAX_STEPS};

/// When to look again.
const RETRY_AFTER_S: u64 = 2;

/// Why no job is taken, in one word; `None` while jobs are taken.
pub fn unready(app: &App) -> Option<&'static str> {
    match app.engine.status().phase {
        _ if app.operations.stopping.is_told() => Some("stopping"),
        Phase::Loading => Some("loading"),
        Phase::Failed(_) => Some("failed"),
        Phase::Ready(_) if !app.queue.is_reachable() => Some("disconnected"),
        Phase::Ready(_) => None,
    }
}

/// 200 while jobs are taken, 503 before and after.
pub async fn ready(State(app): State<App>) -> Response {
    let state = unready(&app);
    let mut response = Json(json!({ "status": state.unwrap_or("ready") })).into_response();
    if state.is_some() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    }
    response
}

/// The program, its models and its limits.
pub async fn info(State(app): State<App>) -> Json<Value> {
    let models: Vec<_> = app
        .engine
        .models()
        .into_iter()
        .map(|model| {
            let info = model.info.as_deref();
            json!({
                "name": model.name,
                "loaded": model.loaded,
                "family": info.map(|i| i.family.name()),
                "device": info.map(|i| &i.device),
                "native_size_px": info.map(|i| i.native_size_px),
                "steps": info.map(|i| i.num_inference_steps),
                "guidance_scale": info.map(|i| i.guidance_scale),
                "scheduler": info.map(|i| &i.scheduler),
                "fallback_for": info.map(|i| &i.fallback_for),
                "memory": info.and_then(|i| i.memory).map(|plan| plan.to_string()),
                "preset": info.and_then(|i| i.preset).map(|preset| preset.name),
            })
        })
        .collect();
    Json(json!({
        "name": "aquatint",
        "version": env!("CARGO_PKG_VERSION"),
        "state": unready(&app).unwrap_or("ready"),
        "uptime_seconds": app.operations.started.elapsed().as_secs(),
        "models": models,
        "loras": app.loras.names(),
        "embeddings": app.loras.embeddings().map(|(token, _)| token).collect::<Vec<_>>(),
        "queue": app.queue.depth(),
        "limits": {
            "side_px": MAX_SIDE_PX,
            "steps": MAX_STEPS,
            "guidance_scale": MAX_GUIDANCE_SCALE,
            "images": MAX_IMAGES,
        },
        "refine_mode": app.defaults.refine_mode,
    }))
}
