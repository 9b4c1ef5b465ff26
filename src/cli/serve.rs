//! `aquatint serve`: the engine, the queue and the HTTP interface put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Failure;
use super::model::{Choice, caption_model, use_threads};
use crate::api::cors::Origins;
use crate::api::runpod::{Addresses, worker};
use crate::api::{App, LoraRegistry, ping_router, server};
use crate::engine::pipeline::PipelineBackend;
use crate::engine::{Engine, EngineError};
use crate::queue::{JobQueue, LocalQueue};
use crate::settings::{RunPod, ServeArgs, is_loopback};

/// How long the engine's thread has to end once its last job is answered.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    for (name, why) in args.unused.set() {
        tracing::warn!("{name} has no effect: {why}");
    }
    let choice = Choice::new(&args.model)?;
    let caption_model = caption_model(&args)?;
    let loras = match &args.lora_dir {
        Some(folder) => LoraRegistry::scan(folder)
            .map_err(|error| Failure::BadInput(format!("--lora-dir {}: {error}", folder.display())))?,
        None => LoraRegistry::default(),
    };
    use_threads(args.model.threads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(other)?;
    let served = runtime.block_on(serve(args, choice, caption_model, loras));
    // Connections that outlived the drain deadline must not keep the program.
    runtime.shutdown_background();
    served
}

async fn serve(
    args: ServeArgs,
    choice: Choice,
    caption_model: Option<PathBuf>,
    loras: LoraRegistry,
) -> Result<(), Failure> {
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .await
        .map_err(|error| Failure::Other(format!("cannot listen on {address}: {error}")))?;
    let local = listener.local_addr().map_err(other)?;
    if !is_loopback(&args.host) {
        tracing::warn!("{local} can be reached from other machines, and no API key is asked for");
    }
    let queue = LocalQueue::new(args.queue_size);
    let lcm = choice.loras.iter().any(|lora| lora.lcm);
    let always = choice.loras.clone();
    let load = move || {
        let backend = PipelineBackend::load(&choice.source, &choice.options)?;
        match &caption_model {
            Some(folder) => backend.with_captioner(folder),
            None => Ok(backend),
        }
    };
    let (engine, thread) = Engine::spawn(load, always, Arc::new(queue.clone())).map_err(other)?;
    let app = App {
        queue: Arc::new(queue.clone()),
        engine: engine.clone(),
        defaults: Arc::new(args.defaults),
        lcm,
        loras: Arc::new(loras),
        images: Arc::default(),
        webui: Arc::default(),
    };
    tokio::spawn(announce(engine.clone()));
    if let Some(port) = args.runpod.health_port.filter(|port| *port != local.port()) {
        tokio::spawn(health_port(&args.host, port, app.clone()).await?);
    }
    let worker = runpod_worker(&args.runpod, app.clone());
    tracing::info!("listening on http://{local}");

    let drain = Duration::from_secs(args.drain_seconds);
    let mut broken = None;
    let stop = async {
        tokio::select! {
            () = told_to_stop() => {}
            error = engine.failed() => broken = Some(error),
        }
        // A job that RunPod handed out is finished first.
        let _in_time = tokio::time::timeout(drain, worker.stop()).await;
    };
    let origins = Origins::new(args.allow_origins.as_deref());
    server::serve(listener, app, origins, stop, drain).await.map_err(other)?;
    queue.close();
    let joined = tokio::task::spawn_blocking(|| thread.join().is_ok());
    if tokio::time::timeout(JOIN_TIMEOUT, joined).await.is_err() {
        tracing::warn!("a denoising step is still running; it is cut off");
    }
    match broken {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// `GET /ping` on a port of its own; it ends with the program.
async fn health_port(host: &str, port: u16, app: App) -> Result<impl Future<Output = ()> + use<>, Failure> {
    let listener = TcpListener::bind((host, port))
        .await
        .map_err(|error| Failure::Other(format!("cannot listen on {host}:{port} (PORT_HEALTH): {error}")))?;
    Ok(async move {
        if let Err(error) = axum::serve(listener, ping_router(app)).await {
            tracing::error!(%error, "the health port failed");
        }
    })
}

/// The worker of a RunPod queue, where one is asked for.
struct Worker {
    task: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Worker {
    /// Takes no further job, and waits for the one at work.
    async fn stop(self) {
        if let Some((tell, task)) = self.task {
            let _ended_or_told = tell.send(());
            let _joined = task.await;
        }
    }
}

fn runpod_worker(settings: &RunPod, app: App) -> Worker {
    let Some(take) = settings.runpod_get_job.clone() else { return Worker { task: None } };
    let addresses = Addresses {
        take,
        done: settings.runpod_post_output.clone(),
        ping: settings.runpod_ping.clone(),
        ping_interval: Duration::from_millis(settings.runpod_ping_interval as u64),
        worker: settings.runpod_pod_id.clone(),
        key: settings.runpod_ai_api_key.clone().unwrap_or_else(|| String::new().into()),
    };
    let (tell, told) = oneshot::channel::<()>();
    let told = async move {
        let _told_or_dropped = told.await;
    };
    let task = tokio::spawn(async move {
        if let Err(error) = worker::run(app, addresses, told).await {
            tracing::error!(%error, "the RunPod worker could not be started");
        }
    });
    Worker { task: Some((tell, task)) }
}

async fn announce(engine: Engine) {
    match engine.model().await {
        Ok(info) => {
            tracing::info!(model = info.name, family = info.family.name(), device = info.device, "ready");
            if info.random_weights {
                tracing::warn!("the built-in model has random weights: its pictures are coloured noise");
            }
        }
        Err(EngineError::Stopping) => {}
        Err(error) => tracing::error!(%error, "the model could not be loaded"),
    }
}

/// Ctrl-C or SIGTERM; a second one ends the program at once.
async fn told_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be heard; only SIGKILL will end this server");
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    next().await;
    tokio::spawn(async move {
        next().await;
        std::process::exit(1);
    });
}

fn other(error: std::io::Error) -> Failure {
    Failure::Other(error.to_string())
}
