// UNSAFETY: the emulated function's word that it accesses memory as a device does (docs/safety.md, A1). Nothing is accessed here.

//! What an emulated function may reach.

use nvmf_core::dma::DeviceMemory;

/// The memory of a function, with nothing mapped. Its engine alone accesses it.
pub(super) fn device_memory() -> DeviceMemory {
    // SAFETY: the engine reads and writes rings between their creation and their deletion, the lists and the data of commands it
    // has fetched, and their completions last. Disabling, resetting and giving up drop the queues under the engine's lock, after
    // which nothing is accessed.
    unsafe { DeviceMemory::new() }
}

/// For the tests: leave to access memory of theirs.
#[cfg(test)]
pub(super) fn to_function(region: &nvmf_core::DmaRegion) -> nvmf_core::dma::DmaGrant {
    // SAFETY: the tests' memory is `SharedMemory`, or a region that nobody has an extent of.
    unsafe { nvmf_core::dma::DmaGrant::new(region) }
}
