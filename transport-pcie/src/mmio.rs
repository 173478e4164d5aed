// UNSAFETY: this module maps registers and doorbells of a device and accesses them through raw pointers. There is never a
// reference to them; every access is one volatile load or store of an aligned 32-bit word, checked to lie inside the mapping,
// which lives as long as its `MappedBar`. See docs/safety.md, M7.

//! Registers mapped into this process.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::ptr::NonNull;

use nvmf_core::Result;

use crate::device::{BarAccess, BarArea};

/// A mapped part of a BAR.
///
/// Several threads may access it at once, as several processors may access a device: each access is a single bus transaction.
pub struct MappedBar {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range without thread affinity.
unsafe impl Send for MappedBar {}
// SAFETY: all accesses are volatile accesses of whole words of a device, which orders them by itself; no reference to the memory
// is ever made.
unsafe impl Sync for MappedBar {}

impl MappedBar {
    /// Maps `len` bytes from `offset` of a file that stands for a device's registers; both must be multiples of the page size.
    ///
    /// # Errors
    /// What mmap reports; `InvalidInput` for a length of zero or one that is too large.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let invalid = || {
            io::Error::new(io::ErrorKind::InvalidInput, format!("cannot map {len:#x} bytes at {offset:#x}"))
        };
        let len = usize::try_from(len).ok().filter(|&len| len > 0).ok_or_else(invalid)?;
        let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
        let base = mmap(std::ptr::null_mut(), len, libc::MAP_SHARED, fd.as_raw_fd(), offset)?;
        Ok(Self { base, len })
    }

    /// Address of the word at `offset`.
    ///
    /// # Panics
    /// When it does not lie inside, or is not aligned: the callers check what a device says.
    fn at(&self, offset: u64) -> *mut u32 {
        let inside = offset.checked_add(4).is_some_and(|end| end <= self.len as u64);
        assert!(
            inside && offset.is_multiple_of(4),
            "a register at {offset:#x} of {:#x} mapped bytes",
            self.len
        );
        self.base.as_ptr().wrapping_add(offset as usize).cast()
    }

    /// Takes the device away from under the mapping, for everyone who still has it: reads give all ones from now on, as they do on
    /// a bus whose device is gone, and writes change nothing. The device's file is let go.
    ///
    /// # Errors
    /// When there is no memory for the replacement; then nothing has changed.
    pub fn revoke(&self) -> io::Result<()> {
        // SAFETY: the name is a NUL-terminated literal; the call has no other memory argument.
        let fd: RawFd = unsafe { libc::memfd_create(c"nvmf-gone".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just returned by memfd_create and is owned by nobody else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        let ones = [0xff; 4096];
        let mut left = self.len;
        while left > 0 {
            let n = left.min(ones.len());
            io::Write::write_all(&mut file, ones.get(..n).unwrap_or(&ones))?;
            left -= n;
        }
        // Filled before it is mapped, so that nobody reads anything but the device or all ones. Private, so that a late write stays
        // where it was made.
        let at = self.base.as_ptr().cast();
        mmap(at, self.len, libc::MAP_PRIVATE | libc::MAP_FIXED, file.as_raw_fd(), 0)?;
        Ok(())
    }
}

impl BarAccess for MappedBar {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        // SAFETY: `at` checked that the word lies inside the mapping and is aligned; the mapping lives as long as `self`.
        Ok(u32::from_le(unsafe { self.at(offset).read_volatile() }))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        // SAFETY: as in read32. What stands behind the mapping is a device, or memory that nobody has a reference to.
        unsafe { self.at(offset).write_volatile(value.to_le()) };
        Ok(())
    }
}

impl fmt::Debug for MappedBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedBar({:#x} bytes)", self.len)
    }
}

/// The mapped parts of a BAR.
#[derive(Debug)]
pub(crate) struct MappedAreas(Vec<(u64, MappedBar)>);

impl MappedAreas {
    /// Maps these parts of the file.
    pub(crate) fn map(file: BorrowedFd<'_>, areas: &[BarArea]) -> io::Result<Self> {
        let map = |area: &BarArea| Ok((area.offset, MappedBar::map(file, area.at, area.len)?));
        areas.iter().map(map).collect::<io::Result<_>>().map(Self)
    }

    /// The mapping that has the word at this offset of the BAR, and where in it.
    pub(crate) fn find(&self, offset: u64) -> Option<(&MappedBar, u64)> {
        self.0.iter().find_map(|(at, bar)| {
            let within = offset.checked_sub(*at)?;
            (within.checked_add(4)? <= bar.len()).then_some((bar, within))
        })
    }

    /// Gives the device up for every holder of the registers: they read as all ones from now on.
    pub(crate) fn revoke(&self) {
        for (_, bar) in &self.0 {
            if let Err(error) = bar.revoke() {
                tracing::error!(%error, "the device's registers stay mapped until their last user is gone");
            }
        }
    }
}

/// Maps a file for reading and writing. `MAP_FIXED` may only be asked for with an `at` and a `len` that this module has mapped before.
fn mmap(
    at: *mut libc::c_void,
    len: usize,
    flags: i32,
    fd: RawFd,
    offset: libc::off_t,
) -> io::Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED the kernel picks a free range; with it, the range is a mapping of a MappedBar, which is replaced in
    // one step and to whose bytes there are no references (see the top of the file).
    let ptr = unsafe { libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(ptr.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap was given and returned; nothing points into the mapping but `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!(
            "nvmf-mmio-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, bytes).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    #[test]
    fn words_go_in_and_out_little_endian() {
        let file = file(&[&[0x78, 0x56, 0x34, 0x12][..], &[0; 4092]].concat());
        let bar = MappedBar::map(file.as_fd(), 0, 4096).unwrap();
        assert_eq!((bar.len(), bar.read32(0).unwrap(), bar.read32(4092).unwrap()), (4096, 0x1234_5678, 0));
        bar.write32(4092, 0xaabb_ccdd).unwrap();
        let mut last = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut last, 4092).unwrap();
        assert_eq!(last, [0xdd, 0xcc, 0xbb, 0xaa]);
    }

    #[test]
    fn after_it_is_revoked_it_reads_all_ones_and_the_device_sees_no_writes() {
        let file = file(&[0; 8192]);
        let bar = MappedBar::map(file.as_fd(), 4096, 4096).unwrap();
        bar.revoke().unwrap();
        assert_eq!((bar.read32(0).unwrap(), bar.read32(4092).unwrap()), (u32::MAX, u32::MAX));
        bar.write32(0, 5).unwrap();
        let mut word = [1; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 4096).unwrap();
        assert_eq!(word, [0; 4]);
        bar.revoke().unwrap();
        assert_eq!(bar.read32(0).unwrap(), u32::MAX);
    }

    #[test]
    #[should_panic(expected = "a register at 0xffe of 0x1000 mapped bytes")]
    fn a_word_across_the_end_is_refused() {
        let file = file(&[0; 4096]);
        MappedBar::map(file.as_fd(), 0, 4096).unwrap().read32(4094).unwrap();
    }

    #[test]
    fn nothing_cannot_be_mapped() {
        assert_eq!(
            MappedBar::map(file(&[0]).as_fd(), 0, 0).err().unwrap().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
