//! A server, processes that take requests, and workers with the fake model.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::journal::Journal;
use super::server::Nats;
use super::worker::Process;
use crate::cli::Folder;
use crate::running::{Raw, Running, ask};

/// Long enough for a worker on a busy machine to renew it in time.
pub(super) const LEASE: Duration = Duration::from_millis(1500);
pub(super) const STEP: Duration = Duration::from_millis(50);

pub(super) struct Cluster {
    pub(super) nats: Nats,
    pub(super) apis: Vec<Api>,
    pub(super) workers: Vec<Process>,
    pub(super) journal: Journal,
    /// Where the processes think the server is.
    pub(super) url: String,
    name: String,
    flags: Vec<String>,
}

/// A process that takes requests.
pub(super) struct Api {
    pub(super) server: Running,
    _folder: Folder,
}

impl Cluster {
    /// So many processes of each kind, ready for jobs.
    pub(super) fn start(name: &str, apis: usize, workers: usize, flags: &[&str]) -> Self {
        let nats = Nats::start(name);
        let url = nats.url();
        Self::around(name, nats, url, apis, workers, flags)
    }

    pub(super) fn around(
        name: &str,
        nats: Nats,
        url: String,
        apis: usize,
        workers: usize,
        flags: &[&str],
    ) -> Self {
        let journal = Journal::new(name);
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let (name, none) = (name.to_owned(), Vec::new());
        let mut cluster = Self { nats, apis: none, workers: Vec::new(), journal, url, name, flags };
        for _ in 0..apis {
            cluster.add_api();
        }
        for _ in 0..workers {
            cluster.add_worker();
        }
        if workers > 0 {
            cluster.until_ready();
        }
        cluster
    }

    pub(super) fn add_api(&mut self) {
        let folder = Folder::new(&format!("nats-api-{}-{}", self.name, self.apis.len()));
        self.apis.push(self.api(folder));
    }

    /// Another process in the place of one that is gone.
    pub(super) fn replace_api(&mut self, index: usize) {
        let folder = Folder::new(&format!("nats-api-{}-{index}-again", self.name));
        self.apis[index] = self.api(folder);
    }

    fn api(&self, folder: Folder) -> Api {
        let lease = LEASE.as_secs_f64().to_string();
        let mut flags = vec!["--queue", &self.url, "--role", "api", "--lease-seconds", &lease];
        flags.extend(self.flags.iter().map(String::as_str));
        Api { server: Running::start(&folder, &[], &flags), _folder: folder }
    }

    pub(super) fn add_worker(&mut self) {
        self.workers.push(self.worker());
    }

    pub(super) fn worker(&self) -> Process {
        Process::start(&self.url, LEASE, STEP, &self.journal.path())
    }

    /// Until every process that takes requests takes them, which it does once it knows of a model.
    pub(super) fn until_ready(&self) {
        for api in &self.apis {
            until("ready", || api.get("/ready").status == 200);
        }
    }

    pub(super) fn api0(&self) -> &Api {
        &self.apis[0]
    }
}

/// Waits for something that is to come.
pub(super) fn until(what: &str, is_so: impl FnMut() -> bool) {
    within(Duration::from_secs(60), what, is_so);
}

pub(super) fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A job of one small picture, told apart by its seed.
pub(super) fn job(seed: u64, steps: u64) -> Value {
    json!({"prompt": "a", "seed": seed, "steps": steps, "width": 64, "height": 64})
}

impl Api {
    pub(super) fn get(&self, path: &str) -> Raw {
        self.server.ask("GET", path, &[], "")
    }

    pub(super) fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{path}: {}", answer.body_text()))
    }

    /// What came of submitting a job; nothing where the connection failed.
    pub(super) fn try_submit(&self, job: &Value) -> Option<Raw> {
        ask(self.server.address, "POST", "/jobs", &[], &job.to_string()).ok()?.ok()
    }

    /// Submits a job that is accepted, and gives its id.
    pub(super) fn submit(&self, job: &Value) -> String {
        let answer = self.server.ask("POST", "/jobs", &[], &job.to_string());
        assert_eq!(answer.status, 202, "{}", answer.body_text());
        id(&answer)
    }

    pub(super) fn state(&self, id: &str) -> String {
        self.json(&format!("/jobs/{id}"))["state"].as_str().unwrap_or("unknown").to_owned()
    }

    /// Waits for a job's end.
    pub(super) fn ended(&self, id: &str) -> String {
        let mut state = String::new();
        until("the job ends", || {
            state = self.state(id);
            ["done", "failed", "cancelled"].contains(&&*state)
        });
        state
    }

    /// Jobs that are waiting or at work, as all processes know it after a moment.
    pub(super) fn depth(&self) -> u64 {
        let queue = &self.json("/info")["queue"];
        queue["running"].as_u64().unwrap() + queue["waiting"].as_u64().unwrap()
    }
}

/// The id of a job that was accepted.
pub(super) fn id(answer: &Raw) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    body["id"].as_str().unwrap().to_owned()
}
