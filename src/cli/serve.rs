//! `aquatint serve`: the engine, the queue and the HTTP interface put together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aquatint_models::pipeline::ModelSource;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::hub::Finder;
use super::model::{Choice, caption_model, registry, safetensors_file, use_threads};
use super::runpod::{Worker, health_port};
use super::shared_queue::SharedQueue;
use crate::api::edge::Edge;
use crate::api::{App, Jobs, LoraRegistry, Operations, operator_router, router, server};
use crate::engine::pipeline::PipelineBackend;
use crate::engine::{Engine, EngineError, EngineSettings, Loading, ModelEntry, Preset};
use crate::picture::use_png_compression;
use crate::queue::{JobQueue, Limits, LocalQueue};
use crate::settings::{Capacity, QueueArgs, QueueChoice, Role, ServeArgs, is_loopback, limit};

/// How often the log tells how much of the model was read.
const LOADING_LINE_EVERY: Duration = Duration::from_secs(5);
/// How long the engine's thread has to end once its last job is answered.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    for (name, why) in args.unused.set() {
        tracing::warn!("{name} has no effect: {why}");
    }
    let edge = Edge::new(&args.edge).map_err(Failure::BadInput)?;
    use_png_compression(args.png_compression);
    let own = match Part::of(&args.queue) {
        Part::Requests => None,
        _ => Some(OwnEngine::new(&args)?),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(other)?;
    let served = runtime.block_on(serve(args, edge, own));
    // Connections that outlived the drain deadline must not keep the program.
    runtime.shutdown_background();
    served
}

/// What this process does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it.
    Everything,
    /// It takes requests, which others make.
    Requests,
    /// It makes what others have taken.
    Pictures,
}

impl Part {
    fn of(queue: &QueueArgs) -> Self {
        match (&queue.queue, queue.role) {
            (QueueChoice::Local, _) | (QueueChoice::Nats(_), Role::All) => Self::Everything,
            (QueueChoice::Nats(_), Role::Api) => Self::Requests,
            (QueueChoice::Nats(_), Role::Worker) => Self::Pictures,
        }
    }
}

/// What the engine of this process is to have.
struct OwnEngine {
    models: Vec<ModelEntry<PipelineBackend>>,
    preset: Option<Preset>,
    loras: LoraRegistry,
}

impl OwnEngine {
    fn new(args: &ServeArgs) -> Result<Self, Failure> {
        let finder = Finder::new(args.model.dtype);
        let mut choice = Choice::new(&args.model, &finder)?;
        let caption_model = caption_model(args, &finder)?;
        let mut loras = loras(args, &choice, &finder)?;
        let in_folder = loras.embeddings().map(|(_, embedding)| embedding.path.clone());
        choice.options.fitting_textual_inversions = in_folder.collect();
        for path in &choice.options.textual_inversions {
            loras.add_embedding(path);
        }
        use_threads(args.model.threads)?;
        use_gpu_settings(&args.capacity);
        let models = registry(args, &choice, caption_model, &finder)?;
        let of_loras = choice.loras.iter().rev().find_map(|lora| lora.preset);
        let preset = of_loras.or(models.first().and_then(|model| model.info.as_ref()?.preset));
        Ok(Self { models, preset, loras })
    }
}

/// What holds for all models on a GPU; on a CPU it has no effect.
fn use_gpu_settings(capacity: &Capacity) {
    aquatint_models::keep_recordings(capacity.cuda_graphs);
    let file = match capacity.tuning_cache.clone() {
        Some(path) if path == Path::new("none") => None,
        Some(path) => Some(path),
        None => user_cache().map(|cache| cache.join("aquatint/tuning.txt")),
    };
    if let Some(file) = file {
        aquatint_models::tuning::use_file(file);
    }
}

fn user_cache() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))
}

/// The LoRAs that requests may name.
fn loras(args: &ServeArgs, choice: &Choice, finder: &Finder) -> Result<LoraRegistry, Failure> {
    let loras = match &args.lora_dir {
        Some(folder) => LoraRegistry::scan(folder)
            .map_err(|error| Failure::BadInput(format!("--lora-dir {}: {error}", folder.display())))?,
        None => LoraRegistry::default(),
    };
    for (name, path) in &args.add_lora {
        let path = safetensors_file("--add-lora", path, finder)?;
        loras
            .add(name.clone(), path)
            .map_err(|error| Failure::BadInput(format!("--add-lora {name}: {error}")))?;
    }
    Ok(if choice.origin.source == ModelSource::Builtin { loras.with_builtin() } else { loras })
}

