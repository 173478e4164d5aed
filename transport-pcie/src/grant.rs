// UNSAFETY: what makes it sound that functions write to memory of this process on their own (docs/safety.md, A1): the transport's
// part of the bargain, and that of the vfio-user client. Nothing is accessed here.

//! Leave for functions to access memory.

use std::os::fd::BorrowedFd;

use nvmf_core::DmaRegion;
use nvmf_core::dma::{DeviceMemory, DmaGrant};

/// Leave for the function of a controller to access a region.
pub(crate) fn to_function(region: &DmaRegion) -> DmaGrant {
    // SAFETY: queue pairs name rings, lists and copies that are `SharedMemory` or their own, and buffers of commands in the
    // tracker, which keeps them until the command completes or the queue is quiesced (M3, M4, M6). Nothing else is told to a
    // function.
    unsafe { DmaGrant::new(region) }
}

/// The file of a region, for a vfio-user server.
pub(crate) fn file_for_server(grant: &DmaGrant) -> Option<BorrowedFd<'_>> {
    // SAFETY: it is sent to the server with DMA_MAP and to nobody else. A server is a device: A1 is assumed of it.
    unsafe { grant.file() }
}

/// The file of a region, for the primary of an instance.
pub(crate) fn file_for_primary(grant: &DmaGrant) -> Option<BorrowedFd<'_>> {
    // SAFETY: it is sent to the primary and to nobody else, which maps it for the function and does not access it (M10).
    unsafe { grant.file() }
}

/// Registers of a vfio-user server, mapped here.
pub(crate) fn registers_of_server() -> DeviceMemory {
    // SAFETY: what is mapped is the server's file, and written are registers, which are the server's to interpret. A server that
    // passes off our own memory as registers could write there itself: A1 is assumed of it.
    unsafe { DeviceMemory::new() }
}

/// For the tests: the memory of a device that they play.
#[cfg(test)]
pub(crate) fn device_memory() -> DeviceMemory {
    // SAFETY: the tests write what the commands tell that they look at.
    unsafe { DeviceMemory::new() }
}
