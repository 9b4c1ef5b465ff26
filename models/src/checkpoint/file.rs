//! A file of weights, whichever kind it is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::bytes::Bytes;
use super::gguf_file::{self, GgufFile};
use super::safetensors_file::SafetensorsFile;
use super::stored::{Entry, Stored};
use crate::Result;

/// A file of weights. Its kind is read from its first bytes, not from its name.
#[derive(Debug)]
pub enum CheckpointFile {
    /// A safetensors file.
    Safetensors(SafetensorsFile),
    /// A GGUF file.
    Gguf(GgufFile),
}

impl CheckpointFile {
    /// Opens a file, or one of the program's own, and checks its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Bytes::open(path)?;
        let mut magic = [0u8; 4];
        // A file that is too short for this is refused, with its length, as the safetensors file that it may be.
        let gguf = bytes.read_at(&mut magic, 0).is_ok() && &magic == gguf_file::MAGIC;
        Ok(if gguf {
            Self::Gguf(GgufFile::new(path.to_owned(), bytes)?)
        } else {
            Self::Safetensors(SafetensorsFile::new(path.to_owned(), bytes)?)
        })
    }

    /// The file's path, or the name it was given.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safetensors(file) => file.path(),
            Self::Gguf(file) => file.path(),
        }
    }

    /// Every tensor by its name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        match self {
            Self::Safetensors(file) => file.entries(),
            Self::Gguf(file) => file.entries(),
        }
    }

    /// The header's free text; of a GGUF file, its numbers and short texts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Safetensors(file) => file.metadata(),
            Self::Gguf(file) => file.metadata(),
        }
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &Bytes {
        match self {
            Self::Safetensors(file) => file.bytes(),
            Self::Gguf(file) => file.bytes(),
        }
    }

    /// Reads rows of one tensor, or all of it, as they lie.
    pub fn stored(&self, name: &str, rows: Option<Range<usize>>) -> Result<Stored> {
        match self {
            Self::Safetensors(file) => file.stored(name, rows),
            Self::Gguf(file) => file.stored(name, rows),
        }
    }
}
