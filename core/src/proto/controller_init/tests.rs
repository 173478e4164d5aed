//! The machine in virtual time, against a controller that is a few tables and a script.

mod model;

use std::collections::BTreeMap;
use std::ops::Range;

use model::*;
use proptest::prelude::*;

use super::*;
use crate::ErrorKind;
use crate::spec::Status;
use crate::spec::log_page::AnaState;

// --- order of things ---------------------------------------------------------------------------------------------------

#[test]
fn order_of_actions_on_a_memory_based_controller_with_everything() {
    let run = run(&mut Model::rich(false));
    assert_eq!(
        run.actions(),
        [
            "connect",
            "get VS",
            "get CAP",
            "get CC",
            "get CSTS",
            "set AQA, ASQ, ACQ",
            // IOCQES 4, IOSQES 6, CSS 110b (all supported), EN
            "set CC 0x460061",
            "get CSTS",
            "Identify Controller",
            "set up the transport",
            "Set Features (asynchronous event configuration)",
            "Get Features (keep alive timer)",
            "Identify I/O Command Set specific Controller",
            "Set Features (number of queues)",
            "Identify Active Namespace ID list",
            "Identify Namespace of 1",
            "Identify Namespace Identification Descriptors of 1",
            "Identify I/O Command Set specific Namespace of 1",
            "Identify Namespace of 2",
            "Identify Namespace Identification Descriptors of 2",
            "Identify I/O Command Set specific Namespace of 2",
            "Get Log Page (ANA)",
            "Set Features (host behavior support)",
            "Set Features (host identifier)",
        ]
    );
    let result = run.result.unwrap();
    assert_eq!(result.namespaces.len(), 2);
    assert_eq!(result.async_events, 0x8000_0b1f);
    assert_eq!(
        result.keep_alive_timeout,
        Duration::from_secs(15),
        "what the controller says, not what was asked"
    );
    let ana: Vec<_> = result.ana_groups.iter().map(|group| (group.id, group.state)).collect();
    assert_eq!(ana, [(1, AnaState::OPTIMIZED), (2, AnaState::INACCESSIBLE)]);
}

#[test]
fn order_of_actions_on_a_plain_fabrics_controller() {
    let run = run(&mut Model::plain(true));
    assert_eq!(
        run.actions(),
        [
            "connect",
            "get VS",
            "get CAP",
            "get CC",
            "get CSTS",
            "set CC 0x460001",
            "get CSTS",
            "Identify Controller",
            "Set Features (asynchronous event configuration)",
            "Get Features (keep alive timer)",
            "Set Features (number of queues)",
            "Identify Active Namespace ID list",
            "Identify Namespace of 1",
            "Identify Namespace Identification Descriptors of 1",
            "Identify Namespace of 2",
            "Identify Namespace Identification Descriptors of 2",
        ]
    );
    let result = run.result.unwrap();
    assert_eq!((result.cntlid, result.version, result.num_io_queues), (9, Version::V1_4, 4));
}

#[test]
fn a_discovery_controller_is_ready_after_keep_alive() {
    let mut model = Model::plain(true);
    model.identify[92..96].copy_from_slice(&0x8000_0000u32.to_le_bytes());
    model.identify[320..322].fill(0);
    let by_name = run_with(InitConfig { discovery: true, ..model.config() }, &mut model);
    assert_eq!(by_name.actions.last().map(String::as_str), Some("Get Features (keep alive timer)"));
    let result = by_name.result.unwrap();
    assert_eq!((result.discovery, result.num_io_queues, result.namespaces.len()), (true, 0, 0));
    assert_eq!(result.async_events, 0x8000_0000, "no health events: there is nothing to be unhealthy");

    // One with a name of its own says what it is in CNTRLTYPE.
    let mut model = Model::plain(true);
    model.identify[111] = 2;
    let by_type = run(&mut model);
    assert_eq!(by_type.actions.last().map(String::as_str), Some("Get Features (keep alive timer)"));
    assert!(by_type.result.unwrap().discovery);
}

#[test]
fn one_read_once_asks_for_no_keep_alive() {
    let mut model = Model::plain(true);
    let config = InitConfig { discovery: true, keep_alive_timeout: Duration::ZERO, ..model.config() };
    let run = run_with(config, &mut model);
    assert!(!run.actions.iter().any(|action| action.contains("keep alive")));
    assert_eq!(run.result.unwrap().keep_alive_timeout, Duration::ZERO);
}

