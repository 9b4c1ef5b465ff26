//! What the rest of the program holds of the engine: what it is doing, and how it is started and ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aquatint_models::checkpoint::bytes_read;
use tokio::sync::watch;

use super::fault::{Fault, catch};
use super::registry::{ModelEntry, Registry};
use super::scheduler::Scheduler;
use super::{Backend, EngineError, JobSource, Meter, ModelInfo, watchdog};
use crate::downloads;

/// How far the engine is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The default model is being loaded.
    Loading,
    /// Jobs are taken. The default model, which may have been unloaded since.
    Ready(Arc<ModelInfo>),
    /// It will make no further picture.
    Failed(EngineError),
}

/// The job whose turn it is.
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

/// A model that jobs may name.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// Its name in the registry.
    pub name: String,
    /// What it is, as far as is known without loading it.
    pub info: Option<Arc<ModelInfo>>,
    /// Its weights are on the device.
    pub loaded: bool,
    /// Memory that its weights take there, or would.
    pub weight_bytes: u64,
}

/// What the engine is doing; reading it never waits.
#[derive(Clone, Debug)]
pub struct Status {
    /// How far the engine is.
    pub phase: Phase,
    /// The job whose turn it is.
    pub running: Option<Running>,
    /// All models, the default one first.
    pub models: Vec<ModelStatus>,
}

/// How much of a model's files is here and has been read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loading {
    /// Its name in the registry.
    pub model: String,
    /// Bytes that have come from the hub, of those that are on their way; 0 where none are.
    pub downloaded_bytes: u64,
    /// Bytes that are on their way from the hub, with those that have come.
    pub download_bytes: u64,
    /// Bytes of its weights that were read.
    pub read_bytes: u64,
    /// Bytes of its weights in their files; 0 where it has none.
    pub weight_bytes: u64,
}

/// What the engine may use.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineSettings {
    /// Jobs begun and not done, at most. Each holds its latents and its prompts' keys and values on the device.
    pub in_flight: usize,
    /// Pictures in one step, at most. More than one gains on devices that one picture does not fill.
    pub max_batch: usize,
    /// Longest time from a job's begin to its end.
    pub run_limit: Option<Duration>,
    /// Longest time for one call of the model; beyond it the device is taken for lost.
    pub call_limit: Option<Duration>,
    /// Memory for the weights of all models together.
    pub weight_limit_bytes: Option<u64>,
    /// Time after which a model that no job asks for is unloaded.
    pub unload_after: Option<Duration>,
    /// The default model makes pictures that nobody sees before jobs are taken.
    pub warm_up: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            in_flight: 4,
            max_batch: 1,
            run_limit: None,
            call_limit: None,
            weight_limit_bytes: None,
            unload_after: None,
            warm_up: true,
        }
    }
}

/// What the engine's thread and everybody else see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) status: watch::Sender<Status>,
    pub(super) meter: Meter,
    /// Since when the model has been at one call.
    pub(super) busy_since: Mutex<Option<Instant>>,
    /// The model being read, and what had been read before it.
    loading: Mutex<Option<Loading>>,
}

impl Shared {
    fn new(models: Vec<ModelStatus>) -> Self {
        Self {
            status: watch::Sender::new(Status { phase: Phase::Loading, running: None, models }),
            meter: Meter::default(),
            busy_since: Mutex::default(),
            loading: Mutex::default(),
        }
    }

