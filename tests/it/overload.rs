//! More callers than the server can serve, and callers who vanish, over real sockets: scoreboard rows 1 to 4 and 9.
//!
//! Each test runs for about a second here and at full length, ignored, for `scripts/full-check.sh`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aquatint::queue::JobQueue;
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::fake::Script;
use crate::harness::{Listening, Setup, eventually};
use crate::scoreboard::record;

const STEP: Duration = Duration::from_millis(20);

async fn listening(step: Duration, queue: &'static str) -> Listening {
    let script = Script { step_time: step, native_size_px: 64, ..Script::default() };
    let server = Setup { script, flags: vec!["--queue-size", queue], ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    server.listen(Duration::from_secs(30)).await
}

fn job(seed: usize, steps: usize) -> Value {
    json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": steps, "numImages": 1, "seed": seed}})
}

/// Sooner than the server closes a connection on which nothing is asked.
const IDLE: Duration = Duration::from_secs(5);

/// A kept connection, and when it was last used.
struct Client(TcpStream, Instant);

struct Answer {
    status: u16,
    retry_after_s: Option<u64>,
    body: Vec<u8>,
    took: Duration,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap(), Instant::now())
    }

    async fn send(&mut self, body: &str) {
        let head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
        let text = format!("{head} {}\r\n\r\n{body}", body.len());
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            self.0.writable().await.unwrap();
            // Nothing is written where the socket only seemed ready.
            rest = &rest[self.0.try_write(rest).unwrap_or(0)..];
        }
    }

    /// Adds what has come to `text`.
    async fn read(&mut self, text: &mut Vec<u8>) {
        let mut piece = [0; 16 << 10];
        loop {
            self.0.readable().await.unwrap();
            match self.0.try_read(&mut piece) {
                Ok(0) => panic!("the connection broke off"),
                Ok(read) => return text.extend(&piece[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn post(&mut self, body: &Value) -> Answer {
        self.exchange(&body.to_string()).await
    }

    async fn exchange(&mut self, body: &str) -> Answer {
        let started = Instant::now();
        if self.1.elapsed() > IDLE {
            *self = Self::connect(self.0.peer_addr().unwrap()).await;
        }
        self.send(body).await;
        let mut text = Vec::new();
        let head = loop {
            if let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.read(&mut text).await;
        };
        let lines = String::from_utf8_lossy(&text[..head]).to_lowercase();
        let header =
            |name: &str| lines.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
        let length = header("content-length:").unwrap() as usize;
        while text.len() < head + length {
            self.read(&mut text).await;
        }
        self.1 = Instant::now();
        Answer {
            status: lines.split_whitespace().nth(1).unwrap().parse().unwrap(),
            retry_after_s: header("retry-after:"),
            body: text[head..].to_vec(),
            took: started.elapsed(),
        }
    }
}

/// Whether the picture in an answer is the one of this seed.
fn is_right(answer: &Answer, seed: usize, steps: usize) -> bool {
    let json: Value = serde_json::from_slice(&answer.body).unwrap();
    let png = base64::engine::general_purpose::STANDARD.decode(json["images"][0].as_str().unwrap()).unwrap();
    let image = image::load_from_memory(&png).unwrap().to_rgb8();
    let (width, height) = image.dimensions();
    image.get_pixel(width - 1, height - 1).0 == Script::pixel(seed as u64, steps)
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn in_ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    pages * 4096
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// What a client saw.
#[derive(Default)]
struct Seen {
    right: usize,
    wrong: usize,
    without_retry_after: usize,
    rejections: Vec<Duration>,
}

/// Row 1: everybody asks again as soon as the server says so.
async fn crowd(clients: usize, seconds: f64) -> (Seen, f64) {
    let listening = listening(STEP, "64").await;
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let next = Arc::new(AtomicUsize::new(1000));
    let address = listening.address;
    let ask = |_| {
        let next = next.clone();
        tokio::spawn(async move {
            let (mut seen, mut client) = (Seen::default(), Client::connect(address).await);
            while Instant::now() < until {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let answer = client.post(&job(seed, 1)).await;
                match (answer.status, answer.retry_after_s) {
                    (200, _) if is_right(&answer, seed, 1) => seen.right += 1,
                    (503, Some(seconds)) => {
                        seen.rejections.push(answer.took);
                        // Within the test's time, and not all at once.
                        let left = until.saturating_duration_since(Instant::now());
                        let spread = Duration::from_millis(seed as u64 * 37 % 1000);
                        tokio::time::sleep((Duration::from_secs(seconds) + spread).min(left)).await;
                    }
                    (503, None) => seen.without_retry_after += 1,
                    _ => seen.wrong += 1,
                }
            }
            seen
        })
    };
    let started = Instant::now();
    let mut all = Seen::default();
    for client in (0..clients).map(ask).collect::<Vec<_>>() {
        let seen = client.await.unwrap();
        all.right += seen.right;
        all.wrong += seen.wrong;
        all.without_retry_after += seen.without_retry_after;
        all.rejections.extend(seen.rejections);
    }
    // What the engine could have made, had it done nothing but these steps.
    let steps = &listening.server.app.engine.meter().step_s;
    let possible = started.elapsed().as_secs_f64() * steps.count() as f64 / steps.sum();
    let rate = all.right as f64 / possible;
    (all, rate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_gets_right_answers_or_is_told_when_to_come_back() {
    let (seen, rate) = crowd(100, 1.2).await;
    assert_eq!((seen.wrong, seen.without_retry_after), (0, 0));
    assert!(!seen.rejections.is_empty());
    assert!(rate > 0.5, "{rate:.2} of the engine's rate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; run by scripts/full-check.sh"]
async fn row_1() {
    let (mut seen, rate) = crowd(256, 60.0).await;
    let p99 = percentile(&mut seen.rejections, 0.99);
    let (wrong, right, rejected) = (seen.wrong + seen.without_retry_after, seen.right, seen.rejections.len());
    let measured = format!(
        "{wrong} wrong of {right}; {:.1} % of the engine's rate; {rejected} rejected, p99 {}, all with Retry-After",
        rate * 100.0,
        in_ms(p99)
    );
    record(
        1,
        "queue 64, 20 ms jobs, 256 clients, 60 s",
        &measured,
        "0 wrong; >= 95 %; rejects p99 < 10 ms, all with Retry-After",
    );
    assert!(wrong == 0 && rate >= 0.95 && p99 < Duration::from_millis(10), "{measured}");
}

/// Row 2: ten times as many requests as can be served, then one caller alone. The memory that was added, the median
/// time alone before, and that from the end of the overload until two seconds later.
async fn overload(seconds: f64) -> (i64, Duration, Duration) {
    let listening = listening(STEP, "64").await;
    let address = listening.address;
    let mut client = Client::connect(address).await;
    let mut alone = Vec::new();
    for seed in 0..15 {
        alone.push(client.post(&job(seed, 1)).await.took);
    }
    let before = resident();
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut pace = tokio::time::interval(STEP / 10);
    let (mut sent, mut highest) = (0, before);
    let mut callers = tokio::task::JoinSet::new();
    while Instant::now() < until {
        pace.tick().await;
        sent += 1;
        let seed = sent;
        callers.spawn(async move { Client::connect(address).await.post(&job(seed, 1)).await.status });
        while let Some(status) = callers.try_join_next() {
            assert!([200, 503].contains(&status.unwrap()));
        }
        if sent % 50 == 0 {
            highest = highest.max(resident());
        }
    }
    let ended = Instant::now();
    // Those accepted are served first; two seconds are for that.
    tokio::time::sleep_until((ended + Duration::from_secs(2)).into()).await;
    let mut after = Vec::new();
    for seed in 0..15 {
        after.push(client.post(&job(seed, 1)).await.took);
    }
    while let Some(status) = callers.join_next().await {
        assert!([200, 503].contains(&status.unwrap()));
    }
    let added = highest.max(resident()) as i64 - before as i64;
    (added, percentile(&mut alone, 0.5), percentile(&mut after, 0.5))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overload_passes_and_leaves_nothing_behind() {
    let (_, alone, after) = overload(0.7).await;
    assert!(after < alone * 3, "{after:?}, {alone:?} before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute; run by scripts/full-check.sh"]
async fn row_2() {
    let (added, alone, after) = overload(30.0).await;
    let mib = added as f64 / f64::from(1 << 20);
    let measured = format!("memory {mib:+.1} MiB; p50 {} before, {} after 2 s", in_ms(alone), in_ms(after));
    record(2, "10x overload for 30 s, then recovery", &measured, "memory +<= 32 MiB; p50 normal within 2 s");
    assert!(mib <= 32.0 && after < alone.mul_f64(1.5), "{measured}");
}

/// Row 3: callers vanish while they wait or run. Steps from when the last one went, steps after all places were free,
/// and places still taken.
async fn vanish(callers: usize) -> (usize, usize, usize) {
    // A job takes longer than it takes them all to come.
    let listening = listening(Duration::from_millis(50), "2000").await;
    let queue = listening.server.queue.clone();
    let mut open = Vec::new();
    for seed in 0..callers {
        let mut client = Client::connect(listening.address).await;
        client.send(&job(seed, 150).to_string()).await;
        open.push(client);
        // Some go as soon as they have asked, some while they run, most while they wait.
        if seed % 3 == 0 {
            open.remove(seed / 3 % open.len());
        }
    }
    eventually("the rest has places", || queue.depth().running + queue.depth().waiting >= open.len()).await;
    let script = listening.server.script.clone();
    let gone = script.steps_taken();
    drop(open);
    eventually("no place is taken", || queue.depth().running + queue.depth().waiting == 0).await;
    let then = script.steps_taken();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let depth = queue.depth();
    let mut client = Client::connect(listening.address).await;
    let answer = client.post(&job(7, 2)).await;
    assert!(answer.status == 200 && is_right(&answer, 7, 2));
    (then - gone, script.steps_taken() - 2 - then, depth.running + depth.waiting)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_vanish_take_no_place_and_no_step_with_them() {
    let (_, after, lost) = vanish(60).await;
    assert_eq!((after, lost), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some seconds; run by scripts/full-check.sh"]
async fn row_3() {
    let (further, after, lost) = vanish(1000).await;
    let measured = format!("{lost} places lost; {further} further steps in all, {after} after depth 0");
    record(
        3,
        "1,000 clients vanish while queued or running",
        &measured,
        "0 permits lost; <= 1 further step each; depth back to 0",
    );
    assert!(further <= 1000 && (after, lost) == (0, 0), "{measured}");
}

/// Row 4: callers come to a full queue and go. The deepest it was, of how many places, and panics.
async fn knock(times: usize) -> (usize, usize) {
    let listening = listening(STEP, "8").await;
    let queue = listening.server.queue.clone();
    let mut holders = Vec::new();
    for seed in 0..9 {
        let mut client = Client::connect(listening.address).await;
        client.send(&job(seed, 150).to_string()).await;
        holders.push(client);
    }
    eventually("the queue is full", || queue.depth().running + queue.depth().waiting == 9).await;
    let mut deepest = 0;
    for seed in 0..times {
        let mut client = Client::connect(listening.address).await;
        if seed % 4 > 0 {
            client.send(&job(seed, 1).to_string()).await;
        }
        if seed % 4 > 2 {
            tokio::task::yield_now().await;
        }
        drop(client);
        let depth = queue.depth();
        deepest = deepest.max(depth.running + depth.waiting);
    }
    drop(holders);
    eventually("no place is taken", || queue.depth().running + queue.depth().waiting == 0).await;
    let mut client = Client::connect(listening.address).await;
    assert_eq!(client.post(&job(1, 1)).await.status, 200);
    (deepest, queue.depth().capacity)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_come_and_go_at_a_full_queue_do_no_harm() {
    assert_eq!(knock(300).await, (9, 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some seconds; run by scripts/full-check.sh"]
async fn row_4() {
    let panics = Arc::new(AtomicUsize::new(0));
    let (count, before) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        count.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
    let (deepest, capacity) = knock(5000).await;
    let panics = panics.load(Ordering::SeqCst);
    let measured = format!("{panics} panics; at most {deepest} of {capacity} places taken");
    record(4, "5,000 connect/disconnect at a full queue", &measured, "0 panics, 0 overruns");
    assert!(panics == 0 && deepest <= capacity, "{measured}");
}

/// Row 9: many requests, some cancelled, some bad. Bytes that each adds, descriptors and threads at the end less those
/// at the start.
async fn churn(requests: usize) -> (f64, i64, i64) {
    let listening = listening(Duration::ZERO, "64").await;
    let (address, queue) = (listening.address, listening.server.queue.clone());
    let script = listening.server.script.clone();
    let mut client = Client::connect(address).await;
    assert_eq!(client.post(&job(0, 1)).await.status, 200);
    let mut samples = Vec::new();
    let idle = || tokio::time::sleep(Duration::from_secs(11));
    // Threads that encode pictures end after ten seconds without work.
    idle().await;
    let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    for i in 0..requests {
        match i % 10 {
            0 | 5 => {
                let mut leaving = Client::connect(address).await;
                leaving.send(&job(i, 50).to_string()).await;
                drop(leaving);
            }
            3 => assert_eq!(client.exchange("{").await.status, 422),
            _ => {
                let answer = client.post(&job(i, 1)).await;
                assert!([200, 503].contains(&answer.status), "{}", answer.status);
            }
        }
        if i % 100 == 0 {
            // What the fake remembers of each request is not the server's.
            script.seen.lock().unwrap().clear();
            script.steps.lock().unwrap().clear();
        }
        if i % 100 == 0 && i > requests / 4 {
            samples.push((i as f64, resident() as f64));
        }
    }
    eventually("no place is taken", || queue.depth().running + queue.depth().waiting == 0).await;
    idle().await;
    let n = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|s| s.0), mean(|s| s.1));
    let slope = samples.iter().map(|s| (s.0 - x) * (s.1 - y)).sum::<f64>()
        / samples.iter().map(|s| (s.0 - x).powi(2)).sum::<f64>();
    let more = |now: usize, then: usize| now as i64 - then as i64;
    (slope, more(entries("/proc/self/fd"), descriptors), more(entries("/proc/self/task"), threads))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, alone; run by scripts/full-check.sh"]
async fn row_9() {
    let (slope, descriptors, threads) = churn(20_000).await;
    let measured =
        format!("{slope:.0} B a request; descriptors {descriptors:+}, threads {threads:+} at the end");
    let test = "20,000 requests, 20 % cancelled, 10 % bad";
    record(9, test, &measured, "memory slope < 64 B/request; descriptors and threads equal at the end");
    assert!(slope < 64.0 && descriptors <= 0 && threads <= 0, "{measured}");
}
