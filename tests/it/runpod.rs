//! RunPod: the health check, and a queue worker against a stand-in for RunPod's job API.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquatint::api::runpod::{Addresses, worker};
use aquatint::engine::{EngineError, Mode};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::fake::Script;
use crate::harness::{Setup, eventually, server};
use crate::huggingface::{base64, file, orange};

#[tokio::test]
async fn ping_says_whether_it_is_ready() {
    let script = Script { load_time: Duration::from_millis(200), ..Script::default() };
    let loading = Setup { script, ..Setup::default() }.start();
    assert_eq!(loading.get("/ping").await.status, 204);
    loading.app.engine.model().await.unwrap();
    assert_eq!(loading.get("/ping").await.status, 200);
    let script = Script { load_error: Some(EngineError::Failed("no".into())), ..Script::default() };
    let broken = Setup { script, ..Setup::default() }.start();
    broken.app.engine.failed().await;
    assert_eq!(broken.get("/ping").await.status, 500);
}

/// Job, query, headers and body of a result.
type Posted = (String, String, HeaderMap, Value);

/// What the job API has to hand out, and what it was told.
#[derive(Clone, Default)]
struct JobApi {
    jobs: Arc<Mutex<VecDeque<(u16, Value)>>>,
    done: Arc<Mutex<Vec<Posted>>>,
    /// `(path and query, authorization)` of every request to take a job, and of every ping.
    asked: Arc<Mutex<Vec<(String, String)>>>,
    pings: Arc<Mutex<Vec<String>>>,
    /// Answers 500 to so many results first.
    failures: Arc<Mutex<usize>>,
}

fn authorization(headers: &HeaderMap) -> String {
    headers.get("authorization").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
}

