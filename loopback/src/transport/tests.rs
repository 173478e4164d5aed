use std::time::Duration;

use nvmf_core::spec::fabrics::{self, ConnectData, PropertySize};
use nvmf_core::spec::registers::{ControllerConfig, PropertyOffset};
use nvmf_core::spec::{AdminOpcode, NvmOpcode};
use nvmf_core::{DmaPool, IoBuf, Nqn};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::{DEFAULT_NQN, Loopback, Namespace, Rule};

struct Host {
    qpair: Box<dyn TransportQpair>,
    tracker: Tracker,
    pool: DmaPool,
}

fn setup() -> QpairSetup {
    QpairSetup {
        qid: 0,
        entries: 32,
        slots: 31,
        deadline: Instant::now() + Duration::from_secs(5),
        priority: 0,
    }
}

fn host(loopback: &Loopback) -> Host {
    let trid = loopback.trid(DEFAULT_NQN).unwrap();
    let mut ctrlr = loopback.transport().ctrlr_construct(&trid, &ControllerOptions::default()).unwrap();
    assert!(ctrlr.capabilities().fabrics);
    let mut qpair = ctrlr.create_qpair(&setup()).unwrap();
    assert_eq!(qpair.poll_connect(Instant::now()).unwrap(), ConnectProgress::Established);
    Host { qpair, tracker: Tracker::new(31, 4, true), pool: DmaPool::new() }
}

impl Host {
    fn submit(&mut self, mut sqe: Sqe, op: u32, buf: IoBuf) {
        let len = buf.len() as u32;
        self.tracker.put_buf(op, buf);
        let (slot, cid) = self.tracker.begin(op, 0, len, sqe.direction()).unwrap();
        sqe.cid = U16::new(cid);
        self.qpair.submit(slot, &sqe, &self.tracker).unwrap();
        self.qpair.flush(&self.tracker).unwrap();
    }

    fn poll(&mut self) -> Result<Vec<(u32, Cqe)>> {
        self.qpair.poll(&mut self.tracker, usize::MAX)?;
        let done = (0..self.tracker.completed())
            .map(|i| self.tracker.take_completed(i).unwrap())
            .map(|(op, _, _, cqe)| (op, cqe))
            .collect();
        self.tracker.clear_completed();
        Ok(done)
    }

    fn run(&mut self, sqe: Sqe, buf: IoBuf) -> (Cqe, IoBuf) {
        self.submit(sqe, 0, buf);
        let done = self.poll().unwrap();
        assert_eq!(done.len(), 1);
        (done[0].1, self.tracker.take_buf(0))
    }

    fn copy(&self, bytes: &[u8]) -> IoBuf {
        IoBuf::One(self.pool.copy_from(bytes).unwrap())
    }

    fn connect(&mut self, qid: u16, cntlid: u16) -> u16 {
        let mut data = ConnectData::new_zeroed();
        data.hostid = [1; 16];
        data.cntlid = U16::new(cntlid);
        data.subnqn = Nqn::new(DEFAULT_NQN).unwrap().to_wire();
        data.hostnqn = Nqn::new("nqn.2024-01.org.example:host").unwrap().to_wire();
        let (cqe, _) = self.run(fabrics::connect(qid, 31, 0, 0), self.copy(data.as_bytes()));
        assert!(cqe.status().is_success(), "{}", cqe.status());
        cqe.dw0.get() as u16
    }

    fn readable(&self) -> bool {
        let mut poll = mio::Poll::new().unwrap();
        let fd = self.qpair.event_fd().unwrap();
        poll.registry()
            .register(&mut mio::unix::SourceFd(&fd), mio::Token(0), mio::Interest::READABLE)
            .unwrap();
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        !events.is_empty()
    }
}

fn admin(loopback: &Loopback) -> (Host, u16) {
    let mut host = host(loopback);
    let cntlid = host.connect(0, 0xffff);
    let cc = ControllerConfig(0).with_en(true).with_iosqes(6).with_iocqes(4);
    let set = fabrics::property_set(PropertyOffset::CC.0, PropertySize::Dword, cc.0.into());
    assert!(host.run(set, IoBuf::None).0.status().is_success());
    (host, cntlid)
}

fn loopback() -> Loopback {
    Loopback::builder().namespace(Namespace::memory(1 << 20)).build().unwrap()
}

