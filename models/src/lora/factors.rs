//! The factors that a layer's difference is composed of.
//!
//! Everything here is a matrix `(out, in * kernel)`: a convolution's filters flattened, as all these methods define
//! it. Sources: LyCORIS `functional/{locon,loha,lokr}.py`, PEFT `tuners/{lora,loha,lokr}/layer.py`.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::Algorithm;
use super::key::Part;
use crate::checkpoint::safetensors_file::SafetensorsFile;
use crate::{Error, Result};

/// Keys of two matrices to multiply, or of three.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Product {
    /// `(out, rank)`.
    left: String,
    /// LoHa and LoKr store `left` as `(rank, out)` where there is a core.
    left_transposed: bool,
    /// `(rank, in * kernel)`; `(rank, in)` where there is a core.
    right: String,
    /// `(rank, rank, kernel, kernel)`, of a CP or Tucker decomposition.
    core: Option<String>,
}

/// One side of a Kronecker product.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Side {
    Whole(String),
    Product(Product),
}

/// The keys of a difference, and how it is made of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Factors {
    Product(Product),
    Hadamard(Product, Product),
    Kronecker(Side, Side),
    Whole(String),
}

/// Takes the factors out of a module's parts. `None`: it has none. An error names what is missing.
pub(super) fn take(parts: &mut BTreeMap<Part, String>) -> std::result::Result<Option<Factors>, String> {
    let has = |parts: &BTreeMap<Part, String>, any: &[Part]| any.iter().any(|p| parts.contains_key(p));
    if has(parts, &[Part::Down, Part::Up, Part::Mid]) {
        return Ok(Some(Factors::Product(product(parts, Part::Up, Part::Down, Some(Part::Mid), false)?)));
    }
    if has(parts, &[Part::HadaW1A, Part::HadaW1B, Part::HadaW2A, Part::HadaW2B]) {
        let first = product(parts, Part::HadaW1A, Part::HadaW1B, Some(Part::HadaT1), true)?;
        let second = product(parts, Part::HadaW2A, Part::HadaW2B, Some(Part::HadaT2), true)?;
        return Ok(Some(Factors::Hadamard(first, second)));
    }
    if has(parts, &[Part::LokrW1, Part::LokrW1A, Part::LokrW1B, Part::LokrW2, Part::LokrW2A, Part::LokrW2B]) {
        let first = match parts.remove(&Part::LokrW1) {
            Some(key) => Side::Whole(key),
            None => Side::Product(product(parts, Part::LokrW1A, Part::LokrW1B, None, true)?),
        };
        let second = match parts.remove(&Part::LokrW2) {
            Some(key) => Side::Whole(key),
            None => Side::Product(product(parts, Part::LokrW2A, Part::LokrW2B, Some(Part::LokrT2), true)?),
        };
        return Ok(Some(Factors::Kronecker(first, second)));
    }
    Ok(parts.remove(&Part::Diff).map(Factors::Whole))
}

fn product(
    parts: &mut BTreeMap<Part, String>,
    left: Part,
    right: Part,
    core: Option<Part>,
    transposed_by_core: bool,
) -> std::result::Result<Product, String> {
    let mut needed = |part: Part| parts.remove(&part).ok_or_else(|| format!("its {part:?} is missing"));
    let (left, right) = (needed(left)?, needed(right)?);
    let core = core.and_then(|core| parts.remove(&core));
    Ok(Product { left, left_transposed: transposed_by_core && core.is_some(), right, core })
}

/// The product of a file's numbers, which may be anything where one of them is 0.
pub(super) fn count(dimensions: &[usize]) -> usize {
    dimensions.iter().fold(1, |product, n| product.saturating_mul(*n))
}

/// A tensor's first dimension, and the product of the others.
fn flat_shape(file: &SafetensorsFile, key: &str) -> Result<(usize, usize)> {
    match file.entries().get(key).map(|e| &e.shape[..]) {
        Some([rows, rest @ ..]) if !rest.is_empty() => Ok((*rows, count(rest))),
        shape => Err(Error::file(
            file.path(),
            format!("{key} has shape {shape:?}, a matrix or filters are needed"),
        )),
    }
}

