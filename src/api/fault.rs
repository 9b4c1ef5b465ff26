//! What is wrong, before an API puts it into its own shape: one table from errors to statuses for all of them.

use axum::http::StatusCode;
use serde_json::Value;

use crate::engine::EngineError;
use crate::queue::Refusal;

/// Why there are no pictures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    /// What kind of thing is wrong.
    pub(super) kind: Kind,
    /// The request's field that is to blame.
    pub(super) field: Option<String>,
    /// What is wrong, with which value, and what is allowed.
    pub(super) message: String,
    /// When the same request may do better.
    pub(super) retry_after_s: Option<u64>,
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A field is missing or not as it should be.
    Invalid,
    /// There is no such model.
    UnknownModel,
    /// The body is larger than is accepted.
    TooLarge,
    /// The body broke off.
    BrokenOff,
    /// The caller has as many jobs as it may.
    OwnQuota,
    /// The server has as many jobs as it may.
    QueueFull,
    /// The device has too little memory for this.
    OutOfMemory,
    /// The model is not loaded yet.
    Loading,
    /// The server is stopping.
    Stopping,
    /// It waited too long.
    WaitedTooLong,
    /// It ran too long.
    RanTooLong,
    /// The device needs a new process.
    DeviceLost,
    /// A file of the server's, mostly a LoRA, does not do.
    BadFile,
    /// It is known, and not done here.
    Unsupported,
    /// Anything else.
    Failed,
}

impl Kind {
    /// The status, where an API has no other of its own.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Invalid | Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::UnknownModel => StatusCode::NOT_FOUND,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::OwnQuota => StatusCode::TOO_MANY_REQUESTS,
            Self::QueueFull | Self::OutOfMemory | Self::Loading => StatusCode::SERVICE_UNAVAILABLE,
            Self::Stopping | Self::WaitedTooLong | Self::DeviceLost => StatusCode::SERVICE_UNAVAILABLE,
            Self::RanTooLong => StatusCode::GATEWAY_TIMEOUT,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::BadFile | Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same request cannot do better later.
    pub(super) fn is_final(self) -> bool {
        matches!(
            self,
            Self::Invalid
                | Self::UnknownModel
                | Self::TooLarge
                | Self::OutOfMemory
                | Self::RanTooLong
                | Self::BadFile
                | Self::Unsupported
        )
    }
}

impl Fault {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, field: None, message: message.into(), retry_after_s: None }
    }

    /// A field is not as it should be; the message names it.
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(Kind::Invalid, message) }
    }

    /// A field must be something else.
    pub(super) fn must_be(field: &str, allowed: impl std::fmt::Display, value: &Value) -> Self {
        Self::invalid(field, format!("{field} must be {allowed}, not {}.", shown(value)))
    }
}

/// A value as messages show it: long ones are cut.
pub(super) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain("...".chars()).collect()
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let kind = if refusal.is_callers_own() { Kind::OwnQuota } else { Kind::QueueFull };
        Self { retry_after_s: Some(refusal.retry_after_s()), ..Self::new(kind, refusal.to_string()) }
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        let (kind, retry_after_s) = match &error {
            EngineError::Invalid(_) => (Kind::Invalid, None),
            EngineError::File { .. } => (Kind::BadFile, None),
            EngineError::OutOfMemory(_) => (Kind::OutOfMemory, None),
            EngineError::Stopping => (Kind::Stopping, Some(5)),
            EngineError::WaitedTooLong { .. } => (Kind::WaitedTooLong, Some(30)),
            EngineError::DeviceLost(_) => (Kind::DeviceLost, Some(30)),
            EngineError::RanTooLong { .. } => (Kind::RanTooLong, None),
            EngineError::Cancelled | EngineError::NotFinite(_) | EngineError::Failed(_) => {
                (Kind::Failed, None)
            }
        };
        let message = match &error {
            // The server's folders are none of the client's business.
            EngineError::File { path, reason } => {
                format!("{}: {reason}", path.file_name().unwrap_or_default().to_string_lossy())
            }
            EngineError::OutOfMemory(_) => {
                "The device has too little memory for this. A smaller size, or fewer pictures, may do.".into()
            }
            error => error.to_string(),
        };
        Self { retry_after_s, ..Self::new(kind, message) }
    }
}

/// What a panic in the encoder or a thread that cannot be started comes to.
pub(super) fn internal(error: &dyn std::fmt::Display) -> Fault {
    tracing::error!(%error, "internal error");
    Fault::new(Kind::Failed, "internal error")
}
