//! What goes wrong: while connecting, in the middle of a load, and when giving up.

use std::time::{Duration, Instant};

use crate::bench::{Bench, IDENTITY, Identity, Target, trid};
use nvmf_core::spec::rdma::{CmReject, CmStatus};
use nvmf_core::spec::{Cqe, Status};
use nvmf_core::transport::{ConnectProgress, Quiesce, TransportController, TransportQpair};
use nvmf_core::{ControllerOptions, ErrorKind};
use nvmf_transport_rdma::sim::{CmEvent, WorkStatus};
use nvmf_transport_rdma::sim::{Sim, SimFault};
use nvmf_transport_rdma::{RdmaOptions, RdmaQpair, RdmaTransport};
use zerocopy::IntoBytes;

/// Polls a connection until it fails, and says why.
fn connect_failure(qpair: &mut RdmaQpair<Sim>) -> String {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match qpair.poll_connect(Instant::now()) {
            Err(error) => {
                assert_eq!(qpair.disconnect(Instant::now()), Quiesce::Done);
                return error.to_string();
            }
            Ok(ConnectProgress::Pending) => assert!(Instant::now() < until, "it goes on for ever"),
            Ok(progress) => panic!("{progress:?}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

// --- connecting ----------------------------------------------------------------------------------------------------------

#[test]
fn the_connect_request_says_what_the_queue_is() {
    let mut target = Target::new(Sim::new());
    let mut admin = target.qpair(0, 32);
    admin.poll_connect(Instant::now()).unwrap();
    let request = target.listener.next_request().unwrap().request();
    assert_eq!((request.qid.get(), request.hrqsize.get(), request.hsqsize_z.get()), (0, 32, 31));
    assert_eq!(request.cntlid.get(), 0);
    let mut io = target.qpair(3, 128);
    io.poll_connect(Instant::now()).unwrap();
    let request = target.listener.next_request().unwrap().request();
    assert_eq!((request.qid.get(), request.hrqsize.get(), request.hsqsize_z.get()), (3, 128, 127));
    assert_eq!(request.cntlid.get(), 0x0a0b);
}

#[test]
fn every_reject_status_is_told_in_words() {
    for (status, words) in [
        (CmStatus::INVALID_LENGTH, "invalid length of the RDMA_CM private data"),
        (CmStatus::INVALID_RECFMT, "invalid record format"),
        (CmStatus::INVALID_QID, "invalid queue identifier"),
        (CmStatus::INVALID_HSQSIZE, "ask for a smaller queue"),
        (CmStatus::INVALID_HRQSIZE, "invalid host receive queue size"),
        (CmStatus::NO_RESOURCES, "no RDMA resources left"),
        (CmStatus::INVALID_IRD, "invalid inbound RDMA read queue depth"),
        (CmStatus::INVALID_ORD, "invalid outbound RDMA read queue depth"),
        (CmStatus::INVALID_CNTLID, "invalid controller identifier"),
        (CmStatus(0x77), "0x77"),
    ] {
        let mut target = Target::new(Sim::new());
        let mut qpair = target.qpair(1, 16);
        qpair.poll_connect(Instant::now()).unwrap();
        target.listener.next_request().unwrap().reject(CmReject::new(status).as_bytes());
        let error = connect_failure(&mut qpair);
        contains(&error, &[words, "I/O queue 1", "192.0.2.1"]);
    }
}

#[test]
fn reasons_of_the_connection_manager_are_told_in_words() {
    for (reason, private_data, words) in [
        (8, &[][..], "nothing listens there"),
        (28, &[][..], "rejected without a reason"),
        (28, &[1, 0, 6, 0], "rejected without a reason"),
        (28, &[0], "rejected without a reason"),
        (-libc::ECONNREFUSED, &[], "nothing listens there"),
        (26, &[], "invalid path MTU (reason 26)"),
        (999, &[], "for reason 999"),
    ] {
        let mut target = Target::new(Sim::new());
        let mut qpair = target.qpair(0, 16);
        qpair.poll_connect(Instant::now()).unwrap();
        target.listener.next_request().unwrap().reject_for(reason, private_data);
        contains(&connect_failure(&mut qpair), &[words]);
    }
    let sim = Sim::new();
    let nobody = "192.0.2.9:4420".parse().unwrap();
    let transport = RdmaTransport::with_provider(sim);
    let mut controller = transport.controller(&trid(nobody), &ControllerOptions::default()).unwrap();
    let setup = nvmf_core::transport::QpairSetup {
        qid: 0,
        entries: 32,
        slots: 31,
        deadline: Instant::now() + Duration::from_secs(60),
        priority: 0,
    };
    let mut qpair = controller.connect_qpair(&setup).unwrap();
    contains(&connect_failure(&mut qpair), &["nothing listens", "is an NVMe/RDMA target listening"]);
}

#[test]
fn a_stale_connection_is_tried_again_a_few_times() {
    for (times, works) in [(1, true), (5, true), (6, false)] {
        let sim = Sim::new();
        let stale = CmEvent::Rejected { reason: 10, private_data: vec![] };
        for _ in 0..times {
            sim.script(SimFault::Connect(Some(stale.clone())));
        }
        let mut target = Target::new(sim.clone());
        let mut qpair = target.qpair(0, 16);
        if !works {
            contains(&connect_failure(&mut qpair), &["it still knows an old one"]);
            continue;
        }
        let until = Instant::now() + Duration::from_secs(30);
        let request = loop {
            assert_eq!(qpair.poll_connect(Instant::now()).unwrap(), ConnectProgress::Pending);
            if let Some(request) = target.listener.next_request() {
                break request;
            }
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(request.request().qid.get(), 0);
        assert_eq!(sim.stats().connects, times + 1);
    }
}

#[test]
fn silence_is_an_error_once_the_deadline_has_passed() {
    for (fault, words) in [
        (Some(SimFault::Address(None)), "resolving the address"),
        (Some(SimFault::Route(None)), "resolving the route"),
        (Some(SimFault::Connect(None)), "waiting for the RDMA connection"),
        // The request arrives, and nobody answers it.
        (None, "waiting for the RDMA connection"),
    ] {
        let sim = Sim::new();
        fault.into_iter().for_each(|fault| sim.script(fault));
        let mut target = Target::new(sim);
        let mut qpair = target.qpair_within(0, 16, Duration::from_millis(50));
        contains(&connect_failure(&mut qpair), &["no answer within", words, "UDP port 4791"]);
    }
}

#[test]
fn each_step_of_connecting_may_fail() {
    let etimedout = -libc::ETIMEDOUT;
    for (fault, words) in [
        (
            SimFault::Address(Some(CmEvent::AddressError(-libc::ENODEV))),
            "no RDMA device leads to the address",
        ),
        (SimFault::Route(Some(CmEvent::RouteError(-libc::EINVAL))), "there is no route to the address"),
        (SimFault::Connect(Some(CmEvent::Unreachable(etimedout))), "does not answer RDMA connect requests"),
        (SimFault::Connect(Some(CmEvent::ConnectError(-libc::ENOMEM))), "connecting failed"),
        (SimFault::Connect(Some(CmEvent::DeviceRemoved)), "removed while connecting"),
        (SimFault::Connect(Some(CmEvent::AddressChanged)), "moved to another device"),
        (SimFault::Connect(Some(CmEvent::Disconnected)), "ended the connection while connecting"),
        (SimFault::Connect(Some(CmEvent::RouteResolved)), "unexpected event"),
        (SimFault::CreateQueuePair(libc::EINVAL), "making a queue pair of 16 entries on sim0"),
        (SimFault::CreateQueuePair(libc::ENOMEM), "ulimit -l"),
        (SimFault::Register(libc::ENOMEM), "of memory with the RDMA device sim0"),
    ] {
        let sim = Sim::new();
        sim.script(fault.clone());
        let mut target = Target::new(sim);
        contains(&connect_failure(&mut target.qpair(0, 16)), &[words]);
    }
}

#[test]
fn an_accept_that_makes_no_sense_is_misbehaviour() {
    for (private_data, words) in [
        (&[0u8; 3][..], "3 bytes of private data"),
        (
            &[
                1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0,
            ],
            "format 1",
        ),
        (&[0; 32], "CRQSIZE 0"),
    ] {
        let mut target = Target::new(Sim::new());
        let mut qpair = target.qpair(0, 16);
        qpair.poll_connect(Instant::now()).unwrap();
        let _peer =
            target.listener.next_request().unwrap().accept(private_data, 16, std::sync::Arc::new(|| {}));
        contains(&connect_failure(&mut qpair), &["broke the protocol", words]);
    }
}

#[test]
fn a_controller_without_keyed_sgls_is_refused() {
    let mut target = Target::new(Sim::new());
    let mut identify: nvmf_core::spec::identify::IdentifyController = zerocopy::FromZeros::new_zeroed();
    identify.ioccsz = 4.into();
    let error = target.controller.identified(&identify).unwrap_err().to_string();
    contains(&error, &["keyed SGL"]);
    identify.ioccsz = 0.into();
    target.controller.identified(&identify).unwrap();
}

#[test]
fn capsules_are_not_made_as_long_as_a_controller_likes() {
    let mut target = Target::new(Sim::new());
    let mut identify: nvmf_core::spec::identify::IdentifyController = zerocopy::FromZeros::new_zeroed();
    identify.sgls = (1 | 1 << 2 | 1 << 20).into();
    identify.ioccsz = (u32::from(u16::MAX) * 2).into();
    identify.icdoff = 512.into();
    target.controller.identified(&identify).unwrap();
    identify.icdoff = 513.into();
    let error = target.controller.identified(&identify).unwrap_err().to_string();
    contains(&error, &["ICDOFF"]);
}

#[test]
fn an_interface_to_connect_through_is_refused_with_advice() {
    let transport = RdmaTransport::with_provider(Sim::new());
    let mut options = ControllerOptions::default();
    options.host_iface = Some("eth7".into());
    let error = transport.controller(&trid("192.0.2.1:4420".parse().unwrap()), &options).unwrap_err();
    contains(&error.to_string(), &["eth7", "host_traddr"]);
    let mut options = ControllerOptions::default();
    options.src_addr = Some("2001:db8::1".into());
    let mut controller = transport.controller(&trid("192.0.2.1:4420".parse().unwrap()), &options).unwrap();
    let setup = nvmf_core::transport::QpairSetup {
        qid: 0,
        entries: 32,
        slots: 31,
        deadline: Instant::now() + Duration::from_secs(60),
        priority: 0,
    };
    let mut qpair = controller.connect_qpair(&setup).unwrap();
    contains(&connect_failure(&mut qpair), &["different address families"]);
}

// --- in the middle of a load ---------------------------------------------------------------------------------------------

/// A queue pair with reads and writes in every state: answered, at the controller, on the way, waiting for a credit.
fn under_load(sim: &Sim) -> Bench {
    let mut target = Target::with(
        sim.clone(),
        RdmaOptions::default().rnr_retry_count(3),
        &ControllerOptions::default(),
        Identity { ..IDENTITY },
    );
    target.crqsize = 10;
    let mut bench = target.connect(1, 17);
    for n in 0..16 {
        if n % 2 == 0 { bench.read(8192) } else { bench.write(&[1; 512]) }.unwrap();
    }
    bench.flush().unwrap();
    for _ in 0..3 {
        let command = bench.take().unwrap();
        bench.serve(&command, 1);
    }
    bench.take().unwrap();
    bench
}

/// What must hold after a failure: what had completed is there, nothing more comes, and once quiesced the controller reaches
/// nothing.
fn gives_up(bench: &mut Bench, least: usize) {
    let completed = bench.completed().len();
    assert!(completed >= least, "{completed} commands had completed");
    assert!(bench.poll().is_err(), "it stays failed");
    assert_eq!(bench.quiesce(), Quiesce::Done);
    assert_eq!(bench.tracker.completed(), 0);
    assert!(bench.peer.write(0, 1, &[0]).is_err());
    assert!(!bench.peer.is_connected());
    assert_eq!(bench.quiesce(), Quiesce::Done, "asking again does no harm");
}

#[test]
fn a_failed_request_flushes_the_rest_and_is_named() {
    for (status, words) in [
        (WorkStatus::RETRY_EXCEEDED, "transport retries exceeded"),
        (WorkStatus::RNR_RETRY_EXCEEDED, "RNR retries exceeded"),
        (WorkStatus::REMOTE_ACCESS, "refused the access to memory"),
        (WorkStatus::REMOTE_INVALID_REQUEST, "found the request invalid"),
        (WorkStatus(99), "status 99 of the device"),
    ] {
        let sim = Sim::new();
        let mut bench = under_load(&sim);
        bench.connection.fail(Some(status));
        let error = bench.failure();
        assert!(matches!(error.kind(), ErrorKind::Disconnected(_)));
        contains(&error.to_string(), &[words, "sending a command", "vendor code 0x77"]);
        gives_up(&mut bench, 3);
    }
}

#[test]
fn work_flushed_for_an_unknown_reason_says_so() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    bench.connection.fail(None);
    contains(&bench.failure().to_string(), &["flushed its work"]);
    gives_up(&mut bench, 3);
}

#[test]
fn a_controller_without_receives_is_an_error_when_retries_are_limited() {
    let sim = Sim::new();
    let mut target = Target::with(
        sim.clone(),
        RdmaOptions::default().rnr_retry_count(2),
        &ControllerOptions::default(),
        IDENTITY,
    );
    let mut qpair = target.qpair(1, 8);
    qpair.poll_connect(Instant::now()).unwrap();
    // It promises eight and posts one.
    let accept = nvmf_core::spec::rdma::CmAccept::new(8);
    let request = target.listener.next_request().unwrap();
    let mut peer = request.accept(accept.as_bytes(), 1, std::sync::Arc::new(|| {}));
    assert_eq!(qpair.poll_connect(Instant::now()).unwrap(), ConnectProgress::Established);
    let mut tracker = nvmf_core::proto::Tracker::new(7, 8, true);
    for op in 0..2 {
        let (slot, cid) = tracker.begin(op, 0, 0, nvmf_core::spec::command::DataDirection::None).unwrap();
        let mut sqe = nvmf_core::spec::Sqe::nvm(nvmf_core::spec::NvmOpcode::FLUSH, 1);
        sqe.cid = cid.into();
        qpair.submit(slot, &sqe, &tracker).unwrap();
    }
    qpair.flush(&tracker).unwrap();
    assert!(peer.receive().is_some());
    assert!(peer.receive().is_none());
    let error = qpair.poll(&mut tracker, 10).unwrap_err().to_string();
    contains(&error, &["no receive posted (RNR retries exceeded)"]);
}

#[test]
fn a_response_nobody_waits_for_is_misbehaviour() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    let done = bench.drain();
    assert!(done.len() >= 2);
    // Never issued, answered before, and taken but waiting for a credit.
    for cid in [0xfffe, done[0].0] {
        let mut bench = under_load(&sim);
        bench.drain();
        bench.answer(cid);
        let error = bench.failure();
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)));
        contains(&error.to_string(), &["is not outstanding"]);
        gives_up(&mut bench, 0);
    }
    let mut target = Target::new(sim);
    target.crqsize = 1;
    let mut bench = target.connect(1, 4);
    bench.read(512).unwrap();
    let waiting = bench.read(512).unwrap();
    bench.flush().unwrap();
    bench.take().unwrap();
    bench.answer(waiting);
    contains(&bench.failure().to_string(), &["is not outstanding"]);
}

