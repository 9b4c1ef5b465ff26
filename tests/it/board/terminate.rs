//! Row 7: told to end under load, the program answers in full whatever it has taken, and nothing else.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{Lcg, full, row};
use crate::cli::Folder;
use crate::running::{Running, ask};

const CLIENTS: usize = 8;
const ONE: &str = r#"{"prompt":"a","aspectRatio":"1:1","config":{"numImages":1,"steps":1}}"#;

/// What became of the requests of one run.
#[derive(Default)]
struct Outcome {
    whole: usize,
    /// Answers of which a part came.
    cut: usize,
    /// Requests that the server's log has, and that got no answer.
    unanswered: usize,
    /// Requests that the server never took: the connection was refused or reset before a byte of an answer.
    refused: usize,
}

fn run(run: usize, wait: Duration) -> Outcome {
    let folder = Folder::new(&format!("board-terminate-{run}"));
    let mut server = Running::start(&folder, &[], &["--log-format", "json", "--queue-size", "16"]);
    let (ended, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let statuses = Mutex::new(HashMap::new());
    let cut = AtomicUsize::new(0);
    let client = |client: usize| {
        for i in 0.. {
            let id = format!("c{client}-{i}");
            // Every other request reads, so that short answers are in flight too; half of the clients begin with one,
            // so that a run need not wait for a picture of each.
            let (method, path, body) = if (client + i).is_multiple_of(2) {
                ("POST", "/generate", ONE)
            } else {
                ("GET", "/info", "")
            };
            let status = match ask(server.address, method, path, &[("x-request-id", &id)], body) {
                Ok(Ok(answer)) => {
                    answered.fetch_add(1, Ordering::SeqCst);
                    Some(answer.status)
                }
                Ok(Err(part)) => {
                    cut.fetch_add(usize::from(!part.is_empty()), Ordering::SeqCst);
                    None
                }
                Err(_) => None,
            };
            statuses.lock().unwrap().insert(id, status);
            if ended.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        let client = &client;
        for i in 0..CLIENTS {
            scope.spawn(move || client(i));
        }
        while answered.load(Ordering::SeqCst) < CLIENTS {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(wait);
        server.signal("TERM");
        ended.store(true, Ordering::SeqCst);
    });
    assert_eq!(server.wait(), Some(0), "{}", server.log());
    let statuses = statuses.into_inner().unwrap();
    let mut seen = HashMap::new();
    for line in server.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let (Some("request"), Some(id)) = (line["message"].as_str(), line["request_id"].as_str()) {
            seen.insert(id.to_owned(), line["status"].as_u64().unwrap());
        }
    }
    let mut outcome = Outcome { cut: cut.into_inner(), ..Outcome::default() };
    for (id, status) in &statuses {
        match (status, seen.get(id)) {
            (Some(status), logged) => {
                assert_eq!(Some(u64::from(*status)), logged.copied(), "{id}");
                assert!([200, 503].contains(status), "{id}: {status}");
                outcome.whole += 1;
            }
            (None, Some(_)) => outcome.unanswered += 1,
            (None, None) => outcome.refused += 1,
        }
    }
    outcome
}

#[test]
fn no_answer_is_cut_and_no_request_lost() {
    let runs = if full() { 50 } else { 2 };
    let mut random = Lcg(7);
    let mut sum = Outcome::default();
    for i in 0..runs {
        let outcome = run(i, Duration::from_millis(random.below(200) as u64));
        sum.whole += outcome.whole;
        sum.cut += outcome.cut;
        sum.unanswered += outcome.unanswered;
        sum.refused += outcome.refused;
    }
    let Outcome { whole, cut, unanswered, refused } = sum;
    row(
        "7",
        &format!("SIGTERM under load, {runs} runs"),
        "0 cut responses, 0 accepted jobs unanswered",
        format!(
            "{cut} cut, {unanswered} unanswered of {} taken; {refused} refused at the door",
            whole + unanswered
        ),
        cut == 0 && unanswered == 0 && whole > runs * CLIENTS,
    );
}
