//! Serving until told to stop, and stopping well.

use std::future::Future;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::cors::Origins;
use super::{App, router};

/// Serves until `stop`. Then no connection is accepted, jobs that wait are answered with 503, and the one that runs
/// has `drain` to end; what is not answered by then is cut off.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    app: App,
    origins: Origins,
    stop: impl Future<Output = ()>,
    drain: Duration,
) -> std::io::Result<()> {
    let (tell, told) = oneshot::channel::<()>();
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's delay");
        }
    });
    let heard = async move {
        let _sent_or_dropped = told.await;
    };
    let server = axum::serve(listener, router(app.clone(), origins)).with_graceful_shutdown(heard);
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        () = stop => {}
    }
    tracing::info!(drain_s = drain.as_secs(), "stopping");
    app.queue.close();
    app.engine.stop();
    let _always_heard = tell.send(());
    match tokio::time::timeout(drain, server).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!("connections are still open; they are cut off");
            Ok(())
        }
    }
}
