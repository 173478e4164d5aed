//! Walking along referrals, and asking many at once.

use std::time::Duration;

use nvmf_core::spec::discovery::{DiscoveryLogAsk, EntryFlags};
use nvmf_core::{Driver, Nqn, TransportId};
use nvmf_discovery::{DiscoverOptions, Seed, Verdict, discover_with, walk};
use nvmf_loopback::{Builder, Fault, Loopback, Rule, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

mod common;

use common::nothing_is_left;

fn target(name: &str) -> Builder {
    let subsystem = SubsystemBuilder::new(format!("nqn.2024-01.com.example:{name}"));
    Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0")
}

fn discovery(loopback: &Loopback) -> TransportId {
    loopback.tcp_trid(Nqn::DISCOVERY).unwrap().unwrap()
}

fn driver() -> Driver {
    Driver::builder().transport(TcpTransport::new()).build()
}

fn names(walk: &nvmf_discovery::Walk) -> Vec<String> {
    walk.paths()
        .map(|(trid, _)| trid.subnqn().unwrap().as_str().rsplit(':').next().unwrap().to_owned())
        .collect()
}

#[test]
fn referrals_are_followed_once() {
    // a refers to b and c, b to c and, in a circle, to a.
    let c = target("c").build().unwrap();
    let b = target("b").referral(discovery(&c)).build().unwrap();
    let a = target("a").referral(discovery(&b)).referral(discovery(&c)).build().unwrap();
    b.set_referrals(vec![discovery(&c), discovery(&a)]);
    let seeds = [Seed::from(discovery(&a))];
    let found = walk(&driver(), &seeds, &DiscoverOptions::default());
    assert_eq!(found.first_error().map(ToString::to_string), None);
    assert_eq!(found.controllers.len(), 3);
    let mut all = names(&found);
    assert_eq!(all[0], "a");
    all.sort();
    assert_eq!(all, ["a", "b", "c"]);
    let of_b =
        found.controllers.iter().find(|asked| asked.trid.port() == Some(b.tcp_addrs()[0].port())).unwrap();
    assert_eq!((of_b.depth, of_b.referred_by), (1, Some(0)));
    assert!(
        of_b.entries.iter().any(|verdict| matches!(verdict, Verdict::Known(trid) if *trid == discovery(&a)))
    );
    for loopback in [&a, &b, &c] {
        nothing_is_left(loopback);
    }
}

#[test]
fn referrals_end_somewhere() {
    // A chain of ten: the first, and eight referrals.
    let mut chain: Vec<Loopback> = Vec::new();
    for n in 0..10 {
        let builder = target(&n.to_string());
        let builder = match chain.last() {
            Some(next) => builder.referral(discovery(next)),
            None => builder,
        };
        chain.push(builder.build().unwrap());
    }
    let seeds = [Seed::from(discovery(chain.last().unwrap()))];
    let found = walk(&driver(), &seeds, &DiscoverOptions::default());
    assert_eq!(names(&found), ["9", "8", "7", "6", "5", "4", "3", "2", "1"]);
    let last = found.controllers.last().unwrap();
    assert_eq!(last.depth, 8);
    assert!(last.entries.iter().any(|verdict| matches!(verdict, Verdict::TooFar(_))), "{:?}", last.entries);
    let found = walk(&driver(), &seeds, &DiscoverOptions::default().max_depth(0));
    assert_eq!(names(&found), ["9"]);
}

#[test]
fn the_same_information_is_not_asked_for_twice() {
    let b = target("b").build().unwrap();
    let a = target("a").referral_with(discovery(&b), EntryFlags::DUPLICATE_INFORMATION).build().unwrap();
    let found = walk(&driver(), &[Seed::from(discovery(&a))], &DiscoverOptions::default());
    assert_eq!(found.controllers.len(), 1);
    assert!(matches!(found.controllers[0].entries[1], Verdict::SameInformation));
    assert_eq!(b.stats().connections, 0);
}

#[test]
fn what_fails_does_not_hold_the_others_up() {
    let gone = target("gone").build().unwrap();
    let gone_trid = discovery(&gone);
    drop(gone);
    let a = target("a").build().unwrap();
    let seeds = [Seed::from(gone_trid), Seed::from(discovery(&a)), Seed::from(discovery(&a))];
    let found = walk(&driver(), &seeds, &DiscoverOptions::default());
    assert_eq!(found.controllers.len(), 2, "the same one is asked once");
    assert!(found.controllers[0].result.is_err() && found.controllers[1].result.is_ok());
    assert_eq!(names(&found), ["a"]);
    assert!(found.first_error().unwrap().to_string().contains("refused"));
}

/// 1,000 entries from 20 discovery controllers, 50 each, in parallel; 5 ms for each command.
#[test]
fn twenty_at_once() {
    let targets: Vec<Loopback> = (0..20)
        .map(|n| {
            let builder = (0..49).fold(target(&format!("{n}-first")), |builder, m| {
                builder.subsystem(SubsystemBuilder::new(format!("nqn.2024-01.com.example:{n}-{m}")))
            });
            let target = builder.build().unwrap();
            // What is not on this machine takes a while to answer.
            target.faults().push(Rule::new(Fault::Delay(Duration::from_millis(5))).admin().always());
            target
        })
        .collect();
    let seeds: Vec<Seed> = targets.iter().map(|target| Seed::from(discovery(target))).collect();
    let started = std::time::Instant::now();
    let found = walk(&driver(), &seeds, &DiscoverOptions::default());
    let side_by_side = started.elapsed();
    assert_eq!(found.paths().count(), 1000);
    assert!(
        found.controllers.iter().zip(&seeds).all(|(asked, seed)| asked.trid == seed.trid),
        "in the order given"
    );
    let started = std::time::Instant::now();
    let found = walk(&driver(), &seeds, &DiscoverOptions::default().parallel(1));
    let one_by_one = started.elapsed();
    assert_eq!(found.paths().count(), 1000);
    println!(
        "1,000 entries of 20 discovery controllers: {side_by_side:?} side by side, {one_by_one:?} one by one"
    );
    for target in &targets {
        nothing_is_left(target);
    }
}

#[test]
fn one_discovery_controller_is_asked_for_two_hosts() {
    let secret = SubsystemBuilder::new("nqn.2024-01.com.example:secret").deny_other_hosts();
    let secret = secret.allow_host("nqn.2024-01.com.example:friend");
    let target = target("open").subsystem(secret).build().unwrap();
    let friend = discovery(&target).with_hostnqn(Nqn::new("nqn.2024-01.com.example:friend").unwrap());
    let seeds = [Seed::from(discovery(&target)), Seed::from(friend)];
    let found = walk(&driver(), &seeds, &DiscoverOptions::default());
    assert_eq!(names(&found), ["open", "open", "secret"]);
}

#[test]
fn a_path_named_twice_is_found_once() {
    let a = target("a").build().unwrap();
    let b = target("b").referral(discovery(&a)).build().unwrap();
    let seeds = [Seed::from(discovery(&a)), Seed::from(discovery(&b))];
    let found = walk(&driver(), &seeds, &DiscoverOptions::default());
    assert_eq!(names(&found), ["a", "b"]);
    assert!(matches!(found.controllers[1].entries[1], Verdict::Known(_)));
}

/// Port local entries only, entries of all subsystems, extended entries: in every combination.
#[test]
fn what_is_asked_of_a_log_is_what_comes() {
    let secret = SubsystemBuilder::new("nqn.2024-01.com.example:secret").deny_other_hosts();
    let target = target("open").subsystem(secret).listen_tcp("127.0.0.1:0").build().unwrap();
    let [one, two] = [0, 1].map(|n| target.tcp_addrs()[n]);
    for bits in 0..8 {
        let [port_local, all, extended] = [1, 2, 4].map(|bit| bits & bit != 0);
        let asks = [
            (port_local, DiscoveryLogAsk::PORT_LOCAL),
            (all, DiscoveryLogAsk::ALL_SUBSYSTEMS),
            (extended, DiscoveryLogAsk::EXTENDED),
        ];
        let ask =
            asks.into_iter().filter(|(on, _)| *on).fold(DiscoveryLogAsk::default(), |a, (_, b)| a.union(b));
        for (nth, address) in [one, two].into_iter().enumerate() {
            let trid = TransportId::tcp_socket(address).unwrap();
            let log = discover_with(&driver(), &trid, &DiscoverOptions::default().ask(ask)).unwrap().log;
            let found: Vec<(String, String)> = log
                .records
                .iter()
                .map(|entry| (entry.subnqn().rsplit(':').next().unwrap().to_owned(), entry.trsvcid()))
                .collect();
            let names = if all { &["open", "secret"][..] } else { &["open"] };
            let ports = if port_local { vec![address] } else { vec![one, two] };
            let expected: Vec<(String, String)> = names
                .iter()
                .flat_map(|name| ports.iter().map(|port| ((*name).to_owned(), port.port().to_string())))
                .collect();
            assert_eq!(found, expected, "{ask:?} of port {nth}");
            assert_eq!(log.is_extended(), extended);
            let named = (0..log.records.len()).all(|index| log.attributes(index).next().is_some());
            assert_eq!(named, extended, "{ask:?}");
        }
    }
}
