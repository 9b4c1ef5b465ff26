//! Every route and layer of the HTTP interface.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::{Extensions, Method};
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::engine::{Engine, Preset};
use crate::queue::{Caller, JobQueue};
use crate::settings::Defaults;
use edge::Edge;
use edge::meter::HttpMeter;
use stopping::Stopping;

mod body;
pub mod edge;
pub mod fastapi;
mod fault;
mod fields;
mod fit;
pub mod huggingface;
pub mod jobs;
mod json_error;
pub mod loras;
pub mod metrics;
mod models;
pub mod native;
pub mod openai;
mod openapi;
pub mod page;
mod parameters;
mod pictures;
pub mod ready;
pub mod runpod;
mod schema;
pub mod server;
pub mod sizes;
pub mod stopping;
pub mod webui;

pub use jobs::Jobs;
pub use loras::LoraRegistry;

/// What handlers need.
#[derive(Clone)]
pub struct App {
    /// Where jobs go.
    pub queue: Arc<dyn JobQueue>,
    /// Who makes them; asked for its model and its progress.
    pub engine: Engine,
    /// What requests get unless they say otherwise.
    pub defaults: Arc<Defaults>,
    /// What the default model is distilled to, by itself or by the LoRAs that the server was started with.
    pub preset: Option<Preset>,
    /// LoRAs that requests may name.
    pub loras: Arc<LoraRegistry>,
    /// The jobs of `/jobs`.
    pub jobs: Jobs,
    /// Pictures that replies name by URL.
    pub images: Arc<openai::store::ImageStore>,
    /// The options and jobs of the web UI's routes.
    pub webui: Arc<webui::WebUi>,
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
        .nest("/sdapi/v1", web_ui())
        .route("/", get_or_post(page::index, huggingface::default_model))
        .route("/page/{file}", only(Method::GET, page::file))
        .route("/docs", only(Method::GET, page::docs))
        .route("/redoc", only(Method::GET, page::docs))
        .route("/openapi.json", only(Method::GET, openapi::openapi))
        .route("/jobs", only(Method::POST, jobs::submit))
        .route("/jobs/{id}", get_or_delete(jobs::status, jobs::cancel))
        .route("/jobs/{id}/events", only(Method::GET, jobs::events))
        .route("/jobs/{id}/result", only(Method::GET, jobs::result))
        .route("/jobs/{id}/images/{index}", only(Method::GET, jobs::image))
        .route("/generate", only(Method::POST, native::generate::generate))
        .route("/refine", only(Method::POST, native::refine::refine))
        .route("/health", only(Method::GET, native::health::health))
        .route("/benchmark", only(Method::GET, native::health::benchmark))
        .route("/ready", only(Method::GET, ready::ready))
        .route("/info", only(Method::GET, ready::info))
        .route("/metrics", only(Method::GET, metrics::metrics))
        .route("/models/{*id}", only(Method::POST, huggingface::named_model))
        .route("/ping", only(Method::GET, runpod::ping))
        .route("/v1/images/generations", only(Method::POST, openai::images::generations))
        .route(
            "/v1/images/edits",
            only(Method::POST, openai::images::edits).layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/v1/images/variations",
            only(Method::POST, openai::images::variations).layer(DefaultBodyLimit::disable()),
        )
        .route("/v1/models", only(Method::GET, openai::list_models))
        .route("/v1/models/{*id}", only(Method::GET, openai::one_model))
        .route("/images/{id}", only(Method::GET, openai::store::image))
        .fallback(fastapi::not_found)
        .with_state(app);
    edge.around(routes, http)
}

/// What a process answers that only makes pictures: who watches it, and nobody else.
pub fn operator_router(app: App, edge: &Edge) -> Router {
    let http = app.operations.http.clone();
    let routes = Router::new()
        .route("/health", only(Method::GET, native::health::health))
        .route("/ready", only(Method::GET, ready::ready))
        .route("/info", only(Method::GET, ready::info))
        .route("/metrics", only(Method::GET, metrics::metrics))
        .route("/ping", only(Method::GET, runpod::ping))
        .fallback(fastapi::not_found)
        .with_state(app);
    edge.around(routes, http)
}

