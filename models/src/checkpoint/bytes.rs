//! The bytes of a file on disk or in the program, read at any place.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::builtin;
use crate::{Error, Result};

/// Where a file's bytes are.
#[derive(Debug)]
pub(super) enum Bytes {
    /// On disk.
    File(File),
    /// In memory, or in the program.
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    /// Opens a file, or one of the program's own.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if let Some(bytes) = builtin::file(path) {
            return Ok(Self::Memory(bytes.into()));
        }
        Ok(Self::File(File::open(path).map_err(|e| Error::file(path, e))?))
    }

    /// How many there are.
    pub(super) fn len(&self) -> std::io::Result<u64> {
        Ok(match self {
            Self::File(file) => file.metadata()?.len(),
            Self::Memory(bytes) => bytes.len() as u64,
        })
    }

    /// Fills `into` with the bytes from `at` on; an error where there are fewer.
    pub(super) fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(into, at),
            Self::Memory(all) => {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let part = at.checked_add(into.len()).and_then(|end| all.get(at..end));
                into.copy_from_slice(part.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}
