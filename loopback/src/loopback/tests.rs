//! Over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nvmf_core::spec::{AdminOpcode, NvmOpcode, Sqe};

use super::*;
use crate::fault::{Fault, Rule};
use crate::tcp::wire::{Pdu, Wire};

struct Host {
    stream: TcpStream,
    wire: Wire,
    received: Vec<u8>,
}

impl Host {
    fn new(loopback: &Loopback, digest: u8) -> Self {
        let stream = TcpStream::connect(loopback.tcp_addrs()[0]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut host = Self { stream, wire: Wire::default(), received: Vec::new() };
        host.send(&Wire::ic_req(digest, 0, 0));
        assert!(matches!(host.pdu(), Some(Pdu::IcResp(resp)) if resp.digest == digest));
        host.wire = Wire { header_digest: digest & 1 != 0, data_digest: digest & 2 != 0, cpda: 0 };
        host
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next PDU; `None` when the connection ended.
    fn pdu(&mut self) -> Option<Pdu> {
        let mut buf = [0; 65_536];
        loop {
            if let Some(pdu) = self.wire.parse(&mut self.received) {
                return Some(pdu);
            }
            match self.stream.read(&mut buf) {
                Ok(0) => return None,
                Ok(n) => self.received.extend(&buf[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn response(&mut self) -> nvmf_core::spec::Cqe {
        match self.pdu() {
            Some(Pdu::Resp(cqe)) if cqe.status().is_success() => cqe,
            other => panic!("{other:?}"),
        }
    }

    fn admin(loopback: &Loopback, digest: u8, kato_ms: u32) -> (Self, u16) {
        let mut host = Self::new(loopback, digest);
        let mut connect = host.wire.connect(0, DEFAULT_NQN, 0, 0xffff, 32);
        if kato_ms != 0 {
            assert_eq!(digest & 1, 0, "the header digest would not fit any more");
            connect[8 + 48..8 + 52].copy_from_slice(&kato_ms.to_le_bytes());
        }
        host.send(&connect);
        let cntlid = host.response().dw0.get() as u16;
        host.send(&host.wire.enable(1));
        host.response();
        (host, cntlid)
    }

    fn io(loopback: &Loopback, digest: u8, qid: u16, cntlid: u16) -> Self {
        let mut host = Self::new(loopback, digest);
        host.send(&host.wire.connect(0, DEFAULT_NQN, qid, cntlid, 128));
        host.response();
        host
    }
}

fn rw(opcode: NvmOpcode, slba: u64, len: u32) -> Sqe {
    Sqe::nvm(opcode, 1).with_slba(slba).with_cdw12(len / 512 - 1)
}

fn loopback() -> Loopback {
    Loopback::builder().namespace(Namespace::memory(16 << 20)).listen_tcp("127.0.0.1:0").build().unwrap()
}

#[test]
fn a_host_over_tcp_identifies_reads_and_writes() {
    for digest in [0, 3] {
        let loopback = loopback();
        let (mut admin, cntlid) = Host::admin(&loopback, digest, 0);
        admin.send(&admin.wire.command(2, Sqe::admin(AdminOpcode::IDENTIFY, 0).with_cdw10(1), &[], 4096));
        let Some(Pdu::Data { data, digests_ok: true, .. }) = admin.pdu() else { panic!("no data") };
        assert_eq!(&data[768..768 + DEFAULT_NQN.len()], DEFAULT_NQN.as_bytes());
        admin.response();
        let mut io = Host::io(&loopback, digest, 1, cntlid);
        let data: Vec<u8> = (0..1u32 << 20).map(|i| (i >> 7) as u8 ^ i as u8).collect();
        io.send(&io.wire.command(1, rw(NvmOpcode::WRITE, 0, 1 << 20), &[], 1 << 20));
        let Some(Pdu::R2t(r2t)) = io.pdu() else { panic!("no R2T") };
        assert_eq!(r2t.r2tl.get(), 1 << 20);
        for (at, piece) in (0u32..).step_by(128 * 1024).zip(data.chunks(128 * 1024)) {
            let last = at as usize + piece.len() == data.len();
            io.send(&io.wire.h2c_data(1, r2t.ttag.get(), at, piece, last));
        }
        assert_eq!(io.response().cid.get(), 1);
        // All at once: several MiB of answers to a host that does not read yet.
        let mut commands = Vec::new();
        for cid in 0..12 {
            commands.extend(io.wire.command(cid, rw(NvmOpcode::READ, 0, 1 << 20), &[], 1 << 20));
        }
        io.send(&commands);
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..12 {
            let Some(Pdu::Data { data: found, digests_ok: true, .. }) = io.pdu() else { panic!("no data") };
            assert!(found == data);
            io.response();
        }
        let stats = loopback.stats();
        assert_eq!((stats.reads, stats.writes, stats.bytes_read), (12, 1, 12 << 20));
        assert_eq!(stats.connections, 2);
    }
}

#[test]
fn dropping_it_ends_everything_soon() {
    let loopback = loopback();
    let (mut admin, cntlid) = Host::admin(&loopback, 0, 0);
    let mut io = Host::io(&loopback, 0, 1, cntlid);
    let mut mute = TcpStream::connect(loopback.tcp_addrs()[0]).unwrap();
    let address = loopback.tcp_addrs()[0];
    let start = Instant::now();
    drop(loopback);
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(admin.pdu().is_none() && io.pdu().is_none());
    mute.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(mute.read(&mut [0; 8]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_silent_host_is_dropped_when_its_keep_alive_runs_out() {
    let loopback = loopback();
    let (mut admin, cntlid) = Host::admin(&loopback, 0, 300);
    let mut io = Host::io(&loopback, 0, 1, cntlid);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(450) {
        admin.send(&admin.wire.command(3, Sqe::admin(AdminOpcode::KEEP_ALIVE, 0), &[], 0));
        admin.response();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(loopback.controllers(DEFAULT_NQN), 1);
    let silent = Instant::now();
    assert!(admin.pdu().is_none() && io.pdu().is_none());
    assert!(silent.elapsed() >= Duration::from_millis(150) && silent.elapsed() < Duration::from_secs(2));
    assert_eq!(loopback.controllers(DEFAULT_NQN), 0);
}

#[test]
fn a_terminated_host_gets_to_read_why() {
    let loopback = loopback();
    let (mut admin, _) = Host::admin(&loopback, 0, 0);
    // A lot more than what is at fault, so that the socket has unread data when it is closed.
    admin.send(&[0x55; 300_000]);
    let Some(Pdu::Term(req, repeated)) = admin.pdu() else { panic!("no C2HTermReq") };
    assert_eq!((req.fes.get(), req.fei.get()), (1, 0));
    assert_eq!(repeated, [0x55; 85]);
    assert!(admin.pdu().is_none());
    assert_eq!(loopback.stats().terminated_connections, 1);
}

#[test]
fn hosts_may_go_away_at_any_byte() {
    let loopback = loopback();
    let mut script = Wire::ic_req(0, 0, 0);
    let wire = Wire::default();
    script.extend(wire.connect(0, DEFAULT_NQN, 0, 0xffff, 32));
    script.extend(wire.enable(1));
    script.extend(wire.command(2, Sqe::admin(AdminOpcode::IDENTIFY, 0).with_cdw10(1), &[], 4096));
    for cut in (0..script.len()).step_by(37) {
        let mut stream = TcpStream::connect(loopback.tcp_addrs()[0]).unwrap();
        stream.write_all(&script[..cut]).unwrap();
    }
    let (mut admin, _) = Host::admin(&loopback, 3, 0);
    admin.send(&admin.wire.command(2, Sqe::admin(AdminOpcode::KEEP_ALIVE, 0), &[], 0));
    admin.response();
    let until = Instant::now() + Duration::from_secs(5);
    while loopback.controllers(DEFAULT_NQN) > 1 {
        assert!(Instant::now() < until, "controllers of hosts that are gone stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_only_this_machine_reaches_is_not_paced() {
    let listeners = tcp::listen(&["127.0.0.1:0".to_owned()]).unwrap();
    assert_eq!(rustix::net::sockopt::tcp_congestion(&listeners[0]).unwrap(), "reno");
}

#[test]
fn connections_can_be_ended_and_refused() {
    let loopback = loopback();
    let (mut admin, _) = Host::admin(&loopback, 0, 0);
    loopback.refuse_connections(true);
    let mut refused = TcpStream::connect(loopback.tcp_addrs()[0]).unwrap();
    refused.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(refused.read(&mut [0; 8]), Ok(0) | Err(_)));
    admin.send(&admin.wire.command(2, Sqe::admin(AdminOpcode::KEEP_ALIVE, 0), &[], 0));
    admin.response();
    loopback.disconnect_all();
    assert!(admin.pdu().is_none());
    loopback.refuse_connections(false);
    Host::admin(&loopback, 0, 0);
    loopback.faults().push(Rule::new(Fault::Disconnect).admin());
    let mut host = Host::new(&loopback, 0);
    host.send(&host.wire.connect(0, DEFAULT_NQN, 0, 0xffff, 32));
    assert!(host.pdu().is_none());
}

#[test]
fn builders_refuse_what_cannot_be() {
    type Error = LoopbackError;
    let named = |name: &str| Loopback::builder().name(name).build();
    let first = named("builders-refuse").unwrap();
    assert!(matches!(named("builders-refuse"), Err(Error::NameTaken(_))));
    drop(first);
    assert!(named("builders-refuse").is_ok());
    assert!(matches!(named("white space"), Err(Error::Name { .. })));
    let subsystem = |nqn: &str| Loopback::builder().subsystem(SubsystemBuilder::new(nqn)).build();
    assert!(matches!(subsystem(""), Err(Error::Nqn { .. })));
    assert!(matches!(subsystem(Nqn::DISCOVERY), Err(Error::DiscoveryNqn)));
    let loopback = subsystem("nqn.2024-01.org.example:a").unwrap();
    let again = loopback.add_subsystem(SubsystemBuilder::new("nqn.2024-01.org.example:a"));
    assert!(matches!(again, Err(Error::SubsystemExists(_))));
    assert!(matches!(loopback.remove_subsystem("nqn.2024-01.org.example:b"), Err(Error::NoSuchSubsystem(_))));
    let nsid = |nsid| loopback.add_namespace("nqn.2024-01.org.example:a", Namespace::memory(4096).nsid(nsid));
    assert_eq!(nsid(3).unwrap(), 3);
    for bad in [0, 3, 1025, u32::MAX] {
        assert!(matches!(nsid(bad), Err(Error::NamespaceId { .. })), "{bad}");
    }
    assert!(matches!(
        loopback.remove_namespace("nqn.2024-01.org.example:a", 9),
        Err(Error::NoSuchNamespace { nsid: 9, .. })
    ));
    assert!(matches!(Loopback::builder().mdts(17).build(), Err(Error::OutOfRange { .. })));
    let tcp = TcpOptions::new().max_h2c_data(4095);
    assert!(matches!(Loopback::builder().tcp(tcp).build(), Err(Error::OutOfRange { .. })));
    let nowhere = Loopback::builder().listen_tcp("nowhere").build();
    assert!(matches!(nowhere, Err(Error::ListenAddress { .. })));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(matches!(Loopback::builder().listen_tcp(address).build(), Err(Error::Listen { .. })));
}

#[test]
fn transport_identifiers_lead_here() {
    let loopback = Loopback::builder().name("ids").listen_tcp("0.0.0.0:0").build().unwrap();
    assert!(loopback.discovery_trid().is_discovery());
    let trid = loopback.trid(DEFAULT_NQN).unwrap();
    assert_eq!((trid.traddr(), trid.subnqn().unwrap().as_str()), ("ids", DEFAULT_NQN));
    let tcp = loopback.tcp_trid(DEFAULT_NQN).unwrap().unwrap();
    assert_eq!((tcp.traddr(), tcp.port()), ("127.0.0.1", Some(loopback.tcp_addrs()[0].port())));
    assert!(loopback.trid("").is_err());
}
