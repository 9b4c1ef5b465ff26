//! Tensors of one or several files under other names than theirs: whole ones, some of their rows, or rows in another
//! order.
//!
//! A view takes rows (of the first dimension) alone, because those lie together in every kind of file, quantised ones
//! too: reading one is a few positioned reads and no arithmetic.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::file::CheckpointFile;
use super::flux_keys;
use super::stored::{Stored, StoredType};
use crate::{Error, Result};

/// A tensor under its new name: these rows of a stored tensor, one stretch after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its new name.
    pub name: String,
    /// The stretches of rows that it consists of; none where it is the whole tensor.
    pub rows: Vec<Range<usize>>,
}

impl Piece {
    /// A whole tensor.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: Vec::new() }
    }
}

#[derive(Debug)]
struct View {
    file: usize,
    /// The tensor's name in the file.
    tensor: String,
    rows: Vec<Range<usize>>,
    shape: Vec<usize>,
}

/// All tensors of a component's files.
#[derive(Debug)]
pub struct Views {
    files: Vec<CheckpointFile>,
    views: BTreeMap<String, View>,
}

impl Views {
    /// Tensors under the names they are stored by.
    ///
    /// # Errors
    /// A name that stands in two files.
    pub fn as_stored(files: Vec<CheckpointFile>) -> Result<Self> {
        Self::renamed(files, |name, _| Ok(vec![Piece::whole(name)]))
    }

    /// Tensors under diffusers' names, of files that have those or the original ones of FLUX ([`flux_keys`]).
    ///
    /// # Errors
    /// A name that stands in two files or is made of two tensors; a fused tensor whose rows cannot be divided.
    pub fn new(files: Vec<CheckpointFile>) -> Result<Self> {
        let has = |test: fn(&str) -> bool| files.iter().any(|f| f.entries().keys().any(|key| test(key)));
        if has(flux_keys::is_original) {
            return Self::renamed(files, flux_keys::pieces);
        }
        Self::as_stored(files)
    }

    /// Tensors under the names that `pieces` gives for a stored name. Its second argument tells the shape of any
    /// stored tensor; its error is a reason.
    pub fn renamed(
        files: Vec<CheckpointFile>,
        pieces: impl Fn(&str, &dyn Fn(&str) -> Option<Vec<usize>>) -> std::result::Result<Vec<Piece>, String>,
    ) -> Result<Self> {
        let shape_of = |name: &str| files.iter().find_map(|f| Some(f.entries().get(name)?.shape.clone()));
        let mut views = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            let bad = |reason: String| Error::file(file.path(), reason);
            for (tensor, entry) in file.entries() {
                let pieces = pieces(tensor, &shape_of).map_err(|e| bad(format!("tensor {tensor}: {e}")))?;
                for Piece { name, rows } in pieces {
                    let mut shape = entry.shape.clone();
                    if !rows.is_empty() {
                        let count = shape.first().copied().unwrap_or(0);
                        if let Some(outside) = rows.iter().find(|r| r.start >= r.end || r.end > count) {
                            return Err(bad(format!("tensor {tensor}: {count} rows have no {outside:?}")));
                        }
                        shape[0] = rows.iter().map(ExactSizeIterator::len).sum();
                    }
                    let view = View { file: i, tensor: tensor.clone(), rows, shape };
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
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.views.keys()
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

    /// The first file's path.
    pub fn path(&self) -> Option<&Path> {
        self.files.first().map(CheckpointFile::path)
    }

    /// The path of the file that a tensor lies in; empty where there is none of this name.
    pub fn path_of(&self, name: &str) -> &Path {
        let file = self.views.get(name).and_then(|view| self.files.get(view.file));
        file.map_or(Path::new(""), CheckpointFile::path)
    }

    /// Reads a tensor as it is stored.
    pub fn read(&self, name: &str) -> Result<Stored> {
        let file = self.views.get(name).and_then(|view| Some((view, self.files.get(view.file)?)));
        let Some((view, file)) = file else {
            return Err(Error::file(self.path().unwrap_or(Path::new("")), format!("no tensor {name}")));
        };
        let mut rows = view.rows.iter();
        let mut stored = file.stored(&view.tensor, rows.next().cloned())?;
        for rows in rows {
            stored.data.extend(file.stored(&view.tensor, Some(rows.clone()))?.data);
        }
        stored.shape.clone_from(&view.shape);
        Ok(stored)
    }
}
