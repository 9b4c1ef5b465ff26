//! `aquatint serve`: the engine, the queue and the HTTP interface put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquatint_models::pipeline::ModelSource;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::model::{Choice, caption_model, use_threads};
use crate::api::cors::Origins;
use crate::api::{App, LoraRegistry, server};
use crate::engine::pipeline::PipelineBackend;
use crate::engine::{Engine, EngineError};
use crate::queue::{JobQueue, LocalQueue};
use crate::settings::{ServeArgs, is_loopback};

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
    let loras = if choice.source == ModelSource::Builtin { loras.with_builtin() } else { loras };
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
    };
    tokio::spawn(announce(engine.clone()));
    tracing::info!("listening on http://{local}");

    let mut broken = None;
    let stop = async {
        tokio::select! {
            () = told_to_stop() => {}
            error = engine.failed() => broken = Some(error),
        }
    };
    let origins = Origins::new(args.allow_origins.as_deref());
    let drain = Duration::from_secs(args.drain_seconds);
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
