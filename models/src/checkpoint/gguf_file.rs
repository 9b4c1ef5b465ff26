//! One GGUF file: its header, every count of it checked before anything is allocated, and its tensors, read where they
//! lie. Versions 2 and 3, little-endian.
//!
//! Dimensions stand in the header in ggml's order, the innermost first; shapes here are turned around. Of the metadata
//! only numbers and short texts are kept: the tokenizer that a file may carry is not read. Source: `docs/gguf.md` of
//! ggml.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use aquatint_kernels::Format;
use candle_core::DType;

use super::bytes::Bytes;
use super::stored::{Entry, Stored, StoredType};
use crate::{Error, Result};

/// What the first bytes of a GGUF file are.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Headers with a tokenizer's vocabulary are a few MiB.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Published models have a few thousand tensors and a few dozen entries of metadata.
const MAX_TENSORS: u64 = 1 << 16;
const MAX_METADATA: u64 = 1 << 12;
/// Names and keys; the specification allows 64 and 65535 bytes.
const MAX_NAME_BYTES: u64 = 1 << 10;
/// Longer texts of the metadata are passed over.
const MAX_KEPT_BYTES: u64 = 1 << 10;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// How much of the header is read at a time.
const CHUNK: u64 = 64 << 10;

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl GgufFile {
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
        match header(&bytes) {
            Ok((entries, metadata)) => Ok(Self { path, bytes, entries, metadata }),
            Err(reason) => Err(Error::file(&path, reason)),
        }
    }

    /// The file's path, or the name it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor by its name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The metadata's numbers and short texts, as text.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
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

/// Reads a header from its beginning on, a chunk at a time.
struct Cursor<'a> {
    bytes: &'a Bytes,
    /// Where the header must end at the latest.
    limit: u64,
    at: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

type Read<T> = std::result::Result<T, String>;

impl Cursor<'_> {
    fn left(&self) -> u64 {
        self.limit - self.at
    }

    /// Passes over `count` bytes.
    fn skip(&mut self, count: u64) -> Read<()> {
        if count > self.left() {
            return Err(format!(
                "truncated, or a header of over {MAX_HEADER_BYTES} bytes: it goes on after byte {}",
                self.limit
            ));
        }
        self.at += count;
        Ok(())
    }

    /// The next `count` bytes, few enough to be held.
    fn take(&mut self, count: u64) -> Read<&[u8]> {
        let start = self.at;
        self.skip(count)?;
        if start < self.chunk_at || self.at > self.chunk_at + self.chunk.len() as u64 {
            let len = CHUNK.max(count).min(self.limit - start);
            self.chunk.resize(len as usize, 0);
            self.chunk_at = start;
            self.bytes.read_at(&mut self.chunk, start).map_err(|e| e.to_string())?;
        }
        let from = (start - self.chunk_at) as usize;
        self.chunk.get(from..from + count as usize).ok_or_else(|| "truncated".to_owned())
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N as u64)?.try_into().map_err(|_| "truncated".to_owned())
    }

    fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A name or a key.
    fn name(&mut self, what: &str) -> Read<String> {
        let len = self.u64()?;
        if len > MAX_NAME_BYTES {
            return Err(format!("{what} has {len} bytes, at most {MAX_NAME_BYTES} are read"));
        }
        let bytes = self.take(len)?.to_vec();
        String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// A value of the metadata: its text where it is kept.
    fn value(&mut self, value_type: u32) -> Read<Option<String>> {
        Ok(Some(match value_type {
            0 => self.array::<1>()?[0].to_string(),
            1 => i8::from_le_bytes(self.array()?).to_string(),
            2 => u16::from_le_bytes(self.array()?).to_string(),
            3 => i16::from_le_bytes(self.array()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.array()?).to_string(),
            6 => f32::from_le_bytes(self.array()?).to_string(),
            7 => (self.array::<1>()?[0] != 0).to_string(),
            8 => {
                let len = self.u64()?;
                if len > MAX_KEPT_BYTES {
                    self.skip(len)?;
                    return Ok(None);
                }
                String::from_utf8_lossy(self.take(len)?).into_owned()
            }
            9 => {
                self.skip_array()?;
                return Ok(None);
            }
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.array()?).to_string(),
            12 => f64::from_le_bytes(self.array()?).to_string(),
            other => return Err(format!("a value of the unknown type {other}")),
        }))
    }

    fn skip_array(&mut self) -> Read<()> {
        let (element, count) = (self.u32()?, self.u64()?);
        let size = match element {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                // Each text has its length at least.
                if count > self.left() / 8 {
                    return Err(format!("truncated: an array of {count} texts"));
                }
                for _ in 0..count {
                    let len = self.u64()?;
                    self.skip(len)?;
                }
                return Ok(());
            }
            other => return Err(format!("an array of the unknown type {other}")),
        };
        self.skip(count.checked_mul(size).ok_or_else(|| format!("an array of {count} elements"))?)
    }
}