#[test]
fn responses_of_the_wrong_length_are_misbehaviour() {
    for (len, words) in
        [(0, "of 0 bytes"), (15, "of 15 bytes"), (17, "longer than 16 bytes"), (64, "longer than 16 bytes")]
    {
        let sim = Sim::new();
        let mut bench = under_load(&sim);
        let sent = bench.peer.send(&vec![0; len], None);
        assert_eq!(sent.is_ok(), len <= 16);
        let error = bench.failure();
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
        contains(&error.to_string(), &[words]);
        gives_up(&mut bench, 3);
    }
}

#[test]
fn invalidating_a_key_that_was_not_offered_is_misbehaviour() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    let command = bench.take().unwrap();
    let cqe = Cqe::new(command.cid(), 0, Status::SUCCESS);
    bench.peer.send(cqe.as_bytes(), Some(command.sgl().key())).unwrap();
    let error = bench.failure();
    assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)));
    contains(&error.to_string(), &["invalidated key"]);
    gives_up(&mut bench, 3);
}

#[test]
fn access_with_a_key_that_does_not_allow_it_breaks_the_connection() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    let command = bench.take().unwrap();
    let sgl = command.sgl();
    assert!(bench.peer.read(sgl.address.get(), sgl.key() ^ 0x100, &mut [0; 16]).is_err());
    contains(&bench.failure().to_string(), &["flushed"]);
    gives_up(&mut bench, 3);
}

