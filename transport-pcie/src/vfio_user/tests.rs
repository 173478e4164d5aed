//! The client against a server that lies. What a server that does not lie does is tested where the server is.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvmf_core::{DmaRegion, Error, ErrorKind};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use zerocopy::{FromBytes, IntoBytes};

use super::capabilities::Capabilities;
use super::message::{
    Area, CapabilityHeader, Command, DeviceInfo, DmaMap, Header, IrqInfo, IrqSet, REGION_CONFIG,
    RegionAccess, RegionInfo, SparseMmap,
};
use super::stream::{Message, Receiver, send};
use super::{VfioUserDevice, VfioUserOptions};
use crate::device::PciDevice;

const BAR: u64 = 0x4000;

fn options() -> VfioUserOptions {
    VfioUserOptions { timeout: Duration::from_millis(300), ..VfioUserOptions::default() }
}

/// What the server does with a command.
enum Do {
    /// Answers as a good server would.
    Well,
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes.
    Last(Vec<u8>),
    /// Answers with this body and descriptor.
    With(Vec<u8>, OwnedFd),
    Refuse(i32),
    Close,
    /// Goes on without an answer.
    Nothing,
}

struct Server {
    thread: JoinHandle<Vec<(Command, Vec<u8>, usize)>>,
}

impl Server {
    /// A server that asks `script` what to do with each command. Returns what it was sent.
    fn start(mut script: impl FnMut(&Message) -> Do + Send + 'static) -> (UnixStream, Self) {
        let (client, socket) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut receiver = Receiver::new(1 << 20);
            let mut seen = Vec::new();
            let far = || Instant::now() + Duration::from_secs(20);
            while let Ok(message) = receiver.receive(&socket, far()) {
                seen.push((message.header.command, message.body.clone(), message.fds.len()));
                if message.header.is_reply() == Some(true) {
                    continue;
                }
                match script(&message) {
                    Do::Well => {
                        if let Some((body, fds)) = well(&message) {
                            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                            let _ = send(&socket, &message.header.reply(body.len()), &body, &fds, far());
                        }
                    }
                    Do::Bytes(bytes) => drop((&socket).write_all(&bytes)),
                    Do::Last(bytes) => {
                        let _ = (&socket).write_all(&bytes);
                        break;
                    }
                    Do::With(body, fd) => {
                        let _ = send(&socket, &message.header.reply(body.len()), &body, &[fd.as_fd()], far());
                    }
                    Do::Refuse(errno) => drop(send(&socket, &message.header.refusal(errno), &[], &[], far())),
                    Do::Close => break,
                    Do::Nothing => {}
                }
            }
            let _ = socket.shutdown(Shutdown::Both);
            seen
        });
        (client, Self { thread })
    }

    fn seen(self) -> Vec<(Command, Vec<u8>, usize)> {
        self.thread.join().unwrap()
    }
}

/// Four pages of memory behind BAR 0, from its second page on.
fn registers() -> OwnedFd {
    let fd = memfd_create("registers", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, 0x4000).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    fd
}

