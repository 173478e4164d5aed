//! The transport over real sockets, against a controller that is only as clever as each test needs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::transport::{ConnectProgress, QpairSetup, Quiesce, TransportController, TransportQpair};
use nvmf_core::{ControllerOptions, DmaPool, Error, ErrorKind, TransportId};
use nvmf_transport_tcp::{TcpQpair, TcpTransport};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

const SLOTS: u16 = 64;

/// Accepts one connection on a port of its own and runs `serve` on it.
fn controller(serve: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
}

fn read_exact(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn exchange_ic(stream: &mut TcpStream) {
    assert_eq!(read_exact(stream, 128)[..8], [0, 0, 128, 0, 128, 0, 0, 0]);
    let mut resp = [0u8; 128];
    resp[..8].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0]);
    resp[12..16].copy_from_slice(&0x1_0000u32.to_le_bytes());
    stream.write_all(&resp).unwrap();
}

fn response(cid: u16, status: Status) -> Vec<u8> {
    [&[5, 0, 24, 0, 24, 0, 0, 0], Cqe::new(cid, 0, status).as_bytes()].concat()
}

fn data(cid: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
    let mut pdu = vec![7, u8::from(last) << 2, 24, 24];
    pdu.extend((24 + data.len() as u32).to_le_bytes());
    pdu.extend(cid.to_le_bytes());
    pdu.extend([0; 2]);
    pdu.extend(offset.to_le_bytes());
    pdu.extend((data.len() as u32).to_le_bytes());
    pdu.extend([0; 4]);
    pdu.extend(data);
    pdu
}

/// Reads a command capsule without data and returns its command identifier.
fn command(stream: &mut TcpStream) -> u16 {
    let capsule = read_exact(stream, 72);
    assert_eq!(capsule[..8], [4, 0, 72, 0, 72, 0, 0, 0]);
    u16::from_le_bytes([capsule[10], capsule[11]])
}

