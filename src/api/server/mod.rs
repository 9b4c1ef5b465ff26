//! Serving until told to stop, and stopping well.
//!
//! An accept loop of its own: `axum::serve` sets no timeouts, so that one client who sends a head byte by byte holds a
//! connection for as long as it likes, and with it the server's end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::edge::Edge;
use super::edge::caller::Peer;
use super::{App, Operations};

mod connection;

pub use connection::Patience;

/// After an `accept` that failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What tokio passes to `listen`: no more connections than these can wait in the kernel.
const BACKLOG: usize = 1024;
/// How long a connection that the kernel holds may take to be seen.
const GLANCE: Duration = Duration::from_millis(5);
/// How often a server that stops looks whether anybody waits for it still.
const LOOK: Duration = Duration::from_millis(20);
/// What streams of events are given to say that the server stops.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Serves until `stop`. Then jobs that wait are answered with 503, and those that run have `drain` to end. Whoever
/// asks for a job of `/jobs` comes on a new connection each time, so connections are accepted while there are jobs that
/// somebody may come for; new work gets 503. What is not answered within `drain` is cut off.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    app: App,
    edge: Edge,
    stop: impl Future<Output = ()>,
    drain: Duration,
) {
    let operations = app.operations.clone();
    let mut server = Server {
        routes,
        operations: operations.clone(),
        patience: edge.patience,
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
    let ended = async {
        while is_awaited(&app) {
            let _accepted_or_not = timeout(LOOK, server.accept(&listener)).await;
        }
        server.accept_those_who_wait(&listener).await;
        drop(listener);
        server.all_ended().await;
    };
    if timeout(drain, ended).await.is_ok() {
        return;
    }
    app.jobs.abandon();
    if timeout(LAST_WORDS, server.all_ended()).await.is_err() {
        tracing::warn!(
            connections = server.connections.len(),
            "connections are still open; they are cut off"
        );
        server.connections.shutdown().await;
    }
}

/// Whether somebody waits for a job, or may come for one.
fn is_awaited(app: &App) -> bool {
    app.queue.awaited_here() > 0 || app.jobs.are_awaited()
}

struct Server {
    routes: Router,
    operations: Operations,
    patience: Patience,
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
            match timeout(GLANCE, listener.accept()).await {
                Ok(Ok((stream, peer))) => self.start(stream, peer, slot),
                _ => return,
            }
        }
    }

    async fn all_ended(&mut self) {
        while self.connections.join_next().await.is_some() {}
    }

    fn start(&mut self, stream: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's delay");
        }
        let (routes, operations, patience) = (self.routes.clone(), self.operations.clone(), self.patience);
        self.connections.spawn(async move {
            let _counted = Counted::new(&operations);
            connection::serve(stream, Peer(peer), routes, patience, &operations).await;
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
