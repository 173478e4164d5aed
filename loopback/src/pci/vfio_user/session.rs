//! What a client's commands do. No socket here: a message in, a reply out.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nvmf_core::spec::registers::DOORBELL_BASE;
use nvmf_core::{Error, ErrorKind, Result};
use nvmf_transport_pcie::vfio_user::capabilities::Capabilities;
use nvmf_transport_pcie::vfio_user::message::{
    Area, CapabilityHeader, Command, DeviceInfo, DmaMap, DmaUnmap, Header, IRQ_MSIX, IRQS, IrqInfo, IrqSet,
    REGION_BAR0, REGION_CONFIG, REGIONS, RegionAccess, RegionInfo, RegionIoFds, SparseMmap,
};
use nvmf_transport_pcie::vfio_user::stream::Message;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::config_space::CONFIG_SIZE;
use super::super::function::EmulatedFunction;
use super::VfioUserServerOptions;

/// Data a client may send or ask for with one message.
const MAX_DATA: u32 = 64 << 10;
/// A message with it.
pub(super) const MAX_MESSAGE: usize = MAX_DATA as usize + 256;
/// Regions a client may map: each costs this process a mapping, of which there are 64 Ki.
const MAX_MAPPINGS: usize = 4096;

/// A reply.
pub(super) struct Reply {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// A client's view of the function.
pub(super) struct Session<'a> {
    function: &'a EmulatedFunction,
    options: VfioUserServerOptions,
    /// What the client said in VERSION.
    client: Option<Capabilities>,
}

type Answer<T = Vec<u8>> = Result<T, Errno>;

impl<'a> Session<'a> {
    pub(super) fn new(function: &'a EmulatedFunction, options: VfioUserServerOptions) -> Self {
        Self { function, options, client: None }
    }

    /// Does what a message says. `None` when no reply is wanted.
    ///
    /// # Errors
    /// When the message is no command, or not one of this protocol's version: the connection makes no sense.
    pub(super) fn answer(&mut self, message: Message) -> Result<Option<Reply>> {
        let header = message.header;
        if header.is_reply() != Some(false) {
            return Err(Error::peer_misbehaved("the vfio-user client sent what is not a command"));
        }
        if self.client.is_none() && header.command != Command::VERSION {
            return Err(Error::peer_misbehaved("the vfio-user client did not start with VERSION"));
        }
        let mut fds = Vec::new();
        let outcome = self.command(message, &mut fds);
        if header.has(Header::NO_REPLY) {
            return Ok(None);
        }
        let (header, body) = match outcome {
            Ok(body) => (header.reply(body.len()), body),
            Err(errno) => {
                tracing::debug!(command = header.command.name(), %errno, "refused");
                (header.refusal(errno.raw_os_error()), Vec::new())
            }
        };
        Ok(Some(Reply { header, body, fds }))
    }