/// Body and descriptors of a good server's answer.
fn well(message: &Message) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    if message.header.has(Header::NO_REPLY) {
        return None;
    }
    let n = |number: u32| number.to_le_bytes();
    let body = match message.header.command {
        Command::VERSION => Capabilities { max_msg_fds: 2, ..Capabilities::ours(8) }.encode(),
        Command::DEVICE_GET_INFO => [n(16), n(DeviceInfo::PCI | DeviceInfo::RESET), n(9), n(5)].concat(),
        Command::DEVICE_GET_IRQ_INFO => [n(16), n(IrqInfo::EVENTFD), n(2), n(5)].concat(),
        Command::DEVICE_GET_REGION_INFO => {
            let index = RegionInfo::read_from_prefix(&message.body).unwrap().0.index;
            let size = if index.get() == REGION_CONFIG { 256 } else { BAR };
            let maps = if index.get() == 0 { RegionInfo::MMAP | RegionInfo::CAPS } else { 0 };
            let info = RegionInfo {
                argsz: 64.into(),
                flags: (3 | maps).into(),
                index,
                cap_offset: 32.into(),
                size: size.into(),
                offset: 0.into(),
            };
            if maps == 0 {
                info.as_bytes().to_vec()
            } else {
                let header =
                    CapabilityHeader { id: SparseMmap::ID.into(), version: 1.into(), next: 0.into() };
                let sparse = SparseMmap { header, areas: 1.into(), reserved: 0.into() };
                let area = Area { offset: 0x1000.into(), size: 0x1000.into() };
                let body = [info.as_bytes(), sparse.as_bytes(), area.as_bytes()].concat();
                return Some((body, vec![registers()]));
            }
        }
        Command::REGION_READ => {
            let access = RegionAccess::read_from_prefix(&message.body).unwrap().0;
            let data = (0..access.count.get()).map(|i| (access.offset.get() as u32 + i) as u8);
            [access.as_bytes(), &data.collect::<Vec<u8>>()].concat()
        }
        Command::REGION_WRITE => message.body[..16].to_vec(),
        Command::DMA_UNMAP => message.body.clone(),
        _ => Vec::new(),
    };
    Some((body, Vec::new()))
}

/// A device whose server does `what` with every `command` from the `nth` on.
fn device(
    command: Command,
    nth: usize,
    mut what: impl FnMut(&Message) -> Do + Send + 'static,
) -> (VfioUserDevice, Server) {
    let mut count = 0;
    let (socket, server) = Server::start(move |message| {
        if message.header.command == command {
            count += 1;
            if count > nth {
                return what(message);
            }
        }
        Do::Well
    });
    (VfioUserDevice::over(socket, "test", &options()).unwrap(), server)
}

fn good() -> (VfioUserDevice, Server) {
    device(Command::VERSION, 1, |_| Do::Well)
}

fn is_misbehaviour(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PeerMisbehaved(_))
}

fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Disconnected(_))
}

fn errno(error: &Error) -> Option<i32> {
    match error.kind() {
        ErrorKind::Transport(error) => error.raw_os_error(),
        _ => None,
    }
}

