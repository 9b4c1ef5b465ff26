//! Where a text stops being JSON, in the words and positions of Python's `json` module, which FastAPI passes on.
//!
//! Source: `json/decoder.py` and `Modules/_json.c` of CPython 3.11. Only run on texts that the real parser refused.

/// A position in bytes and what is wrong there.
type Fault = (usize, &'static str);

/// Python's first complaint about `text`, at a position in characters; `None` if it has none.
pub(super) fn first(text: &str) -> Option<(usize, &'static str)> {
    let scanner = Scanner { text: text.as_bytes() };
    let (position, message) = scanner.document().err()?;
    Some((text.get(..position).map_or(0, |before| before.chars().count()), message))
}

struct Scanner<'a> {
    text: &'a [u8],
}

/// A container that has been opened: with a list of these instead of recursion, no nesting is too deep.
enum Open {
    Object,
    Array,
}

impl Scanner<'_> {
    fn at(&self, i: usize) -> Option<u8> {
        self.text.get(i).copied()
    }

    fn skip_space(&self, mut i: usize) -> usize {
        while matches!(self.at(i), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            i += 1;
        }
        i
    }

    fn document(&self) -> Result<(), Fault> {
        let end = self.value(self.skip_space(0))?;
        let end = self.skip_space(end);
        if end == self.text.len() { Ok(()) } else { Err((end, "Extra data")) }
    }

    /// The end of the value that starts at `i`.
    fn value(&self, mut i: usize) -> Result<usize, Fault> {
        let mut open = Vec::new();
        loop {
            // Down to a value without parts ...
            i = match self.at(i) {
                Some(b'{') => {
                    let inner = self.skip_space(i + 1);
                    if self.at(inner) != Some(b'}') {
                        open.push(Open::Object);
                        i = self.key(inner)?;
                        continue;
                    }
                    inner + 1
                }
                Some(b'[') => {
                    let inner = self.skip_space(i + 1);
                    if self.at(inner) != Some(b']') {
                        open.push(Open::Array);
                        i = inner;
                        continue;
                    }
                    inner + 1
                }
                Some(b'"') => self.string(i)?,
                _ => self.word(i)?,
            };
            // ... and up through all that end here.
            loop {
                let Some(container) = open.last() else { return Ok(i) };
                i = self.skip_space(i);
                match (self.at(i), container) {
                    (Some(b','), Open::Object) => {
                        i = self.key(self.skip_space(i + 1))?;
                        break;
                    }
                    (Some(b','), Open::Array) => {
                        i = self.skip_space(i + 1);
                        break;
                    }
                    (Some(b'}'), Open::Object) | (Some(b']'), Open::Array) => {
                        open.pop();
                        i += 1;
                    }
                    _ => return Err((i, "Expecting ',' delimiter")),
                }
            }
        }
    }

    /// A key and its colon; the start of the value.
    fn key(&self, i: usize) -> Result<usize, Fault> {
        if self.at(i) != Some(b'"') {
            return Err((i, "Expecting property name enclosed in double quotes"));
        }
        let colon = self.skip_space(self.string(i)?);
        if self.at(colon) == Some(b':') {
            Ok(self.skip_space(colon + 1))
        } else {
            Err((colon, "Expecting ':' delimiter"))
        }
    }

    /// The end of the string whose opening quote is at `start`.
    fn string(&self, start: usize) -> Result<usize, Fault> {
        let unterminated = (start, "Unterminated string starting at");
        let mut i = start + 1;
        loop {
            match self.at(i).ok_or(unterminated)? {
                b'"' => return Ok(i + 1),
                0..=0x1f => return Err((i, "Invalid control character at")),
                b'\\' => match self.at(i + 1).ok_or(unterminated)? {
                    b'u' => i = self.unicode_escape(i)?,
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => i += 2,
                    _ => return Err((i, "Invalid \\escape")),
                },
                _ => i += 1,
            }
        }
    }

    /// The end of the `\uXXXX` at `backslash`.
    fn unicode_escape(&self, backslash: usize) -> Result<usize, Fault> {
        let digits = backslash + 2;
        // Python wants the closing quote to be there too.
        let whole = self.text.get(digits..digits + 4).filter(|_| digits + 4 < self.text.len());
        match whole {
            Some(four) if four.iter().all(u8::is_ascii_hexdigit) => Ok(digits + 4),
            _ => Err((backslash + 1, "Invalid \\uXXXX escape")),
        }
    }

    /// The end of a number or one of the words; Python knows three more than JSON has.
    fn word(&self, start: usize) -> Result<usize, Fault> {
        let rest = self.text.get(start..).unwrap_or_default();
        for word in ["null", "true", "false", "NaN", "Infinity", "-Infinity"] {
            if rest.starts_with(word.as_bytes()) {
                return Ok(start + word.len());
            }
        }
        let digits = |mut i: usize| {
            while self.at(i).is_some_and(|b| b.is_ascii_digit()) {
                i += 1;
            }
            i
        };
        let first = start + usize::from(self.at(start) == Some(b'-'));
        let mut end = match self.at(first) {
            Some(b'0') => first + 1,
            Some(b'1'..=b'9') => digits(first),
            _ => return Err((start, "Expecting value")),
        };
        if self.at(end) == Some(b'.') && digits(end + 1) > end + 1 {
            end = digits(end + 1);
        }
        if matches!(self.at(end), Some(b'e' | b'E')) {
            let exponent = end + 1 + usize::from(matches!(self.at(end + 1), Some(b'+' | b'-')));
            if digits(exponent) > exponent {
                end = digits(exponent);
            }
        }
        Ok(end)
    }
}