    fn command(&mut self, message: Message, reply_fds: &mut Vec<OwnedFd>) -> Answer {
        let Message { header, body, fds } = message;
        match header.command {
            Command::DMA_MAP => self.dma_map(&body, fds),
            Command::DEVICE_SET_IRQS => self.set_irqs(&body, fds),
            _ if !fds.is_empty() => Err(Errno::INVAL),
            Command::VERSION => self.version(&body),
            Command::DMA_UNMAP => self.dma_unmap(&body),
            Command::DEVICE_GET_INFO => self.device_info(&body),
            Command::DEVICE_GET_REGION_INFO => self.region_info(&body, reply_fds),
            Command::DEVICE_GET_REGION_IO_FDS => region_io_fds(&body),
            Command::DEVICE_GET_IRQ_INFO => self.irq_info(&body),
            Command::REGION_READ => self.region_read(&body),
            Command::REGION_WRITE => self.region_write(&body),
            Command::DEVICE_RESET => {
                self.function.reset();
                Ok(Vec::new())
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn version(&mut self, body: &[u8]) -> Answer {
        if self.client.is_some() {
            return Err(Errno::INVAL);
        }
        let client = Capabilities::decode(body).map_err(|error| {
            tracing::debug!(%error, "VERSION");
            Errno::INVAL
        })?;
        self.client = Some(client);
        Ok(Capabilities { minor: client.minor, ..Capabilities::ours(MAX_DATA) }.encode())
    }

    // --- memory ------------------------------------------------------------------------------------------------

    fn dma_map(&self, body: &[u8], fds: Vec<OwnedFd>) -> Answer {
        let (map, _) = arguments::<DmaMap>(body, |map| map.argsz)?;
        let flags = map.flags.get();
        if flags & !(DmaMap::READ | DmaMap::WRITE | DmaMap::MMAP) != 0 || flags & DmaMap::READ == 0 {
            return Err(Errno::INVAL);
        }
        let Ok([file]) = <[OwnedFd; 1]>::try_from(fds) else {
            // Memory without a file would be read and written by message.
            return Err(Errno::OPNOTSUPP);
        };
        // If the client could shorten the file, it could end this process: an access to what is no more is a SIGBUS.
        let sealed = || fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !self.options.map_unsealed && !sealed() {
            tracing::warn!(
                "a vfio-user client's memory is refused: its file is not sealed against shrinking"
            );
            return Err(Errno::PERM);
        }
        let len = usize::try_from(map.size.get()).map_err(|_| Errno::INVAL)?;
        let writable = flags & DmaMap::WRITE != 0;
        self.function.with_memory(|memory| {
            if memory.ranges().nth(MAX_MAPPINGS - 1).is_some() {
                return Err(Errno::NOSPC);
            }
            memory
                .map_file(map.addr.get(), file, map.offset.get(), len, writable)
                .map_err(|error| io_errno(&error))
        })?;
        Ok(Vec::new())
    }

    fn dma_unmap(&self, body: &[u8]) -> Answer {
        let (unmap, _) = arguments::<DmaUnmap>(body, |unmap| unmap.argsz)?;
        let (addr, size) = (unmap.addr.get(), unmap.size.get());
        match unmap.flags.get() {
            DmaUnmap::ALL if (addr, size) == (0, 0) => self.function.with_memory(|memory| memory.clear()),
            0 => self.function.with_memory(|memory| {
                // Whole mappings only, as VFIO has it.
                let found = memory.ranges().any(|(iova, len)| iova == addr && len as u64 == size);
                if found && memory.unmap(addr) { Ok(()) } else { Err(Errno::NOENT) }
            })?,
            _ => return Err(Errno::INVAL),
        }
        Ok(unmap.as_bytes().to_vec())
    }

    // --- what the device has -----------------------------------------------------------------------------------

    fn device_info(&self, body: &[u8]) -> Answer {
        arguments::<DeviceInfo>(body, |info| info.argsz)?;
        let info = DeviceInfo {
            argsz: size::<DeviceInfo>(),
            flags: (DeviceInfo::PCI | DeviceInfo::RESET).into(),
            num_regions: REGIONS.into(),
            num_irqs: IRQS.into(),
        };
        Ok(info.as_bytes().to_vec())
    }

    fn region_len(&self, region: u32) -> u64 {
        if region == REGION_CONFIG { CONFIG_SIZE as u64 } else { self.function.bar_len(region) }
    }

    fn region_info(&self, body: &[u8], fds: &mut Vec<OwnedFd>) -> Answer {
        let (ask, _) = arguments::<RegionInfo>(body, |info| info.argsz)?;
        let index = ask.index.get();
        if index >= REGIONS {
            return Err(Errno::INVAL);
        }
        let len = self.region_len(index);
        let flags = if len > 0 { RegionInfo::READ | RegionInfo::WRITE } else { 0 };
        let mut info = RegionInfo {
            argsz: size::<RegionInfo>(),
            flags: flags.into(),
            index: ask.index,
            cap_offset: 0.into(),
            size: len.into(),
            offset: 0.into(),
        };
        if index != REGION_BAR0 {
            return Ok(info.as_bytes().to_vec());
        }
        // The doorbells can be mapped; registers have to be asked for, since reading and writing them does something.
        let Some(file) = self.function.share_doorbells().map_err(|error| errno(&error))? else {
            return Ok(info.as_bytes().to_vec());
        };
        let all = size_of::<RegionInfo>() + size_of::<SparseMmap>() + size_of::<Area>();
        (info.flags, info.argsz) =
            ((flags | RegionInfo::MMAP | RegionInfo::CAPS).into(), (all as u32).into());
        if (ask.argsz.get() as usize) < all {
            // Told what the rest takes, it asks again.
            return Ok(info.as_bytes().to_vec());
        }
        info.cap_offset = size::<RegionInfo>();
        let header = CapabilityHeader { id: SparseMmap::ID.into(), version: 1.into(), next: 0.into() };
        let sparse = SparseMmap { header, areas: 1.into(), reserved: 0.into() };
        let area = Area { offset: DOORBELL_BASE.into(), size: (len - DOORBELL_BASE).into() };
        fds.push(file);
        Ok([info.as_bytes(), sparse.as_bytes(), area.as_bytes()].concat())
    }

    // --- interrupts --------------------------------------------------------------------------------------------

    fn vectors(&self, index: u32) -> Answer<u32> {
        match index {
            IRQ_MSIX => Ok(self.function.vectors().into()),
            0..IRQS => Ok(0),
            _ => Err(Errno::INVAL),
        }
    }

    fn irq_info(&self, body: &[u8]) -> Answer {
        let (ask, _) = arguments::<IrqInfo>(body, |info| info.argsz)?;
        let count = self.vectors(ask.index.get())?;
        let flags = if count > 0 { IrqInfo::EVENTFD } else { 0 };
        let info =
            IrqInfo { argsz: size::<IrqInfo>(), flags: flags.into(), index: ask.index, count: count.into() };
        Ok(info.as_bytes().to_vec())
    }

    fn set_irqs(&self, body: &[u8], fds: Vec<OwnedFd>) -> Answer {
        let (set, _) = arguments::<IrqSet>(body, |set| set.argsz)?;
        let (flags, start, count) = (set.flags.get(), set.start.get(), set.count.get());
        let vectors = self.vectors(set.index.get())?;
        let end = start.checked_add(count).filter(|&end| end <= vectors).ok_or(Errno::INVAL)?;
        if flags & IrqSet::ACTION_MASK != IrqSet::TRIGGER
            || flags & !(IrqSet::ACTION_MASK | IrqSet::DATA_MASK) != 0
        {
            // Masking is done where MSI-X has it: in the table, by the host.
            return Err(Errno::INVAL);
        }
        let off = match flags & IrqSet::DATA_MASK {
            IrqSet::NONE if count == 0 && start == 0 && fds.is_empty() => 0..vectors,
            IrqSet::EVENTFD if fds.is_empty() => start..end,
            IrqSet::EVENTFD if fds.len() == count as usize => {
                if !fds.iter().all(is_eventfd) {
                    return Err(Errno::INVAL);
                }
                for (vector, fd) in (start..end).zip(fds) {
                    self.function.set_interrupt(vector as u16, Some(fd));
                }
                return Ok(Vec::new());
            }
            _ => return Err(Errno::INVAL),
        };
        for vector in off {
            self.function.set_interrupt(vector as u16, None);
        }
        Ok(Vec::new())
    }

    // --- regions -----------------------------------------------------------------------------------------------

    fn check_access(&self, access: &RegionAccess) -> Answer<()> {
        let (offset, count) = (access.offset.get(), access.count.get());
        let end = offset.checked_add(count.into());
        if count == 0 || count > MAX_DATA || end.is_none_or(|end| end > self.region_len(access.region.get()))
        {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    fn region_read(&self, body: &[u8]) -> Answer {
        let (access, rest) = RegionAccess::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
        self.check_access(&access)?;
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        let mut reply = access.as_bytes().to_vec();
        reply.resize(size_of::<RegionAccess>() + access.count.get() as usize, 0);
        let data = &mut reply[size_of::<RegionAccess>()..];
        // The offset of a region that passed the check is below 4 GiB only for configuration space; BARs take all of it.
        let offset = access.offset.get();
        match access.region.get() {
            REGION_CONFIG => self.function.config_read(offset as u32, data),
            bar => self.function.bar_read(bar, offset, data),
        }
        .map_err(|error| errno(&error))?;
        Ok(reply)
    }

    fn region_write(&self, body: &[u8]) -> Answer {
        let (access, data) = RegionAccess::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
        self.check_access(&access)?;
        if data.len() != access.count.get() as usize {
            return Err(Errno::INVAL);
        }
        let offset = access.offset.get();
        match access.region.get() {
            REGION_CONFIG => self.function.config_write(offset as u32, data),
            bar => self.function.bar_write(bar, offset, data),
        }
        .map_err(|error| errno(&error))?;
        Ok(access.as_bytes().to_vec())
    }
}

/// No part of any region has descriptors.
fn region_io_fds(body: &[u8]) -> Answer {
    let (ask, _) = arguments::<RegionIoFds>(body, |ask| ask.argsz)?;
    if ask.flags.get() != 0 || ask.count.get() != 0 || ask.index.get() >= REGIONS {
        return Err(Errno::INVAL);
    }
    Ok(RegionIoFds { argsz: size::<RegionIoFds>(), ..ask }.as_bytes().to_vec())
}

fn size<T>() -> U32 {
    (size_of::<T>() as u32).into()
}

/// A command's structure, whose own idea of its size must be at least that.
fn arguments<T: FromBytes + KnownLayout + Immutable>(
    body: &[u8],
    argsz: impl Fn(&T) -> U32,
) -> Answer<(T, &[u8])> {
    let (arguments, rest) = T::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
    if (argsz(&arguments).get() as usize) < size_of::<T>() {
        return Err(Errno::INVAL);
    }
    Ok((arguments, rest))
}

/// Whether it is what an interrupt can be written to without harm: a file or a socket might block or mean something.
fn is_eventfd(fd: &OwnedFd) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
}

fn io_errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::InvalidInput => Errno::INVAL,
        io::ErrorKind::AlreadyExists => Errno::EXIST,
        _ => Errno::from_io_error(error).unwrap_or(Errno::IO),
    }
}

fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::ApiMisuse(_) => Errno::INVAL,
        ErrorKind::Disconnected(_) => Errno::NODEV,
        ErrorKind::Transport(error) => io_errno(error),
        _ => Errno::IO,
    }
}
