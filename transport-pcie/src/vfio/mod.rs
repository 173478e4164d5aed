//! Functions of the local bus, lent to this process by the kernel's VFIO.
//!
//! There are two ways to a device ([`VfioBackend`]):
//!
//! * It is in an IOMMU group (`/dev/vfio/N`), the group is put into a container (`/dev/vfio/vfio`) of its own, and the container's
//!   IOMMU lets the device reach what is mapped there and nothing else.
//! * It has a file of its own (`/dev/vfio/devices/vfioN`), is bound to an iommufd (`/dev/iommu`) and attached to an I/O address space
//!   there, and reaches what is mapped in that. Kernels from 6.6 on have it, if they were built with it (`CONFIG_IOMMUFD`,
//!   `CONFIG_VFIO_DEVICE_CDEV`).
//!
//! The ioctls are called here and not through `vfio-ioctls`, which does not report whether reading or writing a region or a reset
//! worked, and does not ask for the IOMMU's address ranges. Structures and constants are those of `vfio-bindings`.

mod bar;
mod capability;
mod container;
mod device;
mod iommufd;
mod iova;
mod mappings;
// UNSAFETY: ioctls.
#[expect(unsafe_code, reason = "VFIO's ioctls")]
mod syscall;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nvmf_core::Error;

pub(crate) use device::VfioDevice;
pub(crate) use iommufd::CdevFiles;
pub(crate) use syscall::may_use;

/// How functions bound to vfio-pci are reached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub enum VfioBackend {
    /// Through its own file where the kernel has one and this user may use it, else through its group.
    #[default]
    Auto,
    /// Through its IOMMU group and a container.
    Group,
    /// Through its own file and iommufd.
    Cdev,
}

/// How long a function that somebody has may take to become free.
const RELEASE: Duration = Duration::from_secs(2);

/// Opens something that may be about to be released, without anybody to ask when: the kernel closes the files of a process that has
/// ended in its own time, the last handle of a controller may be the background thread's, and where a primary has ended its
/// secondaries let go of the function a moment later.
fn until_free<T>(
    busy: impl Fn(&io::Error) -> bool,
    mut open: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match open() {
            Err(error) if busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Why a file of VFIO could not be opened, and what to do about it.
fn open_failed(path: &Path, error: &io::Error) -> Error {
    let shown = path.display();
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Some(format!("run as root, or give yourself access: chown $USER {shown}"))
        }
        io::ErrorKind::NotFound => Some("load VFIO: modprobe vfio-pci".to_owned()),
        io::ErrorKind::ResourceBusy => Some("another process uses a device of this IOMMU group".to_owned()),
        _ => None,
    };
    let error = Error::from(error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error))
        .doing(format!("opening {shown}"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_to_be_released_is_waited_for() {
        let mut tries = 0;
        let opened = until_free(
            |error| error.kind() == io::ErrorKind::ResourceBusy,
            || {
                tries += 1;
                if tries < 4 { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(tries) }
            },
        );
        assert_eq!(opened.unwrap(), 4);
        let refused = until_free(|_| false, || Err::<(), _>(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn errors_of_opening_say_what_to_do() {
        let text =
            |code| open_failed(Path::new("/dev/vfio/7"), &io::Error::from_raw_os_error(code)).to_string();
        assert_eq!(
            text(libc::EACCES),
            "opening /dev/vfio/7: Permission denied (os error 13); run as root, or give yourself access: chown $USER /dev/vfio/7"
        );
        assert!(text(libc::ENOENT).ends_with("; load VFIO: modprobe vfio-pci"));
        assert!(text(libc::EBUSY).contains("another process"));
        assert!(!text(libc::EIO).contains(';'));
    }
}
