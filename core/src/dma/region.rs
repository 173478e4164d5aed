// UNSAFETY: this module maps memory and turns parts of it into slices. Its safety rests on two rules,
// both enforced by the types below: a mapping lives as long as anything that points into it (`Arc`), and
// two `Extent`s never overlap (an `Extent` is only made from a whole region, once, or by consuming
// another one). See docs/safety.md, invariants M1 and M2.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::DMA_PAGE;

/// Names a region for as long as the process lives; transports key their own mappings by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RegionId(pub u64);

/// A mapping of pinned, shareable memory (a memfd, so that another process can map it as well).
#[derive(Clone)]
pub struct DmaRegion(Arc<Mapping>);

struct Mapping {
    id: RegionId,
    base: NonNull<u8>,
    len: usize,
    memory: Memory,
    /// Extents that exist; once there is none there never will be one again.
    extents: AtomicUsize,
}

enum Memory {
    /// Mapped by this module, shareable through the file.
    Memfd(File),
    /// Part of a dma-buf.
    DmaBuf(DmaBufPart),
    /// Caller's memory; the owner is dropped after the last user.
    Foreign(#[expect(dead_code, reason = "held for its Drop only")] Box<dyn std::any::Any + Send + Sync>),
}

/// The part of a dma-buf that a region is.
pub(super) struct DmaBufPart {
    pub(super) file: File,
    /// Where in the dma-buf it starts, bytes.
    pub(super) offset: u64,
    /// Why it could not be mapped, an errno: there is nothing at its addresses then.
    pub(super) refused: Option<i32>,
}

// SAFETY: a Mapping is an address range and a file; it has no thread affinity. Exclusive access to the
// bytes is the business of Extent.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of Mapping touches the bytes.
unsafe impl Sync for Mapping {}

static NEXT_REGION: AtomicU64 = AtomicU64::new(1);

impl DmaRegion {
    /// Maps a new region of at least `len` bytes (rounded up to whole pages), zeroed, and returns it as one
    /// unique extent.
    ///
    /// # Errors
    /// What memfd_create, ftruncate or mmap report; `InvalidInput` when `len` is zero.
    pub fn allocate(len: usize) -> io::Result<Extent> {
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a DMA region of zero bytes was asked for",
            ));
        }
        let len = len.checked_next_multiple_of(DMA_PAGE).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a DMA region larger than the address space")
        })?;
        // SAFETY: the name is a NUL-terminated literal; the call has no other memory argument.
        let fd =
            unsafe { libc::memfd_create(c"nvmf-dma".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just returned by memfd_create and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        // Whoever the file is passed to must not be able to shorten it: our next access would be a SIGBUS.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a file descriptor and integers; no memory is involved.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let base = map_shared(&file, len, 0, libc::MAP_POPULATE)?;
        Ok(Self::whole(base, len, Memory::Memfd(file)))
    }

    /// Registers memory the caller owns, so that buffers cut from it can be used for I/O without a copy.
    ///
    /// `owner` is dropped once the last buffer cut from the region is gone.
    ///
    /// # Safety
    /// `base` must point to `len` bytes, readable and writable, aligned to [`DMA_PAGE`], that stay mapped
    /// until `owner` is dropped and are accessed by nobody but through the returned extent until then.
    ///
    /// # Errors
    /// `InvalidInput` when the address or the length is not a multiple of [`DMA_PAGE`], or is zero.
    pub unsafe fn register(
        base: NonNull<u8>,
        len: usize,
        owner: Box<dyn std::any::Any + Send + Sync>,
    ) -> io::Result<Extent> {
        if len == 0 || !len.is_multiple_of(DMA_PAGE) || !base.addr().get().is_multiple_of(DMA_PAGE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("memory at {base:p}, {len} bytes, is not made of whole {DMA_PAGE}-byte pages"),
            ));
        }
        Ok(Self::whole(base, len, Memory::Foreign(owner)))
    }

    /// Maps memory that another process shares, all of it: for a device that the other process uses. It is neither touched nor
    /// allocated by that.
    ///
    /// # Errors
    /// `InvalidInput` when it is not sealed against changes of its length, not made of whole pages, empty, or longer than `most`
    /// bytes; what mmap reports, as for a file that cannot be written.
    pub(super) fn shared_by(file: File, most: usize) -> io::Result<Extent> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        // SAFETY: a file descriptor and integers; no memory is involved.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        if seals < 0 || seals & wanted != wanted {
            return refuse("shared memory whose length can change: it is not sealed".to_owned());
        }
        let bytes = file.metadata()?.len();
        let len = usize::try_from(bytes).ok().filter(|&len| len <= most);
        let Some(len) = len.filter(|&len| len > 0 && len.is_multiple_of(DMA_PAGE)) else {
            return refuse(format!(
                "{bytes} bytes of shared memory, which are not whole pages of {DMA_PAGE}, or more than {most}"
            ));
        };
        let base = map_shared(&file, len, 0, 0)?;
        Ok(Self::whole(base, len, Memory::Memfd(file)))
    }

    /// A region of a dma-buf. `base` is what mmap returned for `len` bytes.
    pub(super) fn of_dma_buf(base: NonNull<u8>, len: usize, part: DmaBufPart) -> Extent {
        Self::whole(base, len, Memory::DmaBuf(part))
    }

    fn whole(base: NonNull<u8>, len: usize, memory: Memory) -> Extent {
        let id = RegionId(NEXT_REGION.fetch_add(1, Ordering::Relaxed));
        let extents = AtomicUsize::new(1);
        Extent { region: Self(Arc::new(Mapping { id, base, len, memory, extents })), offset: 0, len }
    }

    /// The region's name.
    #[inline]
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.0.id
    }

    /// Length in bytes, a multiple of [`DMA_PAGE`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Never true: a region holds at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Address of the first byte in this process, for registration with a device.
    #[must_use]
    pub fn address(&self) -> usize {
        self.0.base.addr().get()
    }

    /// The dma-buf the region is a part of, and where in it the region starts, bytes; `None` for other memory.
    #[must_use]
    pub fn dma_buf(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.dma_buf_part().map(|part| (part.file.as_fd(), part.offset))
    }

    pub(super) fn dma_buf_part(&self) -> Option<&DmaBufPart> {
        match &self.0.memory {
            Memory::DmaBuf(part) => Some(part),
            Memory::Memfd(_) | Memory::Foreign(_) => None,
        }
    }

    /// The file behind the region; none for registered memory and dma-bufs. Whoever has it can write to the region: see
    /// [`DmaGrant::file`].
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.memory {
            Memory::Memfd(file) => Some(file.as_fd()),
            Memory::DmaBuf(_) | Memory::Foreign(_) => None,
        }
    }

    /// Whether any piece of it still belongs to somebody. Once not, it never will again: a device's mapping of it can go.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.0.extents.load(Ordering::Acquire) > 0
    }

    /// First byte, for raw accesses by the neighbouring module.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.0.base
    }

    /// Leaks the mapping: it stays mapped in this process until the process ends. For memory a device may still write and that
    /// it can no longer be kept from. Pieces of it are leaked with [`Extent::leak`].
    pub fn leak(&self) {
        std::mem::forget(Arc::clone(&self.0));
    }
}