async fn serve(args: ServeArgs, edge: Edge, own: Option<OwnEngine>) -> Result<(), Failure> {
    let (address, part) = (format!("{}:{}", args.host, args.port), Part::of(&args.queue));
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .await
        .map_err(|error| Failure::Other(format!("cannot listen on {address}: {error}")))?;
    let socket = listener.local_addr().map_err(other)?;
    if !is_loopback(&args.host) && edge.keys.is_open() && part != Part::Pictures {
        tracing::warn!(
            "{socket} can be reached from other machines, and no API key is asked for: see --api-key"
        );
    }
    let shared = SharedQueue::connect(&args).await?;
    // Of a shared queue, the engine has one job at a time.
    let local = LocalQueue::with_limits(if shared.is_some() { worker_limits(&args) } else { limits(&args) });
    let queue: Arc<dyn JobQueue> = match &shared {
        Some(shared) => shared.queue(),
        None => Arc::new(local.clone()),
    };
    let preset = own.as_ref().and_then(|own| own.preset);
    let (engine, loras, thread) = match own {
        Some(own) => {
            let (engine, thread) =
                Engine::spawn(own.models, Arc::new(local.clone()), settings(&args.capacity))
                    .map_err(other)?;
            (engine, own.loras, Some(thread))
        }
        None => {
            let (engine, hearsay) = Engine::elsewhere();
            let loras = LoraRegistry::default();
            if let Some(shared) = &shared {
                shared.listen(hearsay, loras.clone());
            }
            (engine, loras, None)
        }
    };
    let app = App {
        jobs: Jobs::of(&*queue),
        queue,
        engine: engine.clone(),
        defaults: Arc::new(args.defaults),
        preset,
        loras: Arc::new(loras.clone()),
        operations: Operations { health_until_ready: args.health_until_ready, ..Operations::default() },
        images: Arc::default(),
        webui: Arc::default(),
    };
    tokio::spawn(announce(engine.clone()));
    if let Some(port) = args.runpod.health_port.filter(|port| *port != socket.port()) {
        tokio::spawn(health_port(&args.host, port, app.clone()).await?);
    }
    let runpod = Worker::start(&args.runpod, app.clone());
    let worker = shared.filter(|_| thread.is_some()).map(|shared| shared.work(&engine, &local, loras));
    tracing::info!("listening on http://{socket}");

    let drain = Duration::from_secs(args.drain_seconds);
    let mut broken = None;
    let stop = async {
        tokio::select! {
            () = told_to_stop() => {}
            error = engine.failed() => broken = Some(error),
        }
        if let Some(worker) = &worker {
            worker.take_no_more();
        }
        // A job that RunPod handed out is finished first.
        let _in_time = tokio::time::timeout(drain, runpod.stop()).await;
    };
    let routes = match part {
        Part::Pictures => operator_router(app.clone(), &edge),
        Part::Everything | Part::Requests => router(app.clone(), &edge),
    };
    server::serve(listener, routes, app, edge, stop, drain).await;
    if let Some(worker) = worker {
        worker.end(drain).await;
    }
    local.close();
    if let Some(thread) = thread {
        let joined = tokio::task::spawn_blocking(|| thread.join().is_ok());
        if tokio::time::timeout(JOIN_TIMEOUT, joined).await.is_err() {
            tracing::warn!("a denoising step is still running; it is cut off");
        }
    }
    match broken {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// The shared queue has the bounds of waiting and of callers.
fn worker_limits(args: &ServeArgs) -> Limits {
    Limits { run: limit(args.capacity.max_run_seconds), ..Limits::waiting(1) }
}

fn limits(args: &ServeArgs) -> Limits {
    let capacity = &args.capacity;
    Limits {
        waiting: args.queue_size,
        cost: capacity.queue_cost,
        per_caller: capacity.jobs_per_caller,
        wait: limit(capacity.max_wait_seconds),
        run: limit(capacity.max_run_seconds),
        picture_cache_bytes: capacity.picture_cache << 20,
    }
}

fn settings(capacity: &Capacity) -> EngineSettings {
    EngineSettings {
        in_flight: capacity.in_flight,
        max_batch: capacity.max_batch,
        run_limit: limit(capacity.max_run_seconds),
        call_limit: limit(capacity.max_step_seconds),
        weight_limit_bytes: capacity.model_memory.map(|gib| (gib * (1u64 << 30) as f64) as u64),
        unload_after: limit(capacity.unload_seconds),
        warm_up: !capacity.no_warm_up,
    }
}

async fn announce(engine: Engine) {
    let mut loaded = std::pin::pin!(engine.model());
    let model = loop {
        match tokio::time::timeout(LOADING_LINE_EVERY, &mut loaded).await {
            Ok(model) => break model,
            Err(_) => {
                // A download has lines of its own.
                if let Some(Loading { model, read_bytes, weight_bytes, .. }) = engine.loading() {
                    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
                    tracing::info!(model, read = gb(read_bytes), of = gb(weight_bytes), "loading");
                }
            }
        }
    };
    match model {
        Ok(info) => {
            tracing::info!(model = info.name, family = info.family.name(), device = info.device, "ready");
            if info.random_weights {
                tracing::warn!("this model has random weights: its pictures are noise");
            }
        }
        Err(EngineError::Stopping) => {}
        Err(error) => tracing::error!(%error, "the model could not be loaded"),
    }
}

/// Ctrl-C or SIGTERM; a second one ends the program at once, with the code that shells give to a signal's victims.
async fn told_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be heard; only SIGKILL will end this server");
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        }
    };
    next().await;
    tokio::spawn(async move {
        let signal = next().await;
        std::process::exit(128 + signal.as_raw_value());
    });
}

fn other(error: std::io::Error) -> Failure {
    Failure::Other(error.to_string())
}
