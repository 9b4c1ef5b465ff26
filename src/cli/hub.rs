//! What flags name: something on this disk, or of the hub, which is then fetched.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquatint_models::checkpoint::builtin;

use super::Failure;
use crate::engine::EngineError;
use crate::settings::Precision;
use crate::weights::choose::Variant;
use crate::weights::{Environment, Error, Hub, HubId, Plan, Want};

/// Looks on this disk first, and asks the hub for the rest.
pub(super) struct Finder {
    environment: Environment,
    /// Made when it is needed.
    hub: OnceCell<Arc<Hub>>,
    variant: Variant,
}

/// What of a model is still on the hub.
#[derive(Clone)]
pub(super) struct Download {
    hub: Arc<Hub>,
    plan: Arc<Plan>,
}

impl Finder {
    pub(super) fn new(dtype: Precision) -> Self {
        Self { environment: Environment::of_process(), hub: OnceCell::new(), variant: variant(dtype) }
    }

    /// The model that a platform has mounted, if it has.
    pub(super) fn mounted_model(&self) -> Option<PathBuf> {
        self.environment.mounted_model()
    }

    /// A file of weights.
    pub(super) fn file(&self, flag: &str, path: &Path) -> Result<PathBuf, Failure> {
        self.find(flag, path, &Want::File)
    }

    /// A model alone: a file, or a folder with a config in it.
    pub(super) fn model(&self, flag: &str, path: &Path) -> Result<PathBuf, Failure> {
        self.find(flag, path, &Want::Model(self.variant.clone()))
    }

    /// A pipeline, whole.
    pub(super) fn pipeline(&self, flag: &str, path: &Path) -> Result<PathBuf, Failure> {
        self.find(flag, path, &Want::Pipeline(self.variant.clone()))
    }

    /// A pipeline of the hub as far as its configs go; `None` where the text names something on this disk, or one file.
    pub(super) fn download(&self, flag: &str, text: &str) -> Result<Option<Download>, Failure> {
        let Some(id) = meant(Path::new(text)).filter(|id| id.file.is_none()) else { return Ok(None) };
        let named = |error| explain(flag, &id, error);
        let hub = self.hub().map_err(named)?.clone();
        let plan = hub.plan(&id, &Want::Pipeline(self.variant.clone())).map_err(named)?;
        hub.fetch_configs(&plan).map_err(named)?;
        Ok(Some(Download { hub, plan: Arc::new(plan) }))
    }

    fn find(&self, flag: &str, path: &Path, want: &Want) -> Result<PathBuf, Failure> {
        let Some(id) = meant(path) else { return Ok(path.to_owned()) };
        let named = |error| explain(flag, &id, error);
        let hub = self.hub().map_err(named)?;
        let plan = hub.plan(&id, want).map_err(named)?;
        hub.fetch(&plan).map_err(named)
    }

    fn hub(&self) -> Result<&Arc<Hub>, Error> {
        match self.hub.get() {
            Some(hub) => Ok(hub),
            None => {
                let hub = Arc::new(Hub::new(self.environment.clone())?);
                Ok(self.hub.get_or_init(|| hub))
            }
        }
    }
}

impl Download {
    /// The model's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.plan.path
    }

    /// Bytes that are still to come.
    pub(super) fn bytes(&self) -> u64 {
        self.plan.missing_bytes()
    }

    /// Fetches the weights too.
    pub(super) fn fetch(&self) -> Result<(), EngineError> {
        self.hub.fetch(&self.plan).map(drop).map_err(|error| EngineError::Failed(error.to_string()))
    }
}

/// Which files a type of weights asks for.
pub(super) fn variant(dtype: Precision) -> Variant {
    if dtype == Precision::Fp16 { Variant::Half } else { Variant::Full }
}

/// The id that a path is meant for; `None` where it names something on this disk or in this program, or could only do so.
fn meant(path: &Path) -> Option<HubId> {
    let text = path.to_str()?;
    let is_here = path.exists() || text.starts_with(builtin::PREFIX);
    (!is_here && HubId::is_meant_by(text)).then(|| text.parse().ok())?
}

fn explain(flag: &str, id: &HubId, error: Error) -> Failure {
    let text = format!("{flag} {id}: no such file or folder here; {error}");
    if error.is_bad_input() { Failure::BadInput(text) } else { Failure::Other(text) }
}
