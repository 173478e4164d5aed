use std::time::{Duration, Instant};

use nvmf_core::dma::IoBuf;
use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::{AdminOpcode, Sqe, Status};
use nvmf_core::transport::{ConnectProgress, Quiesce, TransportController, TransportQpair};
use zerocopy::little_endian::U16;

use crate::qpair::PcieQpair;
use crate::qpair::tests::Bench;
use crate::testing::{opcode, setup};

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
/// The admin queue's tail doorbell, and queue 1's.
const ADMIN_TAIL: u64 = 0x1000;
const IO_TAIL: u64 = 0x1008;

fn bench() -> (Bench, PcieQpair) {
    let mut bench = Bench::created(8);
    let admin = bench.controller.pcie_qpair(&setup(0, 32)).unwrap();
    (bench, admin)
}

fn is_enabled(bench: &Bench) -> bool {
    bench.fake.state().registers[&CC] & 1 != 0
}

/// Submits an admin command; returns its identifier.
fn submit(admin: &mut PcieQpair, tracker: &mut Tracker, op: u32) -> u16 {
    tracker.put_buf(op, IoBuf::None);
    let (slot, cid) = tracker.begin(op, 0, 0, DataDirection::None).unwrap();
    let mut sqe = Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0);
    sqe.cid = U16::new(cid);
    admin.submit(slot, &sqe, tracker).unwrap();
    cid
}

#[test]
fn nothing_is_in_flight_when_a_controller_that_works_is_disabled() {
    let (mut bench, mut admin) = bench();
    let mut tracker = Tracker::new(31, 32, true);
    let first = submit(&mut admin, &mut tracker, 0);
    submit(&mut admin, &mut tracker, 1);
    admin.flush(&tracker).unwrap();
    bench.flush_command(0);
    let now = Instant::now();
    assert_eq!(admin.disconnect(now), Quiesce::Pending);

    // The I/O queue does not ring any more, and waits.
    assert!(bench.qpair.flush(&bench.tracker).is_err());
    assert_eq!(bench.qpair.disconnect(now), Quiesce::Pending);
    assert!(bench.qpair.quiesce_command().is_none());
    let (asq, acq) = admin.ring_addresses();
    {
        let rung = &bench.fake.state().rung;
        assert_eq!(rung.last(), Some(&(ADMIN_TAIL, 3)));
        assert!(!rung.iter().any(|&(doorbell, _)| doorbell == IO_TAIL));
    }
    let sqe = bench.fake.command(asq, 2);
    assert_eq!((opcode(&sqe), sqe.cdw10.get()), (AdminOpcode::DELETE_IO_SQ, 1));
    let cids = [first, bench.fake.command(asq, 1).cid.get()];
    assert!(!cids.contains(&sqe.cid.get()), "no command in flight has its identifier");

    // Another command's end is not the queue's.
    bench.fake.post(acq, 0, 0, first, Status::SUCCESS, true);
    assert_eq!(admin.disconnect(now), Quiesce::Pending);
    assert!(is_enabled(&bench));
    bench.fake.post(acq, 1, 0, sqe.cid.get(), Status::SUCCESS, true);
    assert_eq!(admin.disconnect(now), Quiesce::Pending);
    let sqe = bench.fake.command(asq, 3);
    assert_eq!((opcode(&sqe), sqe.cdw10.get()), (AdminOpcode::DELETE_IO_CQ, 1));
    assert!(is_enabled(&bench));
    bench.fake.post(acq, 2, 0, sqe.cid.get(), Status::SUCCESS, true);
    assert_eq!(admin.disconnect(now), Quiesce::Done);
    assert!(!is_enabled(&bench));
    assert_eq!(bench.qpair.disconnect(now), Quiesce::Done);
}

#[test]
fn a_refused_deletion_does_not_keep_the_controller_enabled() {
    let (bench, mut admin) = bench();
    let now = Instant::now();
    assert_eq!(admin.disconnect(now), Quiesce::Pending);
    let (asq, acq) = admin.ring_addresses();
    for index in 0..2 {
        assert_eq!(admin.disconnect(now), Quiesce::Pending);
        let cid = bench.fake.command(asq, index).cid.get();
        bench.fake.post(acq, index, 0, cid, Status::INTERNAL_ERROR, true);
    }
    assert_eq!(admin.disconnect(now), Quiesce::Done);
    assert!(!is_enabled(&bench));
}

