//! Recovery and events, against the target of [`crate::testing`].

use super::*;
use crate::qpair::TimeoutPolicy;

/// Without a background thread: every step is this test's.
fn persistent() -> ControllerOptions {
    ControllerOptions {
        reconnect_delay: Some(Duration::from_millis(20)),
        ctrl_loss_timeout: Some(Duration::from_secs(60)),
        ..testing::options()
    }
}

fn process(ctrlr: &Controller) {
    let _ = ctrlr.process_admin_completions();
}

/// Cuts every connection, once.
fn cut(target: &Target, ctrlr: &Controller) {
    target.knobs().cut = true;
    process(ctrlr);
    target.knobs().cut = false;
}

fn listen(ctrlr: &Controller) -> mpsc::Receiver<Event> {
    let (tell, told) = mpsc::channel();
    ctrlr.on_event(move |_, event| tell.send(*event).unwrap());
    told
}

#[test]
fn attempts_are_repeated_until_one_succeeds() {
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, persistent());
    target.knobs().connect_status = Status::CONNECT_CONTROLLER_BUSY;
    target.knobs().hosts.clear();
    cut(&target, &ctrlr);
    assert_eq!(ctrlr.state(), ControllerState::Reconnecting);
    assert!(!ctrlr.is_failed() && ctrlr.failure().is_some());
    eventually(SOON, "three attempts", || {
        process(&ctrlr);
        target.knobs().hosts.len() >= 3
    });
    let busy = ctrlr.failure().expect("why the last attempt failed");
    assert_eq!(busy.status(), Some(Status::CONNECT_CONTROLLER_BUSY), "{busy}");
    target.knobs().connect_status = Status::SUCCESS;
    eventually(SOON, "ready", || {
        process(&ctrlr);
        ctrlr.state() == ControllerState::Ready
    });
    assert!(ctrlr.failure().is_none());
    assert_eq!(target.knobs().connections, 1);
    assert_eq!(ctrlr.admin(vendor(3)).wait().unwrap().dw0(), 3);
    assert!(removed.try_recv().is_err(), "it was never given up");
}

#[test]
fn programs_commands_do_not_slip_in_while_it_connects() {
    let target = Target::new();
    let ctrlr = target.driver().connect(&trid("disk"), &persistent()).unwrap();
    let before = ctrlr.admin(vendor(1)).submit().unwrap();
    target.knobs().connect_polls = 50;
    cut(&target, &ctrlr);
    assert!(before.wait().is_err(), "it was outstanding");
    for _ in 0..20 {
        process(&ctrlr);
        assert_eq!(ctrlr.state(), ControllerState::Reconnecting);
        let error = ctrlr.admin(vendor(2)).submit().map(drop).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Disconnected(_)), "{error}");
        assert!(ctrlr.alloc_io_qpair(&IoQpairOptions::default()).is_err());
    }
    eventually(SOON, "ready", || {
        process(&ctrlr);
        ctrlr.state() == ControllerState::Ready
    });
    assert_eq!(ctrlr.admin(vendor(3)).wait().unwrap().dw0(), 3);
}

#[test]
fn an_admin_command_without_answer_is_recovered_from() {
    for background_admin in [false, true] {
        let target = Target::new();
        let short = Duration::from_millis(500);
        let options = ControllerOptions { background_admin, admin_timeout: short, ..persistent() };
        let ctrlr = target.driver().connect(&trid("disk"), &options).unwrap();
        target.knobs().hold = true;
        assert!(ctrlr.admin(vendor(1)).wait().unwrap_err().is_timeout());
        target.knobs().hold = false;
        eventually(SOON, "ready", || {
            if !background_admin {
                process(&ctrlr);
            }
            ctrlr.state() == ControllerState::Ready
        });
        assert_eq!(ctrlr.admin(vendor(3)).wait().unwrap().dw0(), 3);
    }
}

