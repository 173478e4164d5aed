//! A PCI function behind a vfio-user socket.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nvmf_core::dma::{DMA_PAGE, DeviceMemory, DmaGrant, RegionId};
use nvmf_core::{Error, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals};
use zerocopy::{FromBytes, IntoBytes};

use super::client::{Connection, VfioUserOptions};
use super::message::{
    Command, DeviceInfo, DmaMap, DmaUnmap, IRQ_MSIX, IrqInfo, IrqSet, REGION_BAR0, REGION_CONFIG, RegionInfo,
    mappable_areas,
};
use crate::device::{Bar0, BarAccess, BarArea, BarFile, PciDevice, PciIdentity};
use crate::grant::{file_for_server, registers_of_server};

/// Where bus addresses start. What lies below is left to what real buses have there.
const FIRST_IOVA: u64 = 1 << 32;
/// The end of bus addresses: devices have at least this many bits.
const END_IOVA: u64 = 1 << 48;
/// Bytes a reply to DEVICE_GET_REGION_INFO may have: room for 200 areas.
const REGION_REPLY: u32 = 4096;
/// No BAR is longer; ours would have doorbells of 64 Ki queues at the widest stride in less.
const MAX_BAR: u64 = 1 << 36;
/// A PCI Express function's configuration space.
const MAX_CONFIG: u64 = 4096;

/// A function that another process emulates, see [`super`].
pub struct VfioUserDevice {
    connection: Arc<Connection>,
    identity: PciIdentity,
    bar: Arc<Registers>,
    /// What of the registers is mapped, for other processes.
    mappable: Option<BarFile>,
    config_size: u64,
    can_reset: bool,
    vectors: u16,
    interrupts_on: bool,
    mapped: HashMap<RegionId, (u64, u64)>,
    next_iova: u64,
    /// Where they end: behind it nothing is mapped.
    end_iova: u64,
}

impl VfioUserDevice {
    /// Connects to the server at `address`: its socket, or a directory with a socket `cntrl` in it.
    ///
    /// # Errors
    /// When there is no server, when it does not answer in time or as the protocol demands, and when what it serves is not
    /// a PCI function.
    pub fn open(address: &str, options: &VfioUserOptions) -> Result<Self> {
        Self::attach(Connection::open(address, options.timeout)?, options)
    }

    /// The same over a socket that is connected to a server; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`VfioUserDevice::open`].
    pub fn over(socket: UnixStream, name: &str, options: &VfioUserOptions) -> Result<Self> {
        Self::attach(Connection::over(socket, name, options.timeout)?, options)
    }

