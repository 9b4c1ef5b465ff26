//! A job, where it comes from, and the loop that makes one picture.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use image::RgbImage;
use tokio::sync::oneshot;

use super::progress::Observer;
use super::recipe::Recipe;
use super::{Backend, Denoising, EngineError, GenerationRequest, LoraChoice};

/// What a caller wants.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// The pictures, made in this order.
    pub requests: Vec<GenerationRequest>,
    /// Pictures to caption first. Where there are any, each prompt becomes
    /// `Based on: {captions}. Incorporate: {prompt}`.
    pub based_on: Vec<RgbImage>,
    /// LoRAs for all of them, beyond those the server was started with.
    pub loras: Vec<LoraChoice>,
    /// The model by its name in the registry; `None` is the default one.
    pub model: Option<String>,
    /// The caller chose the seeds: the same work may be answered with pictures made before.
    pub seed_given: bool,
}

/// What a job gives.
pub type Reply = Result<Vec<Picture>, EngineError>;

/// Work on its way through the queue.
pub struct Job {
    /// What is wanted.
    pub work: Work,
    /// Where the pictures go. When its other end is gone, so is the caller, and the job is dropped.
    pub reply: oneshot::Sender<Reply>,
    /// Where it is told how far the job is.
    pub progress: Observer,
    /// When it was submitted.
    pub submitted: Instant,
    /// The request it came with: what the log says of the job is said under its id.
    pub span: tracing::Span,
    /// The place in the queue; dropped with the job, whatever becomes of it.
    pub place: Box<dyn Seat>,
}

/// A job's place in a queue; dropping it frees the place.
pub trait Seat: Send + Sync {
    /// The job no longer waits.
    fn begin(&self);
}

/// What became of waiting for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// One waits.
    Job,
    /// None came in time.
    Nothing,
    /// There will be no more.
    Closed,
}

/// Points at one of the waiting jobs, or at none.
pub type Choose<'a> = dyn FnMut(&mut dyn Iterator<Item = &Job>) -> Option<usize> + 'a;

/// Where the engine gets its jobs.
pub trait JobSource: Send + Sync {
    /// Shows the waiting jobs, in the order in which they came, and hands out the one that `choose` points at.
    fn take(&self, choose: &mut Choose<'_>) -> Option<Job>;

    /// Waits until there is a waiting job, for this long at most.
    fn wait(&self, limit: Option<Duration>) -> Waited;
}

/// The prompt of a picture that is based on others.
pub(super) fn captioned_prompt(captions: &str, prompt: &str) -> String {
    format!("Based on: {captions}. Incorporate: {prompt}")
}

/// A picture and how to make it again.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The pixels.
    pub image: RgbImage,
    /// Everything that determined them.
    pub recipe: Recipe,
    /// Time from the prompt to the pixels.
    pub elapsed_ms: f64,
}

/// Makes one picture. `on_step` hears `(steps taken, steps in all)` before every step and before the decoding, and
/// can end it there. `loras` are those merged into the backend, for the recipe.
pub fn make<B: Backend>(
    backend: &B,
    request: &GenerationRequest,
    loras: &[LoraChoice],
    on_step: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Picture, EngineError> {
    let started = Instant::now();
    let mut denoising = backend.start(request)?;
    loop {
        let (position, steps) = (denoising.position(), denoising.steps());
        if on_step(position, steps).is_break() {
            return Err(EngineError::Cancelled);
        }
        if position >= steps {
            break;
        }
        backend.step(&mut [&mut denoising])?;
    }
    let image = backend.decode(&denoising, false)?;
    let recipe = Recipe::new(request, (image.width(), image.height()), &backend.info(), loras);
    Ok(Picture { image, recipe, elapsed_ms: started.elapsed().as_secs_f64() * 1e3 })
}
