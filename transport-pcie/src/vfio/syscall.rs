// UNSAFETY: the ioctls of VFIO. Each wrapper passes a structure of the size its ioctl takes and nothing that outlives the call,
// with one exception: `map_dma` hands memory to a device, and rests on its caller to keep that memory until it is unmapped.
// See docs/safety.md, M9.

//! VFIO's system calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nvmf_core::DmaRegion;
use vfio_bindings::bindings::vfio;

/// `_IO(';', 100 + number)`.
const fn request(number: u32) -> libc::c_ulong {
    ((vfio::VFIO_TYPE as u32) << 8 | (vfio::VFIO_BASE + number)) as libc::c_ulong
}

const GET_API_VERSION: libc::c_ulong = request(0);
const CHECK_EXTENSION: libc::c_ulong = request(1);
const SET_IOMMU: libc::c_ulong = request(2);
const GROUP_GET_STATUS: libc::c_ulong = request(3);
const GROUP_SET_CONTAINER: libc::c_ulong = request(4);
const GROUP_GET_DEVICE_FD: libc::c_ulong = request(6);
const DEVICE_GET_INFO: libc::c_ulong = request(7);
const DEVICE_GET_REGION_INFO: libc::c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: libc::c_ulong = request(9);
const DEVICE_SET_IRQS: libc::c_ulong = request(10);
const DEVICE_RESET: libc::c_ulong = request(11);
const IOMMU_GET_INFO: libc::c_ulong = request(12);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);

/// Bytes of an answer with capabilities that are worth having room for; VFIO's are far below.
const MAX_ANSWER: usize = 1 << 20;

fn checked(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// An ioctl whose argument is a number.
fn with_number(fd: BorrowedFd<'_>, request: libc::c_ulong, number: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: the requests of this module that are passed here take a number (or nothing); no memory is involved.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, number) })
}

/// An ioctl whose argument is a structure that begins with its own size (`argsz`, or `size` with iommufd).
fn with_struct<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: the kernel reads and writes at most the `argsz` bytes that the structure begins with, which the callers in this
    // module set to the size of T; all of T's fields are plain numbers.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) }).map(drop)
}

/// An ioctl that answers with a structure and capabilities behind it. `words` begins with the structure, argsz first; it grows to
/// what the kernel asks for.
fn with_capabilities(fd: BorrowedFd<'_>, request: libc::c_ulong, mut words: Vec<u64>) -> io::Result<Vec<u8>> {
    let question = words.clone();
    loop {
        let bytes = words.len() * 8;
        set_argsz(&mut words, bytes as u32);
        // SAFETY: the kernel reads and writes at most `argsz` bytes, which the buffer has, aligned for 64-bit numbers.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, words.as_mut_ptr()) })?;
        let wanted = words.first().map_or(0, |&word| u32::from_ne_bytes(first_half(word))) as usize;
        if wanted <= bytes {
            return Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect());
        }
        if wanted > MAX_ANSWER {
            return Err(io::Error::other(format!("VFIO wants to answer with {wanted} bytes")));
        }
        words.clone_from(&question);
        words.resize(wanted.div_ceil(8), 0);
    }
}

fn first_half(word: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    [a, b, c, d]
}

fn set_argsz(words: &mut [u64], argsz: u32) {
    if let Some(first) = words.first_mut() {
        let [a, b, c, d] = argsz.to_ne_bytes();
        let [_, _, _, _, e, f, g, h] = first.to_ne_bytes();
        *first = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    }
}

// --- iommufd -----------------------------------------------------------------------------------------------------------

/// Most address ranges that are asked for; an IOMMU has a handful.
const MAX_RANGES: u32 = 4096;

/// `_IO(';', 0x80 + number)`.
const fn iommufd_request(number: u32) -> libc::c_ulong {
    ((vfio::VFIO_TYPE as u32) << 8 | (0x80 + number)) as libc::c_ulong
}

const DEVICE_BIND_IOMMUFD: libc::c_ulong = request(18);
const DEVICE_ATTACH_IOMMUFD_PT: libc::c_ulong = request(19);
const IOAS_ALLOC: libc::c_ulong = iommufd_request(1);
const IOAS_IOVA_RANGES: libc::c_ulong = iommufd_request(4);
const IOAS_MAP: libc::c_ulong = iommufd_request(5);
const IOAS_UNMAP: libc::c_ulong = iommufd_request(6);

