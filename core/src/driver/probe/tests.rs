use std::cell::RefCell;

use super::*;
use crate::spec::Status;
use crate::spec::discovery::{AddressFamilyCode, TransportTypeCode};
use crate::testing::{self, Target, entry, host, trid};
use crate::{ErrorKind, TransportType};

fn discovery() -> TransportId {
    "trtype:loop traddr:here".parse().unwrap()
}

fn names(controllers: &[Controller]) -> Vec<String> {
    let mut names: Vec<String> =
        controllers.iter().map(|c| c.trid().to_string().rsplit(':').next().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Probes and collects what was attached and what was not.
fn probe(driver: &Driver, at: &TransportId) -> (Vec<Controller>, Vec<(TransportId, Error)>) {
    let (mut attached, mut failed) = (Vec::new(), Vec::new());
    let callbacks = Callbacks::new()
        .options(testing::options())
        .attach(|ctrlr| attached.push(ctrlr))
        .attach_fail(|trid, error| failed.push((trid.clone(), error.clone())));
    driver.probe(Some(at), callbacks).unwrap();
    (attached, failed)
}

#[test]
fn everything_a_discovery_controller_lists_is_offered() {
    let target = Target::new();
    let mut elsewhere = entry("elsewhere");
    elsewhere.trtype = TransportTypeCode::RDMA;
    elsewhere.traddr[..16].copy_from_slice(b"192.0.2.1\0\0\0\0\0\0\0");
    let mut referral = entry("referral");
    referral.subtype = SubsystemType::REFERRAL;
    let mut nonsense = entry("nonsense");
    nonsense.subnqn.fill(b'x');
    target.knobs().discovery = vec![entry("a"), elsewhere, referral, nonsense, entry("b"), entry("c")];
    let driver = target.driver();

    let offered = RefCell::new(Vec::new());
    let (mut attached, mut failed) = (Vec::new(), Vec::new());
    let callbacks = Callbacks::new()
        .options(testing::options())
        .probe(|trid, options| {
            offered.borrow_mut().push(trid.clone());
            options.num_io_queues = 1;
            !trid.to_string().ends_with(":b")
        })
        .attach(|ctrlr| attached.push(ctrlr))
        .attach_fail(|trid, error| failed.push((trid.clone(), error.to_string())));
    driver.probe(Some(&discovery()), callbacks).unwrap();

    assert_eq!(*offered.borrow(), [trid("a"), trid("b"), trid("c")]);
    assert_eq!(names(&attached), ["a", "c"]);
    assert!(attached.iter().all(|c| c.num_io_queues() == 1), "the callback's edits count");
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert_eq!(failed[0].0.trtype(), TransportType::Rdma);
    assert!(failed[0].1.contains("no transport of type RDMA"), "{}", failed[0].1);
    assert!(failed[1].1.contains("subsystem NQN"), "{}", failed[1].1);
    assert_eq!(target.knobs().connections, 2, "the discovery controller was let go of");
    assert_eq!(names(&driver.controllers()), ["a", "c"]);
}

#[test]
fn a_controller_that_cannot_be_attached_is_told_and_does_not_stop_others() {
    let target = Target::new();
    target.knobs().connect_status = Status::CONNECT_INVALID_HOST;
    let driver = target.driver();
    let (attached, failed) = probe(&driver, &trid("a"));
    assert!(attached.is_empty());
    let [(at, error)] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!(*at, trid("a"));
    assert_eq!(error.status(), Some(Status::CONNECT_INVALID_HOST));
    let text = error.to_string();
    assert!(
        text.contains("allow this host at the target") && text.contains("connecting the admin queue"),
        "{text}"
    );
    assert_eq!(target.knobs().connections, 0);
    assert!(driver.controllers().is_empty());
}

#[test]
fn a_discovery_controller_that_refuses_is_the_probes_own_error() {
    let target = Target::new();
    target.knobs().connect_status = Status::CONNECT_INVALID_HOST;
    let error = target.driver().probe(Some(&discovery()), Callbacks::new()).unwrap_err();
    assert_eq!(error.status(), Some(Status::CONNECT_INVALID_HOST));
}

#[test]
fn a_second_probe_gives_a_reference_and_detach_needs_two() {
    let target = Target::new();
    target.knobs().discovery = vec![entry("a")];
    let driver = target.driver();
    let (mut first, _) = probe(&driver, &discovery());
    let (mut second, _) = probe(&driver, &discovery());
    let connected = driver.connect(&trid("a"), &testing::options()).unwrap();
    let (first, second) = (first.remove(0), second.remove(0));
    assert_eq!((first.cntlid(), connected.cntlid()), (second.cntlid(), second.cntlid()));
    assert_eq!(target.knobs().connections, 1);
    first.detach().unwrap();
    connected.detach().unwrap();
    assert!(!second.is_failed());
    assert_eq!(target.knobs().shutdowns, 2, "of the discovery controllers only");
    second.identify_structure(crate::spec::identify::Cns::CONTROLLER, 0).unwrap();
    second.detach().unwrap();
    assert_eq!(target.knobs().shutdowns, 3);
    assert_eq!(target.knobs().connections, 0);
    assert!(driver.controllers().is_empty());
    // And after that, a new one.
    driver.connect(&trid("a"), &testing::options()).unwrap();
}

#[test]
fn another_host_gets_a_controller_of_its_own() {
    let target = Target::new();
    let driver = target.driver();
    let one = driver.connect(&trid("a"), &testing::options()).unwrap();
    let options = ControllerOptions { host: Some(host(2)), ..testing::options() };
    let other = driver.connect(&trid("a"), &options).unwrap();
    let named = trid("a").with_hostnqn(host(3).nqn);
    let third = driver.connect(&named, &testing::options()).unwrap();
    assert!(one.cntlid() != other.cntlid() && other.cntlid() != third.cntlid());
    let expected: Vec<String> = (1..=3).map(|n| host(n).nqn.as_str().to_owned()).collect();
    assert_eq!(target.knobs().hosts, expected);
    assert_eq!(third.host(), &host(3), "the identifier that belongs to the name");
}

#[test]
fn a_lost_controller_is_not_given_out_again() {
    let target = Target::new();
    let driver = target.driver();
    let lost = driver.connect(&trid("a"), &testing::options()).unwrap();
    lost.fail();
    let fresh = driver.connect(&trid("a"), &testing::options()).unwrap();
    assert!(!fresh.is_failed());
    assert_ne!(fresh.cntlid(), lost.cntlid());
}

#[test]
fn many_controllers_attach_side_by_side_without_blocking() {
    const COUNT: usize = 24;
    let target = Target::new();
    {
        let mut knobs = target.knobs();
        knobs.discovery = (0..COUNT).map(|n| entry(&n.to_string())).collect();
        knobs.connect_polls = 200;
    }
    let driver = target.driver();
    let mut attached = Vec::new();
    let callbacks = Callbacks::new().options(testing::options()).attach(|ctrlr| attached.push(ctrlr));
    let mut context = driver.probe_async(Some(&discovery()), callbacks).unwrap();
    let mut polls = 0;
    let mut most = 0;
    while !context.poll().unwrap() {
        polls += 1;
        most = most.max(target.knobs().connections);
        assert!(polls < 1200, "one after the other would take {}", 200 * COUNT);
    }
    drop(context);
    assert!(polls >= 400, "the discovery controller, then the others");
    assert!(most >= COUNT, "{most} at a time");
    assert_eq!(attached.len(), COUNT);
}

#[test]
fn a_connection_that_never_comes_fails_at_its_deadline_while_others_attach() {
    let target = Target::new();
    let driver = target.driver();
    target.knobs().connect_polls = usize::MAX;
    let mut failure = None;
    let options = ControllerOptions { connect_timeout: Duration::from_millis(200), ..testing::options() };
    let mut slow =
        driver.connect_async(&trid("slow"), &options, |result| failure = Some(result.unwrap_err())).unwrap();
    assert!(!slow.poll().unwrap());
    target.knobs().connect_polls = 0;
    let fast = driver.connect(&trid("fast"), &testing::options()).unwrap();
    let start = Instant::now();
    while !slow.poll().unwrap() {
        let before = Instant::now();
        slow.wait(Duration::from_millis(5)).unwrap();
        assert!(before.elapsed() < Duration::from_secs(2), "a wait that is too long");
        assert!(start.elapsed() < Duration::from_secs(15));
    }
    drop(slow);
    let error = failure.expect("told");
    assert!(error.is_timeout(), "{error}");
    assert!(error.to_string().contains("waiting for the transport connection"), "{error}");
    assert_eq!(target.knobs().connections, 1);
    fast.detach().unwrap();
}

#[test]
fn attaching_as_a_whole_has_a_deadline() {
    let target = Target::new();
    target.knobs().connect_polls = usize::MAX;
    let options = ControllerOptions { attach_timeout: Duration::from_millis(50), ..testing::options() };
    let error = target.driver().connect(&trid("a"), &options).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut { after, .. } if after.as_millis() == 50), "{error}");
}

