//! `/health` while both cores paint.

use std::time::{Duration, Instant};

use super::{full, ms, quantile, row};
use crate::cli::Folder;
use crate::running::{Running, ask};

#[test]
fn health_answers_at_once_while_painting() {
    let folder = Folder::new("board-health");
    let mut server = Running::start(&folder, &[], &["--threads", "2", "--drain-seconds", "0"]);
    let address = server.address;
    let (jobs, asks) = if full() { (6, 1000) } else { (2, 40) };
    let body = r#"{"prompt":"a","aspectRatio":"1:1","config":{"numImages":8,"steps":150}}"#;
    for _ in 0..jobs {
        // Cut off at the end.
        std::thread::spawn(move || ask(address, "POST", "/generate", &[], body).is_ok());
    }
    let paints = |body: &[u8]| !String::from_utf8_lossy(body).contains("\"running\":null");
    let begun = Instant::now();
    while !paints(&server.ask("GET", "/health", &[], "").body) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut times = Vec::new();
    let mut painting = 0;
    for _ in 0..asks {
        std::thread::sleep(Duration::from_millis(10));
        let begun = Instant::now();
        let answer = server.ask("GET", "/health", &[], "");
        times.push(begun.elapsed());
        assert_eq!(answer.status, 200, "{}", answer.head);
        painting += usize::from(paints(&answer.body));
    }
    server.stop();
    let (median, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    // Forty requests have no p99 to speak of, and other tests run beside them.
    let limit = if full() { Duration::from_millis(50) } else { Duration::from_millis(500) };
    row(
        "health",
        "/health while two threads paint",
        "p99 <= 50 ms",
        format!("median {}, p99 {} of {asks}, {painting} of them while painting", ms(median), ms(p99)),
        p99 <= limit && painting > asks / 2,
    );
}
