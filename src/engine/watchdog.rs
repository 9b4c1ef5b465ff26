//! Notices a call of the model that does not come back: nothing in this process can end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::EngineError;
use super::handle::Shared;

/// A thread that looks at the clock; ended and joined when dropped.
pub(super) struct Watchdog {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn spawn(shared: Arc<Shared>, limit: Duration) -> std::io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let pause = (limit / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let watch = move || {
            while !told.load(Ordering::Acquire) {
                std::thread::park_timeout(pause);
                let since = *shared.busy_since.lock().unwrap_or_else(PoisonError::into_inner);
                if since.is_some_and(|since| since.elapsed() > limit) {
                    let text = format!("no answer for {} s", limit.as_secs_f64());
                    tracing::error!("the device gives {text}");
                    return shared.fail(EngineError::DeviceLost(text));
                }
            }
        };
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(watch)?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _never_panics = thread.join();
        }
    }
}