#[test]
fn a_probe_given_up_half_way_leaves_nothing_behind() {
    let target = Target::new();
    target.knobs().discovery = vec![entry("a"), entry("b")];
    let driver = target.driver();
    let mut context = driver.probe_async(Some(&discovery()), Callbacks::new()).unwrap();
    target.knobs().connect_polls = 10;
    while target.knobs().connections < 2 {
        assert!(!context.poll().unwrap());
    }
    drop(context);
    assert_eq!(target.knobs().connections, 0);
    assert!(driver.controllers().is_empty());
    assert_eq!(driver.pool().stats().outstanding, 0);
}

#[test]
fn a_transport_that_is_not_registered() {
    let target = Target::new();
    let tcp: TransportId =
        "trtype:tcp traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.2024-01.org.example:a".parse().unwrap();
    let error = target.driver().connect(&tcp, &testing::options()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
    let text = error.to_string();
    assert!(text.contains("no transport of type TCP") && text.contains("registered: loop"), "{text}");
    assert!(text.contains("127.0.0.1"), "{text}");
    assert!(target.driver().probe(Some(&tcp), Callbacks::new()).is_err());
    let none = Driver::builder().build().connect(&tcp, &testing::options()).unwrap_err();
    assert!(none.to_string().contains("registered: none"), "{none}");
}

#[test]
fn connect_to_the_discovery_nqn_gives_the_discovery_controller() {
    let target = Target::new();
    target.knobs().discovery = vec![entry("a"), entry("b")];
    let ctrlr = target.driver().connect(&discovery(), &testing::options()).unwrap();
    assert!(ctrlr.is_discovery());
    assert_eq!(ctrlr.discovery_log().unwrap().records.len(), 2);
    let error = ctrlr.alloc_io_qpair(&crate::IoQpairOptions::default()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)));
}

