//! `/health`, `/benchmark` and `/`.

use std::time::{Duration, Instant};

use aquatint::engine::EngineError;
use serde_json::json;

use crate::fake::Script;
use crate::harness::{Setup, eventually, server};

#[tokio::test]
async fn tells_what_clients_look_for() {
    let server = server();
    server.app.engine.model().await.unwrap();
    let health = server.get("/health").await.json();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["state"], "ready");
    assert_eq!(health["device"], "cpu");
    assert_eq!(health["model"], "fake");
    let expected = json!({
        "steps": 20, "guidance_scale": 5.0, "scheduler": "EulerDiscreteScheduler", "memory_optimizations": [],
    });
    assert_eq!(health["optimizations"], expected);
    assert_eq!(health["refine_mode"], "img2img");
    assert_eq!(health["size_table"]["standard"]["9:16"], json!([512, 896]));
    assert_eq!(health["size_table"]["high"]["3:2"], json!([1024, 680]));
    assert_eq!(health["size_table"]["note"], "as documented");
    assert_eq!(health["queue"], json!({"running": 0, "waiting": 0, "capacity": 33}));

    let small =
        Setup { script: Script { native_size_px: 64, ..Script::default() }, ..Setup::default() }.start();
    small.app.engine.model().await.unwrap();
    let table = &small.get("/health").await.json()["size_table"];
    assert_eq!(table["standard"]["1:1"], json!([64, 64]));
    assert_eq!(table["note"], "scaled to the 64x64 pixels that this model was trained on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_at_once_while_loading_and_painting() {
    let script = Script {
        load_time: Duration::from_millis(300),
        step_time: Duration::from_millis(100),
        ..Script::default()
    };
    let server = Setup { script, ..Setup::default() }.start();
    let body = json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 4, "numImages": 1}});
    let job = server.post("/generate", &body);
    let watch = async {
        let mut states = Vec::new();
        loop {
            let asked = Instant::now();
            let health = server.get("/health").await;
            let took = asked.elapsed();
            assert!(took < Duration::from_millis(50), "took {took:?}");
            let health = health.json();
            assert_eq!(health["status"], "healthy");
            assert!(health["device"].is_string());
            states.push((health["state"].clone(), health["running"]["step"].clone()));
            if health["running"]["step"] == 3 {
                assert_eq!(health["running"], json!({"picture": 0, "pictures": 1, "step": 3, "steps": 4}));
                assert_eq!(health["queue"]["running"], 1);
                return states;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (answer, states) = tokio::join!(job, watch);
    assert_eq!(answer.status, 200, "a request waits for the model");
    assert_eq!(states[0].0, "loading");
    assert!(states.contains(&(json!("ready"), json!(1))));
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_said_to_every_caller() {
    let error = EngineError::File { path: "/models/x/unet".into(), reason: "truncated".into() };
    let script = Script { load_error: Some(error.clone()), ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    assert_eq!(server.app.engine.failed().await, error);
    assert_eq!(server.get("/health").await.json()["state"], "failed");
    let answer = server.post("/generate", &json!({"prompt": "a", "aspectRatio": "1:1"})).await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json(), json!({"detail": "Generation failed: unet: truncated"}));
    let queue = server.queue.clone();
    eventually("the place is free again", move || {
        use aquatint::queue::JobQueue;
        queue.depth().waiting == 0
    })
    .await;
}

#[tokio::test]
async fn three_panics_in_a_row_end_the_engine() {
    let server = server();
    let panic = json!({"prompt": "!panic", "aspectRatio": "1:1"});
    let fine = json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 1}});
    for body in [&panic, &panic, &fine, &panic, &panic] {
        server.post("/generate", body).await;
    }
    assert_eq!(server.post("/generate", &fine).await.status, 200);
    for _ in 0..3 {
        assert_eq!(server.post("/generate", &panic).await.status, 500);
    }
    assert_eq!(server.app.engine.failed().await, EngineError::Failed("3 jobs in a row panicked".into()));
}

#[tokio::test]
async fn the_benchmark_makes_one_picture_with_the_defaults() {
    let server = Setup { flags: vec!["--steps", "3"], ..Setup::default() }.start();
    let answer = server.get("/benchmark").await;
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    let fields: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "benchmark",
        "prompt",
        "generation_time_seconds",
        "steps",
        "device",
        "guidance_scale",
        "images_generated",
        "performance_rating",
    ];
    assert_eq!(fields, expected);
    assert_eq!(answer["steps"], 3);
    assert_eq!(answer["images_generated"], 1);
    assert!(answer["generation_time_seconds"].as_f64().unwrap() < 5.0);
    assert_eq!(answer["performance_rating"], "excellent");
}

#[tokio::test]
async fn the_front_page_is_html_for_browsers_alone() {
    let server = server();
    let browser =
        server.call("GET", "/", &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")], b"").await;
    assert_eq!(browser.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(browser.header("vary"), Some("Accept, Origin"));
    for other in ["*/*", "application/json"] {
        let answer = server.call("GET", "/", &[("accept", other)], b"").await.json();
        assert_eq!(answer["status"], "ok");
        assert_eq!(answer["endpoints"], json!(["/generate", "/refine", "/health", "/benchmark"]));
    }
    // Whatever the page refers to is here, and it refers to nothing elsewhere.
    let policy = browser.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let html = browser.text().to_owned();
    assert_eq!(server.get("/page/nothing.js").await.status, 404);
    // Whatever the page refers to is here, and it refers to nothing elsewhere.
    let mut files = vec!["jobs.js", "gallery.js", "settings.js", "start.js", "mask.js", "png.js"];
    files.extend(html.split("page/").skip(1).map(|rest| rest.split('"').next().unwrap()));
    assert!(files.len() >= 9);
    for name in files {
        let file = server.get(&format!("/page/{name}")).await;
        assert_eq!(file.status, 200, "{name}");
        let kind = match name.rsplit('.').next() {
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(file.header("content-type"), Some(kind), "{name}");
        let text = file.text().replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http://") && !text.contains("https://"), "{name} refers to somewhere else");
    }
    assert!(!html.contains("http://") && !html.contains("https://"));
}
