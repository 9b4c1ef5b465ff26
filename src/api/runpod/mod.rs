//! RunPod: the health of a load-balancing endpoint, and the worker of a queue endpoint.

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;

use super::App;
use crate::engine::Phase;

mod http;
mod input;
mod job_api;
pub mod worker;

pub use job_api::Addresses;

/// What the worker hands over for a job: `{"output"}` or `{"error"}`. The worker itself adds the network.
///
/// # Errors
/// When this is no job.
pub async fn result_of(app: &App, job: &[u8]) -> Result<Value, String> {
    let job = job_api::job(job)?;
    Ok(worker::result(app, &job.input).await)
}

/// `GET /ping`: 200 is ready, 204 still loading or without its queue, anything else unhealthy.
pub async fn ping(State(app): State<App>) -> StatusCode {
    match app.engine.status().phase {
        Phase::Ready(_) if !app.queue.is_reachable() => StatusCode::NO_CONTENT,
        Phase::Ready(_) => StatusCode::OK,
        Phase::Loading => StatusCode::NO_CONTENT,
        Phase::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