#[test]
fn a_good_server() {
    let (mut device, server) = good();
    assert_eq!((device.identity().vendor, device.identity().device), (0x0100, 0x0302));
    assert_eq!(device.max_vectors(), 5);
    assert_eq!(device.mapped_registers().collect::<Vec<_>>(), [(0x1000, 0x1000)]);
    let bar = device.bar0().unwrap();
    assert_eq!(bar.len(), BAR);
    assert_eq!(bar.read64(8).unwrap(), 0x0f0e_0d0c_0b0a_0908);
    assert_eq!(bar.read32(0x14).unwrap(), 0x1716_1514);
    bar.write32(0x14, 0x1234_5678).unwrap();
    bar.write64(0x28, 5).unwrap();
    // Mapped, and not.
    bar.doorbell(0x1008, 1).unwrap();
    bar.doorbell(0x2008, 2).unwrap();
    // In messages of 8 bytes, as the server asked for.
    let mut bytes = [0; 20];
    device.read_config(1, &mut bytes).unwrap();
    assert!(bytes.iter().zip(1..).all(|(&byte, expected)| byte == expected));
    assert!(device.read_config(250, &mut bytes).is_err());
    device.write_config(4, &[6, 0]).unwrap();

    let region = DmaRegion::allocate(8192).unwrap().region().clone();
    let iova = device.dma_map(&crate::grant::to_function(&region)).unwrap();
    assert!(matches!(
        device.dma_map(&crate::grant::to_function(&region)).unwrap_err().kind(),
        ErrorKind::ApiMisuse(_)
    ));
    device.dma_unmap(region.id()).unwrap();
    assert!(device.dma_unmap(region.id()).is_err());
    assert_ne!(device.dma_map(&crate::grant::to_function(&region)).unwrap(), iova);
    assert_eq!(device.enable_interrupts(5).unwrap().len(), 5);
    device.reset().unwrap();
    assert!(!device.is_removed());
    assert!(device.isolate() && device.is_removed());
    drop(device);

    let seen = server.seen();
    let writes: Vec<_> = seen.iter().filter(|(command, ..)| *command == Command::REGION_WRITE).collect();
    assert_eq!(writes.len(), 4, "the mapped doorbell took no message");
    let sent = |command| seen.iter().filter(move |(c, ..)| *c == command);
    let maps: Vec<_> = sent(Command::DMA_MAP).collect();
    let map = DmaMap::read_from_bytes(&maps[0].1).unwrap();
    assert_eq!((map.addr.get(), map.size.get(), map.offset.get(), map.flags.get()), (iova, 8192, 0, 3));
    assert_eq!(maps[0].2, 1, "the file goes along");
    // Two descriptors at a time, as the server said, and all off before the reset.
    let irqs: Vec<_> = sent(Command::DEVICE_SET_IRQS)
        .map(|(_, body, fds)| {
            let set = IrqSet::read_from_bytes(body).unwrap();
            (set.flags.get(), set.start.get(), set.count.get(), *fds)
        })
        .collect();
    assert_eq!(irqs, [(0x24, 0, 2, 2), (0x24, 2, 2, 2), (0x24, 4, 1, 1), (0x21, 0, 0, 0)]);
    assert_eq!(sent(Command::DEVICE_RESET).count(), 1);
}

#[test]
fn registers_are_mapped_only_where_that_is_safe() {
    let open = |file: Option<fn() -> OwnedFd>, options: VfioUserOptions| {
        let (socket, _server) = Server::start(move |message| {
            if message.header.command != Command::DEVICE_GET_REGION_INFO {
                return Do::Well;
            }
            let (body, _) = well(message).unwrap();
            match file {
                Some(file) => Do::With(body, file()),
                None => Do::Bytes([message.header.reply(body.len()).as_bytes(), &body].concat()),
            }
        });
        VfioUserDevice::over(socket, "test", &options).unwrap().mapped_registers().count()
    };
    // One that can be sealed and is not, one that cannot be, and one that is too short.
    let open_file = || {
        let fd = memfd_create("registers", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, BAR).unwrap();
        fd
    };
    let unsealable = || {
        let fd = memfd_create("registers", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, BAR).unwrap();
        fd
    };
    let short = || memfd_create("registers", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    assert_eq!(open(Some(registers), options()), 1);
    assert_eq!(open(Some(registers), VfioUserOptions { map_registers: false, ..options() }), 0);
    assert_eq!(open(Some(open_file), options()), 1);
    assert_eq!(open(Some(unsealable), options()), 0);
    assert_eq!(open(Some(unsealable), VfioUserOptions { map_unsealed: true, ..options() }), 1);
    assert_eq!(open(Some(short), options()), 0);
    assert_eq!(open(None, options()), 0);
}

#[test]
fn what_the_server_refuses_is_an_error_and_the_connection_goes_on() {
    let (mut device, _server) = device(Command::DMA_MAP, 0, |_| Do::Refuse(12));
    let region = DmaRegion::allocate(4096).unwrap().region().clone();
    assert_eq!(errno(&device.dma_map(&crate::grant::to_function(&region)).unwrap_err()), Some(12));
    assert!(device.dma_unmap(region.id()).is_err(), "it is not mapped");

    let (mut device, _server) = self::device(Command::REGION_READ, 1, |_| Do::Refuse(22));
    let bar = device.bar0().unwrap();
    assert_eq!(errno(&bar.read32(0).unwrap_err()), Some(22));
    bar.write32(0x14, 0).unwrap();
    assert!(!device.is_removed());

    let (mut device, _server) = self::device(Command::DEVICE_RESET, 0, |_| Do::Refuse(95));
    assert!(matches!(device.reset().unwrap_err().kind(), ErrorKind::Unsupported(_)));
    let (mut device, _server) = self::device(Command::DEVICE_SET_IRQS, 0, |_| Do::Refuse(0));
    assert!(device.enable_interrupts(1).unwrap_err().to_string().contains("without a reason"));
    let (mut device, _server) = self::device(Command::DMA_UNMAP, 0, |_| Do::Refuse(5));
    device.dma_map(&crate::grant::to_function(&region)).unwrap();
    assert!(!device.isolate(), "memory that is not given back is not free");
}

#[test]
fn a_server_that_says_nothing_is_given_up_at_the_deadline() {
    let (mut device, _server) = device(Command::REGION_READ, 1, |_| Do::Nothing);
    let bar = device.bar0().unwrap();
    let start = Instant::now();
    let error = bar.read32(0).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(3));
    // A late answer must not be taken for that to another question.
    assert!(is_lost(&bar.read32(0).unwrap_err()) && is_lost(&bar.doorbell(0x2008, 1).unwrap_err()));
    assert!(device.is_removed() && start.elapsed() < Duration::from_secs(3));
}

