//! SentencePiece's compiled replacements of characters (NFKC and more), checked before the tokenizers crate uses them.
//!
//! The bytes are a little-endian u32, the length of a double-array trie in bytes; the trie's u32 units; and the
//! replacements, texts that end with a zero byte. The crate walks the trie without looking at its bounds: a file whose
//! trie leads beyond its end, or to the middle of a character, would make a prompt panic.
//!
//! Source: `normalizer.cc` of SentencePiece; Darts-clone's `darts.h` for the units' bits.

use tokenizers::normalizers::Precompiled;

/// The normalizer of these bytes; an error says what is wrong with them.
pub(super) fn precompiled(bytes: &[u8]) -> Result<Precompiled, String> {
    check(bytes)?;
    Precompiled::from(bytes).map_err(|e| e.to_string())
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let malformed = || "its precompiled_charsmap is malformed".to_owned();
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| malformed())?;
    let (trie, texts) = rest.split_at_checked(len / 4 * 4).ok_or_else(malformed)?;
    let units: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
    let texts = std::str::from_utf8(texts).map_err(|e| format!("its replacements: {e}"))?;
    let root = *units.first().ok_or_else(malformed)?;
    let mut seen = vec![false; units.len()];
    let mut nodes = vec![children(0, root)];
    while let Some(node) = nodes.pop() {
        match seen.get_mut(node) {
            Some(true) => continue,
            Some(seen) => *seen = true,
            None => return Err(malformed()),
        }
        for byte in 1..=255 {
            let unit = *units.get(node ^ byte).ok_or_else(malformed)?;
            if unit & (1 << 31 | 0xff) != byte {
                continue;
            }
            let next = children(node ^ byte, unit);
            if unit >> 8 & 1 == 1 {
                let start = units.get(next).ok_or_else(malformed)? & ((1 << 31) - 1);
                if !texts.is_char_boundary(start) {
                    return Err(format!("a replacement at {start} of {} bytes", texts.len()));
                }
            }
            nodes.push(next);
        }
    }
    Ok(())
}

/// Where the units of a node's children lie, each at the exclusive or with its byte.
fn children(at: usize, unit: usize) -> usize {
    at ^ (unit >> 10) << ((unit & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use tokenizers::{NormalizedString, Normalizer};

    use super::*;

    /// A trie of one entry: `b` becomes the text at 0.
    fn one(value: u32, units: usize) -> Vec<u8> {
        let mut trie = vec![0u32; units];
        if let Some(root) = trie.first_mut() {
            *root = 256 << 10;
        }
        // The node of `b`: label, has a leaf, children at an offset of its own.
        if let Some(unit) = trie.get_mut(256 ^ 98) {
            *unit = 98 | 1 << 8 | 512 << 10;
        }
        if let Some(leaf) = trie.get_mut(256 ^ 98 ^ 512) {
            *leaf = 1 << 31 | value;
        }
        let trie = trie.into_iter().flat_map(u32::to_le_bytes);
        let len = (4 * units as u32).to_le_bytes();
        len.into_iter().chain(trie).chain("xé\0".bytes()).collect()
    }

    #[test]
    fn a_trie_within_bounds_replaces() {
        let normalizer = precompiled(&one(0, 1024)).unwrap();
        let mut text = NormalizedString::from("abc");
        normalizer.normalize(&mut text).unwrap();
        assert_eq!(text.get(), "axéc");
    }

    #[test]
    fn what_would_panic_is_refused() {
        assert!(precompiled(&one(2, 1024)).unwrap_err().contains("a replacement at 2"));
        assert!(precompiled(&one(9, 1024)).unwrap_err().contains("a replacement at 9"));
        for units in [0, 1, 256, 600] {
            assert!(precompiled(&one(0, units)).unwrap_err().contains("malformed"), "{units} units");
        }
        assert!(precompiled(b"\0\0").unwrap_err().contains("malformed"));
        assert!(precompiled(b"\xff\xff\xff\xff\0\0").unwrap_err().contains("malformed"));
    }
}
