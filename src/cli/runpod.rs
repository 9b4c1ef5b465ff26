//! What `aquatint serve` does on RunPod beside serving.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Failure;
use crate::api::runpod::{Addresses, worker};
use crate::api::{App, ping_router};
use crate::settings::RunPod;

/// `GET /ping` on a port of its own; it ends with the program.
pub(super) async fn health_port(
    host: &str,
    port: u16,
    app: App,
) -> Result<impl Future<Output = ()> + use<>, Failure> {
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
pub(super) struct Worker {
    task: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Worker {
    /// Where the settings name no queue, there is nothing to start.
    pub(super) fn start(settings: &RunPod, app: App) -> Self {
        let Some(take) = settings.runpod_get_job.clone() else { return Self { task: None } };
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
        Self { task: Some((tell, task)) }
    }

    /// Takes no further job, and waits for the one at work.
    pub(super) async fn stop(self) {
        if let Some((tell, task)) = self.task {
            let _ended_or_told = tell.send(());
            let _joined = task.await;
        }
    }
}