#[test]
fn answers_that_cannot_be() {
    let header = |message: &Message| message.header.reply(0);
    type Lie = fn(Header, Vec<u8>) -> Vec<u8>;
    let lies: [(&str, Lie); 9] = [
        ("another id", |h, body| [Header { msg_id: 999.into(), ..h }.as_bytes(), &body].concat()),
        ("another command", |h, body| [Header { command: Command::DMA_MAP, ..h }.as_bytes(), &body].concat()),
        ("an unknown type", |h, body| [Header { flags: 3.into(), ..h }.as_bytes(), &body].concat()),
        ("a huge size", |h, body| [Header { msg_size: u32::MAX.into(), ..h }.as_bytes(), &body].concat()),
        ("a size below the header", |h, body| {
            [Header { msg_size: 3.into(), ..h }.as_bytes(), &body].concat()
        }),
        ("no body", |h, _| Header { msg_size: 16.into(), ..h }.as_bytes().to_vec()),
        ("a byte less", |h, body| {
            let h = Header { msg_size: (h.msg_size.get() - 1).into(), ..h };
            [h.as_bytes(), &body[..body.len() - 1]].concat()
        }),
        ("a byte more", |h, body| {
            [Header { msg_size: (h.msg_size.get() + 1).into(), ..h }.as_bytes(), &body, &[0]].concat()
        }),
        ("another place", |h, mut body| {
            body[0] ^= 1;
            [h.as_bytes(), &body].concat()
        }),
    ];
    for (name, lie) in lies {
        let (mut device, _server) = device(Command::REGION_READ, 1, move |message| {
            let (body, _) = well(message).unwrap();
            let good = Header { msg_size: (16 + body.len() as u32).into(), ..header(message) };
            Do::Bytes(lie(good, body))
        });
        let error = device.bar0().unwrap().read32(0).unwrap_err();
        assert!(is_misbehaviour(&error), "{name}: {error}");
    }
}

#[test]
fn a_server_that_closes_at_any_byte() {
    // Of the first answer, and of that to the first read, which is that of the identifiers.
    for command in [Command::VERSION, Command::REGION_READ] {
        for count in 0.. {
            let (sender, whole) = mpsc::channel();
            let (socket, _server) = Server::start(move |message| {
                if message.header.command != command {
                    return Do::Well;
                }
                let (body, _) = well(message).unwrap();
                let bytes = [message.header.reply(body.len()).as_bytes(), &body].concat();
                sender.send(bytes.len()).unwrap();
                Do::Last(bytes[..count].to_vec())
            });
            let error = VfioUserDevice::over(socket, "test", &options()).unwrap_err();
            assert!(is_lost(&error), "{count}: {error}");
            if whole.recv().unwrap() == count + 1 {
                break;
            }
        }
    }
}

