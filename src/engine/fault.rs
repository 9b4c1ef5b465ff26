//! What goes wrong in a call of the model, panics included.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EngineError;

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// It said so.
    Error(EngineError),
    /// It panicked; the text is in the log.
    Panic,
}

impl Fault {
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Error(EngineError::OutOfMemory(_)))
    }

    /// Whether no later call can work.
    pub(super) fn is_device_lost(&self) -> bool {
        matches!(self, Self::Error(EngineError::DeviceLost(_)))
    }

    /// What the caller is told.
    pub(super) fn into_error(self) -> EngineError {
        match self {
            Self::Error(error) => error,
            Self::Panic => EngineError::Failed("internal error".into()),
        }
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        Self::Error(error)
    }
}

/// Turns a panic into a fault, so that one bad job does not end the server.
pub(super) fn catch<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(Fault::Error),
        Err(cause) => {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no message");
            tracing::error!(text, "the model panicked");
            Err(Fault::Panic)
        }
    }
}