#[test]
fn more_responses_than_commands_find_no_receive() {
    let mut bench = Target::new(Sim::new()).connect(1, 4);
    bench.read(512).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    for _ in 0..4 {
        bench.answer(command.cid());
    }
    let cqe = Cqe::new(command.cid(), 0, Status::SUCCESS);
    assert!(bench.peer.send(cqe.as_bytes(), None).is_err());
    contains(&bench.failure().to_string(), &["is not outstanding"]);
    assert_eq!(bench.completed().len(), 1, "the first one counts");
}

#[test]
fn a_controller_that_disconnects_is_noticed_by_who_polls_and_who_sleeps() {
    for sleeps in [false, true] {
        let sim = Sim::new();
        let mut bench = under_load(&sim);
        bench.poll().unwrap();
        if sleeps {
            assert!(bench.qpair.has_local_work());
            bench.poll().unwrap();
            assert!(!bench.qpair.has_local_work());
        }
        bench.connection.event(CmEvent::Disconnected);
        contains(&bench.failure().to_string(), &["the controller ended the connection", "192.0.2.1"]);
        gives_up(&mut bench, 3);
    }
}

#[test]
fn a_moved_address_ends_the_connection() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    bench.connection.event(CmEvent::TimeWaitExit);
    bench.connection.event(CmEvent::Other(12));
    bench.connection.event(CmEvent::AddressChanged);
    contains(&bench.failure().to_string(), &["the local address moved away from the RDMA device sim0"]);
    gives_up(&mut bench, 3);
}

