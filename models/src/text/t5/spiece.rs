//! `spiece.model`: the few fields of SentencePiece's protobuf that a unigram tokenizer is made of.
//!
//! Source: `sentencepiece_model.proto` of SentencePiece; the wire format of Protocol Buffers.

/// How a piece is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Found in texts.
    Normal,
    /// `<unk>`
    Unknown,
    /// `<pad>`, `</s>`: never made of text by SentencePiece itself.
    Control,
    /// Found in texts before anything else.
    UserDefined,
    /// In no text.
    Other,
}

/// One entry of the vocabulary; its id is its position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Logarithm of its probability.
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// A SentencePiece unigram model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SentencePiece {
    pub(super) pieces: Vec<Piece>,
    /// The id of the unknown piece.
    pub(super) unk_id: usize,
    /// Compiled replacements of characters: see [`super::charsmap`]. Empty: none.
    pub(super) charsmap: Vec<u8>,
}

/// `TrainerSpec.model_type`: 1 is unigram.
const UNIGRAM: u64 = 1;

impl SentencePiece {
    /// Reads the file's bytes; an error says what is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self::default();
        let mut model_type = UNIGRAM;
        for field in fields(bytes) {
            match field? {
                (1, Value::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
                (2, Value::Bytes(trainer)) => {
                    for field in fields(trainer) {
                        match field? {
                            (3, Value::Varint(n)) => model_type = n,
                            (40, Value::Varint(n)) => {
                                model.unk_id = usize::try_from(n).map_err(|e| e.to_string())?;
                            }
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in fields(normalizer) {
                        if let (2, Value::Bytes(charsmap)) = field? {
                            model.charsmap = charsmap.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model_type != UNIGRAM {
            return Err(format!("its model_type is {model_type}: only 1, unigram, is read"));
        }
        if model.pieces.get(model.unk_id).is_none_or(|p| p.kind != Kind::Unknown) {
            let (id, count) = (model.unk_id, model.pieces.len());
            return Err(format!("its unk_id {id} is not the unknown one of its {count} pieces"));
        }
        Ok(model)
    }
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|e| format!("a piece: {e}"))?;
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    _ => Kind::Other,
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() || !piece.score.is_finite() {
        return Err(format!(
            "the piece {:?} has score {}: a text and a number are needed",
            piece.text, piece.score
        ));
    }
    Ok(piece)
}

/// A field's value in the wire format.
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// `(number, value)` of each field of a message; ends after the first error.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or_else(|| "not a SentencePiece model, or a truncated one".to_owned()))
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(bytes)?),
        1 => {
            take(bytes, 8)?;
            Value::Fixed64
        }
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            Value::Bytes(take(bytes, len)?)
        }
        5 => Value::Fixed32(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?.first().copied()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `piece { piece: "a" score: -1.5 }`, `piece { piece: "<unk>" type: UNKNOWN }`,
    /// `trainer_spec { model_type: UNIGRAM unk_id: 1 }`, `normalizer_spec { precompiled_charsmap: "xyz" }`: encoded by
    /// hand after the wire format.
    const MODEL: &[u8] = b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\xbf\x0a\x09\x0a\x05<unk>\x18\x02\
        \x12\x05\x18\x01\xc0\x02\x01\x1a\x05\x12\x03xyz";

    #[test]
    fn reads_pieces_unknown_id_and_charsmap() {
        let model = SentencePiece::parse(MODEL).unwrap();
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        assert_eq!(model.pieces, [piece("a", -1.5, Kind::Normal), piece("<unk>", 0.0, Kind::Unknown)]);
        assert_eq!((model.unk_id, &model.charsmap[..]), (1, &b"xyz"[..]));
    }

    #[test]
    fn every_truncation_and_flipped_byte_is_read_or_refused() {
        for len in 0..MODEL.len() {
            // What is cut between two fields may be a model still; none may panic.
            _ = SentencePiece::parse(&MODEL[..len]);
            for bits in 1..=255u8 {
                let mut bytes = MODEL.to_vec();
                bytes[len] ^= bits;
                _ = SentencePiece::parse(&bytes);
            }
        }
        assert!(SentencePiece::parse(&MODEL[..5]).unwrap_err().contains("truncated"));
        assert!(SentencePiece::parse(b"").unwrap_err().contains("unk_id 0"));
        let bpe = [MODEL, b"\x12\x02\x18\x02"].concat();
        assert!(SentencePiece::parse(&bpe).unwrap_err().contains("model_type is 2"));
    }
}
