//! The seam to a PCI function: what a controller needs of it, however it is reached (VFIO, vfio-user, emulation).

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nvmf_core::dma::{DmaGrant, RegionId};
use nvmf_core::spec::registers::DOORBELL_BASE;
use nvmf_core::{Error, Result};

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

    /// Access to another of its memory BARs, 2..=5, which may hold a controller memory buffer. As [`PciDevice::bar0`] otherwise.
    ///
    /// # Errors
    /// When there is no such BAR, or this kind of device does not give access to it.
    fn bar(&mut self, index: u8) -> Result<Bar0> {
        Err(Error::unsupported(format!("BAR {index} of this device cannot be accessed")))
    }

    /// What another process needs to ring doorbells: parts of BAR 0 that it can map. Not the doorbells alone, as a rule: who is given
    /// it can do to the controller what this process can.
    ///
    /// # Errors
    /// When the doorbells cannot be mapped, or this kind of device does not lend its registers.
    fn lend_registers(&self) -> Result<BarFile> {
        Err(Error::unsupported("the registers of this kind of device cannot be used by several processes"))
    }

    /// Sets bus addresses aside for as long as the device is held: no mapping is ever given them. `len` bytes, at `at` or
    /// anywhere; returns the first, a multiple of [`nvmf_core::dma::DMA_PAGE`] unless it was asked for.
    ///
    /// # Errors
    /// When memory is mapped there, there are not that many, or this kind of device does not know.
    fn reserve_addresses(&mut self, at: Option<u64>, len: u64) -> Result<u64> {
        let _ = (at, len);
        Err(Error::unsupported("no bus addresses can be set aside on this device"))
    }

    /// Makes all of the region reachable for the function, for reading and writing, and returns the bus address of its first
    /// byte, a multiple of [`nvmf_core::dma::DMA_PAGE`]. Called at most once per region until it is unmapped. An
    /// implementation that accesses the memory from this process keeps a clone of the region.
    ///
    /// # Errors
    /// When there are no addresses or the IOMMU refuses, with what to do about it.
    fn dma_map(&mut self, grant: &DmaGrant) -> Result<u64>;

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

    /// Becomes readable when the function is taken away or is about to be, and stays so. It may be readable at other times too, but
    /// not for longer than until [`PciDevice::is_removed`] is asked.
    fn removal_fd(&self) -> Option<BorrowedFd<'_>> {
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

/// Parts of a BAR as parts of a file.
#[derive(Debug)]
pub struct BarFile {
    /// The file.
    pub file: OwnedFd,
    /// The parts, whole pages.
    pub areas: Vec<BarArea>,
    /// Bytes of the BAR.
    pub len: u64,
    /// Whether the file is memory that is sealed against being cut short, which would end who accesses it with SIGBUS.
    pub sealed: bool,
}

/// A part of a BAR that can be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarArea {
    /// Where it is in the BAR.
    pub offset: u64,
    /// Where it is in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl BarFile {
    /// Whether the first doorbells can be mapped.
    #[must_use]
    pub fn has_doorbells(&self) -> bool {
        let first = DOORBELL_BASE;
        self.areas
            .iter()
            .any(|area| area.offset <= first && first + 8 <= area.offset.saturating_add(area.len))
    }
}

/// Registers, or memory of the function, that are not memory of this process: messages to a server, or calls into an emulation. Called from several threads.
///
/// Offsets are from the start of the BAR and aligned to the access. A function that is gone reads as all ones, as a bus
/// would answer, or as an error.
pub trait BarAccess: Send + Sync {
    /// Bytes of the BAR.
    fn len(&self) -> u64;

    /// Whether there is no BAR.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether registers can be read at all: a secondary process may have the doorbells only.
    fn is_readable(&self) -> bool {
        true
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

    /// Copies whole dwords into memory behind the BAR. They are there before anything is that is written afterwards.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<()> {
        for (at, dword) in (offset..).step_by(4).zip(from.as_chunks::<4>().0) {
            self.write32(at, u32::from_le_bytes(*dword))?;
        }
        Ok(())
    }

    /// Writes a doorbell. Nothing is expected back, so a message-based implementation need not wait.
    ///
    /// # Errors
    /// When the function cannot be reached.
    fn doorbell(&self, offset: u64, value: u32) -> Result<()> {
        self.write32(offset, value)
    }
}

/// A handle of what is behind a BAR, cheap to clone: BAR 0, the registers, or another one, memory of the function.
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

    /// Whether registers can be read at all.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.0.is_readable()
    }

    /// Checks that a register of `size` bytes is there: offsets come from what the function itself says (doorbell stride).
    fn check(&self, offset: u64, size: u64) -> Result<()> {
        if offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len()) {
            return Ok(());
        }
        Err(Error::peer_misbehaved(format!(
            "a register at offset {offset:#x} is needed, but its BAR has {:#x} bytes",
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

    /// Copies whole dwords into memory behind the BAR; they are there before anything is that is written afterwards.
    ///
    /// # Errors
    /// When the function cannot be reached, or the range is not made of dwords or lies outside.
    pub fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<()> {
        let end = offset.checked_add(from.len() as u64);
        let inside = end.is_some_and(|end| end <= self.len());
        if !inside || !offset.is_multiple_of(4) || !from.len().is_multiple_of(4) {
            return Err(Error::api_misuse(format!(
                "{} bytes at {offset:#x} cannot be written to a BAR of {:#x} bytes",
                from.len(),
                self.len()
            )));
        }
        self.0.write_bytes(offset, from)
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