#[test]
fn a_rescan_reads_namespaces_and_ana_and_sets_nothing() {
    let mut model = Model::rich(false);
    let known = run(&mut model).result.unwrap();
    (model.nsids, model.actions) = (vec![2, 7], Vec::new());
    let now = Instant::now();
    let machine = ControllerInit::rescan(model.config(), known, now);
    let run = run_machine(machine, &mut model, now);
    assert_eq!(run.actions[0], "Identify Active Namespace ID list");
    assert_eq!(run.actions.last().map(String::as_str), Some("Get Log Page (ANA)"));
    assert!(!run.actions.iter().any(|action| action.contains("Set Features")), "{:?}", run.actions);
    let result = run.result.unwrap();
    assert_eq!(result.namespaces.iter().map(|ns| ns.nsid).collect::<Vec<_>>(), [2, 7]);
    assert_eq!((result.num_io_queues, result.ana_groups.len()), (4, 2));
}

// --- enabling and disabling --------------------------------------------------------------------------------------------

#[test]
fn an_enabled_controller_is_disabled_first() {
    for fabrics in [false, true] {
        let mut model = Model::plain(fabrics);
        (model.cc, model.rdy) = (0x46_0001, true);
        let run = run(&mut model);
        assert_eq!(run.actions()[3..7], ["get CC", "get CSTS", "set CC 0x460000", "get CSTS"]);
        assert!(run.actions().contains(&"set CC 0x460001"));
        run.result.unwrap();
    }
}

#[test]
fn one_that_is_just_being_enabled_is_awaited_before_it_is_disabled() {
    let mut model = Model::plain(false);
    model.cc = 0x46_0001;
    model.ready_after = Some(300 * MS);
    model.pending = Some(Instant::now() + 300 * MS);
    let run = run(&mut model);
    let looks = run.actions.iter().skip(4).take_while(|action| *action == "get CSTS").count();
    assert!(looks > 10, "CC.EN must not be cleared while RDY is 0");
    assert!(run.elapsed >= 900 * MS);
    run.result.unwrap();
}

#[test]
fn one_that_is_just_being_disabled_is_awaited_before_it_is_enabled() {
    // Base 2.1 §3.5.1 step 1: RDY is 0 before anything is set up.
    let mut model = Model::plain(false);
    (model.cc, model.rdy) = (0, true);
    model.pending = Some(Instant::now() + 300 * MS);
    let run = run(&mut model);
    assert!(run.elapsed >= 300 * MS);
    run.result.unwrap();
}

#[test]
fn rdy_may_take_as_long_as_cap_to_says() {
    for fabrics in [false, true] {
        let mut model = Model::plain(fabrics);
        (model.cc, model.rdy) = (1, true);
        model.ready_after = Some(CAP_TO - MS);
        let run = run(&mut model);
        run.result.unwrap();
        assert!(run.elapsed <= CAP_TO * 2);
    }
}

#[test]
fn rdy_that_never_comes_is_given_up_at_cap_to() {
    let mut model = Model::plain(false);
    model.ready_after = None;
    let run = run(&mut model);
    assert_eq!((run.state, run.elapsed), ("waiting for CSTS.RDY=1", CAP_TO));
    let looks = run.actions.iter().filter(|action| *action == "get CSTS").count();
    assert!((100..1000).contains(&looks), "{looks} looks at CSTS in two seconds");
    let error = run.error();
    assert!(matches!(error.kind(), ErrorKind::TimedOut { after, .. } if *after == CAP_TO));
    assert_eq!(error.to_string(), "no answer within 2s while waiting for CSTS.RDY=1");
}

#[test]
fn rdy_that_never_goes_is_given_up_at_cap_to() {
    let mut model = Model::plain(false);
    (model.cc, model.rdy, model.ready_after) = (1, true, None);
    let run = run(&mut model);
    assert_eq!((run.state, run.elapsed), ("waiting for CSTS.RDY=0", CAP_TO));
    assert!(run.error().is_timeout());
}

#[test]
fn a_controller_stuck_in_enabling_is_given_up_at_cap_to() {
    let mut model = Model::plain(false);
    model.cc = 1;
    let run = run(&mut model);
    assert_eq!(run.state, "waiting for CSTS.RDY=1 before disabling the controller");
    assert_eq!(run.elapsed, CAP_TO);
    assert!(run.error().is_timeout());
}

#[test]
fn a_cap_to_of_zero_still_allows_half_a_second() {
    let mut model = Model::plain(false);
    model.cap &= !(0xff << 24);
    model.ready_after = Some(499 * MS);
    run(&mut model).result.unwrap();
    model = Model { cap: model.cap, ready_after: None, ..Model::plain(false) };
    assert_eq!(run(&mut model).elapsed, 500 * MS);
}

