//! CLIP's byte-level BPE tokenizer.
//!
//! Equal to transformers' `CLIPTokenizerFast`, the only one that transformers 5 has. The older `CLIPTokenizer` agrees
//! on ordinary text; it differs where `ftfy` rewrites the text first (curly quotes, ligatures, full-width letters,
//! HTML entities, control characters).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{self, PreTokenizerWrapper};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::vocabulary::Vocabulary;
use crate::checkpoint::ModelFolder;
use crate::{Error, Result};

/// What becomes a word: a contraction's ending, letters, one digit, or a run of anything else.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// More vectors than any published textual inversion has; each takes a place in the prompt.
const MAX_VECTORS: usize = 1024;

/// Text to token ids, and the ids of the tokens that stand around it.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    /// The number of ids of each token that stands for several, by the first of them.
    vectors: BTreeMap<u32, u32>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Tokenizer {
    /// Reads `component` (`tokenizer` or `tokenizer_2`) of a model: `tokenizer.json`, or `vocab.json` and
    /// `merges.txt`; the padding token from `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// Source: `CLIPConverter` in `transformers/convert_slow_tokenizer.py`.
    ///
    /// # Errors
    /// Where the files are missing, malformed, or do not hold the special tokens.
    pub fn load(folder: &ModelFolder, component: &str) -> Result<Self> {
        let files = Vocabulary::read(folder, component)?;
        let bad = |e: String| Error::file(folder.path(component), e);
        let (special, added) = (files.special, files.added);
        let inner = build(files.vocab, files.merges, &special.unk.content);
        let mut inner = inner.map_err(|e| bad(e.to_string()))?;
        // In the order of their ids, so that those beyond the vocabulary get the ids the files say.
        for (id, token) in added {
            let content = token.content.clone();
            inner.add_tokens([token]).map_err(|e| bad(e.to_string()))?;
            if inner.token_to_id(&content) != Some(id) {
                let actual = inner.token_to_id(&content);
                return Err(bad(format!(
                    "the added token {content:?} has id {id}, but its place is {actual:?}"
                )));
            }
        }
        let known = inner.get_added_tokens_decoder();
        for token in [&special.bos, &special.eos, &special.pad, &special.unk] {
            if inner.token_to_id(&token.content).is_none() {
                return Err(bad(format!("the special token {:?} is not in the vocabulary", token.content)));
            }
            // Special tokens are found in the text too: where "!" pads, every "!" of a prompt becomes padding.
            if !known.values().any(|k| k.content == token.content) {
                inner.add_special_tokens([token.clone()]).map_err(|e| bad(e.to_string()))?;
            }
        }
        let id = |token: &AddedToken| inner.token_to_id(&token.content).unwrap_or_default();
        let (bos, eos, pad) = (id(&special.bos), id(&special.eos), id(&special.pad));
        Ok(Self { inner, bos, eos, pad, vectors: BTreeMap::new() })
    }

    /// What every chunk begins with.
    pub fn bos_token_id(&self) -> u32 {
        self.bos
    }

    /// What ends the text.
    pub fn eos_token_id(&self) -> u32 {
        self.eos
    }

    /// What fills a chunk after its end: the end token again, or `!` for OpenCLIP's encoders.
    pub fn pad_token_id(&self) -> u32 {
        self.pad
    }

    /// The number of tokens, added ones included; the next added token gets this id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of a text, without begin, end and padding: one id each, several for a textual inversion of several
    /// vectors.
    ///
    /// # Errors
    /// Where the vocabulary lacks a byte of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<Range<u32>>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding =
            encoding.map_err(|e| Error::invalid(format!("the prompt cannot be tokenized: {e}")))?;
        let range = |&id: &u32| id..id + self.vectors.get(&id).copied().unwrap_or(1);
        Ok(encoding.get_ids().iter().map(range).collect())
    }

    /// Adds the token `name`, which stands for `vectors` embeddings, and returns its ids, which lie beyond the
    /// vocabulary. It is found anywhere in a text, in any case. As in diffusers, `name_1`, `name_2` .. name the
    /// second vector and those after it.
    ///
    /// Source: `TextualInversionLoaderMixin` in `diffusers/loaders/textual_inversion.py`.
    ///
    /// # Errors
    /// Where the name is empty or taken, or the number of vectors is not 1 to 1024.
    pub fn add_tokens(&mut self, name: &str, vectors: usize) -> Result<Range<u32>> {
        if name.trim().is_empty() || name.trim() != name {
            return Err(Error::invalid(format!(
                "the token {name:?}: a name without spaces around it is needed"
            )));
        }
        if vectors == 0 || vectors > MAX_VECTORS {
            let text = format!("the token {name:?} has {vectors} vectors: 1 to {MAX_VECTORS} are allowed");
            return Err(Error::invalid(text));
        }
        let names: Vec<_> =
            (0..vectors).map(|i| if i == 0 { name.to_owned() } else { format!("{name}_{i}") }).collect();
        if let Some(taken) = names.iter().find(|n| self.inner.token_to_id(n).is_some()) {
            return Err(Error::invalid(format!(
                "the token {taken:?} is in the vocabulary already: choose another"
            )));
        }
        let decoder = self.inner.get_added_tokens_decoder();
        let folded: BTreeSet<_> = decoder.values().map(|t| t.content.to_lowercase()).collect();
        if let Some(taken) = names.iter().find(|n| folded.contains(&n.to_lowercase())) {
            return Err(Error::invalid(format!(
                "the token {taken:?} differs from another in case alone: choose another"
            )));
        }
        let first = self.vocab_size() as u32;
        let added = self.inner.add_tokens(names.into_iter().map(|n| AddedToken::from(n, false)));
        added.map_err(|e| Error::invalid(format!("the token {name:?} cannot be added: {e}")))?;
        let count = vectors as u32;
        if count > 1 {
            self.vectors.insert(first, count);
        }
        Ok(first..first + count)
    }
}

fn build(vocab: Vocab, merges: Merges, unk: &str) -> std::result::Result<tokenizers::Tokenizer, AnyError> {
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unk.to_owned())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .build()?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    let words: Vec<PreTokenizerWrapper> = vec![words.into(), ByteLevel::new(false, true, true).into()];
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(vec![
        NFC.into(),
        spaces.into(),
        Lowercase.into(),
    ])))?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(words)));
    Ok(tokenizer)
}
