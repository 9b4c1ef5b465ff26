//! The driver's pools: see [`crate::device_memory`]. Never run on a device so far.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::{
    self, CUgraphMem_attribute_enum as GraphMemory, CUmemPool_attribute_enum as Pool, CUmemoryPool,
};
use candle_core::{Device, Result};

use crate::DeviceMemory;

/// Makes the pool keep what tensors free, where there is one. To be called once, when the device is opened.
pub(super) fn keep(device: &Device) -> Result<()> {
    let Some(pool) = pool(device)? else { return Ok(()) };
    let mut all = u64::MAX;
    // SAFETY: the device's own pool, and a number of the type that this attribute has.
    unsafe { mem_pool::set_attribute(pool, Pool::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut all).cast()) }
        .w()
}

pub(crate) fn read(device: &Device) -> Result<DeviceMemory> {
    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    let (free, total) = context.mem_get_info().w()?;
    let mut memory = DeviceMemory { total: total as u64, free: free as u64, ..DeviceMemory::default() };
    let Some(pool) = pool(device)? else {
        // Without a pool everything that is taken counts, other processes' too.
        let used = memory.total - memory.free;
        return Ok(DeviceMemory { held: used, used, peak: used, ..memory });
    };
    let of_pool = |attribute| {
        let mut value = 0u64;
        // SAFETY: the device's own pool, and a number of the type that these attributes have.
        unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()) }.w()?;
        Ok::<_, candle_core::Error>(value)
    };
    let of_graphs = |attribute| {
        let mut value = 0u64;
        // SAFETY: a device that is open, and a number of the type that these attributes have.
        unsafe { sys::cuDeviceGetGraphMemAttribute(context.cu_device(), attribute, (&raw mut value).cast()) }
            .result()
            .w()?;
        Ok::<_, candle_core::Error>(value)
    };
    memory.held = of_pool(Pool::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?
        + of_graphs(GraphMemory::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT)?;
    memory.used = of_pool(Pool::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?
        + of_graphs(GraphMemory::CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT)?;
    memory.peak = of_pool(Pool::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?
        + of_graphs(GraphMemory::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)?;
    Ok(memory)
}

pub(crate) fn trim(device: &Device) -> Result<()> {
    let stream = device.as_cuda_device()?.cuda_stream();
    stream.synchronize().w()?;
    let Some(pool) = pool(device)? else { return Ok(()) };
    // SAFETY: the device's own pool; a device that is open.
    unsafe {
        mem_pool::trim_to(pool, 0).w()?;
        sys::cuDeviceGraphMemTrim(stream.context().cu_device()).result().w()
    }
}

/// The pool that tensors come from; `None` where the driver has none, as on some virtual GPUs.
fn pool(device: &Device) -> Result<Option<CUmemoryPool>> {
    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: a device that is open.
    unsafe { device::get_mem_pool(context.cu_device()) }.w().map(Some)
}
