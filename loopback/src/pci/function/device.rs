//! An emulated function as a host has it: a [`PciDevice`].

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvmf_core::dma::{DmaGrant, RegionId};
use nvmf_core::{Error, Result};
use nvmf_transport_pcie::{Bar0, PciDevice, PciIdentity};

use super::super::cmb;
use super::super::config_space::ConfigSpace;
use super::{Memory2, Owner, Registers0, Shared, gone, lock};

/// Where bus addresses start: beyond 32 bits, so that a host that cuts them is found out.
const FIRST_IOVA: u64 = 0x10_0000_0000;
/// Nothing is mapped between two regions, so that running over the end of one is found out.
const IOVA_GAP: u64 = 1 << 21;

/// An emulated function in the hands of a host.
pub struct EmulatedDevice {
    owner: Arc<Owner>,
    /// Bus addresses.
    regions: BTreeMap<RegionId, u64>,
    next: u64,
    /// Nothing is mapped from here on.
    end: u64,
}

impl fmt::Debug for EmulatedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmulatedDevice({}, {} regions)", self.shared().identity, self.regions.len())
    }
}

impl EmulatedDevice {
    pub(super) fn new(owner: Arc<Owner>) -> Self {
        Self { owner, regions: BTreeMap::new(), next: FIRST_IOVA, end: u64::MAX }
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// Becomes readable when the function is gone.
    pub(in crate::pci) fn removal(&self) -> BorrowedFd<'_> {
        self.shared().removal.1.as_fd()
    }
}

impl PciDevice for EmulatedDevice {
    fn identity(&self) -> PciIdentity {
        self.shared().identity.clone()
    }

    fn bar0(&mut self) -> Result<Bar0> {
        Ok(Bar0::new(Arc::new(Registers0(Arc::clone(&self.owner.shared)))))
    }

    fn bar(&mut self, index: u8) -> Result<Bar0> {
        match &self.shared().cmb {
            Some(memory) if index == cmb::BAR => {
                Ok(Bar0::new(Arc::new(Memory2(Arc::clone(&self.owner.shared), memory.clone()))))
            }
            _ => Err(Error::unsupported(format!("there is no memory behind BAR {index}"))
                .peer(&self.shared().identity)),
        }
    }

    fn reserve_addresses(&mut self, at: Option<u64>, len: u64) -> Result<u64> {
        let taken =
            || Error::exhausted("these bus addresses are in use").doing("setting bus addresses aside");
        let first = at.unwrap_or(self.next);
        let end = first.checked_add(len).ok_or_else(taken)?;
        if at.is_none() {
            self.next =
                end.checked_next_multiple_of(IOVA_GAP).filter(|&next| next <= self.end).ok_or_else(taken)?;
        } else if first >= self.next {
            self.end = self.end.min(first);
        } else if end > FIRST_IOVA {
            return Err(taken());
        }
        Ok(first)
    }

    fn dma_map(&mut self, grant: &DmaGrant) -> Result<u64> {
        let region = grant.region();
        if self.regions.contains_key(&region.id()) {
            return Err(Error::api_misuse("the region is mapped already").peer(&self.shared().identity));
        }
        if self.shared().is_removed() {
            return Err(gone(&self.shared().identity).doing("mapping memory"));
        }
        let iova = self.next;
        let end = iova.checked_add(region.len() as u64 + IOVA_GAP).filter(|&end| end <= self.end);
        self.next = end.ok_or_else(|| Error::exhausted("no bus addresses are left"))?;
        self.shared()
            .memory_mut()
            .map_region(iova, grant)
            .map_err(|e| Error::from(e).doing("mapping memory"))?;
        self.regions.insert(region.id(), iova);
        Ok(iova)
    }

    fn dma_unmap(&mut self, region: RegionId) -> Result<()> {
        // A removed function has no mappings left.
        if let Some(iova) = self.regions.remove(&region) {
            self.shared().memory_mut().unmap(iova);
        }
        Ok(())
    }

    fn max_vectors(&self) -> u16 {
        self.shared().layout.vectors
    }

    fn enable_interrupts(&mut self, vectors: u16) -> Result<Vec<OwnedFd>> {
        let shared = self.shared();
        if shared.is_removed() {
            return Err(gone(&shared.identity).doing("enabling interrupts"));
        }
        if vectors > shared.layout.vectors {
            return Err(Error::unsupported(format!(
                "{vectors} interrupt vectors are asked for and there are {}",
                shared.layout.vectors
            ))
            .peer(&shared.identity));
        }
        lock(&shared.interrupts)
            .enable(vectors)
            .map_err(|error| Error::from(error).doing("making interrupts"))
    }

    fn reset(&mut self) -> Result<()> {
        if self.shared().is_removed() {
            return Err(gone(&self.shared().identity).doing("resetting it"));
        }
        self.shared().reset();
        Ok(())
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> Result<()> {
        self.shared().config_read(offset, to)
    }

    fn write_config(&mut self, offset: u32, from: &[u8]) -> Result<()> {
        self.shared().config_write(offset, from)
    }

    fn isolate(&mut self) -> bool {
        self.shared().quiesce();
        self.regions.clear();
        true
    }

    fn is_removed(&self) -> bool {
        self.shared().is_removed()
    }

    fn removal_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.removal())
    }
}

impl Drop for EmulatedDevice {
    fn drop(&mut self) {
        let shared = self.shared();
        shared.quiesce();
        let config = ConfigSpace::new(&shared.layout);
        lock(&shared.engine).move_cmb(config.bar2_address());
        *lock(&shared.config) = config;
        shared.open.store(false, Ordering::Release);
    }
}
