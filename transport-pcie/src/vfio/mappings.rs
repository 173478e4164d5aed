//! What is mapped for a device, and where.

use std::collections::HashMap;
use std::fmt;
use std::io;

use nvmf_core::dma::RegionId;
use nvmf_core::{DmaRegion, Error, Result};

use super::iova::IovaSpace;

/// An IOMMU's address space for one device.
pub(super) trait Iommu: fmt::Debug + Send {
    /// Maps a region at a bus address, for reading and writing. The caller keeps the region until it is unmapped.
    fn map(&self, region: &DmaRegion, iova: u64) -> io::Result<()>;

    /// Takes a mapping back; returns how many bytes it had.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<u64>;
}

/// An address space, and what is mapped in it.
#[derive(Debug)]
pub(super) struct Mappings {
    iommu: Box<dyn Iommu>,
    space: IovaSpace,
    /// Each region stays alive while the device may reach it.
    mapped: HashMap<RegionId, (DmaRegion, u64)>,
}

impl Mappings {
    /// Nothing mapped yet, in the ranges (first and last address) that the IOMMU translates.
    pub(super) fn new(iommu: Box<dyn Iommu>, ranges: &[(u64, u64)]) -> Self {
        let space = IovaSpace::new(ranges, nvmf_core::dma::DMA_PAGE as u64);
        Self { iommu, space, mapped: HashMap::new() }
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
        if let Err(error) = self.iommu.map(region, at) {
            self.space.release(at, len);
            return Err(map_failed(&error, region));
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
        let unmapped = self.iommu.unmap(at, len).map_err(|error| {
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
fn map_failed(error: &io::Error, region: &DmaRegion) -> Error {
    let (code, len) = (error.raw_os_error(), region.len());
    if region.dma_buf().is_some() && matches!(code, Some(libc::EFAULT | libc::EINVAL | libc::EPERM)) {
        return Error::unsupported(format!(
            "{len} bytes of a dma-buf that has no pages in this process, which VFIO maps by ({error})"
        ))
        .hint("use ordinary memory (DmaPool); of dma-bufs only those are mapped whose pages can be pinned");
    }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use nvmf_core::dma::{DMA_PAGE, SharedMemory};

    use super::*;

    /// Where something is mapped, how long, and whether the next calls are refused.
    #[derive(Debug, Default)]
    struct State {
        mapped: Vec<(u64, usize)>,
        refuse: Option<i32>,
        short: bool,
    }

    #[derive(Clone, Debug, Default)]
    struct Fake(Arc<Mutex<State>>);

    impl Iommu for Fake {
        fn map(&self, region: &DmaRegion, iova: u64) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            if let Some(code) = state.refuse {
                return Err(io::Error::from_raw_os_error(code));
            }
            state.mapped.push((iova, region.len()));
            Ok(())
        }

        fn unmap(&self, iova: u64, len: u64) -> io::Result<u64> {
            let mut state = self.0.lock().unwrap();
            if let Some(code) = state.refuse {
                return Err(io::Error::from_raw_os_error(code));
            }
            if state.short {
                return Ok(len / 2);
            }
            state.mapped.retain(|&mapped| mapped != (iova, len as usize));
            Ok(len)
        }
    }

    fn memory(pages: usize) -> SharedMemory {
        SharedMemory::allocate(pages * DMA_PAGE).unwrap()
    }

    #[test]
    fn regions_are_mapped_once_and_stay_while_the_device_may_reach_them() {
        let fake = Fake::default();
        let mut mappings = Mappings::new(Box::new(fake.clone()), &[(0, 0xf_ffff)]);
        let (one, two) = (memory(1), memory(2));
        let at = mappings.map(one.extent().region()).unwrap();
        let next = mappings.map(two.extent().region()).unwrap();
        assert_eq!(fake.0.lock().unwrap().mapped, [(at, DMA_PAGE), (next, 2 * DMA_PAGE)]);
        assert!(mappings.map(one.extent().region()).unwrap_err().to_string().contains("mapped already"));
        mappings.unmap(one.extent().region().id()).unwrap();
        assert!(mappings.unmap(one.extent().region().id()).is_err());
        assert_eq!(mappings.map(one.extent().region()).unwrap(), at, "the address is free again");
        assert!(mappings.unmap_all() && fake.0.lock().unwrap().mapped.is_empty());
        assert!(
            mappings
                .map(memory(4096).extent().region())
                .unwrap_err()
                .to_string()
                .contains("no bus addresses")
        );
    }

    #[test]
    fn what_cannot_be_unmapped_is_not_forgotten() {
        let fake = Fake::default();
        let mut mappings = Mappings::new(Box::new(fake.clone()), &[(0, 0xf_ffff)]);
        let one = memory(1);
        let at = mappings.map(one.extent().region()).unwrap();
        let id = one.extent().region().id();
        fake.0.lock().unwrap().short = true;
        let text = mappings.unmap(id).unwrap_err().to_string();
        assert!(text.contains("2048 bytes") && text.contains("instead of 4096"), "{text}");
        fake.0.lock().unwrap().refuse = Some(libc::EBUSY);
        assert!(!mappings.unmap_all());
        assert!(mappings.map(memory(1).extent().region()).is_err());
        fake.0.lock().unwrap().refuse = None;
        assert_ne!(mappings.map(memory(1).extent().region()).unwrap(), at, "somebody is there");
    }

    #[test]
    fn a_refused_mapping_says_what_to_do_and_takes_no_address() {
        let fake = Fake::default();
        let mut mappings = Mappings::new(Box::new(fake.clone()), &[(0, 0x1_0fff)]);
        let one = memory(1);
        for (code, expected) in [
            (libc::ENOMEM, "ulimit -l"),
            (libc::ENOSPC, "dma_entry_limit"),
            (libc::EFAULT, "mapping 4096 bytes"),
        ] {
            fake.0.lock().unwrap().refuse = Some(code);
            let text = mappings.map(one.extent().region()).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
        fake.0.lock().unwrap().refuse = None;
        mappings.map(one.extent().region()).unwrap();
    }
}
