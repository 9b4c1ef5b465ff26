//! A prompt's emphasis, and its chunks.
//!
//! `(word)` weighs 1.1, `((word))` 1.1 squared, `(word:1.3)` 1.3, `[word]` 1/1.1; brackets nest and their weights
//! multiply; `\(` is a bracket that means nothing. `BREAK` begins a new chunk. Anything else is text, prompt scheduling
//! (`[cat:dog:0.5]`, which here is text in square brackets) and tags in angle brackets included.
//!
//! The syntax, and the tokens and weights it leads to, are those of Stable Diffusion web UI, except that `BREAK`
//! means the same inside brackets, that a weight that is no number is text, and that chunks are always filled up.

use super::Tokenizer;
use crate::Result;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A text and the weight of each of its tokens.
    Text(String, f64),
    /// Where a new chunk begins.
    Break,
}

/// A prompt's pieces, neighbours of equal weight joined; at least one.
pub fn parse(prompt: &str) -> Vec<Part> {
    let mut parser = Parser::default();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        rest = parser.token(c, rest);
    }
    for start in parser.round {
        multiply(&mut parser.parts[start..], ROUND);
    }
    for start in parser.square {
        multiply(&mut parser.parts[start..], SQUARE);
    }
    join(parser.parts)
}

#[derive(Default)]
struct Parser {
    parts: Vec<Part>,
    /// Where each open round bracket stands in `parts`.
    round: Vec<usize>,
    /// Where each open square bracket stands in `parts`.
    square: Vec<usize>,
}

impl Parser {
    /// Takes the token that begins with `c` off `rest`.
    fn token<'a>(&mut self, c: char, rest: &'a str) -> &'a str {
        let after = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let escaped = after.chars().next().filter(|c| "()[]\\".contains(*c));
                self.text(escaped.map(String::from).unwrap_or_default());
                &after[escaped.map_or(0, char::len_utf8)..]
            }
            '(' => {
                self.round.push(self.parts.len());
                after
            }
            '[' => {
                self.square.push(self.parts.len());
                after
            }
            ':' => match (weight(after), self.round.last()) {
                (Some((weight, after)), Some(&start)) => {
                    self.round.pop();
                    multiply(&mut self.parts[start..], weight);
                    after
                }
                _ => self.literal(":", after),
            },
            ')' => match self.round.pop() {
                Some(start) => {
                    multiply(&mut self.parts[start..], ROUND);
                    after
                }
                None => self.literal(")", after),
            },
            ']' => match self.square.pop() {
                Some(start) => {
                    multiply(&mut self.parts[start..], SQUARE);
                    after
                }
                None => self.literal("]", after),
            },
            _ => {
                let end = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                self.run(&rest[..end]);
                &rest[end..]
            }
        }
    }

    fn text(&mut self, text: String) {
        self.parts.push(Part::Text(text, 1.0));
    }

    fn literal<'a>(&mut self, text: &str, after: &'a str) -> &'a str {
        self.text(text.to_owned());
        after
    }

    /// A text without brackets, in which the word BREAK may stand.
    fn run(&mut self, mut text: &str) {
        while let Some((before, after)) = split_at_break(text) {
            self.text(before.trim_end().to_owned());
            self.parts.push(Part::Break);
            text = after.trim_start();
        }
        self.text(text.to_owned());
    }
}

fn multiply(parts: &mut [Part], by: f64) {
    for part in parts {
        if let Part::Text(_, weight) = part {
            *weight *= by;
        }
    }
}

/// The number of `1.2)`, which may have spaces around it, and what follows the bracket.
fn weight(text: &str) -> Option<(f64, &str)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c)))?;
    let after = text[end..].trim_start().strip_prefix(')')?;
    let number: f64 = text[..end].parse().ok()?;
    (number as f32).is_finite().then_some((number, after))
}

/// The texts before and after the first BREAK that is a word of its own.
fn split_at_break(text: &str) -> Option<(&str, &str)> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices("BREAK").map(|(i, word)| (&text[..i], &text[i + word.len()..])).find(
        |(before, after)| {
            !before.chars().next_back().is_some_and(in_word) && !after.chars().next().is_some_and(in_word)
        },
    )
}

fn join(parts: Vec<Part>) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::with_capacity(parts.len());
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(before, w)), Part::Text(text, weight)) if *w == weight => before.push_str(&text),
            (_, part) => joined.push(part),
        }
    }
    if joined.is_empty() {
        joined.push(Part::Text(String::new(), 1.0));
    }
    joined
}

/// What a text encoder takes at once: begin token, text, end token, padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// As many token ids as the encoder has positions.
    pub ids: Vec<u32>,
    /// The weight of each; 1 for all that is not text.
    pub weights: Vec<f32>,
}

