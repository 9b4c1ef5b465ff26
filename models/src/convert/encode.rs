//! What a tensor is written as.

use aquatint_kernels::{EightBits, Format, quantise_rows};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::joined::Joined;
use crate::checkpoint::Component;
use crate::checkpoint::stored::StoredType;
use crate::checkpoint::view::Views;
use crate::{Error, Result};

/// What weights are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    AsStored,
    /// Floats of this type: f16, bf16 or f32.
    Type(DType),
    /// The matrices of the denoiser's blocks in a block format, of a GGUF file.
    Block(Format),
    /// The matrices of the denoiser's and T5's blocks in eight-bit floats, each row with a scale.
    Float8,
}

/// Decides for the tensors of a file.
pub(super) struct Encoder {
    encoding: Encoding,
    component: Component,
}

/// One tensor's bytes, and the scales of its rows where it has any.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) scales: Option<Vec<f32>>,
}

impl Encoder {
    /// For a file of this component, or a whole one.
    pub(super) fn new(encoding: Encoding, component: Component) -> Self {
        Self { encoding, component }
    }

    /// What a tensor of this shape is written as.
    pub(super) fn stored_type(&self, joined: &Joined, views: &Views) -> Result<StoredType> {
        let shape = joined.shape(views);
        let stored = joined.stored_type(views);
        let whole_numbers = [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64];
        if let Some(StoredType::Plain(dtype)) = stored
            && whole_numbers.contains(&dtype)
        {
            return Ok(StoredType::Plain(dtype));
        }
        match self.encoding {
            Encoding::Type(dtype) => Ok(StoredType::Plain(dtype)),
            Encoding::Block(format) if self.is_quantised(&joined.name, &shape, format.block_len()) => {
                Ok(StoredType::Encoded(format))
            }
            // Few of them, and programs of llama.cpp's kind expect it.
            Encoding::Block(_) if shape.len() < 2 => Ok(StoredType::Plain(DType::F32)),
            Encoding::Float8 if self.is_quantised(&joined.name, &shape, 1) => {
                Ok(StoredType::Encoded(Format::F8E4M3))
            }
            Encoding::AsStored | Encoding::Block(_) | Encoding::Float8 => match stored {
                Some(StoredType::Plain(DType::F64)) | None => Ok(StoredType::Plain(DType::F32)),
                Some(StoredType::Plain(dtype)) => Ok(StoredType::Plain(dtype)),
                Some(StoredType::Encoded(format)) => Err(Error::file(
                    views.path().unwrap_or(std::path::Path::new("")),
                    format!("{} is {format:?}: say with --dtype what it shall be", joined.name),
                )),
            },
        }
    }

    /// Whether a tensor is one of those that are large and many.
    fn is_quantised(&self, name: &str, shape: &[usize], block_len: usize) -> bool {
        let denoiser =
            matches!(self.component, Component::Unet | Component::Transformer | Component::TextEncoder2);
        let in_block =
            ["blocks.", "encoder.block.", "middle_block."].iter().any(|block| name.contains(block));
        // The part of whole files that is neither a denoiser nor T5.
        let other = ["first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "clip_l."];
        let matrix = matches!(shape, [_, columns] if columns.is_multiple_of(block_len) && *columns > 1);
        denoiser
            && matrix
            && in_block
            && name.ends_with(".weight")
            && !name.contains("relative_attention_bias")
            && !other.iter().any(|part| name.contains(part))
    }

    /// Reads a tensor and writes it as `stored_type`.
    pub(super) fn encode(&self, joined: &Joined, views: &Views, stored_type: StoredType) -> Result<Encoded> {
        let rows = joined.read(views)?;
        let plain = |bytes| Ok(Encoded { bytes, scales: None });
        let scaled = rows.parts.iter().any(|part| part.row_scales.is_some());
        if joined.stored_type(views) == Some(stored_type) && !scaled {
            return plain(rows.bytes()?);
        }
        let values = rows.values()?;
        match stored_type {
            StoredType::Plain(DType::F32) => plain(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            StoredType::Plain(DType::F16) => {
                plain(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
            }
            StoredType::Plain(DType::BF16) => {
                plain(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
            }
            StoredType::Encoded(Format::F8E4M3) => float8(values, &joined.shape(views)),
            StoredType::Encoded(format) => plain(blocks(values, format)?),
            StoredType::Plain(other) => {
                Err(Error::invalid(format!("{} cannot become {other:?}", joined.name)))
            }
        }
    }
}

/// Rows of eight-bit floats, each with a scale.
fn float8(values: Vec<f32>, shape: &[usize]) -> Result<Encoded> {
    let columns = shape.iter().skip(1).product::<usize>().max(1);
    let (codes, scales) =
        quantise_rows(&Tensor::from_vec(values, ((), columns), &Device::Cpu)?, EightBits::F8E4M3)?;
    Ok(Encoded { bytes: codes.flatten_all()?.to_vec1()?, scales: Some(scales.flatten_all()?.to_vec1()?) })
}

/// Rows of whole blocks.
fn blocks(values: Vec<f32>, format: Format) -> Result<Vec<u8>> {
    let ggml = match format {
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q5_1 => GgmlDType::Q5_1,
        Format::Q2K => GgmlDType::Q2K,
        Format::Q3K => GgmlDType::Q3K,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::F8E4M3 | Format::F8E5M2 | Format::I8 => {
            return Err(Error::invalid("numbers of eight bits are no block format"));
        }
    };
    let matrix = Tensor::from_vec(values, ((), format.block_len()), &Device::Cpu)?;
    Ok(QTensor::quantize(&matrix, ggml)?.data()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::safetensors_file::SafetensorsFile;
    use crate::checkpoint::synthetic;

    /// What the gguf package and torch make of the same matrix (`tests/reference/convert.py`), to the bit.
    #[test]
    fn formats_are_those_of_the_reference() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/convert.safetensors");
        let fixture = SafetensorsFile::open(fixture).unwrap();
        let shape = [16, 256];
        let values = synthetic::tensor("double_blocks.0.img_mlp.0.weight", &shape, 0);
        let recorded = |name: &str| fixture.stored(name, None).unwrap().data;
        for (name, format) in [
            ("Q4_0", Format::Q4_0),
            ("Q4_1", Format::Q4_1),
            ("Q5_0", Format::Q5_0),
            ("Q5_1", Format::Q5_1),
            ("Q8_0", Format::Q8_0),
        ] {
            assert_eq!(blocks(values.clone(), format).unwrap(), recorded(name), "{name}");
        }
        let Encoded { bytes, scales } = float8(values, &shape).unwrap();
        assert_eq!(bytes, recorded("F8_E4M3"));
        let scales: Vec<u8> = scales.unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(scales, recorded("scales"));
    }

    /// The package cannot write these; so what they decode to is held against the matrix.
    #[test]
    fn k_formats_are_near_what_they_stand_for() {
        let values = synthetic::tensor("m.weight", &[16, 256], 0);
        let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        for (format, most) in [
            (Format::Q2K, 0.25),
            (Format::Q3K, 0.13),
            (Format::Q4K, 0.07),
            (Format::Q5K, 0.035),
            (Format::Q6K, 0.02),
        ] {
            let decoded = format.decode(&blocks(values.clone(), format).unwrap(), 256, None).unwrap();
            let errors: Vec<f32> = decoded.iter().zip(&values).map(|(a, b)| a - b).collect();
            let error = (square(&errors) / square(&values)).sqrt();
            assert!(error > most / 4.0 && error < most, "{format:?}: {error}");
        }
    }
}
