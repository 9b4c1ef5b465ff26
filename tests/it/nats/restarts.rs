//! Every process is restarted, one after another, while requests come.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::cluster::{Cluster, until};
use super::runs;
use crate::board::row;
use crate::running::{Raw, ask};

/// As a load balancer does: to the next process where one does not answer, or says that it ends.
fn balanced(addresses: &[std::net::SocketAddr], first: usize, body: &str) -> Option<Raw> {
    for i in 0..100 {
        let address = addresses[(first + i) % addresses.len()];
        match ask(address, "POST", "/generate", &[], body) {
            Ok(Ok(answer)) if answer.status != 503 => return Some(answer),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    None
}

#[test]
fn a_rolling_restart_under_load_fails_nothing() {
    let (mut done, mut failed) = (0, 0);
    for run in 0..runs() {
        let flags = ["--queue-size", "1000", "--drain-seconds", "20"];
        let mut cluster = Cluster::start(&format!("rolling-{run}"), 2, 2, &flags);
        let over = AtomicBool::new(false);
        let (good, bad) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let addresses = std::sync::RwLock::new(Vec::new());
        let now = |cluster: &Cluster| cluster.apis.iter().map(|api| api.server.address).collect::<Vec<_>>();
        *addresses.write().unwrap() = now(&cluster);
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (over, good, bad, addresses) = (&over, &good, &bad, &addresses);
                scope.spawn(move || {
                    for i in 0.. {
                        let seed = 1000 * client + i;
                        let body = json!({"prompt": "a", "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 4, "seed": seed}});
                        let at = addresses.read().unwrap().clone();
                        match balanced(&at, client + i, &body.to_string()) {
                            Some(answer) if answer.status == 200 => good.fetch_add(1, Ordering::SeqCst),
                            _ => bad.fetch_add(1, Ordering::SeqCst),
                        };
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                });
            }
            let some_more = || {
                let before = good.load(Ordering::SeqCst);
                until("requests are answered", || good.load(Ordering::SeqCst) >= before + 4);
            };
            some_more();
            for i in 0..2 {
                // The new one first, as rolling updates do.
                let new = cluster.worker();
                cluster.workers[i].signal("TERM");
                cluster.workers[i].wait();
                cluster.workers[i] = new;
                some_more();
            }
            for i in 0..2 {
                cluster.apis[i].server.signal("TERM");
                assert_eq!(cluster.apis[i].server.wait(), Some(0), "{}", cluster.apis[i].server.log());
                cluster.replace_api(i);
                until("it is ready", || cluster.apis[i].get("/ready").status == 200);
                *addresses.write().unwrap() = now(&cluster);
                some_more();
            }
            over.store(true, Ordering::SeqCst);
        });
        done += good.into_inner();
        failed += bad.into_inner();
        let begun = Instant::now();
        until("the queue is empty", || cluster.api0().depth() == 0);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    row(
        "nats-rolling",
        &format!("restart of 2 API processes and 2 workers under load, {} runs", runs()),
        "0 failures",
        format!("{failed} failed of {}", done + failed),
        failed == 0,
    );
}
