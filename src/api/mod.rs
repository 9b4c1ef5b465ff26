//! Every route and layer of the HTTP interface.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::engine::Engine;
use crate::queue::JobQueue;
use crate::settings::Defaults;
use edge::Edge;
use edge::meter::HttpMeter;
use stopping::Stopping;

pub mod edge;
pub mod fastapi;
mod json_error;
pub mod metrics;
pub mod native;
pub mod page;
pub mod ready;
pub mod server;
pub mod stopping;

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
    /// What operators watch.
    pub operations: Operations,
}

/// What operators watch.
#[derive(Clone, Debug)]
pub struct Operations {
    /// Counts of requests and connections.
    pub http: Arc<HttpMeter>,
    /// Whether the server has been told to stop.
    pub stopping: Stopping,
    /// When it began.
    pub started: Instant,
    /// `/health` is 503 until jobs are taken, for platforms that know no other probe.
    pub health_until_ready: bool,
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            http: Arc::default(),
            stopping: Stopping::default(),
            started: Instant::now(),
            health_until_ready: false,
        }
    }
}

/// Paths that clients are told of.
pub const ENDPOINTS: [&str; 4] = ["/generate", "/refine", "/health", "/benchmark"];

/// The whole interface.
pub fn router(app: App, edge: &Edge) -> Router {
    let http = app.operations.http.clone();
    let routes = Router::new()
        .route("/", only(Method::GET, page::index))
        .route("/page/style.css", only(Method::GET, page::style))
        .route("/page/page.js", only(Method::GET, page::script))
        .route("/generate", only(Method::POST, native::generate::generate))
        .route("/refine", only(Method::POST, native::refine::refine))
        .route("/health", only(Method::GET, native::health::health))
        .route("/benchmark", only(Method::GET, native::health::benchmark))
        .route("/ready", only(Method::GET, ready::ready))
        .route("/info", only(Method::GET, ready::info))
        .route("/metrics", only(Method::GET, metrics::metrics))
        .fallback(fastapi::not_found)
        .with_state(app);
    edge.around(routes, http)
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
