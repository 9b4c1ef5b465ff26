//! Row 5: clients that send a byte now and then are given up, and others do not feel them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{full, ms, quantile, row};
use crate::fake::Script;
use crate::harness::Setup;

/// How long the connection lived that sends `start` and then a byte every `pause`.
async fn dribble(address: SocketAddr, start: &'static str, pause: Duration) -> Duration {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    stream.write_all(start.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let write = async {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut answer = Vec::new();
        let _closed_or_reset = reader.read_to_end(&mut answer).await;
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    begun.elapsed()
}

/// Times of small jobs, one after the other.
async fn honest(address: SocketAddr, jobs: usize) -> Vec<Duration> {
    let body =
        json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 4, "numImages": 1}}).to_string();
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut times = Vec::new();
    for _ in 0..jobs {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        times.push(begun.elapsed());
    }
    times
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
        server.edge.header_timeout = Duration::from_millis(300);
        server.edge.bodies.time = Duration::from_millis(600);
    }
    let allowed = [server.edge.header_timeout, server.edge.bodies.time].map(|time| match full() {
        true => time + Duration::from_secs(1),
        false => time * 2,
    });
    let listening = server.listen(Duration::from_secs(1)).await;
    let address = listening.address;
    let alone = quantile(&honest(address, jobs).await, 0.99);

    let head = "GET /health HTTP/1.1\r\nx-a: ";
    let body = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n";
    let dribblers: Vec<_> = (0..sockets)
        .map(|i| tokio::spawn(dribble(address, if i % 2 == 0 { head } else { body }, pause)))
        .collect();
    let beside = quantile(&honest(address, jobs).await, 0.99);
    let mut longest = [Duration::ZERO; 2];
    for (i, dribbler) in dribblers.into_iter().enumerate() {
        longest[i % 2] = longest[i % 2].max(dribbler.await.unwrap());
    }
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
