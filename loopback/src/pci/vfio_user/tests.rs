//! The server, with a client in this process and with one that is no good.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nvmf_core::dma::SharedMemory;
use nvmf_core::{Driver, ErrorKind, TransportId};
use nvmf_transport_pcie::vfio_user::capabilities::Capabilities;
use nvmf_transport_pcie::vfio_user::message::{
    Command, DmaMap, DmaUnmap, Header, IRQ_MSIX, IrqSet, REGION_CONFIG, RegionAccess, RegionInfo, RegionIoFds,
};
use nvmf_transport_pcie::vfio_user::stream::{Message, Receiver, send};
use nvmf_transport_pcie::vfio_user::{VfioUserDevice, VfioUserOptions, transport};
use nvmf_transport_pcie::{Bar0, PciDevice};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, memfd_create};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::super::grant::to_function;
use super::session::Session;
use super::{VfioUserServer, VfioUserServerOptions};
use crate::{EmulatedFunction, Fault, Loopback, LoopbackError, Namespace, Rule, SubsystemBuilder};

const NQN: &str = "nqn.2024-01.org.example:vfio-user";
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;

fn function() -> (Loopback, EmulatedFunction) {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20).block_size(512));
    let loopback = Loopback::builder().subsystem(subsystem).build().unwrap();
    let function = loopback.pci_function(NQN).unwrap();
    (loopback, function)
}

/// A path of this test's own.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nvmf-vfio-user-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(place: &Place) -> nvmf_core::Result<VfioUserDevice> {
    VfioUserDevice::open(place.text(), &VfioUserOptions::default())
}

