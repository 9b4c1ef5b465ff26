//! Whether a NATS server is one that keeps jobs, and how its streams are set.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::{ConnectOptions, jetstream};
use serde_json::Value;

use super::Settings;
use super::broker::{EVENTS, FAILURES, INPUTS, JOBS, MODELS, RESULTS};

/// Earlier ones lose jobs or make them twice when a worker or the server dies.
const OLDEST: (i64, i64, i64) = (2, 10, 23);
/// Pieces of pictures and whole messages are smaller.
const PAYLOAD_BYTES: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Each job takes several answers of the server.
const SLOW: Duration = Duration::from_millis(20);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub verdict: Verdict,
    /// What it is.
    pub text: String,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and could be better or could not be seen.
    Note,
    /// Jobs may be lost.
    Bad,
}

fn finding(good: bool, text: String) -> Finding {
    Finding { verdict: if good { Verdict::Good } else { Verdict::Bad }, text }
}

fn note(text: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Note, text: text.into() }
}

/// Looks at the server and its streams. `varz` is what the server's monitoring port says of it, where that is known.
pub async fn examine(settings: &Settings, varz: Option<&Value>) -> Vec<Finding> {
    let addresses: Vec<&str> = settings.url.expose().split(',').collect();
    let options = ConnectOptions::new().name("aquatint doctor").connection_timeout(TIMEOUT);
    let client = match options.connect(addresses).await {
        Ok(client) => client,
        Err(error) => return vec![finding(false, format!("connection: {error}"))],
    };
    let server = client.server_info();
    let (major, minor, patch) = OLDEST;
    let mut found = vec![
        finding(
            client.is_server_compatible(major, minor, patch),
            format!("server {}: {major}.{minor}.{patch} or newer is needed", server.version),
        ),
        finding(
            server.max_payload >= PAYLOAD_BYTES,
            format!("max_payload {}: {PAYLOAD_BYTES} or more is needed", server.max_payload),
        ),
        finding(
            server.jetstream,
            format!("JetStream is {}", if server.jetstream { "on" } else { "off: it is needed" }),
        ),
    ];
    if !server.jetstream {
        return found;
    }
    let context = jetstream::ContextBuilder::new().timeout(TIMEOUT).build(client);
    let asked = Instant::now();
    match context.query_account().await {
        Ok(_) => {
            let took = asked.elapsed();
            let text = format!("an answer takes {:.1} ms", took.as_secs_f64() * 1e3);
            found.push(if took < SLOW { finding(true, text) } else { note(text) });
        }
        Err(error) => found.push(finding(false, format!("JetStream for this account: {error}"))),
    }
    found.push(sync(varz));
    for name in [JOBS, EVENTS, FAILURES, MODELS, &format!("OBJ_{INPUTS}"), &format!("OBJ_{RESULTS}")] {
        found.push(match context.get_stream(name).await {
            Ok(stream) => stream_is(stream.cached_info(), settings),
            Err(_) => note(format!("{name} is not there yet: the first API process makes it")),
        });
    }
    found
}

/// A server that does not write at once loses what it acknowledged when its machine loses power.
fn sync(varz: Option<&Value>) -> Finding {
    let Some(varz) = varz else {
        return note("sync_interval cannot be seen: give the monitoring port as --nats-monitor");
    };
    let always = varz.pointer("/jetstream/config/sync_always").and_then(Value::as_bool).unwrap_or(false);
    let interval = varz.pointer("/jetstream/config/sync_interval").and_then(Value::as_u64).unwrap_or(0);
    let text = if always {
        "sync_interval: always".to_owned()
    } else {
        let seconds = Duration::from_nanos(interval).as_secs();
        format!(
            "sync_interval is {seconds} s: only `always` keeps every accepted job through a loss of power"
        )
    };
    finding(always, text)
}

fn stream_is(info: &Info, settings: &Settings) -> Finding {
    let (config, state) = (&info.config, &info.state);
    let mut wrong = Vec::new();
    let mut want = |right: bool, text: &str| {
        if !right {
            wrong.push(text.to_owned());
        }
    };
    want(config.storage == StorageType::File, "its storage must be file");
    want(config.num_replicas >= settings.replicas, "it has fewer replicas than --queue-replicas");
    if config.name == JOBS {
        want(config.retention == RetentionPolicy::WorkQueue, "its retention must be workqueue");
        want(config.discard == DiscardPolicy::New, "its discard policy must be new");
        want(config.max_messages > 0, "it must be bounded");
    }
    let of = if config.max_messages > 0 { format!(" of {}", config.max_messages) } else { String::new() };
    let what = format!(
        "{}: {}{of} messages, {} bytes, {} replicas",
        config.name, state.messages, state.bytes, config.num_replicas
    );
    if wrong.is_empty() {
        finding(true, what)
    } else {
        finding(false, format!("{what}; {}", wrong.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_writes_at_once_is_good() {
        let varz = |config: Value| serde_json::json!({"jetstream": {"config": config}});
        let verdict = |varz: Option<Value>| sync(varz.as_ref()).verdict;
        assert_eq!(verdict(Some(varz(serde_json::json!({"sync_always": true})))), Verdict::Good);
        assert_eq!(
            verdict(Some(varz(serde_json::json!({"sync_interval": 120_000_000_000_u64})))),
            Verdict::Bad
        );
        assert_eq!(verdict(Some(serde_json::json!({}))), Verdict::Bad);
        assert_eq!(verdict(None), Verdict::Note);
    }
}
