//! Serving until told to stop, and stopping well.
//!
//! An accept loop of its own: `axum::serve` sets no timeouts, so that one client who sends a head byte by byte holds a
//! connection for as long as it likes, and with it the server's end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::edge::Edge;
use super::edge::caller::Peer;
use super::{App, Operations, router};

/// What a connection without a whole head is still given once the server is told to stop.
const LAST_HEAD: Duration = Duration::from_secs(1);
/// A head with more is refused; no client of these APIs sends as much.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// After an `accept` that failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What tokio passes to `listen`: no more connections than these can wait in the kernel.
const BACKLOG: usize = 1024;
/// How long a connection that the kernel holds may take to be seen.
const GLANCE: Duration = Duration::from_millis(5);

/// Serves until `stop`. Then no connection is accepted beyond those that the kernel holds already, jobs that wait are
/// answered with 503, and the one that runs has `drain` to end; what is not answered by then is cut off.
pub async fn serve(
    listener: TcpListener,
    app: App,
    edge: Edge,
    stop: impl Future<Output = ()>,
    drain: Duration,
) {
    let operations = app.operations.clone();
    let mut server = Server {
        routes: router(app.clone(), &edge),
        operations: operations.clone(),
        header_timeout: edge.header_timeout,
        slots: Arc::new(Semaphore::new(edge.max_connections)),
        connections: JoinSet::new(),
    };
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = server.accept(&listener) => {}
        }
    }
    tracing::info!(drain_s = drain.as_secs(), "stopping");
    operations.stopping.tell();
    app.queue.close();
    app.jobs.close();
    app.engine.stop();
    server.accept_those_who_wait(&listener).await;
    drop(listener);
    let ended = async { while server.connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, ended).await.is_err() {
        tracing::warn!(
            connections = server.connections.len(),
            "connections are still open; they are cut off"
        );
        server.connections.shutdown().await;
    }
}

struct Server {
    routes: Router,
    operations: Operations,
    header_timeout: Duration,
    slots: Arc<Semaphore>,
    connections: JoinSet<()>,
}

impl Server {
    /// Waits for a free slot and a connection, and sends it on its way.
    async fn accept(&mut self, listener: &TcpListener) {
        while self.connections.try_join_next().is_some() {}
        // Never closed.
        let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => self.start(stream, peer, slot),
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// A client whose connection stands has been told that somebody listens.
    async fn accept_those_who_wait(&mut self, listener: &TcpListener) {
        for _ in 0..BACKLOG {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
            match tokio::time::timeout(GLANCE, listener.accept()).await {
                Ok(Ok((stream, peer))) => self.start(stream, peer, slot),
                _ => return,
            }
        }
    }

    fn start(&mut self, stream: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's delay");
        }
        let (routes, operations, header_timeout) =
            (self.routes.clone(), self.operations.clone(), self.header_timeout);
        self.connections.spawn(async move {
            let _counted = Counted::new(&operations);
            connection(stream, Peer(peer), routes, header_timeout, &operations).await;
            drop(slot);
        });
    }
}

/// Open connections are counted down even where their task is cut off.
struct Counted<'a>(&'a Operations);

impl<'a> Counted<'a> {
    fn new(operations: &'a Operations) -> Self {
        operations.http.connections.add(1);
        Self(operations)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.http.connections.add(-1);
    }
}

/// Errors of a connection that was lost before it was accepted.
fn is_the_clients(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection, to its end.
async fn connection(
    stream: TcpStream,
    peer: Peer,
    routes: Router,
    header_timeout: Duration,
    operations: &Operations,
) {
    let has_asked = AtomicBool::new(false);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        routes.clone().oneshot(request.map(Body::new))
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = operations.stopping.told() => {
            // An idle connection ends here, a busy one after its answer; one that has never asked would wait on.
            connection.as_mut().graceful_shutdown();
            let too_late = async {
                tokio::time::sleep(LAST_HEAD).await;
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
