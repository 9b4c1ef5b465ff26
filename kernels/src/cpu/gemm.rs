//! Matrix products and convolutions: rows of activations times a weight.
//!
//! A convolution is a matrix product whose rows lie in several parts, one a tap: pointers say where each part of a
//! row begins, so that neither padded nor unfolded copies of the input are made.

use std::ops::Range;
use std::ptr::null;

use super::panels::Line;
use super::tile::{self, PANEL, Tile};
use super::weight::CpuWeight;
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
/// The same for filters, of which a longer stretch of each pixel is then read at a time.
const FILTER_DEPTH: usize = 576;
/// Floats of rows that are touched again and again: they stay in the second-level cache.
const ROW_FLOATS: usize = 64 << 10;
/// Floats of panels that are turned for all rows of a piece: they stay in the second-level cache beside the rows.
const PANEL_FLOATS: usize = 40 << 10;
/// Rows of a piece: enough that turning a weight's rows into panels for each costs next to nothing.
const ROWS: usize = 1024;
/// Multiply-adds that make a piece of work.
const PIECE: usize = 2 << 20;

/// The stretches of channels that the sum is cut into, each taken through all parts: in filters those of a channel stand
/// together, and the rows of neighbouring pixels have most of theirs in common.
fn stretches(weight: &CpuWeight) -> Vec<Range<usize>> {
    let (parts, depth) = (weight.parts, weight.depth);
    let steps = if parts > 1 { FILTER_DEPTH } else { DEPTH };
    let most = (steps / parts / 8 * 8).max(8);
    let len = depth.div_ceil(depth.div_ceil(most)).next_multiple_of(8);
    (0..depth).step_by(len).map(|first| first..depth.min(first + len)).collect()
}

/// How a product is cut into pieces. Depends on the shapes and the level alone.
struct Pieces {
    /// Rows of a piece.
    rows: usize,
    /// Pieces of the panels, and panels of one.
    panel_pieces: usize,
    panels: usize,
}

impl Pieces {
    fn new(level: Level, rows_total: usize, weight: &CpuWeight) -> Self {
        let steps = weight.steps().max(1);
        let panels_total = weight.columns.div_ceil(PANEL);
        let row_pieces = rows_total.div_ceil(ROWS);
        let rows = rows_total.div_ceil(row_pieces);
        let total = rows_total * steps * panels_total * PANEL;
        let wanted = (rows * steps * panels_total * PANEL).div_ceil((total / 64).max(PIECE));
        let panels = panels_total.div_ceil(wanted).next_multiple_of(level.panels());
        Self { rows, panel_pieces: panels_total.div_ceil(panels), panels }
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
    weight: &CpuWeight,
    epilogue: &Epilogue<'_>,
    out: Shared,
) {
    let all = samples * rows_total;
    if all * weight.columns == 0 {
        return;
    }
    let pieces = Pieces::new(level, all, weight);
    let stretches = stretches(weight);
    let steps = all * weight.columns * weight.steps();
    for_each_piece(all.div_ceil(pieces.rows) * pieces.panel_pieces, steps, |piece| {
        let (first_row, first_panel) =
            (piece / pieces.panel_pieces * pieces.rows, piece % pieces.panel_pieces * pieces.panels);
        let piece = Piece {
            level,
            rows: first_row..all.min(first_row + pieces.rows),
            panels: first_panel..weight.columns.div_ceil(PANEL).min(first_panel + pieces.panels),
            rows_total,
        };
        // SAFETY: the caller's contract; no two pieces have a row and a panel in common.
        unsafe { piece.run(rows, weight, &stretches, epilogue, out) };
    });
}

/// Cuts a range into runs of nearly one length, of at most `most`.
fn split(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (first, len) = (range.start, range.len());
    let runs = len.div_ceil(most);
    (0..runs).map(move |i| first + i * len / runs..first + (i + 1) * len / runs)
}

/// Some rows times some panels.
struct Piece {
    level: Level,
    /// Of all samples' rows, one sample after the other.
    rows: Range<usize>,
    panels: Range<usize>,
    /// Rows of a sample.
    rows_total: usize,
}

impl Piece {
    /// Runs of rows of one sample each that stay in the second-level cache, of nearly one size.
    fn chunks(&self, steps: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, sample) = (self.rows.clone(), self.rows_total);
        let most = (ROW_FLOATS / steps.min(DEPTH)).max(self.level.rows());
        let samples = rows.start / sample..rows.end.div_ceil(sample);
        samples.flat_map(move |i| split(rows.start.max(i * sample)..rows.end.min((i + 1) * sample), most))
    }

