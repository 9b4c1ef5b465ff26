//! CPU tensors as slices, and slices as tensors.

use std::mem::MaybeUninit;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, Result, Shape, Storage, Tensor, bail};

use super::parallel::{STEPS_A_FLOAT, for_each_chunk};

/// A borrowed storage, seen as the elements of a tensor in it.
struct Elements<G> {
    storage: G,
    start: usize,
    end: usize,
}

impl<G: Deref<Target = Storage>> Deref for Elements<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(x)) => &x[self.start..self.end],
            // `elements` has seen that it is f32 on the CPU, and storages do not change their type.
            _ => &[],
        }
    }
}

/// The elements of a tensor made by [`floats`].
pub(crate) fn elements(x: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor of shape {:?} is not contiguous", x.dims());
    };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("a tensor of type {:?} on {:?} is not f32 on the CPU", x.dtype(), x.device());
    }
    Ok(Elements { storage, start, end })
}

/// A tensor whose elements `fill` writes; it gets a pointer to room for all of them, not initialised.
///
/// # Safety
/// `fill` must have written every element when it returns.
pub(crate) unsafe fn from_parts(shape: impl Into<Shape>, fill: impl FnOnce(*mut f32)) -> Result<Tensor> {
    let shape = shape.into();
    let len = shape.elem_count();
    let mut out = Vec::with_capacity(len);
    fill(out.as_mut_ptr());
    // SAFETY: the capacity is `len`, and the caller has written all elements.
    unsafe { out.set_len(len) };
    Tensor::from_vec(out, shape, &Device::Cpu)
}

/// A tensor whose chunks `write` writes, given the chunk's index.
///
/// # Safety
/// `write` must write every element that it gets.
pub(crate) unsafe fn from_chunks(
    shape: impl Into<Shape>,
    chunk: usize,
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Send + Sync,
) -> Result<Tensor> {
    let shape = shape.into();
    let len = shape.elem_count();
    let mut out = Vec::with_capacity(len);
    for_each_chunk(&mut out.spare_capacity_mut()[..len], chunk.max(1), STEPS_A_FLOAT * len, write);
    // SAFETY: the capacity is `len` at least, and the chunks, all written, cover it.
    unsafe { out.set_len(len) };
    Tensor::from_vec(out, shape, &Device::Cpu)
}

/// Elements that have been written.
///
/// # Safety
/// All of them must have been.
pub(crate) unsafe fn written(out: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    // SAFETY: the caller's contract; the two types have one layout.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [f32]) }
}
