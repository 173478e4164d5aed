//! Reading the discovery log from a target that changes it, fails in between, or has more to say. The first eight are those of
//! libnvme's own tests.

use nvmf_core::spec::discovery::DiscoveryLogAsk;
use nvmf_core::spec::{AdminOpcode, Status};
use nvmf_core::{Controller, ControllerOptions, DiscoveryLogOptions, Driver, Error, Nqn};
use nvmf_discovery::{DiscoverOptions, discover, discover_with};
use nvmf_loopback::{Fault, Loopback, Rule, SubsystemBuilder};

/// A target with this many subsystems, and a discovery controller of it.
fn target(subsystems: usize) -> (Loopback, Controller) {
    // MDTS 0 would be no limit; 1 is 8 KiB, so that eight entries are one command.
    let builder = (0..subsystems).fold(Loopback::builder().mdts(1), |builder, n| {
        builder.subsystem(SubsystemBuilder::new(format!("nqn.2024-01.com.example:{n:03}")))
    });
    let loopback = builder.build().unwrap();
    let driver = Driver::builder().transport(loopback.transport()).build();
    let mut options = ControllerOptions::default();
    options.keep_alive_timeout = std::time::Duration::ZERO;
    let controller = driver.connect(&loopback.discovery_trid(), &options).unwrap();
    (loopback, controller)
}

fn log_page(fault: Fault) -> Rule {
    Rule::new(fault).admin().opcode(AdminOpcode::GET_LOG_PAGE.0)
}

/// Runs this and counts the log page reads it takes.
fn counted<T>(loopback: &Loopback, f: impl FnOnce() -> T) -> (T, u64) {
    let before = loopback.stats().log_page_reads;
    let result = f();
    (result, loopback.stats().log_page_reads - before)
}

fn names(log: &nvmf_core::proto::discovery_log::DiscoveryLog) -> Vec<String> {
    log.records.iter().map(|record| record.subnqn()).collect()
}

#[test]
fn no_entries() {
    let (loopback, controller) = target(0);
    let (log, commands) = counted(&loopback, || controller.discovery_log().unwrap());
    assert_eq!((log.records.len(), log.genctr, log.retries), (0, loopback.discovery_generation(), 0));
    assert_eq!(commands, 1, "nothing to fetch after the header");
    assert_eq!(log.to_bytes().len(), 1024);
}

#[test]
fn four_entries() {
    let (loopback, controller) = target(4);
    let (log, commands) = counted(&loopback, || controller.discovery_log().unwrap());
    assert_eq!(commands, 3, "the header, all entries at once, the header again");
    assert_eq!(names(&log), ["000", "001", "002", "003"].map(|n| format!("nqn.2024-01.com.example:{n}")));
}

#[test]
fn more_entries_than_fit_into_a_command() {
    // libnvme's `five_entries` reads 4 KiB at a time, as some targets of old want it; here it is what MDTS allows.
    let (loopback, controller) = target(9);
    let (log, commands) = counted(&loopback, || controller.discovery_log().unwrap());
    assert_eq!((log.records.len(), commands), (9, 4), "the header, eight, one, the header again");
    assert_eq!(log.records[8].subnqn(), "nqn.2024-01.com.example:008");
}

#[test]
fn genctr_change() {
    let (loopback, controller) = target(1);
    // Spares the header; the log changes after the entries were read.
    let added = "nqn.2024-01.com.example:added";
    loopback.faults().push(log_page(Fault::DiscoveryLogChange(added.to_owned())).after(1));
    let (log, commands) = counted(&loopback, || controller.discovery_log().unwrap());
    assert_eq!(commands, 5, "header, entries, header, entries, header");
    assert_eq!((log.retries, log.genctr), (1, loopback.discovery_generation()));
    assert_eq!(names(&log), ["nqn.2024-01.com.example:000", added], "all of the new generation");
}

#[test]
fn max_retries() {
    let (loopback, controller) = target(1);
    let change = Fault::DiscoveryLogChange("nqn.2024-01.com.example:000".to_owned());
    loopback.faults().push(log_page(change).always());
    let options = DiscoveryLogOptions::new().max_retries(2);
    let (result, commands) = counted(&loopback, || controller.discovery_log_with(&options));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("changed while it was read, after 2 retries"), "{error}");
    assert_eq!(commands, 7, "three times entries, each with a header before and after");
}

fn failing(reads_before: u64, status: Status) -> (Error, u64) {
    let (loopback, controller) = target(1);
    loopback.faults().push(log_page(Fault::CompleteWith(status)).after(reads_before));
    let result = controller.discovery_log();
    // The association survives, and the next attempt is as good as any.
    assert_eq!(controller.discovery_log().unwrap().records.len(), 1);
    (result.unwrap_err(), loopback.faults().fired())
}