#[test]
fn the_death_of_the_server_is_noticed_without_asking() {
    let (device, server) = device(Command::REGION_WRITE, 0, |_| Do::Close);
    let mut device = device;
    assert!(!device.is_removed());
    assert!(device.removal_fd().is_some());
    // Posted: no answer is waited for.
    device.bar0().unwrap().doorbell(0x2008, 1).unwrap();
    server.seen();
    assert!(device.is_removed());
    assert!(is_lost(&device.bar0().unwrap().read32(0).unwrap_err()));
    assert!(device.isolate(), "nothing was mapped");
}

#[test]
fn commands_of_the_server_are_refused_and_do_not_disturb() {
    let dma_read = || {
        let body = [0u8; 16];
        [Header::command(7, Command::DMA_READ, 16, 0).as_bytes(), &body].concat()
    };
    // In front of an answer.
    let (mut device, server) = device(Command::REGION_READ, 1, move |message| {
        let (body, _) = well(message).unwrap();
        Do::Bytes([&dma_read()[..], message.header.reply(body.len()).as_bytes(), &body].concat())
    });
    assert_eq!(device.bar0().unwrap().read32(4).unwrap(), 0x0706_0504);
    drop(device);
    // The server took the refusal for a command; it had the id of its own.
    let seen = server.seen();
    assert_eq!(seen.iter().filter(|(command, ..)| *command == Command::DMA_READ).count(), 1);
    // When nobody waits for anything.
    let (mut device, _server) = self::device(Command::REGION_WRITE, 0, move |_| Do::Bytes(dma_read()));
    device.bar0().unwrap().doorbell(0x2008, 1).unwrap();
    thread::sleep(Duration::from_millis(20));
    assert!(!device.is_removed());
    assert_eq!(device.bar0().unwrap().read32(4).unwrap(), 0x0706_0504);
}

#[test]
fn what_is_no_nvme_function_is_not_taken() {
    let open = |script: fn(&Message) -> Do| {
        let (socket, _server) = Server::start(script);
        VfioUserDevice::over(socket, "test", &options()).unwrap_err()
    };
    let error = open(|message| match message.header.command {
        Command::VERSION => Do::Bytes([message.header.reply(4).as_bytes(), &[1, 0, 0, 0]].concat()),
        _ => Do::Well,
    });
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    let error = open(|message| match message.header.command {
        Command::DEVICE_GET_INFO => Do::Bytes([message.header.reply(16).as_bytes(), &[0; 16]].concat()),
        _ => Do::Well,
    });
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    let error = open(|message| match message.header.command {
        Command::DEVICE_GET_REGION_INFO => {
            Do::Bytes([message.header.reply(32).as_bytes(), &[0; 32]].concat())
        }
        _ => Do::Well,
    });
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    assert!(is_lost(&open(|_| Do::Close)));
    assert!(open(|_| Do::Nothing).is_timeout());
}

