//! Replies as server-sent events: previews while a picture is made, then the picture.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::unfold;
use image::RgbImage;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::form::Output;
use super::images::{Task, size};
use super::{Error, now_s};
use crate::api::fault::{Fault, internal};
use crate::api::parameters::Submitted;
use crate::api::pictures;
use crate::engine::{Progress, Reply};
use crate::picture;
use crate::queue::Ticket;

/// The events of a job. A client that leaves drops the stream, and the job with it.
pub(super) fn events(job: Submitted, task: Task, output: Output, partial_images: u64) -> Response {
    // Nobody watches where no previews are wanted: they cost time.
    let progress = (partial_images > 0).then(|| job.ticket.progress());
    let partials = Partials { wanted: partial_images, shown: (0, 0), sent: 0 };
    let state = State { ticket: Some(job.ticket), progress, partials, task, output, ready: VecDeque::new() };
    let events = unfold(state, |mut state: State| async move {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(Box::pin(events)).keep_alive(KeepAlive::default()).into_response()
}

struct State {
    /// Until it is answered.
    ticket: Option<Ticket>,
    progress: Option<watch::Receiver<Progress>>,
    partials: Partials,
    task: Task,
    output: Output,
    ready: VecDeque<Event>,
}

impl State {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let mut ticket = self.ticket.take()?;
            let preview = tokio::select! {
                biased;
                reply = &mut ticket => {
                    self.finish(reply).await;
                    continue;
                }
                preview = self.partials.next(&mut self.progress) => preview,
            };
            self.ticket = Some(ticket);
            let index = self.partials.sent;
            self.partials.sent += 1;
            match self.partial(preview, index).await {
                Ok(event) => self.ready.push_back(event),
                Err(fault) => tracing::warn!(fault.message, "a partial image is left out"),
            }
        }
    }

    async fn partial(&self, preview: Arc<RgbImage>, index: u64) -> Result<Event, Fault> {
        let size = format!("{}x{}", preview.width(), preview.height());
        let (format, quality) = (self.output.format, self.output.jpeg_quality);
        let encode = move || picture::encode_plain(&preview, format, quality);
        let file = tokio::task::spawn_blocking(encode).await.map_err(|error| internal(&error))?;
        let file = file.map_err(|error| internal(&error))?;
        let mut body = self.body("partial_image", &file, &size);
        body["partial_image_index"] = json!(index);
        Ok(event(&body))
    }

    async fn finish(&mut self, reply: Reply) {
        match self.completed(reply).await {
            Ok(events) => self.ready.extend(events),
            Err(fault) => {
                let mut body = Error::from(fault).body();
                body["type"] = json!("error");
                self.ready.push_back(event(&body));
            }
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }

    async fn completed(&self, reply: Reply) -> Result<Vec<Event>, Fault> {
        let made = reply?;
        let about: Vec<_> = made.iter().map(|picture| (size(picture), picture.recipe.seed)).collect();
        let files = pictures::encode_at(made, self.output.format, self.output.jpeg_quality).await?;
        let events = files.iter().zip(about).map(|(file, (size, seed))| {
            let mut body = self.body("completed", file, &size);
            body["seed"] = json!(seed);
            event(&body)
        });
        Ok(events.collect())
    }

    fn body(&self, what: &str, file: &[u8], size: &str) -> Value {
        let mut body = json!({
            "type": self.task.event(what),
            "b64_json": BASE64.encode(file),
            "created_at": now_s(),
            "size": size,
            "quality": self.output.quality,
            "background": self.output.background,
            "output_format": self.output.format_name(),
        });
        if let Some(user) = &self.output.user {
            body["safety_identifier"] = json!(user);
        }
        body
    }
}

/// Named by its type, as OpenAI's are.
fn event(body: &Value) -> Event {
    let name = body.get("type").and_then(Value::as_str).unwrap_or("error");
    Event::default().event(name).data(body.to_string())
}

/// Which previews are sent: so many for each picture, spread over its steps.
struct Partials {
    wanted: u64,
    /// The picture that was last shown, and how many previews of it.
    shown: (usize, u64),
    sent: u64,
}

impl Partials {
    /// The next preview that is due; never, where none is wanted.
    async fn next(&mut self, progress: &mut Option<watch::Receiver<Progress>>) -> Arc<RgbImage> {
        if let Some(progress) = progress {
            while progress.changed().await.is_ok() {
                let now = progress.borrow_and_update().clone();
                if let Some(preview) = self.due(now) {
                    return preview;
                }
            }
        }
        std::future::pending().await
    }

    fn due(&mut self, now: Progress) -> Option<Arc<RgbImage>> {
        if now.picture != self.shown.0 {
            self.shown = (now.picture, 0);
        }
        let (step, steps, shown) = (now.step as u64, now.steps as u64, self.shown.1);
        let is_due = shown < self.wanted && step > 0 && step * (self.wanted + 1) >= (shown + 1) * steps;
        let preview = now.preview.filter(|_| is_due && step < steps)?;
        self.shown.1 += 1;
        Some(preview)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_spread_over_the_steps() {
        let mut partials = Partials { wanted: 3, shown: (0, 0), sent: 0 };
        let mut sent = Vec::new();
        for picture in 0..2 {
            for step in 0..=8 {
                let preview = Some(Arc::new(RgbImage::new(1, 1)));
                let now = Progress { picture, step, steps: 8, preview, ..Progress::waiting(2, 0) };
                sent.extend(partials.due(now).map(|_| (picture, step)));
            }
        }
        assert_eq!(sent, [(0, 2), (0, 4), (0, 6), (1, 2), (1, 4), (1, 6)]);
    }
}
