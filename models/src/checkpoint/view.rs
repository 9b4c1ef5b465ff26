//! Tensors of one or several files under other names than theirs: whole ones, some of their rows, or rows in another
//! order.
//!
//! A view takes rows (of the first dimension), because those lie together in every kind of file, quantised ones too:
//! reading one is a few positioned reads and no arithmetic. It may also give them another shape, or be the transpose
//! of a whole matrix, which is turned as it is read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aquatint_kernels::{RowBytes, StoredRows};
use candle_core::{DType, Device};

use super::file::CheckpointFile;
use super::meter;
use super::original::Component;
use super::row_scales;
use super::stored::{Stored, StoredType};
use crate::{Error, Result};

/// A tensor under its new name: these rows of a stored tensor, one stretch after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its new name.
    pub name: String,
    /// The stretches of rows that it consists of; none where it is the whole tensor.
    pub rows: Vec<Range<usize>>,
    /// What becomes of these rows.
    pub form: Form,
}

/// What becomes of rows that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Nothing.
    #[default]
    AsStored,
    /// The filters of a 1x1 convolution become the matrix that they are.
    Matrix,
    /// A matrix becomes its transpose; whole ones only.
    Transposed,
}

impl Piece {
    /// A whole tensor.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: Vec::new(), form: Form::AsStored }
    }

    /// Rows of a tensor that stand together.
    pub fn rows(name: impl Into<String>, rows: Range<usize>) -> Self {
        Self { name: name.into(), rows: vec![rows], form: Form::AsStored }
    }
}

impl Form {
    /// The shape that a tensor of this one has then. The error is a reason.
    fn shape(self, shape: Vec<usize>) -> std::result::Result<Vec<usize>, String> {
        match (self, shape.as_slice()) {
            (Self::AsStored, _) => Ok(shape),
            (Self::Matrix, [rows, columns, 1, 1] | [rows, columns]) => Ok(vec![*rows, *columns]),
            (Self::Matrix, [_]) => Ok(shape),
            (Self::Transposed, [rows, columns]) => Ok(vec![*columns, *rows]),
            (Self::Matrix | Self::Transposed, shape) => Err(format!("the shape {shape:?} is no matrix's")),
        }
    }
}

#[derive(Debug)]
struct View {
    file: usize,
    /// The tensor's name in the file.
    tensor: String,
    rows: Vec<Range<usize>>,
    form: Form,
    shape: Vec<usize>,
    /// The name of a tensor of scales, in whichever file.
    scales: Option<String>,
}

/// All tensors of a component's files.
#[derive(Debug)]
pub struct Views {
    files: Vec<Arc<CheckpointFile>>,
    views: BTreeMap<String, View>,
}

impl Views {
    /// Tensors under the names they are stored by.
    ///
    /// # Errors
    /// A name that stands in two files.
    pub fn as_stored(files: Vec<impl Into<Arc<CheckpointFile>>>) -> Result<Self> {
        Self::renamed(files, |name, _| Ok(vec![Piece::whole(name)]))
    }

    /// Opens the files of a component, of any kind, and sees their tensors under the names of diffusers or
    /// transformers, as [`Views::of_component`] does; under their own where `component` is no folder of a pipeline.
    pub fn open(component: &str, paths: &[impl AsRef<Path>]) -> Result<Self> {
        let files = paths.iter().map(CheckpointFile::open).collect::<Result<Vec<_>>>()?;
        match Component::of_folder(component) {
            Some(component) => Self::of_component(component, files),
            None => Self::as_stored(files),
        }
    }

