//! What happened to a job, in order: what its event stream says, and says again to whoever lost the connection.

use std::sync::Arc;

use axum::body::Bytes;
use serde_json::{Value, json};

use crate::api::fault::Fault;
use crate::api::schema::reply;
use crate::engine::recipe::Recipe;
use crate::engine::{JobPhase, Progress};
use crate::queue::shared::JobEvent;

reply! {
    /// How far a job is.
    pub(super) struct JobStatus {
        /// Its id, by which whoever holds it may watch, fetch and cancel the job.
        id: String,
        /// `waiting`, `running`, `decoding`, `done`, `failed` or `cancelled`.
        state: &'static str,
        /// Jobs that came before it and wait as well.
        ahead: usize,
        /// Pictures done.
        picture: usize,
        /// Pictures in all.
        pictures: usize,
        /// Steps taken for the present picture.
        step: usize,
        /// Steps it takes; 0 before it has begun.
        steps: usize,
        /// When it was submitted, in seconds since 1970.
        created: u64,
        /// Where the finished pictures are.
        images: Vec<String>,
        /// Their seeds.
        seeds: Vec<u64>,
        /// Why there are none.
        error: Option<String>,
    }
}

/// A finished picture.
#[derive(Clone)]
pub(super) struct Finished {
    pub(super) png: Bytes,
    pub(super) recipe: Recipe,
    pub(super) elapsed_ms: f64,
}

/// How a job ended.
#[derive(Clone)]
pub(super) enum Outcome {
    Done(Arc<Vec<Finished>>),
    Failed(Fault),
    Cancelled,
}

/// One event of the stream.
#[derive(Clone)]
pub(super) struct Event {
    /// Rises from event to event; the first is at least 1.
    pub(super) id: u64,
    pub(super) name: &'static str,
    /// One line of JSON.
    pub(super) data: Arc<str>,
}

/// A job's events. Of the previews only the last is kept: they are large, and old ones are of no use.
pub(super) struct Log {
    pub(super) status: JobStatus,
    pub(super) outcome: Option<Outcome>,
    events: Vec<Event>,
    last_id: u64,
    broken_off: bool,
}

const PREVIEW: &str = "preview";

/// A JPEG file in base64 as a data URI.
pub(super) fn jpeg_uri(base64: &str) -> String {
    format!("data:image/jpeg;base64,{base64}")
}

impl Log {
    /// A job that has just come.
    pub(super) fn new(id: String, pictures: usize, created: u64) -> Self {
        let mut log = Self::unknown(id);
        (log.status.pictures, log.status.created) = (pictures, created);
        log.add_status("progress");
        log
    }

    /// A job of which nothing is known yet.
    pub(super) fn unknown(id: String) -> Self {
        let status = JobStatus {
            id,
            state: "waiting",
            ahead: 0,
            picture: 0,
            pictures: 0,
            step: 0,
            steps: 0,
            created: 0,
            images: Vec::new(),
            seeds: Vec::new(),
            error: None,
        };
        Self { status, outcome: None, events: Vec::new(), last_id: 0, broken_off: false }
    }

    /// Notes what a shared queue says of the job, under the number by which every process knows it. Its end is noted by
    /// [`end`](Self::end), under the number that the next event has.
    pub(super) fn note(&mut self, number: u64, event: JobEvent) {
        self.next_is(number);
        match event {
            JobEvent::Queued { pictures, ahead, created } => {
                (self.status.pictures, self.status.created) = (pictures, created);
                // The worker's first word may come before it.
                if self.status.state == "waiting" {
                    self.status.ahead = ahead;
                    self.add_status("progress");
                }
            }
            JobEvent::Progress { decoding, picture, step, steps } => {
                let phase = if decoding { JobPhase::Decoding } else { JobPhase::Running };
                self.progress(&Progress { phase, picture, step, steps, ..Progress::waiting(0, 0) });
            }
            JobEvent::Preview { picture, jpeg } => self.preview(picture, &jpeg_uri(&jpeg)),
            JobEvent::Ended(_) => {}
        }
    }

    /// The number of the next event, which is not below those before it.
    pub(super) fn next_is(&mut self, number: u64) {
        self.last_id = self.last_id.max(number.saturating_sub(1));
    }

    /// Whether anything is known of the job.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.outcome.is_none()
    }

    /// The events after one, oldest first.
    pub(super) fn after(&self, id: u64) -> Vec<Event> {
        let first = self.events.partition_point(|event| event.id <= id);
        self.events.get(first..).unwrap_or_default().to_vec()
    }

    /// Whether there are events after one, or never will be.
    pub(super) fn goes_beyond(&self, id: u64) -> bool {
        self.events.last().is_some_and(|event| event.id > id) || self.outcome.is_some() || self.broken_off
    }

    /// Ends the streams of events without an end of the job: another process will go on from here.
    pub(super) fn break_off(&mut self) {
        self.broken_off = true;
    }

    /// Notes how far the job is.
    pub(super) fn progress(&mut self, progress: &Progress) {
        let status = &mut self.status;
        let before = (status.state, status.ahead, status.picture, status.step, status.steps);
        (status.state, status.ahead) = match progress.phase {
            JobPhase::Waiting { ahead } => ("waiting", ahead),
            JobPhase::Running => ("running", 0),
            JobPhase::Decoding => ("decoding", 0),
            // The outcome follows, and says how it ended.
            JobPhase::Done => return,
        };
        (status.picture, status.step, status.steps) = (progress.picture, progress.step, progress.steps);
        if before != (status.state, status.ahead, status.picture, status.step, status.steps) {
            self.add_status("progress");
        }
    }

    /// Notes a small picture of the present state, as a data URI.
    pub(super) fn preview(&mut self, picture: usize, uri: &str) {
        self.events.retain(|event| event.name != PREVIEW);
        self.add(PREVIEW, &json!({"picture": picture, "image": uri}));
    }

    /// Notes the end; nothing comes after it.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if self.outcome.is_some() {
            return;
        }
        self.events.retain(|event| event.name != PREVIEW);
        let status = &mut self.status;
        status.ahead = 0;
        status.state = match &outcome {
            Outcome::Done(pictures) => {
                status.picture = pictures.len();
                status.step = status.steps;
                status.images =
                    (0..pictures.len()).map(|i| format!("/jobs/{}/images/{i}", status.id)).collect();
                status.seeds = pictures.iter().map(|p| p.recipe.seed).collect();
                "done"
            }
            Outcome::Failed(fault) => {
                status.error = Some(fault.message.clone());
                "failed"
            }
            Outcome::Cancelled => "cancelled",
        };
        self.outcome = Some(outcome);
        self.add_status(self.status.state);
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        match &self.outcome {
            Some(Outcome::Done(pictures)) => pictures.iter().map(|p| p.png.len()).sum(),
            _ => 0,
        }
    }

    fn add_status(&mut self, name: &'static str) {
        let data = serde_json::to_value(&self.status).unwrap_or_default();
        self.add(name, &data);
    }

    fn add(&mut self, name: &'static str, data: &Value) {
        self.last_id += 1;
        self.events.push(Event { id: self.last_id, name, data: data.to_string().into() });
    }
}
