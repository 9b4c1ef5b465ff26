//! What of a GPU's memory is taken, and how what is not needed is given back.
//!
//! Tensors come from a pool of the driver, one for each process, which keeps what they free: taking memory from the
//! device anew at every step would cost more than the step's small kernels. Captured graphs have a pool of their own;
//! both are counted together.

use candle_core::{Device, Result};

#[cfg(feature = "cuda")]
use crate::gpu::memory as gpu;

/// A GPU's memory in bytes, at one moment but for `peak`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All of it.
    pub total: u64,
    /// What no process has taken.
    pub free: u64,
    /// What the pools of this process have taken, for tensors now or later.
    pub held: u64,
    /// What is in tensors of this process.
    pub used: u64,
    /// The most that was in tensors at a time since the process began.
    pub peak: u64,
}

impl DeviceMemory {
    /// As it is now. `None` for the CPU, and where the driver does not tell.
    pub fn of(device: &Device) -> Option<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return gpu::read(device).ok();
        }
        let _the_cpu_s_is_the_processes = device;
        None
    }

    /// What further tensors can take.
    pub fn available(&self) -> u64 {
        self.free + self.held.saturating_sub(self.used)
    }

    /// What tensors could take if there were none yet.
    pub fn attainable(&self) -> u64 {
        self.free + self.held
    }
}

/// Gives what is free in the pools back to the device, for other processes and for tensors of other sizes. It waits for
/// the device, so that everything freed until now is among it. Nothing on the CPU.
///
/// # Errors
/// The driver's.
pub fn give_back_memory(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return gpu::trim(device);
    }
    let _keeps_its_memory = device;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_pool_keeps_is_to_be_had() {
        let memory = DeviceMemory { total: 100, free: 30, held: 50, used: 20, peak: 45 };
        assert_eq!((memory.available(), memory.attainable()), (60, 80));
        // The two are read one after the other.
        assert_eq!(DeviceMemory { used: 51, ..memory }.available(), 30);
    }

    #[test]
    fn the_cpu_has_none() -> Result<()> {
        assert_eq!(DeviceMemory::of(&Device::Cpu), None);
        give_back_memory(&Device::Cpu)
    }
}
