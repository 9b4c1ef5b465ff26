//! `GET /sdapi/v1/progress` and `POST /sdapi/v1/interrupt`: of the caller's own jobs.

use axum::Json;
use axum::extract::State;
use axum::http::{Extensions, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::Error;
use super::info::timestamp;
use crate::api::fault::internal;
use crate::api::{App, caller};
use crate::engine::{JobPhase, Progress};
use crate::picture::{self, Format, JPEG_QUALITY};

/// `GET /sdapi/v1/progress`
pub async fn progress(
    State(app): State<App>,
    extensions: Extensions,
    uri: Uri,
) -> Result<Json<Value>, Error> {
    // Both spellings are in use.
    let skips_image = uri.query().unwrap_or_default().split('&').any(|pair| {
        ["skip_current_image=true", "skipCurrentImage=true"].iter().any(|p| pair.eq_ignore_ascii_case(p))
    });
    let caller = caller(&extensions);
    let Some(job) = app.webui.jobs.of(&caller) else { return Ok(Json(idle())) };
    let now = job.progress(!skips_image).unwrap_or(Progress::waiting(1, 0));
    let done = job.share_done();
    let elapsed_s = job.since.elapsed().as_secs_f64();
    let image = match now.preview.clone().filter(|_| !skips_image) {
        Some(preview) => {
            let encode = move || picture::encode_plain(&preview, Format::Png, JPEG_QUALITY);
            let file = tokio::task::spawn_blocking(encode).await.map_err(|error| internal(&error))?;
            Some(BASE64.encode(file.map_err(|error| internal(&error))?))
        }
        None => None,
    };
    let text = match now.phase {
        JobPhase::Waiting { ahead } => Some(format!("Waiting: {ahead} jobs are before this one")),
        _ => None,
    };
    Ok(Json(json!({
        // Clients take 0 for idle.
        "progress": done.max(0.001),
        "eta_relative": if done > 0.0 { elapsed_s / done - elapsed_s } else { 0.0 },
        "state": {
            "skipped": false,
            "interrupted": false,
            "stopping_generation": false,
            "job": job.name,
            "job_count": job.batches.max(app.webui.jobs.count(&caller)),
            "job_timestamp": timestamp(job.since.elapsed()),
            "job_no": now.picture,
            "sampling_step": now.step,
            "sampling_steps": now.steps,
        },
        "current_image": image,
        "textinfo": text,
    })))
}

fn idle() -> Value {
    json!({
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": {
            "skipped": false,
            "interrupted": false,
            "stopping_generation": false,
            "job": "",
            "job_count": 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        },
        "current_image": null,
        "textinfo": null,
    })
}

/// `POST /sdapi/v1/interrupt`
pub async fn interrupt(State(app): State<App>, extensions: Extensions) -> Json<Value> {
    if let Some(job) = app.webui.jobs.of(&caller(&extensions)) {
        job.interrupted.notify_one();
    }
    Json(json!({}))
}
