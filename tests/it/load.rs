//! Full queues, callers who leave, and stopping, over real sockets.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aquatint::queue::JobQueue;
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Listening, Setup, eventually, status_of};
use crate::refine::png;

fn job(steps: usize) -> Value {
    json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": steps, "numImages": 1}})
}

async fn listening(step_ms: u64, flags: &[&'static str], drain: Duration) -> Listening {
    let script =
        Script { step_time: Duration::from_millis(step_ms), native_size_px: 64, ..Script::default() };
    let server = Setup { script, flags: flags.to_vec(), ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    server.listen(drain).await
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let listening = listening(20, &["--queue-size", "2"], LONG).await;
    let queue = listening.server.queue.clone();
    let mut accepted = Vec::new();
    for _ in 0..3 {
        accepted.push(listening.generate(&job(10)));
    }
    eventually("three places are taken", || queue.depth().running + queue.depth().waiting == 3).await;
    let started = Instant::now();
    let refused = listening.server.post("/generate", &job(1)).await;
    assert!(started.elapsed() < Duration::from_millis(50));
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json(), json!({"detail": "the queue is full: 3 jobs are running or waiting"}));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=600).contains(&seconds));
    // What is wrong in itself is said before any place is looked for.
    assert_eq!(listening.server.post("/generate", &json!({})).await.status, 422);
    for stream in accepted {
        assert_eq!(status_of(stream).await, Some(200));
    }
    assert_eq!(listening.server.post("/generate", &job(1)).await.status, 200);
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_job_within_a_step() {
    let listening = listening(20, &[], LONG).await;
    let script = &listening.server.script;
    let stream = listening.generate(&job(100));
    eventually("it runs", || script.steps_taken() >= 3).await;
    drop(stream);
    let queue = listening.server.queue.clone();
    let at_leaving = script.steps_taken();
    eventually("nothing runs", || queue.depth().running == 0).await;
    let further = script.steps_taken() - at_leaving;
    assert!(further <= 2, "{further} further steps: one at work, one before the server saw it");
    assert_eq!(script.decoded.load(Ordering::SeqCst), 0);
    assert_eq!(listening.server.post("/generate", &job(1)).await.status, 200);
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_job_within_a_caption() {
    let script = Script { caption_time: Duration::from_millis(50), ..Script::default() };
    let flags = vec!["--refine-mode", "caption"];
    let listening = Setup { script, flags, ..Setup::default() }.start().listen(LONG).await;
    let script = &listening.server.script;
    let image = png(16, 16);
    let stream = listening.post("/refine", &json!({"refinePrompt": "a", "images": vec![image; 8]}));
    eventually("it runs", || script.captioned() >= 1).await;
    drop(stream);
    let queue = listening.server.queue.clone();
    let at_leaving = script.captioned();
    eventually("nothing runs", || queue.depth().running == 0).await;
    let further = script.captioned() - at_leaving;
    assert!(further <= 2, "{further} further captions: one at work, one before the server saw it");
    assert!(script.requests().is_empty(), "no picture is begun");
}

#[tokio::test]
async fn callers_who_leave_while_waiting_free_their_places_at_once() {
    let listening = listening(20, &["--queue-size", "50"], LONG).await;
    let queue = listening.server.queue.clone();
    let first = listening.generate(&job(40));
    eventually("it runs", || queue.depth().running == 1).await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(listening.generate(&job(40)));
    }
    eventually("all wait", || queue.depth().waiting == 50).await;
    drop(waiting);
    eventually("none waits", || queue.depth().waiting == 0).await;
    assert_eq!(queue.depth().running, 1, "the first still runs");
    assert_eq!(status_of(first).await, Some(200));
    assert_eq!(listening.server.script.requests().len(), 1);
}

#[tokio::test]
async fn stopping_finishes_the_running_job_and_answers_the_waiting_ones() {
    let mut listening = listening(20, &[], LONG).await;
    let queue = listening.server.queue.clone();
    let running = listening.generate(&job(20));
    eventually("it runs", || queue.depth().running == 1).await;
    let waiting = [listening.generate(&job(20)), listening.generate(&job(20))];
    eventually("two wait", || queue.depth().waiting == 2).await;
    listening.tell_to_stop();
    for stream in waiting {
        assert_eq!(status_of(stream).await, Some(503));
    }
    assert_eq!(status_of(running).await, Some(200));
    let address = listening.address;
    tokio::time::timeout(Duration::from_millis(500), listening.ended()).await.unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn stopping_is_quick_when_idle_and_bounded_when_not() {
    let mut idle = listening(1, &[], LONG).await;
    let kept = idle.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(status_of(kept.try_clone().unwrap()).await, Some(200));
    idle.tell_to_stop();
    tokio::time::timeout(Duration::from_millis(500), idle.ended()).await.unwrap();

    let mut busy = listening(20, &[], Duration::from_millis(200)).await;
    let _half = busy.send("GET /health HTTP/1.1\r\nho");
    let queue = busy.server.queue.clone();
    let _job = busy.generate(&job(150));
    eventually("a job runs", || queue.depth().running == 1).await;
    busy.tell_to_stop();
    tokio::time::timeout(Duration::from_millis(700), busy.ended()).await.unwrap();
}

#[tokio::test]
async fn stopping_while_loading_answers_those_who_wait_for_the_model() {
    let script = Script { load_time: Duration::from_secs(2), ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    let mut listening = server.listen(LONG).await;
    let waiting = listening.generate(&job(1));
    let queue = listening.server.queue.clone();
    eventually("it has a place", || queue.depth().waiting == 1).await;
    let told = Instant::now();
    listening.tell_to_stop();
    assert_eq!(status_of(waiting).await, Some(503));
    listening.ended().await;
    assert!(told.elapsed() < Duration::from_millis(700), "took {:?}", told.elapsed());
}
