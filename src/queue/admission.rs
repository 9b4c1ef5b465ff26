//! Who asks, what for, and why not.

/// Whoever a job is counted against: an API key's name, an address, or nobody in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller(Option<String>);

impl Caller {
    /// A caller that limits do not tell from others; no limit of its own holds.
    pub fn anonymous() -> Self {
        Self(None)
    }

    /// A caller by the name that its jobs are counted under. Never a secret: it is logged.
    pub fn named(name: impl Into<String>) -> Self {
        Self(Some(name.into()))
    }

    /// The name, if there is one.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// What a job will cost the engine: megapixels times steps over all its pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Cost(f64);

/// What is assumed where a request leaves it to the model.
const USUAL_SIZE: (u32, u32) = (1024, 1024);
const USUAL_STEPS: usize = 30;

impl Cost {
    /// The cost of `pictures` of `size` (width and height in pixels) and `steps`; what is left to the model is guessed.
    pub fn of(pictures: usize, size: Option<(u32, u32)>, steps: Option<usize>) -> Self {
        let (size, steps) = (size.unwrap_or(USUAL_SIZE), steps.unwrap_or(USUAL_STEPS));
        Self(pictures as f64 * f64::from(size.0) * f64::from(size.1) / 1e6 * steps as f64)
    }

    /// Megapixels times steps.
    pub fn megapixel_steps(self) -> f64 {
        self.0
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

/// A connection that was lost is tried again several times in this time.
const UNREACHABLE_RETRY_S: u64 = 2;

/// Why a job is not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The server has no place: 503.
    #[error("the queue is full: {capacity} jobs are running or waiting")]
    Full {
        /// Places there are.
        capacity: usize,
        /// When one should be free, judged by the last jobs.
        retry_after_s: u64,
    },
    /// The work that is admitted already is as much as the server takes on: 503.
    #[error(
        "the queue is full: it holds {held:.1} of {limit:.1} megapixel-steps, and this asks for {asked:.1}"
    )]
    TooMuchWork {
        /// Megapixel-steps admitted.
        held: f64,
        /// Megapixel-steps that may be.
        limit: f64,
        /// Megapixel-steps asked for.
        asked: f64,
        /// When there should be room.
        retry_after_s: u64,
    },
    /// The queue is on another machine and does not answer: 503.
    #[error("the queue cannot be reached: {reason}")]
    Unreachable {
        /// What was tried, and what came of it.
        reason: String,
    },
    /// This caller has as many jobs as one caller may: 429.
    #[error("you have {jobs} jobs running or waiting, and {limit} are allowed at a time")]
    OverQuota {
        /// Jobs it has.
        jobs: usize,
        /// Jobs it may have.
        limit: usize,
        /// When one of them should be done.
        retry_after_s: u64,
    },
}

impl Refusal {
    /// Whether it is the caller's own quota (429), not the server's state (503).
    pub fn is_callers_own(&self) -> bool {
        matches!(self, Self::OverQuota { .. })
    }

    /// Seconds after which to try again.
    pub fn retry_after_s(&self) -> u64 {
        match self {
            Self::Full { retry_after_s, .. }
            | Self::TooMuchWork { retry_after_s, .. }
            | Self::OverQuota { retry_after_s, .. } => *retry_after_s,
            Self::Unreachable { .. } => UNREACHABLE_RETRY_S,
        }
    }
}
