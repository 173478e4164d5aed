//! Creating and deleting queues, full queues, doorbells, scripted faults.

use super::*;

#[test]
fn queues_that_cannot_be_created() {
    let mut host = Host::enabled();
    let ring = Ring::new(&mut host.device, 1, 16);
    let cq = host.create_cq(&ring, Some(1));
    let with = |sqe: Sqe, cdw10: u32, cdw11: u32| sqe.with_cdw10(cdw10).with_cdw11(cdw11);
    let cases = [
        (with(cq, 15 << 16, 1), Status::INVALID_QUEUE_IDENTIFIER, "identifier 0"),
        (with(cq, 15 << 16 | 5, 1), Status::INVALID_QUEUE_IDENTIFIER, "more than there may be"),
        (with(cq, 1, 1), Status::INVALID_QUEUE_SIZE, "one entry"),
        (with(cq, 64 << 16 | 1, 1), Status::INVALID_QUEUE_SIZE, "beyond MQES"),
        (with(cq, 15 << 16 | 1, 3 | 5 << 16), Status::INVALID_INTERRUPT_VECTOR, "vector"),
        (with(cq, 15 << 16 | 1, 0), Status::INVALID_FIELD, "not contiguous, CAP.CQR"),
        (Sqe { dptr: DataPointer::prp(ring.cq_base + 8, 0), ..cq }, Status::INVALID_PRP_OFFSET, "offset"),
        (
            Sqe { dptr: DataPointer::prp(!0xfff, 0), ..with(cq, 63 << 16 | 1, 1) },
            Status::INVALID_FIELD,
            "around the end",
        ),
        (Sqe { flags: 0x40, ..cq }, Status::INVALID_FIELD, "SGL in an admin command"),
        (Sqe { flags: 1, ..cq }, Status::INVALID_FIELD, "fused"),
    ];
    for (sqe, status, why) in cases {
        assert_eq!(host.status(sqe), status.with_dnr(), "{why}");
    }
    let sq = host.create_sq(&ring);
    assert_eq!(host.status(sq), Status::INVALID_COMPLETION_QUEUE.with_dnr());
    assert_eq!(host.status(with(sq, 15 << 16 | 1, 1)), Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    assert_eq!(host.status(with(sq, 15 << 16 | 1, 1 | 9 << 16)), Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    assert_eq!(host.status(cq), Status::SUCCESS);
    assert_eq!(host.status(cq), Status::INVALID_QUEUE_IDENTIFIER.with_dnr(), "in use");
    assert_eq!(host.status(with(sq, 15 << 16 | 9, 1 | 1 << 16)), Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    assert_eq!(host.status(sq), Status::SUCCESS);
    assert_eq!(host.status(sq), Status::INVALID_QUEUE_IDENTIFIER.with_dnr(), "in use");
    // Two submission queues may share a completion queue.
    assert_eq!(host.status(with(sq, 15 << 16 | 3, 1 | 1 << 16)), Status::SUCCESS);
}

#[test]
fn queues_are_deleted_in_order() {
    let mut host = Host::enabled();
    host.io_queue(1, 16);
    let delete_cq = |qid: u32| Sqe::admin(AdminOpcode::DELETE_IO_CQ, 0).with_cdw10(qid);
    let delete_sq = |qid: u32| Sqe::admin(AdminOpcode::DELETE_IO_SQ, 0).with_cdw10(qid);
    for sqe in [delete_cq(0), delete_sq(0), delete_cq(2), delete_sq(2), delete_cq(0xffff), delete_sq(0xffff)]
    {
        assert_eq!(host.status(sqe), Status::INVALID_QUEUE_IDENTIFIER.with_dnr(), "{sqe:?}");
    }
    assert_eq!(host.status(delete_cq(1)), Status::INVALID_QUEUE_DELETION.with_dnr());
    assert_eq!(host.status(delete_sq(1)), Status::SUCCESS);
    assert_eq!(host.status(delete_sq(1)), Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    assert_eq!(host.status(delete_cq(1)), Status::SUCCESS);
    // They can be made again, the doorbells at zero.
    let mut ring = host.io_queue(1, 16);
    assert_eq!(host.io(&mut ring, Sqe::nvm(NvmOpcode::FLUSH, 1)), Status::SUCCESS);
}

#[test]
fn the_number_of_queues_comes_first() {
    let mut host = Host::enabled();
    let set = |pairs: NumberOfQueues| {
        let cdw10 = set_features_cdw10(FeatureId::NUMBER_OF_QUEUES, false);
        Sqe::admin(AdminOpcode::SET_FEATURES, 0).with_cdw10(cdw10).with_cdw11(pairs.encode())
    };
    let cqe = host.admin(set(NumberOfQueues { submission: 100, completion: 2 }));
    assert_eq!(NumberOfQueues::decode(cqe.dw0.get()), NumberOfQueues { submission: 4, completion: 2 });
    let three = Ring::new(&mut host.device, 3, 16);
    let sqe = host.create_cq(&three, None);
    assert_eq!(host.status(sqe), Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    let one = Ring::new(&mut host.device, 1, 16);
    let sqe = host.create_cq(&one, None);
    assert_eq!(host.status(sqe), Status::SUCCESS);
    let sqe = host.create_sq(&three).with_cdw11(1 | 1 << 16);
    assert_eq!(host.status(sqe), Status::SUCCESS, "submission queues are counted by themselves");
    assert_eq!(host.status(set(NumberOfQueues::pairs(1))), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
}

#[test]
fn completions_wait_while_their_queue_is_full() {
    let mut host = Host::enabled();
    // A completion queue of four entries for a submission queue of sixteen.
    let mut ring = Ring::new(&mut host.device, 1, 16);
    let create = host.create_cq(&ring, None).with_cdw10(1 | 3 << 16);
    assert_eq!(host.status(create), Status::SUCCESS);
    let create = host.create_sq(&ring);
    assert_eq!(host.status(create), Status::SUCCESS);
    for cid in 0..10 {
        ring.put(Sqe::nvm(NvmOpcode::FLUSH, 1), cid);
    }
    host.bar.doorbell(host.cap.sq_tail_doorbell(1), 10).unwrap();
    // From here on the ring is seen with the completion queue's length; the submission side is done.
    ring.entries = 4;
    let mut got = Vec::new();
    while got.len() < 10 {
        let mut round = 0;
        while let Some(cqe) = ring.peek() {
            got.push(cqe.cid.get());
            round += 1;
        }
        assert!((1..=3).contains(&round), "{round} entries in a queue of four");
        host.bar.doorbell(host.cap.cq_head_doorbell(1), ring.head).unwrap();
    }
    assert_eq!(got, (0..10).collect::<Vec<_>>());
    assert!(ring.peek().is_none());
}

#[test]
fn wrong_doorbells_are_reported() {
    let mut host = Host::enabled();
    host.io_queue(1, 16);
    let buffer = host.buffer(1);
    let mut expect = |offset: u64, value: u32, event: ErrorEvent| {
        let cid = host.submit(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0));
        assert!(host.admin.peek().is_none());
        host.bar.doorbell(offset, value).unwrap();
        let cqe = host.admin.next(&host.bar, host.cap).expect("an event");
        let got = AsyncEvent::from_dw0(cqe.dw0.get());
        assert_eq!((cqe.cid.get(), got.event_type.0, got.info), (cid, 0, event.0), "{offset:#x} {value}");
        assert_eq!(got.log_page, LogPageId::ERROR_INFORMATION);
        // Reading the log lets the next one through.
        let get = log_page(LogPageId::ERROR_INFORMATION, 64);
        let read = Sqe { dptr: DataPointer::prp(buffer.base, 0), ..get };
        assert_eq!(host.status(read), Status::SUCCESS);
    };
    let cap = Cap(0);
    expect(cap.sq_tail_doorbell(2), 1, ErrorEvent::INVALID_DOORBELL_REGISTER);
    expect(cap.cq_head_doorbell(2), 1, ErrorEvent::INVALID_DOORBELL_REGISTER);
    expect(cap.sq_tail_doorbell(1000), 1, ErrorEvent::INVALID_DOORBELL_REGISTER);
    expect(cap.sq_tail_doorbell(1), 16, ErrorEvent::INVALID_DOORBELL_VALUE);
    expect(cap.cq_head_doorbell(1), 1, ErrorEvent::INVALID_DOORBELL_VALUE);
    expect(cap.cq_head_doorbell(1), 16, ErrorEvent::INVALID_DOORBELL_VALUE);
}

#[test]
fn queues_that_share_a_completion_queue_take_turns() {
    let mut host = Host::enabled();
    let mut rings = [1, 2].map(|qid| Ring::new(&mut host.device, qid, 32));
    let create = host.create_cq(&rings[0], None).with_cdw10(1 | 3 << 16);
    assert_eq!(host.status(create), Status::SUCCESS);
    for ring in &mut rings {
        let create = host.create_sq(ring).with_cdw11(1 | 1 << 16);
        assert_eq!(host.status(create), Status::SUCCESS);
        (0..30).for_each(|cid| ring.put(Sqe::nvm(NvmOpcode::FLUSH, 1), cid));
    }
    for qid in [1, 2] {
        host.bar.doorbell(host.cap.sq_tail_doorbell(qid), 30).unwrap();
    }
    let [mut ring, _] = rings;
    ring.entries = 4;
    let mut done = [0, 0];
    while done[0] + done[1] < 60 {
        while let Some(cqe) = ring.peek() {
            let queue = usize::from(cqe.sqid.get()) - 1;
            assert_eq!(cqe.cid.get(), done[queue], "in order");
            done[queue] += 1;
        }
        assert!(done[0].abs_diff(done[1]) <= 6, "{done:?}");
        host.bar.doorbell(host.cap.cq_head_doorbell(1), ring.head).unwrap();
    }
}

#[test]
fn scripted_faults() {
    let mut host = Host::enabled();
    let mut ring = host.io_queue(1, 8);
    let flush = Sqe::nvm(NvmOpcode::FLUSH, 1);
    let faults = host.function.faults().clone();
    faults.push(Rule::new(Fault::CompleteWith(Status::WRITE_FAULT)).io());
    assert_eq!(host.io(&mut ring, flush), Status::WRITE_FAULT);
    faults.push(Rule::new(Fault::WrongCid).io());
    ring.submit(&host.bar, host.cap, flush, 100);
    assert_eq!(ring.next(&host.bar, host.cap).unwrap().cid, 0xffff);
    faults.push(Rule::new(Fault::DuplicateCompletion).io());
    ring.submit(&host.bar, host.cap, flush, 101);
    assert_eq!([ring.peek().unwrap().cid.get(), ring.peek().unwrap().cid.get()], [101, 101]);
    host.bar.doorbell(host.cap.cq_head_doorbell(1), ring.head).unwrap();
    // Held back until it is aborted.
    faults.push(Rule::new(Fault::Drop).io());
    ring.submit(&host.bar, host.cap, flush, 102);
    assert!(ring.peek().is_none());
    let abort = Sqe::admin(AdminOpcode::ABORT, 0).with_cdw10(1 | 102 << 16);
    assert_eq!(host.admin(abort).dw0, 0);
    assert_eq!(ring.next(&host.bar, host.cap).unwrap().status(), Status::ABORT_REQUESTED);
    // Gone with its queue.
    faults.push(Rule::new(Fault::Drop).io());
    ring.submit(&host.bar, host.cap, flush, 103);
    assert_eq!(host.status(Sqe::admin(AdminOpcode::DELETE_IO_SQ, 0).with_cdw10(1)), Status::SUCCESS);
    assert_eq!(host.status(Sqe::admin(AdminOpcode::DELETE_IO_CQ, 0).with_cdw10(1)), Status::SUCCESS);
    assert!(ring.peek().is_none());
    let mut ring = host.io_queue(1, 8);
    faults.push(Rule::new(Fault::Delay(Duration::from_millis(5))).io());
    ring.submit(&host.bar, host.cap, flush, 104);
    assert!(ring.peek().is_none());
    std::thread::sleep(Duration::from_millis(6));
    host.function.poll();
    assert_eq!(ring.next(&host.bar, host.cap).unwrap().cid, 104);
    // The phase tag of the round before: the host sees nothing, the controller goes on behind it.
    faults.push(Rule::new(Fault::StuckPhase).io());
    ring.submit(&host.bar, host.cap, flush, 105);
    ring.submit(&host.bar, host.cap, flush, 106);
    assert!(ring.peek().is_none());
    ring.head += 1;
    assert_eq!(ring.peek().unwrap().cid, 106);
    faults.push(Rule::new(Fault::FatalStatus).io());
    ring.submit(&host.bar, host.cap, flush, 107);
    assert!(ring.peek().is_none() && host.csts().cfs());
    host.bar.write32(CC, 0).unwrap();
    host.enable();
    host.function.fail();
    assert!(host.csts().cfs());
}