/// The server takes the function back when it notices that the client is gone.
fn open_soon(place: &Place) -> VfioUserDevice {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match open(place) {
            Ok(device) => return device,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sets admin queues of 8 entries up at `base` and enables the controller.
fn enable(bar: &Bar0, base: u64) {
    bar.write32(0x24, 7 << 16 | 7).unwrap();
    bar.write64(0x28, base).unwrap();
    bar.write64(0x30, base + 4096).unwrap();
    bar.write32(CC, 0x0046_0001).unwrap();
    until("CSTS.RDY", || bar.read32(CSTS).unwrap() & 1 == 1);
}

#[test]
fn registers_memory_and_interrupts() {
    let (_loopback, function) = function();
    let place = Place::new();
    let server = VfioUserServer::listen(&function, &place.0).unwrap();
    assert_eq!(server.path(), place.0.join("cntrl"));
    let mut device = open(&place).unwrap();
    let theirs = function.identity();
    assert_eq!((device.identity().vendor, device.identity().device), (theirs.vendor, theirs.device));
    assert_eq!(device.max_vectors(), function.vectors());
    let mut class = [0; 4];
    device.read_config(8, &mut class).unwrap();
    assert_eq!(class[1..], [2, 8, 1]);
    let bar = device.bar0().unwrap();
    assert_eq!(bar.len(), function.bar_len(0));
    let mut cap = [0; 8];
    function.bar_read(0, 0, &mut cap).unwrap();
    assert_eq!(bar.read64(0).unwrap(), u64::from_le_bytes(cap));

    device.write_config(4, &[6, 0]).unwrap();
    let rings = SharedMemory::allocate(3 * 4096).unwrap();
    let base = device.dma_map(&to_function(rings.extent().region())).unwrap();
    let vectors = device.max_vectors();
    let interrupts = device.enable_interrupts(vectors).unwrap();
    enable(&bar, base);
    // Identify controller, to the third page.
    let mut sqe = [0u8; 64];
    (sqe[0], sqe[2], sqe[40]) = (6, 0x77, 1);
    sqe[24..32].copy_from_slice(&(base + 8192).to_le_bytes());
    rings.write_bytes(0, &sqe);
    bar.doorbell(0x1000, 1).unwrap();
    until("the completion", || rings.load_acquire_u32(4096 + 12) & 0x1_0000 != 0);
    assert_eq!(rings.load_acquire_u32(4096 + 12), 0x1_0077, "success");
    let mut sn = [0; 256];
    rings.read_bytes(8192, &mut sn);
    assert_eq!(u16::from_le_bytes([sn[0], sn[1]]), theirs.vendor);
    let mut counter = [0; 8];
    until("the interrupt", || {
        fs::File::from(interrupts[0].try_clone().unwrap()).read(&mut counter.clone()).is_ok()
    });
    counter = [0; 8];
    let again = fs::File::from(interrupts[0].try_clone().unwrap()).read(&mut counter);
    assert_eq!(
        again.unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "reading silenced it, and it does not block"
    );

    // What was given back is reached no more: the next command finds no queue.
    device.dma_unmap(rings.extent().region().id()).unwrap();
    bar.doorbell(0x1000, 2).unwrap();
    until("CSTS.CFS", || bar.read32(CSTS).unwrap() & 2 != 0);
    device.reset().unwrap();
    assert_eq!((bar.read32(CC).unwrap(), bar.read32(CSTS).unwrap()), (0, 0));
}

#[test]
fn clients_come_one_after_the_other_and_leave_nothing_behind() {
    let (_loopback, function) = function();
    let place = Place::new();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    let mut first = open(&place).unwrap();
    let rings = SharedMemory::allocate(8192).unwrap();
    first.write_config(4, &[6, 0]).unwrap();
    let base = first.dma_map(&to_function(rings.extent().region())).unwrap();
    enable(&first.bar0().unwrap(), base);
    assert_eq!(function.with_memory(|memory| memory.ranges().count()), 1);
    let brief = VfioUserOptions { timeout: Duration::from_millis(50), ..VfioUserOptions::default() };
    assert!(VfioUserDevice::open(place.text(), &brief).unwrap_err().is_timeout(), "it is not its turn");
    drop(first);
    let mut second = open_soon(&place);
    assert_eq!(function.with_memory(|memory| memory.ranges().count()), 0);
    let bar = second.bar0().unwrap();
    assert_eq!((bar.read32(CC).unwrap(), bar.read32(CSTS).unwrap()), (0, 0));
    drop(second);
    // A host in this process has it: the client is told.
    until("the function is given back", || function.open().is_ok());
    let _held = function.open().unwrap();
    let error = open(&place).unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
}

#[test]
fn what_is_taken_away_is_gone_for_the_client() {
    let (_loopback, function) = function();
    let place = Place::new();
    let server = VfioUserServer::listen(&function, &place.0).unwrap();
    let device = open(&place).unwrap();
    drop(server);
    assert!(device.is_removed());
    assert!(!place.0.join("cntrl").exists());

    let (_loopback, function) = self::function();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    let mut device = open(&place).unwrap();
    function.remove();
    until("the client notices", || device.is_removed());
    assert!(matches!(device.bar0().unwrap().read32(0).unwrap_err().kind(), ErrorKind::Disconnected(_)));
}

#[test]
fn a_driver_reads_and_writes() {
    let (loopback, function) = function();
    let place = Place::new();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    let driver = Driver::builder().transport(transport(VfioUserOptions::default())).build();
    let trid: TransportId = format!("trtype:vfiouser traddr:{}", place.text()).parse().unwrap();
    for round in 0..3u8 {
        let ctrlr = driver.connect(&trid, &nvmf_core::ControllerOptions::default()).unwrap();
        let ns = ctrlr.namespace(1).unwrap();
        let mut qpair = ctrlr.alloc_io_qpair(&nvmf_core::IoQpairOptions::default()).unwrap();
        let mut buf = qpair.alloc(8192).unwrap();
        buf.fill(0xa0 + round);
        let mut buf = qpair.write_blocking(&ns, 3, buf).unwrap();
        buf.fill(0);
        let buf = qpair.read_blocking(&ns, 3, buf).unwrap();
        assert!(buf.iter().all(|&byte| byte == 0xa0 + round));
        drop(qpair);
        ctrlr.detach().unwrap();
    }
    // The function is pulled out under a command.
    let ctrlr = driver.connect(&trid, &nvmf_core::ControllerOptions::default()).unwrap();
    let ns = ctrlr.namespace(1).unwrap();
    let mut qpair = ctrlr.alloc_io_qpair(&nvmf_core::IoQpairOptions::default()).unwrap();
    loopback.faults().push(Rule::new(Fault::Disconnect).io().times(1));
    let buf = qpair.alloc(512).unwrap();
    assert!(qpair.read_blocking(&ns, 0, buf).is_err());
}

#[test]
fn sockets_that_are_there_already() {
    let (_loopback, function) = function();
    let place = Place::new();
    let path = place.0.join("socket");
    // Left by somebody who is gone.
    drop(UnixListener::bind(&path).unwrap());
    let server = VfioUserServer::listen(&function, &path).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    let other = self::function();
    let error = VfioUserServer::listen(&other.1, &path).unwrap_err();
    assert!(matches!(error, LoopbackError::ListenVfioUser { .. }), "{error}");
    drop(server);
    // No socket at all.
    fs::write(&path, "mine").unwrap();
    assert!(VfioUserServer::listen(&function, &path).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

// --- clients that are no good ----------------------------------------------------------------------------------

/// A client by hand.
struct Raw {
    socket: UnixStream,
    receiver: Receiver,
}

impl Raw {
    fn new(place: &Place) -> Self {
        let socket = UnixStream::connect(place.0.join("cntrl")).unwrap();
        Self { socket, receiver: Receiver::new(1 << 20) }
    }

    fn hello(place: &Place) -> Self {
        let mut raw = Self::new(place);
        assert_eq!(raw.call(Command::VERSION, &Capabilities::ours(4096).encode(), &[]).header.error.get(), 0);
        raw
    }

    fn call(&mut self, command: Command, body: &[u8], fds: &[&OwnedFd]) -> Message {
        let deadline = Instant::now() + Duration::from_secs(5);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        send(&self.socket, &Header::command(5, command, body.len(), 0), body, &fds, deadline).unwrap();
        let reply = self.receiver.receive(&self.socket, deadline).unwrap();
        assert_eq!((reply.header.msg_id.get(), reply.header.command), (5, command));
        assert_eq!(reply.header.has(Header::ERROR), reply.header.error.get() != 0);
        reply
    }

    fn errno(&mut self, command: Command, body: &[u8], fds: &[&OwnedFd]) -> i32 {
        self.call(command, body, fds).header.error.get() as i32
    }

    fn ends(mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        self.receiver.receive(&self.socket, deadline).is_err_and(|error| error.to_string().contains("closed"))
    }
}

fn memfd(len: u64, seal: bool) -> OwnedFd {
    let fd = memfd_create("client", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    if seal {
        fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    }
    fd
}

fn map(flags: u32, offset: u64, addr: u64, size: u64) -> DmaMap {
    DmaMap {
        argsz: 32.into(),
        flags: flags.into(),
        offset: offset.into(),
        addr: addr.into(),
        size: size.into(),
    }
}

#[test]
fn memory_that_is_not_taken() {
    let (_loopback, function) = function();
    let place = Place::new();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    let mut raw = Raw::hello(&place);
    let (good, loose) = (memfd(8192, true), memfd(8192, false));
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut try_map = |map: DmaMap, fds: &[&OwnedFd]| raw.errno(Command::DMA_MAP, map.as_bytes(), fds);
    let errno = Errno::raw_os_error;
    assert_eq!(try_map(map(3, 0, 0x1000, 8192), &[&loose]), errno(Errno::PERM), "it could be shortened");
    assert_eq!(try_map(map(3, 0, 0x1000, 4096), &[&event]), errno(Errno::PERM));
    assert_eq!(try_map(map(3, 0, 0x1000, 8192), &[]), errno(Errno::OPNOTSUPP));
    assert_eq!(try_map(map(3, 0, 0x1000, 8192), &[&good, &good]), errno(Errno::OPNOTSUPP));
    for wrong in [
        map(3, 4096, 0x1000, 8192),
        map(3, 0, 0x1000, 0),
        map(3, 0, 0x1000, 100),
        map(3, 1, 0x1000, 4096),
        map(3, u64::MAX - 4095, 0x1000, 4096),
        map(3, 0, 0x1000, 1 << 63),
        map(0x80, 0, 0x1000, 4096),
        map(0, 0, 0x1000, 4096),
        map(3, 0, u64::MAX, 8192),
        DmaMap { argsz: 31.into(), ..map(3, 0, 0x1000, 4096) },
    ] {
        assert_eq!(try_map(wrong, &[&good]), errno(Errno::INVAL), "{wrong:?}");
    }
    assert_eq!(try_map(map(7, 4096, 0x1000, 4096), &[&good]), 0);
    assert_eq!(try_map(map(3, 0, 0x0, 8192), &[&good]), errno(Errno::EXIST));
    let unmap = |flags: u32, addr: u64, size: u64| DmaUnmap {
        argsz: 24.into(),
        flags: flags.into(),
        addr: addr.into(),
        size: size.into(),
    };
    let mut try_unmap = |unmap: DmaUnmap| raw.errno(Command::DMA_UNMAP, unmap.as_bytes(), &[]);
    assert_eq!(try_unmap(unmap(0, 0x1000, 8192)), errno(Errno::NOENT));
    assert_eq!(try_unmap(unmap(1, 0x1000, 4096)), errno(Errno::INVAL));
    assert_eq!(try_unmap(unmap(0, 0x1000, 4096)), 0);
    assert_eq!(try_unmap(unmap(0, 0x1000, 4096)), errno(Errno::NOENT));
    assert_eq!(try_unmap(unmap(2, 0, 0)), 0);
}

#[test]
fn commands_that_are_refused() {
    let (_loopback, function) = function();
    let place = Place::new();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    let mut raw = Raw::hello(&place);
    let invalid = Errno::INVAL.raw_os_error();
    let access = |region: u32, offset: u64, count: u32| {
        RegionAccess { offset: offset.into(), region: region.into(), count: count.into() }.as_bytes().to_vec()
    };
    let len = function.bar_len(0);
    for wrong in [
        access(0, len, 4),
        access(0, len - 4, 8),
        access(0, 2, 4),
        access(0, 0, 3),
        access(0, 0, 0),
        access(0, u64::MAX, 4),
        access(0, 0, u32::MAX),
        access(1, 0, 4),
        access(99, 0, 4),
        access(REGION_CONFIG, 4094, 4),
        access(REGION_CONFIG, 1 << 32, 4),
    ] {
        assert_eq!(raw.errno(Command::REGION_READ, &wrong, &[]), invalid, "{wrong:?}");
        let count = u32::from_le_bytes(wrong[12..16].try_into().unwrap()).min(16) as usize;
        assert_eq!(raw.errno(Command::REGION_WRITE, &[&wrong[..], &vec![0; count]].concat(), &[]), invalid);
    }
    assert_eq!(raw.errno(Command::REGION_WRITE, &[&access(0, 0x14, 4)[..], &[0; 3]].concat(), &[]), invalid);
    let info = |index: u32, argsz: u32| RegionInfo {
        argsz: argsz.into(),
        flags: 0.into(),
        index: index.into(),
        cap_offset: 0.into(),
        size: 0.into(),
        offset: 0.into(),
    };
    assert_eq!(raw.errno(Command::DEVICE_GET_REGION_INFO, info(9, 32).as_bytes(), &[]), invalid);
    assert_eq!(raw.errno(Command::DEVICE_GET_REGION_INFO, info(0, 31).as_bytes(), &[]), invalid);
    assert_eq!(raw.errno(Command::DEVICE_GET_REGION_INFO, &[0; 31], &[]), invalid);
    let ask =
        |index: u32| RegionIoFds { argsz: 16.into(), flags: 0.into(), index: index.into(), count: 0.into() };
    let reply = raw.call(Command::DEVICE_GET_REGION_IO_FDS, ask(0).as_bytes(), &[]);
    assert_eq!((&reply.body[..], reply.fds.len()), (ask(0).as_bytes(), 0));
    assert_eq!(raw.errno(Command::DEVICE_GET_REGION_IO_FDS, ask(9).as_bytes(), &[]), invalid);

    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let file = memfd(8, false);
    let set = |flags: u32, start: u32, count: u32| IrqSet {
        argsz: 20.into(),
        flags: flags.into(),
        index: IRQ_MSIX.into(),
        start: start.into(),
        count: count.into(),
    };
    let vectors = u32::from(function.vectors());
    let mut irqs = |set: IrqSet, fds: &[&OwnedFd]| raw.errno(Command::DEVICE_SET_IRQS, set.as_bytes(), fds);
    assert_eq!(irqs(set(0x24, 0, 1), &[&event]), 0);
    assert_eq!(irqs(set(0x24, 0, 1), &[]), 0);
    assert_eq!(irqs(set(0x21, 0, 0), &[]), 0);
    for (wrong, fds) in [
        (set(0x24, 0, 1), &[&file][..]),
        (set(0x24, 0, 2), &[&event]),
        (set(0x24, vectors, 1), &[&event]),
        (set(0x24, u32::MAX, 2), &[&event, &event]),
        (set(0x21, 0, 0), &[&event]),
        (set(0x21, 0, 1), &[]),
        (set(0x0c, 0, 1), &[&event]),
        (set(0xffff_ffff, 0, 1), &[&event]),
        (IrqSet { index: 5.into(), ..set(0x24, 0, 1) }, &[&event]),
        (IrqSet { index: 1.into(), ..set(0x24, 0, 1) }, &[&event]),
    ] {
        assert_eq!(irqs(wrong, fds), invalid, "{wrong:?}");
    }
    assert_eq!(raw.errno(Command::DEVICE_RESET, &[], &[&event]), invalid);
    assert_eq!(raw.errno(Command::VERSION, &Capabilities::ours(1).encode(), &[]), invalid);
    assert_eq!(raw.errno(Command::DMA_READ, &[0; 16], &[]), Errno::OPNOTSUPP.raw_os_error());
    assert_eq!(raw.errno(Command(99.into()), &[1, 2, 3], &[]), Errno::OPNOTSUPP.raw_os_error());
    assert_eq!(raw.errno(Command::DEVICE_RESET, &[], &[]), 0, "and it goes on");
}

#[test]
fn what_is_not_the_protocol_ends_the_connection_and_only_that() {
    let (_loopback, function) = function();
    let place = Place::new();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    let header = |command, flags: u32, size: u32| Header {
        msg_size: size.into(),
        ..Header::command(0, command, 0, flags)
    };
    for wrong in [
        header(Command::DEVICE_RESET, 0, 16),
        header(Command::VERSION, Header::REPLY, 16),
        header(Command::VERSION, 9, 16),
        header(Command::VERSION, 0, 15),
        header(Command::VERSION, 0, u32::MAX),
    ] {
        let raw = Raw::new(&place);
        (&raw.socket).write_all(wrong.as_bytes()).unwrap();
        assert!(raw.ends(), "{wrong:?}");
    }
    // Half a message, and gone.
    (&Raw::hello(&place).socket).write_all(&[1; 5]).unwrap();
    open_soon(&place).bar0().unwrap().read32(0).unwrap();
}

#[test]
fn a_client_that_keeps_its_interrupt_counters_full_holds_up_nobody() {
    let (_loopback, function) = function();
    let place = Place::new();
    let _server = VfioUserServer::listen(&function, &place.0).unwrap();
    for _ in 0..3 {
        let mut device = open_soon(&place);
        let bar = device.bar0().unwrap();
        device.write_config(4, &[6, 0]).unwrap();
        let rings = SharedMemory::allocate(2 * 4096).unwrap();
        let base = device.dma_map(&to_function(rings.extent().region())).unwrap();
        let interrupts = device.enable_interrupts(1).unwrap();
        // As another holder of the eventfd can: the next write to it would wait for ever.
        let mut counter = fs::File::from(interrupts[0].try_clone().unwrap());
        counter.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(&counter, OFlags::empty()).unwrap();
        enable(&bar, base);
        for command in 0..4u16 {
            // Keep Alive.
            let mut sqe = [0u8; 64];
            sqe[0] = 0x18;
            rings.write_bytes(64 * usize::from(command), &sqe);
            bar.doorbell(0x1000, u32::from(command) + 1).unwrap();
            let phase = 4096 + 16 * usize::from(command) + 12;
            until("the completion", || rings.load_acquire_u32(phase) & 0x1_0000 != 0);
        }
        assert_eq!(bar.read32(CSTS).unwrap(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Nothing a client says panics, and what it gets back is a reply to what it said.
    #[test]
    fn any_command_is_answered(commands in prop::collection::vec((0u16..20, 0u32..64, prop::collection::vec(prop_oneof![3 => 0u8..40, 1 => any::<u8>()], 0..80)), 0..12)) {
        thread_local! {
            static FUNCTION: (Loopback, EmulatedFunction) = function();
        }
        FUNCTION.with(|(_, function)| {
            let _device = function.open().unwrap();
            let mut session = Session::new(function, VfioUserServerOptions::default());
            let message = |header: Header, body: Vec<u8>| Message { header, body, fds: Vec::new() };
            let hello = Capabilities::ours(1).encode();
            session.answer(message(Header::command(0, Command::VERSION, hello.len(), 0), hello)).unwrap();
            for (command, flags, body) in commands {
                let header = Header::command(1, Command(command.into()), body.len(), flags);
                match session.answer(message(header, body)) {
                    Err(_) => prop_assert!(flags & 0xf != 0),
                    Ok(None) => prop_assert!(header.has(Header::NO_REPLY)),
                    Ok(Some(reply)) => {
                        prop_assert_eq!(reply.header.msg_size.get() as usize, 16 + reply.body.len());
                        prop_assert_eq!(reply.header.is_reply(), Some(true));
                        prop_assert_eq!(reply.header.command, header.command);
                    }
                }
            }
            Ok(())
        })?;
    }
}
