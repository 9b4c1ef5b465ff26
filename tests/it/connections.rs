//! How long connections may idle, go unread, and come while the server stops.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aquatint::queue::JobQueue;
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Listening, Setup, eventually, server};
use crate::running::{Raw, ask};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads one answer with a content-length off a connection that goes on.
fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0].into());
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    text
}

/// How long it takes until the server closes.
fn closed_after(mut stream: TcpStream) -> Duration {
    let begun = Instant::now();
    let _closed_or_reset = stream.read_to_end(&mut Vec::new());
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_kept_for_longer_than_a_head_may_take() {
    let mut setup = server();
    setup.edge.patience.head = Duration::from_millis(200);
    setup.edge.patience.idle = Duration::from_millis(900);
    let listening = setup.listen(Duration::from_secs(1)).await;
    let (mut idle, mut begun) = (listening.send(HEALTH), listening.send(HEALTH));
    let silent = listening.send("");
    let test = move || {
        assert!(closed_after(silent) < Duration::from_millis(700), "a first head has no longer");
        answer(&mut idle);
        answer(&mut begun);
        std::thread::sleep(Duration::from_millis(450));
        // Twice what a head may take, and it still answers; then half a head comes.
        idle.write_all(HEALTH.as_bytes()).unwrap();
        assert!(answer(&mut idle).starts_with("HTTP/1.1 200"));
        begun.write_all(b"GET /hea").unwrap();
        let took = closed_after(begun);
        assert!((100..450).contains(&took.as_millis()), "a head that has begun was given {took:?}");
        let took = closed_after(idle);
        assert!((450..1500).contains(&took.as_millis()), "an idle connection was kept for {took:?}");
    };
    tokio::task::spawn_blocking(test).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_is_given_up() {
    let script = Script { native_size_px: 1024, ..Script::default() };
    let mut setup = Setup { script, ..Setup::default() }.start();
    setup.edge.patience.unread = Duration::from_millis(300);
    let listening = setup.listen(Duration::from_secs(1)).await;
    let http = listening.server.app.operations.http.clone();
    // The OpenAPI document again and again: more than the kernel holds for a reader who does not come.
    let many = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    let mut unread = listening.send(&many);
    let begun = Instant::now();
    eventually("it is there", || http.connections.get() == 1).await;
    eventually("it is given up", || http.connections.get() == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // What had been sent may be read, and then the connection is broken.
    let read = tokio::task::spawn_blocking(move || unread.read_to_end(&mut Vec::new()));
    assert!(read.await.unwrap().is_err(), "it ends as if it were whole");

    // A slow reader who goes on reading is served to the end.
    let last = "GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut slow = listening.send(&format!("{many}{last}"));
    let read = tokio::task::spawn_blocking(move || {
        let (mut whole, mut part) = (0, vec![0; 1 << 20]);
        loop {
            match slow.read(&mut part) {
                Ok(0) => return Ok(whole),
                Ok(n) => whole += n,
                Err(error) => return Err(error),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let whole = read.await.unwrap().unwrap();
    assert!(whole > 4 << 20, "{whole} bytes are too few to tell");
}

async fn painting(step_ms: u64, drain: Duration) -> Listening {
    let script =
        Script { step_time: Duration::from_millis(step_ms), native_size_px: 64, ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    server.listen(drain).await
}

async fn submit(listening: &Listening, steps: usize) -> String {
    let body = json!({"prompt": "a", "num_images": 2, "steps": steps});
    let submitted = listening.server.post("/jobs", &body).await;
    assert_eq!(submitted.status, 202, "{}", submitted.text());
    submitted.json()["id"].as_str().unwrap().to_owned()
}

/// One request on a connection of its own; `None` where nobody listens any more.
async fn call(listening: &Listening, method: &'static str, path: String, body: Value) -> Option<Raw> {
    let address = listening.address;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let call = move || ask(address, method, &path, &[], &body).ok()?.ok();
    tokio::task::spawn_blocking(call).await.unwrap()
}

async fn get(listening: &Listening, path: impl Into<String>) -> Option<Raw> {
    call(listening, "GET", path.into(), Value::Null).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_polls_gets_the_result_from_a_server_that_stops() {
    let mut listening = painting(20, Duration::from_secs(20)).await;
    let running = submit(&listening, 30).await;
    let queue = listening.server.queue.clone();
    eventually("it runs", || queue.depth().running == 1).await;
    let waiting = submit(&listening, 30).await;
    listening.tell_to_stop();
    let stopping = listening.server.app.operations.stopping.clone();
    eventually("it is told", || stopping.is_told()).await;

    let refused = call(&listening, "POST", "/jobs".into(), json!({"prompt": "b"})).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.body_text());
    let one = json!({"prompt": "a", "aspectRatio": "1:1", "config": {"numImages": 1}});
    assert_eq!(call(&listening, "POST", "/generate".into(), one).await.unwrap().status, 503);
    for (path, status) in [("/health", 200), ("/ready", 503), ("/metrics", 200)] {
        assert_eq!(get(&listening, path).await.unwrap().status, status, "{path}");
    }
    // The one that waited is told so; the one at work goes on, for whoever asks and asks again.
    let ended = get(&listening, format!("/jobs/{waiting}")).await.unwrap();
    assert!(ended.body_text().contains("the server is shutting down"), "{}", ended.body_text());
    let mut polls = 0;
    loop {
        let status = get(&listening, format!("/jobs/{running}")).await.expect("somebody still listens");
        let status: Value = serde_json::from_str(status.body_text()).unwrap();
        match status["state"].as_str().unwrap() {
            "done" => break,
            state => assert!(["waiting", "running", "decoding"].contains(&state), "{status}"),
        }
        polls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(polls > 3, "it was done after {polls} polls: nothing is shown");
    // It is there until all of it is fetched, and then not for long.
    for picture in ["images/0", "images/1"] {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(get(&listening, format!("/jobs/{running}/{picture}")).await.unwrap().status, 200);
    }
    let address = listening.address;
    tokio::time::timeout(Duration::from_millis(500), listening.ended()).await.unwrap();
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_deadline_holds_for_jobs_that_nobody_fetches() {
    // One that is at work too long, and one that is done and never fetched.
    for steps in [150, 1] {
        let mut listening = painting(20, Duration::from_millis(400)).await;
        let id = submit(&listening, steps).await;
        let events = listening.send(&format!("GET /jobs/{id}/events HTTP/1.1\r\nhost: x\r\n\r\n"));
        // One that still waits is not begun any more.
        let queue = listening.server.queue.clone();
        eventually("it has begun", || queue.depth().waiting == 0).await;
        let told = Instant::now();
        listening.tell_to_stop();
        let events = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            let _closed_or_reset = { events }.read_to_string(&mut text);
            text
        });
        listening.ended().await;
        let took = told.elapsed();
        assert!((300..1200).contains(&took.as_millis()), "{steps} steps: {took:?}");
        let (events, last) = (events.await.unwrap(), if steps == 1 { "done" } else { "failed" });
        assert!(events.contains(&format!("event: {last}")), "{steps} steps: {events}");
    }
}