#[test]
fn nothing_is_left_when_handles_are_dropped_while_it_connects() {
    for background_admin in [false, true] {
        for polls in 0..12 {
            let target = Target::new();
            let options = ControllerOptions { background_admin, ..persistent() };
            let driver = target.driver();
            let ctrlr = driver.connect(&trid("disk"), &options).unwrap();
            let qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
            cut(&target, &ctrlr);
            for _ in 0..polls {
                process(&ctrlr);
            }
            drop((qpair, ctrlr));
            eventually(SOON, "gone", || target.knobs().connections == 0);
            eventually(SOON, "memory back", || driver.pool().stats().outstanding == 0);
        }
    }
}

#[test]
fn a_refused_queue_takes_the_controller_through_recovery_until_it_is_given_up() {
    let target = Target::new();
    let options = ControllerOptions { ctrl_loss_timeout: Some(Duration::from_millis(500)), ..persistent() };
    let (ctrlr, removed) = attach_watched(&target, options);
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    target.knobs().refuse_io_queues = true;
    cut(&target, &ctrlr);
    let start = Instant::now();
    eventually(SOON, "given up", || {
        process(&ctrlr);
        qpair.process_completions(0, |_| {}).is_err()
    });
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(ctrlr.is_failed());
    removed.try_recv().expect("told");
}

#[test]
fn a_queue_that_is_not_granted_any_more_ends_and_the_others_go_on() {
    let target = Target::new();
    let ctrlr = target.driver().connect(&trid("disk"), &persistent()).unwrap();
    let ns = ctrlr.namespace(1).unwrap();
    let mut first = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let mut second = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    target.knobs().io_queues = 1;
    cut(&target, &ctrlr);
    for qpair in [&mut first, &mut second] {
        assert_eq!(qpair.process_completions(0, |_| {}).unwrap(), 0);
        qpair.flush_namespace(&ns, 9).unwrap();
    }
    let (mut done, mut lost) = (Vec::new(), None);
    eventually(SOON, "both know", || {
        process(&ctrlr);
        first.process_completions(0, |c| done.push(c.result)).unwrap();
        lost = second.process_completions(0, |c| done.push(c.result)).err();
        first.is_connected() && lost.is_some()
    });
    done.sort_by_key(|result| result.is_ok());
    assert_eq!(done, [Err(CommandError::NotSent), Ok(0)]);
    let lost = lost.unwrap();
    assert!(matches!(lost.kind(), ErrorKind::Exhausted(_)), "{lost}");
    assert_eq!(second.failure().map(ToString::to_string), Some(lost.to_string()));
    first.flush_blocking(&ns).unwrap();
    // Its identifier is free again once it is gone.
    drop(second);
    assert!(ctrlr.alloc_io_qpair(&IoQpairOptions::default()).is_err());
}

#[test]
fn what_the_program_calls_off_stays_called_off() {
    let target = Target::new();
    let (ctrlr, removed) = attach_watched(&target, persistent());
    for polls in 0..10 {
        ctrlr.disconnect().unwrap();
        ctrlr.reconnect_async().unwrap();
        for _ in 0..polls {
            process(&ctrlr);
        }
        ctrlr.fail();
        for _ in 0..20 {
            process(&ctrlr);
        }
        assert!(ctrlr.is_failed(), "after {polls} polls");
        assert_eq!(target.knobs().connections, 0);
        removed.try_recv().expect("told");
        ctrlr.reset().unwrap();
        assert_eq!(ctrlr.state(), ControllerState::Ready);
    }
    let other = ctrlr.clone();
    ctrlr.detach().unwrap();
    assert!(other.reset().is_err() && other.disconnect().is_err() && other.reconnect_async().is_err());
    assert!(removed.try_recv().is_err());
}

#[test]
fn threads_that_reset_at_the_same_time_all_find_it_ready() {
    let target = Target::new();
    let options = ControllerOptions { background_admin: true, ..persistent() };
    let ctrlr = target.driver().connect(&trid("disk"), &options).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    // One that another thread has just begun anew may be told so.
                    let _ = ctrlr.reset();
                }
            });
        }
    });
    eventually(SOON, "ready", || ctrlr.state() == ControllerState::Ready);
    assert_eq!(ctrlr.admin(vendor(3)).wait().unwrap().dw0(), 3);
    assert_eq!(target.knobs().connections, 1);
}

