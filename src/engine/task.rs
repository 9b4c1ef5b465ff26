//! A job at work, as a state machine: captions, then each picture from start over its steps to the decoding.

use std::time::{Duration, Instant};

use image::RgbImage;

use super::estimate::{end_units, picture_units, step_units};
use super::job::captioned_prompt;
use super::recipe::Recipe;
use super::{Denoising, Job, JobPhase, LoraChoice, ModelInfo, Picture};

/// Steps between two previews.
const PREVIEW_EVERY: usize = 3;

/// What a job needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Say what picture `.0` of those it is based on shows.
    Caption(usize),
    /// Begin picture `.0`.
    Start(usize),
    /// One step of its pictures.
    Step,
    /// Decode the `.0`th of the pictures in the making.
    Decode(usize),
    /// Nothing: all pictures are made.
    Finish,
}

/// A picture in the making.
pub(super) struct Making<D> {
    /// Which request of the job it is.
    pub(super) index: usize,
    pub(super) denoising: D,
    /// Time the device has spent on it.
    pub(super) spent: Duration,
}

impl<D: Denoising> Making<D> {
    pub(super) fn is_done(&self) -> bool {
        self.denoising.position() >= self.denoising.steps()
    }

    /// Whether it is time for a preview.
    pub(super) fn wants_preview(&self) -> bool {
        let (position, steps) = (self.denoising.position(), self.denoising.steps());
        position < steps && (steps <= 2 * PREVIEW_EVERY || position.is_multiple_of(PREVIEW_EVERY))
    }
}

/// A job at work.
pub(super) struct Task<D> {
    pub(super) id: u64,
    pub(super) job: Job,
    /// Its model's place in the registry.
    pub(super) model: usize,
    /// All LoRAs that are merged for it.
    pub(super) loras: Vec<LoraChoice>,
    pub(super) begun: Instant,
    pub(super) making: Vec<Making<D>>,
    captions: Vec<String>,
    started: usize,
    made: Vec<Option<Picture>>,
}

impl<D: Denoising> Task<D> {
    pub(super) fn new(id: u64, job: Job, model: usize, loras: Vec<LoraChoice>) -> Self {
        let made = job.work.requests.iter().map(|_| None).collect();
        let (captions, making) = (Vec::new(), Vec::new());
        Self { id, job, model, loras, begun: Instant::now(), making, captions, started: 0, made }
    }

    /// What it needs next, where so many pictures go into one step.
    pub(super) fn next(&self, max_batch: usize) -> Action {
        if self.captions.len() < self.job.work.based_on.len() {
            return Action::Caption(self.captions.len());
        }
        if let Some(done) = self.making.iter().position(Making::is_done) {
            return Action::Decode(done);
        }
        let fits = self.making.is_empty() || self.making.len() < max_batch;
        match self.started < self.job.work.requests.len() {
            true if fits => Action::Start(self.started),
            _ if self.making.is_empty() => Action::Finish,
            _ => Action::Step,
        }
    }

    /// Work left, in units.
    pub(super) fn remaining(&self, info: &ModelInfo) -> f64 {
        let requests = &self.job.work.requests;
        let unstarted = requests.iter().skip(self.started).map(|request| picture_units(request, info));
        let making = self.making.iter().filter_map(|making| {
            let request = requests.get(making.index)?;
            let steps = making.denoising.steps().saturating_sub(making.denoising.position());
            Some(steps as f64 * step_units(request, info) + end_units(request, info) / 2.0)
        });
        unstarted.sum::<f64>() + making.sum::<f64>()
    }

    /// Takes a caption; the last one of them changes the prompts.
    pub(super) fn captioned(&mut self, caption: String) {
        self.captions.push(caption);
        if self.captions.len() == self.job.work.based_on.len() {
            let captions = self.captions.join("; ");
            for request in &mut self.job.work.requests {
                request.prompt = captioned_prompt(&captions, &request.prompt);
            }
        }
    }

    /// Takes a picture that has been begun.
    pub(super) fn begun(&mut self, denoising: D, spent: Duration) {
        self.making.push(Making { index: self.started, denoising, spent });
        self.started += 1;
    }

    /// Takes the decoded picture of the `at`th in the making.
    pub(super) fn decoded(&mut self, at: usize, image: RgbImage, spent: Duration, info: &ModelInfo) {
        let making = self.making.remove(at);
        let Some(request) = self.job.work.requests.get(making.index) else { return };
        let recipe = Recipe::new(request, image.dimensions(), info, &self.loras);
        let elapsed_ms = (making.spent + spent).as_secs_f64() * 1e3;
        if let Some(made) = self.made.get_mut(making.index) {
            *made = Some(Picture { image, recipe, elapsed_ms });
        }
    }

    /// Pictures done.
    pub(super) fn done(&self) -> usize {
        self.made.iter().flatten().count()
    }

    /// The pictures, once all are made.
    pub(super) fn pictures(&mut self) -> Vec<Picture> {
        self.made.iter_mut().filter_map(Option::take).collect()
    }

    /// `(pictures done, steps taken for the present one, steps it takes)`.
    pub(super) fn position(&self) -> (usize, usize, usize) {
        let (step, steps) =
            self.making.first().map_or((0, 0), |m| (m.denoising.position(), m.denoising.steps()));
        (self.done(), step, steps)
    }

    /// Tells those who watch how far it is.
    pub(super) fn report(&self, preview: Option<RgbImage>) {
        let (picture, step, steps) = self.position();
        let decoding = steps > 0 && step >= steps;
        self.job.progress.set(|p| {
            p.phase = if decoding { JobPhase::Decoding } else { JobPhase::Running };
            (p.picture, p.step, p.steps) = (picture, step, steps);
            if let Some(preview) = preview {
                p.preview = Some(preview.into());
            }
        });
    }
}
