//! Pictures that replies name by URL: kept in memory for a while, the oldest given up when there are too many.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::Error;
use crate::api::App;
use crate::api::fastapi::origin;
use crate::api::fault::{Fault, Kind};

/// As long as OpenAI's own.
const LIFETIME: Duration = Duration::from_secs(60 * 60);
const MAX_BYTES: usize = 256 << 20;

/// Finished files by their ids.
#[derive(Default)]
pub struct ImageStore {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The oldest first.
    files: VecDeque<Stored>,
    bytes: usize,
}

struct Stored {
    id: String,
    media_type: &'static str,
    bytes: Bytes,
    until: Instant,
}

impl Kept {
    fn drop_oldest(&mut self) {
        if let Some(gone) = self.files.pop_front() {
            self.bytes -= gone.bytes.len();
        }
    }
}

impl ImageStore {
    /// Keeps a file, and says under which id.
    pub(super) fn keep(&self, bytes: Vec<u8>, media_type: &'static str) -> String {
        let id = unguessable();
        let mut kept = self.kept();
        kept.bytes += bytes.len();
        let stored =
            Stored { id: id.clone(), media_type, bytes: bytes.into(), until: Instant::now() + LIFETIME };
        kept.files.push_back(stored);
        // The newest stays, however large: its URL is about to be sent.
        while kept.bytes > MAX_BYTES && kept.files.len() > 1 {
            kept.drop_oldest();
        }
        id
    }

    fn find(&self, id: &str) -> Option<(&'static str, Bytes)> {
        let now = Instant::now();
        let mut kept = self.kept();
        while kept.files.front().is_some_and(|oldest| oldest.until <= now) {
            kept.drop_oldest();
        }
        kept.files.iter().find(|file| file.id == id).map(|file| (file.media_type, file.bytes.clone()))
    }

    /// Nothing in a critical section can panic, so a poisoned store is still whole.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Whoever knows the id may see the picture, so it has 128 bits of the system's random source: the standard library
/// seeds its hashers from that.
fn unguessable() -> String {
    let word = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}

/// Where a client finds a stored picture.
pub(super) fn url(headers: &HeaderMap, id: &str) -> String {
    format!("{}/images/{id}", origin(headers).unwrap_or_default())
}

/// `GET /images/{id}`
pub async fn image(State(app): State<App>, Path(id): Path<String>) -> Response {
    match app.images.find(&id) {
        Some((media_type, bytes)) => {
            let keep = "private, max-age=3600, immutable";
            ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, keep)], bytes).into_response()
        }
        None => {
            let message = "There is no such picture any more: they are kept for an hour.";
            Error::from(Fault::new(Kind::UnknownModel, message)).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let store = ImageStore::default();
        let first = store.keep(vec![1; MAX_BYTES / 2], "image/png");
        let second = store.keep(vec![2; MAX_BYTES / 2], "image/png");
        assert!(store.find(&first).is_some() && store.find(&second).is_some());
        let third = store.keep(vec![3], "image/png");
        assert!(store.find(&first).is_none());
        assert!(store.find(&second).is_some() && store.find(&third).is_some());
        assert_eq!(store.kept().bytes, MAX_BYTES / 2 + 1);
    }

    #[test]
    fn what_is_too_old_is_gone() {
        let store = ImageStore::default();
        let id = store.keep(vec![1], "image/png");
        store.kept().files[0].until = Instant::now();
        assert!(store.find(&id).is_none());
        assert_eq!(store.kept().bytes, 0);
    }
}
