//! Files of models: ids of the Hugging Face hub, what is needed of a repository, downloads into the cache that all
//! programs of that hub share, and whether what lies there is whole.
//!
//! In reading order: [`id`] says what is meant, [`choose`] which files that takes, [`hub`] gets them, by way of the
//! [`cache`]; [`digest`] tells whether they are what the hub said.

pub mod cache;
pub mod choose;
pub mod digest;
pub mod environment;
pub mod hub;
pub mod id;
mod listing;
mod progress;
mod transfer;
mod xet;

use std::path::PathBuf;

pub use environment::Environment;
pub use hub::{Hub, Plan, Want};
pub use id::HubId;

/// Why files of the hub are not here, in one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// What was asked for is not in the hub, or has no such form; the text says what is.
    #[error("{0}")]
    Unknown(String),
    /// The hub wants to know who asks, or has not let them in.
    #[error("{0}")]
    Denied(String),
    /// The network is not to be used, and the cache does not hold all that is needed.
    #[error("{0}")]
    Offline(String),
    /// The hub did not answer, or not well, for as long as is worth trying.
    #[error("{0}")]
    Network(String),
    /// Bytes came that are not those the hub said it has; they were thrown away.
    #[error("{0}")]
    Corrupt(String),
    /// The cache cannot be read or written.
    #[error("{}: {reason}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what helps.
        reason: String,
    },
}

impl Error {
    /// Whether another input would have worked: such errors end the program with code 2.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Denied(_) | Self::Offline(_))
    }

    /// Whether an older copy in the cache may stand in.
    fn is_network(&self) -> bool {
        matches!(self, Self::Network(_))
    }

    /// A file operation that failed.
    fn disk(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let reason = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                format!("no space is left ({error}): free some, or set HF_HOME to a folder on a larger disk")
            }
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied | ErrorKind::NotADirectory => {
                format!("cannot be written ({error}): set HF_HOME to a folder that can")
            }
            _ => error.to_string(),
        };
        Self::Disk { path: path.into(), reason }
    }
}
