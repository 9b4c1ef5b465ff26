//! Matrix products and convolutions: rows of activations times a packed weight.
//!
//! A convolution is a matrix product whose rows lie in several parts, one a tap: pointers say where each part of a
//! row begins, so that neither padded nor unfolded copies of the input are made.

use std::ops::Range;
use std::ptr::null;

use super::packed::PackedWeight;
use super::tile::{self, PANEL, Tile};
use super::{Level, Shared, for_each_piece, math};
use crate::Activation;

/// The left-hand side: where its rows lie.
pub(crate) trait Rows: Sync {
    /// Writes where each part of row `row` of sample `sample` begins to `parts[0], parts[stride], ..`. Each part is
    /// valid for the weight's depth.
    fn locate(&self, sample: usize, row: usize, parts: &mut [*const f32], stride: usize);
}

/// What is added to the product.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// `(columns)`, or `(samples, columns)` with `bias_per_sample`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Whether every sample has a bias of its own.
    pub(crate) bias_per_sample: bool,
    /// Applied to the sum with its bias.
    pub(crate) activation: Activation,
    /// Added last, of the result's shape.
    pub(crate) residual: Option<&'a [f32]>,
}

/// Steps of the sum that one pass over a pair of panels takes: the panels then stay in the first-level cache.
const DEPTH: usize = 384;
/// Floats of rows that a piece of work touches in one pass: they stay in the second-level cache.
const ROW_FLOATS: usize = 64 << 10;
/// Multiply-adds that make a piece of work.
const PIECE: usize = 2 << 20;

/// A run of steps of the sum: whole parts, or a stretch of one.
#[derive(Clone, Copy)]
struct Block {
    part: usize,
    parts: usize,
    skip: usize,
    len: usize,
}

fn blocks(weight: &PackedWeight) -> Vec<Block> {
    let (parts, depth) = (weight.parts, weight.depth);
    if depth > DEPTH {
        let len = depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(PANEL);
        let stretch = |part, skip| Block { part, parts: 1, skip, len: len.min(depth - skip) };
        return (0..parts)
            .flat_map(|part| (0..depth).step_by(len).map(move |skip| stretch(part, skip)))
            .collect();
    }
    let together = (DEPTH / depth.max(1)).clamp(1, parts.max(1));
    (0..parts)
        .step_by(together)
        .map(|part| Block { part, parts: together.min(parts - part), skip: 0, len: depth })
        .collect()
}

/// How a product is cut into pieces. Depends on the shapes and the level alone.
struct Pieces {
    /// Pieces of a sample's rows, and rows of one.
    row_pieces: usize,
    rows: usize,
    /// Pieces of the panels, and panels of one.
    panel_pieces: usize,
    panels: usize,
}

impl Pieces {
    fn new(level: Level, rows_total: usize, weight: &PackedWeight) -> Self {
        let steps = weight.steps().max(1);
        let panels_total = weight.columns.div_ceil(PANEL);
        let most = (ROW_FLOATS / steps.min(DEPTH)).max(level.rows());
        let row_pieces = rows_total.div_ceil(most);
        let rows = rows_total.div_ceil(row_pieces);
        let total = rows_total * steps * panels_total * PANEL;
        let wanted = (rows * steps * panels_total * PANEL).div_ceil((total / 64).max(PIECE));
        let panels = panels_total.div_ceil(wanted).next_multiple_of(level.panels());
        Self {
            row_pieces: rows_total.div_ceil(rows),
            rows,
            panel_pieces: panels_total.div_ceil(panels),
            panels,
        }
    }
}

/// `out[sample, row, ..] = rows * weight + epilogue`, for `rows_total` rows of each of `samples` samples.
///
/// # Safety
/// `out` must have room for `samples * rows_total * weight.columns` floats, all of which are written; what `rows`
/// locates must be readable; the epilogue's slices must have the lengths that [`Epilogue`] says.
pub(crate) unsafe fn multiply(
    level: Level,
    rows: &impl Rows,
    (samples, rows_total): (usize, usize),
    weight: &PackedWeight,
    epilogue: &Epilogue<'_>,
    out: Shared,
) {
    if samples * rows_total * weight.columns == 0 {
        return;
    }
    let pieces = Pieces::new(level, rows_total, weight);
    let blocks = blocks(weight);
    let steps = samples * rows_total * weight.columns * weight.steps();
    for_each_piece(samples * pieces.row_pieces * pieces.panel_pieces, steps, |piece| {
        let (piece, panel_piece) = (piece / pieces.panel_pieces, piece % pieces.panel_pieces);
        let (sample, row_piece) = (piece / pieces.row_pieces, piece % pieces.row_pieces);
        let first_row = row_piece * pieces.rows;
        let first_panel = panel_piece * pieces.panels;
        let piece = Piece {
            level,
            sample,
            rows: first_row..rows_total.min(first_row + pieces.rows),
            panels: first_panel..weight.columns.div_ceil(PANEL).min(first_panel + pieces.panels),
            rows_total,
        };
        // SAFETY: the caller's contract; no two pieces have a row and a panel in common.
        unsafe { piece.run(rows, weight, &blocks, epilogue, out) };
    });
}

