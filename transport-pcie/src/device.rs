//! The seam to a PCI function: what a controller needs of it, however it is reached (VFIO, vfio-user, emulation).

use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use nvmf_core::dma::RegionId;
use nvmf_core::{DmaRegion, Error, Result};

/// An NVMe function on some PCI bus, real or not.
///
/// Dropping it gives the function up: interrupts are off, nothing is mapped for it any more.
pub trait PciDevice: Send {
    /// Who it is.
    fn identity(&self) -> PciIdentity;

    /// Access to its registers (BAR 0). May be called more than once; all handles reach the same registers and stay usable
    /// (with errors or all ones) after the function is gone.
    ///
    /// # Errors
    /// When the registers cannot be reached.
    fn bar0(&mut self) -> Result<Bar0>;

    /// Makes all of `region` reachable for the function, for reading and writing, and returns the bus address of its first
    /// byte, a multiple of [`nvmf_core::dma::DMA_PAGE`]. Called at most once per region until it is unmapped. An
    /// implementation that accesses the memory from this process keeps a clone of the region.
    ///
    /// # Errors
    /// When there are no addresses or the IOMMU refuses, with what to do about it.
    fn dma_map(&mut self, region: &DmaRegion) -> Result<u64>;

    /// Takes a mapping back. The function no longer accesses the region when this returns well.
    ///
    /// # Errors
    /// When that cannot be confirmed.
    fn dma_unmap(&mut self, region: RegionId) -> Result<()>;

    /// Interrupt vectors (MSI-X) it has; 0 when it can only be polled.
    fn max_vectors(&self) -> u16;

    /// Enables vectors `0..vectors` and returns a descriptor for each, in order, that becomes readable when the vector fires and
    /// is silenced by reading it. The descriptors do not block. Called at most once between resets.
    ///
    /// # Errors
    /// When the function or the operating system has not that many.
    fn enable_interrupts(&mut self, vectors: u16) -> Result<Vec<OwnedFd>>;

    /// Resets the function (FLR or what comes next to it). Mappings stay; interrupts are off; the PCI command register is as
    /// after power on.
    ///
    /// # Errors
    /// When it cannot be reset.
    fn reset(&mut self) -> Result<()>;

    /// Reads configuration space.
    ///
    /// # Errors
    /// When the function is gone or the range lies outside.
    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> Result<()>;

    /// Writes configuration space.
    ///
    /// # Errors
    /// When the function is gone or the range lies outside.
    fn write_config(&mut self, offset: u32, from: &[u8]) -> Result<()>;

    /// Cuts the function off from memory, the last resort when it cannot be stopped: mappings go, bus mastering goes. Returns
    /// whether it is certain that it cannot access any memory that was mapped for it. With `false` that memory is leaked.
    /// Nothing is asked of the function afterwards.
    fn isolate(&mut self) -> bool;

    /// Whether it was taken away, or its other side is gone.
    fn is_removed(&self) -> bool {
        false
    }

    /// Becomes readable when the function is taken away or is about to be.
    fn removal_fd(&self) -> Option<RawFd> {
        None
    }
}

/// Who a function is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PciIdentity {
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// What messages call it: its address on the bus, a socket path, a name.
    pub name: String,
}

impl fmt::Display for PciIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{:04x}:{:04x}]", self.name, self.vendor, self.device)
    }
}

/// Registers that are not memory of this process: messages to a server, or calls into an emulation. Called from several threads.
///
/// Offsets are from the start of BAR 0 and aligned to the access. A function that is gone reads as all ones, as a bus
/// would answer, or as an error.
pub trait BarAccess: Send + Sync {
    /// Bytes of the BAR.
    fn len(&self) -> u64;

    /// Whether there is no BAR.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads 32 bits.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn read32(&self, offset: u64) -> Result<u32>;

    /// Reads 64 bits.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn read64(&self, offset: u64) -> Result<u64> {
        Ok(u64::from(self.read32(offset)?) | u64::from(self.read32(offset + 4)?) << 32)
    }

    /// Writes 32 bits. What was written to DMA memory before is visible to the function.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn write32(&self, offset: u64, value: u32) -> Result<()>;

    /// Writes 64 bits.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.write32(offset, value as u32)?;
        self.write32(offset + 4, (value >> 32) as u32)
    }

    /// Writes a doorbell. Nothing is expected back, so a message-based implementation need not wait.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn doorbell(&self, offset: u64, value: u32) -> Result<()> {
        self.write32(offset, value)
    }
}

/// A handle of a function's registers, cheap to clone.
#[derive(Clone)]
pub struct Bar0(Arc<dyn BarAccess>);

impl Bar0 {
    /// A handle of these registers.
    #[must_use]
    pub fn new(access: Arc<dyn BarAccess>) -> Self {
        Self(access)
    }

    /// Bytes of the BAR.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is no BAR.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that a register of `size` bytes is there: offsets come from what the function itself says (doorbell stride).
    fn check(&self, offset: u64, size: u64) -> Result<()> {
        if offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len()) {
            return Ok(());
        }
        Err(Error::peer_misbehaved(format!(
            "a register at offset {offset:#x} is needed, but BAR 0 has {:#x} bytes",
            self.len()
        )))
    }

    /// Reads 32 bits.
    ///
    /// # Errors
    /// When the function cannot be reached or there is no such register.
    pub fn read32(&self, offset: u64) -> Result<u32> {
        self.check(offset, 4)?;
        self.0.read32(offset)
    }

    /// Reads 64 bits.
    ///
    /// # Errors
    /// As [`Bar0::read32`].
    pub fn read64(&self, offset: u64) -> Result<u64> {
        self.check(offset, 8)?;
        self.0.read64(offset)
    }

    /// Writes 32 bits.
    ///
    /// # Errors
    /// As [`Bar0::read32`].
    pub fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.check(offset, 4)?;
        self.0.write32(offset, value)
    }

    /// Writes 64 bits.
    ///
    /// # Errors
    /// As [`Bar0::read32`].
    pub fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.check(offset, 8)?;
        self.0.write64(offset, value)
    }

    /// Writes a doorbell; everything written to DMA memory before is visible to the function when it sees the value.
    ///
    /// # Errors
    /// As [`Bar0::read32`].
    pub fn doorbell(&self, offset: u64, value: u32) -> Result<()> {
        self.check(offset, 4)?;
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        self.0.doorbell(offset, value)
    }
}

impl fmt::Debug for Bar0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bar0({:#x} bytes)", self.len())
    }
}