/// IOAS_MAP: the address is ours to choose; the device may write, and read.
const MAP_FIXED_WRITE_READ: u32 = 1 << 0 | 1 << 1 | 1 << 2;

/// The structures begin with their own size. Those of VFIO may be shorter than the kernel's: what was added later is left out.
#[repr(C)]
struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

#[repr(C)]
struct AttachIommufdPt {
    argsz: u32,
    flags: u32,
    pt_id: u32,
}

#[repr(C)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

const _: () = {
    assert!(size_of::<BindIommufd>() == 16 && size_of::<AttachIommufdPt>() == 12);
    assert!(size_of::<IoasAlloc>() == 12 && size_of::<IoasIovaRanges>() == 32);
    assert!(size_of::<IoasMap>() == 40 && size_of::<IoasUnmap>() == 24);
    assert!(std::mem::offset_of!(BindIommufd, iommufd) == 8);
    assert!(std::mem::offset_of!(AttachIommufdPt, pt_id) == 8);
    assert!(std::mem::offset_of!(IoasAlloc, out_ioas_id) == 8);
    assert!(std::mem::offset_of!(IoasIovaRanges, allowed_iovas) == 16);
    assert!(std::mem::offset_of!(IoasIovaRanges, out_iova_alignment) == 24);
    assert!(std::mem::offset_of!(IoasMap, user_va) == 16);
    assert!(std::mem::offset_of!(IoasMap, iova) == 32);
    assert!(std::mem::offset_of!(IoasUnmap, iova) == 8);
    assert!(std::mem::offset_of!(IoasUnmap, length) == 16);
};

