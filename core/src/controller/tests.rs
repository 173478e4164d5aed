//! Controllers against the target of [`crate::testing`]: admin commands, keep alive, detaching, queue identifiers.

mod life;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;

use super::*;
use crate::driver::Callbacks;
use crate::namespace::Namespace;
use crate::qpair::IoCommand;
use crate::spec::log_page::LogPageId;
use crate::testing::{self, Target, VENDOR_ADMIN, eventually, trid};

const SOON: Duration = Duration::from_secs(5);

fn attach(target: &Target) -> Controller {
    target.driver().connect(&trid("disk"), &testing::options()).unwrap()
}

/// Attached with a callback that reports removals.
fn attach_watched(target: &Target, options: ControllerOptions) -> (Controller, mpsc::Receiver<TransportId>) {
    let (tell, told) = mpsc::channel();
    let mut attached = None;
    let callbacks = Callbacks::new()
        .options(options)
        .attach(|ctrlr| attached = Some(ctrlr))
        .remove(move |trid| tell.send(trid.clone()).unwrap());
    target.driver().probe(Some(&trid("disk")), callbacks).unwrap();
    (attached.expect("attached"), told)
}

fn vendor(value: u32) -> Sqe {
    Sqe::new(VENDOR_ADMIN, 0).with_cdw10(value)
}

#[test]
fn a_refused_connect_says_what_the_target_objects_to() {
    let host = testing::options().host.unwrap_or_else(|| HostIdentity::load().unwrap());
    let said = |parameter: InvalidParameter| {
        let mut cqe = Cqe::new(0, 0, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
        cqe.dw0 = parameter.to_dw0().into();
        check_connect(&cqe, &host).unwrap_err().to_string()
    };
    for (in_data, offset, expected) in [
        (true, 256, "the subsystem NQN is not known at this address"),
        (true, 512, "objects to the host NQN"),
        (false, 44, "objects to the submission queue size"),
        (false, 46, "--disable-sqflow=no"),
        (false, 45, "objects to byte 45"),
    ] {
        let text = said(InvalidParameter { offset, in_data });
        assert!(text.contains(expected), "{text}");
    }
}

// --- admin commands ------------------------------------------------------------------------------------------------------

#[test]
fn what_the_target_says_is_what_the_controller_has() {
    let target = Target::new();
    target.knobs().nsids = vec![1, 5];
    let ctrlr = attach(&target);
    assert_eq!((ctrlr.cntlid(), ctrlr.version(), ctrlr.num_io_queues()), (1, Version::V1_4, 4));
    assert_eq!(ctrlr.namespaces().iter().map(Namespace::nsid).collect::<Vec<_>>(), [1, 5]);
    assert!(ctrlr.namespace(2).is_none());
    assert_eq!(ctrlr.keep_alive_timeout(), Duration::from_secs(10));
    assert!(!ctrlr.is_discovery());
    target.knobs().nsids = vec![5, 6];
    ctrlr.rescan_namespaces().unwrap();
    assert_eq!(ctrlr.namespaces().iter().map(Namespace::nsid).collect::<Vec<_>>(), [5, 6]);
    assert_eq!(ctrlr.num_io_queues(), 4);
}

#[test]
fn a_transfer_limit_beyond_64_bits_is_none() {
    for (mdts, expected) in
        [(0, u32::MAX), (1, 8192), (19, 1 << 31), (20, u32::MAX), (60, u32::MAX), (255, u32::MAX)]
    {
        let target = Target::new();
        target.knobs().mdts = mdts;
        assert_eq!(attach(&target).max_transfer(), expected, "MDTS {mdts}");
    }
}

#[test]
fn admin_commands_waited_for() {
    let target = Target::new();
    let ctrlr = attach(&target);
    let result = ctrlr.admin(vendor(77)).wait().unwrap();
    assert_eq!((result.dw0(), result.data.len()), (77, 0));
    let data = ctrlr.identify_structure(crate::spec::identify::Cns::CONTROLLER, 0).unwrap();
    assert_eq!((data.len(), data[111]), (4096, 1));
    let error = ctrlr.admin(Sqe::new(0xd0, 0)).name("Frobnicate").wait().unwrap_err();
    assert_eq!(error.status(), Some(Status::INVALID_OPCODE));
    let text = error.to_string();
    assert!(text.contains("Frobnicate failed") && text.contains("nqn.2024-01.org.example:disk"), "{text}");
    let both = ctrlr.admin(vendor(0)).data_in(8).data_out(vec![1]).wait().unwrap_err();
    assert!(matches!(both.kind(), ErrorKind::ApiMisuse(_)));
    for len in [0, 3] {
        let error = ctrlr.log_page(LogPageId::DISCOVERY, 0, len).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)));
    }
    assert_eq!(ctrlr.pool().stats().outstanding, 0);
}

