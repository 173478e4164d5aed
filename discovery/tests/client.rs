//! The discovery client, against a target in this process.

use nvmf_core::{ControllerOptions, Driver, Nqn};
use nvmf_discovery::{discover, output};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};

fn target() -> (Loopback, Driver) {
    let subsystem = |nqn: &str| SubsystemBuilder::new(nqn).namespace(Namespace::memory(1 << 20));
    let loopback = Loopback::builder()
        .subsystem(subsystem("nqn.2024-01.com.example:a"))
        .subsystem(subsystem("nqn.2024-01.com.example:b").allow_host("nqn.2024-01.com.example:friend"))
        .build()
        .unwrap();
    let driver = Driver::builder().transport(loopback.transport()).build();
    (loopback, driver)
}

#[test]
fn reads_the_log_and_lets_go() {
    let (loopback, driver) = target();
    let discovery = discover(&driver, &loopback.discovery_trid(), &ControllerOptions::default()).unwrap();
    assert_eq!(discovery.subnqn, Nqn::DISCOVERY);
    assert!(!discovery.has_unique_nqn());
    assert_eq!(discovery.log.genctr, loopback.discovery_generation());
    let text = output::text(&discovery.log);
    assert!(
        text.contains("\ntrtype:  loop\n") && text.contains("\nsubnqn:  nqn.2024-01.com.example:a\n"),
        "{text}"
    );
    assert!(!text.contains("nqn.2024-01.com.example:b"), "not for us: {text}");
    assert_eq!(output::binary(&discovery.log).len(), 1024 * (1 + discovery.log.records.len()));
    // Nothing is left behind.
    assert_eq!(loopback.controllers(Nqn::DISCOVERY), 0);
    assert!(driver.controllers().is_empty());
}

#[test]
fn the_log_depends_on_who_asks() {
    let (loopback, driver) = target();
    let friend = Nqn::new("nqn.2024-01.com.example:friend").unwrap();
    let trid = loopback.discovery_trid().with_hostnqn(friend);
    let discovery = discover(&driver, &trid, &ControllerOptions::default()).unwrap();
    let names: Vec<String> = discovery.log.records.iter().map(|record| record.subnqn()).collect();
    assert_eq!(names, ["nqn.2024-01.com.example:a", "nqn.2024-01.com.example:b"]);
}

#[test]
fn an_io_controller_has_no_log() {
    let (loopback, driver) = target();
    let trid = loopback.trid("nqn.2024-01.com.example:a").unwrap();
    let error = discover(&driver, &trid, &ControllerOptions::default()).unwrap_err().to_string();
    assert!(error.contains("this is an I/O controller, it has no discovery log"), "{error}");
    assert_eq!(loopback.controllers("nqn.2024-01.com.example:a"), 0);
}
