//! A layer's weight in the layout its device wants.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use candle_core::{Result, Tensor};

use crate::cpu::PackedWeight;

/// The weight of a matrix or of filters.
#[derive(Debug)]
pub(crate) enum Weight {
    /// On the CPU. It replaces the tensor that it was made of, at the tensor's size.
    Packed(PackedWeight),
    /// On any other device: as checkpoints store it.
    Plain(Tensor),
    /// Not in memory at present.
    Absent,
}

impl Weight {
    fn new(weight: &Tensor) -> Result<Self> {
        Ok(if weight.device().is_cpu() {
            Self::Packed(PackedWeight::new(weight)?)
        } else {
            Self::Plain(weight.clone())
        })
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.bytes(),
            Self::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Absent => 0,
        }
    }
}

/// A [`Weight`] that can be replaced while others hold its layer.
#[derive(Debug)]
pub(crate) struct ReplaceableWeight(RwLock<Weight>);

impl ReplaceableWeight {
    /// Takes the weight over.
    pub(crate) fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self(RwLock::new(Weight::new(weight)?)))
    }

    /// A weight that comes later.
    pub(crate) fn absent() -> Self {
        Self(RwLock::new(Weight::Absent))
    }

    /// Frees the present weight.
    pub(crate) fn drop_weight(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Weight::Absent;
    }

    /// Puts another weight in place of the present one, whose shape the caller has compared.
    pub(crate) fn replace(&self, weight: &Tensor) -> Result<()> {
        let weight = Weight::new(weight)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = weight;
        Ok(())
    }

    /// The present weight.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Weight> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}
