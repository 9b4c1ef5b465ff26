//! Why a job gave no picture, sorted by who can mend it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the engine answers instead of pictures.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum EngineError {
    /// The caller asked for something that is not allowed; the text names it and what is.
    #[error("{0}")]
    Invalid(String),
    /// A file of the model or a LoRA is missing, malformed or does not fit.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// The caller left before the picture was done.
    #[error("the generation was cancelled")]
    Cancelled,
    /// The device has too little free memory for this size.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// It waited as long as a job may.
    #[error("the job waited {limit_s} s, the longest that is allowed, and was not begun")]
    WaitedTooLong {
        /// The limit in seconds.
        limit_s: u64,
    },
    /// It ran as long as a job may.
    #[error("the job ran {limit_s} s, the longest that is allowed, and was not done")]
    RanTooLong {
        /// The limit in seconds.
        limit_s: u64,
    },
    /// The device is in a state that only a new process gets out of.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    /// The server is stopping and starts no further job.
    #[error("the server is shutting down")]
    Stopping,
    /// Something was computed to NaN or infinity; the text says what.
    #[error("{0}")]
    NotFinite(String),
    /// Anything else; the text is the cause.
    #[error("{0}")]
    Failed(String),
}

impl EngineError {
    /// Whether another input would have worked: such errors end the program with code 2.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::File { .. })
    }
}

/// How CUDA, its libraries and the operating system spell it.
const OUT_OF_MEMORY: [&str; 4] = ["out of memory", "out_of_memory", "outofmemory", "alloc_failed"];

/// CUDA's errors after which the process can use the device no more: 214, 700, 702, 710 and 714 to 719.
const DEVICE_LOST: [&str; 10] = [
    "ecc_uncorrectable",
    "illegal_address",
    "launch_timeout",
    "cuda_error_assert",
    "hardware_stack_error",
    "illegal_instruction",
    "misaligned_address",
    "invalid_address_space",
    "invalid_pc",
    "launch_failed",
];

impl From<aquatint_models::Error> for EngineError {
    fn from(error: aquatint_models::Error) -> Self {
        use aquatint_models::Error;
        match error {
            Error::Invalid(text) => Self::Invalid(text),
            Error::File { path, reason } => Self::File { path, reason },
            Error::NoRoom(text) => Self::OutOfMemory(text),
            Error::Cancelled => Self::Cancelled,
            Error::NotFinite(_) => Self::NotFinite(error.to_string()),
            other => {
                let text = other.to_string();
                let lower = text.to_lowercase();
                let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
                if says(&DEVICE_LOST) {
                    Self::DeviceLost(text)
                } else if says(&OUT_OF_MEMORY) {
                    Self::OutOfMemory(text)
                } else {
                    Self::Failed(text)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_device_errors_by_their_text() {
        let cuda = |text: &str| {
            EngineError::from(aquatint_models::Error::Device(candle_core::Error::Msg(text.to_owned())))
        };
        let memory = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        assert!(matches!(cuda(memory), EngineError::OutOfMemory(_)));
        assert!(matches!(cuda("CUBLAS_STATUS_ALLOC_FAILED"), EngineError::OutOfMemory(_)));
        assert!(matches!(cuda("CUDA_ERROR_LAUNCH_FAILED"), EngineError::DeviceLost(_)));
        let ecc = r#"DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered")"#;
        assert!(matches!(cuda(ecc), EngineError::DeviceLost(_)));
        assert!(matches!(cuda("CUDA_ERROR_INVALID_VALUE"), EngineError::Failed(_)));
    }
}