/// Some rows of a matrix.
fn rows_of(matrix: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    if *rows == (0..matrix.dim(0)?) {
        return Ok(matrix.clone());
    }
    Ok(matrix.narrow(0, rows.start, rows.len())?.contiguous()?)
}

/// A tensor in f32, as `(first dimension, the others)`.
fn flat(file: &SafetensorsFile, key: &str, device: &Device) -> Result<Tensor> {
    let shape = flat_shape(file, key)?;
    Ok(file.tensor(key, device)?.to_dtype(DType::F32)?.reshape(shape)?)
}

impl Product {
    fn keys(&self) -> impl Iterator<Item = &String> {
        [&self.left, &self.right].into_iter().chain(&self.core)
    }

    fn rank(&self, file: &SafetensorsFile) -> Result<usize> {
        Ok(flat_shape(file, &self.right)?.0)
    }

    /// Rows and columns of the product, having checked that the factors fit each other.
    fn shape(&self, file: &SafetensorsFile) -> Result<(usize, usize)> {
        let (mut rows, mut left_rank) = flat_shape(file, &self.left)?;
        if self.left_transposed {
            (rows, left_rank) = (left_rank, rows);
        }
        let (right_rank, columns) = flat_shape(file, &self.right)?;
        let (core, kernel) = match &self.core {
            None => ((right_rank, right_rank), 1),
            Some(key) => match &file.entries()[key].shape[..] {
                [first, second, kernel @ ..] => ((*first, *second), count(kernel)),
                shape => return Err(Error::file(file.path(), format!("{key} has shape {shape:?}: no core"))),
            },
        };
        if (left_rank, right_rank) != core || right_rank == 0 {
            let shapes = self.keys().map(|k| format!("{k} {:?}", file.entries()[k].shape));
            let reason = format!("no product can be made of {}", shapes.collect::<Vec<_>>().join(", "));
            return Err(Error::file(file.path(), reason));
        }
        Ok((rows, columns.saturating_mul(kernel)))
    }

    /// Some rows of the product.
    fn compute(&self, file: &SafetensorsFile, device: &Device, rows: &Range<usize>) -> Result<Tensor> {
        let (_, columns) = self.shape(file)?;
        let left = flat(file, &self.left, device)?;
        let left = if self.left_transposed { left.t()?.contiguous()? } else { left };
        let (left, out) = (rows_of(&left, rows)?, rows.len());
        let right = flat(file, &self.right, device)?;
        let Some(core) = &self.core else { return Ok(left.matmul(&right)?) };
        // delta[o, i, k] = sum over a, b of left[o, a] core[a, b, k] right[b, i]
        let rank = right.dim(0)?;
        let kernel = columns / right.dim(1)?;
        let by_output = left.matmul(&flat(file, core, device)?)?.reshape((out, rank, kernel))?;
        let by_output = by_output.transpose(1, 2)?.contiguous()?.reshape((out * kernel, rank))?;
        let delta = by_output.matmul(&right)?.reshape((out, kernel, columns / kernel))?;
        Ok(delta.transpose(1, 2)?.contiguous()?.reshape((out, columns))?)
    }
}

impl Side {
    fn keys(&self) -> Vec<&String> {
        match self {
            Self::Whole(key) => vec![key],
            Self::Product(product) => product.keys().collect(),
        }
    }

    fn shape(&self, file: &SafetensorsFile) -> Result<(usize, usize)> {
        match self {
            Self::Whole(key) => flat_shape(file, key),
            Self::Product(product) => product.shape(file),
        }
    }

    fn compute(&self, file: &SafetensorsFile, device: &Device) -> Result<Tensor> {
        match self {
            Self::Whole(key) => flat(file, key, device),
            Self::Product(product) => product.compute(file, device, &(0..product.shape(file)?.0)),
        }
    }
}

