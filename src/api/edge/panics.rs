//! A handler that panics still gives an answer.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::refusal::Shape;

/// The layer: a panic becomes a 500 that still passes the CORS layer. Without its headers a browser shows every error
/// as "Failed to fetch".
pub(super) async fn catch(request: Request, next: Next) -> Response {
    let shape = Shape::of(request.method(), request.uri().path());
    let mut response = pin!(next.run(request));
    let polled = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    });
    match polled.await {
        Some(response) => response,
        None => {
            tracing::error!("a handler panicked");
            shape.refuse(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", None)
        }
    }
}
