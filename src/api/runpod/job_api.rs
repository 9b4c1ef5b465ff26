//! The addresses that RunPod gives its workers, and what is behind them.
//!
//! Source: `rp_job.py`, `rp_http.py` and `rp_ping.py` of RunPod's Python package.

use std::time::Duration;

use serde_json::Value;

use super::http::Http;
use crate::settings::Secret;

/// RunPod answers after at most a minute and a half when there is no job.
const TAKE_LIMIT: Duration = Duration::from_secs(600);
const POST_LIMIT: Duration = Duration::from_secs(120);
/// Pauses between the attempts to hand a result over.
const ATTEMPT_PAUSES_S: [u64; 3] = [1, 2, 3];

/// The addresses, as the environment has them.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Where jobs are taken from; `$ID` stands for the worker.
    pub take: String,
    /// Where results go; `$RUNPOD_POD_ID` stands for the worker and `$ID` for the job.
    pub done: Option<String>,
    /// Where the worker says that it lives.
    pub ping: Option<String>,
    /// Pause between two pings.
    pub ping_interval: Duration,
    /// The worker.
    pub worker: String,
    /// What proves it.
    pub key: Secret,
}

/// A job as RunPod hands it out.
pub(super) struct Taken {
    pub(super) id: String,
    pub(super) input: Value,
}

/// What taking a job came to.
pub(super) enum Take {
    Job(Taken),
    None,
    /// Too many requests.
    BackOff,
}

pub(super) struct JobApi {
    addresses: Addresses,
    http: Http,
}

impl JobApi {
    pub(super) fn new(addresses: Addresses) -> Result<Self, String> {
        let http = Http::new(addresses.key.expose())?;
        Ok(Self { addresses, http })
    }

    pub(super) fn ping_interval(&self) -> Duration {
        self.addresses.ping_interval
    }

    /// Asks for a job; the worker has none at the time.
    pub(super) async fn take(&self) -> Result<Take, String> {
        let url = self.addresses.take.replace("$ID", &self.addresses.worker);
        let url = with(&url, "job_in_progress", "0");
        let answer = self.http.get(&url, TAKE_LIMIT).await?;
        match answer.status {
            204 | 400 => Ok(Take::None),
            429 => Ok(Take::BackOff),
            200 if answer.body.is_empty() => Ok(Take::None),
            200 => job(&answer.body).map(Take::Job),
            status => Err(format!("the job API answered {status}")),
        }
    }

    /// Hands a result over, again when that fails.
    pub(super) async fn post(&self, id: &str, result: &Value) -> Result<(), String> {
        let Some(done) = &self.addresses.done else {
            return Err("RUNPOD_WEBHOOK_POST_OUTPUT is not set".into());
        };
        let url = done.replace("$RUNPOD_POD_ID", &self.addresses.worker).replace("$ID", &escaped(id));
        let (url, body) = (with(&url, "isStream", "false"), result.to_string());
        let mut pauses = ATTEMPT_PAUSES_S.into_iter();
        loop {
            let answer = self.http.post(&url, POST_LIMIT, &escaped(id), body.clone().into_bytes()).await;
            let error = match answer {
                Ok(answer) if (200..300).contains(&answer.status) => return Ok(()),
                Ok(answer) => format!("the job API answered {}", answer.status),
                Err(error) => error,
            };
            match pauses.next() {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => return Err(error),
            }
        }
    }

    /// Says that the worker lives, and what it is at.
    pub(super) async fn ping(&self, job: Option<&str>) -> Result<(), String> {
        let Some(ping) = &self.addresses.ping else { return Ok(()) };
        let mut url = ping.replace("$RUNPOD_POD_ID", &self.addresses.worker);
        if let Some(id) = job {
            url = with(&url, "job_id", &escaped(id));
        }
        let url = with(&url, "runpod_version", env!("CARGO_PKG_VERSION"));
        let answer = self.http.get(&url, self.addresses.ping_interval * 2).await?;
        if answer.status < 400 { Ok(()) } else { Err(format!("the job API answered {}", answer.status)) }
    }
}

/// Reads a job.
pub(super) fn job(body: &[u8]) -> Result<Taken, String> {
    let mut job: Value =
        serde_json::from_slice(body).map_err(|error| format!("a job is no JSON: {error}"))?;
    let id = job.get("id").and_then(Value::as_str).map(str::to_owned);
    match (id, job.get_mut("input").map(Value::take)) {
        (Some(id), Some(input)) => Ok(Taken { id, input }),
        _ => Err("a job has missing field(s): id or input".into()),
    }
}

/// A URL with one more parameter.
fn with(url: &str, name: &str, value: &str) -> String {
    let join = if url.contains('?') { '&' } else { '?' };
    format!("{url}{join}{name}={value}")
}

/// As a part of a URL and of a header.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
