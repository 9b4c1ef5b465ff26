//! Queue and engine around the fake model, without HTTP.

use std::sync::Arc;
use std::thread::JoinHandle;

use aquatint::engine::{
    Engine, EngineSettings, GenerationRequest, LoraChoice, ModelEntry, Picture, Reply, Work,
};
use aquatint::queue::{Caller, Cost, JobQueue, Limits, LocalQueue, Ticket};

use crate::fake::Script;

pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) queue: LocalQueue,
    pub(crate) script: Script,
    thread: Option<JoinHandle<()>>,
}

/// What a rig is made of; the first script is the default model, called `fake`, the others `second` and so on.
pub(crate) struct Parts {
    pub(crate) scripts: Vec<Script>,
    pub(crate) settings: EngineSettings,
    pub(crate) limits: Limits,
}

impl Default for Parts {
    fn default() -> Self {
        let script = Script { native_size_px: 64, ..Script::default() };
        Self { scripts: vec![script], settings: EngineSettings::default(), limits: Limits::waiting(100) }
    }
}

impl Parts {
    pub(crate) async fn start(self) -> Rig {
        let rig = self.spawn();
        rig.engine.model().await.unwrap();
        rig
    }

    pub(crate) fn spawn(self) -> Rig {
        let queue = LocalQueue::with_limits(self.limits);
        let names = ["fake", "second", "third"];
        let model = |(script, name): (&Script, &'static str)| {
            let script = script.clone();
            let info = script.clone().load().map(|fake| aquatint::engine::Backend::info(&fake));
            script.loads.store(0, std::sync::atomic::Ordering::SeqCst);
            // Each takes one byte of the memory for weights.
            ModelEntry::new(name, move || script.clone().load()).described(info.unwrap(), 1)
        };
        let models = self.scripts.iter().zip(names).map(model).collect();
        let (engine, thread) = Engine::spawn(models, Arc::new(queue.clone()), self.settings).unwrap();
        Rig { engine, queue, script: self.scripts[0].clone(), thread: Some(thread) }
    }
}

/// One picture of 64x64 pixels.
pub(crate) fn work(seed: u64, steps: usize) -> Work {
    let mut request = GenerationRequest::new("a", seed);
    (request.width, request.height) = (Some(64), Some(64));
    request.num_inference_steps = Some(steps);
    Work { requests: vec![request], ..Work::default() }
}

pub(crate) fn with_lora(work: Work, name: &str) -> Work {
    Work { loras: vec![LoraChoice::new(name, 1.0)], ..work }
}

impl Rig {
    pub(crate) fn submit(&self, work: Work) -> Ticket {
        let place = self.queue.admit(&Caller::anonymous(), Cost::default()).unwrap();
        self.queue.put(place, work)
    }

    /// Submits and waits.
    pub(crate) async fn run(&self, work: Work) -> Reply {
        self.submit(work).await
    }

    /// The seeds of all steps so far, flattened where each has one.
    pub(crate) fn steps(&self) -> Vec<Vec<u64>> {
        self.script.steps.lock().unwrap().clone()
    }

    /// Ends the engine and waits for its thread.
    pub(crate) fn end(mut self) {
        self.queue.close();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Whether a picture is what this seed and these steps give.
pub(crate) fn is_right(picture: &Picture, seed: u64, steps: usize) -> bool {
    let (width, height) = picture.image.dimensions();
    let [.., a, b, c] = seed.to_be_bytes();
    picture.recipe.seed == seed
        && picture.image.get_pixel(0, 0).0 == [a, b, c]
        && picture.image.get_pixel(width - 1, height - 1).0 == Script::pixel(seed, steps)
}
