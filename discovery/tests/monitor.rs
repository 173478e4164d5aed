//! Keeping up with a target that changes, goes away and comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nvmf_core::{ControllerOptions, Driver, Nqn, TransportId};
use nvmf_discovery::{DiscoveryMonitor, MonitorEvent, MonitorOptions};
use nvmf_loopback::{Builder, Loopback, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

/// Nothing here takes that long.
const HANG: Duration = Duration::from_secs(30);

fn nqn(name: &str) -> String {
    format!("nqn.2024-01.com.example:{name}")
}

fn target(names: &[&str]) -> Builder {
    let builder = Loopback::builder().listen_tcp("127.0.0.1:0");
    names.iter().fold(builder, |builder, name| builder.subsystem(SubsystemBuilder::new(nqn(name))))
}

fn discovery(loopback: &Loopback) -> TransportId {
    loopback.tcp_trid(Nqn::DISCOVERY).unwrap().unwrap()
}

fn driver() -> Driver {
    Driver::builder().transport(TcpTransport::new()).build()
}

fn monitor_with(f: impl FnOnce(&mut MonitorOptions)) -> DiscoveryMonitor {
    let mut options = MonitorOptions::default();
    options.max_backoff = Duration::from_millis(200);
    f(&mut options);
    DiscoveryMonitor::new(driver(), options)
}

fn monitor() -> DiscoveryMonitor {
    monitor_with(|_| ())
}

/// An event in short: `+a`, `-a`, `~a`, `up`, `down`, `watch`, `forget`, `bad`.
fn short(event: &MonitorEvent) -> String {
    let path = |sign: &str, path: &nvmf_discovery::Path| {
        format!("{sign}{}", path.entry.subnqn().rsplit(':').next().unwrap())
    };
    match event {
        MonitorEvent::Watching(_) => "watch".into(),
        MonitorEvent::Forgotten(_) => "forget".into(),
        MonitorEvent::Connected { .. } => "up".into(),
        MonitorEvent::Disconnected { .. } => "down".into(),
        MonitorEvent::Added(added) => path("+", added),
        MonitorEvent::Removed(removed) => path("-", removed),
        MonitorEvent::Changed(changed) => path("~", changed),
        MonitorEvent::Unusable { .. } => "bad".into(),
        other => panic!("{other:?}"),
    }
}

/// The next event that is not one of these.
#[track_caller]
fn next_but(monitor: &DiscoveryMonitor, skipped: &[&str]) -> String {
    let end = Instant::now() + HANG;
    while let Some(event) = monitor.next(end.saturating_duration_since(Instant::now())) {
        let event = short(&event);
        if !skipped.contains(&event.as_str()) {
            return event;
        }
    }
    panic!("nothing happens");
}

/// The next events are these, in this order.
#[track_caller]
fn expect(monitor: &DiscoveryMonitor, events: &[&str]) {
    for expected in events {
        let event = monitor.next(HANG).unwrap_or_else(|| panic!("{expected} does not come"));
        assert_eq!(short(&event), *expected, "{event:?}");
    }
}

#[track_caller]
fn quiet(monitor: &DiscoveryMonitor) {
    let event = monitor.next(Duration::from_millis(200));
    assert!(event.is_none(), "{event:?}");
}

#[track_caller]
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_change_is_told_once_and_in_order() {
    let loopback = target(&["a", "b"]).build().unwrap();
    let monitor = monitor();
    monitor.watch(&discovery(&loopback)).unwrap();
    expect(&monitor, &["watch", "up", "+a", "+b"]);
    for round in 0..50 {
        let name = format!("r{round}");
        loopback.add_subsystem(SubsystemBuilder::new(nqn(&name))).unwrap();
        expect(&monitor, &[&format!("+{name}")]);
        loopback.remove_subsystem(&nqn(&name)).unwrap();
        expect(&monitor, &[&format!("-{name}")]);
    }
    // Access as well: the log is another one for this host.
    loopback.deny_host(&nqn("b"), "nqn.2024-01.com.example:nobody").unwrap();
    expect(&monitor, &["-b"]);
    assert_eq!(monitor.paths().len(), 1);
    quiet(&monitor);
    monitor.stop(HANG);
    wait_for("the end of the connection", || loopback.controllers(Nqn::DISCOVERY) == 0);
}

#[test]
fn changes_that_come_fast_end_in_the_right_set() {
    let loopback = target(&[]).build().unwrap();
    let monitor = monitor();
    monitor.watch(&discovery(&loopback)).unwrap();
    expect(&monitor, &["watch", "up"]);
    let mut expected = BTreeSet::new();
    for step in 0u32..400 {
        let name = format!("s{}", step.wrapping_mul(2_654_435_761) >> 27);
        if expected.remove(&name) {
            loopback.remove_subsystem(&nqn(&name)).unwrap();
        } else {
            loopback.add_subsystem(SubsystemBuilder::new(nqn(&name))).unwrap();
            expected.insert(name);
        }
    }
    // What the events say comes to what is there.
    let mut known = BTreeSet::new();
    let end = Instant::now() + HANG;
    while known != expected {
        assert!(Instant::now() < end, "{known:?} is not {expected:?}");
        let Some(event) = monitor.next(Duration::from_millis(100)) else { continue };
        let event = short(&event);
        let (sign, name) = event.split_at(1);
        let new = match sign {
            "+" => known.insert(name.to_owned()),
            "-" => known.remove(name),
            _ => panic!("{event}"),
        };
        assert!(new, "{event} is told twice");
    }
    quiet(&monitor);
}

#[test]
fn paths_stay_while_the_controller_is_away() {
    let loopback = target(&["a", "b"]).build().unwrap();
    let monitor = monitor();
    let trid = discovery(&loopback);
    monitor.watch(&trid).unwrap();
    expect(&monitor, &["watch", "up", "+a", "+b"]);
    // It ends the association, and takes it up again.
    loopback.disconnect_all();
    expect(&monitor, &["down", "up"]);
    // Away for a while, and another one afterwards.
    let address = loopback.tcp_addrs()[0].to_string();
    drop(loopback);
    expect(&monitor, &["down", "down", "down"]);
    assert_eq!(monitor.paths().len(), 2, "that it cannot be asked does not mean they are gone");
    let back = Loopback::builder()
        .listen_tcp(address)
        .subsystem(SubsystemBuilder::new(nqn("b")))
        .subsystem(SubsystemBuilder::new(nqn("c")))
        .build()
        .unwrap();
    assert_eq!(next_but(&monitor, &["down"]), "up");
    expect(&monitor, &["-a", "+c"]);
    drop(monitor);
    wait_for("the end of the connection", || back.controllers(Nqn::DISCOVERY) == 0);
}

#[test]
fn referrals_are_watched_for_as_long_as_they_are_there() {
    let b = target(&["b", "both"]).build().unwrap();
    let a = target(&["a"]).referral(discovery(&b)).build().unwrap();
    // In a circle, too.
    b.set_referrals(vec![discovery(&a)]);
    let monitor = monitor();
    monitor.watch(&discovery(&a)).unwrap();
    expect(&monitor, &["watch", "up", "+a", "watch", "up", "+b", "+both"]);
    quiet(&monitor);
    assert_eq!(monitor.watched().len(), 2);
    a.set_referrals(Vec::new());
    expect(&monitor, &["-b", "-both", "forget"]);
    wait_for("the end of the connection", || b.controllers(Nqn::DISCOVERY) == 0);
    a.set_referrals(vec![discovery(&b)]);
    expect(&monitor, &["watch", "up", "+b", "+both"]);
    monitor.forget(&discovery(&a));
    let mut rest: Vec<String> = (0..5).map(|_| next_but(&monitor, &[])).collect();
    rest.sort();
    assert_eq!(rest, ["-a", "-b", "-both", "forget", "forget"]);
    assert!(monitor.watched().is_empty() && monitor.paths().is_empty());
    for loopback in [&a, &b] {
        wait_for("the end of the connection", || loopback.controllers(Nqn::DISCOVERY) == 0);
    }
}

#[test]
fn a_path_named_by_two_is_one() {
    // Two ports, each with a discovery controller that names the subsystem at both.
    let a = target(&["a"]).listen_tcp("127.0.0.1:0").build().unwrap();
    let [one, two] = [0, 1].map(|n| TransportId::tcp_socket(a.tcp_addrs()[n]).unwrap());
    let monitor = monitor();
    monitor.watch(&one).unwrap();
    expect(&monitor, &["watch", "up", "+a", "+a"]);
    monitor.watch(&two).unwrap();
    expect(&monitor, &["watch", "up"]);
    monitor.forget(&one);
    expect(&monitor, &["forget"]);
    assert_eq!(monitor.paths().len(), 2);
    monitor.forget(&two);
    expect(&monitor, &["-a", "-a", "forget"]);
    assert!(monitor.paths().is_empty());
}

#[test]
fn a_discovery_controller_of_two_names_is_watched_once() {
    let own = Nqn::new(&nqn("discovery")).unwrap();
    let a = target(&["a"]).discovery_nqn(own.clone()).build().unwrap();
    let monitor = monitor();
    let (well_known, unique) = (discovery(&a), discovery(&a).with_subnqn(own));
    monitor.watch(&well_known).unwrap();
    expect(&monitor, &["watch", "up", "+a"]);
    monitor.watch(&unique).unwrap();
    monitor.forget(&well_known);
    quiet(&monitor);
    assert_eq!((monitor.watched().len(), a.controllers(Nqn::DISCOVERY)), (1, 1));
    monitor.forget(&unique);
    expect(&monitor, &["-a", "forget"]);
    // The other way round each has a connection of its own, for the name is known only once it is connected.
    monitor.watch(&unique).unwrap();
    expect(&monitor, &["watch", "up", "+a"]);
    monitor.watch(&well_known).unwrap();
    expect(&monitor, &["watch", "up"]);
    a.add_subsystem(SubsystemBuilder::new(nqn("b"))).unwrap();
    expect(&monitor, &["+b"]);
    quiet(&monitor);
}

#[test]
fn a_central_controller_is_registered_with() {
    let loopback = target(&["a"]).central_discovery(true).build().unwrap();
    let monitor = monitor_with(|options| options.symbolic_name = Some("rack 1".into()));
    monitor.watch(&discovery(&loopback)).unwrap();
    expect(&monitor, &["watch", "up", "+a"]);
    let registrations = loopback.registrations();
    assert_eq!(registrations.len(), 1);
    let host = nvmf_core::HostIdentity::load().unwrap();
    assert_eq!(registrations[0].eid, host.nqn.as_str());
    let attributes: Vec<_> = registrations[0].attributes(0).collect();
    assert_eq!(attributes[0].host_id(), Some(host.id));
    assert_eq!(attributes[1].symbolic_name().as_deref(), Some("rack 1"));
    monitor.stop(HANG);
    assert!(loopback.registrations().is_empty(), "taken out at the end");
}

#[test]
fn stopping_does_not_wait_for_who_does_not_answer() {
    // A port that accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let monitor = monitor();
    let address = silent.local_addr().unwrap();
    monitor.watch(&TransportId::tcp_socket(address).unwrap()).unwrap();
    expect(&monitor, &["watch"]);
    std::thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    monitor.stop(HANG);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// An application that attaches and detaches by the events ends with exactly the controllers there are.
#[test]
fn an_application_ends_with_the_right_controllers() {
    let loopback = target(&["a", "b"]).build().unwrap();
    let driver = driver();
    let monitor = DiscoveryMonitor::new(driver.clone(), MonitorOptions::default());
    monitor.watch(&discovery(&loopback)).unwrap();
    let mut options = ControllerOptions::default();
    options.num_io_queues = 1;
    let mut attached = std::collections::HashMap::new();
    let mut follow = |expected: &[&str]| {
        let expected: BTreeSet<String> = expected.iter().map(|name| nqn(name)).collect();
        let end = Instant::now() + HANG;
        loop {
            let now: BTreeSet<String> =
                attached.values().map(|controller: &nvmf_core::Controller| controller.subnqn()).collect();
            if now == expected {
                break;
            }
            assert!(Instant::now() < end, "{now:?} is not {expected:?}");
            match monitor.next(Duration::from_millis(100)) {
                Some(MonitorEvent::Added(path)) => {
                    let controller = driver.connect(&path.trid, &options).unwrap();
                    attached.insert(path.trid, controller);
                }
                Some(MonitorEvent::Removed(path)) => {
                    let controller = attached.remove(&path.trid).unwrap();
                    let _ = controller.detach();
                }
                _ => {}
            }
        }
    };
    follow(&["a", "b"]);
    loopback.add_subsystem(SubsystemBuilder::new(nqn("c"))).unwrap();
    loopback.remove_subsystem(&nqn("a")).unwrap();
    follow(&["b", "c"]);
    assert_eq!(loopback.controllers(&nqn("b")), 1);
    assert_eq!(loopback.controllers(&nqn("c")), 1);
}

/// Each discovery controller is connected to as was asked, and so are those it refers to.
#[test]
fn options_of_their_own() {
    let b = target(&["b"]).build().unwrap();
    let a = target(&["a"]).referral(discovery(&b)).build().unwrap();
    let c = target(&["c"]).build().unwrap();
    let monitor = monitor();
    let mut options = MonitorOptions::default().controller;
    options.keep_alive_timeout = Duration::from_secs(7);
    monitor.watch_with(&discovery(&a), options).unwrap();
    monitor.watch(&discovery(&c)).unwrap();
    wait_for("all three paths", || monitor.paths().len() == 3);
    let kato = |target: &Loopback| target.keep_alive_timeouts(Nqn::DISCOVERY);
    assert_eq!(kato(&a), [Duration::from_secs(7)]);
    assert_eq!(kato(&b), [Duration::from_secs(7)], "a referral is followed in the same way");
    assert_eq!(kato(&c), [Duration::from_secs(30)]);
}
