//! `/health` while both cores paint.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{full, ms, quantile, row};
use crate::cli::Folder;
use crate::running::Running;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_answers_at_once_while_painting() {
    let folder = Folder::new("board-health");
    let server = Running::start(&folder, &[], &["--threads", "2"]);
    let address = server.address;
    let (jobs, asks) = if full() { (6, 1000) } else { (2, 40) };
    let body = r#"{"prompt":"a","aspectRatio":"1:1","config":{"numImages":4,"steps":100}}"#;
    let work: Vec<_> = (0..jobs)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let head = "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
                let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(request.as_bytes()).await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            })
        })
        .collect();
    let mut times = Vec::new();
    let mut painting = 0;
    for _ in 0..asks {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        times.push(begun.elapsed());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        painting += usize::from(!answer.contains("\"running\":null"));
    }
    for job in work {
        job.abort();
    }
    let (median, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    // Forty requests have no p99 to speak of, and tests run beside this one.
    let limit = if full() { Duration::from_millis(50) } else { Duration::from_millis(500) };
    row(
        "health",
        "/health while two threads paint",
        "p99 <= 50 ms",
        format!("median {}, p99 {} of {asks}, {painting} of them while painting", ms(median), ms(p99)),
        p99 <= limit && painting > asks / 2,
    );
}
