//! Tokens beside the vocabulary, as `tokenizer.json` and its neighbours write them.

use serde::Deserialize;
use tokenizers::AddedToken;

/// The same with its id.
#[derive(Deserialize)]
pub(super) struct WithId {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: Flags,
}

/// An added token as the JSON files write it.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Flags {
    pub(super) content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl Flags {
    pub(super) fn token(self) -> AddedToken {
        let Self { content, single_word, lstrip, rstrip, normalized, special } = self;
        AddedToken { content, single_word, lstrip, rstrip, normalized, special }
    }
}
