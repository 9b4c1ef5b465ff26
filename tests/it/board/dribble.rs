//! Row 5: clients that send a byte now and then are given up, and others do not feel them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{full, ms, quantile, row};
use crate::fake::Script;
use crate::harness::Setup;
use crate::running::ask;

const HEAD: &str = "GET /health HTTP/1.1\r\nx-a: ";
const BODY: &str =
    "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n";

/// Half of the sockets begin with a head, half with a body, and each gets a further byte every `pause`. How long the
/// longest-lived of each half lived.
fn dribble(address: SocketAddr, sockets: usize, pause: Duration) -> [Duration; 2] {
    let connect = |i: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all([HEAD, BODY][i % 2].as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        (i % 2, stream, Instant::now(), Instant::now())
    };
    let mut open: Vec<_> = (0..sockets).map(connect).collect();
    let mut longest = [Duration::ZERO; 2];
    while !open.is_empty() {
        open.retain_mut(|(half, stream, begun, last)| {
            let mut answer = [0; 4096];
            let ended = loop {
                match stream.read(&mut answer) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) => break error.kind() != ErrorKind::WouldBlock,
                }
            };
            if ended {
                longest[*half] = longest[*half].max(begun.elapsed());
            } else if last.elapsed() >= pause {
                *last = Instant::now();
                // A connection that is closed by now is seen at the next reading.
                let _ = stream.write(b"x");
            }
            !ended
        });
        std::thread::sleep(Duration::from_millis(5));
    }
    longest
}

/// Times of small jobs, one after the other.
fn honest(address: SocketAddr, jobs: usize) -> Vec<Duration> {
    let body =
        json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 4, "numImages": 1}}).to_string();
    let job = |_| {
        let begun = Instant::now();
        let answer = ask(address, "POST", "/generate", &[], &body).unwrap();
        assert!(answer.is_ok_and(|answer| answer.status == 200));
        begun.elapsed()
    };
    (0..jobs).map(job).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dribbling_clients_are_given_up_and_harm_nobody() {
    let script = Script { step_time: Duration::from_millis(5), native_size_px: 64, ..Script::default() };
    let mut server = Setup { script, ..Setup::default() }.start();
    let (sockets, jobs, pause) = match full() {
        true => (500, 400, Duration::from_secs(1)),
        false => (40, 12, Duration::from_millis(20)),
    };
    if !full() {
        server.edge.patience.head = Duration::from_millis(300);
        server.edge.bodies.time = Duration::from_millis(600);
    }
    let allowed = [server.edge.patience.head, server.edge.bodies.time].map(|time| match full() {
        true => time + Duration::from_secs(1),
        false => time * 2,
    });
    let listening = server.listen(Duration::from_secs(1)).await;
    let address = listening.address;
    let measured = tokio::task::spawn_blocking(move || {
        let alone = honest(address, jobs);
        let dribblers = std::thread::spawn(move || dribble(address, sockets, pause));
        let beside = honest(address, jobs);
        (alone, beside, dribblers.join().unwrap())
    });
    let (alone, beside, longest) = measured.await.unwrap();
    let (alone, beside) = (quantile(&alone, 0.99), quantile(&beside, 0.99));
    let factor = beside.as_secs_f64() / alone.as_secs_f64();
    let [heads, bodies] = longest.map(|time| time.as_secs_f64());
    // Twelve jobs have no p99 to speak of.
    let unharmed = if full() { factor < 2.0 } else { beside < alone + Duration::from_secs(1) };
    row(
        "5",
        &format!("{sockets} dribbling sockets"),
        "heads closed <= 11 s, bodies <= 31 s; other p99 < 2x",
        format!(
            "heads {heads:.1} s, bodies {bodies:.1} s; p99 {} alone, {} beside them",
            ms(alone),
            ms(beside)
        ),
        longest[0] <= allowed[0] && longest[1] <= allowed[1] && unharmed,
    );
}
