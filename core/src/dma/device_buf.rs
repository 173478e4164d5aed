// UNSAFETY: this module maps dma-bufs and hands parts of them to the processor for a time. A dma-buf is memory that others have as
// well; there is a reference to it only between `begin_cpu_access`, whose caller promises that nobody else writes to it, and
// `end_cpu_access`. See docs/safety.md, M1, M2 and M11.

//! Memory of a dma-buf: of a GPU, of another device, or of a process that shares it so.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use super::DMA_PAGE;
use super::pool::{DmaBuf, DmaPool, DmaSegment};
use super::region::{DmaBufPart, DmaRegion, Extent, map_shared};
use crate::error::Error;

/// How long devices are waited for that have announced to be using the memory.
const FENCES: Duration = Duration::from_secs(10);
/// How often a call is made again that the kernel did not carry out.
const ATTEMPTS: u32 = 100;

/// `DMA_BUF_MAGIC`: the file system of dma-bufs.
const MAGIC: u32 = 0x444d_4142;
/// `DMA_BUF_IOCTL_SYNC`: `_IOW('b', 0, struct dma_buf_sync)`.
const SYNC: u32 = 0x4008_6200;
const SYNC_RW: u64 = 3;
const SYNC_END: u64 = 4;

/// Why memory of a dma-buf cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaBufError {
    /// It is some other file.
    #[error("the file descriptor is not that of a dma-buf")]
    NotADmaBuf,
    /// It is open for reading only.
    #[error("the dma-buf is open for reading only, and controllers write to memory; export it with O_RDWR")]
    ReadOnly,
    /// The part is not inside, or not made of whole pages.
    #[error(
        "{len} bytes at {offset} are no whole pages of {DMA_PAGE} bytes inside of the dma-buf, which has {size}"
    )]
    Range {
        /// Where it was to start, bytes.
        offset: u64,
        /// Its length, bytes.
        len: usize,
        /// Length of the dma-buf, bytes.
        size: u64,
    },
    /// It cannot be mapped into this process.
    #[error("the processor cannot access this dma-buf, because its exporter maps it for no program ({0})")]
    NotMappable(io::Error),
    /// A device has been using it for too long.
    #[error("a device is still using the dma-buf after {FENCES:?}")]
    Busy,
    /// It is no memory of a dma-buf.
    #[error("the buffer is ordinary memory, not that of a dma-buf")]
    Ordinary,
    /// What the operating system says.
    #[error("{what}: {error}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What it said.
        #[source]
        error: io::Error,
    },
}

impl From<DmaBufError> for Error {
    fn from(error: DmaBufError) -> Self {
        match error {
            DmaBufError::NotMappable(_) => Self::unsupported(error.to_string())
                .hint("use a transport that does not copy (RDMA, PCIe), or ordinary memory (DmaPool)"),
            DmaBufError::System { what, error } => Self::from(error).doing(what),
            other => Self::api_misuse(other.to_string()),
        }
    }
}

impl DmaRegion {
    /// Makes a region of `len` bytes of a dma-buf from `offset` on, both in whole pages, for transports whose device moves the
    /// data itself.
    ///
    /// The processor does not access it but between [`DeviceBuf::begin_cpu_access`] and [`DmaBuf::end_cpu_access`]. An exporter that
    /// maps its memory for no program is no obstacle until then. Whoever else has the dma-buf may access it at any time;
    /// that it is not while a command reads or writes it is the program's business, and no error if it happens but mixed data.
    ///
    /// # Errors
    /// When it is not a dma-buf, may not be written, or the part is not inside of it.
    pub fn from_dma_buf(fd: OwnedFd, offset: u64, len: usize) -> Result<DeviceBuf, DmaBufError> {
        let file = File::from(fd);
        if !is_dma_buf(&file)? {
            return Err(DmaBufError::NotADmaBuf);
        }
        // SAFETY: a file descriptor and an integer; no memory is involved.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(system("looking at the dma-buf"));
        }
        if flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(DmaBufError::ReadOnly);
        }
        // A dma-buf never changes its length.
        // SAFETY: a file descriptor and integers; no memory is involved.
        let size = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
        let size = u64::try_from(size).map_err(|_| system("asking for the length of the dma-buf"))?;
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= size);
        let pages = len.is_multiple_of(DMA_PAGE) && offset.is_multiple_of(DMA_PAGE as u64);
        if len == 0 || !inside || !pages {
            return Err(DmaBufError::Range { offset, len, size });
        }
        let (base, refused) = match map_shared(&file, len, offset, 0) {
            Ok(base) => (base, None),
            Err(error) => (set_aside(len)?, Some(error.raw_os_error().unwrap_or(libc::EINVAL))),
        };
        Ok(DeviceBuf { extent: Self::of_dma_buf(base, len, DmaBufPart { file, offset, refused }), len })
    }
}