    /// Tensors under the names that `pieces` gives for a stored name. Its second argument tells the shape of any
    /// stored tensor; its error is a reason. Tensors that hold scales of others get no names.
    pub fn renamed(
        files: Vec<impl Into<Arc<CheckpointFile>>>,
        pieces: impl Fn(&str, &dyn Fn(&str) -> Option<Vec<usize>>) -> std::result::Result<Vec<Piece>, String>,
    ) -> Result<Self> {
        let files: Vec<Arc<CheckpointFile>> = files.into_iter().map(Into::into).collect();
        let shape_of = |name: &str| files.iter().find_map(|f| Some(f.entries().get(name)?.shape.clone()));
        let mut views = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            let bad = |reason: String| Error::file(file.path(), reason);
            for (tensor, entry) in file.entries() {
                if row_scales::belongs_to_another(tensor, &shape_of) {
                    continue;
                }
                let scales =
                    row_scales::of(tensor, &shape_of).map_err(|e| bad(format!("tensor {tensor}: {e}")))?;
                let pieces = pieces(tensor, &shape_of).map_err(|e| bad(format!("tensor {tensor}: {e}")))?;
                for Piece { name, rows, form } in pieces {
                    let mut shape = entry.shape.clone();
                    if !rows.is_empty() {
                        let count = shape.first().copied().unwrap_or(0);
                        if let Some(outside) = rows.iter().find(|r| r.start >= r.end || r.end > count) {
                            return Err(bad(format!("tensor {tensor}: {count} rows have no {outside:?}")));
                        }
                        shape[0] = rows.iter().map(ExactSizeIterator::len).sum();
                    }
                    let shape = form.shape(shape).map_err(|e| bad(format!("tensor {tensor}: {e}")))?;
                    let scales = scales.clone();
                    let view = View { file: i, tensor: tensor.clone(), rows, form, shape, scales };
                    if let Some(other) = views.insert(name.clone(), view) {
                        let place = if other.file == i { "in this file" } else { "in an earlier file" };
                        return Err(bad(if name == *tensor && name == other.tensor {
                            format!("tensor {name} stands in an earlier file too")
                        } else {
                            format!("tensor {tensor} stands for {name}, as {} {place} does", other.tensor)
                        }));
                    }
                }
            }
        }
        Ok(Self { files, views })
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &String> + Clone {
        self.views.keys()
    }

    /// Whether there is any tensor whose name begins so.
    pub fn any_below(&self, prefix: &str) -> bool {
        self.views.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// The shape of a tensor; `None` where there is none of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.views.get(name).map(|view| &view.shape[..])
    }

    /// What a tensor is stored as; `None` where there is none of this name.
    pub fn stored_type(&self, name: &str) -> Option<StoredType> {
        let view = self.views.get(name)?;
        Some(self.files.get(view.file)?.entries().get(&view.tensor)?.stored_type)
    }

    /// Whether any tensor is in a format that needs decoding.
    pub fn any_encoded(&self) -> bool {
        self.names().any(|name| matches!(self.stored_type(name), Some(StoredType::Encoded(_))))
    }

    /// Bytes of all tensors as they are stored.
    pub fn bytes(&self) -> u64 {
        let bytes = |name: &String| {
            let (len, size) = self.stored_type(name).map_or((1, 0), StoredType::block);
            let elements: usize = self.shape(name).unwrap_or_default().iter().product();
            (elements / len * size) as u64
        };
        self.names().map(bytes).sum()
    }

    /// The first file's path.
    pub fn path(&self) -> Option<&Path> {
        self.files.first().map(|file| file.path())
    }

    /// The path of the file that a tensor lies in; empty where there is none of this name.
    pub fn path_of(&self, name: &str) -> &Path {
        let file = self.views.get(name).and_then(|view| self.files.get(view.file));
        file.map_or(Path::new(""), |file| file.path())
    }

    /// Reads a tensor as it is stored.
    pub fn read(&self, name: &str) -> Result<Stored> {
        let Some(view) = self.views.get(name) else { return Err(self.missing(name)) };
        self.stretches(view, &view.rows)
    }

    /// A tensor as `dims`, of as many elements, to be taken where it lies; `None` unless it is of f32, f16 or bf16, without
    /// scales, and its rows stand together in the order they are wanted in.
    ///
    /// # Errors
    /// What reading the file says.
    pub(super) fn stored_rows(&self, name: &str, dims: &[usize]) -> Result<Option<StoredRows>> {
        let Some((view, file)) =
            self.views.get(name).and_then(|view| Some((view, self.files.get(view.file)?)))
        else {
            return Ok(None);
        };
        let Some(entry) = file.entries().get(&view.tensor) else { return Ok(None) };
        let StoredType::Plain(dtype @ (DType::F32 | DType::F16 | DType::BF16)) = entry.stored_type else {
            return Ok(None);
        };
        let (start, bytes) = match (&view.rows[..], entry.shape.first()) {
            ([], _) => (entry.start, entry.bytes()),
            ([rows], Some(&count)) => {
                let row = entry.bytes() / count as u64;
                (entry.start + row * rows.start as u64, row * rows.len() as u64)
            }
            _ => return Ok(None),
        };
        if view.scales.is_some() || view.form == Form::Transposed {
            return Ok(None);
        }
        let bad = |e: &dyn std::fmt::Display| Error::file(file.path(), format!("{}: {e}", view.tensor));
        let bytes: RowBytes = file.bytes().region(start, bytes as usize).map_err(|e| bad(&e))?;
        meter::count((*bytes).as_ref());
        Ok(Some(StoredRows::new(bytes, dims.to_vec(), dtype).map_err(|e| bad(&e))?))
    }