/// RunPod's health check alone, for a port of its own.
pub fn ping_router(app: App) -> Router {
    Router::new().route("/ping", only(Method::GET, runpod::ping)).with_state(app)
}

/// The Stable Diffusion web UI's.
fn web_ui() -> Router<App> {
    use webui::{generate, lists, options, png_info, progress};
    let (get, post) = (Method::GET, Method::POST);
    let mut routes = Router::new()
        .route("/txt2img", only(post.clone(), generate::txt2img))
        .route("/img2img", only(post.clone(), generate::img2img))
        .route("/options", get_or_post(options::get, options::set))
        .route("/progress", only(get.clone(), progress::progress))
        .route("/interrupt", only(post.clone(), progress::interrupt))
        .route("/png-info", only(post.clone(), png_info::png_info))
        .route("/refresh-checkpoints", only(post.clone(), lists::refresh_checkpoints))
        .route("/unload-checkpoint", only(post.clone(), lists::unload_checkpoint))
        .route("/reload-checkpoint", only(post, lists::reload_checkpoint))
        .route("/sd-models", only(get.clone(), lists::sd_models))
        .route("/samplers", only(get.clone(), lists::samplers))
        .route("/schedulers", only(get.clone(), lists::schedulers))
        .route("/loras", only(get.clone(), lists::loras))
        .route("/upscalers", only(get.clone(), lists::upscalers))
        .route("/latent-upscale-modes", only(get.clone(), lists::latent_upscale_modes))
        .route("/memory", only(get.clone(), lists::memory))
        .route("/cmd-flags", only(get.clone(), lists::cmd_flags))
        .route("/scripts", only(get.clone(), lists::scripts))
        .route("/embeddings", only(get.clone(), lists::embeddings));
    for path in ["/sd-vae", "/hypernetworks", "/face-restorers", "/realesrgan-models", "/prompt-styles"] {
        routes = routes.route(path, only(get.clone(), lists::none));
    }
    routes
}

/// Whoever a request's job is counted against: what the layer that knows callers has found.
fn caller(extensions: &Extensions) -> Caller {
    extensions.get::<Caller>().cloned().unwrap_or_else(Caller::anonymous)
}

/// A route with one method. Others get FastAPI's 405, HEAD too: FastAPI does not derive it from GET.
fn only<H, T>(method: Method, handler: H) -> MethodRouter<App>
where
    H: Handler<T, App>,
    T: 'static,
{
    let filter = if method == Method::POST { MethodFilter::POST } else { MethodFilter::GET };
    let refuse = move || async move { fastapi::method_not_allowed(method.as_str()) };
    on(filter, handler).on(MethodFilter::HEAD, refuse.clone()).fallback(refuse)
}

/// A route with GET and another method; others get a 405 that says `allowed`.
fn get_or<G, O, T, U>(get: G, method: MethodFilter, other: O, allowed: &'static str) -> MethodRouter<App>
where
    G: Handler<T, App>,
    O: Handler<U, App>,
    T: 'static,
    U: 'static,
{
    let refuse = move || async move { fastapi::method_not_allowed(allowed) };
    on(MethodFilter::GET, get).on(method, other).on(MethodFilter::HEAD, refuse).fallback(refuse)
}

/// A route with GET and POST.
fn get_or_post<G, P, T, U>(get: G, post: P) -> MethodRouter<App>
where
    G: Handler<T, App>,
    P: Handler<U, App>,
    T: 'static,
    U: 'static,
{
    get_or(get, MethodFilter::POST, post, "GET, POST")
}

/// A route with GET and DELETE.
fn get_or_delete<G, D, T, U>(get: G, delete: D) -> MethodRouter<App>
where
    G: Handler<T, App>,
    D: Handler<U, App>,
    T: 'static,
    U: 'static,
{
    get_or(get, MethodFilter::DELETE, delete, "DELETE, GET")
}
