//! Encoded prompts, kept: people vary seeds and steps more often than words.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Encoded;
use crate::Result;

/// What an encoding depends on beside the weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PromptKey {
    /// Which of a model's sets of encoders.
    pub encoders: usize,
    /// Texts and their clip_skip.
    pub prompts: Vec<(String, usize)>,
}

/// The last prompts that were encoded, as many as it was made for.
#[derive(Debug)]
pub struct PromptCache {
    capacity: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// With the time of their last use, as a count.
    by_key: HashMap<PromptKey, (u64, Encoded)>,
    uses: u64,
    hits: u64,
}

impl PromptCache {
    /// An empty one.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The encoding under `key`, made by `encode` where there is none.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn get(&self, key: PromptKey, encode: impl FnOnce() -> Result<Encoded>) -> Result<Encoded> {
        let mut entries = self.entries();
        entries.uses += 1;
        let now = entries.uses;
        if let Some((used, encoded)) = entries.by_key.get_mut(&key) {
            *used = now;
            let encoded = encoded.clone();
            entries.hits += 1;
            return Ok(encoded);
        }
        drop(entries);
        let encoded = encode()?;
        let mut entries = self.entries();
        entries.by_key.insert(key, (now, encoded.clone()));
        if entries.by_key.len() > self.capacity {
            let oldest = entries.by_key.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| entries.by_key.remove(&key));
        }
        Ok(encoded)
    }

    /// Forgets all: the encoders have changed, or memory is short.
    pub fn clear(&self) {
        self.entries().by_key.clear();
    }

    /// `(found, encoded)` so far.
    pub fn counts(&self) -> (u64, u64) {
        let entries = self.entries();
        (entries.hits, entries.uses - entries.hits)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn key(text: &str) -> PromptKey {
        PromptKey { encoders: 0, prompts: vec![(text.to_owned(), 0)] }
    }

    fn encode() -> Result<Encoded> {
        Ok(Encoded { hidden: Tensor::new(&[1f32], &Device::Cpu)?, pooled: None })
    }

    #[test]
    fn keeps_the_last_ones_used() {
        let cache = PromptCache::new(2);
        for text in ["a", "b", "a", "c"] {
            cache.get(key(text), encode).unwrap();
        }
        assert_eq!(cache.counts(), (1, 3));
        let untouched = || -> Result<Encoded> { Err(crate::Error::invalid("it was forgotten")) };
        assert!(cache.get(key("a"), untouched).is_ok());
        assert!(cache.get(key("b"), untouched).is_err(), "a was used after it");
        assert!(cache.get(PromptKey { encoders: 1, ..key("a") }, untouched).is_err());
        cache.clear();
        assert!(cache.get(key("a"), untouched).is_err());
    }
}
