//! Work split into pieces.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

/// Below this many steps of work waking another thread costs more than it saves: about 25 microseconds. A step is a
/// multiply-add of a matrix product.
const WORTH_WAKING: usize = 2 << 20;
/// Steps that reading, working on and writing one float counts for.
pub(crate) const STEPS_A_FLOAT: usize = 24;

/// Calls `run(0..pieces)`, on several threads where all pieces together are worth it.
///
/// Pieces must depend on the shapes alone, so that every result is computed in the same order on any machine.
pub(crate) fn for_each_piece(pieces: usize, steps: usize, run: impl Fn(usize) + Send + Sync) {
    if pieces < 2 || steps < WORTH_WAKING {
        (0..pieces).for_each(run);
    } else {
        (0..pieces).into_par_iter().for_each(run);
    }
}

/// Calls `run(i, chunk)` for the chunks of `items`, as [`for_each_piece`] does.
pub(crate) fn for_each_chunk<T: Send>(
    items: &mut [T],
    chunk: usize,
    steps: usize,
    run: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    if items.len() <= chunk || steps < WORTH_WAKING {
        items.chunks_mut(chunk).enumerate().for_each(|(i, chunk)| run(i, chunk));
    } else {
        items.par_chunks_mut(chunk).enumerate().for_each(|(i, chunk)| run(i, chunk));
    }
}

/// A result that pieces write to at the same time, each at places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: the pointer is only written through at places that no two threads share; see `at`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The result that begins at `first`. Who writes through it upholds that no two pieces write one place.
    pub(crate) fn new(first: *mut f32) -> Self {
        Self(first)
    }

    /// The element at `offset`, which must lie within the result.
    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }

    /// The elements in `range`, not initialised.
    ///
    /// # Safety
    /// The range must lie within the result, which must outlive the slice, and nobody else may use it meanwhile.
    pub(crate) unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [MaybeUninit<f32>] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(range.start).cast(), range.len()) }
    }
}