#[test]
fn becoming_ready_may_take_as_long_as_crto_says() {
    for (crwmt, limit) in [(600u32, Duration::from_secs(300)), (0, CAP_TO)] {
        let slow = || {
            let mut model = Model::plain(false);
            model.cap |= 1 << 59;
            // CRIMT, which does not concern us, is shorter.
            model.crto = 1 << 16 | crwmt;
            model
        };
        let mut model = slow();
        model.ready_after = Some(limit - MS);
        let run_to_end = run(&mut model);
        assert!(run_to_end.actions().contains(&"get CRTO"));
        run_to_end.result.unwrap();
        let mut model = slow();
        model.ready_after = None;
        assert_eq!(run(&mut model).elapsed, limit);
        // CAP.TO is for disabling.
        let mut model = slow();
        (model.cc, model.rdy, model.ready_after) = (1, true, None);
        assert_eq!(run(&mut model).elapsed, CAP_TO);
    }
    let mut model = Model::plain(false);
    assert!(!run(&mut model).actions().contains(&"get CRTO"), "it has none");
}

#[test]
fn a_caller_that_slept_past_the_deadline_looks_once_more() {
    let start = Instant::now();
    let mut machine = ControllerInit::new(Model::plain(false).config(), start);
    let mut now = start;
    let values = [u64::from(Version::V1_4.0), CAP, 1, 0];
    let mut values = values.into_iter();
    loop {
        match machine.next(now).unwrap() {
            Next::Do(Action::ConnectAdminQueue) => {
                machine.complete(Outcome::Connected { cntlid: None }, now).unwrap();
            }
            Next::Do(Action::PropertyGet(..)) => match values.next() {
                Some(value) => machine.complete(Outcome::Property(value), now).unwrap(),
                None => break,
            },
            Next::Wait(_) => now += Duration::from_secs(60),
            other => panic!("{other:?}"),
        }
    }
    assert!(now > machine.deadline());
    // Still not ready: that was the last look.
    assert!(machine.complete(Outcome::Property(0), now).unwrap_err().is_timeout());
}

#[test]
fn a_fatal_status_ends_enabling_at_once() {
    let mut model = Model::plain(false);
    (model.fatal_on_enable, model.ready_after) = (true, None);
    let run = run(&mut model);
    assert_eq!(run.elapsed, Duration::ZERO);
    assert!(matches!(run.error().kind(), ErrorKind::ControllerFatal));
}

#[test]
fn a_fatal_status_does_not_keep_it_from_being_disabled() {
    // Base 2.1 §9.6.1: a controller level reset is how a host recovers from CSTS.CFS.
    let mut model = Model::plain(false);
    (model.cc, model.rdy, model.cfs) = (1, false, true);
    let run = run(&mut model);
    assert_eq!(run.actions()[4..7], ["get CSTS", "set CC 0x0", "get CSTS"]);
    // The model's CFS stays, which enabling then reports.
    assert!(matches!(run.error().kind(), ErrorKind::ControllerFatal));
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let mut model = Model::plain(false);
    (model.cc, model.rdy, model.cfs) = (u32::MAX, true, true);
    model.ready_after = None;
    assert!(run(&mut model).error().is_timeout());
    let mut model = Model::plain(false);
    model.cap = u64::MAX;
    let error = run(&mut model).error();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "MPSMIN 15 is 128 MiB: {error}");
}

#[test]
fn the_memory_page_is_the_smallest_the_controller_allows() {
    let enabled = |mpsmin: u64, mpsmax: u64| {
        let mut model = Model::plain(false);
        model.cap = model.cap & !(0xff << 48) | mpsmin << 48 | mpsmax << 52;
        let run = run(&mut model);
        run.result.map(|_| model.cc >> 7 & 0xf)
    };
    assert_eq!(enabled(0, 0).unwrap(), 0);
    assert_eq!(enabled(0, 4).unwrap(), 0);
    assert_eq!(enabled(4, 6).unwrap(), 4, "64 KiB");
    assert_eq!(enabled(9, 15).unwrap(), 9, "2 MiB");
    for (mpsmin, mpsmax) in [(10, 15), (1, 0)] {
        let error = enabled(mpsmin, mpsmax).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    }
}

#[test]
fn one_that_was_shut_down_is_disabled_without_waiting_for_it_to_be_ready() {
    let mut model = Model::plain(false);
    (model.cc, model.shut_down) = (0x46_4001, true);
    let run = run(&mut model);
    assert_eq!(run.actions()[3..7], ["get CC", "get CSTS", "set CC 0x464000", "get CSTS"]);
    assert!(run.elapsed < 100 * MS);
    run.result.unwrap();
}

