//! The inner kernel of every matrix product: a few rows times one or two panels of 16 columns, held in registers.

use super::Level;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// Columns of a panel: the right-hand side is stored 16 columns wide, one step of the sum after the other.
pub(crate) const PANEL: usize = 16;

/// One call of the kernel: `out (+)= rows * panels (+ bias + residual)`.
pub(crate) struct Tile {
    /// Where row `i` of part `t` of the sum begins: `rows[t * row_count + i]`.
    pub(crate) rows: *const *const f32,
    /// Rows, 1 to [`Level::rows`].
    pub(crate) row_count: usize,
    /// Parts of the sum: the taps of a convolution, 1 for a matrix.
    pub(crate) parts: usize,
    /// Floats of each part that are left out at its beginning, and how many follow that are summed.
    pub(crate) skip: usize,
    pub(crate) len: usize,
    /// The first panel, `parts * len` steps of [`PANEL`] floats; the next one begins `panel_stride` floats later.
    pub(crate) panels: *const f32,
    pub(crate) panel_stride: usize,
    /// The result's first element, the distance of its rows, and how many columns there are to write.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    pub(crate) columns: usize,
    /// Whether `out` holds a part of the sum already.
    pub(crate) accumulate: bool,
    /// A float for each column, or null.
    pub(crate) bias: *const f32,
    /// Added last, laid out as `out`, or null.
    pub(crate) residual: *const f32,
}

impl Level {
    /// The most rows of a tile: as many as registers hold beside the panels.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Portable => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 6,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 14,
        }
    }

    /// Panels of a tile.
    pub(crate) fn panels(self) -> usize {
        match self {
            Self::Portable => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 2,
        }
    }
}

/// `NV` registers wide: `NV * S::LANES` columns.
///
/// Every element is the sum over its parts in ascending order, begun at 0 and then added to what `out` holds: the
/// same bytes whichever rows share a tile.
///
/// # Safety
/// Pointers and counts of `t` must describe memory that is valid as [`Tile`] says, `t.row_count` must be `MR`, and
/// the machine must have the instruction set of `S`.
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller's contract; columns beyond `t.columns` are touched in the panels only, which are padded.
    unsafe {
        let per_panel = PANEL / S::LANES;
        let column = |j: usize| (j / per_panel) * t.panel_stride + (j % per_panel) * S::LANES;
        let mut acc = [[S::zero(); NV]; MR];
        let mut panel = t.panels;
        for part in 0..t.parts {
            let mut rows = [std::ptr::null::<f32>(); MR];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = (*t.rows.add(part * MR + i)).add(t.skip);
            }
            for k in 0..t.len {
                let mut b = [S::zero(); NV];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = S::load(panel.add(column(j)));
                }
                for (acc, row) in acc.iter_mut().zip(&rows) {
                    let a = S::splat(row.add(k));
                    for (acc, &b) in acc.iter_mut().zip(&b) {
                        *acc = S::mul_add(a, b, *acc);
                    }
                }
                panel = panel.add(PANEL);
            }
        }
        // Only this buffer is indexed by variables below: the sums themselves can then stay in registers above.
        let mut sums = [[0.0f32; 2 * PANEL]; MR];
        for (sums, acc) in sums.iter_mut().zip(&acc) {
            for (j, &acc) in acc.iter().enumerate() {
                S::store(sums.as_mut_ptr().add(j * S::LANES), acc);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let at = i * t.out_stride;
            for first in (0..NV * S::LANES).step_by(S::LANES) {
                let n = t.columns.saturating_sub(first).min(S::LANES);
                let load = |p: *const f32| if n == S::LANES { S::load(p) } else { S::load_first(p, n) };
                let mut v = S::load(sums.as_ptr().add(first));
                if t.accumulate {
                    v = S::add(load(t.out.add(at + first)), v);
                }
                if !t.bias.is_null() {
                    v = S::add(v, load(t.bias.add(first)));
                }
                if !t.residual.is_null() {
                    v = S::add(v, load(t.residual.add(at + first)));
                }
                if n == S::LANES {
                    S::store(t.out.add(at + first), v);
                } else {
                    S::store_first(t.out.add(at + first), v, n);
                }
            }
        }
    }
}

/// Expands to a `match` of the row count to the kernel compiled for it.
macro_rules! by_rows {
    ($t:ident, $simd:ty, $registers:literal, $($rows:literal)*) => {
        match $t.row_count {
            // SAFETY: the caller's contract; the row count was just matched.
            $($rows => unsafe { tile::<$simd, $rows, $registers>($t) },)*
            _ => debug_assert!(false, "a tile of {} rows", $t.row_count),
        }
    };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512(t: &Tile) {
    if t.columns > PANEL {
        by_rows!(t, Avx512, 2, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    } else {
        by_rows!(t, Avx512, 1, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(t: &Tile) {
    by_rows!(t, Avx2, 2, 1 2 3 4 5 6);
}

/// Computes one tile of at most [`Level::rows`] rows and [`Level::panels`] panels.
///
/// # Safety
/// Pointers and counts of `t` must describe memory that is valid as [`Tile`] says; `level` must be one of
/// [`Level::available`].
pub(crate) unsafe fn multiply(level: Level, t: &Tile) {
    match level {
        Level::Portable => by_rows!(t, Portable, 2, 1 2 3 4),
        // SAFETY: the caller's contract.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(t) },
        // SAFETY: the caller's contract.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(t) },
    }
}

/// `out (+)= rows * panels` for any number of rows and columns, one part of `len` steps.
///
/// # Safety
/// Each row must be readable for `len` floats, each panel for `len` steps; `out` must be writable for `columns` floats
/// at every `out_stride` and hold a part of the sum if `accumulate`; `level` must be one of [`Level::available`].
pub(crate) unsafe fn multiply_all(
    level: Level,
    (rows, len): (&[*const f32], usize),
    (panels, panel_stride): (*const f32, usize),
    (out, out_stride, columns): (*mut f32, usize, usize),
    accumulate: bool,
) {
    let width = level.panels() * PANEL;
    let tiles = rows.len().div_ceil(level.rows());
    for column in (0..columns).step_by(width) {
        for i in 0..tiles {
            let (first, end) = (i * rows.len() / tiles, (i + 1) * rows.len() / tiles);
            let t = Tile {
                rows: rows[first..].as_ptr(),
                row_count: end - first,
                parts: 1,
                skip: 0,
                len,
                panels: panels.wrapping_add(column / PANEL * panel_stride),
                panel_stride,
                out: out.wrapping_add(first * out_stride + column),
                out_stride,
                columns: (columns - column).min(width),
                accumulate,
                bias: std::ptr::null(),
                residual: std::ptr::null(),
            };
            // SAFETY: the caller's contract; the tile lies within it.
            unsafe { multiply(level, &t) };
        }
    }
}
