//! Registered memory of the simulated device.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvmf_core::DmaRegion;
use nvmf_core::dma::{DeviceMemory, RegionId};

use super::grant::{device_memory, to_device};
use super::{Sim, SimFault, SimShared, count};
use crate::provider::{Access, DeviceLimits, Domain, Element, Registration};

struct Entry {
    address: u64,
    len: u64,
    access: Access,
    region: RegionId,
}

struct Table {
    memory: DeviceMemory,
    /// Registrations of each region, and where it is mapped.
    regions: HashMap<RegionId, (u64, usize)>,
    entries: HashMap<u32, Entry>,
    next: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self { memory: device_memory(), regions: HashMap::new(), entries: HashMap::new(), next: 0 }
    }
}

/// The protection domain of the simulated device.
pub struct SimDomain {
    sim: Sim,
    table: Mutex<Table>,
    lost: AtomicBool,
}

impl SimDomain {
    pub(super) fn new(sim: Sim) -> Self {
        Self { sim, table: Mutex::default(), lost: AtomicBool::new(false) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registrations that exist.
    #[must_use]
    pub fn registrations(&self) -> usize {
        self.table().entries.len()
    }

    /// Reads a local element.
    pub(super) fn gather(&self, element: &Element, to: &mut Vec<u8>) -> io::Result<()> {
        let table = self.table();
        table.check(element.key, element.address, u64::from(element.length), false)?;
        let start = to.len();
        to.resize(start + element.length as usize, 0);
        table.memory.read(element.address, &mut to[start..]).map_err(io::Error::other)
    }

    /// Writes to a local element.
    pub(super) fn scatter(&self, element: &Element, bytes: &[u8]) -> io::Result<()> {
        let table = self.table();
        table.check(element.key, element.address, u64::from(element.length), false)?;
        table.memory.write(element.address, bytes).map_err(io::Error::other)
    }

    /// What an RDMA READ of the peer does.
    pub(crate) fn remote_read(&self, address: u64, key: u32, to: &mut [u8]) -> io::Result<()> {
        let table = self.table();
        table.check(key, address, to.len() as u64, true)?;
        table.memory.read(address, to).map_err(io::Error::other)
    }

    /// What an RDMA WRITE of the peer does.
    pub(super) fn remote_write(&self, address: u64, key: u32, bytes: &[u8]) -> io::Result<()> {
        let table = self.table();
        table.check(key, address, bytes.len() as u64, true)?;
        table.memory.write(address, bytes).map_err(io::Error::other)
    }
}

impl Table {
    /// A key is even for this side and odd for the peer, so that one is never taken for the other.
    fn check(&self, key: u32, address: u64, len: u64, remote: bool) -> io::Result<()> {
        let refused =
            |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("key {key:#x}: {why}")));
        let Some(entry) = self.entries.get(&(key & !1)) else { return refused("no such key") };
        if (key & 1 == 1) != remote {
            return refused("a local key used by the peer, or the other way round");
        }
        if remote && entry.access != Access::Remote {
            return refused("the peer may not access this");
        }
        let end = address.checked_add(len);
        if address < entry.address || end.is_none_or(|end| end > entry.address + entry.len) {
            return refused("out of bounds");
        }
        Ok(())
    }
}

impl Domain for SimDomain {
    type Registration = SimRegistration;
    type Shared = SimShared;

    fn device(&self) -> &str {
        "sim0"
    }

    fn limits(&self) -> DeviceLimits {
        self.sim.0.limits
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    fn register(
        self: &Arc<Self>,
        region: &DmaRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<SimRegistration> {
        let errno = self.sim.0.fault(|fault| match fault {
            SimFault::Register(errno) => Some(*errno),
            _ => None,
        });
        if let Some(errno) = errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= region.len());
        if !inside || len as u64 > self.sim.0.limits.max_registration {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut table = self.table();
        let base = region.address() as u64;
        if !table.regions.contains_key(&region.id()) {
            table.memory.map_region(base, &to_device(region))?;
        }
        table.regions.entry(region.id()).or_insert((base, 0)).1 += 1;
        table.next += 2;
        let key = table.next;
        let entry = Entry { address: base + offset as u64, len: len as u64, access, region: region.id() };
        table.entries.insert(key, entry);
        count(&self.sim.0.counters.registrations, 1);
        Ok(SimRegistration { key, domain: Arc::clone(self) })
    }

    fn share(self: &Arc<Self>, completions: u32, receives: u32) -> io::Result<SimShared> {
        SimShared::new(self.sim.clone(), completions, receives)
    }
}

/// A registration of the simulated device.
pub struct SimRegistration {
    key: u32,
    domain: Arc<SimDomain>,
}

impl Registration for SimRegistration {
    fn local_key(&self) -> u32 {
        self.key
    }

    fn remote_key(&self) -> u32 {
        self.key | 1
    }
}

impl Drop for SimRegistration {
    fn drop(&mut self) {
        let mut table = self.domain.table();
        let Some(entry) = table.entries.remove(&self.key) else { return };
        let Some((base, count)) = table.regions.get_mut(&entry.region) else { return };
        *count -= 1;
        if *count == 0 {
            let base = *base;
            table.regions.remove(&entry.region);
            table.memory.unmap(base);
        }
    }
}