#[test]
fn a_late_command_resets_the_controller_without_a_recovery_policy() {
    let target = Target::new();
    let options = ControllerOptions {
        timeout_policy: TimeoutPolicy::Callback(Arc::new(|_| crate::TimeoutAction::Reset)),
        ..testing::impatient()
    };
    let (ctrlr, removed) = attach_watched(&target, options);
    let ns = ctrlr.namespace(1).unwrap();
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let before = ctrlr.cntlid();
    target.knobs().hold = true;
    qpair.flush_namespace(&ns, 1).unwrap();
    let mut end = None;
    eventually(SOON, "ended", || {
        let _ = qpair.process_completions(0, |c| end = Some(c.result));
        end.is_some()
    });
    assert_eq!(end, Some(Err(CommandError::TimedOut)));
    target.knobs().hold = false;
    eventually(SOON, "reset", || {
        process(&ctrlr);
        ctrlr.state() == ControllerState::Ready && ctrlr.cntlid() != before
    });
    qpair.reconnect().unwrap();
    qpair.flush_blocking(&ns).unwrap();
    assert!(removed.try_recv().is_err());
}

/// What `f` returns while another thread is at the admin queue and stays there; not if `f` waits for it.
fn while_taken<R>(ctrlr: &Controller, f: impl FnOnce() -> R) -> R {
    let (held, is_held) = mpsc::channel();
    let (over, is_over) = mpsc::channel::<()>();
    let start = Instant::now();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            let _admin = ctrlr.lock();
            held.send(()).unwrap();
            let _ = is_over.recv_timeout(SOON);
        });
        is_held.recv().unwrap();
        let result = f();
        drop(over);
        result
    });
    assert!(start.elapsed() < SOON / 2, "it waited for {:?}", start.elapsed());
    result
}

#[test]
fn an_io_thread_waits_for_no_thread_at_the_admin_queue() {
    let target = Target::new();
    let options = ControllerOptions { timeout_policy: TimeoutPolicy::Abort, ..persistent() };
    let ctrlr = target.driver().connect(&trid("disk"), &options).unwrap();
    let ns = ctrlr.namespace(1).unwrap();
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    // An abort is taken down, and sent once the other thread is done.
    target.knobs().hold = true;
    let id = qpair.flush_namespace(&ns, 1).unwrap();
    qpair.process_completions(0, |_| {}).unwrap();
    assert!(while_taken(&ctrlr, || qpair.abort(id, |_| panic!("the controller has it"))).unwrap());
    assert_eq!(ctrlr.abort_stats().sent, 0);
    eventually(SOON, "aborted", || {
        process(&ctrlr);
        let mut end = None;
        qpair.process_completions(0, |c| end = Some(c.result)).unwrap();
        end == Some(Err(CommandError::Status(Status::ABORT_REQUESTED)))
    });
    target.knobs().hold = false;
    // Of one from before the connection was lost nothing is sent: its identifier is another command's.
    while_taken(&ctrlr, || ctrlr.abort(ctrlr.link().association - 1, 1, 1)).unwrap();
    process(&ctrlr);
    assert_eq!(ctrlr.abort_stats().sent, 1);
    // The loss is noticed, with its reason.
    cut(&target, &ctrlr);
    let why = ctrlr.failure().expect("lost").to_string();
    qpair.flush_namespace(&ns, 2).unwrap();
    let poll = |qpair: &mut IoQpair| {
        while_taken(&ctrlr, || qpair.process_completions(0, |c| assert_eq!(c.result, Ok(0)))).unwrap()
    };
    assert_eq!(poll(&mut qpair), 0);
    assert_eq!(while_taken(&ctrlr, || ctrlr.failure()).map(|e| e.to_string()), Some(why));
    eventually(SOON, "ready", || {
        process(&ctrlr);
        ctrlr.state() == ControllerState::Ready
    });
    // It cannot connect again yet, and does so with the next poll.
    assert_eq!((poll(&mut qpair), qpair.is_connected()), (0, false));
    eventually(SOON, "the flush", || {
        qpair.process_completions(0, |c| assert_eq!((c.user_data, c.result), (2, Ok(0)))).unwrap() == 1
    });
}

