//! `/jobs`: submit and come back for the pictures, or watch them become.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use self::log::{Finished, JobStatus, Outcome};
use self::request::JobRequest;
use self::store::Job;
use super::body::MAX_PICTURES_BYTES;
use super::fastapi::{ApiError, dict_body};
use super::fault::{Fault, shown};
use super::schema::{Body as _, reply};
use super::{App, caller};

mod events;
pub(super) mod log;
pub(super) mod request;
mod store;

pub use store::Jobs;

/// `POST /jobs`
pub(super) async fn submit(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let caller = caller(request.extensions());
    let body = dict_body(request, MAX_PICTURES_BYTES).await?;
    let parameters = JobRequest::read(&body)?.parameters(&app).await?;
    let place = app.queue.admit(&caller, parameters.cost(&app)).map_err(Fault::from)?;
    let (_, work) = parameters.choose(&app).await?;
    let job = app.jobs.submit(&*app.queue, place, work).await?;
    let location = [(header::LOCATION, format!("/jobs/{}", job.id))];
    Ok((StatusCode::ACCEPTED, location, Json(status_of(&job))).into_response())
}

/// `GET /jobs/{id}`
pub(super) async fn status(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<JobStatus>, ApiError> {
    let job = find(&app, &id).await?;
    Ok(Json(status_of(&job)))
}

/// `DELETE /jobs/{id}`: ends the job, or forgets one that has ended.
pub(super) async fn cancel(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<JobStatus>, ApiError> {
    let job = find(&app, &id).await?;
    if job.log.borrow().outcome.is_some() {
        app.jobs.forget(&id).await?;
    } else {
        job.stop(Outcome::Cancelled);
        job.ended().await;
    }
    Ok(Json(status_of(&job)))
}

/// `GET /jobs/{id}/events`
pub(super) async fn events(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&app, &id).await?;
    let seen = match headers.get("last-event-id").map(|value| value.to_str()) {
        None | Some(Ok("")) => 0,
        Some(text) => text.ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            ApiError::invalid("Last-Event-ID must be the id of an event of this stream, a number.")
        })?,
    };
    let nothing_left = {
        let log = job.log.borrow();
        log.outcome.is_some() && log.after(seen).is_empty()
    };
    // Browsers come back for ever unless they are told that there is no more.
    if nothing_left {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(events::stream(job, seen))
}

/// A proxy may not hold a request any longer.
pub(super) const MAX_WAIT_S: u64 = 300;

reply! {
    /// A job's pictures.
    pub(super) struct JobResult {
        /// PNG files in base64.
        images: Vec<String>,
        /// Their seeds.
        seeds: Vec<u64>,
        /// Everything that determined each picture, as in its file.
        parameters: Vec<Value>,
        /// Milliseconds each took, from the prompt to the pixels.
        elapsed_ms: Vec<f64>,
    }
}

/// `GET /jobs/{id}/result`
pub(super) async fn result(
    State(app): State<App>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<JobResult>, ApiError> {
    let job = find(&app, &id).await?;
    let pictures = finished(&job, &uri).await?;
    (0..pictures.len()).for_each(|picture| job.fetched(picture));
    Ok(Json(JobResult {
        images: pictures.iter().map(|p| BASE64.encode(&p.png)).collect(),
        seeds: pictures.iter().map(|p| p.recipe.seed).collect(),
        parameters: pictures.iter().map(|p| serde_json::to_value(&p.recipe).unwrap_or_default()).collect(),
        elapsed_ms: pictures.iter().map(|p| p.elapsed_ms).collect(),
    }))
}

/// `GET /jobs/{id}/images/{index}`
pub(super) async fn image(
    State(app): State<App>,
    Path((id, index)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let job = find(&app, &id).await?;
    let pictures = finished(&job, &uri).await?;
    let found = index.parse::<usize>().ok().and_then(|index| Some((index, pictures.get(index)?)));
    let (index, picture) = found.ok_or_else(|| {
        let text = format!("This job has pictures 0 to {}.", pictures.len().saturating_sub(1));
        ApiError::new(StatusCode::NOT_FOUND, text)
    })?;
    job.fetched(index);
    let name = format!("inline; filename=\"aquatint-{}.png\"", picture.recipe.seed);
    let headers = [
        (header::CONTENT_TYPE, "image/png".to_owned()),
        (header::CONTENT_DISPOSITION, name),
        (header::CACHE_CONTROL, "private, immutable, max-age=900".to_owned()),
    ];
    Ok((headers, Body::from(picture.png.clone())).into_response())
}

/// The pictures of a job that is done, or becomes so while it is waited for.
async fn finished(job: &Job, uri: &Uri) -> Result<Arc<Vec<Finished>>, ApiError> {
    let _in_time = tokio::time::timeout(wait(uri)?, job.ended()).await;
    job.seen();
    let log = job.log.borrow();
    match &log.outcome {
        Some(Outcome::Done(pictures)) => Ok(pictures.clone()),
        Some(Outcome::Failed(fault)) => Err(fault.clone().into()),
        Some(Outcome::Cancelled) => Err(ApiError::new(StatusCode::GONE, "This job was cancelled.")),
        None => {
            let text = format!("This job is not done yet: it is {}.", log.status.state);
            Err(ApiError { retry_after_s: Some(1), ..ApiError::new(StatusCode::CONFLICT, text) })
        }
    }
}

/// `?wait=` in seconds.
fn wait(uri: &Uri) -> Result<Duration, ApiError> {
    let mut fields = uri.query().unwrap_or_default().split('&');
    let Some(text) = fields.find_map(|field| field.strip_prefix("wait=")) else { return Ok(Duration::ZERO) };
    let seconds = text.parse().ok().filter(|seconds| *seconds <= MAX_WAIT_S);
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let given = shown(&Value::from(text));
        ApiError::invalid(format!("wait must be an integer from 0 to {MAX_WAIT_S} (seconds), not {given}."))
    })
}

async fn find(app: &App, id: &str) -> Result<Arc<Job>, ApiError> {
    app.jobs.get(id).await?.ok_or_else(|| {
        let text =
            "There is no such job. Finished ones are kept for 15 minutes, and fewer when there are many.";
        ApiError::new(StatusCode::NOT_FOUND, text)
    })
}

fn status_of(job: &Job) -> JobStatus {
    job.seen();
    job.log.borrow().status.clone()
}