async fn take(
    State(api): State<JobApi>,
    Path(worker): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    api.asked.lock().unwrap().push((format!("{worker}?{}", query.unwrap()), authorization(&headers)));
    let next = api.jobs.lock().unwrap().pop_front();
    match next {
        Some((200, job)) => axum::Json(job).into_response(),
        Some((status, _)) => StatusCode::from_u16(status).unwrap().into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn done(
    State(api): State<JobApi>,
    Path((worker, job)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    assert_eq!(worker, "pod-1");
    let mut failures = api.failures.lock().unwrap();
    if *failures > 0 {
        *failures -= 1;
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    let body = serde_json::from_slice(&body).unwrap();
    api.done.lock().unwrap().push((job, query.unwrap(), headers, body));
    StatusCode::OK
}

async fn alive(State(api): State<JobApi>, Path(worker): Path<String>, RawQuery(query): RawQuery) {
    api.pings.lock().unwrap().push(format!("{worker}?{}", query.unwrap_or_default()));
}

impl JobApi {
    /// Serves it, and says where it is.
    async fn listen(&self) -> Addresses {
        let routes = Router::new()
            .route("/job-take/{worker}", get(take))
            .route("/job-done/{worker}/{job}", post(done))
            .route("/ping/{worker}", get(alive))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Addresses {
            take: format!("{base}/job-take/$ID?gpu=H200"),
            done: Some(format!("{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=H200")),
            ping: Some(format!("{base}/ping/$RUNPOD_POD_ID")),
            ping_interval: Duration::from_millis(50),
            worker: "pod-1".into(),
            key: "rpa_secret".to_owned().into(),
        }
    }

    fn offer(&self, id: &str, input: Value) {
        self.jobs.lock().unwrap().push_back((200, json!({"id": id, "input": input, "webhook": null})));
    }

    fn results(&self) -> Vec<(String, Value)> {
        self.done.lock().unwrap().iter().map(|(id, .., body)| (id.clone(), body.clone())).collect()
    }
}

#[tokio::test]
async fn the_worker_takes_jobs_and_hands_results_over() {
    let api = JobApi::default();
    let server = server();
    let uri = format!("data:image/png;base64,{}", base64(&file(orange(16, 16), image::ImageFormat::Png)));
    api.jobs.lock().unwrap().extend([(204, Value::Null), (400, Value::Null)]);
    api.offer(
        "text/1",
        json!({
            "prompt": "a red apple", "negative_prompt": "blurry", "width": 64, "height": 48, "seed": 7,
            "scheduler": "K_EULER", "num_inference_steps": 4, "guidance_scale": 3.5, "num_images": 2,
        }),
    );
    api.offer("picture", json!({"prompt": "greener", "image_url": uri, "strength": 0.25}));
    api.offer("bad", json!({"prompt": "a", "num_inference_steps": 0}));
    api.offer("url", json!({"prompt": "a", "image_url": "https://example.com/a.png"}));
    api.offer("unknown", json!({"prompt": "a", "high_noise_frac": 0.8}));
    api.offer("fails", json!({"prompt": "!fail"}));
    let addresses = api.listen().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let working = tokio::spawn(worker::run(server.app.clone(), addresses, stopped));
    for _ in 0..1000 {
        if api.results().len() == 6 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let results = api.results();
    let ids: Vec<_> = results.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["text/1", "picture", "bad", "url", "unknown", "fails"], "in their order, none twice");

    let output = &results[0].1["output"];
    let images = output["images"].as_array().unwrap();
    assert_eq!((images.len(), &output["seed"], &output["image_url"]), (2, &json!(7), &images[0]));
    assert!(images[0].as_str().unwrap().starts_with("data:image/png;base64,iVBORw0KGgo"));
    let requests = server.script.requests();
    assert_eq!((requests[0].width, requests[0].height, requests[1].seed), (Some(64), Some(48), 8));
    assert_eq!((requests[0].num_inference_steps, requests[0].guidance_scale), (Some(4), Some(3.5)));
    assert_eq!(requests[0].negative_prompt.as_deref(), Some("blurry"));
    assert_eq!(requests[0].scheduler.as_deref(), Some("K_EULER"));
    assert!(
        matches!(&requests[2].mode, Mode::ImageToImage { strength: 0.25, image } if *image == orange(16, 16))
    );

    for (index, words) in [
        (2, &["num_inference_steps", "1 to 150", "0"][..]),
        (3, &["image_url", "data URI", "fetched"]),
        (4, &["high_noise_frac"]),
        (5, &["the latents are not finite"]),
    ] {
        let error = results[index].1["error"].as_str().unwrap();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(results[index].1.get("output").is_none());
    }
    {
        let done = api.done.lock().unwrap();
        let (_, query, headers, _) = &done[0];
        assert_eq!(query, "gpu=H200&isStream=false");
        assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(
            (&headers["x-request-id"], authorization(headers)),
            (&"text%2F1".parse().unwrap(), "rpa_secret".into())
        );
        let asked = api.asked.lock().unwrap();
        assert_eq!(asked[0], ("pod-1?gpu=H200&job_in_progress=0".into(), "rpa_secret".into()));
        assert!(api.pings.lock().unwrap().iter().all(|ping| ping.starts_with("pod-1?")));
        assert!(!api.pings.lock().unwrap().is_empty());
    }
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(2), working).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_result_is_handed_over_again_when_that_fails() {
    let api = JobApi::default();
    *api.failures.lock().unwrap() = 1;
    api.offer("once", json!({"prompt": "a", "width": 16, "height": 16}));
    let server = server();
    let (_stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let working = tokio::spawn(worker::run(server.app.clone(), api.listen().await, stopped));
    let results = api.clone();
    for _ in 0..500 {
        if !results.results().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(api.results().len(), 1);
    eventually("pings go on", || api.pings.lock().unwrap().len() > 2).await;
    working.abort();
}

#[tokio::test]
async fn no_job_is_taken_before_the_model_is_there() {
    let api = JobApi::default();
    let script = Script { load_time: Duration::from_millis(400), ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let working = tokio::spawn(worker::run(server.app.clone(), api.listen().await, stopped));
    eventually("it says that it lives", || !api.pings.lock().unwrap().is_empty()).await;
    assert_eq!(server.get("/ping").await.status, 204, "the model is still loading");
    assert!(api.asked.lock().unwrap().is_empty());
    server.app.engine.model().await.unwrap();
    eventually("it asks for a job", || !api.asked.lock().unwrap().is_empty()).await;
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(2), working).await.unwrap().unwrap().unwrap();
}
