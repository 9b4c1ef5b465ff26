//! What holds for every request, whatever its route: ids and logs, CORS, keys, rates, bounds of bodies.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};

use super::server::Patience;
use crate::settings::EdgeArgs;

pub mod body;
pub mod caller;
pub mod cors;
pub mod keys;
pub mod meter;
mod panics;
pub mod rates;
pub mod refusal;
pub mod trace;

use cors::Origins;
use keys::Keys;
use meter::HttpMeter;
use rates::Rates;

/// How long a body may take whatever its size.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The policy towards clients.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Whose pages may read our answers.
    pub origins: Arc<Origins>,
    /// Who may call.
    pub keys: Arc<Keys>,
    /// How often one caller may call.
    pub rates: Option<Arc<Rates>>,
    /// How large a body may be, and how slow.
    pub bodies: body::Limits,
    /// How long clients may take on a connection.
    pub patience: Patience,
    /// Connections that are open at a time; more wait in the kernel.
    pub max_connections: usize,
    /// The last address of `x-forwarded-for` is the caller's.
    pub behind_proxy: bool,
}

impl Edge {
    /// As the settings say.
    ///
    /// # Errors
    /// When the file of keys cannot be read or holds none.
    pub fn new(args: &EdgeArgs) -> Result<Self, String> {
        Ok(Self {
            origins: Arc::new(Origins::new(args.allow_origins.as_deref())),
            keys: Arc::new(Keys::new(&args.api_key, args.api_key_file.as_deref())?),
            rates: args.rate_limit.map(|per_minute| Arc::new(Rates::new(per_minute))),
            bodies: body::Limits { bytes: args.max_body_mib << 20, time: BODY_TIMEOUT },
            patience: Patience::default(),
            max_connections: args.max_connections,
            behind_proxy: args.behind_proxy,
        })
    }

    /// Puts the policy around the routes. In the order of a request: it gets its id and its line in the log; a
    /// preflight is answered, and every answer marked for its origin; then whatever refuses, so that refusals too
    /// carry both.
    pub fn around(&self, routes: Router, meter: Arc<HttpMeter>) -> Router {
        // Around the whole router, not around each route: axum adds `allow` outside of a route's layers, and a
        // preflight has none.
        Router::new()
            .fallback_service(routes.layer(from_fn(panics::catch)).layer(from_fn(trace::name_route)))
            .layer(from_fn_with_state(self.bodies, body::bound))
            .layer(from_fn_with_state(self.rates.clone(), rates::limit))
            .layer(from_fn_with_state((self.keys.clone(), self.behind_proxy), caller::identify))
            .layer(from_fn_with_state(self.origins.clone(), cors::cors))
            .layer(from_fn_with_state(meter, trace::trace))
    }
}
