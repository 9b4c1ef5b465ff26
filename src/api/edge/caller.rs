//! Who calls: known by a key, or else by an address.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::keys::{Keys, Verdict};
use super::refusal::Shape;
use crate::queue::Caller;

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Open without a key: the page and the documentation, whose requests carry none, the probes of hosting platforms,
/// and pictures, whose names cannot be guessed.
const OPEN: [&str; 8] =
    ["/", "/health", "/ready", "/ping", "/docs", "/redoc", "/openapi.json", "/favicon.ico"];
const OPEN_FOLDERS: [&str; 3] = ["/page/", "/docs/", "/images/"];

/// A file right in a folder: what has further slashes is a path of another kind.
fn is_in(folder: &str, path: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|file| !file.contains('/'))
}

fn is_open(method: &Method, path: &str) -> bool {
    let reads = method == Method::GET || method == Method::HEAD;
    reads && (OPEN.contains(&path) || OPEN_FOLDERS.iter().any(|folder| is_in(folder, path)))
}

/// The layer: refuses who has no key where one is asked for, and tells the handlers who calls.
pub async fn identify(
    State((keys, behind_proxy)): State<(Arc<Keys>, bool)>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let shape = Shape::of(request.method(), path);
    // The web UI's clients know user and password alone.
    let verdict = keys.judge(request.headers(), shape == Shape::WebUi);
    let refusal = match verdict {
        Verdict::Open | Verdict::Key(_) => None,
        _ if is_open(request.method(), path) => None,
        Verdict::Missing => Some("An API key is needed."),
        Verdict::Wrong => Some("The API key is not valid."),
    };
    if let Some(text) = refusal {
        let mut response = shape.refuse(StatusCode::UNAUTHORIZED, text, None);
        let scheme = if shape == Shape::WebUi { "Basic" } else { "Bearer" };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        return response;
    }
    let caller = match verdict {
        Verdict::Key(number) => Caller::named(format!("key {number}")),
        _ => address(request.headers(), request.extensions().get(), behind_proxy),
    };
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    response.extensions_mut().insert(caller);
    response
}

/// Behind a proxy all connections come from it; the last address of `x-forwarded-for` is the one it has added itself.
fn address(headers: &HeaderMap, peer: Option<&Peer>, behind_proxy: bool) -> Caller {
    let forwarded = || {
        let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
        last.rsplit(',').next()?.trim().parse::<std::net::IpAddr>().ok()
    };
    let address = if behind_proxy { forwarded() } else { None };
    match address.or(peer.map(|peer| peer.0.ip())) {
        Some(address) => Caller::named(address.to_canonical().to_string()),
        None => Caller::anonymous(),
    }
}