/// Memory of a dma-buf, for devices: its bytes cannot be reached from here. Given to a queue pair as an [`super::IoBuf`].
///
/// Made by [`DmaRegion::from_dma_buf`]. Unique as a [`DmaBuf`] is; the mappings and registrations that transports make of it end when
/// all pieces of its region are gone.
pub struct DeviceBuf {
    extent: Extent,
    len: usize,
}

impl DeviceBuf {
    /// Memory of a memfd that takes a dma-buf's place, and the file: for simulated devices and tests. No real device takes it.
    ///
    /// # Errors
    /// As [`DmaRegion::allocate`].
    #[doc(hidden)]
    pub fn simulated(len: usize) -> io::Result<(Self, File)> {
        let model = DmaRegion::allocate(len)?;
        let len = model.len();
        let file = model.region().file().ok_or(io::ErrorKind::Unsupported)?.try_clone_to_owned()?;
        let file = File::from(file);
        let base = map_shared(&file, len, 0, 0)?;
        let part = DmaBufPart { file: file.try_clone()?, offset: 0, refused: None };
        Ok((Self { extent: DmaRegion::of_dma_buf(base, len, part), len }, file))
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

    /// The length it can grow to, bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.extent.len()
    }

    /// Sets the length.
    ///
    /// # Panics
    /// When `len` is above [`DeviceBuf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} above the buffer's capacity {}", self.capacity());
        self.len = len;
    }

    /// The region it is a piece of.
    #[must_use]
    pub fn region(&self) -> &DmaRegion {
        self.extent.region()
    }

    /// Cuts it in two, the first `mid` bytes and the rest up to its capacity.
    ///
    /// # Errors
    /// The buffer itself when `mid` is above [`DeviceBuf::capacity`].
    pub fn split_at(self, mid: usize) -> Result<(Self, Self), Self> {
        let Self { extent, len } = self;
        match extent.split_at(mid) {
            Ok((left, right)) => {
                let (left, right) = [left, right].map(|extent| Self { len: extent.len(), extent }).into();
                Ok((left, right))
            }
            Err(extent) => Err(Self { extent, len }),
        }
    }

    pub(super) fn segment(&self, offset: usize) -> Option<DmaSegment<'_>> {
        let len = self.len.checked_sub(offset).filter(|&len| len > 0)?;
        Some(DmaSegment { region: self.extent.region(), offset: self.extent.offset() + offset, len })
    }

    /// Gives the memory up for good; see [`DmaBuf::leak`].
    pub fn leak(self) {
        self.extent.leak();
    }

    /// Opens the memory to the processor, so that the program can look at it, and transports that copy can use it. Waits up to ten
    /// seconds for what devices have announced to be doing with it.
    ///
    /// # Safety
    /// Until [`DmaBuf::end_cpu_access`], or until the buffer is dropped, nobody else writes to these bytes: neither a device nor a
    /// process, nor this program in another way, be it through a second region of the same dma-buf.
    ///
    /// # Errors
    /// The buffer, and why: the exporter maps its memory for no program, or a device goes on using it.
    pub unsafe fn begin_cpu_access(self, pool: &DmaPool) -> Result<DmaBuf, (DmaBufError, Self)> {
        let begun = match self.extent.region().dma_buf_part() {
            None => Err(DmaBufError::Ordinary),
            Some(DmaBufPart { refused: Some(errno), .. }) => {
                Err(DmaBufError::NotMappable(io::Error::from_raw_os_error(*errno)))
            }
            Some(part) => wait_for_devices(&part.file).and_then(|()| sync(&part.file, SYNC_RW)),
        };
        match begun {
            Ok(()) => {
                let mut buf = pool.adopt(self.extent);
                buf.set_len(self.len);
                Ok(buf)
            }
            Err(error) => Err((error, self)),
        }
    }
}