#[test]
fn header_error() {
    let (error, fired) = failing(0, Status::INVALID_OPCODE.with_dnr());
    assert_eq!(fired, 1);
    assert!(
        error.to_string().contains("reading the header of the discovery log at offset 0 failed"),
        "{error}"
    );
}

#[test]
fn entries_error() {
    let (error, _) = failing(1, Status::INTERNAL_ERROR.with_dnr());
    assert!(
        error.to_string().contains("reading the entries of the discovery log at offset 1024 failed"),
        "{error}"
    );
}

#[test]
fn genctr_error() {
    let (error, _) = failing(2, Status::INTERNAL_ERROR.with_dnr());
    assert!(error.to_string().contains("reading the header again"), "{error}");
}

#[test]
fn more_records_than_accepted() {
    let (_loopback, controller) = target(9);
    let error = controller.discovery_log_with(&DiscoveryLogOptions::new().max_records(8)).unwrap_err();
    assert!(error.to_string().contains("claims 9 records, at most 8 are accepted"), "{error}");
}

#[test]
fn extended_entries_carry_attributes() {
    let (loopback, controller) = target(9);
    assert!(controller.discovery_log_support().unwrap().contains(DiscoveryLogAsk::EXTENDED));
    let options = DiscoveryLogOptions::new().ask(DiscoveryLogAsk::EXTENDED);
    let log = controller.discovery_log_with(&options).unwrap();
    let plain = controller.discovery_log().unwrap();
    assert!(log.is_extended() && !plain.is_extended());
    assert_eq!(log.records, plain.records);
    for index in 0..9 {
        let attributes: Vec<_> = log.attributes(index).collect();
        assert_eq!(attributes.len(), 1);
        assert_eq!(attributes[0].symbolic_name().as_deref(), Some("nvmf loopback"));
        assert_eq!(plain.attributes(index).count(), 0);
    }
    assert!(log.to_bytes().len() > plain.to_bytes().len());
    // A change meanwhile starts over here too.
    let change = Fault::DiscoveryLogChange("nqn.2024-01.com.example:added".to_owned());
    loopback.faults().push(log_page(change).after(1));
    let log = controller.discovery_log_with(&options).unwrap();
    assert_eq!((log.records.len(), log.retries), (10, 1));
}

#[test]
fn all_subsystems_are_listed_if_asked_for() {
    let secret = SubsystemBuilder::new("nqn.2024-01.com.example:secret").deny_other_hosts();
    let loopback = Loopback::builder().subsystem(secret).build().unwrap();
    let driver = Driver::builder().transport(loopback.transport()).build();
    let trid = loopback.discovery_trid();
    let count = |options: &DiscoverOptions| discover_with(&driver, &trid, options).unwrap().log.records.len();
    assert_eq!(count(&DiscoverOptions::default()), 0);
    assert_eq!(count(&DiscoverOptions::default().ask(DiscoveryLogAsk::ALL_SUBSYSTEMS)), 1);
}

#[test]
fn a_unique_nqn_is_connected_to() {
    let own = Nqn::new("nqn.2024-01.com.example:discovery").unwrap();
    let loopback = Loopback::builder()
        .subsystem(SubsystemBuilder::new("nqn.2024-01.com.example:a"))
        .discovery_nqn(own.clone())
        .report_discovery_subsystem(true)
        .build()
        .unwrap();
    let driver = Driver::builder().transport(loopback.transport()).build();
    let options = ControllerOptions::default();
    let found = discover(&driver, &loopback.discovery_trid(), &options).unwrap();
    assert!(found.has_unique_nqn());
    assert_eq!(found.trid.subnqn(), Some(&own), "read by its own name");
    assert_eq!(names(&found.log), [own.as_str(), "nqn.2024-01.com.example:a"]);
    // Asked for by that name it is the same.
    let again = discover(&driver, &found.trid, &options).unwrap();
    assert_eq!(again.log.to_bytes(), found.log.to_bytes());
    // A target that only pretends is read by the well-known name.
    loopback.faults().push(
        Rule::new(Fault::CompleteWith(Status::CONNECT_INVALID_PARAMETERS.with_dnr()))
            .fabrics(nvmf_core::spec::fabrics::FabricsType::CONNECT)
            .after(1),
    );
    let found = discover(&driver, &loopback.discovery_trid(), &options).unwrap();
    assert!(found.trid.subnqn().is_none_or(Nqn::is_discovery), "{}", found.trid);
    assert_eq!(found.log.records.len(), 2);
    assert_eq!(loopback.controllers(own.as_str()), 0, "nothing is left behind");
}
