//! The LoRAs that requests may name: keys of a list made at start, never parts of a path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_models::checkpoint::builtin;

/// LoRA files by name.
#[derive(Clone, Debug, Default)]
pub struct LoraRegistry {
    files: BTreeMap<String, PathBuf>,
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
        Ok(Self { files })
    }

    /// Adds the built-in model's style LoRA; a file of the same name in the folder goes first.
    pub fn with_builtin(mut self) -> Self {
        let path = Path::new(builtin::STYLE_LORA);
        if let (true, Some(name)) = (builtin::TRAINED, path.file_stem().and_then(|n| n.to_str())) {
            self.files.entry(name.to_owned()).or_insert_with(|| path.to_owned());
        }
        self
    }

    /// The file of a name.
    pub fn get(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}
