//! The worker of a queue endpoint: takes one job after the other, and says that it lives.

use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::input::output;
use super::job_api::{Addresses, JobApi, Take, Taken};
use crate::api::App;

/// Pause where there is nothing to do or something went wrong, which doubles up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Works until `stop`, one job at a time. A job that has been taken is finished first.
///
/// # Errors
/// When the secret is no header's value, or the system has no certificates.
pub async fn run(app: App, addresses: Addresses, stop: impl Future<Output = ()>) -> Result<(), String> {
    let api = JobApi::new(addresses)?;
    let current = Mutex::new(None);
    tokio::select! {
        () = take_jobs(&app, &api, &current, stop) => {}
        () = ping(&api, &current) => {}
    }
    Ok(())
}

async fn take_jobs(app: &App, api: &JobApi, current: &Mutex<Option<String>>, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    // A job that is taken while the model loads would wait here instead of going to a worker that is ready.
    tokio::select! {
        () = &mut stop => return,
        loaded = app.engine.model() => if loaded.is_err() {
            return;
        },
    }
    let mut pause = PAUSES.0;
    loop {
        let taken = tokio::select! {
            biased;
            () = &mut stop => return,
            taken = api.take() => taken,
        };
        match taken {
            Ok(Take::Job(job)) => {
                pause = PAUSES.0;
                set(current, Some(job.id.clone()));
                work(app, api, job).await;
                set(current, None);
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
            () = &mut stop => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn work(app: &App, api: &JobApi, Taken { id, input }: Taken) {
    tracing::info!(id, "job taken");
    let result = result(app, &input).await;
    if let Some(error) = result.get("error") {
        tracing::warn!(id, %error, "no picture");
    }
    match api.post(&id, &result).await {
        Ok(()) => tracing::info!(id, "job done"),
        Err(error) => tracing::error!(id, error, "a result could not be handed over"),
    }
}

/// What is handed over for a job with this input.
pub(super) async fn result(app: &App, input: &Value) -> Value {
    match output(app, input).await {
        Ok(output) => json!({"output": output}),
        Err(fault) => json!({"error": fault.message}),
    }
}

async fn ping(api: &JobApi, current: &Mutex<Option<String>>) {
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
