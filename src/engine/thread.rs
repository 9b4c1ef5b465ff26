//! The engine's thread: load, then one job after the other, each step of it interruptible.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::{Backend, EngineError, Job, JobPhase, JobSource, LoraChoice, Meter, ModelInfo, Reply, job};

/// A model that panics this often in a row is broken; a supervisor should start the server anew.
const PANICS_ALLOWED: usize = 3;

/// How far the engine is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The model is being loaded.
    Loading,
    /// Jobs are taken.
    Ready(Arc<ModelInfo>),
    /// It will make no further picture.
    Failed(EngineError),
}

/// The job at work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    /// Pictures done.
    pub picture: usize,
    /// Pictures in all.
    pub pictures: usize,
    /// Steps taken for the present one.
    pub step: usize,
    /// Steps it takes.
    pub steps: usize,
}

/// What the engine is doing; reading it never waits.
#[derive(Clone, Debug)]
pub struct Status {
    /// How far the engine is.
    pub phase: Phase,
    /// The job at work.
    pub running: Option<Running>,
}

/// A model that jobs may name.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// Its name in the registry.
    pub name: String,
    /// What it is, as far as is known without loading it.
    pub info: Option<Arc<ModelInfo>>,
    /// Its weights are on the device.
    pub loaded: bool,
}

/// A handle to the engine; clones are cheap.
#[derive(Clone, Debug)]
pub struct Engine {
    status: Arc<watch::Sender<Status>>,
    meter: Arc<Meter>,
}

impl Engine {
    /// Starts the thread: `load` makes the model there, `loras` are merged into it for every job, `jobs` is served
    /// until it ends.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn<B, F>(
        load: F,
        loras: Vec<LoraChoice>,
        jobs: Arc<dyn JobSource>,
    ) -> std::io::Result<(Self, JoinHandle<()>)>
    where
        B: Backend,
        F: FnOnce() -> Result<B, EngineError> + Send + 'static,
    {
        let status = Arc::new(watch::Sender::new(Status { phase: Phase::Loading, running: None }));
        let engine = Self { status: status.clone(), meter: Arc::default() };
        let run = move || {
            let loaded = catch(|| {
                let mut backend = load()?;
                backend.set_loras(&loras)?;
                Ok(backend)
            });
            let end = match loaded {
                Ok(backend) => {
                    let info = Arc::new(backend.info());
                    status.send_modify(|s| s.phase = Phase::Ready(info));
                    Loop { backend, merged: Some(loras.clone()), always: loras, status: &status }
                        .serve(&*jobs)
                }
                Err(error) => error,
            };
            status.send_modify(|s| s.phase = Phase::Failed(end));
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(run)?;
        Ok((engine, thread))
    }

    /// What it is doing now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The model, once it is loaded.
    ///
    /// # Errors
    /// Why it could not be, or that the server is stopping.
    pub async fn model(&self) -> Result<Arc<ModelInfo>, EngineError> {
        let mut changes = self.status.subscribe();
        let settled = changes.wait_for(|s| !matches!(s.phase, Phase::Loading)).await;
        match settled.map(|s| s.phase.clone()) {
            Ok(Phase::Ready(info)) => Ok(info),
            Ok(Phase::Failed(error)) => Err(error),
            Ok(Phase::Loading) | Err(_) => Err(EngineError::Stopping),
        }
    }

    /// A model by its name in the registry, the default one without.
    ///
    /// # Errors
    /// That there is none of this name, and which there are; or as [`model`](Self::model).
    pub async fn info(&self, name: Option<&str>) -> Result<Arc<ModelInfo>, EngineError> {
        let model = self.model().await?;
        match name {
            Some(name) if name != model.name => Err(EngineError::Invalid(format!(
                "Unknown model {name:?}. Must be one of ['{}']",
                model.name
            ))),
            _ => Ok(model),
        }
    }

    /// All models of the registry, the default one first.
    pub fn models(&self) -> Vec<ModelStatus> {
        match &self.status.borrow().phase {
            Phase::Ready(info) => {
                vec![ModelStatus { name: info.name.clone(), info: Some(info.clone()), loaded: true }]
            }
            _ => Vec::new(),
        }
    }

    /// What it has counted.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Waits for the engine's end and says why it came.
    pub async fn failed(&self) -> EngineError {
        let mut changes = self.status.subscribe();
        match changes.wait_for(|s| matches!(s.phase, Phase::Failed(_))).await.map(|s| s.phase.clone()) {
            Ok(Phase::Failed(error)) => error,
            _ => EngineError::Stopping,
        }
    }

    /// Lets nobody wait for the model any longer.
    pub fn stop(&self) {
        self.status.send_modify(|s| {
            if matches!(s.phase, Phase::Loading) {
                s.phase = Phase::Failed(EngineError::Stopping);
            }
        });
    }
}