/// Some rows of a sample times some panels.
struct Piece {
    level: Level,
    sample: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    rows_total: usize,
}

impl Piece {
    /// The rows in tiles of nearly one size.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (first, len) = (self.rows.start, self.rows.len());
        let tiles = len.div_ceil(self.level.rows());
        (0..tiles).map(move |i| first + i * len / tiles..first + (i + 1) * len / tiles)
    }

    /// Where the parts of all rows begin, tile after tile, in a tile part after part, in a part row after row.
    fn locate(&self, rows: &impl Rows, parts: usize) -> Vec<*const f32> {
        let mut table = vec![std::ptr::null(); self.rows.len() * parts];
        for tile in self.tiles() {
            let at = (tile.start - self.rows.start) * parts;
            for (i, row) in tile.clone().enumerate() {
                rows.locate(self.sample, row, &mut table[at + i..at + tile.len() * parts], tile.len());
            }
        }
        table
    }

    /// Applies the activation to this piece of the result, then adds the residual.
    ///
    /// # Safety
    /// As [`multiply`]; the piece must have been written.
    unsafe fn activate(&self, columns: usize, epilogue: &Epilogue<'_>, out: Shared) {
        let (first, end) = (self.panels.start * PANEL, columns.min(self.panels.end * PANEL));
        for row in self.rows.clone() {
            let at = (self.sample * self.rows_total + row) * columns + first;
            // SAFETY: the caller's contract; this piece alone has these columns of the row.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(at), end - first) };
            math::activate(self.level, epilogue.activation, out);
            if let Some(residual) = epilogue.residual {
                out.iter_mut().zip(&residual[at..]).for_each(|(y, r)| *y += r);
            }
        }
    }

    /// # Safety
    /// As [`multiply`], for this piece of the result.
    unsafe fn run(
        &self,
        rows: &impl Rows,
        weight: &PackedWeight,
        blocks: &[Block],
        epilogue: &Epilogue<'_>,
        out: Shared,
    ) {
        let table = self.locate(rows, weight.parts);
        // A residual is added after the activation.
        let fused_residual = epilogue.residual.filter(|_| epilogue.activation == Activation::None);
        let mut wide = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let last = i + 1 == blocks.len();
            for panel in self.panels.clone().step_by(self.level.panels()) {
                let count = self.level.panels().min(self.panels.end - panel);
                let from = block.part * weight.depth + block.skip;
                let steps = (from, block.parts * block.len);
                let (panels, panel_stride) = weight.panels(self.level, (panel, count), steps, &mut wide);
                let column = panel * PANEL;
                let columns = (count * PANEL).min(weight.columns - column);
                let bias = epilogue.bias.filter(|_| last).map_or(null(), |bias| {
                    let sample = if epilogue.bias_per_sample { self.sample } else { 0 };
                    bias[sample * weight.columns + column..].as_ptr()
                });
                for tile in self.tiles() {
                    let at = (self.sample * self.rows_total + tile.start) * weight.columns + column;
                    let t = Tile {
                        rows: table
                            [(tile.start - self.rows.start) * weight.parts + block.part * tile.len()..]
                            .as_ptr(),
                        row_count: tile.len(),
                        parts: block.parts,
                        skip: block.skip,
                        len: block.len,
                        panels,
                        panel_stride,
                        out: out.at(at),
                        out_stride: weight.columns,
                        columns,
                        accumulate: i > 0,
                        bias,
                        residual: fused_residual.filter(|_| last).map_or(null(), |r| r[at..].as_ptr()),
                    };
                    // SAFETY: the rows are the caller's; panels and bias are padded or hold these columns; the tile
                    // lies within the result, and no other piece has it.
                    unsafe { tile::multiply(self.level, &t) };
                }
            }
        }
        if epilogue.activation != Activation::None {
            // SAFETY: the caller's contract; this piece alone has these rows and columns.
            unsafe { self.activate(weight.columns, epilogue, out) };
        }
    }
}
