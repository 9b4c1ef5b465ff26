//! T5's unigram tokenizer.
//!
//! Equal to transformers' `T5TokenizerFast`, which diffusers' FLUX pipelines use. The older `T5Tokenizer`, which asks
//! SentencePiece itself, differs with the published vocabulary where a text ends in `</s>` (it adds no second one), where
//! a letter carries several combining marks, and in long runs of one character, which can be split in several ways of
//! equal probability.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};

use super::charsmap;
use super::spiece::{Kind, SentencePiece};
use crate::checkpoint::ModelFolder;
use crate::text::added_token::{Flags, WithId};
use crate::{Error, Result};

/// What stands for a space in pieces.
const SPACE: char = '\u{2581}';

/// Text to token ids of a fixed length.
#[derive(Clone, Debug)]
pub struct T5Tokenizer {
    inner: Tokenizer,
    eos: u32,
    pad: u32,
}

/// What either file says.
struct Parts {
    vocab: Vec<(String, f64)>,
    unk_id: usize,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    added: Vec<(u32, AddedToken)>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl T5Tokenizer {
    /// Reads `component` (`tokenizer_2` in FLUX's folders): `tokenizer.json`, or `spiece.model` with what
    /// `tokenizer_config.json`, where there is one, says of special tokens.
    ///
    /// Source: `T5Converter` in `transformers/convert_slow_tokenizer.py`.
    ///
    /// # Errors
    /// Where the files are missing, malformed, or lack `</s>` or `<pad>`.
    pub fn load(folder: &ModelFolder, component: &str) -> Result<Self> {
        let [json, spiece] = ["tokenizer.json", "spiece.model"].map(|name| format!("{component}/{name}"));
        let (file, parts) = if folder.contains(&json) {
            let parts = from_json(folder.json(&json)?);
            (json, parts)
        } else if folder.contains(&spiece) {
            let config = format!("{component}/tokenizer_config.json");
            let config = if folder.contains(&config) { folder.json(&config)? } else { Config::default() };
            let parts = SentencePiece::parse(&folder.read(&spiece)?).and_then(|s| from_spiece(s, &config));
            (spiece, parts)
        } else {
            let needed = "holds no T5 tokenizer: tokenizer.json or spiece.model is needed";
            return Err(Error::file(folder.path(component), needed));
        };
        let bad = |reason: String| Error::file(folder.path(&file), reason);
        let inner = build(parts.map_err(bad)?).map_err(|e| bad(e.to_string()))?;
        let id = |token: &str| {
            inner
                .token_to_id(token)
                .ok_or_else(|| bad(format!("the token {token:?} is not in the vocabulary")))
        };
        let (eos, pad) = (id("</s>")?, id("<pad>")?);
        Ok(Self { inner, eos, pad })
    }

    /// What ends a text.
    pub fn eos_token_id(&self) -> u32 {
        self.eos
    }

    /// What follows the end.
    pub fn pad_token_id(&self) -> u32 {
        self.pad
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of a text, without end and padding.
    ///
    /// # Errors
    /// Where the tokenizer's file has no way to write the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding =
            encoding.map_err(|e| Error::invalid(format!("the prompt cannot be tokenized: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `max_length` ids: as many of the text's tokens as fit, the end token, padding.
    ///
    /// # Errors
    /// Where `max_length` is 0, which has no place for the end; see also [`Self::tokens`].
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<u32>> {
        if max_length == 0 {
            return Err(Error::invalid("max_length is 0: at least 1 is needed, for the end of the prompt"));
        }
        let mut ids = self.tokens(text)?;
        ids.truncate(max_length - 1);
        ids.push(self.eos);
        ids.resize(max_length, self.pad);
        Ok(ids)
    }
}

/// The fields of `tokenizer.json` that say how texts become ids.
#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    normalizer: Value,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    #[serde(default)]
    added_tokens: Vec<WithId>,
}

#[derive(Deserialize)]
struct Model {
    unk_id: usize,
    vocab: Vec<(String, f64)>,
    #[serde(default)]
    byte_fallback: bool,
}

fn from_json(json: TokenizerJson) -> std::result::Result<Parts, String> {
    if json.model.byte_fallback {
        return Err("its model has byte_fallback, which no T5 has".to_owned());
    }
    Ok(Parts {
        vocab: json.model.vocab,
        unk_id: json.model.unk_id,
        normalizer: normalizer(json.normalizer)?,
        pre_tokenizer: json.pre_tokenizer,
        added: json.added_tokens.into_iter().map(|t| (t.id, t.token.token())).collect(),
    })
}

/// Normalizers that hold no others and no compiled replacements.
const PLAIN_NORMALIZERS: [&str; 10] =
    ["Strip", "StripAccents", "Replace", "Prepend", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt"];

/// The normalizer that `tokenizer.json` describes; compiled replacements in it are checked.
fn normalizer(json: Value) -> std::result::Result<Option<NormalizerWrapper>, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("its normalizer: {e}");
    let text = |field: &str| json.get(field).and_then(Value::as_str);
    match text("type") {
        _ if json.is_null() => Ok(None),
        Some("Sequence") => {
            let parts = json
                .get("normalizers")
                .and_then(Value::as_array)
                .ok_or_else(|| wrong(&"an empty Sequence"))?;
            let parts = parts.iter().filter_map(|part| normalizer(part.clone()).transpose());
            Ok(Some(Sequence::new(parts.collect::<std::result::Result<_, _>>()?).into()))
        }
        Some("Precompiled") => {
            let bytes = STANDARD.decode(text("precompiled_charsmap").unwrap_or_default());
            Ok(Some(charsmap::precompiled(&bytes.map_err(|e| wrong(&e))?)?.into()))
        }
        // Of an unknown type the crate guesses, and would read compiled replacements unchecked.
        Some(kind) if PLAIN_NORMALIZERS.contains(&kind) => {
            serde_json::from_value(json).map(Some).map_err(|e| wrong(&e))
        }
        kind => Err(wrong(&format!("the type {kind:?} is not known"))),
    }
}

/// What `tokenizer_config.json` says beside `spiece.model`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    extra_ids: Option<u32>,
    legacy: Option<bool>,
    add_prefix_space: Option<bool>,
    added_tokens_decoder: Option<BTreeMap<String, Flags>>,
}

/// More sentinels than any published T5 has.
const MAX_EXTRA_IDS: u32 = 1000;

fn from_spiece(model: SentencePiece, config: &Config) -> std::result::Result<Parts, String> {
    let extra_ids = config.extra_ids.unwrap_or(100);
    if extra_ids > MAX_EXTRA_IDS {
        return Err(format!(
            "tokenizer_config.json: extra_ids is {extra_ids}, at most {MAX_EXTRA_IDS} are allowed"
        ));
    }
    let special = |content: &str| AddedToken::from(content, true).normalized(false);
    let mut added = BTreeMap::new();
    let mut vocab = Vec::with_capacity(model.pieces.len() + extra_ids as usize);
    for piece in &model.pieces {
        let id = vocab.len() as u32;
        match piece.kind {
            Kind::Control | Kind::Unknown => _ = added.insert(id, special(&piece.text)),
            Kind::UserDefined => {
                _ = added.insert(id, AddedToken::from(&*piece.text, false).normalized(false))
            }
            Kind::Normal | Kind::Other => {}
        }
        vocab.push((piece.text.clone(), f64::from(piece.score)));
    }
    for i in (0..extra_ids).rev() {
        let name = format!("<extra_id_{i}>");
        added.insert(vocab.len() as u32, special(&name));
        vocab.push((name, 0.0));
    }
    for (id, token) in config.added_tokens_decoder.iter().flatten() {
        let id = id.parse().map_err(|_| format!("tokenizer_config.json: {id:?} is no token id"))?;
        added.insert(id, token.clone().token());
    }
    let mut parts: Vec<NormalizerWrapper> = Vec::new();
    if !model.charsmap.is_empty() {
        parts.push(charsmap::precompiled(&model.charsmap)?.into());
    }
    parts.push(Strip::new(false, true).into());
    let spaces = Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), SPACE.to_string());
    parts.push(spaces.map_err(|e| e.to_string())?.into());
    let prepend = match (config.add_prefix_space, config.legacy) {
        (Some(false), _) => PrependScheme::Never,
        (_, Some(false)) => PrependScheme::First,
        _ => PrependScheme::Always,
    };
    Ok(Parts {
        vocab,
        unk_id: model.unk_id,
        normalizer: Some(Sequence::new(parts).into()),
        pre_tokenizer: Some(Metaspace::new(SPACE, prepend, true).into()),
        added: added.into_iter().collect(),
    })
}

fn build(parts: Parts) -> std::result::Result<Tokenizer, AnyError> {
    if let Some((piece, score)) = parts.vocab.iter().find(|(_, score)| !score.is_finite()) {
        return Err(format!("the piece {piece:?} has score {score}").into());
    }
    let mut inner = Tokenizer::new(Unigram::from(parts.vocab, Some(parts.unk_id), false)?);
    inner.with_normalizer(parts.normalizer)?;
    inner.with_pre_tokenizer(parts.pre_tokenizer);
    let mut added = parts.added;
    added.sort_by_key(|(id, _)| *id);
    for (id, token) in added {
        let content = token.content.clone();
        inner.add_tokens([token])?;
        if inner.token_to_id(&content) != Some(id) {
            let actual = inner.token_to_id(&content);
            return Err(
                format!("the added token {content:?} has id {id}, but its place is {actual:?}").into()
            );
        }
    }
    Ok(inner)
}
