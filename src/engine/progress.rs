//! How far a job is, for whoever watches it.

use std::sync::Arc;
use std::time::Instant;

use image::RgbImage;
use tokio::sync::watch;

/// Where a job is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobPhase {
    /// In the queue.
    Waiting {
        /// Jobs that came before it and wait as well.
        ahead: usize,
    },
    /// It is being made: captions, prompts, steps. It may stand still while a shorter job is made.
    Running,
    /// The last step is taken.
    Decoding,
    /// It is answered, with pictures or with an error.
    Done,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Where it is on its way.
    pub phase: JobPhase,
    /// Pictures done.
    pub picture: usize,
    /// Pictures in all.
    pub pictures: usize,
    /// Steps taken for the present picture.
    pub step: usize,
    /// Steps it takes; 0 before it has begun.
    pub steps: usize,
    /// When it was begun.
    pub begun: Option<Instant>,
    /// A small picture of the present latents. Only made while somebody watches.
    pub preview: Option<Arc<RgbImage>>,
}

impl Progress {
    /// A job of so many pictures that has yet to be begun.
    pub fn waiting(pictures: usize, ahead: usize) -> Self {
        let phase = JobPhase::Waiting { ahead };
        Self { phase, picture: 0, pictures, step: 0, steps: 0, begun: None, preview: None }
    }
}

/// Reads a job's progress without being a watcher, and makes watchers. Clones are cheap, and keep no job alive.
#[derive(Clone, Debug)]
pub struct Observer(Arc<watch::Sender<Progress>>);

impl Observer {
    /// For a job of so many pictures.
    pub fn new(progress: Progress) -> Self {
        Self(Arc::new(watch::Sender::new(progress)))
    }

    /// How far the job is now. Makes no previews happen.
    pub fn now(&self) -> Progress {
        self.0.borrow().clone()
    }

    /// Hears of every change. Previews are made as long as there is a receiver. The channel never closes: the end is
    /// [`JobPhase::Done`].
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }

    /// Whether somebody watches.
    pub fn is_watched(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Changes it.
    pub fn set(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(change);
    }
}
