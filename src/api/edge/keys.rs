//! API keys.

use std::path::Path;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::{Choice, ConstantTimeEq};

use crate::settings::Secret;

/// The keys that open the server; without any it is open.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<Secret>);

/// What a request's `Authorization` is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No key is asked for.
    Open,
    /// The key with this number, counted from 1.
    Key(usize),
    /// There is none.
    Missing,
    /// There is one that opens nothing.
    Wrong,
}

impl Keys {
    /// Those given, and those in a file, one a line; empty lines and lines that start with `#` are left out.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key: a server that was meant to be closed must not be open.
    pub fn new(given: &[Secret], file: Option<&Path>) -> Result<Self, String> {
        let mut keys: Vec<_> = given.iter().filter(|key| !key.expose().is_empty()).cloned().collect();
        if keys.len() < given.len() {
            return Err("--api-key: a key is empty".into());
        }
        if let Some(path) = file {
            let name = path.display();
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("--api-key-file {name}: {error}"))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = keys.len();
            keys.extend(lines.map(|line| Secret::from(line.to_owned())));
            if keys.len() == before {
                return Err(format!("--api-key-file {name}: holds no key"));
            }
        }
        Ok(Self(keys))
    }

    /// Whether every caller may call.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Judges `Authorization`: `Bearer KEY`, and where `basic` holds also `Basic` with the key as the password or
    /// as the whole `user:password`.
    pub fn judge(&self, headers: &HeaderMap, basic: bool) -> Verdict {
        if self.is_open() {
            return Verdict::Open;
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Verdict::Missing };
        let (scheme, credentials) = match value.as_bytes().split_once_space() {
            Some(parts) => parts,
            None => return Verdict::Wrong,
        };
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return self.find(&[credentials]);
        }
        if !basic || !scheme.eq_ignore_ascii_case(b"basic") {
            return Verdict::Wrong;
        }
        let Ok(pair) = BASE64.decode(credentials) else { return Verdict::Wrong };
        match pair.iter().position(|byte| *byte == b':') {
            Some(colon) => self.find(&[&pair[colon + 1..], &pair]),
            None => Verdict::Wrong,
        }
    }

    /// Compares with every key, and every key to its end: the time tells the lengths, not the contents.
    fn find(&self, candidates: &[&[u8]]) -> Verdict {
        let mut found = Verdict::Wrong;
        for (number, key) in (1..).zip(&self.0) {
            let key = key.expose().as_bytes();
            let equal = candidates.iter().fold(Choice::from(0), |any, given| any | given.ct_eq(key));
            if equal.into() {
                found = Verdict::Key(number);
            }
        }
        found
    }
}

trait SplitOnce {
    fn split_once_space(&self) -> Option<(&[u8], &[u8])>;
}

impl SplitOnce for [u8] {
    fn split_once_space(&self) -> Option<(&[u8], &[u8])> {
        let space = self.iter().position(|byte| *byte == b' ')?;
        Some((&self[..space], self[space + 1..].trim_ascii()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys(vec![Secret::from("first".to_owned()), Secret::from("me:second".to_owned())])
    }

    fn judge(authorization: &str, basic: bool) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        keys().judge(&headers, basic)
    }

    #[test]
    fn the_whole_key_opens_and_nothing_else() {
        assert_eq!(judge("Bearer first", false), Verdict::Key(1));
        assert_eq!(judge("bearer  first ", false), Verdict::Key(1));
        assert_eq!(judge("Bearer me:second", false), Verdict::Key(2));
        for wrong in
            ["Bearer firs", "Bearer first1", "Bearer FIRST", "Bearer ", "Bearer", "first", "Token first"]
        {
            assert_eq!(judge(wrong, true), Verdict::Wrong, "{wrong}");
        }
        assert_eq!(keys().judge(&HeaderMap::new(), true), Verdict::Missing);
        assert_eq!(Keys::default().judge(&HeaderMap::new(), true), Verdict::Open);
    }

    #[test]
    fn basic_takes_the_key_as_password_or_as_the_pair() {
        let basic = |pair: &str| format!("Basic {}", BASE64.encode(pair));
        assert_eq!(judge(&basic("anyone:first"), true), Verdict::Key(1));
        assert_eq!(judge(&basic("me:second"), true), Verdict::Key(2));
        assert_eq!(judge(&basic("you:second"), true), Verdict::Wrong);
        assert_eq!(judge(&basic("first"), true), Verdict::Wrong);
        assert_eq!(judge("Basic !", true), Verdict::Wrong);
        assert_eq!(judge(&basic("anyone:first"), false), Verdict::Wrong);
    }
}