// --- discovery log entries -----------------------------------------------------------------------------------------------------

fn tcp_entry(family: AddressFamilyCode, address: &str) -> DiscoveryLogEntry {
    let mut entry = entry("a");
    entry.trtype = TransportTypeCode::TCP;
    entry.adrfam = family;
    entry.traddr.fill(b' ');
    entry.traddr[..address.len()].copy_from_slice(address.as_bytes());
    entry.trsvcid.fill(b' ');
    entry.trsvcid[..4].copy_from_slice(b"4421");
    entry
}

#[test]
fn an_entry_becomes_a_transport_identifier_with_what_is_ours() {
    let parent: TransportId =
        "trtype:tcp traddr:192.0.2.1 trsvcid:8009 hostnqn:nqn.2024-01.org.example:host \
                               hostaddr:192.0.2.9 hostiface:eth0"
            .parse()
            .unwrap();
    let trid = TransportId::of_log_entry(&tcp_entry(AddressFamilyCode::IPV4, "192.0.2.2"), &parent).unwrap();
    assert_eq!((trid.traddr(), trid.trsvcid()), ("192.0.2.2", "4421"));
    assert_eq!(trid.subnqn().map(|nqn| nqn.as_str()), Some("nqn.2024-01.org.example:a"));
    assert_eq!(trid.hostnqn(), parent.hostnqn());
    assert_eq!((trid.host_traddr(), trid.host_iface()), (Some("192.0.2.9"), Some("eth0")));
    // Another transport has other addresses.
    let other = TransportId::of_log_entry(&entry("a"), &parent).unwrap();
    assert_eq!((other.host_traddr(), other.host_iface()), (None, None));
    assert_eq!(other.hostnqn(), parent.hostnqn());
}

#[test]
fn our_address_is_used_for_targets_of_its_own_family_only() {
    let parent = |address: &str, local: &str| -> TransportId {
        format!("trtype:tcp traddr:{address} trsvcid:8009 hostaddr:{local}").parse().unwrap()
    };
    let (v4, v6) = (AddressFamilyCode::IPV4, AddressFamilyCode::IPV6);
    let from_v4 = parent("192.0.2.1", "192.0.2.9");
    let from_v6 = parent("2001:db8::1", "2001:db8::9");
    let local = |entry: &DiscoveryLogEntry, parent: &TransportId| {
        TransportId::of_log_entry(entry, parent).unwrap().host_traddr().map(str::to_owned)
    };
    assert_eq!(local(&tcp_entry(v4, "192.0.2.2"), &from_v4).as_deref(), Some("192.0.2.9"));
    assert_eq!(local(&tcp_entry(v6, "2001:db8::2"), &from_v6).as_deref(), Some("2001:db8::9"));
    assert_eq!(local(&tcp_entry(v6, "2001:db8::2"), &from_v4), None);
    assert_eq!(local(&tcp_entry(v4, "192.0.2.2"), &from_v6), None);
    // A host name may be of any family unless the entry says which.
    assert_eq!(local(&tcp_entry(v6, "target.example"), &from_v4), None);
    let link_local = parent("fe80::1%eth0", "fe80::9%eth0");
    assert_eq!(local(&tcp_entry(v4, "192.0.2.2"), &link_local), None);
    assert_eq!(local(&tcp_entry(v6, "fe80::2"), &link_local).as_deref(), Some("fe80::9%eth0"));
}

#[test]
fn hostile_entries_are_errors() {
    let parent = discovery();
    let mut unknown = entry("a");
    unknown.trtype = TransportTypeCode(77);
    assert!(matches!(
        TransportId::of_log_entry(&unknown, &parent).unwrap_err().kind(),
        ErrorKind::Unsupported(_)
    ));
    for fill in [0xff, 0x00, b' '] {
        let mut entry = tcp_entry(AddressFamilyCode::IPV4, "192.0.2.2");
        entry.traddr.fill(fill);
        assert!(TransportId::of_log_entry(&entry, &parent).is_err());
        let mut entry = tcp_entry(AddressFamilyCode::IPV4, "192.0.2.2");
        entry.subnqn.fill(fill);
        assert!(TransportId::of_log_entry(&entry, &parent).is_err());
    }
    let mut entry = tcp_entry(AddressFamilyCode::IPV4, "192.0.2.2");
    entry.trsvcid[..5].copy_from_slice(b"99999");
    assert!(TransportId::of_log_entry(&entry, &parent).is_err());
}
