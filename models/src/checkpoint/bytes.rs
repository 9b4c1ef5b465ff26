//! The bytes of a file on disk or in the program, read at any place.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use aquatint_kernels::RowBytes;
use memmap2::{Advice, MmapOptions};

use super::builtin;
use crate::{Error, Result};

static MAPS: AtomicBool = AtomicBool::new(true);

/// Whether weights for the CPU stay in their files, mapped: what the program does unless it is told otherwise. They then
/// load at the speed of the page cache, are shared by all processes on the machine and can be dropped by the system when
/// memory is short. On a volume that may fail or whose files are overwritten in place a copy is safer: the system ends a
/// program that touches a mapped page which cannot be read.
pub fn map_files(maps: bool) {
    MAPS.store(maps, Ordering::Relaxed);
}

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

    /// The bytes from `at` on, to stay where they are: on disk they are mapped, and asked for at once.
    pub(super) fn region(&self, at: u64, len: usize) -> std::io::Result<RowBytes> {
        // A file may have shrunk since its header was read.
        if at.checked_add(len as u64).is_none_or(|end| self.len().map_or(true, |length| end > length)) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match self {
            Self::Memory(Cow::Borrowed(all)) => Ok(Box::new(&all[at as usize..][..len])),
            Self::File(file) if MAPS.load(Ordering::Relaxed) => {
                // SAFETY: the map is only read. Whoever writes to the file meanwhile changes the weights: see `map_files`.
                let map = unsafe { MmapOptions::new().offset(at).len(len).map(file)? };
                map.advise(Advice::WillNeed)?;
                Ok(Box::new(map))
            }
            Self::File(_) | Self::Memory(Cow::Owned(_)) => {
                let mut bytes = vec![0u8; len];
                self.read_at(&mut bytes, at)?;
                Ok(Box::new(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> Result<(std::path::PathBuf, Bytes)> {
        let path = std::env::temp_dir().join(format!("aquatint-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).map_err(|e| Error::file(&path, e))?;
        let bytes = Bytes::open(&path)?;
        Ok((path, bytes))
    }

    #[test]
    fn a_region_is_what_reading_gives_wherever_it_begins() -> Result<()> {
        let all: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let (path, file) = file("region", &all)?;
        let memory = [Bytes::Memory(Cow::Owned(all.clone())), Bytes::Memory(Cow::Borrowed(b"0123456789"))];
        for (at, len) in [(0, 20_000), (1, 4096), (4095, 2), (8192, 4096), (19_999, 1)] {
            for bytes in [&file, &memory[0]] {
                let region = bytes.region(at, len).map_err(|e| Error::file(&path, e))?;
                assert_eq!((*region).as_ref(), &all[at as usize..][..len], "{at} {len}");
            }
        }
        let region = memory[1].region(3, 4).map_err(|e| Error::file(&path, e))?;
        assert_eq!((*region).as_ref(), b"3456");
        for bytes in [&file, &memory[0], &memory[1]] {
            for (at, len) in [(19_999, 2), (20_000, 1), (u64::MAX, 1), (0, usize::MAX)] {
                assert!(bytes.region(at, len).is_err(), "{at} {len}");
            }
        }
        std::fs::remove_file(&path).map_err(|e| Error::file(&path, e))?;
        Ok(())
    }

    #[test]
    fn a_file_that_has_shrunk_is_an_error() -> Result<()> {
        let (path, file) = file("shrunk", &[1; 10_000])?;
        std::fs::write(&path, [1; 100]).map_err(|e| Error::file(&path, e))?;
        assert!(file.region(8192, 1000).is_err());
        assert!(file.region(0, 100).is_ok());
        std::fs::remove_file(&path).map_err(|e| Error::file(&path, e))?;
        Ok(())
    }
}