    fn attach(connection: Connection, options: &VfioUserOptions) -> Result<Self> {
        let connection = Arc::new(connection);
        let zero = U32_ZERO;
        let info = DeviceInfo { argsz: size::<DeviceInfo>(), flags: zero, num_regions: zero, num_irqs: zero };
        let info: DeviceInfo = connection.call_for(Command::DEVICE_GET_INFO, &[info.as_bytes()])?;
        if info.flags.get() & DeviceInfo::PCI == 0 || info.num_regions.get() <= REGION_CONFIG {
            return Err(Error::unsupported("what the vfio-user server serves is not a PCI device")
                .peer(connection.name()));
        }
        let vectors = if info.num_irqs.get() > IRQ_MSIX {
            let ask = IrqInfo { argsz: size::<IrqInfo>(), flags: zero, index: IRQ_MSIX.into(), count: zero };
            let irq: IrqInfo = connection.call_for(Command::DEVICE_GET_IRQ_INFO, &[ask.as_bytes()])?;
            let usable = irq.flags.get() & IrqInfo::EVENTFD != 0 && connection.max_fds() > 0;
            // The MSI-X table has 2048 entries at most (PCIe 6.0 §7.7.2).
            if usable { irq.count.get().min(2048) as u16 } else { 0 }
        } else {
            0
        };
        let (bar, body, fds) = region_info(&connection, REGION_BAR0)?;
        let both = RegionInfo::READ | RegionInfo::WRITE;
        if bar.flags.get() & both != both || !(0x1008..=MAX_BAR).contains(&bar.size.get()) {
            return Err(Error::unsupported(format!(
                "BAR 0 has {:#x} bytes and flags {:#x}, which is not that of an NVMe controller",
                bar.size, bar.flags
            ))
            .peer(connection.name()));
        }
        let mut windows = registers_of_server();
        let mappable = fds.into_iter().next().filter(|_| options.map_registers);
        let mappable =
            mappable.and_then(|fd| map_registers(&mut windows, &bar, &body, fd, options.map_unsealed));
        let (config, ..) = region_info(&connection, REGION_CONFIG)?;
        let bar = Arc::new(Registers {
            connection: Arc::clone(&connection),
            region: REGION_BAR0,
            windows,
            len: bar.size.get(),
        });
        let mut device = Self {
            identity: PciIdentity { vendor: 0, device: 0, name: connection.name().to_owned() },
            connection,
            bar,
            mappable,
            config_size: config.size.get().min(MAX_CONFIG),
            can_reset: info.flags.get() & DeviceInfo::RESET != 0,
            vectors,
            interrupts_on: false,
            mapped: HashMap::new(),
            next_iova: FIRST_IOVA,
            end_iova: END_IOVA,
        };
        let mut ids = [0; 4];
        device.read_config(0, &mut ids)?;
        let [v0, v1, d0, d1] = ids;
        (device.identity.vendor, device.identity.device) =
            (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
        Ok(device)
    }

    /// Offsets and lengths of the parts of BAR 0 that are written without a message.
    pub fn mapped_registers(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.bar.windows.ranges()
    }

    fn check_config(&self, offset: u32, len: usize) -> Result<()> {
        if u64::from(offset) + len as u64 <= self.config_size {
            return Ok(());
        }
        Err(Error::api_misuse(format!(
            "{len} bytes at {offset:#x} do not lie in the {} bytes of configuration space",
            self.config_size
        ))
        .peer(self.connection.name()))
    }

    fn set_irqs(&self, flags: u32, start: u16, fds: &[OwnedFd]) -> Result<()> {
        let set = IrqSet {
            argsz: size::<IrqSet>(),
            flags: (flags | IrqSet::TRIGGER).into(),
            index: IRQ_MSIX.into(),
            start: u32::from(start).into(),
            count: (fds.len() as u32).into(),
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.connection.call(Command::DEVICE_SET_IRQS, &[set.as_bytes()], &fds).map(drop)
    }
}

const U32_ZERO: zerocopy::little_endian::U32 = zerocopy::little_endian::U32::ZERO;

fn size<T>() -> zerocopy::little_endian::U32 {
    (size_of::<T>() as u32).into()
}

fn region_info(connection: &Connection, index: u32) -> Result<(RegionInfo, Vec<u8>, Vec<OwnedFd>)> {
    let ask = RegionInfo {
        argsz: REGION_REPLY.into(),
        flags: U32_ZERO,
        index: index.into(),
        cap_offset: U32_ZERO,
        size: 0.into(),
        offset: 0.into(),
    };
    // Some servers want as many bytes as argsz says, others just the structure; all take the structure.
    let (body, fds) = connection.call(Command::DEVICE_GET_REGION_INFO, &[ask.as_bytes()], &[])?;
    match RegionInfo::read_from_prefix(&body) {
        Ok((info, _)) if info.index.get() == index && body.len() <= REGION_REPLY as usize => {
            Ok((info, body, fds))
        }
        _ => Err(connection.misbehaved(Command::DEVICE_GET_REGION_INFO, body.len())),
    }
}

/// Maps what the server offers as far as that is safe. Nothing is lost where not: messages reach every register.
fn map_registers(
    windows: &mut DeviceMemory,
    bar: &RegionInfo,
    body: &[u8],
    fd: OwnedFd,
    map_unsealed: bool,
) -> Option<BarFile> {
    // A file that can be shortened under a mapping is a SIGBUS at the server's pleasure.
    let sealed = || fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    if !map_unsealed && !sealed() && (fcntl_add_seals(&fd, SealFlags::SHRINK).is_err() || !sealed()) {
        return None;
    }
    let mut areas = Vec::new();
    for area in mappable_areas(body) {
        let (offset, len) = (area.offset.get(), area.size.get());
        let (Some(in_file), Ok(mapped), Ok(file)) =
            (bar.offset.get().checked_add(offset), usize::try_from(len), fd.try_clone())
        else {
            continue;
        };
        // Refused where it is not made of pages or lies outside of the file.
        if windows.map_file(offset, file, in_file, mapped, true).is_ok() {
            areas.push(BarArea { offset, at: in_file, len });
        }
    }
    Some(BarFile { sealed: sealed(), file: fd, areas, len: bar.size.get() })
}

impl PciDevice for VfioUserDevice {
    fn identity(&self) -> PciIdentity {
        self.identity.clone()
    }

    fn bar0(&mut self) -> Result<Bar0> {
        Ok(Bar0::new(Arc::clone(&self.bar) as Arc<dyn BarAccess>))
    }

    fn lend_registers(&self) -> Result<BarFile> {
        let Some(mappable) = self.mappable.as_ref().filter(|file| file.has_doorbells()) else {
            return Err(Error::unsupported("the doorbells of this vfio-user server cannot be mapped")
                .peer(self.connection.name())
                .hint("its file may be one it could cut short: --map-unsealed, if it is trusted not to"));
        };
        let BarFile { file, areas, len, sealed } = mappable;
        Ok(BarFile { file: file.try_clone()?, areas: areas.clone(), len: *len, sealed: *sealed })
    }

    fn bar(&mut self, index: u8) -> Result<Bar0> {
        if !(2..=5).contains(&index) {
            return Err(Error::api_misuse(format!("BAR {index} is none of a function's memory")));
        }
        // By message only: commands are written to it now and then, and mapping it is not worth its dangers.
        let region = REGION_BAR0 + u32::from(index);
        let (info, ..) = region_info(&self.connection, region)?;
        let len = info.size.get();
        if info.flags.get() & RegionInfo::WRITE == 0 || !(1..=MAX_BAR).contains(&len) {
            return Err(Error::unsupported(format!(
                "BAR {index} has {len:#x} bytes and flags {:#x}, which is no memory that can be written",
                info.flags
            ))
            .peer(self.connection.name()));
        }
        let connection = Arc::clone(&self.connection);
        Ok(Bar0::new(Arc::new(Registers { connection, region, windows: registers_of_server(), len })))
    }

    fn reserve_addresses(&mut self, at: Option<u64>, len: u64) -> Result<u64> {
        let exhausted = || {
            Error::exhausted(format!("{len} bytes of bus addresses cannot be set aside"))
                .peer(self.connection.name())
        };
        let first = at.unwrap_or(self.next_iova);
        let end = first.checked_add(len).ok_or_else(exhausted)?;
        if at.is_none() {
            let next = end.checked_next_multiple_of(DMA_PAGE as u64).filter(|&next| next <= self.end_iova);
            self.next_iova = next.ok_or_else(exhausted)?;
        } else if first >= self.next_iova {
            self.end_iova = self.end_iova.min(first);
        } else if end > FIRST_IOVA {
            return Err(exhausted());
        }
        Ok(first)
    }

    fn dma_map(&mut self, grant: &DmaGrant) -> Result<u64> {
        let region = grant.region();
        let Some(file) = file_for_server(grant) else {
            return Err(Error::unsupported("memory without a file cannot be shared with a vfio-user server")
                .doing("mapping DMA memory")
                .peer(self.connection.name())
                .hint("allocate buffers from the controller's pool instead of registering memory"));
        };
        if self.mapped.contains_key(&region.id()) {
            return Err(Error::api_misuse("this region is mapped for the function already")
                .peer(self.connection.name()));
        }
        let (iova, len) = (self.next_iova, region.len() as u64);
        let Some(end) = iova.checked_add(len).filter(|&end| end <= self.end_iova) else {
            return Err(
                Error::exhausted("no bus addresses are left for DMA memory").peer(self.connection.name())
            );
        };
        let map = DmaMap {
            argsz: size::<DmaMap>(),
            // Not MMAP: servers older than the flag refuse it, and a file is mapped without it as well.
            flags: (DmaMap::READ | DmaMap::WRITE).into(),
            offset: 0.into(),
            addr: iova.into(),
            size: len.into(),
        };
        // Taken even if the command fails: after a reply that was lost the server may have it.
        self.next_iova = end.next_multiple_of(DMA_PAGE as u64);
        self.connection.call(Command::DMA_MAP, &[map.as_bytes()], &[file])?;
        self.mapped.insert(region.id(), (iova, len));
        Ok(iova)
    }

    fn dma_unmap(&mut self, region: RegionId) -> Result<()> {
        let Some(&(iova, len)) = self.mapped.get(&region) else {
            return Err(
                Error::api_misuse("this region is not mapped for the function").peer(self.connection.name())
            );
        };
        let unmap =
            DmaUnmap { argsz: size::<DmaUnmap>(), flags: U32_ZERO, addr: iova.into(), size: len.into() };
        let (body, _) = self.connection.call(Command::DMA_UNMAP, &[unmap.as_bytes()], &[])?;
        // The structure comes back, but for the bytes a dirty bitmap would need.
        let same = |reply: DmaUnmap| reply.addr == unmap.addr && reply.size == unmap.size;
        if !body.is_empty() && !DmaUnmap::read_from_prefix(&body).is_ok_and(|(reply, _)| same(reply)) {
            return Err(self.connection.misbehaved(Command::DMA_UNMAP, body.len()));
        }
        self.mapped.remove(&region);
        Ok(())
    }

    fn max_vectors(&self) -> u16 {
        self.vectors
    }

    fn enable_interrupts(&mut self, vectors: u16) -> Result<Vec<OwnedFd>> {
        if vectors == 0 || vectors > self.vectors || self.interrupts_on {
            return Err(Error::api_misuse(format!(
                "{vectors} interrupt vectors asked for of a function with {} ({})",
                self.vectors,
                if self.interrupts_on { "in use" } else { "off" }
            ))
            .peer(self.connection.name()));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let mut fds = Vec::with_capacity(usize::from(vectors));
        for _ in 0..vectors {
            fds.push(eventfd(0, flags).map_err(std::io::Error::from)?);
        }
        self.interrupts_on = true;
        let most = self.connection.max_fds().max(1);
        for (index, part) in fds.chunks(most).enumerate() {
            self.set_irqs(IrqSet::EVENTFD, (index * most) as u16, part)?;
        }
        Ok(fds)
    }

    fn reset(&mut self) -> Result<()> {
        if !self.can_reset {
            return Err(Error::unsupported("the vfio-user server cannot reset its function")
                .peer(self.connection.name()));
        }
        if self.interrupts_on {
            self.set_irqs(IrqSet::NONE, 0, &[])?;
            self.interrupts_on = false;
        }
        self.connection.call(Command::DEVICE_RESET, &[], &[]).map(drop)
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> Result<()> {
        self.check_config(offset, to.len())?;
        self.connection.region_read(REGION_CONFIG, offset.into(), to)
    }

    fn write_config(&mut self, offset: u32, from: &[u8]) -> Result<()> {
        self.check_config(offset, from.len())?;
        self.connection.region_write(REGION_CONFIG, offset.into(), from, false)
    }

    fn isolate(&mut self) -> bool {
        let regions: Vec<RegionId> = self.mapped.keys().copied().collect();
        // The server's word is all there is. A server that is gone without it may still have the memory: its process need
        // not have ended.
        let confirmed = regions.into_iter().all(|region| self.dma_unmap(region).is_ok());
        self.connection.close();
        confirmed
    }

    fn is_removed(&self) -> bool {
        self.connection.is_lost()
    }

    fn removal_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connection.fd())
    }
}

impl Drop for VfioUserDevice {
    fn drop(&mut self) {
        // Register handles may outlive the device; the server is to let go of it now.
        self.connection.close();
    }
}

impl fmt::Debug for VfioUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VfioUserDevice({})", self.identity)
    }
}

/// A BAR: by message, but for what is mapped.
struct Registers {
    connection: Arc<Connection>,
    /// The vfio-user region of the BAR.
    region: u32,
    /// Mapped parts, by offset.
    windows: DeviceMemory,
    len: u64,
}

impl BarAccess for Registers {
    fn len(&self) -> u64 {
        self.len
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.connection.region_read(self.region, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read64(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.connection.region_read(self.region, offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.connection.region_write(self.region, offset, &value.to_le_bytes(), false)
    }

    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.connection.region_write(self.region, offset, &value.to_le_bytes(), false)
    }

    fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<()> {
        // Awaited: a doorbell that is a store and no message must not come before.
        self.connection.region_write(self.region, offset, from, false)
    }

    fn doorbell(&self, offset: u64, value: u32) -> Result<()> {
        // Outside of what is mapped the store does nothing but say so.
        if self.windows.store_release_u32(offset, value).is_ok() {
            return Ok(());
        }
        self.connection.region_write(self.region, offset, &value.to_le_bytes(), true)
    }
}