/// Binds a device, through its own file, to an iommufd.
pub(super) fn bind_iommufd(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> io::Result<()> {
    let mut bind =
        BindIommufd { argsz: size::<BindIommufd>(), flags: 0, iommufd: iommufd.as_raw_fd(), out_devid: 0 };
    with_struct(device, DEVICE_BIND_IOMMUFD, &mut bind)
}

/// Makes an I/O address space; returns its identifier.
pub(super) fn ioas_alloc(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut alloc = IoasAlloc { size: size::<IoasAlloc>(), flags: 0, out_ioas_id: 0 };
    with_struct(iommufd, IOAS_ALLOC, &mut alloc)?;
    Ok(alloc.out_ioas_id)
}

/// Lets a device reach what is mapped in an I/O address space, and nothing else.
pub(super) fn attach_ioas(device: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut attach = AttachIommufdPt { argsz: size::<AttachIommufdPt>(), flags: 0, pt_id: ioas };
    with_struct(device, DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
}

/// First and last address of each range that can be mapped, and what addresses have to be multiples of.
pub(super) fn ioas_ranges(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let mut room: u32 = 16;
    loop {
        let mut ranges = vec![[0u64; 2]; room as usize];
        let mut ask = IoasIovaRanges {
            size: size::<IoasIovaRanges>(),
            ioas_id: ioas,
            num_iovas: room,
            reserved: 0,
            allowed_iovas: ranges.as_mut_ptr() as u64,
            out_iova_alignment: 0,
        };
        // SAFETY: the kernel reads and writes the 32 bytes of the structure, which says so, and writes at most `num_iovas` pairs of
        // 64-bit numbers to `allowed_iovas`, which has that many and lives through the call.
        let asked = checked(unsafe {
            libc::ioctl(iommufd.as_raw_fd(), IOAS_IOVA_RANGES as _, std::ptr::from_mut(&mut ask))
        });
        match asked {
            Ok(_) => {
                ranges.truncate(ask.num_iovas as usize);
                return Ok((
                    ranges.into_iter().map(|[first, last]| (first, last)).collect(),
                    ask.out_iova_alignment,
                ));
            }
            // It says how many there are.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) && ask.num_iovas > room => {
                if ask.num_iovas > MAX_RANGES {
                    return Err(io::Error::other(format!("the IOMMU has {} address ranges", ask.num_iovas)));
                }
                room = ask.num_iovas;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Maps a region in an I/O address space at `iova`, for reading and writing. The caller keeps the region, as for [`map_dma`].
pub(super) fn ioas_map(iommufd: BorrowedFd<'_>, ioas: u32, region: &DmaRegion, iova: u64) -> io::Result<()> {
    let mut map = IoasMap {
        size: size::<IoasMap>(),
        flags: MAP_FIXED_WRITE_READ,
        ioas_id: ioas,
        reserved: 0,
        user_va: region.address() as u64,
        length: region.len() as u64,
        iova,
    };
    with_struct(iommufd, IOAS_MAP, &mut map)
}

/// Unmaps what was mapped at `iova`; returns how many bytes that were.
pub(super) fn ioas_unmap(iommufd: BorrowedFd<'_>, ioas: u32, iova: u64, len: u64) -> io::Result<u64> {
    let mut unmap = IoasUnmap { size: size::<IoasUnmap>(), ioas_id: ioas, iova, length: len };
    with_struct(iommufd, IOAS_UNMAP, &mut unmap)?;
    Ok(unmap.length)
}

const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// The version of the interface; [`vfio::VFIO_API_VERSION`] is the one known.
pub(super) fn api_version(container: BorrowedFd<'_>) -> io::Result<u32> {
    with_number(container, GET_API_VERSION, 0).map(|version| version as u32)
}

/// Whether the container can do something.
pub(super) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> io::Result<bool> {
    with_number(container, CHECK_EXTENSION, extension.into()).map(|answer| answer > 0)
}

/// Chooses the kind of IOMMU.
pub(super) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    with_number(container, SET_IOMMU, kind.into()).map(drop)
}

/// Flags of a group.
pub(super) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio::vfio_group_status { argsz: size::<vfio::vfio_group_status>(), flags: 0 };
    with_struct(group, GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd: libc::c_int = container.as_raw_fd();
    // SAFETY: the request reads one int.
    checked(unsafe { libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER as _, std::ptr::from_mut(&mut fd)) })
        .map(drop)
}

/// Opens a device of a group.
pub(super) fn device(group: BorrowedFd<'_>, address: &str) -> io::Result<OwnedFd> {
    let name = CString::new(address)?;
    // SAFETY: the request reads a NUL-terminated name.
    let fd = checked(unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD as _, name.as_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a device is and has.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio::vfio_device_info> {
    let mut info = vfio::vfio_device_info {
        argsz: size::<vfio::vfio_device_info>(),
        ..vfio::vfio_device_info::default()
    };
    with_struct(device, DEVICE_GET_INFO, &mut info)?;
    Ok(info)
}

/// A region of a device, as the bytes of `vfio_region_info` with its capabilities.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<Vec<u8>> {
    // argsz and flags; index and cap_offset; size; offset.
    let mut words = vec![0; 4];
    if let Some(word) = words.get_mut(1) {
        let [a, b, c, d] = index.to_ne_bytes();
        *word = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
    }
    with_capabilities(device, DEVICE_GET_REGION_INFO, words)
}

/// What the IOMMU can do, as the bytes of `vfio_iommu_type1_info` with its capabilities.
pub(super) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    with_capabilities(container, IOMMU_GET_INFO, vec![0; 3])
}

/// How many interrupts of a kind (MSI-X, request, ...) a device has.
pub(super) fn interrupts(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut info =
        vfio::vfio_irq_info { argsz: size::<vfio::vfio_irq_info>(), index, ..vfio::vfio_irq_info::default() };
    with_struct(device, DEVICE_GET_IRQ_INFO, &mut info)?;
    Ok(info.count)
}

/// Makes interrupts `0..fds.len()` of a kind signal these descriptors; none turns the kind off.
pub(super) fn set_interrupts<F: AsFd>(device: BorrowedFd<'_>, index: u32, fds: &[F]) -> io::Result<()> {
    let data = if fds.is_empty() { vfio::VFIO_IRQ_SET_DATA_NONE } else { vfio::VFIO_IRQ_SET_DATA_EVENTFD };
    // argsz, flags, index, start, count, then a descriptor each.
    let words = 5 + fds.len();
    let mut argument: Vec<u32> = Vec::with_capacity(words);
    argument.extend([
        (words * 4) as u32,
        data | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        0,
        fds.len() as u32,
    ]);
    argument.extend(fds.iter().map(|fd| fd.as_fd().as_raw_fd() as u32));
    // SAFETY: the kernel reads the argsz bytes that the argument has; it takes its own references of the descriptors.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_SET_IRQS as _, argument.as_mut_ptr()) }).map(drop)
}

/// Resets a device.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    with_number(device, DEVICE_RESET, 0).map(drop)
}

/// Maps a region for the devices of a container at `iova`, for reading and writing.
///
/// The caller keeps a clone of the region until [`unmap_dma`] has succeeded or no device of the container is open any more; until
/// then devices may write to it. That it is DMA memory (an `Extent` nobody has references to while a command is in flight) is what
/// makes such writes sound.
pub(super) fn map_dma(container: BorrowedFd<'_>, region: &DmaRegion, iova: u64) -> io::Result<()> {
    let mut map = vfio::vfio_iommu_type1_dma_map {
        argsz: size::<vfio::vfio_iommu_type1_dma_map>(),
        flags: vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: region.address() as u64,
        iova,
        size: region.len() as u64,
    };
    with_struct(container, IOMMU_MAP_DMA, &mut map)
}

/// Unmaps what was mapped at `iova`; returns how many bytes that were.
pub(super) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, len: u64) -> io::Result<u64> {
    let mut unmap = vfio::vfio_iommu_type1_dma_unmap {
        argsz: size::<vfio::vfio_iommu_type1_dma_unmap>(),
        iova,
        size: len,
        ..vfio::vfio_iommu_type1_dma_unmap::default()
    };
    with_struct(container, IOMMU_UNMAP_DMA, &mut unmap)?;
    Ok(unmap.size)
}

/// A new event counter: closed on exec, and reading it does not block.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: two numbers; no memory is involved.
    let fd = checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a descriptor is readable now.
pub(super) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which lives through the call; it does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}