/// Runs a future with a waker that ends the wait; `None` after `limit`.
fn park_on<T>(future: impl Future<Output = T>, limit: Duration) -> Option<T> {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let start = Instant::now();
    while start.elapsed() < limit {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return Some(value),
            Poll::Pending => thread::park_timeout(limit),
        }
    }
    None
}

#[test]
fn admin_commands_awaited() {
    for background_admin in [false, true] {
        let target = Target::new();
        let options = ControllerOptions { background_admin, ..testing::options() };
        let ctrlr = target.driver().connect(&trid("disk"), &options).unwrap();
        for n in 0..20 {
            let result = park_on(ctrlr.admin(vendor(n)).into_future(), SOON).expect("woken");
            assert_eq!(result.unwrap().dw0(), n);
        }
        ctrlr.detach().unwrap();
    }
}

#[test]
fn a_dropped_admin_command_is_forgotten_once_it_completes() {
    let target = Target::new();
    let ctrlr = attach(&target);
    target.knobs().hold = true;
    let pending = ctrlr.admin(vendor(1)).data_in(4096).submit().unwrap();
    ctrlr.process_admin_completions().unwrap();
    drop(pending);
    ctrlr.process_admin_completions().unwrap();
    assert_eq!(ctrlr.pool().stats().outstanding, 1, "the controller may still write it");
    target.knobs().hold = false;
    assert_eq!(ctrlr.process_admin_completions().unwrap(), 1);
    assert_eq!(ctrlr.pool().stats().outstanding, 0);
    assert_eq!(ctrlr.admin(vendor(2)).wait().unwrap().dw0(), 2);
}

#[test]
fn threads_wait_for_their_own_completions() {
    let target = Target::new();
    let options = ControllerOptions { background_admin: true, ..testing::options() };
    let ctrlr = target.driver().connect(&trid("disk"), &options).unwrap();
    thread::scope(|scope| {
        for thread in 0..4u32 {
            let ctrlr = ctrlr.clone();
            scope.spawn(move || {
                for n in 0..50 {
                    let value = thread << 16 | n;
                    assert_eq!(ctrlr.admin(vendor(value)).wait().unwrap().dw0(), value);
                }
            });
        }
    });
}

