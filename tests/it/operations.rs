//! `/metrics`, `/ready`, `/info`, and `/health` for platforms that know no other probe.

use std::collections::BTreeMap;
use std::time::Duration;

use aquatint::engine::EngineError;
use serde_json::json;

use crate::fake::Script;
use crate::harness::{Server, Setup, eventually, server};

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
