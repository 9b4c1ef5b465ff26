//! A worker process around the fake model: this test program started again, with the part of a worker.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aquatint::engine::{Backend, Engine, EngineSettings, LoraChoice, ModelEntry};
use aquatint::queue::nats::worker::Stop;
use aquatint::queue::nats::{Card, NatsQueue, Settings, Worker};
use aquatint::queue::{Limits, LocalQueue};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::fake::Script;

/// The test below, by its full name.
const PART: &str = "nats::worker::process";
const URL: &str = "AQUATINT_TEST_WORKER_URL";
const LEASE_MS: &str = "AQUATINT_TEST_WORKER_LEASE_MS";
const STEP_MS: &str = "AQUATINT_TEST_WORKER_STEP_MS";
const JOURNAL: &str = "AQUATINT_TEST_WORKER_JOURNAL";

/// The name of the fake model.
pub(super) const MODEL: &str = "fake";

pub(super) fn settings(url: &str, lease: Duration) -> Settings {
    Settings {
        url: url.to_owned().into(),
        capacity: 10_000,
        lease,
        deliveries: 3,
        keep: Duration::from_secs(3600),
        replicas: 1,
        per_caller: None,
        wait: None,
        run: None,
        sets_limits: false,
    }
}

/// A worker that can be killed.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn start(url: &str, lease: Duration, step: Duration, journal: &PathBuf) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([PART, "--exact", "--ignored", "--nocapture", "--quiet"])
            .env(URL, url)
            .env(LEASE_MS, lease.as_millis().to_string())
            .env(STEP_MS, step.as_millis().to_string())
            .env(JOURNAL, journal)
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("AQUATINT_TEST_LOG").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            });
        Self(command.spawn().unwrap())
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// `kill -s NAME`.
    pub(super) fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits for its own end.
    pub(super) fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
#[ignore = "the worker process of the other tests"]
fn process() {
    let Ok(url) = std::env::var(URL) else { return };
    let milliseconds = |name: &str| Duration::from_millis(std::env::var(name).unwrap().parse().unwrap());
    let script = Script {
        step_time: milliseconds(STEP_MS),
        native_size_px: 64,
        journal: Some(std::env::var(JOURNAL).unwrap().into()),
        ..Script::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(&url, milliseconds(LEASE_MS), script));
    // The test harness would write its summary and take its time.
    std::process::exit(0);
}

async fn run(url: &str, lease: Duration, script: Script) {
    let local = LocalQueue::with_limits(Limits::waiting(1));
    let info = script.clone().load().unwrap().info();
    let model = ModelEntry::new(MODEL, move || script.clone().load());
    let (engine, _thread) =
        Engine::spawn(vec![model], Arc::new(local.clone()), EngineSettings::default()).unwrap();
    engine.model().await.unwrap();
    let queue = NatsQueue::connect(settings(url, lease)).await.unwrap();
    let card = Card { name: MODEL.into(), default: true, info, weight_bytes: 1, loras: vec!["ink".into()] };
    let lora = |name: &str| (name == "ink").then(|| LoraChoice::new("/loras/ink.safetensors", 1.0));
    let (stop, stopped) = watch::channel(Stop::No);
    let worker = Worker { queue, local, models: vec![card], lora: Arc::new(lora) };
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let work = tokio::spawn(worker.run(stopped));
    terminate.recv().await;
    stop.send_replace(Stop::Soon);
    work.await.unwrap();
}
