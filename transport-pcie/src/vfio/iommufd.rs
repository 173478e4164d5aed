//! iommufd: address spaces of the IOMMU without groups and containers, and the devices' own files (`/dev/vfio/devices/vfioN`).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nvmf_core::dma::DMA_PAGE;
use nvmf_core::transport_id::PciAddress;
use nvmf_core::{DmaRegion, Error, Result};

use super::mappings::{Iommu, Mappings};
use super::{open_failed, syscall, until_free};

/// The files it takes to drive a function this way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CdevFiles {
    /// The function's own.
    pub(crate) device: PathBuf,
    /// iommufd.
    pub(crate) iommu: PathBuf,
}

impl CdevFiles {
    /// What the files of a function are called, if the kernel has them: VFIO gives each device that is bound to it a name in
    /// sysfs. `sys` and `dev` are where `/sys` and `/dev` are.
    pub(crate) fn find(sys: &Path, dev: &Path, address: PciAddress) -> Option<Self> {
        let names = sys.join("bus/pci/devices").join(address.to_string()).join("vfio-dev");
        let name = fs::read_dir(names).ok()?.flatten().map(|entry| entry.file_name()).find(|name| {
            name.to_str()
                .and_then(|name| name.strip_prefix("vfio"))
                .is_some_and(|number| number.parse::<u32>().is_ok())
        })?;
        let files = Self { device: dev.join("vfio/devices").join(name), iommu: dev.join("iommu") };
        let there = |path: &Path| path.try_exists().unwrap_or(true);
        (there(&files.device) && there(&files.iommu)).then_some(files)
    }
}

/// An IO address space (IOAS) of an iommufd.
#[derive(Debug)]
struct Ioas {
    iommufd: File,
    id: u32,
}

impl Iommu for Ioas {
    fn map(&self, region: &DmaRegion, iova: u64) -> io::Result<()> {
        syscall::ioas_map(self.iommufd.as_fd(), self.id, region, iova)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<u64> {
        syscall::ioas_unmap(self.iommufd.as_fd(), self.id, iova, len)
    }
}

/// Opens a function's own file, binds it to an iommufd of its own and gives it an address space. The device has to be closed before
/// the mappings.
pub(super) fn open(files: &CdevFiles) -> Result<(File, Mappings)> {
    let open = |path: &Path| {
        File::options().read(true).write(true).open(path).map_err(|error| open_failed(path, &error))
    };
    let doing = |what: &'static str| move |error: io::Error| Error::from(error).doing(what);
    let device = open(&files.device)?;
    let iommufd = open(&files.iommu)?;
    // Whoever is bound already makes it one or the other, by the kernel's version.
    let busy = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL));
    until_free(busy, || syscall::bind_iommufd(device.as_fd(), iommufd.as_fd())).map_err(bind_failed)?;
    let id = syscall::ioas_alloc(iommufd.as_fd()).map_err(doing("making an I/O address space"))?;
    syscall::attach_ioas(device.as_fd(), id)
        .map_err(doing("attaching the device to its I/O address space"))?;
    // The device's restrictions are in them from now on.
    let (ranges, alignment) = syscall::ioas_ranges(iommufd.as_fd(), id)
        .map_err(doing("asking for the ranges of the I/O address space"))?;
    tracing::debug!(?ranges, alignment, "iommufd");
    if alignment > DMA_PAGE as u64 {
        return Err(Error::unsupported(format!(
            "the IOMMU maps pages of {alignment} bytes at least, DMA memory is made of pages of {DMA_PAGE}"
        )));
    }
    Ok((device, Mappings::new(Box::new(Ioas { iommufd, id }), &ranges)))
}

/// Why a device could not be bound to an iommufd.
fn bind_failed(error: io::Error) -> Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => Some("does the IOMMU remap interrupts? (kernel parameter intremap=on)"),
        Some(libc::EBUSY) => Some("another process or driver uses a device of this IOMMU group"),
        Some(libc::EINVAL) => Some("is another process using the device?"),
        _ => None,
    };
    let error = Error::from(error).doing("binding the device to an iommufd");
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::Bus;

    #[test]
    fn the_files_are_found_where_the_kernel_has_both() {
        let bus = Bus::new("cdev-files");
        bus.add("0000:04:00.0", "0x010802", Some("vfio-pci"), Some(3));
        let address = "0000:04:00.0".parse().unwrap();
        let dev = bus.root().join("dev");
        let find = || CdevFiles::find(bus.root(), &dev, address);
        assert_eq!(find(), None);
        let names = bus.root().join("bus/pci/devices/0000:04:00.0/vfio-dev");
        fs::create_dir_all(names.join("something")).unwrap();
        fs::create_dir_all(dev.join("vfio/devices")).unwrap();
        fs::write(dev.join("iommu"), "").unwrap();
        assert_eq!(find(), None);
        fs::create_dir(names.join("vfio12")).unwrap();
        assert_eq!(find(), None, "the name alone does not open it");
        let device = dev.join("vfio/devices/vfio12");
        fs::write(&device, "").unwrap();
        assert_eq!(find(), Some(CdevFiles { device, iommu: dev.join("iommu") }));
        fs::remove_file(dev.join("iommu")).unwrap();
        assert_eq!(find(), None, "no iommufd");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let text = |code| bind_failed(io::Error::from_raw_os_error(code)).to_string();
        assert!(text(libc::EPERM).contains("intremap=on"));
        assert!(text(libc::EBUSY).contains("another process"));
        assert!(text(libc::EIO).starts_with("binding the device to an iommufd: "));
        let null = || PathBuf::from("/dev/null");
        let error = open(&CdevFiles { device: null(), iommu: null() }).unwrap_err();
        assert!(error.to_string().starts_with("binding the device"), "{error}");
        let error = open(&CdevFiles { device: "/nonexistent".into(), iommu: null() }).unwrap_err();
        assert!(error.to_string().contains("opening /nonexistent"), "{error}");
    }
}
