//! What is counted of requests and connections.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::http::Method;

use crate::engine::meter::Histogram;

/// Upper bounds of the time to an answer, in seconds: polls take milliseconds, pictures seconds to minutes.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Changes it.
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a count is kept for. The number of keys is bounded: routes and statuses are the program's own, and a method
/// that no route knows is `other`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The route's path as the router has it.
    pub route: String,
    /// The method.
    pub method: &'static str,
    /// The status.
    pub status: u16,
}

/// Counts of requests and connections.
#[derive(Debug)]
pub struct HttpMeter {
    answers: Mutex<BTreeMap<Key, u64>>,
    /// Seconds to the answer's head.
    pub seconds: Histogram<12>,
    /// Requests that have no answer yet.
    pub in_flight: Gauge,
    /// Open connections.
    pub connections: Gauge,
}

impl Default for HttpMeter {
    fn default() -> Self {
        Self {
            answers: Mutex::default(),
            seconds: Histogram::new(SECONDS),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
        }
    }
}

impl HttpMeter {
    /// Counts an answer.
    pub fn answered(&self, route: &str, method: &Method, status: u16, elapsed: Duration) {
        let method = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
            .into_iter()
            .find(|known| *known == method.as_str())
            .unwrap_or("other");
        let key = Key { route: route.to_owned(), method, status };
        *self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).entry(key).or_default() += 1;
        self.seconds.record_time(elapsed);
    }

    /// All counts of answers.
    pub fn answers(&self) -> Vec<(Key, u64)> {
        let answers = self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        answers.iter().map(|(key, count)| (key.clone(), *count)).collect()
    }
}
