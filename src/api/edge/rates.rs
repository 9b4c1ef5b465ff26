//! How often one caller may ask for work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::refusal::Shape;
use crate::queue::Caller;

/// Callers that are remembered; those who have not called for longest are forgotten first.
const MAX_CALLERS: usize = 10_000;

/// A bucket of tokens for each caller: a request takes one, and they come back evenly over a minute.
#[derive(Debug)]
pub struct Rates {
    per_minute: u32,
    buckets: Mutex<HashMap<Caller, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    seen: Instant,
}

impl Rates {
    /// So many requests at once, and as many a minute from then on.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.max(1), buckets: Mutex::default() }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// When there is none: seconds until there will be.
    pub fn take(&self, caller: &Caller, now: Instant) -> Result<(), u64> {
        let (full, per_s) = (f64::from(self.per_minute), f64::from(self.per_minute) / 60.0);
        let mut buckets = self.buckets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if buckets.len() >= MAX_CALLERS && !buckets.contains_key(caller) {
            // A bucket that is full again need not be remembered.
            buckets.retain(|_, b| b.tokens + now.duration_since(b.seen).as_secs_f64() * per_s < full);
            if buckets.len() >= MAX_CALLERS {
                let oldest = buckets.iter().min_by_key(|(_, b)| b.seen).map(|(caller, _)| caller.clone());
                oldest.and_then(|caller| buckets.remove(&caller));
            }
        }
        let bucket = buckets.entry(caller.clone()).or_insert(Bucket { tokens: full, seen: now });
        bucket.tokens = (bucket.tokens + now.duration_since(bucket.seen).as_secs_f64() * per_s).min(full);
        bucket.seen = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(((1.0 - bucket.tokens) / per_s).ceil().max(1.0) as u64)
    }
}

/// The layer. Reading is free, as pages and clients poll, and so is giving up.
pub async fn limit(State(rates): State<Option<Arc<Rates>>>, request: Request, next: Next) -> Response {
    let asks = request.method() == Method::POST && !request.uri().path().ends_with("/interrupt");
    if let Some(rates) = rates.filter(|_| asks) {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        if let Err(seconds) = rates.take(&caller, Instant::now()) {
            let text = format!("Too many requests: {} a minute are allowed.", rates.per_minute);
            let shape = Shape::of(request.method(), request.uri().path());
            return shape.refuse(StatusCode::TOO_MANY_REQUESTS, &text, Some(seconds));
        }
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn tokens_come_back_evenly() {
        let (rates, start) = (Rates::new(6), Instant::now());
        let caller = Caller::named("a");
        for _ in 0..6 {
            assert_eq!(rates.take(&caller, start), Ok(()));
        }
        assert_eq!(rates.take(&caller, start), Err(10));
        assert_eq!(rates.take(&caller, start + Duration::from_secs(4)), Err(6));
        assert_eq!(rates.take(&Caller::named("b"), start), Ok(()));
        assert_eq!(rates.take(&caller, start + Duration::from_secs(10)), Ok(()));
        assert_eq!(rates.take(&caller, start + Duration::from_secs(10)), Err(10));
    }

    #[test]
    fn no_crowd_makes_it_remember_more() {
        let (rates, start) = (Rates::new(60), Instant::now());
        for i in 0..MAX_CALLERS + 50 {
            assert_eq!(rates.take(&Caller::named(i.to_string()), start), Ok(()));
        }
        assert!(rates.buckets.lock().unwrap().len() <= MAX_CALLERS);
    }
}