// --- events ----------------------------------------------------------------------------------------------------------------

const NAMESPACES_CHANGED: u32 = 0x0004_0002;

#[test]
fn only_namespaces_that_changed_are_identified_again() {
    let target = Target::new();
    target.knobs().nsids = (1..=6).collect();
    let ctrlr = attach(&target);
    let told = listen(&ctrlr);
    let change = |nsid, change| Event::Namespace { nsid, change };
    process(&ctrlr);
    {
        let mut knobs = target.knobs();
        knobs.identified.clear();
        knobs.nsids = vec![1, 2, 4, 5, 6, 9];
        knobs.changed = vec![3, 5, 9];
        knobs.events.push_back(NAMESPACES_CHANGED);
    }
    let mut seen = Vec::new();
    eventually(SOON, "told", || {
        process(&ctrlr);
        seen.extend(told.try_iter());
        seen.len() == 2
    });
    assert_eq!(seen, [change(3, NamespaceChange::Removed), change(9, NamespaceChange::Added)]);
    assert_eq!(target.knobs().identified, [5, 9]);
    assert_eq!(ctrlr.namespaces().len(), 6);
}

#[test]
fn a_list_that_has_no_room_means_every_namespace() {
    let target = Target::new();
    target.knobs().nsids = (1..=3).collect();
    let ctrlr = attach(&target);
    process(&ctrlr);
    {
        let mut knobs = target.knobs();
        knobs.identified.clear();
        knobs.changed = vec![u32::MAX];
        knobs.events.push_back(NAMESPACES_CHANGED);
    }
    eventually(SOON, "identified", || {
        process(&ctrlr);
        target.knobs().identified == [1, 2, 3]
    });
}

#[test]
fn events_that_need_no_reading_are_told_as_what_they_are() {
    use crate::spec::log_page::{ErrorEvent, HealthEvent};
    let target = Target::new();
    let ctrlr = attach(&target);
    let told = listen(&ctrlr);
    target.knobs().events.extend([0x0001_0300, 0x0002_0101, 0x0070_f002, 0x0000_0007]);
    let mut seen = Vec::new();
    eventually(SOON, "told", || {
        process(&ctrlr);
        seen.extend(told.try_iter());
        seen.len() == 4
    });
    assert_eq!(
        seen[..3],
        [
            Event::Error(ErrorEvent::PERSISTENT_INTERNAL_ERROR),
            Event::Health(HealthEvent::TEMPERATURE_THRESHOLD),
            Event::DiscoveryLog,
        ]
    );
    assert!(matches!(seen[3], Event::Other(event) if event.event_type.0 == 7), "{:?}", seen[3]);
}

#[test]
fn a_controller_that_reports_events_without_end_is_bounded() {
    let target = Target::new();
    let ctrlr = attach(&target);
    let told = listen(&ctrlr);
    target.knobs().endless_event = Some(NAMESPACES_CHANGED);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        process(&ctrlr);
    }
    let windows = start.elapsed().as_secs() as usize + 2;
    let reported = target.knobs().events_reported;
    assert!((100..=windows * 1010).contains(&reported), "{reported} events");
    assert_eq!(ctrlr.take_events().len(), 256);
    let scans = target.knobs().identified.len();
    assert!(scans <= 2 + start.elapsed().as_millis() as usize / 100, "{scans} scans");
    assert!(told.try_recv().is_err(), "nothing changed");
    assert_eq!(ctrlr.admin(vendor(3)).wait().unwrap().dw0(), 3);
}
