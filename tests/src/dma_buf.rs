// UNSAFETY: the system calls that make dma-bufs, and the word that nobody else writes to those made here. See docs/safety.md, M11.

//! Dma-bufs without a device: memory of `/dev/udmabuf` and of a DMA heap.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nvmf_core::DmaPool;
use nvmf_core::dma::{DeviceBuf, DmaBuf, DmaBufError};

/// `UDMABUF_CREATE`: `_IOW('u', 0x42, struct udmabuf_create)`.
const UDMABUF_CREATE: u32 = 0x4018_7542;
/// `DMA_HEAP_IOCTL_ALLOC`: `_IOWR('H', 0, struct dma_heap_allocation_data)`.
const DMA_HEAP_ALLOC: u32 = 0xc018_4800;

/// `struct udmabuf_create`.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `struct dma_heap_allocation_data`.
#[repr(C)]
struct Allocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

const _: () = assert!(size_of::<Create>() == 24 && size_of::<Allocation>() == 24);

fn made(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: just made for us by the kernel; nobody else owns it.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// A memfd of `len` bytes, and a dma-buf of the same memory: what is written to the file is in the dma-buf.
///
/// # Errors
/// `NotFound` where the kernel has no `/dev/udmabuf`; what it says otherwise.
pub fn udmabuf(len: usize) -> io::Result<(File, OwnedFd)> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/udmabuf")?;
    // SAFETY: the name ends in NUL; the call has no other memory argument.
    let memory = made(unsafe {
        libc::memfd_create(c"udmabuf".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })?;
    let memory = File::from(memory);
    memory.set_len(len as u64)?;
    // SAFETY: a file descriptor and integers; no memory is involved.
    if unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let create = Create { memfd: memory.as_raw_fd() as u32, flags: 1, offset: 0, size: len as u64 };
    // SAFETY: the structure is that of the request, and lives for the call.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE.into(), &raw const create) };
    Ok((memory, made(fd)?))
}

/// A dma-buf of `len` bytes of the system's heap, which its file descriptor may write to or not.
///
/// # Errors
/// `NotFound` where the kernel has no such heap; what it says otherwise.
pub fn system_heap(len: usize, writable: bool) -> io::Result<OwnedFd> {
    let heap = File::open("/dev/dma_heap/system")?;
    let access = if writable { libc::O_RDWR } else { libc::O_RDONLY };
    let mut wanted =
        Allocation { len: len as u64, fd: 0, fd_flags: (access | libc::O_CLOEXEC) as u32, heap_flags: 0 };
    // SAFETY: the structure is that of the request, and lives for the call.
    if unsafe { libc::ioctl(heap.as_raw_fd(), DMA_HEAP_ALLOC.into(), &raw mut wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    made(wanted.fd as i32)
}

/// Opens memory of a dma-buf made here to the processor.
///
/// # Errors
/// As [`DeviceBuf::begin_cpu_access`].
pub fn begin(buf: DeviceBuf, pool: &DmaPool) -> Result<DmaBuf, DmaBufError> {
    // SAFETY: no device has these dma-bufs but controllers that were given them with commands, and the tests write to a memfd only while
    // its memory is not open.
    unsafe { buf.begin_cpu_access(pool) }.map_err(|(error, _)| error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nvmf_core::{DmaRegion, IoBuf};

    use super::*;

    #[test]
    fn what_is_written_through_the_processor_is_in_the_dma_buf() {
        let (memory, fd) = match udmabuf(1 << 20) {
            Ok(made) => made,
            Err(error) => return eprintln!("skipped: /dev/udmabuf: {error} (the VM lab runs this: dma_buf)"),
        };
        let made = |offset, len| DmaRegion::from_dma_buf(fd.try_clone().unwrap(), offset, len);
        assert!(matches!(made(4096, 1 << 20), Err(DmaBufError::Range { size: 0x10_0000, .. })));
        assert!(matches!(made(0, 512), Err(DmaBufError::Range { .. })));
        memory.write_all_at(b"before", 8192).unwrap();
        let pool = DmaPool::new();
        let mut open = begin(made(8192, 4096).unwrap(), &pool).unwrap();
        assert_eq!(&open[..6], b"before");
        open[..6].copy_from_slice(b"after.");
        let buf = open.end_cpu_access().map_err(|(error, _)| error).unwrap();
        let mut found = [0; 6];
        memory.read_exact_at(&mut found, 8192).unwrap();
        assert_eq!(&found, b"after.");
        assert_eq!((IoBuf::from(buf).chunk(0).len(), pool.stats().outstanding), (0, 0));
    }
}
