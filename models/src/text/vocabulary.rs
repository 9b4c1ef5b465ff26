//! A CLIP tokenizer's files: the vocabulary and merges, and which of its tokens are special.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};

use super::added_token::{Flags, WithId};
use crate::checkpoint::ModelFolder;
use crate::{Error, Result};

/// Byte tokens, each also as the end of a word, and the two special ones: what no merge makes.
const UNMERGED_TOKENS: usize = 2 * 256 + 2;

/// What the files of one tokenizer folder say.
pub(super) struct Vocabulary {
    /// Token -> id.
    pub(super) vocab: Vocab,
    /// Pairs in the order in which they are merged; their concatenation is in the vocabulary.
    pub(super) merges: Merges,
    /// Tokens that are looked for in the text before it is split into words, with their ids.
    pub(super) added: BTreeMap<u32, AddedToken>,
    /// The tokens with a role.
    pub(super) special: SpecialTokens,
}

/// The tokens with a role, as special tokens.
pub(super) struct SpecialTokens {
    pub(super) bos: AddedToken,
    pub(super) eos: AddedToken,
    pub(super) pad: AddedToken,
    pub(super) unk: AddedToken,
}

/// `tokenizer.json`: everything that a CLIP tokenizer does not have in common with all others.
#[derive(Deserialize)]
struct TokenizerJson {
    model: Bpe,
    #[serde(default)]
    added_tokens: Vec<WithId>,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: Vocab,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

impl Merge {
    fn pair(self) -> std::result::Result<(String, String), String> {
        match self {
            Self::Pair(a, b) => Ok((a, b)),
            Self::Line(line) => match line.split_once(' ') {
                Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                    Ok((a.to_owned(), b.to_owned()))
                }
                _ => Err(format!("{line:?} is no merge: two tokens and one space between are")),
            },
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Role {
    Text(String),
    Flags(Flags),
}

impl Role {
    fn or(role: Option<Self>, default: &str) -> AddedToken {
        match role {
            Some(Self::Flags(flags)) => flags.token().special(true),
            Some(Self::Text(content)) => AddedToken::from(content, true).normalized(true),
            None => AddedToken::from(default, true).normalized(true),
        }
    }
}

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    bos_token: Option<Role>,
    eos_token: Option<Role>,
    pad_token: Option<Role>,
    unk_token: Option<Role>,
    added_tokens_decoder: Option<BTreeMap<String, Flags>>,
}

impl Vocabulary {
    /// Reads the folder `component` of a model: `tokenizer.json`, or `vocab.json` and `merges.txt`.
    pub(super) fn read(folder: &ModelFolder, component: &str) -> Result<Self> {
        let file = |name: &str| format!("{component}/{name}");
        let mut added: BTreeMap<u32, AddedToken> = BTreeMap::new();
        let (vocab, merges, merges_file) = if folder.contains(&file("tokenizer.json")) {
            let json: TokenizerJson = folder.json(&file("tokenizer.json"))?;
            added.extend(json.added_tokens.into_iter().map(|t| (t.id, t.token.token())));
            (json.model.vocab, json.model.merges, file("tokenizer.json"))
        } else if folder.contains(&file("vocab.json")) {
            (folder.json(&file("vocab.json"))?, read_merges(folder, &file("merges.txt"))?, file("merges.txt"))
        } else {
            let needed = "holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, is needed";
            return Err(Error::file(folder.path(component), needed));
        };
        let bad = |reason: String| Error::file(folder.path(&merges_file), reason);
        let merges =
            merges.into_iter().map(Merge::pair).collect::<std::result::Result<Merges, _>>().map_err(bad)?;
        // The tokenizers crate panics on such a pair where it is longer than every token.
        if let Some((a, b)) = merges.iter().find(|(a, b)| !vocab.contains_key(&format!("{a}{b}"))) {
            return Err(bad(format!(
                "the merge of {a:?} and {b:?} makes a token that is not in the vocabulary"
            )));
        }
        if merges.len() + UNMERGED_TOKENS < vocab.len() {
            let (path, n) = (folder.path(&merges_file), merges.len());
            tracing::warn!(
                "{}: {n} merges are few for {} tokens: is it cut short?",
                path.display(),
                vocab.len()
            );
        }
        let special = read_config(folder, component, &mut added)?;
        Ok(Self { vocab, merges, added, special })
    }
}

/// The lines of `merges.txt`, less the first, which names its format.
fn read_merges(folder: &ModelFolder, file: &str) -> Result<Vec<Merge>> {
    let text = String::from_utf8(folder.read(file)?).map_err(|e| Error::file(folder.path(file), e))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    Ok(lines.map(|line| Merge::Line(line.to_owned())).collect())
}

/// The roles, and into `added` the tokens that the configs list.
fn read_config(
    folder: &ModelFolder,
    component: &str,
    added: &mut BTreeMap<u32, AddedToken>,
) -> Result<SpecialTokens> {
    let optional = |name: &str| -> Result<Config> {
        let file = format!("{component}/{name}");
        if folder.contains(&file) { folder.json(&file) } else { Ok(Config::default()) }
    };
    let config = optional("tokenizer_config.json")?;
    let map = optional("special_tokens_map.json")?;
    for (id, token) in config.added_tokens_decoder.iter().flatten() {
        let path = folder.path(&format!("{component}/tokenizer_config.json"));
        let id = id
            .parse()
            .map_err(|_| Error::file(path, format!("added_tokens_decoder: {id:?} is no token id")))?;
        added.insert(id, token.clone().token());
    }
    let older = format!("{component}/added_tokens.json");
    if folder.contains(&older) {
        let tokens: BTreeMap<String, u32> = folder.json(&older)?;
        for (content, id) in tokens {
            added.entry(id).or_insert_with(|| AddedToken::from(content, false));
        }
    }
    // Folders from before added_tokens_decoder keep the truth in the map: SD 2.1's config says another pad token.
    let newer = config.added_tokens_decoder.is_some();
    let pick = |config, map| if newer { Option::or(config, map) } else { Option::or(map, config) };
    let eos = Role::or(pick(config.eos_token, map.eos_token), "<|endoftext|>");
    Ok(SpecialTokens {
        bos: Role::or(pick(config.bos_token, map.bos_token), "<|startoftext|>"),
        pad: Role::or(pick(config.pad_token, map.pad_token), &eos.content),
        unk: Role::or(pick(config.unk_token, map.unk_token), &eos.content),
        eos,
    })
}
