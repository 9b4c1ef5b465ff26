//! Bodies that are too large or come too slowly.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::refusal::Shape;

/// Beyond its time a body may go on as long as it comes at least this fast on the whole: half a megabit a second.
const MIN_BYTES_PER_S: u32 = 64 << 10;

/// How long what a handler leaves of a body is read.
const LAST_READING: Duration = Duration::from_secs(2);

/// How large a body may be, and how slow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes.
    pub bytes: usize,
    /// How long it may take whatever its size.
    pub time: Duration,
}

/// The layer. Routes may set narrower bounds; what the handler made of a body that broke these does not matter.
pub async fn bound(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let shape = Shape::of(request.method(), request.uri().path());
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let fault = Arc::new(AtomicU8::new(0));
    let seen = fault.clone();
    let request = request.map(|body| Body::new(Bounded::new(body, limits, fault)));
    if length.is_some_and(|length| length > limits.bytes as u64) {
        return refuse(shape, Fault::TooLarge, limits);
    }
    let response = next.run(request).await;
    match Fault::read(&seen) {
        Some(fault) => refuse(shape, fault, limits),
        None => response,
    }
}

/// The connection is not used again: the rest of the body would have to be read first.
fn refuse(shape: Shape, fault: Fault, limits: Limits) -> Response {
    let mut response = match fault {
        Fault::TooLarge => {
            let text = format!("Request body is too large: at most {} MiB are accepted.", limits.bytes >> 20);
            shape.refuse(StatusCode::PAYLOAD_TOO_LARGE, &text, None)
        }
        Fault::TooSlow => {
            let text = format!("Request body did not arrive within {} s.", limits.time.as_secs());
            shape.refuse(StatusCode::REQUEST_TIMEOUT, &text, None)
        }
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("the body is longer than the limit")]
    TooLarge = 1,
    #[error("the body came too slowly")]
    TooSlow = 2,
}

impl Fault {
    fn read(cell: &AtomicU8) -> Option<Self> {
        match cell.load(Ordering::Relaxed) {
            1 => Some(Self::TooLarge),
            2 => Some(Self::TooSlow),
            _ => None,
        }
    }
}

/// A body that fails as soon as it breaks a bound.
struct Bounded {
    inner: Body,
    ended: bool,
    limits: Limits,
    received: usize,
    started: Instant,
    deadline: Pin<Box<Sleep>>,
    fault: Arc<AtomicU8>,
}

impl Bounded {
    fn new(inner: Body, limits: Limits, fault: Arc<AtomicU8>) -> Self {
        let started = Instant::now();
        let deadline = Box::pin(sleep_until(started + limits.time));
        Self { inner, ended: false, limits, received: 0, started, deadline, fault }
    }

    fn fail(&self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.fault.store(fault as u8, Ordering::Relaxed);
        Poll::Ready(Some(Err(axum::Error::new(fault))))
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => match self.deadline.as_mut().poll(cx) {
                Poll::Ready(()) => self.fail(Fault::TooSlow),
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(Some(Ok(frame))) => {
                self.received += frame.data_ref().map_or(0, Bytes::len);
                if self.received > self.limits.bytes {
                    return self.fail(Fault::TooLarge);
                }
                let earned = Duration::from_secs_f64(self.received as f64 / f64::from(MIN_BYTES_PER_S));
                let due = self.started + self.limits.time + earned;
                self.deadline.as_mut().reset(due);
                Poll::Ready(Some(Ok(frame)))
            }
            over => {
                self.ended = true;
                over
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What a handler leaves of a body is read for a while: were the connection closed on a client that still sends, the
/// reset would often overtake the answer, and a browser show "Failed to fetch" instead of a 413.
impl Drop for Bounded {
    fn drop(&mut self) {
        let slow = Fault::read(&self.fault) == Some(Fault::TooSlow);
        if self.ended || slow || self.inner.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let rest = std::mem::take(&mut self.inner);
            runtime.spawn(tokio::time::timeout(LAST_READING, read_away(rest)));
        }
    }
}

async fn read_away(mut body: Body) {
    while poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some_and(|frame| frame.is_ok()) {}
}
