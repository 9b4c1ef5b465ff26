//! `/metrics`, `/ready`, `/info`, and `/health` for platforms that know no other probe.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquatint::engine::{DeviceMemory, EngineError};
use serde_json::{Value, json};

use crate::cli::{Folder, aquatint};
use crate::fake::Script;
use crate::harness::{Server, Setup, eventually, server};
use crate::running::{Running, ask};

/// The samples of `/metrics` by name and labels, after a check of the format.
async fn metrics(server: &Server) -> BTreeMap<String, f64> {
    let answer = server.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let mut samples = BTreeMap::new();
    let mut families = Vec::new();
    for line in answer.text().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!families.contains(&name.to_owned()), "{name} comes twice");
            families.push(name.to_owned());
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(families.last().unwrap().as_str()), "{line} stands under another name");
            assert_eq!(samples.insert(name.to_owned(), value.parse().unwrap()), None, "{name} comes twice");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let script = Script { step_time: Duration::from_millis(20), native_size_px: 64, ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    let body =
        |prompt| json!({"prompt": prompt, "aspectRatio": "1:1", "config": {"steps": 4, "numImages": 2}});
    assert_eq!(server.post("/generate", &body("a")).await.status, 200);
    assert_eq!(server.post("/generate", &body("!fail")).await.status, 500);
    assert_eq!(server.post("/generate", &json!({})).await.status, 422);
    for path in ["/made-up/1", "/made-up/2"] {
        assert_eq!(server.get(path).await.status, 404);
    }
    let samples = metrics(&server).await;
    let count = |route, method, status| {
        let name = format!(
            "aquatint_http_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"
        );
        samples.get(&name).copied()
    };
    assert_eq!(count("/generate", "POST", 200), Some(1.0));
    assert_eq!(count("/generate", "POST", 500), Some(1.0));
    assert_eq!(count("/generate", "POST", 422), Some(1.0));
    assert_eq!(count("other", "GET", 404), Some(2.0), "paths that clients invent are one");
    assert_eq!(samples["aquatint_http_request_seconds_count"], 5.0);
    assert_eq!(samples["aquatint_http_requests_in_flight"], 1.0, "the one that asks");
    assert_eq!(samples["aquatint_ready"], 1.0);
    assert_eq!(samples["aquatint_queue_waiting"], 0.0);
    assert_eq!(samples["aquatint_queue_capacity"], 33.0);
    assert_eq!(samples["aquatint_jobs_total{outcome=\"done\"}"], 1.0);
    assert_eq!(samples["aquatint_jobs_total{outcome=\"failed\"}"], 1.0);
    assert_eq!(samples["aquatint_pictures_total"], 2.0);
    assert_eq!(samples["aquatint_not_finite_total{outcome=\"failed\"}"], 1.0);
    assert_eq!(samples["aquatint_not_finite_total{outcome=\"repeated\"}"], 2.0);
    assert_eq!(samples["aquatint_queue_wait_seconds_count"], 2.0);
    let (steps, seconds) = (samples["aquatint_step_seconds_count"], samples["aquatint_step_seconds_sum"]);
    assert!((4.0..=8.0).contains(&steps), "two pictures of four steps, in a batch or not: {steps}");
    assert!(seconds >= 0.02 * steps, "{seconds} s for {steps} steps of 20 ms");
    assert_eq!(samples["aquatint_batch_size_count"], steps);
    assert_eq!(samples["aquatint_batch_size_sum"], 8.0);
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_threads"] >= 2.0 && samples["process_open_fds"] >= 3.0);
}

#[tokio::test]
async fn the_device_s_memory_is_told_where_it_has_its_own() {
    let device = DeviceMemory { total: 1000, free: 900, held: 100, used: 20, peak: 0 };
    let memory = Some((Arc::new(Mutex::new(device)), 60));
    let setup = |memory| Setup { script: Script { memory, ..Script::default() }, ..Setup::default() };
    let server = setup(memory).start();
    server.app.engine.model().await.unwrap();
    let told = server.get("/health").await.json()["device_memory"].clone();
    let expected = json!({"total_bytes": 1000, "free_bytes": 840, "held_bytes": 160, "used_bytes": 80, "peak_bytes": 80});
    assert_eq!(told, expected);
    let samples = metrics(&server).await;
    for (state, bytes) in
        [("total", 1000.0), ("free", 840.0), ("held", 160.0), ("used", 80.0), ("peak", 80.0)]
    {
        assert_eq!(samples[&format!("aquatint_device_memory_bytes{{state=\"{state}\"}}")], bytes);
    }
    let resident = samples["process_resident_memory_bytes"];
    assert!(samples["aquatint_process_peak_resident_memory_bytes"] >= resident);

    let cpu = setup(None).start();
    cpu.app.engine.model().await.unwrap();
    assert_eq!(cpu.get("/health").await.json()["device_memory"], Value::Null);
    assert!(!metrics(&cpu).await.keys().any(|name| name.starts_with("aquatint_device_memory")));
}

