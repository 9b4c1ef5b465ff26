//! Whether bytes are those that the hub said it has: large files are named by their SHA-256, small ones as git names
//! them.

use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A checksum as the hub gives it in an ETag, and the cache in a blob's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Of the bytes.
    Sha256(String),
    /// Of `blob `, their number, a zero and the bytes: git's object name.
    GitSha1(String),
}

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

impl Digest {
    /// A checksum by its hexadecimal digits; `None` for a name that is none.
    pub fn of_name(name: &str) -> Option<Self> {
        let hex = name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match name.len() {
            64 if hex => Some(Self::Sha256(name.to_owned())),
            40 if hex => Some(Self::GitSha1(name.to_owned())),
            _ => None,
        }
    }

    /// Whether a whole file has this checksum.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_of(&self, path: &Path) -> std::io::Result<bool> {
        let mut running = Running::new(self, path.metadata()?.len());
        running.take_file(path)?;
        Ok(running.is(self))
    }
}

/// A checksum of what has come so far.
pub(super) enum Running {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Running {
    /// For a file of so many bytes.
    pub(super) fn new(digest: &Digest, bytes: u64) -> Self {
        match digest {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::GitSha1(_) => Self::GitSha1(Sha1::new_with_prefix(format!("blob {bytes}\0"))),
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::GitSha1(sum) => sum.update(bytes),
        }
    }

    /// Takes all of a file.
    pub(super) fn take_file(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = std::fs::File::open(path)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(()),
                n => self.take(chunk.get(..n).unwrap_or_default()),
            }
        }
    }

    /// Whether it is the checksum expected.
    pub(super) fn is(self, digest: &Digest) -> bool {
        match (self, digest) {
            (Self::Sha256(sum), Digest::Sha256(hex)) => is_hex(&sum.finalize(), hex),
            (Self::GitSha1(sum), Digest::GitSha1(hex)) => is_hex(&sum.finalize(), hex),
            _ => false,
        }
    }
}

fn is_hex(bytes: &[u8], hex: &str) -> bool {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == hex
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | sha256sum`, `printf hello | git hash-object --stdin`
    const HELLO: [&str; 2] = [
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
    ];

    #[test]
    fn both_kinds_are_told_by_their_length() {
        for (name, bytes, expected) in [
            (HELLO[0], "hello", true),
            (HELLO[1], "hello", true),
            (HELLO[0], "hellp", false),
            (HELLO[1], "hell", false),
        ] {
            let digest = Digest::of_name(name).unwrap();
            let mut running = Running::new(&digest, bytes.len() as u64);
            let (first, rest) = bytes.split_at(2);
            running.take(first.as_bytes());
            running.take(rest.as_bytes());
            assert_eq!(running.is(&digest), expected, "{name} {bytes}");
        }
        for name in
            ["", "main", &HELLO[0][1..], &HELLO[1].to_uppercase(), &format!("{}.incomplete", HELLO[0])]
        {
            assert_eq!(Digest::of_name(name), None, "{name}");
        }
    }
}
