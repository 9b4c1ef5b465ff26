//! Jobs of a queue that several processes share: each can submit, watch, fetch and cancel any of them by its id.

use serde::{Deserialize, Serialize};

use super::{Pending, Place, Refusal};
use crate::engine::recipe::Recipe;
use crate::engine::{EngineError, Work};

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobEvent {
    /// It was accepted.
    Queued {
        /// Pictures asked for.
        pictures: usize,
        /// Jobs that waited when it came.
        ahead: usize,
        /// When, in seconds since 1970.
        created: u64,
    },
    /// It goes on.
    Progress {
        /// The last step of the present picture is taken.
        decoding: bool,
        /// Pictures done.
        picture: usize,
        /// Steps taken for the present one.
        step: usize,
        /// Steps it takes.
        steps: usize,
    },
    /// The present latents as a small JPEG file in base64.
    Preview {
        /// Pictures done.
        picture: usize,
        /// The file.
        jpeg: String,
    },
    /// It is over; nothing comes after this.
    Ended(End),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// Its pictures can be fetched.
    Done,
    /// There are none.
    Failed(EngineError),
    /// Somebody did not want it any more.
    Cancelled,
}

/// A finished picture as a PNG file, its recipe in it.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureFile {
    /// The file.
    pub png: Vec<u8>,
    /// Everything that determined it.
    pub recipe: Recipe,
    /// Time from the prompt to the pixels.
    pub elapsed_ms: f64,
}

/// A job that was accepted, and its first event.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// The job's id.
    pub id: String,
    /// The event's number.
    pub number: u64,
    /// The event.
    pub event: JobEvent,
}

/// The jobs of a shared queue.
pub trait SharedJobs: Send + Sync {
    /// Puts work into the queue for whoever comes with its id. Once this has answered, the job ends only by being done, by
    /// failing or by [`cancel`](Self::cancel), whatever becomes of this process.
    fn submit(&self, place: Place, work: Work) -> Pending<'_, Result<Submitted, Refusal>>;

    /// The events of a job after the one of a number, oldest first; an unknown job has none.
    fn events(&self, id: &str, after: u64) -> Box<dyn JobEvents>;

    /// The pictures of a job that is done.
    fn pictures<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Vec<PictureFile>, EngineError>>;

    /// Ends a job, wherever it is. One that has ended stays as it is.
    fn cancel<'a>(&'a self, id: &'a str) -> Pending<'a, Result<(), EngineError>>;

    /// Forgets a job that has ended, and its pictures.
    fn forget<'a>(&'a self, id: &'a str) -> Pending<'a, Result<(), EngineError>>;
}

/// Reads a job's events in order. Each has a number, which rises, and by which every process knows it.
pub trait JobEvents: Send {
    /// The next event, if it has happened.
    ///
    /// # Errors
    /// When the queue does not answer; the next call tries again.
    fn next_now(&mut self) -> Pending<'_, Result<Option<(u64, JobEvent)>, EngineError>>;

    /// Waits for the next event, through every loss of the connection.
    fn next(&mut self) -> Pending<'_, (u64, JobEvent)>;
}
