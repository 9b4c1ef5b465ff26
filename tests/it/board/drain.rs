//! Row 6: how long the server takes to end once it is told to.

use std::io::Read;
use std::time::{Duration, Instant};

use aquatint::queue::JobQueue;
use serde_json::json;

use super::{ms, row};
use crate::fake::Script;
use crate::harness::{Listening, Setup, eventually, status_of};

const DRAIN: Duration = Duration::from_secs(30);

async fn listening(step_ms: u64) -> Listening {
    let script =
        Script { step_time: Duration::from_millis(step_ms), native_size_px: 64, ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    server.listen(DRAIN).await
}

async fn end(mut listening: Listening) -> Duration {
    let told = Instant::now();
    listening.tell_to_stop();
    listening.ended().await;
    told.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_ends_in_time() {
    let idle = listening(1).await;
    let _kept_alive = {
        let stream = idle.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(status_of(stream.try_clone().unwrap()).await, Some(200));
        stream
    };
    let idle = end(idle).await;

    let busy = listening(20).await;
    let queue = busy.server.queue.clone();
    let begun = Instant::now();
    let job =
        busy.generate(&json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 40, "numImages": 1}}));
    eventually("the job runs", || queue.depth().running == 1).await;
    let (busy, job) = tokio::join!(end(busy), async { (status_of(job).await, begun.elapsed()) });
    assert_eq!(job.0, Some(200), "the running job is finished");
    let beyond = begun.elapsed().saturating_sub(job.1);

    let half = listening(1).await;
    let _half_a_head = half.send("GET /health HTTP/1.1\r\nho");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let half = end(half).await;

    // A stream of events for a job that waits behind a running one.
    let streaming = listening(20).await;
    let queue = streaming.server.queue.clone();
    let running = streaming.generate(&json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 30}}));
    eventually("the job runs", || queue.depth().running == 1).await;
    let body = json!({"prompt": "a", "stream": true, "partial_images": 1, "size": "64x64", "steps": 150});
    let mut events = streaming.post("/v1/images/generations", &body);
    eventually("the other waits", || queue.depth().waiting == 1).await;
    let told = Instant::now();
    let ended = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        events.read_to_string(&mut text).unwrap();
        (text, told.elapsed())
    });
    let (_, (text, stream), running) =
        tokio::join!(end(streaming), async { ended.await.unwrap() }, status_of(running));
    assert!(text.contains("text/event-stream") && text.contains("event: error"), "{text}");
    assert_eq!(running, Some(200));

    let limit = Duration::from_millis(500);
    row(
        "6",
        "drain: idle / one job / half head / open SSE",
        "<= 0.5 s / job + 0.5 s / <= 30 s / <= 1 s; exit 0",
        format!("{} / job + {} ({} in all) / {} / {}", ms(idle), ms(beyond), ms(busy), ms(half), ms(stream)),
        idle <= limit && beyond <= limit && half <= DRAIN && stream <= Duration::from_secs(1),
    );
}