#[tokio::test]
async fn a_client_that_left_is_counted() {
    let script = Script { step_time: Duration::from_millis(20), native_size_px: 64, ..Script::default() };
    let listening = Setup { script, ..Setup::default() }.start().listen(Duration::from_secs(5)).await;
    let stream = listening.generate(&json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 100}}));
    let script = listening.server.script.clone();
    eventually("it runs", || script.steps_taken() >= 1).await;
    assert_eq!(metrics(&listening.server).await["aquatint_http_connections"], 1.0);
    drop(stream);
    let meter = listening.server.app.engine.meter();
    eventually("it is cancelled", || meter.jobs_cancelled.get() == 1).await;
    let samples = metrics(&listening.server).await;
    let left = samples.iter().find(|(name, _)| name.contains("status=\"499\""));
    assert_eq!(left.map(|(_, count)| *count), Some(1.0), "{samples:?}");
    assert_eq!(samples["aquatint_http_connections"], 0.0);
}

#[tokio::test]
async fn ready_is_for_load_balancers() {
    let script = Script { load_time: Duration::from_millis(300), ..Script::default() };
    let server = Setup { script, flags: vec!["--health-until-ready"], ..Setup::default() }.start();
    let loading = server.get("/ready").await;
    assert_eq!((loading.status.as_u16(), loading.json()), (503, json!({"status": "loading"})));
    assert_eq!(loading.header("retry-after"), Some("2"));
    assert_eq!(server.get("/health").await.status, 503);
    server.app.engine.model().await.unwrap();
    let ready = server.get("/ready").await;
    assert_eq!((ready.status.as_u16(), ready.json()), (200, json!({"status": "ready"})));
    assert_eq!(server.get("/health").await.status, 200);
    server.app.operations.stopping.tell();
    let stopping = server.get("/ready").await;
    assert_eq!((stopping.status.as_u16(), stopping.json()), (503, json!({"status": "stopping"})));

    let load_error = Some(EngineError::Failed("no".into()));
    let failed = Setup { script: Script { load_error, ..Script::default() }, ..Setup::default() }.start();
    failed.app.engine.failed().await;
    assert_eq!(failed.get("/ready").await.json(), json!({"status": "failed"}));
    assert_eq!(
        failed.get("/health").await.status,
        200,
        "without the flag it only says that the server lives"
    );
}

#[tokio::test]
async fn info_tells_what_runs_here() {
    let server = server();
    server.app.engine.model().await.unwrap();
    let info = server.get("/info").await.json();
    assert_eq!(info["name"], "aquatint");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["state"], "ready");
    assert_eq!(info["models"][0]["name"], "fake");
    assert_eq!(info["models"][0]["loaded"], true);
    assert_eq!(info["models"][0]["scheduler"], "EulerDiscreteScheduler");
    assert_eq!(info["limits"], json!({"side_px": 4096, "steps": 150, "guidance_scale": 30.0, "images": 8}));
}

/// The log of a server on every network, from its start to its end.
fn public(name: &str, arguments: &[&str]) -> String {
    let folder = Folder::new(name);
    folder.write("keys", b"# two keys\nsesame-1\n\n  sesame-2\n");
    let log = folder.0.join("log");
    let arguments = [&["serve", "--host", "0.0.0.0", "--port", "0"], arguments].concat();
    let mut server = aquatint(&folder, &[], &arguments)
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if text.contains("listening on") || begun.elapsed() > Duration::from_secs(20) {
            break text;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(text.contains("listening on http://0.0.0.0:"), "{text}");
    text
}

#[test]
fn a_public_server_without_a_key_is_warned_of() {
    assert!(public("open", &[]).contains("no API key is asked for"));
    let closed = public("closed", &["--api-key-file", "keys"]);
    assert!(!closed.contains("API key") && !closed.contains("sesame"), "{closed}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = Folder::new("second-signal");
    let mut server = Running::start(&folder, &[], &[]);
    let address = server.address;
    let long = r#"{"prompt":"a","aspectRatio":"1:1","config":{"numImages":8,"steps":150}}"#;
    std::thread::spawn(move || ask(address, "POST", "/generate", &[], long).is_ok());
    let begun = Instant::now();
    while server.ask("GET", "/metrics", &[], "").body_text().contains("aquatint_queue_running 0\n") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", server.log());
    }
    server.signal("TERM");
    while !server.log().contains("stopping") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", server.log());
    }
    server.signal("TERM");
    assert_eq!(server.wait(), Some(143));
}

#[test]
fn stages_have_lines_under_the_request_they_belong_to() {
    let folder = Folder::new("stages");
    let mut server = Running::start(&folder, &[], &["--log-stages", "--log-format", "json"]);
    let body = r#"{"prompt":"a","aspectRatio":"1:1","config":{"numImages":1,"steps":3}}"#;
    let answer = server.ask("POST", "/generate", &[("x-request-id", "stages-1")], body);
    assert!(answer.head.contains("x-request-id: stages-1"), "{}", answer.head);
    let log = server.stop();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ends = |stage: &str| {
        let ended = |line: &&Value| line["message"] == "close" && line["span"]["name"] == stage;
        let ended = lines.iter().filter(ended).inspect(|line| assert_eq!(line["spans"][0]["id"], "stages-1"));
        ended.count()
    };
    assert_eq!([ends("start"), ends("step"), ends("decode")], [1, 3, 1], "{log}");
}
