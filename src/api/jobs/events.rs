//! A job's log as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::log;
use super::store::Job;

/// Proxies close connections on which nothing moves.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);

/// The events after `seen`, and those to come, until the job has ended. A slow reader holds nothing up: it is given
/// what the log has by then.
pub(super) fn stream(job: Arc<Job>, seen: u64) -> Response {
    let reader = Reader { log: job.log.subscribe(), job, seen, ready: Vec::new().into_iter(), first: true };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would otherwise hold events back until its buffer is full.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Reader {
    log: tokio::sync::watch::Receiver<log::Log>,
    /// The log's other end, kept open.
    job: Arc<Job>,
    seen: u64,
    ready: std::vec::IntoIter<log::Event>,
    first: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.next() {
                self.seen = event.id;
                let sent = Event::default().id(event.id.to_string()).event(event.name).data(&*event.data);
                return Some(if std::mem::take(&mut self.first) { sent.retry(RETRY) } else { sent });
            }
            let seen = self.seen;
            self.log.wait_for(|log| log.goes_beyond(seen)).await.ok()?;
            let events = self.job.log.borrow().after(seen);
            self.job.seen();
            if events.is_empty() {
                return None;
            }
            self.ready = events.into_iter();
        }
    }
}