/// The chunks of a prompt, at least one, each of `length` tokens (CLIP: 77, of which 75 are text).
///
/// A prompt of at most one chunk without emphasis has the ids that diffusers gives it. A textual inversion's vectors
/// stay together where they fit into one chunk.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn chunks(prompt: &str, tokenizer: &Tokenizer, length: usize) -> Result<Vec<Chunk>> {
    let room = length.saturating_sub(2).max(1);
    let mut chunks = Vec::new();
    let mut tokens: Vec<(u32, f32)> = Vec::with_capacity(room);
    for part in parse(prompt) {
        let Part::Text(text, weight) = part else {
            chunks.push(Chunk::new(&tokens, tokenizer, length));
            tokens.clear();
            continue;
        };
        for ids in tokenizer.encode(&text)? {
            let together = ids.len() <= room && tokens.len() + ids.len() > room;
            for (i, id) in ids.enumerate() {
                if tokens.len() == room || (together && i == 0) {
                    chunks.push(Chunk::new(&tokens, tokenizer, length));
                    tokens.clear();
                }
                tokens.push((id, weight as f32));
            }
        }
    }
    if !tokens.is_empty() || chunks.is_empty() {
        chunks.push(Chunk::new(&tokens, tokenizer, length));
    }
    Ok(chunks)
}

impl Chunk {
    fn new(tokens: &[(u32, f32)], tokenizer: &Tokenizer, length: usize) -> Self {
        let mut ids = vec![tokenizer.bos_token_id()];
        let mut weights = vec![1.0];
        ids.extend(tokens.iter().map(|t| t.0));
        weights.extend(tokens.iter().map(|t| t.1));
        ids.push(tokenizer.eos_token_id());
        ids.resize(length, tokenizer.pad_token_id());
        weights.resize(length, 1.0);
        Self { ids, weights }
    }

    /// The chunk of an empty text.
    pub fn empty(tokenizer: &Tokenizer, length: usize) -> Self {
        Self::new(&[], tokenizer, length)
    }

    /// Whether any token is weighted.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().any(|w| *w != 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(prompt: &str) -> Vec<(String, f64)> {
        let part = |part| match part {
            Part::Text(text, weight) => (text, weight),
            Part::Break => ("<new chunk>".to_owned(), f64::NAN),
        };
        parse(prompt).into_iter().map(part).collect()
    }

    #[track_caller]
    fn assert_parts(prompt: &str, expected: &[(&str, f64)]) {
        let ours = parsed(prompt);
        let same = |(a, b): (&(String, f64), &(&str, f64))| {
            a.0 == b.0 && (a.1 == b.1 || a.1.is_nan() && b.1.is_nan())
        };
        assert!(
            ours.len() == expected.len() && ours.iter().zip(expected).all(same),
            "{prompt:?} gives {ours:?}"
        );
    }

    /// The cases that the web UI's `parse_prompt_attention` lists, with its numbers.
    #[test]
    fn documented_cases() {
        assert_parts("normal text", &[("normal text", 1.0)]);
        assert_parts("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        assert_parts("(unbalanced", &[("unbalanced", 1.1)]);
        assert_parts("\\(literal\\]", &[("(literal]", 1.0)]);
        assert_parts("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        assert_parts(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn square_brackets_weaken_and_nest() {
        assert_parts("[word]", &[("word", 1.0 / 1.1)]);
        assert_parts("[[word", &[("word", 1.0 / 1.1 * (1.0 / 1.1))]);
        // The number of square brackets is not read: there the text stands.
        assert_parts("[word:1.3]", &[("word:1.3", 1.0 / 1.1)]);
        assert_parts("[cat:dog:0.5]", &[("cat:dog:0.5", 1.0 / 1.1)]);
    }

    #[test]
    fn what_is_no_emphasis_is_text() {
        assert_parts("", &[("", 1.0)]);
        assert_parts("()", &[("", 1.0)]);
        for text in ["a) b] :1.2) c", "time 12:30, ratio 16:9", "<lora:name:0.8>", "schön (", "😀:"] {
            assert_parts(text, &[(text.trim_end_matches('('), 1.0)]);
        }
        assert_parts("(a:b)", &[("a:b", 1.1)]);
        assert_parts("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        assert_parts(&format!("(a:{})", "9".repeat(50)), &[(&format!("a:{}", "9".repeat(50)), 1.1)]);
        assert_parts("a\\b \\\\ \\", &[("ab \\ ", 1.0)]);
    }

    #[test]
    fn numbers_may_have_signs_and_spaces() {
        assert_parts("(a: 1.5 )", &[("a", 1.5)]);
        assert_parts("(a:+.5)(b:-1)(c:0)", &[("a", 0.5), ("b", -1.0), ("c", 0.0)]);
    }

    #[test]
    fn break_begins_a_chunk() {
        let chunk = ("<new chunk>", f64::NAN);
        assert_parts("a  BREAK  b", &[("a", 1.0), chunk, ("b", 1.0)]);
        assert_parts("(a BREAK b:1.2)", &[("a", 1.2), chunk, ("b", 1.2)]);
        assert_parts("BREAK,BREAK", &[("", 1.0), chunk, (",", 1.0), chunk, ("", 1.0)]);
        assert_parts("BREAKING break OUTBREAK _BREAK", &[("BREAKING break OUTBREAK _BREAK", 1.0)]);
    }
}