    /// The tiles of a chunk.
    fn tiles(&self, chunk: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        split(chunk, self.level.rows())
    }

    /// Where the parts of all rows begin, tile after tile, in a tile part after part, in a part row after row.
    fn locate(&self, rows: &impl Rows, parts: usize, steps: usize) -> Vec<*const f32> {
        let mut table = vec![std::ptr::null(); self.rows.len() * parts];
        for tile in self.chunks(steps).flat_map(|chunk| self.tiles(chunk)) {
            let at = (tile.start - self.rows.start) * parts;
            for (i, row) in tile.clone().enumerate() {
                let (sample, row) = (row / self.rows_total, row % self.rows_total);
                rows.locate(sample, row, &mut table[at + i..at + tile.len() * parts], tile.len());
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
            let at = row * columns + first;
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
        weight: &CpuWeight,
        stretches: &[Range<usize>],
        epilogue: &Epilogue<'_>,
        out: Shared,
    ) {
        let table = self.locate(rows, weight.parts, weight.steps());
        // A residual is added after the activation.
        let fused_residual = epilogue.residual.filter(|_| epilogue.activation == Activation::None);
        let together = self.level.panels();
        let longest = stretches.first().map_or(1, |channels| weight.parts * channels.len());
        // No more than there are: a small piece would spend its time on clearing the buffer.
        let most = (PANEL_FLOATS / (longest * PANEL) / together * together)
            .min(self.panels.len().next_multiple_of(together))
            .max(together);
        let mut wide = vec![Line::default(); most * longest];
        for first in self.panels.clone().step_by(most) {
            let group = first..self.panels.end.min(first + most);
            // A weight's rows are read from their beginning to their end.
            for (i, channels) in stretches.iter().enumerate() {
                let last = i + 1 == stretches.len();
                let len = weight.parts * channels.len();
                for chunk in self.chunks(weight.steps()) {
                    for panel in group.clone().step_by(together) {
                        let count = together.min(group.end - panel);
                        let lines = &mut wide[(panel - first) * len..][..count * len];
                        if chunk.start == self.rows.start {
                            weight.panels(self.level, panel, channels.clone(), lines);
                        }
                        let column = panel * PANEL;
                        let bias = epilogue.bias.filter(|_| last).map_or(null(), |bias| {
                            let sample =
                                if epilogue.bias_per_sample { chunk.start / self.rows_total } else { 0 };
                            bias[sample * weight.columns + column..].as_ptr()
                        });
                        for tile in self.tiles(chunk.clone()) {
                            let at = tile.start * weight.columns + column;
                            let t = Tile {
                                rows: table[(tile.start - self.rows.start) * weight.parts..].as_ptr(),
                                row_count: tile.len(),
                                parts: weight.parts,
                                skip: channels.start,
                                len: channels.len(),
                                panels: lines.as_ptr().cast(),
                                panel_stride: len * PANEL,
                                out: out.at(at),
                                out_stride: weight.columns,
                                columns: (count * PANEL).min(weight.columns - column),
                                accumulate: i > 0,
                                bias,
                                residual: fused_residual
                                    .filter(|_| last)
                                    .map_or(null(), |r| r[at..].as_ptr()),
                            };
                            // SAFETY: the rows are the caller's; panels and bias are padded or hold these columns; the
                            // tile lies within the result, and no other piece has it.
                            unsafe { tile::multiply(self.level, &t) };
                        }
                    }
                }
            }
        }
        if epilogue.activation != Activation::None {
            // SAFETY: the caller's contract; this piece alone has these rows and columns.
            unsafe { self.activate(weight.columns, epilogue, out) };
        }
    }
}