#[test]
fn commands_run_when_polled_and_data_may_be_in_pieces() {
    let loopback = loopback();
    let (_admin, cntlid) = admin(&loopback);
    let mut io = host(&loopback);
    io.connect(1, cntlid);
    let data: Vec<u8> = (0..4096u32).map(|i| (i % 241) as u8).collect();
    let pieces = vec![io.pool.copy_from(&data[..700]).unwrap(), io.pool.copy_from(&data[700..]).unwrap()];
    let write = Sqe::nvm(NvmOpcode::WRITE, 1).with_slba(3).with_cdw12(7);
    assert!(io.run(write, IoBuf::Many(pieces)).0.status().is_success());
    let read = Sqe::nvm(NvmOpcode::READ, 1).with_slba(3).with_cdw12(7);
    let pieces = vec![io.pool.alloc(4000).unwrap(), io.pool.alloc(96).unwrap()];
    let (cqe, buf) = io.run(read, IoBuf::Many(pieces));
    assert!(cqe.status().is_success());
    assert_eq!(buf.bufs().iter().flat_map(|b| b.to_vec()).collect::<Vec<u8>>(), data);
    let whole = IoBuf::One(io.pool.alloc(4096).unwrap());
    let (_, buf) = io.run(read, whole);
    assert_eq!(buf.into_one().unwrap()[..], data[..]);
    assert_eq!(loopback.stats().reads, 2);
}

#[test]
fn events_make_the_descriptor_readable() {
    let loopback = loopback();
    let (mut host, _) = admin(&loopback);
    let config = Sqe::admin(AdminOpcode::SET_FEATURES, 0).with_cdw10(0x0b).with_cdw11(0x100);
    assert!(host.run(config, IoBuf::None).0.status().is_success());
    host.submit(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0), 1, IoBuf::None);
    assert!(host.readable(), "something was submitted");
    assert!(host.poll().unwrap().is_empty());
    assert!(!host.readable());
    loopback.add_namespace(DEFAULT_NQN, Namespace::memory(4096)).unwrap();
    assert!(host.readable());
    let done = host.poll().unwrap();
    assert_eq!((done.len(), done[0].0), (1, 1));
    assert_eq!(done[0].1.dw0.get(), 0x0004_0002);
    assert!(!host.readable());
}

#[test]
fn the_end_of_the_loopback_is_the_end_of_the_queue() {
    let loopback = loopback();
    let trid = loopback.trid(DEFAULT_NQN).unwrap();
    let (mut host, _) = admin(&loopback);
    drop(loopback);
    assert!(host.readable());
    assert!(host.poll().is_err());
    assert!(host.poll().is_err(), "and it stays so");
    assert_eq!(host.qpair.disconnect(Instant::now()), Quiesce::Done);
    let error = LoopbackTransport::new().ctrlr_construct(&trid, &ControllerOptions::default()).err().unwrap();
    assert!(error.to_string().contains("no loopback of this name"), "{error}");
}

#[test]
fn faults_in_process() {
    let loopback = loopback();
    let (mut host, _) = admin(&loopback);
    let get = fabrics::property_get(0, PropertySize::Qword);
    loopback.faults().push(Fault::CompleteWith(Status::INTERNAL_ERROR));
    assert!(host.run(get, IoBuf::None).0.status().is(Status::INTERNAL_ERROR));
    loopback.faults().push(Rule::new(Fault::Delay(Duration::from_millis(20))).admin());
    host.submit(get, 2, IoBuf::None);
    assert!(host.poll().unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(25));
    assert_eq!(host.poll().unwrap().len(), 1);
    let identify = Sqe::admin(AdminOpcode::IDENTIFY, 0).with_cdw10(1);
    let buf = IoBuf::One(host.pool.alloc(4096).unwrap());
    let (_, good) = host.run(identify, buf);
    loopback.faults().push(Fault::CorruptData);
    let buf = IoBuf::One(host.pool.alloc(4096).unwrap());
    let (_, bad) = host.run(identify, buf);
    let (good, bad) = (good.into_one().unwrap(), bad.into_one().unwrap());
    assert_eq!(good.iter().zip(bad.iter()).filter(|(a, b)| a != b).count(), 1);
    loopback.faults().push(Fault::DuplicateCompletion);
    host.submit(get, 3, IoBuf::None);
    let error = host.poll().unwrap_err();
    assert!(error.to_string().contains("no command is outstanding"), "{error}");
    for fault in [Fault::WrongCid, Fault::Disconnect] {
        let (mut host, _) = admin(&loopback);
        loopback.faults().push(fault);
        host.submit(get, 0, IoBuf::None);
        assert!(host.poll().is_err());
    }
    assert_eq!(loopback.controllers(DEFAULT_NQN), 0, "a broken queue leaves its controller");
}