#[test]
fn controllers_that_need_a_pause_get_it() {
    let mut model = Model::plain(false);
    (model.cc, model.rdy) = (0x46_0001, true);
    let delays = InitDelays { before_init: 2000 * MS, after_disable: 2500 * MS };
    let start = Instant::now();
    let mut machine = ControllerInit::new(InitConfig { delays, ..model.config() }, start);
    assert!(matches!(machine.next(start), Ok(Next::Wait(time)) if time == start + 2000 * MS));
    let run = run_machine(machine, &mut model, start);
    assert!(run.elapsed >= 4500 * MS, "{:?}", run.elapsed);
    run.result.unwrap();
    // The pause does not count against CAP.TO.
    let mut model = Model::plain(false);
    (model.cc, model.rdy, model.ready_after) = (0x46_0001, true, None);
    let run = run_with(InitConfig { delays, ..model.config() }, &mut model);
    assert!(run.elapsed >= 4500 * MS, "{:?}", run.elapsed);
    assert!(run.error().is_timeout());
}

// --- deadlines of commands -----------------------------------------------------------------------------------------------

#[test]
fn every_action_without_an_answer_is_given_up_in_the_state_it_belongs_to() {
    let states = BTreeMap::from([
        ("connect", "connecting the admin queue"),
        ("get VS", "reading the version (VS)"),
        ("get CAP", "reading the capabilities (CAP)"),
        ("get CC", "reading the configuration (CC)"),
        ("set AQA, ASQ, ACQ", "setting up the admin queue registers"),
        ("set CC 0x460061", "enabling the controller (CC.EN=1)"),
        ("set CC 0x460000", "disabling the controller (CC.EN=0)"),
        ("Identify Controller", "identifying the controller"),
        ("set up the transport", "preparing the transport"),
        ("Set Features (asynchronous event configuration)", "configuring asynchronous events"),
        ("Get Features (keep alive timer)", "reading the keep alive timeout"),
        ("Identify I/O Command Set specific Controller", "reading the NVM command set's controller data"),
        ("Set Features (number of queues)", "setting the number of queues"),
        ("Identify Active Namespace ID list", "listing the active namespaces"),
        ("Identify Namespace of 1", "identifying a namespace"),
        (
            "Identify Namespace Identification Descriptors of 1",
            "reading a namespace's identification descriptors",
        ),
        ("Identify I/O Command Set specific Namespace of 1", "reading a namespace's NVM command set data"),
        ("Get Log Page (ANA)", "reading the ANA log page"),
        ("Set Features (host behavior support)", "setting host behavior support"),
        ("Set Features (host identifier)", "setting the host identifier"),
    ]);
    for fabrics in [false, true] {
        let model = || Model { cc: 0x46_0001, rdy: true, nsids: vec![1], ..Model::rich(fabrics) };
        let all = run(&mut model()).actions;
        for (index, action) in all.iter().enumerate() {
            let mut model = Model { mute: Some(index), ..model() };
            let quiet = run(&mut model);
            assert_eq!(quiet.actions.len(), index + 1, "nothing is done after {action}");
            let limit = match (index, action.as_str()) {
                (0, _) => ADMIN_TIMEOUT + CONNECT_SLACK,
                (_, "get CSTS") => CAP_TO,
                _ => ADMIN_TIMEOUT,
            };
            if let Some(&state) = states.get(action.as_str()) {
                assert_eq!(quiet.state, state);
            } else {
                assert!(action == "get CSTS", "{action} has no state in the table");
                assert!(quiet.state.contains("CSTS.RDY"));
            }
            let (state, elapsed) = (quiet.state, quiet.elapsed);
            let error = quiet.error();
            assert_eq!(error.to_string(), format!("no answer within {limit:?} while {state}"));
            // Waiting for RDY before adds 20 ms each time.
            assert!(elapsed >= limit && elapsed < limit + 100 * MS, "{action}: {elapsed:?}");
        }
    }
}

#[test]
fn connecting_may_take_longer_than_a_command() {
    let mut model = Model { mute: Some(0), ..Model::plain(true) };
    let config = InitConfig { connect_timeout: ADMIN_TIMEOUT * 2, ..model.config() };
    assert_eq!(run_with(config, &mut model).elapsed, ADMIN_TIMEOUT * 2 + CONNECT_SLACK);
}

// --- what the controller may refuse --------------------------------------------------------------------------------------