/// Turns a panic into an error, so that one bad job does not end the server.
fn catch<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no message");
        tracing::error!(text, "the engine panicked");
        Err(EngineError::Failed("internal error".into()))
    })
}

struct Loop<'a, B> {
    backend: B,
    /// LoRAs the server was started with.
    always: Vec<LoraChoice>,
    /// LoRAs merged at present; unknown after a merge that failed.
    merged: Option<Vec<LoraChoice>>,
    status: &'a watch::Sender<Status>,
}

impl<B: Backend> Loop<'_, B> {
    /// Serves until there are no more jobs or the model is broken, and says which.
    fn serve(mut self, jobs: &dyn JobSource) -> EngineError {
        let mut panics = 0;
        while let Some(mut job) = jobs.next() {
            let mut panicked = true;
            let reply = catch(|| {
                let reply = self.run(&mut job);
                panicked = false;
                reply
            });
            panics = if panicked { panics + 1 } else { 0 };
            self.status.send_modify(|s| s.running = None);
            if let Err(error) = &reply {
                tracing::warn!(%error, "no picture");
            }
            // The place goes first: whoever reads the reply may ask again at once.
            let Job { reply: caller, place, progress, .. } = job;
            drop(place);
            progress.set(|p| p.phase = JobPhase::Done);
            let _gone = caller.send(reply);
            if panics >= PANICS_ALLOWED {
                return EngineError::Failed(format!("{panics} jobs in a row panicked"));
            }
        }
        EngineError::Stopping
    }

    fn run(&mut self, job: &mut Job) -> Reply {
        if job.reply.is_closed() {
            return Err(EngineError::Cancelled);
        }
        let loras = self.merge(&job.work.loras)?;
        self.caption(job)?;
        let pictures = job.work.requests.len();
        let mut made = Vec::with_capacity(pictures);
        for (picture, request) in job.work.requests.iter().enumerate() {
            let mut on_step = |step, steps| {
                let running = Running { picture, pictures, step, steps };
                self.status.send_modify(|s| s.running = Some(running));
                let phase = if step < steps { JobPhase::Running } else { JobPhase::Decoding };
                job.progress.set(|p| {
                    (p.phase, p.picture, p.pictures) = (phase, picture, pictures);
                    (p.step, p.steps) = (step, steps);
                });
                if job.reply.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            made.push(job::make(&self.backend, request, &loras, &mut on_step)?);
        }
        Ok(made)
    }

    /// Tells the prompts what the pictures show that the work is based on.
    fn caption(&self, job: &mut Job) -> Result<(), EngineError> {
        if job.work.based_on.is_empty() {
            return Ok(());
        }
        let mut captions = Vec::with_capacity(job.work.based_on.len());
        for image in &job.work.based_on {
            if job.reply.is_closed() {
                return Err(EngineError::Cancelled);
            }
            captions.push(self.backend.caption(image)?);
        }
        let captions = captions.join("; ");
        for request in &mut job.work.requests {
            request.prompt = format!("Based on: {captions}. Incorporate: {}", request.prompt);
        }
        Ok(())
    }

    fn merge(&mut self, wanted: &[LoraChoice]) -> Result<Vec<LoraChoice>, EngineError> {
        let wanted = [&self.always, wanted].concat();
        if self.merged.as_ref() != Some(&wanted) {
            self.merged = None;
            self.backend.set_loras(&wanted)?;
            self.merged = Some(wanted.clone());
        }
        Ok(wanted)
    }
}