impl DmaBuf {
    /// Takes memory of a dma-buf back from the processor, for devices.
    ///
    /// # Errors
    /// The buffer, and why: it is ordinary memory, or the exporter could not do it.
    pub fn end_cpu_access(self) -> Result<DeviceBuf, (DmaBufError, Self)> {
        let part = self.extent().and_then(|extent| extent.region().dma_buf_part());
        let ended = part.ok_or(DmaBufError::Ordinary).and_then(|part| sync(&part.file, SYNC_RW | SYNC_END));
        let len = self.len();
        match ended {
            Err(error) => Err((error, self)),
            Ok(()) => self
                .into_extent()
                .map(|extent| DeviceBuf { extent, len })
                .map_err(|buf| (DmaBufError::Ordinary, buf)),
        }
    }
}

impl fmt::Debug for DeviceBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuf({} bytes)", self.len)
    }
}

/// What the operating system has just said.
fn system(what: &'static str) -> DmaBufError {
    DmaBufError::System { what, error: io::Error::last_os_error() }
}

/// Whether a file is on the file system of dma-bufs. Asking does nothing to any file.
fn is_dma_buf(file: &File) -> Result<bool, DmaBufError> {
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the structure is written within the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) } < 0 {
        return Err(system("looking at the file system of the dma-buf"));
    }
    // SAFETY: the call has filled it.
    Ok(unsafe { about.assume_init() }.f_type as u32 == MAGIC)
}

/// Addresses behind which there is nothing: for memory that cannot be mapped, which has a place in the address space all the same, by
/// which devices are told of it.
fn set_aside(len: usize) -> Result<NonNull<u8>, DmaBufError> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address the kernel chooses; nothing else is affected.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    match NonNull::new(ptr.cast::<u8>()) {
        Some(base) if ptr != libc::MAP_FAILED => Ok(base),
        _ => Err(system("setting addresses aside for the dma-buf")),
    }
}

/// Waits until no device has announced to be using the memory.
fn wait_for_devices(file: &File) -> Result<(), DmaBufError> {
    let mut waited = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    for _ in 0..ATTEMPTS {
        // SAFETY: one structure, which lives for the call.
        match unsafe { libc::poll(&raw mut waited, 1, FENCES.as_millis() as i32) } {
            0 => return Err(DmaBufError::Busy),
            1.. => return Ok(()),
            _ => {}
        }
    }
    Err(system("waiting for the devices of the dma-buf"))
}

/// A buffer is dropped: it is not open to the processor any more.
#[inline(never)]
pub(super) fn end_of_buffer(extent: &Extent) {
    if let Some(part) = extent.region().dma_buf_part()
        && let Err(error) = sync(&part.file, SYNC_RW | SYNC_END)
    {
        tracing::warn!(%error, "memory that was dropped");
    }
}

/// Brackets accesses of the processor, as the kernel's documentation of dma-bufs wants it.
fn sync(file: &File, flags: u64) -> Result<(), DmaBufError> {
    for _ in 0..ATTEMPTS {
        // SAFETY: a dma-buf, and a structure of one 64-bit word that lives for the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), SYNC.into(), &raw const flags) } == 0 {
            return Ok(());
        }
        let errno = io::Error::last_os_error().raw_os_error();
        if !matches!(errno, Some(libc::EINTR | libc::EAGAIN)) {
            break;
        }
    }
    Err(system("handing the dma-buf over between processor and devices (DMA_BUF_IOCTL_SYNC)"))
}

/// For the tests: opens memory of theirs.
#[cfg(test)]
fn test_begin(buf: DeviceBuf, pool: &DmaPool) -> Result<DmaBuf, (DmaBufError, DeviceBuf)> {
    // SAFETY: nobody else has the memory that the tests make.
    unsafe { buf.begin_cpu_access(pool) }
}

#[cfg(test)]
mod tests;