#[test]
fn commands_that_may_fail_and_those_that_must_not() {
    let refused = |name: &'static str| {
        let mut model = Model::rich(false);
        model.overrides.insert(name, (Status::INVALID_FIELD, 0, Vec::new()));
        run(&mut model)
    };
    for name in [
        "Set Features (asynchronous event configuration)",
        "Get Features (keep alive timer)",
        "Identify I/O Command Set specific Controller",
        "Identify Namespace Identification Descriptors",
        "Identify I/O Command Set specific Namespace",
        "Get Log Page (ANA)",
        "Set Features (host behavior support)",
        "Set Features (host identifier)",
    ] {
        let run = refused(name);
        assert_eq!(run.actions.last().map(String::as_str), Some("Set Features (host identifier)"), "{name}");
        let result = run.result.unwrap();
        assert_eq!(result.namespaces.len(), 2, "{name}");
        assert_eq!(result.async_events == 0, name.contains("asynchronous"), "{name}");
        let expected = if name.contains("keep alive") { 10 } else { 15 };
        assert_eq!(result.keep_alive_timeout, Duration::from_secs(expected), "{name}");
        assert_eq!(result.ana_groups.is_empty(), name.contains("ANA"), "{name}");
    }
    // A controller that does not know the list is taken at its word that namespaces are numbered.
    let numbered = refused("Identify Active Namespace ID list").result.unwrap();
    assert_eq!(numbered.namespaces.iter().map(|ns| ns.nsid).collect::<Vec<_>>(), [1, 2]);
    for name in ["Identify Controller", "Set Features (number of queues)"] {
        let error = refused(name).error();
        assert_eq!(error.status(), Some(Status::INVALID_FIELD), "{error}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[test]
fn queues_granted() {
    let granted = |asked: u16, dw0: u32| {
        let mut model = Model::plain(true);
        let name = "Set Features (number of queues)";
        model.overrides.insert(name, (Status::SUCCESS, dw0, Vec::new()));
        let config = InitConfig { num_io_queues: asked, ..model.config() };
        run_with(config, &mut model).result.unwrap().num_io_queues
    };
    assert_eq!(granted(8, 3 | 3 << 16), 4, "fewer than asked for");
    assert_eq!(granted(8, 127 | 127 << 16), 8, "more are not used");
    assert_eq!(granted(8, 1 | 5 << 16), 2, "fewer submission queues");
    assert_eq!(granted(8, 5 | 1 << 16), 2, "fewer completion queues");
    assert_eq!(granted(65_535, u32::MAX), 65_535);
    assert_eq!(granted(1, 0), 1);
}

#[test]
fn the_number_of_queues_is_asked_for_zeros_based() {
    for (asked, expected) in [(1, 0), (8, 0x7_0007), (u16::MAX, 0xfffe_fffe)] {
        let start = Instant::now();
        let config = InitConfig { num_io_queues: asked, ..Model::plain(true).config() };
        let mut machine = ControllerInit::new(config, start);
        machine.state = State::SetNumQueues;
        let Ok(Next::Do(Action::Admin(command))) = machine.next(start) else { panic!("no command") };
        assert_eq!(command.sqe.cdw11.get(), expected);
    }
}

#[test]
fn a_controller_without_keep_alive_is_not_asked_for_it() {
    let mut model = Model::plain(true);
    model.identify[320..322].fill(0);
    let run = run(&mut model);
    assert!(!run.actions.iter().any(|action| action.contains("keep alive")));
    assert_eq!(run.result.unwrap().keep_alive_timeout, Duration::ZERO);
}

// --- namespaces ------------------------------------------------------------------------------------------------------------

fn nsids(model: &mut Model) -> Vec<u32> {
    run(model).result.unwrap().namespaces.iter().map(|ns| ns.nsid).collect()
}

#[test]
fn a_full_list_is_continued_after_its_last_entry() {
    for (count, lists) in [(1023, 1), (1024, 2), (1025, 2), (3000, 3)] {
        let mut model = Model::plain(true);
        model.nsids = (1..=count).map(|n| n * 3).collect();
        let run = run(&mut model);
        let asked: Vec<_> = run.actions.iter().filter(|action| action.contains("Active")).collect();
        assert_eq!(asked.len(), lists, "{count} namespaces");
        if lists > 1 {
            assert_eq!(asked[1], "Identify Active Namespace ID list of 3072");
        }
        assert_eq!(run.result.unwrap().namespaces.len(), count as usize);
    }
}

#[test]
fn a_list_that_does_not_increase_is_refused() {
    let name = "Identify Active Namespace ID list";
    for list in [vec![2u32, 2], vec![5, 3], vec![1, u32::MAX]] {
        let mut model = Model::plain(true);
        let data: Vec<u8> = list.iter().flat_map(|nsid| nsid.to_le_bytes()).collect();
        model.overrides.insert(name, (Status::SUCCESS, 0, data));
        let error = run(&mut model).error();
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{list:?}: {error}");
    }
    // The same full page for ever: the second time it does not go on from its end.
    let mut model = Model::plain(true);
    let page = (1u32..=1024).flat_map(u32::to_le_bytes).collect();
    model.overrides.insert(name, (Status::SUCCESS, 0, page));
    let run = run(&mut model);
    assert_eq!(run.actions.iter().filter(|action| action.contains("Active")).count(), 2);
    assert!(matches!(run.error().kind(), ErrorKind::PeerMisbehaved(_)));
}

#[test]
fn the_number_of_namespaces_is_limited() {
    let mut model = Model::plain(true);
    model.nsids = (1..=MAX_NAMESPACES as u32 + 5).collect();
    model.vs = Version::V1_2_1;
    let list = run(&mut model);
    assert_eq!(list.actions.iter().filter(|action| action.contains("Active")).count(), MAX_NAMESPACES / 1024);
    assert_eq!(list.result.unwrap().namespaces.len(), MAX_NAMESPACES);
}

#[test]
fn namespaces_of_a_controller_without_the_list_are_numbered() {
    let name = "Identify Active Namespace ID list";
    let refuse = |vs| {
        let mut model = Model { vs, ..Model::plain(false) };
        model.overrides.insert(name, (Status::INVALID_FIELD, 0, Vec::new()));
        model
    };
    let mut model = refuse(Version::V1_0);
    assert_eq!(nsids(&mut model), [1, 2]);
    assert!(!model.actions.iter().any(|action| action.contains("Descriptors")), "they came with 1.3");
    assert_eq!(nsids(&mut refuse(Version::V1_1)), [1, 2], "it says that it does not know the list");
    model = refuse(Version::V1_1);
    model.overrides.insert(name, (Status::INTERNAL_ERROR, 0, Vec::new()));
    assert_eq!(run(&mut model).error().status(), Some(Status::INTERNAL_ERROR));
    // NN is the controller's word as well.
    let mut model = refuse(Version::V1_0);
    model.identify[516..520].fill(0xff);
    assert_eq!(nsids(&mut model).len(), MAX_NAMESPACES);
    // One that has the list all the same is believed.
    assert_eq!(nsids(&mut Model { vs: Version::V1_0, nsids: vec![4], ..Model::plain(false) }), [4]);
}

#[test]
fn namespaces_that_vanish_after_they_were_listed_are_left_out() {
    let mut model = Model::plain(true);
    model.nsids = vec![1, 2, 3, 4];
    model.vanished = vec![1, 3, 4];
    assert_eq!(nsids(&mut model), [2]);
    model.vanished = vec![1, 2, 3, 4];
    assert_eq!(nsids(&mut model), [] as [u32; 0]);
    // Some controllers answer with an empty structure instead of an error.
    let mut model = Model::plain(true);
    model.overrides.insert("Identify Namespace", (Status::SUCCESS, 0, vec![0; 4096]));
    assert_eq!(nsids(&mut model), [] as [u32; 0]);
}

#[test]
fn names_come_from_descriptors_and_else_from_identify() {
    let mut model = Model::plain(true);
    let mut identify = namespace_data(10);
    identify[104..120].fill(0xaa);
    identify[120..128].fill(0xbb);
    model.overrides.insert("Identify Namespace", (Status::SUCCESS, 0, identify));
    let descriptor = |kind: u8, id: &[u8]| [&[kind, id.len() as u8, 0, 0][..], id].concat();
    model.descriptors.insert(1, [descriptor(3, &[7; 16]), descriptor(2, &[8; 16])].concat());
    // A UUID of the wrong length is left out, what follows it is not; a truncated one ends the list.
    model
        .descriptors
        .insert(2, [descriptor(3, &[7; 15]), descriptor(1, &[9; 8]), vec![2, 16, 0, 0]].concat());
    let result = run(&mut model).result.unwrap();
    let [a, b] = &result.namespaces[..] else { panic!("{} namespaces", result.namespaces.len()) };
    assert_eq!((a.uuid, a.nguid, a.eui64), (Some([7; 16]), Some([8; 16]), Some([0xbb; 8])));
    assert_eq!((b.uuid, b.nguid, b.eui64), (None, Some([0xaa; 16]), Some([9; 8])));
}

#[test]
fn nvm_data_is_read_of_nvm_namespaces_only() {
    let mut model = Model::rich(true);
    model.descriptors.insert(2, vec![4, 1, 0, 0, 2]); // zoned
    let run = run(&mut model);
    let asked: Vec<_> = run.actions.iter().filter(|action| action.contains("specific Namespace")).collect();
    assert_eq!(asked, ["Identify I/O Command Set specific Namespace of 1"]);
    let result = run.result.unwrap();
    assert_eq!(result.namespaces[1].csi, 2);
    assert!(result.namespaces[0].nvm.is_some() && result.namespaces[1].nvm.is_none());
}

// --- ANA log ---------------------------------------------------------------------------------------------------------------

fn ana_reads(run: &Run) -> usize {
    run.actions.iter().filter(|action| action.contains("ANA")).count()
}

#[test]
fn a_long_ana_log_is_read_in_pieces_the_controller_takes() {
    let groups: Vec<(u32, u8, &[u32])> = (1..=1000).map(|id| (id, 2, &[][..])).collect();
    for (mdts, reads) in [(0u8, 1), (1, 4), (3, 1)] {
        let mut model = Model::rich(true);
        model.ana = ana_log(&groups);
        model.identify[77] = mdts;
        model.identify[348..352].copy_from_slice(&1000u32.to_le_bytes());
        let run = run(&mut model);
        assert_eq!(ana_reads(&run), reads, "MDTS {mdts}: 32,016 bytes in pieces of at most 4096 << MDTS");
        assert_eq!(run.result.unwrap().ana_groups.len(), 1000);
    }
}

#[test]
fn an_ana_log_shorter_than_estimated_is_taken_as_it_is() {
    let mut model = Model::rich(true);
    model.identify[77] = 1;
    model.identify[516..520].fill(0xff); // NN: the estimate is the limit of 1 MiB
    let run = run(&mut model);
    assert_eq!(ana_reads(&run), 1, "nothing is read after the last group");
    assert_eq!(run.result.unwrap().ana_groups.len(), 2);
}

#[test]
fn a_cut_ana_log_yields_the_groups_that_are_whole() {
    let mut model = Model::rich(true);
    // Claims more groups than there are, and the last one more namespaces than fit.
    model.ana = ana_log(&[(1, 1, &[1]), (2, 3, &[2])]);
    model.ana[8] = 200;
    model.ana[16 + 36 + 4..16 + 36 + 8].fill(0xff);
    let result = run(&mut model).result.unwrap();
    assert_eq!(result.ana_groups.iter().map(|group| group.id).collect::<Vec<_>>(), [1]);
    for hostile in [vec![0xff; 1 << 16], vec![0; 1 << 16], vec![1; 17]] {
        let mut model = Model { ana: hostile, ..Model::rich(true) };
        model.identify[516..520].fill(0xff);
        let run = run(&mut model);
        assert!(ana_reads(&run) <= 17, "{}", ana_reads(&run));
        run.result.unwrap();
    }
}

#[test]
fn the_ana_log_is_not_read_when_not_wanted_or_not_there() {
    let mut model = Model::rich(true);
    let config = InitConfig { read_ana_log: false, ..model.config() };
    assert_eq!(ana_reads(&run_with(config, &mut model)), 0);
    assert_eq!(ana_reads(&run(&mut Model::plain(true))), 0);
}

// --- hostile controllers -----------------------------------------------------------------------------------------------------

#[test]
fn identify_data_of_all_ones_or_zeroes_is_survived() {
    for byte in [0u8, 0xff] {
        for fabrics in [false, true] {
            let mut model = Model::rich(fabrics);
            model.identify.fill(byte);
            for name in [
                "Identify I/O Command Set specific Controller",
                "Identify Namespace",
                "Identify Namespace Identification Descriptors",
                "Identify I/O Command Set specific Namespace",
                "Get Log Page (ANA)",
            ] {
                model.overrides.insert(name, (Status::SUCCESS, u32::MAX, vec![byte; 4096]));
            }
            let result = run(&mut model).result.unwrap();
            assert_eq!(result.namespaces.is_empty(), byte == 0);
        }
    }
}

#[test]
fn short_data_is_an_error_not_a_panic() {
    for name in ["Identify Controller", "Identify Namespace"] {
        let mut model = Model::plain(true);
        model.overrides.insert(name, (Status::SUCCESS, 0, vec![0; 100]));
        let error = run(&mut model).error();
        assert_eq!(error.to_string(), format!("the peer broke the protocol: {name} returned only 100 bytes"));
    }
}

#[test]
fn outcomes_that_do_not_fit_are_refused() {
    let now = Instant::now();
    let mut machine = ControllerInit::new(Model::plain(true).config(), now);
    assert!(machine.complete(Outcome::Done, now).is_err(), "nothing is outstanding");
    for outcome in [Outcome::Done, Outcome::Property(1), Outcome::Admin(&Cqe::default(), &[])] {
        let mut machine = ControllerInit::new(Model::plain(true).config(), now);
        assert!(matches!(machine.next(now), Ok(Next::Do(Action::ConnectAdminQueue))));
        assert!(matches!(machine.complete(outcome, now).unwrap_err().kind(), ErrorKind::ApiMisuse(_)));
    }
}

/// A source of arbitrary answers: SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, range: Range<u64>) -> u64 {
        range.start + self.roll() % (range.end - range.start)
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        match self.below(0..6) {
            0 => data.fill(0xff),
            1 => {}
            2 => data.iter_mut().for_each(|byte| *byte = self.roll() as u8),
            // Mostly zero, which is what lets a controller get far.
            3 | 4 => {
                for _ in 0..self.below(1..40) {
                    if let Some(byte) = data.get_mut(self.roll() as usize % len.max(1)) {
                        *byte = self.roll() as u8;
                    }
                }
            }
            _ => {
                let mut nsid = 0;
                for entry in data.chunks_exact_mut(4).take(self.roll() as usize % 1100) {
                    nsid += self.below(1..1000) as u32;
                    entry.copy_from_slice(&nsid.to_le_bytes());
                }
            }
        }
        data
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_answers_end_in_ready_or_an_error(seed: u64, fabrics: bool, kindness in 0u64..100) {
        let mut dice = Dice(seed);
        let start = Instant::now();
        let mut now = start;
        let config = InitConfig {
            discovery: dice.below(0..8) == 0,
            num_io_queues: dice.roll() as u16,
            max_transfer: dice.roll() as u32,
            ..Model::plain(fabrics).config()
        };
        let mut machine = ControllerInit::new(config, start);
        let mut ended = false;
        // Three waits of at most 127.5 s with looks every 10 ms, three commands per namespace, and the rest.
        for _ in 0..3 * 13_000 + 3 * MAX_NAMESPACES + 1000 {
            let action = match machine.next(now) {
                Err(_) => { ended = true; break }
                Ok(Next::Ready) => {
                    let result = machine.result();
                    prop_assert!(result.num_io_queues <= machine.config.num_io_queues);
                    prop_assert!(result.namespaces.is_sorted_by(|a, b| a.nsid < b.nsid));
                    prop_assert!(result.namespaces.len() <= MAX_NAMESPACES);
                    ended = true;
                    break;
                }
                Ok(Next::Wait(time)) => {
                    prop_assert!(time > now && time <= machine.deadline());
                    now = time;
                    continue;
                }
                Ok(Next::Do(action)) => action,
            };
            prop_assert!(now <= machine.deadline());
            now += Duration::from_micros(dice.below(0..2000));
            let kind = dice.below(0..100) < kindness;
            let outcome = match action {
                Action::ConnectAdminQueue => {
                    machine.complete(Outcome::Connected { cntlid: Some(dice.roll() as u16) }, now)
                }
                Action::PropertyGet(PropertyOffset::CSTS, _) => {
                    let csts = if kind { dice.below(0..2) } else { dice.roll() };
                    machine.complete(Outcome::Property(csts), now)
                }
                Action::PropertyGet(offset, _) => {
                    let mut value = dice.roll();
                    if kind && offset == PropertyOffset::CAP {
                        value &= !(0xf << 48); // MPSMIN
                    }
                    machine.complete(Outcome::Property(value), now)
                }
                Action::PropertySet(..) | Action::SetAdminQueue | Action::SetUpTransport(_) => machine.complete(Outcome::Done, now),
                Action::Admin(command) => {
                    prop_assert!(command.data_in <= 64 * 1024 && command.data_in % 4 == 0);
                    let status = if kind { Status::SUCCESS } else { Status(dice.roll() as u16 & 0x7fff) };
                    let cqe = Cqe::new(0, 0, status).with_dw0(dice.roll() as u32);
                    let data = dice.data(command.data_in as usize);
                    machine.complete(Outcome::Admin(&cqe, &data), now)
                }
            };
            if outcome.is_err() {
                ended = true;
                break;
            }
        }
        prop_assert!(ended, "no end in sight: {}", machine.state());
    }
}
