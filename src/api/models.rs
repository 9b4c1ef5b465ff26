//! The models that requests may name.

use std::sync::Arc;

use super::App;
use super::fault::{Fault, Kind, shown};
use crate::engine::ModelInfo;

/// The model that a request gets.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Its name in the registry; `None` is the default one.
    pub(super) name: Option<String>,
    pub(super) info: Arc<ModelInfo>,
    /// The model that was asked for, where this one stands in for it.
    pub(super) fallback_from: Option<String>,
}

/// The model of a name, once one is loaded: by its name in the registry, letter case aside, or by a hub id that ends
/// in it. A name that is unknown, and has a stand-in in the settings, gets that.
pub(super) async fn choose(app: &App, asked: Option<&str>) -> Result<Chosen, Fault> {
    let Some(asked) = asked else {
        let info = app.engine.info(None).await?;
        return Ok(Chosen { name: None, info, fallback_from: None });
    };
    // Names are known once the default model is.
    app.engine.info(None).await?;
    let stand_in = || app.defaults.model_fallback.iter().find(|f| is(&f.asked, asked)).map(|f| &f.used);
    let (name, fallback_from) = match find(app, asked) {
        Some(name) => (name, None),
        None => match stand_in().and_then(|used| find(app, used)) {
            Some(name) => (name, Some(asked.to_owned())),
            None => return Err(unknown(app, asked)),
        },
    };
    let info = app.engine.info(Some(&name)).await?;
    Ok(Chosen { name: Some(name), info, fallback_from })
}

fn find(app: &App, asked: &str) -> Option<String> {
    app.engine.models().into_iter().map(|model| model.name).find(|name| is(name, asked))
}

/// Whether `asked`, a name or a hub id, means the model called `name`.
fn is(name: &str, asked: &str) -> bool {
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    last(name) == last(asked)
}

fn unknown(app: &App, asked: &str) -> Fault {
    let names: Vec<_> = app.engine.models().iter().map(|model| format!("'{}'", model.name)).collect();
    let message = format!("Unknown model {}. Must be one of [{}]", shown(&asked.into()), names.join(", "));
    Fault { field: Some("model".into()), ..Fault::new(Kind::UnknownModel, message) }
}
