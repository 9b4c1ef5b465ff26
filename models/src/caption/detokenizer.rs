//! Token ids to text, as `BertTokenizerFast.decode(ids, skip_special_tokens=True)` gives it.

use serde::Deserialize;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{AddedToken, Tokenizer};

use crate::checkpoint::ModelFolder;
use crate::{Error, Result};

/// BERT's tokenizer, of which a captioner needs the way back only.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    clean_up_tokenization_spaces: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    clean_up_tokenization_spaces: Option<bool>,
}

const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

impl Detokenizer {
    /// Reads `tokenizer.json` or, where there is none, `vocab.txt`; and `tokenizer_config.json` if there is one.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn load(folder: &ModelFolder) -> Result<Self> {
        let config: TokenizerConfig = match folder.contains("tokenizer_config.json") {
            true => folder.json("tokenizer_config.json")?,
            false => TokenizerConfig::default(),
        };
        let ready = folder.contains("tokenizer.json");
        let file = if ready { "tokenizer.json" } else { "vocab.txt" };
        let bytes = folder.read(file)?;
        let tokenizer = if ready { Tokenizer::from_bytes(&bytes) } else { from_vocabulary(&bytes) };
        let tokenizer = tokenizer.map_err(|e| Error::file(folder.path(file), e))?;
        // transformers has one default for each of the two ways.
        let clean_up_tokenization_spaces = config.clean_up_tokenization_spaces.unwrap_or(!ready);
        Ok(Self { tokenizer, clean_up_tokenization_spaces })
    }

    /// The text of a caption; special tokens and ids without a word are left out.
    ///
    /// # Errors
    /// A decoder that refuses its tokens.
    pub fn text(&self, ids: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(ids, true).map_err(|e| Error::invalid(format!("caption: {e}")))?;
        Ok(if self.clean_up_tokenization_spaces { without_loose_spaces(&text) } else { text })
    }
}

/// One token a line; its number is its id.
fn from_vocabulary(bytes: &[u8]) -> tokenizers::Result<Tokenizer> {
    let lines = std::str::from_utf8(bytes)?.lines();
    let vocabulary = lines.zip(0..).map(|(token, id)| (token.trim_end().to_owned(), id));
    let model =
        WordPiece::builder().vocab(vocabulary.collect::<Vocab>()).unk_token("[UNK]".into()).build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    let present = SPECIAL_TOKENS.into_iter().filter(|t| tokenizer.token_to_id(t).is_some());
    let special: Vec<_> = present.map(|t| AddedToken::from(t, true)).collect();
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

/// Source: `PreTrainedTokenizerBase.clean_up_tokenization`.
fn without_loose_spaces(text: &str) -> String {
    const TIGHT: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    TIGHT.iter().fold(text.to_owned(), |text, (loose, tight)| text.replace(loose, tight))
}
