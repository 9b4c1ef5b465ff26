//! The tokenizers of CLIP and T5, which all models of a family share, for models that come without their own: single
//! files. `models/tokenizers` says where they are from.

use std::borrow::Cow;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;

static CLIP_MERGES: &[u8] = include_bytes!("../../tokenizers/clip_merges.txt.gz");
static T5_SPIECE: &[u8] = include_bytes!("../../tokenizers/t5_spiece.model.gz");

/// What pads a prompt: the end of the text again, or `!`, as OpenCLIP's encoders were trained.
const PADDED_WITH_END: &str = r#"{"pad_token": "<|endoftext|>"}"#;
const PADDED_WITH_BANG: &str = r#"{"pad_token": "!"}"#;
/// What FLUX's `tokenizer_config.json` says.
const T5_CONFIG: &str = r#"{"extra_ids": 100, "legacy": true, "add_prefix_space": true}"#;

/// Whose tokenizer is in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tokenizer {
    /// OpenAI's CLIP.
    Clip,
    /// OpenCLIP's, which pads in another way.
    OpenClip,
    /// T5 v1.1's.
    T5,
}

impl Tokenizer {
    /// A file of its folder, by its name.
    pub(super) fn file(self, name: &str) -> Option<Cow<'static, [u8]>> {
        match (self, name) {
            (Self::Clip | Self::OpenClip, "merges.txt") => Some(clip_merges().as_bytes().into()),
            (Self::Clip | Self::OpenClip, "vocab.json") => Some(clip_vocabulary().into_bytes().into()),
            (Self::Clip, "special_tokens_map.json") => Some(PADDED_WITH_END.as_bytes().into()),
            (Self::OpenClip, "special_tokens_map.json") => Some(PADDED_WITH_BANG.as_bytes().into()),
            (Self::T5, "spiece.model") => Some(unpacked(T5_SPIECE).into()),
            (Self::T5, "tokenizer_config.json") => Some(T5_CONFIG.as_bytes().into()),
            _ => None,
        }
    }

    /// Whether its folder has a file of this name.
    pub(super) fn has(self, name: &str) -> bool {
        match self {
            Self::Clip | Self::OpenClip => {
                ["merges.txt", "vocab.json", "special_tokens_map.json"].contains(&name)
            }
            Self::T5 => ["spiece.model", "tokenizer_config.json"].contains(&name),
        }
    }
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // The program's own bytes: a test reads both to their ends.
    let _always_whole = GzDecoder::new(bytes).read_to_end(&mut out);
    out
}

fn clip_merges() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| String::from_utf8_lossy(&unpacked(CLIP_MERGES)).into_owned())
}

/// Token -> id: each byte, each byte as a word's end, each merge's result in its order, begin and end.
///
/// Source: `SimpleTokenizer` in OpenAI's `clip/simple_tokenizer.py`.
fn clip_vocabulary() -> String {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let bytes = (0..=255u8).filter(printable).map(char::from);
    // Bytes that cannot be printed stand as the letters after the last byte.
    let others = (0..=255u8).filter(|b| !printable(b)).count() as u32;
    let bytes: Vec<char> = bytes.chain((0..others).filter_map(|i| char::from_u32(0x100 + i))).collect();
    let merges = clip_merges().lines().skip(1).map(|line| line.replace(' ', ""));
    let tokens = (bytes.iter().map(char::to_string))
        .chain(bytes.iter().map(|c| format!("{c}</w>")))
        .chain(merges)
        .chain(["<|startoftext|>", "<|endoftext|>"].map(str::to_owned));
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    serde_json::Value::from(vocabulary).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids as the published `vocab.json` has them.
    #[test]
    fn the_vocabulary_follows_from_the_merges() {
        let json: serde_json::Value = serde_json::from_str(&clip_vocabulary()).unwrap();
        assert_eq!(json.as_object().unwrap().len(), 49408);
        let published = [
            ("!", 0),
            ("~", 93),
            ("Ń", 255),
            ("!</w>", 256),
            ("Ń</w>", 511),
            ("in", 512),
            ("a</w>", 320),
            ("photo</w>", 1125),
            ("cat</w>", 2368),
            ("<|startoftext|>", 49406),
            ("<|endoftext|>", 49407),
        ];
        for (token, id) in published {
            assert_eq!(json[token], id, "{token}");
        }
        assert_eq!(unpacked(T5_SPIECE).len(), 791_656);
    }
}