    /// Runs one call of the model: panics are caught, and its length is watched.
    pub(super) fn call<T>(&self, run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Fault> {
        self.set_busy(Some(Instant::now()));
        let result = catch(run);
        self.set_busy(None);
        result
    }

    /// Loads a model; how far it is can be seen meanwhile.
    pub(super) fn load<T>(
        &self,
        model: &str,
        weight_bytes: u64,
        run: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, Fault> {
        let read_before = bytes_read().0;
        let set = |loading| *self.loading.lock().unwrap_or_else(PoisonError::into_inner) = loading;
        let model = model.to_owned();
        set(Some(Loading {
            model,
            downloaded_bytes: 0,
            download_bytes: 0,
            read_bytes: read_before,
            weight_bytes,
        }));
        // Not as a call: a load may take as long as the disk does.
        let result = catch(run);
        set(None);
        result
    }

    fn set_busy(&self, since: Option<Instant>) {
        *self.busy_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Ends the engine for all who ask. The first reason stands.
    pub(super) fn fail(&self, error: EngineError) {
        self.status.send_modify(|s| {
            s.running = None;
            if !matches!(s.phase, Phase::Failed(_)) {
                s.phase = Phase::Failed(error);
            }
        });
    }
}

/// A handle to the engine; clones are cheap.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Starts the thread that owns the device. The first of `models` is the default one and is loaded at once, the
    /// others when a job names them; `jobs` is served until it ends.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn<B: Backend + 'static>(
        models: Vec<ModelEntry<B>>,
        jobs: Arc<dyn JobSource>,
        settings: EngineSettings,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let shared = Arc::new(Shared::new(models.iter().map(ModelEntry::status).collect()));
        let engine = Self { shared: shared.clone() };
        let watchdog =
            settings.call_limit.map(|limit| watchdog::Watchdog::spawn(shared.clone(), limit)).transpose()?;
        let run = move || {
            let mut registry = Registry::new(models, &settings, shared.clone());
            let end = match registry.load_default() {
                Ok(info) => {
                    shared.status.send_modify(|s| {
                        if matches!(s.phase, Phase::Loading) {
                            s.phase = Phase::Ready(info);
                        }
                    });
                    Scheduler::new(registry, &*jobs, &shared, &settings).serve()
                }
                Err(fault) => fault.into_error(),
            };
            shared.fail(end);
            drop(watchdog);
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(run)?;
        Ok((engine, thread))
    }

    /// An engine in other processes: what it has is known from hearsay alone.
    pub fn elsewhere() -> (Self, Hearsay) {
        let shared = Arc::new(Shared::new(Vec::new()));
        (Self { shared: shared.clone() }, Hearsay(shared))
    }

    /// What it is doing now.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// The default model, once it has been loaded.
    ///
    /// # Errors
    /// Why it could not be, or that the server is stopping.
    pub async fn model(&self) -> Result<Arc<ModelInfo>, EngineError> {
        let mut changes = self.shared.status.subscribe();
        let settled = changes.wait_for(|s| !matches!(s.phase, Phase::Loading)).await;
        match settled.map(|s| s.phase.clone()) {
            Ok(Phase::Ready(info)) => Ok(info),
            Ok(Phase::Failed(error)) => Err(error),
            Ok(Phase::Loading) | Err(_) => Err(EngineError::Stopping),
        }
    }

    /// A model by its name in the registry, the default one without. It need not be loaded.
    ///
    /// # Errors
    /// That there is none of this name, and which there are; or as [`model`](Self::model).
    pub async fn info(&self, name: Option<&str>) -> Result<Arc<ModelInfo>, EngineError> {
        let default = self.model().await?;
        let Some(name) = name.filter(|name| *name != default.name) else { return Ok(default) };
        let status = self.shared.status.borrow();
        match status.models.iter().find(|model| model.name == name) {
            Some(ModelStatus { info: Some(info), .. }) => Ok(info.clone()),
            Some(_) => Err(EngineError::Failed(format!("nothing is known of the model {name:?} yet"))),
            None => Err(unknown_model(name, status.models.iter().map(|model| model.name.as_str()))),
        }
    }

    /// All models of the registry, the default one first.
    pub fn models(&self) -> Vec<ModelStatus> {
        self.shared.status.borrow().models.clone()
    }

    /// The model that is being fetched and read, and how much of it was.
    pub fn loading(&self) -> Option<Loading> {
        let loading = self.shared.loading.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let read_bytes = (bytes_read().0 - loading.read_bytes).min(loading.weight_bytes);
        let (downloaded_bytes, download_bytes) = downloads::under_way();
        Some(Loading { downloaded_bytes, download_bytes, read_bytes, ..loading })
    }

    /// What it has counted.
    pub fn meter(&self) -> &Meter {
        &self.shared.meter
    }

    /// Waits for the engine's end and says why it came.
    pub async fn failed(&self) -> EngineError {
        let mut changes = self.shared.status.subscribe();
        match changes.wait_for(|s| matches!(s.phase, Phase::Failed(_))).await.map(|s| s.phase.clone()) {
            Ok(Phase::Failed(error)) => error,
            _ => EngineError::Stopping,
        }
    }

    /// Lets nobody wait for the model any longer.
    pub fn stop(&self) {
        self.shared.status.send_modify(|s| {
            if matches!(s.phase, Phase::Loading) {
                s.phase = Phase::Failed(EngineError::Stopping);
            }
        });
    }
}

/// What is known of engines in other processes.
#[derive(Debug)]
pub struct Hearsay(Arc<Shared>);

impl Hearsay {
    /// These are their models, the default one first. From the first on, jobs are taken.
    pub fn models(&self, models: Vec<ModelStatus>) {
        let default = models.first().and_then(|model| model.info.clone());
        self.0.status.send_modify(|s| {
            s.models = models;
            if let (Some(info), false) = (default, matches!(s.phase, Phase::Failed(_))) {
                s.phase = Phase::Ready(info);
            }
        });
    }
}

/// In the words that FastAPI services use for a value out of a list.
pub(super) fn unknown_model<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> EngineError {
    let known: Vec<_> = known.map(|known| format!("'{known}'")).collect();
    EngineError::Invalid(format!("Unknown model {name:?}. Must be one of [{}]", known.join(", ")))
}