/// Maps a file from `offset` on for reading and writing.
pub(super) fn map_shared(file: &File, len: usize, offset: u64, flags: i32) -> io::Result<NonNull<u8>> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | flags);
    // SAFETY: a fresh shared mapping at an address the kernel chooses; nothing else is affected.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), offset) };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(ptr.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegion({}, {:p}, {} bytes)", self.0.id.0, self.0.base, self.0.len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if matches!(self.memory, Memory::Memfd(_) | Memory::DmaBuf(_)) {
            // SAFETY: base and len are what mmap returned for this mapping; no Extent is left, each holds an Arc.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

/// Leave for a device to read and write a region (docs/safety.md, A1).
///
/// Safe code can pass it on, but not make one: what a device may write to at any time, nobody may have references to.
#[derive(Clone, Debug)]
pub struct DmaGrant(DmaRegion);

impl DmaGrant {
    /// Leave to read and write `region`.
    ///
    /// # Safety
    /// Until the device has forgotten the region, bus addresses in it are told to the device only for memory that nobody has
    /// references to: [`super::SharedMemory`], and buffers of commands that are in flight, until they complete or their queue is
    /// quiesced.
    #[must_use]
    pub unsafe fn new(region: &DmaRegion) -> Self {
        Self(region.clone())
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &DmaRegion {
        &self.0
    }

    /// The file behind the region, for a device in another process; none for registered memory.
    ///
    /// # Safety
    /// Whoever gets the file accesses the memory only as a device does: what commands it holds tell it to.
    #[must_use]
    pub unsafe fn file(&self) -> Option<BorrowedFd<'_>> {
        self.0.file()
    }
}

/// A unique piece of a region: no other extent overlaps it.
pub struct Extent {
    region: DmaRegion,
    offset: usize,
    len: usize,
}

impl Extent {
    /// The region it is a piece of.
    #[inline]
    #[must_use]
    pub fn region(&self) -> &DmaRegion {
        &self.region
    }

    /// Where it starts in the region, bytes.
    #[inline]
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts it in two, the first `mid` bytes and the rest. `None` and nothing lost but the extent's name when
    /// `mid` is past the end.
    ///
    /// # Errors
    /// The extent itself when `mid` is greater than its length.
    pub fn split_at(mut self, mid: usize) -> Result<(Self, Self), Self> {
        if mid > self.len {
            return Err(self);
        }
        self.region.0.extents.fetch_add(1, Ordering::Relaxed);
        let right = Self { region: self.region.clone(), offset: self.offset + mid, len: self.len - mid };
        self.len = mid;
        Ok((self, right))
    }