impl Factors {
    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Product(_) => Algorithm::LoRA,
            Self::Hadamard(..) => Algorithm::LoHa,
            Self::Kronecker(..) => Algorithm::LoKr,
            Self::Whole(_) => Algorithm::Full,
        }
    }

    /// The keys that it is made of.
    pub(super) fn keys(&self) -> Vec<&String> {
        match self {
            Self::Product(product) => product.keys().collect(),
            Self::Hadamard(a, b) => a.keys().chain(b.keys()).collect(),
            Self::Kronecker(a, b) => [a.keys(), b.keys()].concat(),
            Self::Whole(key) => vec![key],
        }
    }

    /// What alpha is divided by; `None` where nothing is of low rank.
    pub(super) fn rank(&self, file: &SafetensorsFile) -> Result<Option<usize>> {
        match self {
            Self::Product(product) | Self::Hadamard(product, _) => product.rank(file).map(Some),
            Self::Kronecker(_, Side::Product(product)) | Self::Kronecker(Side::Product(product), _) => {
                product.rank(file).map(Some)
            }
            Self::Kronecker(..) | Self::Whole(_) => Ok(None),
        }
    }

    /// Rows and columns of the difference, having checked that the factors fit each other.
    pub(super) fn shape(&self, file: &SafetensorsFile) -> Result<(usize, usize)> {
        match self {
            Self::Product(product) => product.shape(file),
            Self::Hadamard(a, b) => {
                let (first, second) = (a.shape(file)?, b.shape(file)?);
                if first != second {
                    let reason =
                        format!("{} makes a matrix of {first:?}, {} one of {second:?}", a.left, b.left);
                    return Err(Error::file(file.path(), reason));
                }
                Ok(first)
            }
            Self::Kronecker(a, b) => {
                let (first, second) = (a.shape(file)?, b.shape(file)?);
                Ok((first.0.saturating_mul(second.0), first.1.saturating_mul(second.1)))
            }
            Self::Whole(key) => flat_shape(file, key),
        }
    }

    /// These rows of the difference one after the other, `(rows, in * kernel)` in f32, not scaled.
    pub(super) fn compute(
        &self,
        file: &SafetensorsFile,
        device: &Device,
        rows: &[Range<usize>],
    ) -> Result<Tensor> {
        join(rows, |rows| match self {
            Self::Product(product) => product.compute(file, device, rows),
            Self::Hadamard(a, b) => Ok((a.compute(file, device, rows)? * b.compute(file, device, rows)?)?),
            Self::Kronecker(a, b) => {
                let (a, b) = (a.compute(file, device)?, b.compute(file, device)?);
                // Each row of `a` makes as many rows as `b` has; those of `a` that have a part in the rows asked for.
                let height = b.dim(0)?.max(1);
                let parts = rows.start / height..rows.end.div_ceil(height);
                let a = rows_of(&a, &parts)?;
                let (count, columns) = (a.dim(0)? * height, a.dim(1)? * b.dim(1)?);
                // The kernel is innermost in b's columns, so the flat product is the filters' too.
                let a = a.unsqueeze(1)?.unsqueeze(3)?;
                let b = b.unsqueeze(0)?.unsqueeze(2)?;
                let product = a.broadcast_mul(&b)?.reshape((count, columns))?;
                let before = rows.start - parts.start * height;
                rows_of(&product, &(before..before + rows.len()))
            }
            Self::Whole(key) => rows_of(&flat(file, key, device)?, rows),
        })
    }

    /// Whether the difference is one product of two matrices.
    pub(super) fn is_low_rank(&self) -> bool {
        matches!(self, Self::Product(Product { core: None, .. }))
    }

    /// The factors of these rows of the difference, `(rank, in)` and `(rows, rank)`, as they are stored; `None` where
    /// the difference is not one product of two matrices.
    pub(super) fn low_rank(
        &self,
        file: &SafetensorsFile,
        device: &Device,
        rows: &[Range<usize>],
    ) -> Result<Option<(Tensor, Tensor)>> {
        let Self::Product(Product { left, right, core: None, .. }) = self else { return Ok(None) };
        let matrix = |key| -> Result<Tensor> {
            let tensor = file.tensor(key, device)?.reshape(flat_shape(file, key)?)?;
            let is_float = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
            Ok(if is_float { tensor } else { tensor.to_dtype(DType::F32)? })
        };
        let (up, down) = (matrix(left)?, matrix(right)?);
        Ok(Some((down, join(rows, |rows| rows_of(&up, rows))?)))
    }
}

/// What each range gives, one after the other.
pub(super) fn join(rows: &[Range<usize>], of: impl Fn(&Range<usize>) -> Result<Tensor>) -> Result<Tensor> {
    if let [rows] = rows {
        return of(rows);
    }
    let parts = rows.iter().map(of).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}
