//! The LoRAs that requests may name, and the textual inversions that their prompts may: keys of lists made at start, never
//! parts of a path.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use aquatint_models::checkpoint::builtin;
use aquatint_models::text::textual_inversion::TextualInversion;

/// LoRA files by name, and textual inversions by token. Clones share the LoRAs.
#[derive(Clone, Debug, Default)]
pub struct LoraRegistry {
    files: Arc<RwLock<BTreeMap<String, PathBuf>>>,
    embeddings: BTreeMap<String, Embedding>,
}

/// A textual inversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// Its file.
    pub path: PathBuf,
    /// Tokens that it takes of a prompt.
    pub vectors: usize,
    /// Length of each vector, which is that of the text encoder it is for; of two, the first one's.
    pub channels: usize,
}

impl LoraRegistry {
    /// Every `*.safetensors` in a folder, under its name without the extension; textual inversions under their tokens.
    /// Links that lead out of the folder are left out: whoever may put a file there may not thereby read others.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn scan(folder: &Path) -> std::io::Result<Self> {
        let mut found = Self::default();
        let root = folder.canonicalize()?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let is_lora = path.is_file() && path.extension().is_some_and(|e| e == "safetensors");
            let (true, Some(name)) = (is_lora, path.file_stem().and_then(|n| n.to_str())) else { continue };
            if !path.canonicalize()?.starts_with(&root) {
                tracing::warn!("--lora-dir: {} leads out of the folder and is left out", path.display());
            } else if !found.add_embedding(&path) {
                found.files_mut().insert(name.to_owned(), path.clone());
            }
        }
        Ok(found)
    }

    /// Adds a textual inversion; whether the file is one.
    pub fn add_embedding(&mut self, path: &Path) -> bool {
        let Ok(inversion) = TextualInversion::open(path) else { return false };
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let (token, tensor) = (inversion.token.or(name), inversion.text_encoder.or(inversion.text_encoder_2));
        let (Some(token), Some(&[vectors, channels])) = (token, tensor.as_ref().map(|tensor| tensor.dims()))
        else {
            return false;
        };
        self.embeddings.insert(token, Embedding { path: path.to_owned(), vectors, channels });
        true
    }

    /// The textual inversions by their tokens, sorted.
    pub fn embeddings(&self) -> impl Iterator<Item = (&str, &Embedding)> {
        self.embeddings.iter().map(|(token, embedding)| (token.as_str(), embedding))
    }

    /// Adds the built-in model's style LoRA; a file of the same name in the folder goes first.
    #[must_use]
    pub fn with_builtin(self) -> Self {
        let path = Path::new(builtin::STYLE_LORA);
        if let (true, Some(name)) = (builtin::TRAINED, path.file_stem().and_then(|n| n.to_str())) {
            self.files_mut().entry(name.to_owned()).or_insert_with(|| path.to_owned());
        }
        self
    }

    /// These and no others: LoRAs of other processes, of which no more than the name is known.
    pub fn know(&self, names: impl Iterator<Item = String>) {
        *self.files_mut() =
            names.map(|name| (name.clone(), PathBuf::from(format!("{name}.safetensors")))).collect();
    }

    /// Adds a file under a name of its own.
    ///
    /// # Errors
    /// When there is a LoRA of this name.
    pub fn add(&self, name: String, path: PathBuf) -> Result<(), String> {
        match self.files_mut().entry(name) {
            Entry::Occupied(entry) => Err(format!("there is a LoRA of the name {:?}", entry.key())),
            Entry::Vacant(entry) => {
                entry.insert(path);
                Ok(())
            }
        }
    }

    fn files_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, PathBuf>> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
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