fn open(address: impl ToString, options: &ControllerOptions, timeout: Duration) -> Result<TcpQpair, Error> {
    let trid: TransportId = address.to_string().parse().unwrap();
    let mut controller = TcpTransport::new().controller(&trid, options).unwrap();
    let deadline = Instant::now() + timeout;
    let setup = QpairSetup { qid: 1, entries: SLOTS + 1, slots: SLOTS, deadline, priority: 0 };
    let mut qpair = controller.connect_qpair(&setup)?;
    loop {
        match qpair.poll_connect(Instant::now())? {
            ConnectProgress::Established => return Ok(qpair),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn trid(address: SocketAddr) -> String {
    format!("trtype:TCP traddr:{} trsvcid:{} subnqn:nqn.2024-01.test:a", address.ip(), address.port())
}

fn connect(address: SocketAddr) -> Result<TcpQpair, Error> {
    open(trid(address), &ControllerOptions::default(), Duration::from_secs(5))
}

struct Host {
    qpair: TcpQpair,
    tracker: Tracker,
    pool: DmaPool,
}

impl Host {
    fn new(qpair: TcpQpair) -> Self {
        Self { qpair, tracker: Tracker::new(SLOTS, u32::from(SLOTS), true), pool: DmaPool::new() }
    }

    fn submit(&mut self, op: u32, opcode: NvmOpcode, len: usize) {
        let mut buf = self.pool.alloc(len).unwrap();
        buf.fill(0x5a);
        self.tracker.put_buf(op, buf.into());
        let direction = DataDirection::of_opcode(opcode.0);
        let (slot, cid) = self.tracker.begin(op, 0, len as u32, direction).unwrap();
        let mut sqe = Sqe::nvm(opcode, 1);
        sqe.cid = U16::new(cid);
        self.qpair.submit(slot, &sqe, &self.tracker).unwrap();
    }

    /// Polls until `n` commands completed; their operations and statuses.
    fn completions(&mut self, n: usize) -> Result<Vec<(u32, Status)>, Error> {
        self.qpair.flush(&self.tracker)?;
        let until = Instant::now() + Duration::from_secs(10);
        let mut all = Vec::new();
        while all.len() < n {
            assert!(Instant::now() < until, "only {} of {n} commands completed", all.len());
            let polled = self.qpair.poll(&mut self.tracker, n - all.len());
            for index in 0..self.tracker.completed() {
                let (op, _, _, cqe) = self.tracker.take_completed(index).unwrap();
                all.push((op, cqe.status()));
            }
            self.tracker.clear_completed();
            polled?;
        }
        Ok(all)
    }
}

#[test]
fn reads_and_writes_of_all_sizes() {
    const LARGE: usize = 3 << 20;
    let (address, serving) = controller(|mut stream| {
        exchange_ic(&mut stream);
        for _ in 0..32 {
            let cid = command(&mut stream);
            stream
                .write_all(&[data(cid, 0, &[7; 4096], true), response(cid, Status::SUCCESS)].concat())
                .unwrap();
        }
        let cid = command(&mut stream);
        stream.write_all(&data(cid, 0, &vec![8; LARGE - 100], false)).unwrap();
        stream.write_all(&data(cid, LARGE as u32 - 100, &[9; 100], true)).unwrap();
        stream.write_all(&response(cid, Status::SUCCESS)).unwrap();
        // A write: two R2Ts, whose data comes in PDUs of at most 64 KiB.
        let cid = command(&mut stream);
        for (offset, len) in [(0, 200_000), (200_000, LARGE - 200_000)] {
            let mut r2t = vec![9, 0, 24, 0, 24, 0, 0, 0];
            r2t.extend(cid.to_le_bytes());
            r2t.extend([1, 2]);
            r2t.extend((offset as u32).to_le_bytes());
            r2t.extend((len as u32).to_le_bytes());
            r2t.extend([0; 4]);
            // In two pieces, to be met by a receive that is short.
            stream.write_all(&r2t[..9]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(&r2t[9..]).unwrap();
            let mut at = 0;
            while at < len {
                let header = read_exact(&mut stream, 24);
                let datal = u32::from_le_bytes(header[16..20].try_into().unwrap()) as usize;
                assert_eq!(header[10..12], [1, 2]);
                assert!(datal <= 0x1_0000 && read_exact(&mut stream, datal).iter().all(|&byte| byte == 0x5a));
                at += datal;
                assert_eq!(header[1] & 4 != 0, at == len);
            }
        }
        stream.write_all(&response(cid, Status::SUCCESS)).unwrap();
    });
    let mut host = Host::new(connect(address).unwrap());
    assert_eq!(host.qpair.peer_addr(), Some(address));
    assert!(host.qpair.event_fd().is_some());
    (0..32).for_each(|op| host.submit(op, NvmOpcode::READ, 4096));
    let done = host.completions(32).unwrap();
    assert!(done.iter().all(|&(_, status)| status == Status::SUCCESS));
    assert!((0..32).all(|op| host.tracker.take_buf(op).bufs()[0].iter().all(|&byte| byte == 7)));
    assert_eq!(host.qpair.stats().sends, 2, "the ICReq, and one send for a whole batch");

    host.submit(0, NvmOpcode::READ, LARGE);
    assert_eq!(host.completions(1).unwrap(), [(0, Status::SUCCESS)]);
    let buf = host.tracker.take_buf(0);
    let (body, tail) = buf.bufs()[0].split_at(LARGE - 100);
    assert!(body.iter().all(|&byte| byte == 8) && tail.iter().all(|&byte| byte == 9));

    host.submit(0, NvmOpcode::WRITE, LARGE);
    assert_eq!(host.completions(1).unwrap(), [(0, Status::SUCCESS)]);
    serving.join().unwrap();
    assert_eq!(host.qpair.disconnect(Instant::now()), Quiesce::Done);
    assert!(host.qpair.event_fd().is_none());
    assert!(host.qpair.poll(&mut host.tracker, 1).is_err());
}

#[test]
fn a_poll_ends_early_when_much_came() {
    const READ: usize = 128 << 10;
    const BATCH: usize = 16;
    const BATCHES: usize = 40;
    let (written, all_written) = std::sync::mpsc::channel();
    let (address, serving) = controller(move |mut stream| {
        exchange_ic(&mut stream);
        for _ in 0..BATCHES {
            let mut answers = Vec::new();
            for _ in 0..BATCH {
                let cid = command(&mut stream);
                answers.extend(data(cid, 0, &[cid as u8; READ], true));
                answers.extend(response(cid, Status::SUCCESS));
            }
            // Half of it before the host looks: that much is in the buffers of two sockets at least.
            let (first, rest) = answers.split_at(answers.len() / 2);
            stream.write_all(first).unwrap();
            written.send(()).unwrap();
            stream.write_all(rest).unwrap();
        }
    });
    let mut options = ControllerOptions::default();
    options.tcp_receive_buffer = Some(4 << 20);
    let mut host = Host::new(open(trid(address), &options, Duration::from_secs(5)).unwrap());
    let mut early = 0;
    for _ in 0..BATCHES {
        (0..BATCH as u32).for_each(|op| host.submit(op, NvmOpcode::READ, READ));
        host.qpair.flush(&host.tracker).unwrap();
        all_written.recv_timeout(Duration::from_secs(10)).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        let mut seen = 0;
        while seen < BATCH {
            assert!(Instant::now() < until, "only {seen} of {BATCH} reads completed");
            host.qpair.poll(&mut host.tracker, usize::MAX).unwrap();
            let found = host.tracker.completed();
            // 512 KiB, what one receive brings beyond, and what was begun in an earlier poll.
            assert!(found <= 6, "{found} reads of 128 KiB in one poll");
            early += usize::from(found > 0 && seen + found < BATCH && host.qpair.has_local_work());
            for index in 0..found {
                let (op, _, _, cqe) = host.tracker.take_completed(index).unwrap();
                assert_eq!(cqe.status(), Status::SUCCESS);
                let cid = cqe.cid.get();
                assert!(host.tracker.take_buf(op).bufs()[0].iter().all(|&byte| byte == cid as u8));
            }
            host.tracker.clear_completed();
            seen += found;
        }
    }
    serving.join().unwrap();
    assert!(early > 0, "no poll of {BATCHES} batches left anything");
}

#[test]
fn nobody_listens() {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let error = connect(address).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("is an NVMe/TCP target listening there?"),
        "{text}"
    );
    assert!(matches!(error.kind(), ErrorKind::Transport(_)));
}

#[test]
fn silence_is_a_timeout_that_says_what_was_waited_for() {
    let (address, serving) = controller(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = open(trid(address), &ControllerOptions::default(), Duration::from_millis(50)).unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("waiting for the ICResp"), "{error}");
    serving.join().unwrap();
}

#[test]
fn another_protocol_answers() {
    let (address, serving) = controller(|mut stream| {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = connect(address).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Pdu { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    serving.join().unwrap();
}

#[test]
fn the_controller_hangs_up() {
    let (address, serving) = controller(|mut stream| {
        read_exact(&mut stream, 128);
    });
    let error = connect(address).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Disconnected(_)), "{error}");
    serving.join().unwrap();

    let (address, serving) = controller(|mut stream| {
        exchange_ic(&mut stream);
        let cid = command(&mut stream);
        stream.write_all(&data(cid, 0, &[0; 100], false)[..60]).unwrap();
    });
    let mut host = Host::new(connect(address).unwrap());
    host.submit(0, NvmOpcode::READ, 512);
    let error = host.completions(1).unwrap_err();
    assert!(
        error.to_string().contains("in the middle of a C2HData PDU, with 1 command outstanding"),
        "{error}"
    );
    assert!(host.qpair.poll(&mut host.tracker, 1).is_err(), "failed once is failed for good");
    serving.join().unwrap();
}

#[test]
fn the_controller_learns_why_it_was_left() {
    let (address, serving) = controller(|mut stream| {
        exchange_ic(&mut stream);
        let cid = command(&mut stream);
        stream.write_all(&response(cid ^ 0x100, Status::SUCCESS)).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(
            (rest[0], rest[8], rest.len()),
            (2, 2, 48),
            "H2CTermReq, PDU sequence error, offending header"
        );
    });
    let mut host = Host::new(connect(address).unwrap());
    host.submit(0, NvmOpcode::FLUSH, 0);
    let error = host.completions(1).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
    assert_eq!(host.qpair.disconnect(Instant::now()), Quiesce::Done);
    serving.join().unwrap();
}

#[test]
fn the_termination_is_reported_even_if_sending_fails_first() {
    let (address, serving) = controller(|mut stream| {
        exchange_ic(&mut stream);
        let mut term = [0u8; 24];
        term[..14].copy_from_slice(&[3, 0, 24, 0, 24, 0, 0, 0, 6, 0, 9, 0, 0, 0]);
        stream.write_all(&term).unwrap();
    });
    let mut host = Host::new(connect(address).unwrap());
    serving.join().unwrap();
    host.submit(0, NvmOpcode::FLUSH, 0);
    let error = host.completions(1).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Terminated { fei: 9, .. }), "{error}");
}

#[test]
fn host_names_are_resolved() {
    let (address, serving) = controller(|mut stream| exchange_ic(&mut stream));
    let trid = format!("trtype:TCP adrfam:IPv4 traddr:localhost trsvcid:{}", address.port());
    let qpair = open(trid, &ControllerOptions::default(), Duration::from_secs(5));
    if ("localhost", 0).to_socket_addrs().is_ok_and(|mut all| all.any(|a| a.is_ipv4())) {
        assert_eq!(qpair.unwrap().peer_addr(), Some(address));
    } else {
        // A machine without /etc/hosts: the name is as unknown as any.
        let error = qpair.unwrap_err();
        assert!(error.to_string().contains("resolving localhost"), "{error}");
        drop(TcpStream::connect(address));
    }
    drop(serving);

    let trid = "trtype:TCP traddr:no-such-host.invalid trsvcid:4420";
    let error = open(trid, &ControllerOptions::default(), Duration::from_secs(30)).unwrap_err();
    assert!(error.to_string().contains("no-such-host.invalid:4420"), "{error}");
}

#[test]
fn local_address_and_port_are_used() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let (address, serving) = controller(move |mut stream| {
        assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from(([127, 0, 0, 3], free)));
        exchange_ic(&mut stream);
    });
    let mut options = ControllerOptions::default();
    options.src_addr = Some("127.0.0.3".to_owned());
    options.src_svcid = Some(free.to_string());
    options.transport_ack_timeout = Some(Duration::from_secs(3));
    options.transport_tos = 0x20;
    (options.tcp_nodelay, options.tcp_quickack) = (false, true);
    (options.tcp_send_buffer, options.tcp_receive_buffer) = (Some(1 << 16), Some(1 << 15));
    let address = format!("{} priority:3", trid(address));
    open(address, &options, Duration::from_secs(5)).unwrap();
    serving.join().unwrap();
}

