// UNSAFETY: this module reads and writes memory that somebody else may write at the same moment: a device, or an
// emulated device on another thread. It never makes a reference to such memory other than to atomics; every
// access is an atomic operation, or the processor's write past the caches, on a word that lies, as checked before, inside a mapping kept alive
// by an `Arc`. See docs/safety.md, M1, M6, A1.

//! Access to memory that is shared with a device.
//!
//! * [`SharedMemory`] is the host's side: queue rings and descriptor lists that a device reads and writes at any time.
//! * [`DeviceMemory`] is the device's side: what an emulated function or a vfio-user server in this process may reach,
//!   by I/O virtual address.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use zerocopy::little_endian::U64;

use super::DMA_PAGE;
use super::region::{DmaGrant, DmaRegion, Extent};

/// Orders what was written to shared memory before a register write that tells the device about it.
///
/// A full fence: also what the host reads next stays behind it.
pub fn device_write_barrier() {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Orders what was written with [`SharedMemory::stream_words`] before whatever is written next.
#[inline]
pub fn streamed_write_barrier() {
    // SAFETY: a barrier, which changes nothing a program sees.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("sfence", options(nostack, preserves_flags))
    };
}

/// Writes a word past the caches.
#[cfg(target_arch = "x86_64")]
#[inline]
fn stream(to: &AtomicU64, word: u64) {
    // A write of an aligned word is a single access (Intel SDM Vol. 3A, 9.1.1), also this one; only its order is weaker.
    // SAFETY: `to` is a mapped word that may be written through a shared reference.
    unsafe {
        std::arch::asm!("movnti [{}], {}", in(reg) to.as_ptr(), in(reg) word, options(nostack, preserves_flags))
    };
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(to: &AtomicU64, word: u64) {
    to.store(word, Ordering::Relaxed);
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch_write(at: *const u8) {
    // The intrinsic makes it a prefetch for reading unless the program is built for newer processors; those that do not know
    // the instruction take it for none.
    // SAFETY: a prefetch is a hint that faults at no address and changes nothing a program sees.
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags)) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_write(_at: *const u8) {}

#[cfg(target_arch = "x86_64")]
#[inline]
fn demote(at: *const u8) {
    // Processors that do not know the instruction take it for none (Intel SDM Vol. 2A, CLDEMOTE).
    // SAFETY: a hint that faults at no address and changes nothing a program sees.
    unsafe { std::arch::asm!("cldemote [{}]", in(reg) at, options(nostack, preserves_flags)) };
}

#[cfg(not(target_arch = "x86_64"))]
fn demote(_at: *const u8) {}

// --- raw accesses ------------------------------------------------------------------------------------------------

/// A range of mapped bytes, without any claim to them.
#[derive(Clone, Copy)]
struct Window {
    base: NonNull<u8>,
    len: usize,
}

impl Window {
    /// Address of `size` bytes at `offset`, which is a multiple of `size`.
    ///
    /// # Panics
    /// When they do not lie inside, or are not aligned.
    fn at(self, offset: usize, size: usize) -> *mut u8 {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len);
        assert!(inside, "{size} bytes at {offset:#x} of {:#x} bytes of shared memory", self.len);
        let ptr = self.base.as_ptr().wrapping_add(offset);
        assert!(ptr.addr().is_multiple_of(size), "{size} bytes of shared memory at odd address {ptr:p}");
        ptr
    }

    fn atomic8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` checked that the byte lies inside the mapping, which outlives `self` (the owner of every Window
        // holds what keeps it mapped). All concurrent accesses of this process are atomic (M6, A1).
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    fn atomic16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as atomic8; `at` checked the alignment.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    fn atomic32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as atomic8; `at` checked the alignment.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    fn atomic64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as atomic8; `at` checked the alignment.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Length of the byte-wise start of a copy of `len` bytes at `offset`, after which words are aligned.
    fn head(self, offset: usize, len: usize) -> usize {
        let misaligned = self.base.as_ptr().addr().wrapping_add(offset) % 8;
        if misaligned == 0 { 0 } else { (8 - misaligned).min(len) }
    }

    /// The aligned words of a range that was checked once: copies of more than a few words do not check each of them.
    fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        if count == 0 {
            return &[];
        }
        let bytes = count.saturating_mul(8);
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.len);
        assert!(inside, "{bytes} bytes at {offset:#x} of {:#x} bytes of shared memory", self.len);
        let ptr = self.base.as_ptr().wrapping_add(offset);
        assert!(ptr.addr().is_multiple_of(8), "words of shared memory at odd address {ptr:p}");
        // SAFETY: the words lie inside the mapping, which outlives `self` (see atomic8), and are aligned. An atomic is as long as its
        // integer, and shared references to atomics may coexist with all atomic accesses of others (M6, A1).
        unsafe { std::slice::from_raw_parts(ptr.cast(), count) }
    }

    fn read_bytes(self, mut offset: usize, mut to: &mut [u8]) {
        let (head, rest) = to.split_at_mut(self.head(offset, to.len()));
        for byte in head {
            *byte = self.atomic8(offset).load(Ordering::Relaxed);
            offset += 1;
        }
        to = rest;
        let (words, tail) = to.as_chunks_mut::<8>();
        let from = self.words(offset, words.len());
        offset += 8 * words.len();
        for (to, from) in words.iter_mut().zip(from) {
            *to = from.load(Ordering::Relaxed).to_ne_bytes();
        }
        for byte in tail {
            *byte = self.atomic8(offset).load(Ordering::Relaxed);
            offset += 1;
        }
    }

    fn write_bytes(self, mut offset: usize, from: &[u8]) {
        let (head, rest) = from.split_at(self.head(offset, from.len()));
        for &byte in head {
            self.atomic8(offset).store(byte, Ordering::Relaxed);
            offset += 1;
        }
        let (words, tail) = rest.as_chunks::<8>();
        for (from, to) in words.iter().zip(self.words(offset, words.len())) {
            to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
        }
        offset += 8 * words.len();
        for &byte in tail {
            self.atomic8(offset).store(byte, Ordering::Relaxed);
            offset += 1;
        }
    }
}

// --- the host's side -----------------------------------------------------------------------------------------------

/// Memory a device reads and writes whenever it likes: rings, PRP lists, SGL segments. Numbers are little-endian.
///
/// Made by consuming an [`Extent`], so nobody else in this process has a claim to it. Only copies go in and out; there
/// is never a reference to its bytes.
pub struct SharedMemory {
    window: Window,
    extent: Extent,
}

// SAFETY: it is a range of memory and the Arc that keeps it mapped; all accesses are atomic.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; what several threads do to it at once is what the device does to it anyway.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Zeroed memory of at least `len` bytes, in a region of its own.
    ///
    /// # Errors
    /// As [`DmaRegion::allocate`].
    pub fn allocate(len: usize) -> io::Result<Self> {
        DmaRegion::allocate(len).map(Self::new)
    }

    /// Turns an extent into shared memory.
    #[must_use]
    pub fn new(extent: Extent) -> Self {
        let window = Window { base: extent.base(), len: extent.len() };
        Self { window, extent }
    }

    /// Length, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.window.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.window.len == 0
    }

    /// The piece of a region it is, for mapping.
    #[must_use]
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// The file of memory that is a region of its own, for another process to map, read and write: nobody has references to this
    /// memory anyway. `None` where others have parts of the region, and where there is no file.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        let region = self.extent.region();
        if self.extent.len() == region.len() { region.file() } else { None }
    }

    /// Reads a number.
    ///
    /// # Panics
    /// When it does not lie inside or is not aligned; so do all accessors.
    #[must_use]
    pub fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.window.atomic32(offset).load(Ordering::Relaxed))
    }

    /// Reads a number before everything that follows in the program: a word by which a device hands over what it wrote
    /// before, as the phase tag of a completion queue entry.
    #[must_use]
    pub fn load_acquire_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.window.atomic32(offset).load(Ordering::Acquire))
    }

    /// Reads a 16-bit number.
    #[must_use]
    pub fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.window.atomic16(offset).load(Ordering::Relaxed))
    }

    /// Reads a 64-bit number.
    #[must_use]
    pub fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.window.atomic64(offset).load(Ordering::Relaxed))
    }

    /// Writes a 16-bit number.
    pub fn write_u16(&self, offset: usize, value: u16) {
        self.window.atomic16(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Writes a number.
    pub fn write_u32(&self, offset: usize, value: u32) {
        self.window.atomic32(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Writes a 64-bit number.
    pub fn write_u64(&self, offset: usize, value: u64) {
        self.window.atomic64(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Copies words in, as they are.
    #[inline]
    pub fn write_words<const N: usize>(&self, offset: usize, from: &[U64; N]) {
        for (from, to) in from.iter().zip(self.window.words(offset, N)) {
            to.store(from.get().to_le(), Ordering::Relaxed);
        }
    }

    /// Copies words in, as they are, past the caches: best whole cache lines, which then need not be fetched first. They may become
    /// visible in any order, and later than what is written after them: call [`streamed_write_barrier`] before telling anybody.
    #[inline]
    pub fn stream_words<const N: usize>(&self, offset: usize, from: &[U64; N]) {
        for (from, to) in from.iter().zip(self.window.words(offset, N)) {
            stream(to, from.get().to_le());
        }
    }

    /// Tells the processor that the cache line at `offset` will be written soon. A device that read it last has the line, and
    /// getting it back takes as long as a hundred instructions. Does nothing outside of the memory.
    #[inline]
    pub fn prefetch_write(&self, offset: usize) {
        if offset < self.window.len {
            prefetch_write(self.window.base.as_ptr().wrapping_add(offset));
        }
    }

    /// Tells the processor that the cache line at `offset` was written for somebody else to read: it may move it from this core's own
    /// caches to the one that all share, where another core gets it sooner than out of the first one's. Does nothing outside of the
    /// memory.
    #[inline]
    pub fn demote(&self, offset: usize) {
        if offset < self.window.len {
            demote(self.window.base.as_ptr().wrapping_add(offset));
        }
    }

    /// Copies bytes out. Words may be torn when the device writes meanwhile.
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        self.window.read_bytes(offset, to);
    }

    /// Copies bytes in.
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.window.write_bytes(offset, from);
    }

    /// Memory that another process shares, all of it, to be mapped for a device that the other process uses.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a memfd that is sealed against changes of its length, not made of whole pages, empty, or longer
    /// than `most` bytes; what mmap reports, as for a file that cannot be written.
    pub fn shared_by(file: OwnedFd, most: usize) -> io::Result<Self> {
        DmaRegion::shared_by(File::from(file), most).map(Self::new)
    }

    /// Gives the memory up for good because a device may still access it: it stays mapped, here and for the device, until the
    /// process ends.
    pub fn leak(self) {
        self.extent.leak();
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedMemory").field(&self.extent).finish()
    }
}

// --- the device's side ---------------------------------------------------------------------------------------------

/// What keeps a window of [`DeviceMemory`] mapped.
enum Backing {
    /// A region of this process.
    Region(#[expect(dead_code, reason = "held to keep the memory mapped")] DmaRegion),
    /// Another process's memory, mapped here.
    File(#[expect(dead_code, reason = "held to keep the memory mapped")] Arc<FileMapping>),
}

struct FileMapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range without thread affinity.
unsafe impl Send for FileMapping {}
// SAFETY: as above; it has no method that touches the bytes.
unsafe impl Sync for FileMapping {}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap returned; every Window over it is dropped with or before this Arc.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

struct Mapped {
    window: Window,
    writable: bool,
    _backing: Backing,
}

/// The memory a device emulated in this process may reach, by I/O virtual address (IOVA).
///
/// An access outside of what is mapped is an error, as an IOMMU would make it one. Bytes are copied with atomic accesses;
/// no reference to the host's memory is ever made. Like any device, its owner must touch only memory of commands it
/// holds (docs/safety.md, A1): it takes unsafe code to make one, and a [`DmaGrant`] to map memory of this process.
pub struct DeviceMemory {
    /// By first address; never overlapping.
    maps: BTreeMap<u64, Mapped>,
}

// SAFETY: address ranges and what keeps them mapped; all accesses are atomic.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

/// An access of an emulated device to memory that is not mapped for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} of {len} bytes at bus address {iova:#x}, which are not all mapped for this device", if *.write { "a write" } else { "a read" })]
pub struct DmaFault {
    /// First address of the access.
    pub iova: u64,
    /// Its length, bytes.
    pub len: usize,
    /// Whether it was a write.
    pub write: bool,
}

impl DeviceMemory {
    /// Nothing mapped.
    ///
    /// # Safety
    /// What is mapped later is written only as the commands tell that the device holds at that moment: rings and lists it was told
    /// of, and buffers of commands that it has not completed.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self { maps: BTreeMap::new() }
    }

    /// Maps a region at `iova`. The region stays mapped in this process until it is unmapped here.
    ///
    /// # Errors
    /// `InvalidInput` when the range wraps, `AlreadyExists` when it overlaps another, `Unsupported` for a dma-buf that the processor
    /// cannot access.
    pub fn map_region(&mut self, iova: u64, grant: &DmaGrant) -> io::Result<()> {
        let region = grant.region();
        if region.dma_buf_part().is_some_and(|part| part.refused.is_some()) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an emulated device cannot access a dma-buf that its exporter maps for no program",
            ));
        }
        let window = Window { base: region.base(), len: region.len() };
        self.insert(iova, Mapped { window, writable: true, _backing: Backing::Region(region.clone()) })
    }

    /// Maps `len` bytes of `file` from `offset` on at `iova`: memory another process shares.
    ///
    /// The other process can shorten a file that is not sealed, after which an access ends this process with
    /// SIGBUS; ask for `F_SEAL_SHRINK` where that matters.
    ///
    /// # Errors
    /// `InvalidInput` when offset or length are not whole pages or lie outside of the file, `AlreadyExists` when the range
    /// overlaps another, and what mmap reports.
    pub fn map_file(
        &mut self,
        iova: u64,
        file: OwnedFd,
        offset: u64,
        len: usize,
        writable: bool,
    ) -> io::Result<()> {
        let invalid = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()));
        let file = File::from(file);
        let page = DMA_PAGE as u64;
        if len == 0 || !len.is_multiple_of(DMA_PAGE) || !offset.is_multiple_of(page) {
            return invalid("shared memory that is not made of whole pages");
        }
        let end = offset.checked_add(len as u64).filter(|&end| end <= file.metadata().map_or(0, |m| m.len()));
        let (Some(_), Ok(file_offset)) = (end, libc::off_t::try_from(offset)) else {
            return invalid("shared memory that reaches past the end of its file");
        };
        self.check(iova, len)?;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a fresh shared mapping at an address the kernel chooses; nothing else is affected.
        let ptr = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), file_offset)
        };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(ptr.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        let backing = Backing::File(Arc::new(FileMapping { base, len }));
        self.insert(iova, Mapped { window: Window { base, len }, writable, _backing: backing })
    }

    /// Unmaps what starts at `iova`. Returns whether there was something.
    pub fn unmap(&mut self, iova: u64) -> bool {
        self.maps.remove(&iova).is_some()
    }

    /// Unmaps everything.
    pub fn clear(&mut self) {
        self.maps.clear();
    }

    /// First addresses and lengths of what is mapped, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.maps.iter().map(|(&iova, mapped)| (iova, mapped.window.len))
    }

    /// Copies from the host's memory. The range may span adjacent mappings.
    ///
    /// # Errors
    /// When not all of it is mapped; nothing useful is in `to` then.
    pub fn read(&self, iova: u64, to: &mut [u8]) -> Result<(), DmaFault> {
        let fault = DmaFault { iova, len: to.len(), write: false };
        let mut done = 0;
        while done < to.len() {
            let (window, offset) = self.find(iova, done, false).ok_or(fault)?;
            let n = (window.len - offset).min(to.len() - done);
            window.read_bytes(offset, &mut to[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Copies to the host's memory. The range may span adjacent mappings.
    ///
    /// # Errors
    /// When not all of it is mapped writable; a first part may have been written then.
    pub fn write(&self, iova: u64, from: &[u8]) -> Result<(), DmaFault> {
        let fault = DmaFault { iova, len: from.len(), write: true };
        let mut done = 0;
        while done < from.len() {
            let (window, offset) = self.find(iova, done, true).ok_or(fault)?;
            let n = (window.len - offset).min(from.len() - done);
            window.write_bytes(offset, &from[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Writes a little-endian number after everything written before: how a completion queue entry's last dword, with the
    /// phase tag, is handed over.
    ///
    /// # Errors
    /// When it is not mapped writable, or not aligned.
    pub fn store_release_u32(&self, iova: u64, value: u32) -> Result<(), DmaFault> {
        let (window, offset) = self.find_word(iova, true).ok_or(DmaFault { iova, len: 4, write: true })?;
        window.atomic32(offset).store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// Reads a little-endian number before everything read after.
    ///
    /// # Errors
    /// When it is not mapped, or not aligned.
    pub fn load_acquire_u32(&self, iova: u64) -> Result<u32, DmaFault> {
        let (window, offset) = self.find_word(iova, false).ok_or(DmaFault { iova, len: 4, write: false })?;
        Ok(u32::from_le(window.atomic32(offset).load(Ordering::Acquire)))
    }

    fn find_word(&self, iova: u64, write: bool) -> Option<(Window, usize)> {
        let (window, offset) = self.find(iova, 0, write)?;
        let aligned = window.base.as_ptr().addr().wrapping_add(offset).is_multiple_of(4);
        (aligned && offset.checked_add(4)? <= window.len).then_some((window, offset))
    }

    /// The mapping that holds the byte `skip` after `iova`, and where in it.
    fn find(&self, iova: u64, skip: usize, write: bool) -> Option<(Window, usize)> {
        let iova = iova.checked_add(skip as u64)?;
        let (&first, mapped) = self.maps.range(..=iova).next_back()?;
        let offset = usize::try_from(iova - first).ok()?;
        (offset < mapped.window.len && (mapped.writable || !write)).then_some((mapped.window, offset))
    }

    fn check(&self, iova: u64, len: usize) -> io::Result<()> {
        let Some(last) = iova.checked_add(len as u64 - 1) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a bus address range that wraps"));
        };
        let overlaps = self
            .maps
            .range(..=last)
            .next_back()
            .is_some_and(|(&first, mapped)| first + (mapped.window.len as u64 - 1) >= iova);
        if overlaps {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("bus addresses {iova:#x}..={last:#x} are mapped already"),
            ));
        }
        Ok(())
    }

    fn insert(&mut self, iova: u64, mapped: Mapped) -> io::Result<()> {
        self.check(iova, mapped.window.len)?;
        self.maps.insert(iova, mapped);
        Ok(())
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges().map(|(iova, len)| format!("{iova:#x} + {len:#x}"))).finish()
    }
}

/// For the tests: a device that accesses what it is told to.
#[cfg(test)]
fn test_device() -> DeviceMemory {
    // SAFETY: the tests access what they made themselves and have no references to.
    unsafe { DeviceMemory::new() }
}

/// For the tests: leave to access a region of theirs.
#[cfg(test)]
fn test_grant(region: &DmaRegion) -> DmaGrant {
    // SAFETY: as above.
    unsafe { DmaGrant::new(region) }
}

#[cfg(test)]
mod tests;