#[test]
fn other_bars_and_addresses_that_are_set_aside() {
    let (mut device, server) = good();
    let bar = device.bar(2).unwrap();
    assert_eq!(bar.len(), BAR);
    bar.write_bytes(0x40, &[7; 24]).unwrap();
    assert!(bar.write_bytes(BAR - 8, &[0; 16]).is_err() && bar.write_bytes(2, &[0; 4]).is_err());
    assert!(device.bar(0).is_err() && device.bar(1).is_err() && device.bar(6).is_err());
    // In one piece after the other, of as much as a message of this server has, each awaited.
    let region = |size: u64| crate::grant::to_function(DmaRegion::allocate(size as usize).unwrap().region());
    let first = device.dma_map(&region(4096)).unwrap();
    let set_aside = device.reserve_addresses(None, 0x1_0001).unwrap();
    let next = device.dma_map(&region(4096)).unwrap();
    assert!(first < set_aside && next >= set_aside + 0x1_0001 && next.is_multiple_of(4096));
    // What lies below all mappings is free anyway, what has been in use is not, and what lies above ends them.
    assert_eq!(device.reserve_addresses(Some(0xc000_0000), 0x1000).unwrap(), 0xc000_0000);
    assert!(device.reserve_addresses(Some(first), 0x1000).is_err());
    assert!(device.reserve_addresses(None, u64::MAX).is_err());
    let above = next + 0x3000;
    assert_eq!(device.reserve_addresses(Some(above), 0x1000).unwrap(), above);
    device.dma_map(&region(8192)).unwrap();
    assert!(matches!(device.dma_map(&region(4096)).unwrap_err().kind(), ErrorKind::Exhausted(_)));
    drop(device);
    let written: Vec<usize> = server
        .seen()
        .iter()
        .filter(|(command, ..)| *command == Command::REGION_WRITE)
        .map(|(_, body, _)| {
            assert_eq!(body[8], 2, "the region");
            body.len() - 16
        })
        .collect();
    assert_eq!(written, [8, 8, 8]);

    // Nothing there, or nothing that can be written.
    for (flags, size) in [(0u32, 0u64), (3, 0), (1, 0x1000), (3, u64::MAX)] {
        let (mut device, _server) = self::device(Command::DEVICE_GET_REGION_INFO, 2, move |message| {
            let (body, _) = well(message).unwrap();
            let mut info = RegionInfo::read_from_prefix(&body).unwrap().0;
            (info.flags, info.size) = (flags.into(), size.into());
            let header = message.header.reply(size_of::<RegionInfo>());
            Do::Bytes([header.as_bytes(), info.as_bytes()].concat())
        });
        let error = device.bar(2).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    }
}

#[test]
fn an_address_without_a_server() {
    let path = std::env::temp_dir().join(format!("nvmf-vfio-user-none-{}", std::process::id()));
    let error = VfioUserDevice::open(path.to_str().unwrap(), &options()).unwrap_err();
    assert!(error.to_string().contains("is the server running"), "{error}");
    // A listener whose queue is full and who takes nobody.
    let _ = std::fs::remove_file(&path);
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    let error = VfioUserDevice::open(path.to_str().unwrap(), &options()).unwrap_err();
    assert!(error.to_string().contains("no server listens"), "{error}");
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let start = Instant::now();
    let error = VfioUserDevice::open(path.to_str().unwrap(), &options()).unwrap_err();
    assert!(error.to_string().contains("accepts no connections"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
    let error = VfioUserDevice::open(&"x".repeat(200), &options()).unwrap_err();
    assert!(error.to_string().contains("connecting to the vfio-user server"), "{error}");
    std::fs::remove_file(&path).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_answer_is_an_error_or_right(step in 0usize..8, bytes in prop::collection::vec(any::<u8>(), 0..80), framed: bool) {
        let mut count = 0;
        let (socket, _server) = Server::start(move |message| {
            count += 1;
            if count <= step {
                return Do::Well;
            }
            let mut answer = bytes.clone();
            if framed {
                answer = [message.header.reply(bytes.len()).as_bytes(), &bytes].concat();
            } else if answer.len() > 7 {
                answer[4..8].copy_from_slice(&[60, 0, 0, 0]);
            }
            if count > 12 { Do::Close } else { Do::Bytes(answer) }
        });
        let options = VfioUserOptions { timeout: Duration::from_millis(30), ..VfioUserOptions::default() };
        if let Ok(mut device) = VfioUserDevice::over(socket, "test", &options) {
            let bar = device.bar0().unwrap();
            let _ = (bar.read32(0), bar.write32(0x14, 1), device.max_vectors(), device.is_removed());
        }
    }
}