    /// Reads some rows of a tensor as they are stored.
    ///
    /// # Errors
    /// No such tensor, or no such rows.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Stored> {
        let Some(view) = self.views.get(name) else { return Err(self.missing(name)) };
        if view.form == Form::Transposed {
            let reason = || format!("tensor {name} has shape {:?}, and no rows {rows:?}", view.shape);
            let stored = self.stretches(view, &[])?;
            return stored.rows(rows.clone()).ok_or_else(|| Error::file(self.path_of(name), reason()));
        }
        if view.rows.is_empty() {
            return self.stretches(view, &[rows]);
        }
        let (mut left, mut stretches) = (rows.clone(), Vec::new());
        for stretch in &view.rows {
            let (start, end) = (left.start.min(stretch.len()), left.end.min(stretch.len()));
            if start < end {
                stretches.push(stretch.start + start..stretch.start + end);
            }
            left = left.start.saturating_sub(stretch.len())..left.end.saturating_sub(stretch.len());
        }
        if rows.is_empty() || left.end > 0 {
            let reason = format!("tensor {name} has shape {:?}, and no rows {rows:?}", view.shape);
            return Err(Error::file(self.path_of(name), reason));
        }
        self.stretches(view, &stretches)
    }

    /// Stretches of the stored tensor; all of it where there are none.
    fn stretches(&self, view: &View, rows: &[Range<usize>]) -> Result<Stored> {
        let Some(file) = self.files.get(view.file) else { return Err(self.missing(&view.tensor)) };
        let mut stretches = rows.iter().cloned();
        let mut stored = file.stored(&view.tensor, stretches.next())?;
        for rows in stretches {
            let more = file.stored(&view.tensor, Some(rows.clone()))?;
            stored.data.extend(more.data);
            if let (Some(first), Some(count)) = (stored.shape.first_mut(), more.shape.first()) {
                *first += count;
            }
        }
        if let Some(name) = &view.scales {
            let count = file.entries().get(&view.tensor).and_then(|entry| entry.shape.first().copied());
            let all = 0..count.unwrap_or(0);
            let rows = if rows.is_empty() { std::slice::from_ref(&all) } else { rows };
            stored.row_scales = Some(self.scales(name, rows)?);
        }
        match view.form {
            Form::AsStored => Ok(stored),
            Form::Matrix => {
                let shape = view.form.shape(stored.shape).map_err(|e| Error::file(file.path(), e))?;
                Ok(Stored { shape, ..stored })
            }
            Form::Transposed => stored
                .transposed()
                .map_err(|e| Error::file(file.path(), format!("tensor {}: {e}", view.tensor))),
        }
    }

    /// A scale for each of these rows, of a tensor that has one for each row or one for all.
    fn scales(&self, name: &str, rows: &[Range<usize>]) -> Result<Vec<f32>> {
        let Some(file) = self.files.iter().find(|file| file.entries().contains_key(name)) else {
            return Err(self.missing(name));
        };
        let scales = file.stored(name, None)?.tensor(&Device::Cpu)?.to_dtype(DType::F32)?;
        let scales = scales.flatten_all()?.to_vec1::<f32>()?;
        let of = |row: usize| if scales.len() == 1 { scales.first() } else { scales.get(row) };
        let all: Option<Vec<f32>> = rows.iter().cloned().flatten().map(|row| of(row).copied()).collect();
        all.ok_or_else(|| Error::file(file.path(), format!("tensor {name} has too few scales")))
    }

    fn missing(&self, name: &str) -> Error {
        Error::file(self.path().unwrap_or(Path::new("")), format!("no tensor {name}"))
    }
}
