//! The LoRAs that requests may name: keys of a list made at start, never parts of a path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aquatint_models::checkpoint::builtin;

/// LoRA files by name. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LoraRegistry {
    files: Arc<RwLock<BTreeMap<String, PathBuf>>>,
}

impl LoraRegistry {
    /// Every `*.safetensors` in a folder, under its name without the extension. Links that lead out of the folder are
    /// left out: whoever may put a file there may not thereby read others.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn scan(folder: &Path) -> std::io::Result<Self> {
        let mut files = BTreeMap::new();
        let root = folder.canonicalize()?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let is_lora = path.is_file() && path.extension().is_some_and(|e| e == "safetensors");
            let (true, Some(name)) = (is_lora, path.file_stem().and_then(|n| n.to_str())) else { continue };
            if path.canonicalize()?.starts_with(&root) {
                files.insert(name.to_owned(), path.clone());
            } else {
                tracing::warn!("--lora-dir: {} leads out of the folder and is left out", path.display());
            }
        }
        Ok(Self { files: Arc::new(RwLock::new(files)) })
    }

    /// Adds the built-in model's style LoRA; a file of the same name in the folder goes first.
    #[must_use]
    pub fn with_builtin(self) -> Self {
        let path = Path::new(builtin::STYLE_LORA);
        if let (true, Some(name)) = (builtin::TRAINED, path.file_stem().and_then(|n| n.to_str())) {
            let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
            files.entry(name.to_owned()).or_insert_with(|| path.to_owned());
        }
        self
    }

    /// These and no others: LoRAs of other processes, of which no more than the name is known.
    pub fn know(&self, names: impl Iterator<Item = String>) {
        let files = names.map(|name| (name.clone(), PathBuf::from(format!("{name}.safetensors"))));
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = files.collect();
    }

    /// The file of a name.
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
