//! Registered memory of the simulated device.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvmf_core::DmaRegion;
use nvmf_core::dma::{DeviceMemory, RegionId};

use super::grant::{device_memory, to_device};
use super::{Sim, SimFault, SimShared, count};
use crate::provider::{Access, Bind, DeviceLimits, Domain, Element, Registration};

struct Entry {
    address: u64,
    len: u64,
    access: Access,
    region: RegionId,
}

/// A memory window. Not bound without a range.
struct Window {
    /// The queue pair it is for.
    owner: u32,
    /// Its last key.
    key: u32,
    bound: Option<Bound>,
}

struct Bound {
    address: u64,
    len: u64,
    writable: bool,
}

/// Keys of windows have this bit, those of registrations do not.
const WINDOW: u32 = 1 << 31;

struct Table {
    memory: DeviceMemory,
    /// Registrations of each region, and where it is mapped.
    regions: HashMap<RegionId, (u64, usize)>,
    entries: HashMap<u32, Entry>,
    next: u32,
    /// By their key without its lowest byte.
    windows: HashMap<u32, Window>,
    next_window: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            memory: device_memory(),
            regions: HashMap::new(),
            entries: HashMap::new(),
            next: 0,
            windows: HashMap::new(),
            next_window: 0,
        }
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
        table.check(element.key, element.address, u64::from(element.length))?;
        let start = to.len();
        to.resize(start + element.length as usize, 0);
        table.memory.read(element.address, &mut to[start..]).map_err(io::Error::other)
    }

    /// Writes to a local element.
    pub(super) fn scatter(&self, element: &Element, bytes: &[u8]) -> io::Result<()> {
        let table = self.table();
        table.check(element.key, element.address, u64::from(element.length))?;
        table.memory.write(element.address, bytes).map_err(io::Error::other)
    }

    /// What an RDMA READ of the peer of queue pair `owner` does.
    pub(crate) fn remote_read(&self, owner: u32, address: u64, key: u32, to: &mut [u8]) -> io::Result<()> {
        let table = self.table();
        table.check_remote(owner, key, address, to.len() as u64, false)?;
        table.memory.read(address, to).map_err(io::Error::other)
    }

    /// What an RDMA WRITE of the peer of queue pair `owner` does.
    pub(super) fn remote_write(&self, owner: u32, address: u64, key: u32, bytes: &[u8]) -> io::Result<()> {
        let table = self.table();
        table.check_remote(owner, key, address, bytes.len() as u64, true)?;
        table.memory.write(address, bytes).map_err(io::Error::other)
    }

    /// Makes windows for queue pair `owner`.
    pub(super) fn make_windows(&self, owner: u32, count: u16) -> Vec<u32> {
        let mut table = self.table();
        let mut make = || {
            table.next_window += 1;
            let key = WINDOW | table.next_window << 8;
            table.windows.insert(key >> 8, Window { owner, key, bound: None });
            key
        };
        (0..count).map(|_| make()).collect()
    }

    /// Binds the window of queue pair `owner` whose key differs from the new one in the lowest byte.
    pub(super) fn bind(&self, owner: u32, bind: &Bind) -> io::Result<()> {
        let refused = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        let mut table = self.table();
        let element = bind.element;
        match table.entries.get(&element.key) {
            Some(entry) if entry.access == Access::Windows => {}
            _ => return refused("no registration for windows"),
        }
        table.check(element.key, element.address, u64::from(element.length))?;
        let window = table.windows.get_mut(&(bind.key >> 8)).filter(|window| window.owner == owner);
        let Some(window) = window else { return refused("no such window") };
        if window.bound.is_some() || window.key == bind.key {
            return refused("the window is bound, or that was its last key");
        }
        let (address, len) = (element.address, u64::from(element.length));
        window.key = bind.key;
        window.bound = Some(Bound { address, len, writable: bind.writable });
        count(&self.sim.0.counters.binds, 1);
        Ok(())
    }

    /// Ends the key of a window of queue pair `owner`. Whether there was such a key.
    pub(super) fn invalidate(&self, owner: u32, key: u32, by_peer: bool) -> bool {
        let mut table = self.table();
        let window = table.windows.get_mut(&(key >> 8));
        let window = window.filter(|window| window.owner == owner && window.key == key);
        let ended = window.is_some_and(|window| window.bound.take().is_some());
        let counters = &self.sim.0.counters;
        count(
            if by_peer { &counters.remote_invalidations } else { &counters.invalidations },
            u64::from(ended),
        );
        ended
    }

    /// The windows of a queue pair that is destroyed.
    pub(super) fn free_windows(&self, owner: u32) {
        self.table().windows.retain(|_, window| window.owner != owner);
    }

    fn enter(
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
}

impl Table {
    /// What this side may access. A key is even for this side and odd for the peer, so that one is never taken for the other.
    fn check(&self, key: u32, address: u64, len: u64) -> io::Result<()> {
        match self.entries.get(&key) {
            Some(entry) => inside(key, (address, len), (entry.address, entry.len)),
            None => Err(refused(key, "no such key, or one for the peer")),
        }
    }

    /// What the peer of queue pair `owner` may access.
    fn check_remote(&self, owner: u32, key: u32, address: u64, len: u64, writes: bool) -> io::Result<()> {
        if key & WINDOW != 0 {
            let window = self.windows.get(&(key >> 8));
            let window = window.filter(|window| window.owner == owner && window.key == key);
            let Some(bound) = window.and_then(|window| window.bound.as_ref()) else {
                return Err(refused(key, "no such window of this queue pair, or it is not bound"));
            };
            if writes != bound.writable {
                return Err(refused(key, "the window is not for that"));
            }
            return inside(key, (address, len), (bound.address, bound.len));
        }
        match self.entries.get(&(key & !1)) {
            Some(entry) if key & 1 == 1 && entry.access == Access::Remote => {
                inside(key, (address, len), (entry.address, entry.len))
            }
            Some(_) => Err(refused(key, "the peer may not access this")),
            None => Err(refused(key, "no such key")),
        }
    }
}

fn refused(key: u32, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("key {key:#x}: {why}"))
}

/// Both as address and length.
fn inside(key: u32, (address, len): (u64, u64), (start, bound): (u64, u64)) -> io::Result<()> {
    let end = address.checked_add(len);
    if address < start || end.is_none_or(|end| end > start + bound) {
        return Err(refused(key, "out of bounds"));
    }
    Ok(())
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
        if region.dma_buf().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        self.enter(region, offset, len, access)
    }

    fn register_dma_buf(
        self: &Arc<Self>,
        region: &DmaRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<SimRegistration> {
        if region.dma_buf().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let registration = self.enter(region, offset, len, access)?;
        count(&self.sim.0.counters.dma_bufs, 1);
        Ok(registration)
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