#[test]
fn an_admin_command_without_answer_gives_the_controller_up() {
    for background_admin in [false, true] {
        let target = Target::new();
        let options = ControllerOptions { background_admin, ..testing::impatient() };
        let (ctrlr, removed) = attach_watched(&target, options);
        target.knobs().hold = true;
        let start = Instant::now();
        let error = ctrlr.admin(vendor(1)).name("Frobnicate").wait().unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(error.to_string().starts_with("Frobnicate ("), "{error}");
        assert!((500..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert!(ctrlr.is_failed());
        assert_eq!(removed.recv_timeout(SOON).unwrap(), trid("disk"));
        assert!(ctrlr.admin(vendor(1)).wait().unwrap_err().is_timeout(), "the reason stays");
        let _ = ctrlr.process_admin_completions();
        assert!(removed.recv_timeout(Duration::from_millis(50)).is_err(), "told once");
        assert_eq!(target.knobs().connections, 0);
    }
}

#[test]
fn events_arrive_and_are_asked_for_again() {
    let target = Target::new();
    let ctrlr = attach(&target);
    ctrlr.process_admin_completions().unwrap();
    for _ in 0..3 {
        target.knobs().events.extend([0x0004_0002, 0x0070_f002]);
        for _ in 0..3 {
            ctrlr.process_admin_completions().unwrap();
        }
        let events = ctrlr.take_events();
        assert_eq!(events.len(), 2);
        assert!(events[0].is_namespace_change() && events[1].is_discovery_log_change());
    }
    assert!(ctrlr.take_events().is_empty());
}

#[test]
fn events_nobody_fetches_do_not_pile_up() {
    let target = Target::new();
    let ctrlr = attach(&target);
    target.knobs().events.extend((0..600).map(|n| 2 | (n & 0xff) << 8));
    while !target.knobs().events.is_empty() {
        ctrlr.process_admin_completions().unwrap();
    }
    for _ in 0..3 {
        ctrlr.process_admin_completions().unwrap();
    }
    let events = ctrlr.take_events();
    assert_eq!(events.len(), 256);
    assert_eq!(events.last().map(|event| event.info), Some((599u32 & 0xff) as u8), "the oldest are dropped");
}

// --- keep alive ------------------------------------------------------------------------------------------------------------

fn short_keep_alive(background_admin: bool) -> ControllerOptions {
    ControllerOptions {
        background_admin,
        keep_alive_timeout: Duration::from_millis(600),
        ..testing::options()
    }
}

#[test]
fn the_background_thread_keeps_a_controller_alive_and_notices_its_end_once() {
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, short_keep_alive(true));
    thread::sleep(Duration::from_millis(1600));
    let sent = target.knobs().keep_alives;
    assert!((3..=7).contains(&sent), "{sent} keep alives in 1.6 s, one every 0.3 s is right");
    assert!(!ctrlr.is_failed());
    target.knobs().answer_keep_alive = false;
    let start = Instant::now();
    assert_eq!(removed.recv_timeout(SOON).unwrap(), trid("disk"));
    assert!(start.elapsed() >= Duration::from_millis(300), "told after {:?}", start.elapsed());
    let failure = ctrlr.failure().expect("failed");
    assert!(failure.to_string().contains("waiting for the answer to Keep Alive"), "{failure}");
    assert!(removed.recv_timeout(Duration::from_millis(700)).is_err(), "told once");
}

#[test]
fn a_lost_connection_is_told_in_the_call_that_notices_it() {
    // Not in the next one: the background thread looks only every second at a controller with nothing to do.
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, testing::options());
    ctrlr.process_admin_completions().unwrap();
    target.knobs().cut = true;
    let _ = ctrlr.process_admin_completions();
    removed.try_recv().expect("told although event requests were outstanding");
    assert!(ctrlr.process_admin_completions().is_err());
    assert!(removed.try_recv().is_err(), "told once");
}

#[test]
fn without_the_thread_keep_alives_are_sent_while_polled() {
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, short_keep_alive(false));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(target.knobs().keep_alives, 0, "nobody polls");
    for _ in 0..3 {
        ctrlr.process_admin_completions().unwrap();
    }
    assert_eq!(target.knobs().keep_alives, 1);
    target.knobs().answer_keep_alive = false;
    eventually(SOON, "given up", || ctrlr.process_admin_completions().is_err());
    removed.try_recv().expect("told");
}

#[test]
fn an_admin_queue_filled_by_the_caller_is_no_reason_to_give_up() {
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, short_keep_alive(false));
    target.knobs().hold = true;
    let mut pending = Vec::new();
    let full = loop {
        match ctrlr.admin(vendor(0)).submit() {
            Ok(command) => pending.push(command),
            Err(error) => break error,
        }
        assert!(pending.len() < 10_000);
    };
    assert!(matches!(full.kind(), ErrorKind::Exhausted(_)), "{full}");
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(40));
        ctrlr.process_admin_completions().unwrap();
    }
    assert_eq!(target.knobs().keep_alives, 0);
    target.knobs().hold = false;
    for command in pending {
        command.wait().unwrap();
    }
    ctrlr.process_admin_completions().unwrap();
    ctrlr.process_admin_completions().unwrap();
    assert!(target.knobs().keep_alives > 0, "sent as soon as there is room");
    assert!(removed.try_recv().is_err());
}

#[test]
fn a_controller_given_up_by_the_program_reports_its_removal_once() {
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, testing::options());
    target.knobs().hold = true;
    let pending = ctrlr.admin(vendor(0)).submit().unwrap();
    ctrlr.fail();
    ctrlr.fail();
    assert!(pending.wait().is_err());
    assert!(ctrlr.alloc_io_qpair(&IoQpairOptions::default()).is_err());
    removed.try_recv().expect("told");
    assert!(removed.try_recv().is_err());
}

// --- detaching ---------------------------------------------------------------------------------------------------------------

