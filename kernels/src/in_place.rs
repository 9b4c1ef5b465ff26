//! Layers that change where they are: a captured graph reads weights by their addresses.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Result, Tensor};

static MOVES: AtomicU64 = AtomicU64::new(0);

/// How often something on a GPU has changed so that work recorded before must not be started again: the weight of a layer
/// moved, went or came, or something is applied beside it; or plans that cuDNN runs went.
pub fn layer_moves() -> u64 {
    MOVES.load(Ordering::Acquire)
}

/// Counts such a change.
pub(crate) fn moved() {
    MOVES.fetch_add(1, Ordering::AcqRel);
}

/// Copies `new` into the memory of `present`, which nobody else may still need as it is. False, and nothing is done,
/// where it does not fit: another type, shape or device, or a view.
pub(crate) fn overwrite(present: &Tensor, new: &Tensor) -> Result<bool> {
    let fits = present.shape() == new.shape()
        && present.dtype() == new.dtype()
        && present.device().same_device(new.device())
        && present.is_contiguous()
        && present.rank() > 0;
    if fits {
        present.slice_set(&new.contiguous()?, 0, 0)?;
    }
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{random, same_bytes};

    #[test]
    fn the_memory_stays_and_what_is_in_it_changes() -> Result<()> {
        for shape in [vec![7], vec![5, 3], vec![2, 3, 4, 5]] {
            let (present, new) = (random(shape.clone(), 1)?, random(shape, 2)?);
            let view = present.clone();
            assert!(overwrite(&present, &new)?);
            same_bytes(&present, &new)?;
            // A view of the same memory sees it.
            same_bytes(&view, &new)?;
        }
        // What is not contiguous is written as it reads.
        let (present, new) = (random((3, 5), 1)?, random((5, 3), 2)?.t()?);
        assert!(overwrite(&present, &new)?);
        same_bytes(&present, &new.contiguous()?)
    }

    #[test]
    fn what_does_not_fit_is_left_alone() -> Result<()> {
        let (present, before) = (random((4, 6), 1)?, random((4, 6), 1)?);
        for other in [random((6, 4), 2)?, random(24, 2)?, random((4, 6), 2)?.to_dtype(DType::F16)?] {
            assert!(!overwrite(&present, &other)?);
        }
        assert!(!overwrite(&present.t()?, &random((6, 4), 2)?)?);
        same_bytes(&present, &before)
    }
}
