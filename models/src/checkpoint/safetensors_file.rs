//! One safetensors file: its header, checked before anything is allocated, and its tensors, read where they lie.
//!
//! Tensors are read with plain positioned reads instead of a memory map: the bytes are held once, in the tensor, and
//! a file that shrinks while it is read is an error instead of a crash.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::builtin;
use crate::{Error, Result};

/// Headers of published checkpoints are under 1 MiB; a larger one is an attack or a mistake.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The type it is stored in.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First byte in the file.
    start: u64,
    /// One past its last byte in the file.
    end: u64,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Memory(Cow<'static, [u8]>),
}

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file, or one of the program's own, and checks its header against its length.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        if let Some(bytes) = builtin::file(&path) {
            return Self::new(path, Bytes::Memory(bytes.into()), bytes.len() as u64);
        }
        let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
        let length = file.metadata().map_err(|e| Error::file(&path, e))?.len();
        Self::new(path, Bytes::File(file), length)
    }

    /// The same over bytes in memory; `name` stands for the path in errors.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        Self::new(PathBuf::from(name), Bytes::Memory(bytes), length)
    }

    fn new(path: PathBuf, bytes: Bytes, length: u64) -> Result<Self> {
        let bad = |reason: String| Error::file(&path, reason);
        let mut size = [0u8; 8];
        if length < 8 {
            return Err(bad(format!("{length} bytes are too few for a safetensors file")));
        }
        read_at(&bytes, &mut size, 0).map_err(|e| bad(e.to_string()))?;
        let header_bytes = u64::from_le_bytes(size);
        let too_long = header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > length;
        // A header of 640 bytes starts with 0x80 too: only an impossible length makes it a pickle's mark.
        if too_long && (size.starts_with(b"PK\x03\x04") || size[0] == 0x80) {
            return Err(bad("this is a Python pickle, which can run code: only safetensors are read".into()));
        }
        if size.starts_with(b"GGUF") {
            return Err(bad("this is a GGUF file: a safetensors file is needed here".into()));
        }
        if too_long {
            return Err(bad(format!(
                "not a safetensors file, or a truncated one: its header claims {header_bytes} bytes, the file has \
                 {length} (at most {MAX_HEADER_BYTES} are allowed)"
            )));
        }
        let mut header = vec![0u8; header_bytes as usize];
        read_at(&bytes, &mut header, 8).map_err(|e| bad(e.to_string()))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| bad(format!("its header is not valid: {e}")))?;
        let mut entries = BTreeMap::new();
        for (name, info) in header.tensors() {
            let dtype = dtype(info.dtype).ok_or_else(|| {
                bad(format!("tensor {name} is {:?}: F64, F32, F16, BF16, I64 or U8 are read", info.dtype))
            })?;
            let start = header_bytes + 8 + info.data_offsets.0 as u64;
            let end = header_bytes + 8 + info.data_offsets.1 as u64;
            if end > length {
                return Err(bad(format!("truncated: tensor {name} ends at byte {end} of {length}")));
            }
            entries.insert(name, Entry { dtype, shape: info.shape.clone(), start, end });
        }
        let end = header_bytes + 8 + header.data_len() as u64;
        if end < length {
            return Err(bad(format!("{} bytes stand after the last tensor", length - end)));
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path, bytes, entries, metadata })
    }

    /// The same file with its tensors under other names: `name` gives each one's, or `None` to leave it out.
    pub fn renamed(mut self, name: impl Fn(&str) -> Option<String>) -> Result<Self> {
        for (old, entry) in std::mem::take(&mut self.entries) {
            let Some(new) = name(&old) else { continue };
            if self.entries.contains_key(&new) {
                return Err(Error::file(
                    &self.path,
                    format!("tensor {old} stands for {new}, as another one does"),
                ));
            }
            self.entries.insert(new, entry);
        }
        Ok(self)
    }

    /// The file's path, or the name it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor by its name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The header's free text.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.entries.values().map(|e| e.end - e.start).sum()
    }

    /// Reads one tensor in the type it is stored in.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry =
            self.entries.get(name).ok_or_else(|| Error::file(&self.path, format!("no tensor {name}")))?;
        let mut bytes = vec![0u8; (entry.end - entry.start) as usize];
        read_at(&self.bytes, &mut bytes, entry.start)
            .map_err(|e| Error::file(&self.path, format!("{name}: {e}")))?;
        Ok(Tensor::from_raw_buffer(&bytes, entry.dtype, &entry.shape, device)?)
    }
}

fn read_at(bytes: &Bytes, into: &mut [u8], at: u64) -> std::io::Result<()> {
    match bytes {
        Bytes::File(file) => file.read_exact_at(into, at),
        Bytes::Memory(all) => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let part = at.checked_add(into.len()).and_then(|end| all.get(at..end));
            into.copy_from_slice(part.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn refused(bytes: Vec<u8>) -> String {
        SafetensorsFile::from_bytes("w.safetensors", bytes).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_the_header_names() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"k":"v"}}"#;
        let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let f = SafetensorsFile::from_bytes("w.safetensors", file(header, &data)).unwrap();
        assert_eq!(f.tensor("a", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [1.5, -2.0]);
        assert_eq!(f.metadata()["k"], "v");
        assert!(f.tensor("b", &Device::Cpu).unwrap_err().to_string().contains("no tensor b"));
    }

    #[test]
    fn every_length_of_the_header_is_read() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        for length in 56..1024 {
            let f = SafetensorsFile::from_bytes("w", file(&format!("{header:length$}"), &[0; 4]));
            assert!(f.is_ok(), "{length}: {f:?}");
        }
    }

    #[test]
    fn tensors_may_be_renamed_but_not_merged() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let data: Vec<u8> = [1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let open = || SafetensorsFile::from_bytes("w", file(header, &data)).unwrap();
        let f = open().renamed(|key| (key == "b").then(|| "a".to_owned())).unwrap();
        assert_eq!(f.tensor("a", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        assert_eq!(f.entries().len(), 1);
        assert!(
            open()
                .renamed(|_| Some("a".to_owned()))
                .unwrap_err()
                .to_string()
                .contains("tensor b stands for a")
        );
    }

    #[test]
    fn refuses_by_name_what_it_cannot_read() {
        let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(refused(file(one, &[0; 4])).contains("truncated"), "a short file");
        assert!(refused(b"PK\x03\x04 and then a zip".to_vec()).contains("pickle"));
        assert!(refused(b"\x80\x02}q\x00(X...".to_vec()).contains("pickle"));
        assert!(refused(b"GGUF\x03\x00\x00\x00...".to_vec()).contains("GGUF"));
        assert!(refused(vec![0; 3]).contains("too few"));
        assert!(refused(vec![0xff; 64]).contains("header claims"));
        assert!(refused(file("{", &[])).contains("not valid"));
        let wrong = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
        assert!(refused(file(wrong, &[0; 8])).contains("not valid"), "a shape that does not fit its bytes");
        assert!(refused(file(one, &[0; 9])).contains("1 bytes stand after"));
        let int = r#"{"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}"#;
        assert!(refused(file(int, &[0; 8])).contains("tensor a is I8"));
    }
}
