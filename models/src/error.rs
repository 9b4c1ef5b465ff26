//! What can go wrong, sorted by who can mend it.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be loaded or a picture not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked for something that is not allowed; the text names it and what is.
    #[error("{0}")]
    Invalid(String),
    /// A file of the model or a LoRA is missing, malformed or does not fit.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file, or the folder in which it was looked for.
        path: PathBuf,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// A model does not fit into the memory that is free; the text says what it needs and what there is.
    #[error("{0}")]
    NoRoom(String),
    /// The caller went away or asked for a stop.
    #[error("the generation was cancelled")]
    Cancelled,
    /// Something was computed to NaN or infinity, which would be a black picture; the text says what.
    #[error("{0} not finite: use --dtype fp32 or bf16, or a lower guidance_scale")]
    NotFinite(String),
    /// The device refused an operation.
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::Invalid`] with this text.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// An [`Error::File`] with this reason.
    pub fn file(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_owned(), reason: reason.to_string() }
    }
}