/// What ggml numbers a type with; the error is its name, or its number.
fn stored_type(ggml: u32) -> Read<StoredType> {
    Ok(match ggml {
        0 => StoredType::Plain(DType::F32),
        1 => StoredType::Plain(DType::F16),
        2 => StoredType::Encoded(Format::Q4_0),
        3 => StoredType::Encoded(Format::Q4_1),
        6 => StoredType::Encoded(Format::Q5_0),
        7 => StoredType::Encoded(Format::Q5_1),
        8 => StoredType::Encoded(Format::Q8_0),
        10 => StoredType::Encoded(Format::Q2K),
        11 => StoredType::Encoded(Format::Q3K),
        12 => StoredType::Encoded(Format::Q4K),
        13 => StoredType::Encoded(Format::Q5K),
        14 => StoredType::Encoded(Format::Q6K),
        27 => StoredType::Plain(DType::I64),
        28 => StoredType::Plain(DType::F64),
        30 => StoredType::Plain(DType::BF16),
        9 => return Err("Q8_1".into()),
        15 => return Err("Q8_K".into()),
        16..=23 | 29 => return Err(format!("one of the IQ types (number {ggml})")),
        24..=26 => return Err(format!("of whole numbers (type {ggml})")),
        34 | 35 => return Err("one of the ternary types".into()),
        other => return Err(format!("of the unknown type {other}")),
    })
}

/// What ggml numbers a type with; `None` where it has none.
pub(crate) fn ggml_type(stored: StoredType) -> Option<u32> {
    (0..=30).find(|&number| stored_type(number).is_ok_and(|other| other == stored))
}

type Header = (BTreeMap<String, Entry>, BTreeMap<String, String>);

/// Reads and checks a header. The error is a reason.
fn header(bytes: &Bytes) -> Read<Header> {
    let length = bytes.len().map_err(|e| e.to_string())?;
    let limit = length.min(MAX_HEADER_BYTES);
    let mut cursor = Cursor { bytes, limit, at: 0, chunk: Vec::new(), chunk_at: 0 };
    if length < 24 {
        return Err(format!("{length} bytes are too few for a GGUF file"));
    }
    if &cursor.array::<4>()? != MAGIC {
        return Err("not a GGUF file: it does not begin with GGUF".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("a big-endian GGUF file: only little-endian ones are read".into());
        }
        version => return Err(format!("GGUF version {version}: 2 and 3 are read")),
    }
    let (tensors, values) = (cursor.u64()?, cursor.u64()?);
    if tensors > MAX_TENSORS || values > MAX_METADATA {
        return Err(format!(
            "it claims {tensors} tensors and {values} entries of metadata: at most {MAX_TENSORS} and {MAX_METADATA} \
             are read"
        ));
    }
    let mut metadata = BTreeMap::new();
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..values {
        let key = cursor.name("a key of the metadata")?;
        let value_type = cursor.u32()?;
        let value = cursor.value(value_type).map_err(|e| format!("metadata {key}: {e}"))?;
        if !keys.insert(key.clone()) {
            return Err(format!("metadata {key} stands in it twice"));
        }
        metadata.extend(value.map(|value| (key, value)));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(text) => match text.parse::<u64>() {
            Ok(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => n,
            _ => {
                return Err(format!(
                    "an alignment of {text}: a power of two up to {MAX_ALIGNMENT} is needed"
                ));
            }
        },
    };
    let mut entries = BTreeMap::new();
    for _ in 0..tensors {
        let name = cursor.name("a tensor's name")?;
        let entry = entry(&mut cursor, alignment).map_err(|e| format!("tensor {name}: {e}"))?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} stands in it twice"));
        }
    }
    place(&mut entries, cursor.at.next_multiple_of(alignment), length)?;
    Ok((entries, metadata))
}

/// One tensor's entry; where it lies counts from the end of the header.
fn entry(cursor: &mut Cursor<'_>, alignment: u64) -> Read<Entry> {
    let dimensions = cursor.u32()?;
    if dimensions > MAX_DIMENSIONS {
        return Err(format!("{dimensions} dimensions, at most {MAX_DIMENSIONS} are read"));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let extent = cursor.u64()?;
        shape.push(usize::try_from(extent).map_err(|_| format!("an extent of {extent}"))?);
    }
    let stored_type = stored_type(cursor.u32()?)
        .map_err(|name| format!("it is {name}: F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K are read"))?;
    let start = cursor.u64()?;
    if !start.is_multiple_of(alignment) {
        return Err(format!("it lies at {start}, which is no multiple of {alignment}"));
    }
    // ggml's innermost dimension comes first.
    let inner = shape.first().copied().unwrap_or(1);
    let (block_len, block_bytes) = stored_type.block();
    if !inner.is_multiple_of(block_len) {
        return Err(format!("rows of {inner} elements are no blocks of {block_len}"));
    }
    shape.reverse();
    let elements = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent)).filter(|&n| n > 0);
    let bytes = elements.and_then(|n| (n / block_len).checked_mul(block_bytes));
    let Some(bytes) = bytes else {
        return Err(format!("the shape {shape:?}"));
    };
    let end = start.checked_add(bytes as u64).ok_or_else(|| format!("it lies at {start}"))?;
    Ok(Entry { stored_type, shape, start, end })
}

/// Adds where the tensors begin to their places, and checks these.
fn place(entries: &mut BTreeMap<String, Entry>, begin: u64, length: u64) -> Read<()> {
    for (name, entry) in entries.iter_mut() {
        entry.start = entry.start.saturating_add(begin);
        entry.end = entry.end.saturating_add(begin);
        if entry.end > length {
            return Err(format!("truncated: tensor {name} ends at byte {} of {length}", entry.end));
        }
    }
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| entry.start);
    for pair in order.windows(2) {
        if let [(first, a), (second, b)] = pair
            && a.end > b.start
        {
            return Err(format!("tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}