#[test]
fn what_can_not_work_is_refused_with_a_reason() {
    let good: TransportId = "trtype:TCP traddr:127.0.0.1 trsvcid:4420".parse().unwrap();
    let transport = TcpTransport::new();
    let refused = |trid: &str, change: fn(&mut ControllerOptions)| {
        let mut options = ControllerOptions::default();
        change(&mut options);
        transport.controller(&trid.parse().unwrap(), &options).unwrap_err().to_string()
    };
    assert!(refused("trtype:PCIe traddr:0000:01:00.0", |_| {}).contains("not for NVMe/TCP"));
    assert!(refused(&good.to_string(), |o| o.src_addr = Some("here".to_owned())).contains("here"));
    assert!(refused(&good.to_string(), |o| o.src_svcid = Some("70000".to_owned())).contains("70000"));
    assert!(refused("trtype:TCP traddr:fe80::1%nosuchif0 trsvcid:4420", |_| {}).contains("nosuchif0"));
    let mut options = ControllerOptions::default();
    options.host_iface = Some("nosuchif0".to_owned());
    let error = open(&good, &options, Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("nosuchif0"), "{error}");
}

#[test]
fn identify_decides_on_in_capsule_data() {
    use nvmf_core::spec::identify::IdentifyController;
    use zerocopy::little_endian::U32;
    let trid: TransportId = "trtype:TCP traddr:127.0.0.1 trsvcid:4420".parse().unwrap();
    let mut controller = TcpTransport::new().controller(&trid, &ControllerOptions::default()).unwrap();
    let good = IdentifyController { ioccsz: U32::new(260), ..Default::default() };
    controller.identified(&good).unwrap();
    let bad = IdentifyController { icdoff: U16::new(1), ..good };
    let error = controller.identified(&bad).unwrap_err();
    assert!(error.to_string().contains("ICDOFF"), "{error}");
    assert!(controller.capabilities().fabrics);
}