#[test]
fn detaching_shuts_down_and_disconnects_without_a_removal() {
    for background_admin in [false, true] {
        let target = Target::new();
        let options = ControllerOptions { background_admin, ..testing::options() };
        let (ctrlr, removed) = attach_watched(&target, options);
        let other = ctrlr.clone();
        ctrlr.detach().unwrap();
        assert_eq!(target.knobs().connections, 0);
        assert_eq!(target.knobs().shutdowns, 1);
        assert!(other.admin(vendor(0)).wait().is_err());
        assert!(removed.recv_timeout(Duration::from_millis(50)).is_err());
    }
}

#[test]
fn detaching_without_confirmation_times_out() {
    for background_admin in [false, true] {
        let target = Target::new();
        let options = ControllerOptions { background_admin, ..testing::impatient() };
        let (ctrlr, removed) = attach_watched(&target, options);
        target.knobs().confirm_shutdown = false;
        let start = Instant::now();
        let error = ctrlr.detach().unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(error.to_string().contains("CSTS.SHST"), "{error}");
        assert!((500..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert_eq!(target.knobs().connections, 0, "given up all the same");
        assert!(removed.recv_timeout(Duration::from_millis(50)).is_err());
    }
}

#[test]
fn detaching_without_notification_just_disconnects() {
    let target = Target::new();
    target.knobs().confirm_shutdown = false;
    let options = ControllerOptions { no_shn_notification: true, ..testing::options() };
    target.driver().connect(&trid("disk"), &options).unwrap().detach().unwrap();
    assert_eq!(target.knobs().connections, 0);
}

#[test]
fn dropping_the_last_handle_disconnects() {
    for background_admin in [false, true] {
        let target = Target::new();
        let options = ControllerOptions { background_admin, ..testing::options() };
        let ctrlr = target.driver().connect(&trid("disk"), &options).unwrap();
        let qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        drop(ctrlr);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(target.knobs().connections, 2, "a queue pair keeps its controller");
        drop(qpair);
        eventually(SOON, "disconnected", || target.knobs().connections == 0);
    }
}

// --- I/O queue pairs -----------------------------------------------------------------------------------------------------------

#[test]
fn queue_identifiers_are_used_again_after_the_connection_is_closed() {
    let target = Target::new();
    target.knobs().io_queues = 2;
    let ctrlr = attach(&target);
    let options = IoQpairOptions::default();
    let first = ctrlr.alloc_io_qpair(&options).unwrap();
    let second = ctrlr.alloc_io_qpair(&options).unwrap();
    assert_eq!((first.qid(), second.qid()), (1, 2));
    let error = ctrlr.alloc_io_qpair(&options).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Exhausted(_)), "{error}");
    target.knobs().log.clear();
    target.knobs().close_takes = Duration::from_millis(100);
    // Another thread waits for the identifier while this one drops the queue pair.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut made = None;
            eventually(SOON, "an identifier", || {
                made = ctrlr.alloc_io_qpair(&options).ok();
                made.is_some()
            });
            made.map(|qpair| qpair.qid())
        });
        drop(first);
        assert_eq!(waiting.join().unwrap(), Some(1));
    });
    assert_eq!(target.knobs().log[..2], ["close 1", "open 1"]);
}

#[test]
fn a_refused_queue_says_why_and_frees_its_identifier() {
    let target = Target::new();
    target.knobs().io_queues = 1;
    let ctrlr = attach(&target);
    target.knobs().connect_status = Status::CONNECT_CONTROLLER_BUSY;
    for _ in 0..3 {
        let error = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap_err();
        assert_eq!(error.status(), Some(Status::CONNECT_CONTROLLER_BUSY));
        assert!(error.to_string().contains("connecting I/O queue 1"), "{error}");
    }
    target.knobs().connect_status = Status::SUCCESS;
    ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    assert_eq!(ctrlr.pool().stats().outstanding, 0);
}

#[test]
fn a_target_that_has_forgotten_the_controller_has_lost_it() {
    let target = Target::new();
    let ctrlr = attach(&target);
    target.knobs().forget_controllers = true;
    let error = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Disconnected(_)), "{error}");
    let text = format!("the target does not know controller {} any more", ctrlr.cntlid());
    assert!(error.to_string().contains("connecting I/O queue 1"), "{error}");
    assert!(error.to_string().contains(&text), "{error}");
    target.knobs().forget_controllers = false;
    ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    // When the admin queue turns out to be lost too, that is the reason.
    target.knobs().cut = true;
    let error = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap_err();
    assert!(ctrlr.is_failed());
    assert!(error.to_string().ends_with("the target cut queue 0"), "{error}");
}