#[test]
fn a_device_that_is_removed_takes_its_connections_and_the_next_uses_another() {
    let sim = Sim::new();
    let mut target = Target::new(sim.clone());
    let mut bench = target.connect(1, 8);
    for _ in 0..4 {
        bench.read(8192).unwrap();
    }
    bench.flush().unwrap();
    bench.take().unwrap();
    sim.remove_device();
    contains(&bench.failure().to_string(), &["the RDMA device sim0 was removed"]);
    gives_up(&mut bench, 0);
    let before = sim.stats().registrations;
    let mut again = target.connect(1, 8);
    again.pool = bench.pool.clone();
    again.read(8192).unwrap();
    again.flush().unwrap();
    let command = again.take().unwrap();
    again.serve(&command, 4);
    assert_eq!(again.drain().len(), 1);
    assert_eq!(sim.stats().registrations, before + 2, "capsules and data were registered anew");
}

// --- giving up -----------------------------------------------------------------------------------------------------------

#[test]
fn buffers_are_out_of_reach_only_after_the_flush() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    let command = bench.take().unwrap();
    let sgl = command.sgl();
    bench.peer.write(sgl.address.get(), sgl.key(), &[1; 8]).unwrap();
    assert_eq!(bench.quiesce(), Quiesce::Done);
    assert!(bench.peer.write(sgl.address.get(), sgl.key(), &[1; 8]).is_err());
}

