//! Files of weights, written from front to back: the header first, then one tensor after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use aquatint_kernels::Format;
use candle_core::DType;
use serde_json::{Value, json};

use super::Written;
use super::encode::Encoder;
use super::joined::Joined;
use crate::checkpoint::gguf_file;
use crate::checkpoint::stored::StoredType;
use crate::checkpoint::view::Views;
use crate::{Error, Result};

/// The kind of file.
pub(super) enum Kind {
    /// Safetensors, with this free text in the header.
    Safetensors(BTreeMap<String, String>),
    /// GGUF, in the layout that city96's ComfyUI-GGUF made common.
    Gguf { architecture: &'static str, format: Format },
}

/// Where tensors begin in a GGUF file: a multiple of this.
const ALIGNMENT: u64 = 32;

/// A tensor's place in the file.
struct Entry {
    name: String,
    stored_type: StoredType,
    shape: Vec<usize>,
    bytes: u64,
    /// The tensor of its rows' scales follows it.
    has_scales: bool,
}

/// Writes a file. `progress` is told the bytes that are written.
pub(super) fn write(
    path: &Path,
    kind: Kind,
    mut tensors: Vec<(Joined, &Views)>,
    encoder: &Encoder,
    progress: &mut dyn FnMut(u64),
) -> Result<Written> {
    tensors.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let mut entries = Vec::with_capacity(tensors.len());
    for (joined, views) in &tensors {
        let (stored_type, shape) = (encoder.stored_type(joined, views)?, joined.shape(views));
        let (len, size) = stored_type.block();
        let bytes = (shape.iter().product::<usize>() / len * size) as u64;
        let has_scales = stored_type == StoredType::Encoded(Format::F8E4M3);
        entries.push(Entry { name: joined.name.clone(), stored_type, shape, bytes, has_scales });
    }
    let (header, alignment) = match &kind {
        Kind::Safetensors(texts) => (safetensors_header(&entries, texts)?, 1),
        Kind::Gguf { architecture, format } => (gguf_header(&entries, architecture, *format)?, ALIGNMENT),
    };
    let failed = |e: std::io::Error| Error::file(path, e);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    file.write_all(&header).map_err(failed)?;
    let mut written = Written { tensors: entries.len(), bytes: 0 };
    for ((joined, views), entry) in tensors.iter().zip(&entries) {
        let encoded = encoder.encode(joined, views, entry.stored_type)?;
        if encoded.bytes.len() as u64 != entry.bytes || encoded.scales.is_some() != entry.has_scales {
            let text =
                format!("{} has {} bytes, {} were expected", entry.name, encoded.bytes.len(), entry.bytes);
            return Err(Error::invalid(text));
        }
        file.write_all(&encoded.bytes).map_err(failed)?;
        for scale in encoded.scales.iter().flatten() {
            file.write_all(&scale.to_le_bytes()).map_err(failed)?;
        }
        let padding = entry.bytes.next_multiple_of(alignment) - entry.bytes;
        file.write_all(&vec![0; padding as usize]).map_err(failed)?;
        written.bytes += entry.bytes;
        progress(written.bytes);
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    // Whole on the disk before it gets its name.
    file.sync_all().map_err(failed)?;
    Ok(written)
}

/// The length, then JSON, filled up so that data begins at a multiple of 8.
fn safetensors_header(entries: &[Entry], texts: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    if !texts.is_empty() {
        header.insert("__metadata__".into(), json!(texts));
    }
    let mut at = 0;
    let mut put = |name: String, dtype: &str, shape: Value, bytes: u64| {
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes]}));
        at += bytes;
    };
    for entry in entries {
        let dtype = safetensors_type(entry)?;
        put(entry.name.clone(), dtype, json!(entry.shape), entry.bytes);
        if entry.has_scales {
            let layer = entry.name.strip_suffix(".weight").unwrap_or(&entry.name);
            let rows = entry.shape.first().copied().unwrap_or(1);
            put(format!("{layer}.scale_weight"), "F32", json!([rows]), 4 * rows as u64);
        }
    }
    let mut json = Value::from(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), &json[..]].concat())
}

fn safetensors_type(entry: &Entry) -> Result<&'static str> {
    Ok(match entry.stored_type {
        StoredType::Plain(DType::F64) => "F64",
        StoredType::Plain(DType::F32) => "F32",
        StoredType::Plain(DType::F16) => "F16",
        StoredType::Plain(DType::BF16) => "BF16",
        StoredType::Plain(DType::I64) => "I64",
        StoredType::Plain(DType::I32) => "I32",
        StoredType::Plain(DType::I16) => "I16",
        StoredType::Plain(DType::U32) => "U32",
        StoredType::Plain(DType::U8) => "U8",
        StoredType::Encoded(Format::F8E4M3) => "F8_E4M3",
        other => return Err(Error::invalid(format!("{}: safetensors files hold no {other}", entry.name))),
    })
}

/// Version 3. Source: `docs/gguf.md` of ggml.
fn gguf_header(entries: &[Entry], architecture: &str, format: Format) -> Result<Vec<u8>> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut header = gguf_file::MAGIC.to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((entries.len() as u64).to_le_bytes());
    header.extend(3u64.to_le_bytes());
    header.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text(architecture)].concat());
    for (key, value) in [("general.quantization_version", 2), ("general.file_type", file_type(format))] {
        header.extend([text(key), 4u32.to_le_bytes().to_vec(), u32::to_le_bytes(value).to_vec()].concat());
    }
    let mut at = 0;
    for entry in entries {
        let Some(ggml) = gguf_file::ggml_type(entry.stored_type) else {
            return Err(Error::invalid(format!("{}: GGUF files hold no {}", entry.name, entry.stored_type)));
        };
        header.extend(text(&entry.name));
        header.extend((entry.shape.len() as u32).to_le_bytes());
        // ggml's innermost dimension comes first.
        entry.shape.iter().rev().for_each(|&extent| header.extend((extent as u64).to_le_bytes()));
        header.extend(ggml.to_le_bytes());
        header.extend(u64::to_le_bytes(at));
        at += entry.bytes.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(header)
}

/// llama.cpp's number for a file whose tensors are mostly of a format.
fn file_type(format: Format) -> u32 {
    match format {
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::Q5_0 => 8,
        Format::Q5_1 => 9,
        Format::Q2K => 10,
        Format::Q3K => 12,
        Format::Q4K => 15,
        Format::Q5K => 17,
        Format::Q6K => 18,
        Format::F8E4M3 | Format::F8E5M2 | Format::I8 => 1,
    }
}