    /// Gives it up for good because a device may still write to it: its region stays in use, so that it is unmapped neither here nor
    /// for the device, and its bus addresses are not given to others.
    pub fn leak(self) {
        std::mem::forget(self);
    }

    /// First byte, for raw accesses by the neighbouring module.
    pub(super) fn base(&self) -> NonNull<u8> {
        // SAFETY: the offset lies inside the mapping or at its end (by construction and split_at).
        unsafe { self.region.0.base.add(self.offset) }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: offset + len lie inside the mapping (by construction and split_at) and the Arc in `region`
        // keeps it mapped. The extent is unique (M2), so a shared borrow of it excludes writers in this process.
        unsafe { std::slice::from_raw_parts(self.region.0.base.as_ptr().wrapping_add(self.offset), self.len) }
    }

    /// The bytes, writable.
    #[inline]
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in as_slice; `&mut self` of a unique extent excludes every other access in this process.
        unsafe {
            std::slice::from_raw_parts_mut(self.region.0.base.as_ptr().wrapping_add(self.offset), self.len)
        }
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.region.0.extents.fetch_sub(1, Ordering::Release);
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extent({:?} + {:#x}, {} bytes)", self.region, self.offset, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_a_region_do_not_overlap_and_keep_it_mapped() {
        let whole = DmaRegion::allocate(3 * DMA_PAGE - 1).unwrap();
        assert_eq!(whole.len(), 3 * DMA_PAGE);
        let (mut a, b) = whole.split_at(DMA_PAGE).unwrap();
        a.as_mut_slice().fill(0xaa);
        assert!(b.as_slice().iter().all(|&x| x == 0));
        let region = a.region().clone();
        drop(a);
        assert!(region.in_use());
        drop(b);
        assert!(!region.in_use());
        assert_eq!(region.len(), 3 * DMA_PAGE);
        assert!(region.file().is_some());
    }

    #[test]
    fn split_past_the_end_returns_the_extent() {
        let e = DmaRegion::allocate(1).unwrap();
        let e = e.split_at(DMA_PAGE + 1).unwrap_err();
        assert_eq!(e.len(), DMA_PAGE);
    }

    #[test]
    fn registered_memory_drops_its_owner_last() {
        struct Owner(Box<[u8]>, Arc<AtomicU64>);
        impl Drop for Owner {
            fn drop(&mut self) {
                self.1.store(self.0.len() as u64, Ordering::SeqCst);
            }
        }
        let dropped = Arc::new(AtomicU64::new(0));
        let mut memory = vec![0u8; 3 * DMA_PAGE].into_boxed_slice();
        let skip = memory.as_ptr().align_offset(DMA_PAGE);
        let base = NonNull::new(memory.as_mut_ptr().wrapping_add(skip)).unwrap();
        let owner = Owner(memory, Arc::clone(&dropped));
        // SAFETY: two whole pages inside a box that the owner keeps; nothing else touches it.
        let extent = unsafe { DmaRegion::register(base, 2 * DMA_PAGE, Box::new(owner)) }.unwrap();
        assert!(extent.region().file().is_none());
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        drop(extent);
        assert_eq!(dropped.load(Ordering::SeqCst), 3 * DMA_PAGE as u64);
    }

    #[test]
    fn a_leaked_piece_keeps_its_region_in_use() {
        let region = {
            let extent = DmaRegion::allocate(1).unwrap();
            let region = extent.region().clone();
            extent.leak();
            region
        };
        assert!(region.in_use());
    }

    /// A memfd of so many bytes with these seals.
    fn memfd(len: u64, seals: i32) -> File {
        // SAFETY: the name is a NUL-terminated literal; the call has no other memory argument.
        let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        // SAFETY: fd was just returned by memfd_create and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        // SAFETY: a file descriptor and integers; no memory is involved.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) }, 0);
        file
    }

    #[test]
    fn memory_of_others_is_taken_only_whole_sealed_and_within_limits() {
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        let most = 4 * DMA_PAGE;
        for (len, seals) in [
            (DMA_PAGE, 0),
            (DMA_PAGE, libc::F_SEAL_SHRINK),
            (DMA_PAGE, libc::F_SEAL_GROW),
            (0, seals),
            (DMA_PAGE - 1, seals),
            (most + DMA_PAGE, seals),
        ] {
            let error = DmaRegion::shared_by(memfd(len as u64, seals), most).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len} bytes, seals {seals}");
        }
        assert!(DmaRegion::shared_by(memfd(4096, seals | libc::F_SEAL_WRITE), most).is_err());
        assert!(DmaRegion::shared_by(File::open("/dev/zero").unwrap(), most).is_err());
        let ours = DmaRegion::allocate(most).unwrap();
        let file = ours.region().file().unwrap().try_clone_to_owned().unwrap();
        let extent = DmaRegion::shared_by(File::from(file), most).unwrap();
        assert_eq!(extent.len(), most);
        assert_ne!(extent.region().id(), ours.region().id());
    }

    #[test]
    fn zero_length_is_refused() {
        assert_eq!(DmaRegion::allocate(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
