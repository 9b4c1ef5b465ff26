//! The worker of a queue endpoint: takes one job after the other, and says that it lives.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::input::output;
use super::job_api::{Addresses, JobApi, Take, Taken};
use crate::api::App;

/// Pause where there is nothing to do or something went wrong, which doubles up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Works until `stop`. A job that has been taken is finished first.
///
/// # Errors
/// When the file for the secret cannot be written.
pub async fn run(app: App, addresses: Addresses, stop: impl Future<Output = ()>) -> std::io::Result<()> {
    let api = Arc::new(JobApi::new(addresses)?);
    let current = Arc::new(Mutex::new(None));
    let pings = tokio::spawn(ping(api.clone(), current.clone()));
    let mut stop = std::pin::pin!(stop);
    let mut pause = PAUSES.0;
    loop {
        let taken = tokio::select! {
            biased;
            () = &mut stop => break,
            taken = api.take(false) => taken,
        };
        match taken {
            Ok(Take::Job(job)) => {
                pause = PAUSES.0;
                set(&current, Some(job.id.clone()));
                work(&app, &api, job).await;
                set(&current, None);
                continue;
            }
            Ok(Take::None) => pause = PAUSES.0,
            Ok(Take::BackOff) => pause = (pause * 2).min(PAUSES.1),
            Err(error) => {
                tracing::warn!(error, "no job could be taken");
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    pings.abort();
    Ok(())
}

async fn work(app: &App, api: &JobApi, Taken { id, input }: Taken) {
    tracing::info!(id, "job taken");
    let result = match output(app, &input).await {
        Ok(output) => json!({"output": output}),
        Err(fault) => {
            tracing::warn!(id, fault.message, "no picture");
            json!({"error": fault.message})
        }
    };
    match api.post(&id, &result).await {
        Ok(()) => tracing::info!(id, "job done"),
        Err(error) => tracing::error!(id, error, "a result could not be handed over"),
    }
}

async fn ping(api: Arc<JobApi>, current: Arc<Mutex<Option<String>>>) {
    loop {
        let job = current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Err(error) = api.ping(job.as_deref()).await {
            tracing::warn!(error, "a ping failed");
        }
        tokio::time::sleep(api.ping_interval()).await;
    }
}

fn set(current: &Mutex<Option<String>>, id: Option<String>) {
    *current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = id;
}
