//! RunPod: the health of a load-balancing endpoint, and the worker of a queue endpoint.

use axum::extract::State;
use axum::http::StatusCode;

use super::App;
use crate::engine::Phase;

mod curl;
mod input;
mod job_api;
pub mod worker;

pub use job_api::Addresses;

/// `GET /ping`: 200 is ready, 204 still loading, anything else unhealthy.
pub async fn ping(State(app): State<App>) -> StatusCode {
    match app.engine.status().phase {
        Phase::Ready(_) => StatusCode::OK,
        Phase::Loading => StatusCode::NO_CONTENT,
        Phase::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