#[test]
fn a_silent_controller_is_disabled_in_time_whoever_looks() {
    for admin_looks in [true, false] {
        let (mut bench, mut admin) = bench();
        let now = Instant::now();
        assert_eq!(admin.disconnect(now), Quiesce::Pending);
        let mut look = |now| if admin_looks { admin.disconnect(now) } else { bench.qpair.disconnect(now) };
        assert_eq!(look(now + Duration::from_millis(999)), Quiesce::Pending);
        assert_eq!(look(now + Duration::from_millis(1001)), Quiesce::Done);
        assert!(!is_enabled(&bench));
        assert_eq!(admin.disconnect(now + Duration::from_millis(1002)), Quiesce::Done);
    }
}

#[test]
fn a_controller_that_does_not_work_is_disabled_at_once() {
    // Not ready, fatal, shutting down, shut down.
    for (cc, csts) in [(1, 0), (1, 3), (1 | 1 << 14, 1 | 1 << 2), (1 | 1 << 14, 1 | 2 << 2)] {
        let (bench, mut admin) = bench();
        {
            let registers = &mut bench.fake.state().registers;
            registers.insert(CC, cc);
            registers.insert(CSTS, csts);
        }
        assert_eq!(admin.disconnect(Instant::now()), Quiesce::Done, "CC {cc:#x}, CSTS {csts:#x}");
        assert!(!is_enabled(&bench));
        assert!(bench.fake.state().rung.is_empty());
    }
}

#[test]
fn queues_that_are_gone_are_not_deleted_again() {
    let (mut bench, mut admin) = bench();
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_SQ);
    bench.qpair.quiesce_completed(Some(&nvmf_core::spec::Cqe::default()));
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_CQ);
    bench.qpair.quiesce_completed(Some(&nvmf_core::spec::Cqe::default()));
    assert_eq!(admin.disconnect(Instant::now()), Quiesce::Done);
    assert!(!is_enabled(&bench));
}

#[test]
fn more_queues_than_the_admin_queue_takes_are_deleted_in_turns() {
    let (mut bench, _) = bench();
    let mut others: Vec<PcieQpair> =
        (2..=5).map(|qid| bench.controller.pcie_qpair(&setup(qid, 4)).unwrap()).collect();
    for qpair in &mut others {
        for _ in 0..2 {
            assert!(matches!(qpair.poll_connect(Instant::now()), Ok(ConnectProgress::Admin(_))));
            qpair.admin_completed(&nvmf_core::spec::Cqe::default()).unwrap();
        }
    }
    // Three commands at most.
    let mut admin = bench.controller.pcie_qpair(&setup(0, 4)).unwrap();
    let (asq, acq) = admin.ring_addresses();
    let now = Instant::now();
    let mut deleted = Vec::new();
    for turn in 0..10 {
        assert_eq!(admin.disconnect(now), Quiesce::Pending);
        let sqe = bench.fake.command(asq, turn % 4);
        deleted.push((opcode(&sqe) == AdminOpcode::DELETE_IO_CQ, sqe.cdw10.get()));
        bench.fake.post(acq, turn % 4, 0, sqe.cid.get(), Status::SUCCESS, turn / 4 % 2 == 0);
    }
    assert!(deleted[..5].iter().all(|&(completion, _)| !completion), "submission queues first");
    deleted.sort_unstable();
    let wanted: Vec<_> =
        [false, true].into_iter().flat_map(|kind| (1..=5).map(move |qid| (kind, qid))).collect();
    assert_eq!(deleted, wanted);
    assert_eq!(admin.disconnect(now), Quiesce::Done);
    // The controller restarts with a clean slate.
    assert!(bench.controller.restart().unwrap());
    let mut admin = bench.controller.pcie_qpair(&setup(0, 4)).unwrap();
    bench.fake.state().registers.extend([(CC, 1), (CSTS, 1)]);
    assert_eq!(admin.disconnect(now), Quiesce::Done);
}
