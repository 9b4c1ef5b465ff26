//! Making everything that is made at first use, before anybody waits for it.

use aquatint_kernels::tuning::{self, Measuring};

use super::memory::Place;
use super::{GenerationRequest, Pipeline};
use crate::Result;

/// Each is encoded anew, so that the text encoders run as often as the rest.
const PROMPTS: [&str; 3] = ["", "a", "a b"];
/// Of each picture: with those of the next one, every network has been run, recorded and started again.
const STEPS: usize = 2;

impl Pipeline {
    /// Makes pictures of the model's own size that nobody sees: kernels are loaded, the fastest algorithms measured and
    /// kept in the tuning file, runs recorded. Nothing on the CPU, nor for models that a step takes seconds of, nor for
    /// those that need a picture.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn warm_up(&self) -> Result<()> {
        let streams = self.info.memory.is_some_and(|plan| plan.blocks == Place::Streamed);
        if self.device.is_cpu() || self.info.needs_mask || streams {
            return Ok(());
        }
        let made = {
            let _measuring = Measuring::start();
            PROMPTS.iter().try_for_each(|prompt| self.generate(&unseen(prompt)).map(drop))
        };
        self.prompts.clear();
        if let Err(error) = tuning::save() {
            tracing::warn!(%error, "what was measured could not be kept");
        }
        made
    }
}

fn unseen(prompt: &str) -> GenerationRequest {
    GenerationRequest { num_inference_steps: Some(STEPS), ..GenerationRequest::new(prompt, 0) }
}
