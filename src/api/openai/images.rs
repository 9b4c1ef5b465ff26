//! `POST /v1/images/generations`, `/edits` and `/variations`.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::form::{self, Form, Output};
use super::{Error, now_s, store, stream};
use crate::api::fault::Fault;
use crate::api::parameters::Submitted;
use crate::api::{App, caller, pictures};
use crate::engine::Picture;
use crate::queue::Caller;

/// What a request is, in the names of its events.
#[derive(Clone, Copy)]
pub(super) enum Task {
    Generation,
    Edit,
}

impl Task {
    pub(super) fn event(self, what: &str) -> String {
        match self {
            Self::Generation => format!("image_generation.{what}"),
            Self::Edit => format!("image_edit.{what}"),
        }
    }
}

/// `POST /v1/images/generations`
pub async fn generations(State(app): State<App>, request: Request) -> Result<Response, Error> {
    let (headers, caller) = context(&request);
    let form = Form::generation(&app, &form::json(request).await?)?;
    answer(&app, form, Task::Generation, &headers, &caller).await
}

/// `POST /v1/images/edits`
pub async fn edits(State(app): State<App>, request: Request) -> Result<Response, Error> {
    let (headers, caller) = context(&request);
    let (texts, files) = form::multipart(request).await?;
    answer(&app, Form::edit(&app, &texts, files).await?, Task::Edit, &headers, &caller).await
}

/// `POST /v1/images/variations`
pub async fn variations(State(app): State<App>, request: Request) -> Result<Response, Error> {
    let (headers, caller) = context(&request);
    let (texts, files) = form::multipart(request).await?;
    answer(&app, Form::variation(&app, &texts, files).await?, Task::Edit, &headers, &caller).await
}

fn context(request: &Request) -> (HeaderMap, Caller) {
    (request.headers().clone(), caller(request.extensions()))
}

async fn answer(
    app: &App,
    form: Form,
    task: Task,
    headers: &HeaderMap,
    caller: &Caller,
) -> Result<Response, Error> {
    let Form { parameters, output, stream } = form;
    let job = parameters.submit(app, caller).await?;
    match stream {
        Some(partial_images) => Ok(stream::events(job, task, output, partial_images)),
        None => Ok(Json(reply(app, job, &output, headers).await?).into_response()),
    }
}

async fn reply(app: &App, job: Submitted, output: &Output, headers: &HeaderMap) -> Result<Value, Fault> {
    let made = job.ticket.await?;
    let seeds: Vec<u64> = made.iter().map(|picture| picture.recipe.seed).collect();
    let size = made.first().map(size);
    let files = pictures::encode_at(made, output.format, output.jpeg_quality).await?;
    let data: Vec<_> = files
        .into_iter()
        .map(|file| match output.as_url {
            true => json!({"url": store::url(headers, &app.images.keep(file, output.format.media_type()))}),
            false => json!({"b64_json": BASE64.encode(file)}),
        })
        .collect();
    let mut reply = json!({
        "created": now_s(),
        "data": data,
        "size": size,
        "quality": output.quality,
        "output_format": output.format_name(),
        "background": "opaque",
        // Beyond OpenAI's own.
        "model": job.model.info.name,
        "seeds": seeds,
    });
    if let Some(user) = &output.user {
        reply["safety_identifier"] = json!(user);
    }
    if let Some(asked) = &job.model.fallback_from {
        reply["fallback_from"] = json!(asked);
    }
    Ok(reply)
}

pub(super) fn size(picture: &Picture) -> String {
    format!("{}x{}", picture.image.width(), picture.image.height())
}