#[test]
fn work_that_is_never_flushed_ends_with_the_queue_pair() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    bench.connection.withhold_flush();
    let now = Instant::now();
    assert_eq!(bench.qpair.disconnect(now), Quiesce::Pending);
    assert_eq!(bench.qpair.disconnect(now + Duration::from_millis(900)), Quiesce::Pending);
    assert_eq!(bench.qpair.disconnect(now + Duration::from_millis(1100)), Quiesce::Done);
    assert!(bench.peer.write(0, 1, &[0]).is_err());
}

#[test]
fn a_queue_pair_that_cannot_be_destroyed_is_not_confirmed() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    bench.connection.refuse_destroy();
    assert_eq!(bench.quiesce(), Quiesce::Unconfirmed);
    assert_eq!(bench.quiesce(), Quiesce::Unconfirmed);
}

#[test]
fn lost_completions_leave_commands_outstanding_and_giving_up_still_works() {
    let sim = Sim::new();
    let mut bench = under_load(&sim);
    bench.drain();
    bench.connection.lose_completions(true);
    while let Some(command) = bench.take() {
        bench.answer(command.cid());
    }
    assert!(bench.drain().is_empty());
    let now = Instant::now();
    assert_eq!(bench.qpair.disconnect(now), Quiesce::Pending);
    assert_eq!(bench.qpair.disconnect(now + Duration::from_secs(2)), Quiesce::Done);
}

#[test]
fn a_queue_pair_dropped_in_the_middle_ends_its_connection() {
    let sim = Sim::new();
    let bench = under_load(&sim);
    let Bench { qpair, mut peer, .. } = bench;
    drop(qpair);
    assert!(!peer.is_connected());
    assert!(peer.receive().is_none());
    let mut target = Target::new(sim);
    drop(target.qpair(0, 32));
    let mut connecting = target.qpair(0, 32);
    connecting.poll_connect(Instant::now()).unwrap();
    drop(connecting);
    assert!(target.listener.next_request().is_none());
}

#[test]
fn a_device_that_is_not_well_is_named_as_the_cause() {
    let sim = Sim::new();
    let mut target = Target::new(sim.clone());
    for status in [None, Some(WorkStatus::RETRY_EXCEEDED)] {
        let mut bench = target.connect(1, 8);
        bench.read(512).unwrap();
        bench.flush().unwrap();
        sim.set_trouble(Some("port 1 of the RDMA device sim0 is not up".to_owned()));
        bench.connection.fail(status);
        contains(&bench.failure().to_string(), &["port 1 of the RDMA device sim0 is not up: "]);
        assert_eq!(bench.quiesce(), Quiesce::Done);
        sim.set_trouble(None);
    }
}
