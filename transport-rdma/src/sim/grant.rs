// UNSAFETY: the simulated device's word that it accesses memory as a device does (docs/safety.md, A1). Nothing is accessed here.

//! What the simulated device may reach.

use nvmf_core::DmaRegion;
use nvmf_core::dma::{DeviceMemory, DmaGrant};

/// The memory of a device, with nothing mapped. Work requests and the peer's RDMA operations alone access it, each checked against a
/// registration.
pub(super) fn device_memory() -> DeviceMemory {
    // SAFETY: local elements are those of work requests that the transport has posted and not yet seen completed. What the peer
    // accesses it does with keys it was told in commands: A1 is assumed of it as of any target.
    unsafe { DeviceMemory::new() }
}

/// Leave for the device to access a region that the transport registers.
pub(super) fn to_device(region: &DmaRegion) -> DmaGrant {
    // SAFETY: the transport tells keys of memory only in commands whose buffers stay in the tracker until they complete or the
    // queue is quiesced, and of its own capsules (M3, M4).
    unsafe { DmaGrant::new(region) }
}