/// Whether this process may read and write a file.
///
/// # Errors
/// Why not.
pub(crate) fn may_use(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::AT_EACCESS;
    // SAFETY: a NUL-terminated path that lives through the call.
    checked(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::R_OK | libc::W_OK, flags) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_interface() {
        assert_eq!((GET_API_VERSION, DEVICE_RESET, IOMMU_UNMAP_DMA), (0x3b64, 0x3b6f, 0x3b72));
        assert_eq!((DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT), (0x3b76, 0x3b77));
        assert_eq!((IOAS_ALLOC, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP), (0x3b81, 0x3b84, 0x3b85, 0x3b86));
    }

    #[test]
    fn argsz_replaces_the_first_word_only() {
        let mut words = [u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]), 9];
        set_argsz(&mut words, 24);
        assert_eq!(first_half(words[0]), 24u32.to_ne_bytes());
        assert_eq!((words[0].to_ne_bytes()[4..].to_vec(), words[1]), (vec![5, 6, 7, 8], 9));
    }

    #[test]
    fn event_counters_tell_that_they_were_signalled() {
        let fd = eventfd().unwrap();
        assert!(!is_readable(fd.as_fd()));
        io::Write::write_all(&mut std::fs::File::from(fd.try_clone().unwrap()), &1u64.to_ne_bytes()).unwrap();
        assert!(is_readable(fd.as_fd()));
    }

    #[test]
    fn what_is_not_vfio_refuses_with_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(api_version(null.as_fd()).is_err());
        assert!(region_info(null.as_fd(), 0).is_err());
        assert!(set_interrupts::<OwnedFd>(null.as_fd(), 2, &[]).is_err());
        assert!(bind_iommufd(null.as_fd(), null.as_fd()).is_err() && attach_ioas(null.as_fd(), 1).is_err());
        assert!(ioas_alloc(null.as_fd()).is_err() && ioas_ranges(null.as_fd(), 1).is_err());
        assert!(ioas_unmap(null.as_fd(), 1, 0, 4096).is_err());
        assert_eq!(may_use(Path::new("/nonexistent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
