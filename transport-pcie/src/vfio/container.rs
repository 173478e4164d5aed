//! A container: the addresses a device sees, and the IOMMU that keeps it to them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nvmf_core::dma::DMA_PAGE;
use nvmf_core::{DmaRegion, Error, Result};
use vfio_bindings::bindings::vfio;

use super::capability::{capabilities, u32_at, u64_at};
use super::iova::CUSTOMARY;
use super::mappings::{Iommu, Mappings};
use super::{open_failed, syscall};

/// An open container with its IOMMU set.
#[derive(Debug)]
pub(super) struct Container(File);

impl Iommu for Container {
    fn map(&self, region: &DmaRegion, iova: u64) -> io::Result<()> {
        syscall::map_dma(self.0.as_fd(), region, iova)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<u64> {
        syscall::unmap_dma(self.0.as_fd(), iova, len)
    }
}

impl Container {
    /// Opens `/dev/vfio/vfio` (below `dev`), puts `group` into it and sets the IOMMU up.
    pub(super) fn open(dev: &Path, group: BorrowedFd<'_>) -> Result<Mappings> {
        let path = dev.join("vfio/vfio");
        let file = File::options().read(true).write(true).open(&path).map_err(|e| open_failed(&path, &e))?;
        let container = file.as_fd();
        let doing = |what: &'static str| move |error: io::Error| Error::from(error).doing(what);
        let version = syscall::api_version(container).map_err(doing("asking VFIO for its version"))?;
        if version != vfio::VFIO_API_VERSION {
            return Err(Error::unsupported(format!(
                "the kernel's VFIO has version {version} of its interface"
            )));
        }
        let kind = vfio::VFIO_TYPE1v2_IOMMU;
        if !syscall::has_extension(container, kind).map_err(doing("asking VFIO for its IOMMUs"))? {
            return Err(Error::unsupported("the kernel's VFIO has no type 1 (version 2) IOMMU")
                .hint("load it: modprobe vfio_iommu_type1"));
        }
        syscall::set_container(group, container)
            .map_err(doing("putting the IOMMU group into a container"))?;
        syscall::set_iommu(container, kind).map_err(|error| {
            let refused = error.raw_os_error() == Some(libc::EPERM);
            let error = Error::from(error).doing("setting up the IOMMU");
            if refused {
                error.hint("does the IOMMU remap interrupts? (kernel parameter intremap=on)")
            } else {
                error
            }
        })?;
        let info = syscall::iommu_info(container).map_err(doing("asking for the IOMMU's address ranges"))?;
        let limits = Limits::parse(&info);
        tracing::debug!(?limits, "IOMMU");
        if limits.page > DMA_PAGE as u64 {
            return Err(Error::unsupported(format!(
                "the IOMMU maps pages of {} bytes at least, DMA memory is made of pages of {DMA_PAGE}",
                limits.page
            )));
        }
        Ok(Mappings::new(Box::new(Self(file)), &limits.ranges))
    }
}

/// What an IOMMU can translate.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    /// First and last address of each range.
    ranges: Vec<(u64, u64)>,
    /// Its smallest page.
    page: u64,
    /// How many more mappings the kernel takes, where it says so.
    mappings: Option<u32>,
}

impl Limits {
    /// From `vfio_iommu_type1_info` and its capabilities: argsz, flags, page sizes, offset of the first capability.
    fn parse(info: &[u8]) -> Self {
        let flags = u32_at(info, 4).unwrap_or(0);
        let sizes = u64_at(info, 8).filter(|_| flags & vfio::VFIO_IOMMU_INFO_PGSIZES != 0).unwrap_or(0);
        let page = if sizes == 0 { DMA_PAGE as u64 } else { 1 << sizes.trailing_zeros() };
        let mut limits = Self { ranges: Vec::new(), page, mappings: None };
        let first = u32_at(info, 16).filter(|_| flags & vfio::VFIO_IOMMU_INFO_CAPS != 0).unwrap_or(0);
        for (id, body) in capabilities(info, first) {
            match u32::from(id) {
                vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let count = u32_at(body, 8).unwrap_or(0) as usize;
                    let ranges = (0..count)
                        .map_while(|i| Some((u64_at(body, 16 + 16 * i)?, u64_at(body, 24 + 16 * i)?)));
                    limits.ranges.extend(ranges);
                }
                vfio::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => limits.mappings = u32_at(body, 8),
                _ => {}
            }
        }
        if limits.ranges.is_empty() {
            limits.ranges.push(CUSTOMARY);
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to VFIO_IOMMU_GET_INFO as a guest of QEMU with intel-iommu gets it.
    fn answer() -> Vec<u8> {
        let mut info = Vec::new();
        let mut words = |words: &[u32]| words.iter().for_each(|word| info.extend(word.to_le_bytes()));
        words(&[120, 3, 0xfffff000, 0xffffffff, 24, 0]);
        // A migration capability, then the ranges, then how many mappings.
        words(&[1 << 16 | 2, 56, 0, 0, 0x1000, 0, 0, 0]);
        words(&[1 << 16 | 1, 104, 2, 0, 0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, 0xffff_ffff, 0x7f]);
        words(&[1 << 16 | 3, 0, 65535, 0]);
        info
    }

    #[test]
    fn ranges_page_size_and_mappings_of_an_iommu() {
        let limits = Limits::parse(&answer());
        let ranges = vec![(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        assert_eq!(limits, Limits { ranges, page: 4096, mappings: Some(65535) });
    }

    #[test]
    fn an_iommu_that_says_nothing_has_the_customary_range() {
        let mut info = answer();
        info[4] = 0;
        assert_eq!(Limits::parse(&info), Limits { ranges: vec![CUSTOMARY], page: 4096, mappings: None });
        assert_eq!(Limits::parse(&[]), Limits { ranges: vec![CUSTOMARY], page: 4096, mappings: None });
    }

    #[test]
    fn a_truncated_answer_is_not_read_past_its_end() {
        let info = answer();
        for len in 0..info.len() {
            let limits = Limits::parse(&info[..len]);
            assert!(!limits.ranges.is_empty());
        }
    }
}
