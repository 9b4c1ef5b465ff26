//! One safetensors file: its header, checked before anything is allocated, and its tensors, read where they lie.
//!
//! Matrices and filters for the CPU stay in the file, mapped; everything else is read, and held once, in its tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use aquatint_kernels::Format;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;

use super::bytes::Bytes;
use super::safetensors_header::Header;
use super::stored::{Entry, Stored, StoredType};
use crate::{Error, Result};

/// Headers of published checkpoints are under 1 MiB, those of LoRAs that tell all of their training a few.
const MAX_HEADER_BYTES: u64 = 8 << 20;

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
        let path = path.as_ref();
        Self::new(path.to_owned(), Bytes::open(path)?)
    }

    /// The same over bytes in memory; `name` stands for the path in errors.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::new(PathBuf::from(name), Bytes::Memory(bytes.into()))
    }

    /// A file whose bytes are open already.
    pub(super) fn new(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let bad = |reason: String| Error::file(&path, reason);
        let length = bytes.len().map_err(|e| bad(e.to_string()))?;
        let mut size = [0u8; 8];
        if length < 8 {
            return Err(bad(format!("{length} bytes are too few for a safetensors file")));
        }
        bytes.read_at(&mut size, 0).map_err(|e| bad(e.to_string()))?;
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
        bytes.read_at(&mut header, 8).map_err(|e| bad(e.to_string()))?;
        let header = Header::parse(&header).map_err(|e| bad(format!("its header is not valid: {e}")))?;
        let end = (header_bytes + 8).saturating_add(header.data_len() as u64);
        let mut entries = BTreeMap::new();
        for (name, info) in header.tensors {
            let stored_type = stored_type(info.dtype).ok_or_else(|| {
                bad(format!(
                    "tensor {name} is {:?}: F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, U32 and U8 are read",
                    info.dtype
                ))
            })?;
            let place = |offset: usize| (header_bytes + 8).saturating_add(offset as u64);
            let (start, end) = (place(info.data_offsets.0), place(info.data_offsets.1));
            if end > length {
                return Err(bad(format!("truncated: tensor {name} ends at byte {end} of {length}")));
            }
            entries.insert(name, Entry { stored_type, shape: info.shape, start, end });
        }
        if end < length {
            return Err(bad(format!("{} bytes stand after the last tensor", length - end)));
        }
        Ok(Self { path, bytes, entries, metadata: header.metadata })
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
        self.entries.values().map(Entry::bytes).sum()
    }

    /// Reads one tensor in the type it is stored in; eight-bit floats become f16.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.stored(name, None)?.tensor(device)
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Reads rows of one tensor, or all of it, as they lie.
    pub fn stored(&self, name: &str, rows: Option<Range<usize>>) -> Result<Stored> {
        let entry =
            self.entries.get(name).ok_or_else(|| Error::file(&self.path, format!("no tensor {name}")))?;
        entry.read(&self.bytes, rows).map_err(|e| Error::file(&self.path, format!("{name}: {e}")))
    }
}

fn stored_type(dtype: Dtype) -> Option<StoredType> {
    Some(match dtype {
        Dtype::F64 => StoredType::Plain(DType::F64),
        Dtype::F32 => StoredType::Plain(DType::F32),
        Dtype::F16 => StoredType::Plain(DType::F16),
        Dtype::BF16 => StoredType::Plain(DType::BF16),
        Dtype::I64 => StoredType::Plain(DType::I64),
        Dtype::I32 => StoredType::Plain(DType::I32),
        Dtype::I16 => StoredType::Plain(DType::I16),
        Dtype::U32 => StoredType::Plain(DType::U32),
        Dtype::U8 => StoredType::Plain(DType::U8),
        Dtype::F8_E4M3 => StoredType::Encoded(Format::F8E4M3),
        Dtype::F8_E5M2 => StoredType::Encoded(Format::F8E5M2),
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
