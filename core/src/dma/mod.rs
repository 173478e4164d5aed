//! Memory a controller may read and write: pinned regions, unique buffers cut from them, and a pool.
//!
//! A [`DmaBuf`] is owned by exactly one party at any time: the caller, or the command slot it was
//! submitted with. It comes back with the completion, never earlier (see `docs/safety.md`).

// UNSAFETY: accesses to memory that a device may write at the same moment.
#[expect(unsafe_code, reason = "atomic accesses to memory shared with devices, through raw pointers")]
mod access;
// UNSAFETY: mapping dma-bufs, and lending them to the processor.
#[expect(unsafe_code, reason = "mmap and ioctls of dma-bufs")]
mod device_buf;
mod pool;
// UNSAFETY: mmap, and slices over memory that only this module's ownership rules keep exclusive.
#[expect(unsafe_code, reason = "the crate's only owner of raw memory")]
mod region;

pub use access::{DeviceMemory, DmaFault, SharedMemory, device_write_barrier, streamed_write_barrier};
pub use device_buf::{DeviceBuf, DmaBufError};
pub use pool::{DataAndMetadata, DmaBuf, DmaPool, DmaSegment, IoBuf, PoolStats};
pub use region::{DmaGrant, DmaRegion, Extent, RegionId};

/// Granularity of DMA memory, bytes: every buffer starts on such a boundary.
pub const DMA_PAGE: usize = 4096;
