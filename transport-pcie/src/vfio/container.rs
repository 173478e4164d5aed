//! A container: the addresses a device sees, and the IOMMU that keeps it to them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nvmf_core::dma::{DMA_PAGE, RegionId};
use nvmf_core::{DmaRegion, Error, Result};
use vfio_bindings::bindings::vfio;

use super::capability::{capabilities, u32_at, u64_at};
use super::iova::{CUSTOMARY, IovaSpace};
use super::{open_failed, syscall};

/// An open container with its IOMMU set, and what is mapped in it.
#[derive(Debug)]
pub(super) struct Container {
    file: File,
    space: IovaSpace,
    /// Each region stays alive while the device may reach it.
    mapped: HashMap<RegionId, (DmaRegion, u64)>,
}

impl Container {
    /// Opens `/dev/vfio/vfio` (below `dev`), puts `group` into it and sets the IOMMU up.
    pub(super) fn open(dev: &Path, group: BorrowedFd<'_>) -> Result<Self> {
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
        let space = IovaSpace::new(&limits.ranges, DMA_PAGE as u64);
        Ok(Self { file, space, mapped: HashMap::new() })
    }

    /// Maps a region; returns its bus address.
    pub(super) fn map(&mut self, region: &DmaRegion) -> Result<u64> {
        if let Some((_, at)) = self.mapped.get(&region.id()) {
            return Err(Error::api_misuse(format!("{region:?} is mapped already, at {at:#x}")));
        }
        let len = region.len() as u64;
        let Some(at) = self.space.allocate(len) else {
            return Err(Error::exhausted(format!("no bus addresses are left for {len} bytes of DMA memory"))
                .hint("use fewer or smaller DMA regions"));
        };
        if let Err(error) = syscall::map_dma(self.file.as_fd(), region, at) {
            self.space.release(at, len);
            return Err(map_failed(&error, len));
        }
        self.mapped.insert(region.id(), (region.clone(), at));
        Ok(at)
    }

    /// Sets bus addresses aside, so that nothing is ever mapped there: `len` bytes, at `at` or anywhere.
    pub(super) fn reserve(&mut self, at: Option<u64>, len: u64) -> Result<u64> {
        let Some(at) = at else {
            return self.space.allocate(len).ok_or_else(|| {
                Error::exhausted(format!("no bus addresses are left to set {len} bytes aside"))
            });
        };
        let end = at.saturating_add(len);
        let taken = self
            .mapped
            .values()
            .any(|(region, start)| *start < end && at < start.saturating_add(region.len() as u64));
        if taken {
            return Err(Error::exhausted(format!(
                "memory is mapped where {len} bytes at {at:#x} are wanted"
            )));
        }
        self.space.exclude(at, end.saturating_sub(1));
        Ok(at)
    }

    /// Takes a mapping back.
    pub(super) fn unmap(&mut self, id: RegionId) -> Result<()> {
        let Some((region, at)) = self.mapped.get(&id) else {
            return Err(Error::api_misuse(format!("DMA region {} is not mapped", id.0)));
        };
        let (len, at) = (region.len() as u64, *at);
        let unmapped = syscall::unmap_dma(self.file.as_fd(), at, len).map_err(|error| {
            Error::from(error).doing(format!("unmapping {len} bytes at bus address {at:#x}"))
        })?;
        if unmapped != len {
            return Err(Error::from(io::Error::other(format!(
                "the IOMMU unmapped {unmapped} bytes at bus address {at:#x} instead of {len}"
            ))));
        }
        self.mapped.remove(&id);
        self.space.release(at, len);
        Ok(())
    }

    /// Takes all mappings back. What cannot be is leaked, and the answer is `false`.
    pub(super) fn unmap_all(&mut self) -> bool {
        let ids: Vec<RegionId> = self.mapped.keys().copied().collect();
        for id in ids {
            if let Err(error) = self.unmap(id) {
                tracing::error!(%error, "DMA memory stays mapped and is leaked");
                if let Some((region, _)) = self.mapped.get(&id) {
                    region.leak();
                }
            }
        }
        self.mapped.is_empty()
    }
}

/// Why a region could not be mapped.
fn map_failed(error: &io::Error, len: u64) -> Error {
    let code = error.raw_os_error();
    let error = Error::from(code.map_or(error.kind().into(), io::Error::from_raw_os_error))
        .doing(format!("mapping {len} bytes for the device"));
    match code {
        Some(libc::ENOMEM) => {
            error.hint("raise the limit of locked memory (ulimit -l), or use less DMA memory")
        }
        Some(libc::ENOSPC) => error.hint("too many mappings: raise dma_entry_limit of vfio_iommu_type1"),
        _ => error,
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

    #[test]
    fn a_refused_mapping_says_what_to_do() {
        let text = |code| map_failed(&io::Error::from_raw_os_error(code), 4096).to_string();
        assert!(text(libc::ENOMEM).contains("ulimit -l"), "{}", text(libc::ENOMEM));
        assert!(text(libc::ENOSPC).contains("dma_entry_limit"));
        assert!(text(libc::EFAULT).starts_with("mapping 4096 bytes for the device: "));
    }
}