#[test]
fn a_queue_that_cannot_even_be_made_frees_its_identifier() {
    let target = Target::new();
    target.knobs().io_queues = 1;
    let ctrlr = attach(&target);
    for _ in 0..3 {
        let made = ctrlr.alloc_io_qpair_with(&IoQpairOptions::default(), |_, _| {
            Err::<Box<dyn TransportQpair>, _>(Error::exhausted("no sockets"))
        });
        assert_eq!(
            made.unwrap_err().to_string(),
            format!("making I/O queue 1 ({}): no sockets", trid("disk"))
        );
    }
    ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
}

#[test]
fn as_many_operations_as_asked_for() {
    let target = Target::new();
    let ctrlr = attach(&target);
    let ns = ctrlr.namespace(1).unwrap();
    target.knobs().connect_polls = 3;
    target.knobs().hold = true;
    let mut qpair = ctrlr.alloc_io_qpair_async(&IoQpairOptions::default().queue_requests(6)).unwrap();
    for n in 0..6 {
        qpair.flush_namespace(&ns, n).unwrap();
    }
    assert!(qpair.flush_namespace(&ns, 9).unwrap_err().is_queue_full());
    while !qpair.is_connected() {
        assert_eq!(qpair.process_completions(0, |_| {}).unwrap(), 0);
    }
    assert!(qpair.flush_namespace(&ns, 9).unwrap_err().is_queue_full());
    target.knobs().hold = false;
    let mut done = Vec::new();
    while done.len() < 6 {
        qpair.process_completions(0, |completion| done.push(completion.user_data)).unwrap();
    }
    assert_eq!(done, [0, 1, 2, 3, 4, 5]);
    assert_eq!(qpair.outstanding(), 0);
}

#[test]
fn an_aborted_command_completes_with_the_controllers_status() {
    let target = Target::new();
    let ctrlr = attach(&target);
    let ns = ctrlr.namespace(1).unwrap();
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    target.knobs().hold = true;
    // More than Abort commands may be outstanding at once.
    let ids: Vec<_> = (0..3).map(|n| qpair.submit(IoCommand::flush(&ns), n).unwrap()).collect();
    qpair.process_completions(0, |_| {}).unwrap();
    for &id in &ids {
        assert!(qpair.abort(id, |_| panic!("the controller has it")).unwrap());
    }
    for _ in 0..6 {
        ctrlr.process_admin_completions().unwrap();
    }
    let mut done = Vec::new();
    qpair.process_completions(0, |completion| done.push((completion.id, completion.result))).unwrap();
    let aborted = Err(CommandError::Status(Status::ABORT_REQUESTED));
    assert_eq!(done, ids.iter().map(|&id| (id, aborted)).collect::<Vec<_>>());
    assert!(!qpair.abort(ids[0], |_| panic!("it is done")).unwrap());
}

#[test]
fn blocking_helpers_move_data() {
    let target = Target::new();
    let ctrlr = attach(&target);
    let ns = ctrlr.namespace(1).unwrap();
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let mut buf = qpair.alloc(4096).unwrap();
    buf.fill(0x3c);
    let buf = qpair.write_blocking(&ns, 7, buf).unwrap();
    assert!(buf.iter().all(|&b| b == 0x3c));
    qpair.flush_blocking(&ns).unwrap();
    let read = qpair.read_blocking(&ns, 7, qpair.alloc(4096).unwrap()).unwrap();
    assert!(read.iter().all(|&b| b == 0x3c));
    let mut end = qpair.read_blocking(&ns, 15, buf).unwrap();
    assert!(end.iter().all(|&b| b == 0));
    end.fill(1);
    let error = qpair.write_blocking(&ns, testing::BLOCKS - 1, end).unwrap_err();
    assert_eq!(error.status(), Some(Status::LBA_OUT_OF_RANGE));
    target.knobs().hold = true;
    qpair.flush_namespace(&ns, 0).unwrap();
    assert!(matches!(qpair.flush_blocking(&ns).unwrap_err().kind(), ErrorKind::ApiMisuse(_)));
}
