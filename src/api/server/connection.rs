//! One connection, to its end: how long it may idle, how long a head may take, and how long an answer may wait to be
//! read.
//!
//! hyper has one limit for the next head, which runs from the last answer on. Browsers and proxies keep connections for
//! longer than a head may take, so the two are told apart here: by what was read since hyper began to wait.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::rt::Timer;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tower::ServiceExt;

use crate::api::Operations;
use crate::api::edge::caller::Peer;

/// What a connection without a whole head is still given once the server is told to stop.
const LAST_HEAD: Duration = Duration::from_secs(1);
/// A head with more is refused; no client of these APIs sends as much.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a head, from its first byte; the first one of a connection from the connection's start.
    pub head: Duration,
    /// Between an answer and the next head.
    pub idle: Duration,
    /// For the next byte of an answer to be taken.
    pub unread: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(10), idle: Duration::from_secs(75), unread: Duration::from_secs(30) }
    }
}

/// Serves a connection until either side ends it.
pub(super) async fn serve(
    stream: TcpStream,
    peer: Peer,
    routes: Router,
    patience: Patience,
    operations: &Operations,
) {
    let has_asked = AtomicBool::new(false);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        routes.clone().oneshot(request.map(Body::new))
    });
    let stream = Watched::new(stream, patience.unread);
    let timer = HeadTimer { received: stream.received.clone(), patience };
    // One that comes while the server stops is for one request.
    let is_last = operations.stopping.is_told();
    let mut builder = http1::Builder::new();
    builder.keep_alive(!is_last);
    builder.timer(timer).header_read_timeout(patience.head).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        // What has come is read first.
        biased;
        ended = connection.as_mut() => ended,
        () = operations.stopping.told() => {
            // An idle connection ends here, a busy one after its answer; one that has never asked would wait on.
            if !is_last {
                connection.as_mut().graceful_shutdown();
            }
            let too_late = async {
                sleep(LAST_HEAD).await;
                if has_asked.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = too_late => return,
            }
        }
    };
    if let Err(error) = ended {
        // Clients that leave or dribble: their line in the log, where they have asked for anything, is written.
        tracing::debug!(%error, peer = %peer.0, "a connection broke off");
    }
}

/// A stream that counts what it receives, and fails when nobody takes what it sends.
struct Watched {
    stream: TcpStream,
    received: Arc<AtomicU64>,
    unread: Duration,
    /// Runs while a byte waits to be taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn new(stream: TcpStream, unread: Duration) -> Self {
        Self { stream, received: Arc::default(), unread, stalled: None }
    }

    fn watch(&mut self, cx: &mut Context<'_>, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if sent.is_ready() {
            self.stalled = None;
            return sent;
        }
        let unread = self.unread;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(unread))).as_mut().poll(cx));
        // The kernel would otherwise keep for minutes what it could not deliver.
        let _still_closed = self.stream.set_zero_linger();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads the answer")))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.received.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// hyper's timer. It is asked for one thing alone: the limit of the next head, when the wait for it begins.
#[derive(Clone)]
struct HeadTimer {
    received: Arc<AtomicU64>,
    patience: Patience,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, end_of_head: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let before = self.received.load(Ordering::Relaxed);
        let is_first = before == 0;
        let end = if is_first { end_of_head } else { Instant::now() + self.patience.idle };
        let sleep = Box::pin(tokio::time::sleep_until(end.into()));
        Box::pin(HeadSleep { timer: self.clone(), before, has_begun: is_first, sleep })
    }
}

/// Ends when the connection has idled too long, or the head that has begun takes too long.
struct HeadSleep {
    timer: HeadTimer,
    /// Bytes that had been received when the wait began.
    before: u64,
    has_begun: bool,
    sleep: Pin<Box<Sleep>>,
}

impl hyper::rt::Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_begun && self.timer.received.load(Ordering::Relaxed) > self.before {
            self.has_begun = true;
            let end = tokio::time::Instant::now() + self.timer.patience.head;
            self.sleep.as_mut().reset(end);
        }
        self.sleep.as_mut().poll(cx)
    }
}
