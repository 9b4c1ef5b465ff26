//! A request's id, its line in the log, and its place in the counts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::meter::HttpMeter;
use crate::queue::Caller;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids than anybody's tracing system makes are not passed on.
const MAX_ID_BYTES: usize = 128;
/// What nginx logs where a client has left before its answer; no client ever sees it.
const CLIENT_LEFT: u16 = 499;
/// Asked for every few hundred milliseconds by each open page, or by every probe.
const POLLED: [&str; 6] =
    ["/health", "/ready", "/ping", "/metrics", "/sdapi/v1/progress", "/sdapi/v1/memory"];

/// What a request is known by in logs and replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's own, where it is one that may stand in a log line; else a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let fits = |id: &[u8]| {
            (1..=MAX_ID_BYTES).contains(&id.len())
                && id.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.:/+=@".contains(c))
        };
        match headers.get(HEADER).filter(|id| fits(id.as_bytes())) {
            Some(id) => Self(id.clone()),
            None => Self::random(),
        }
    }

    fn random() -> Self {
        // The standard library seeds each hasher from the system's random source.
        let id = format!("{:016x}", RandomState::new().build_hasher().finish());
        Self(HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none")))
    }

    /// As a text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// The outermost layer: nothing is answered without an id and a line.
pub async fn trace(State(meter): State<Arc<HttpMeter>>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let line = Line::begin(meter, id.clone(), &request);
    let span = tracing::info_span!("request", id = id.as_str());
    let mut response = next.run(request).instrument(span).await;
    line.answered(&response);
    response.headers_mut().insert(HEADER, id.0);
    response
}

/// Tells the outermost layer which route it was: paths are as many as clients invent, routes are few.
pub(super) async fn name_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

/// Written when it is dropped, so that a client who leaves has its line too.
struct Line {
    meter: Arc<HttpMeter>,
    id: RequestId,
    method: Method,
    path: String,
    started: Instant,
    status: Option<StatusCode>,
    route: Option<MatchedPath>,
    caller: Caller,
}

impl Line {
    fn begin(meter: Arc<HttpMeter>, id: RequestId, request: &Request) -> Self {
        meter.in_flight.add(1);
        Self {
            meter,
            id,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            started: Instant::now(),
            status: None,
            route: None,
            caller: Caller::anonymous(),
        }
    }

    fn answered(mut self, response: &Response) {
        self.status = Some(response.status());
        self.route = response.extensions().get().cloned();
        self.caller = response.extensions().get().cloned().unwrap_or_default();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let status = self.status.map_or(CLIENT_LEFT, |status| status.as_u16());
        let route = self.route.as_ref().map_or("other", MatchedPath::as_str);
        self.meter.in_flight.add(-1);
        self.meter.answered(route, &self.method, status, elapsed);
        let (id, method, path, caller) =
            (self.id.as_str(), self.method.as_str(), &self.path, self.caller.name());
        let elapsed_ms = elapsed.as_millis() as u64;
        if POLLED.contains(&path.as_str()) {
            tracing::debug!(request_id = id, method, path, status, elapsed_ms, caller, "request");
        } else {
            tracing::info!(request_id = id, method, path, status, elapsed_ms, caller, "request");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> RequestId {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        RequestId::of(&headers)
    }

    #[test]
    fn a_clients_id_is_kept_where_a_log_can_hold_it() {
        for fine in ["7", "req_1-2.3", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            assert_eq!(id(fine).as_str(), fine);
        }
        for bad in ["", "a b", "a\tb", "\"}", "ä", &"x".repeat(129)] {
            let made = id(bad);
            assert_ne!(made.as_str(), bad);
            assert_eq!(made.as_str().len(), 16, "{made:?}");
        }
        assert_ne!(RequestId::random(), RequestId::random());
    }
}
