//! Every route and layer of the HTTP interface.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::engine::Engine;
use crate::queue::JobQueue;
use crate::settings::Defaults;

pub mod cors;
pub mod fastapi;
mod json_error;
pub mod native;
pub mod page;
pub mod server;

pub use native::loras::LoraRegistry;

/// What handlers need.
#[derive(Clone)]
pub struct App {
    /// Where jobs go.
    pub queue: Arc<dyn JobQueue>,
    /// Who makes them; asked for its model and its progress.
    pub engine: Engine,
    /// What requests get unless they say otherwise.
    pub defaults: Arc<Defaults>,
    /// An LCM-LoRA is in the model: few steps and no guidance are the default.
    pub lcm: bool,
    /// LoRAs that requests may name.
    pub loras: Arc<LoraRegistry>,
}

/// Paths that clients are told of.
pub const ENDPOINTS: [&str; 4] = ["/generate", "/refine", "/health", "/benchmark"];

/// The whole interface.
pub fn router(app: App, origins: cors::Origins) -> Router {
    let routes = Router::new()
        .route("/", only(Method::GET, page::index))
        .route("/page/style.css", only(Method::GET, page::style))
        .route("/page/page.js", only(Method::GET, page::script))
        .route("/generate", only(Method::POST, native::generate::generate))
        .route("/refine", only(Method::POST, native::refine::refine))
        .route("/health", only(Method::GET, native::health::health))
        .route("/benchmark", only(Method::GET, native::health::benchmark))
        .fallback(fastapi::not_found)
        .layer(from_fn(fastapi::log_and_catch))
        .with_state(app);
    // Around the whole router, not around each route: axum adds `allow` outside of a route's layers, and a preflight
    // has none.
    Router::new().fallback_service(routes).layer(from_fn_with_state(Arc::new(origins), cors::cors))
}

/// A route with one method. Others get FastAPI's 405, HEAD too: FastAPI does not derive it from GET.
fn only<H, T>(method: Method, handler: H) -> MethodRouter<App>
where
    H: Handler<T, App>,
    T: 'static,
{
    let filter = if method == Method::POST { MethodFilter::POST } else { MethodFilter::GET };
    let refuse = move || async move { fastapi::method_not_allowed(&method) };
    on(filter, handler).on(MethodFilter::HEAD, refuse.clone()).fallback(refuse)
}
