//! The initiator of `nvmf-core` against a loopback in the same process.

use std::time::{Duration, Instant};

use nvmf_core::spec::NvmOpcode;
use nvmf_core::spec::log_page::{LogPageId, NoticeEvent};
use nvmf_core::{
    AsyncEvent, Callbacks, CommandError, Controller, ControllerOptions, Driver, HostIdentity, IoQpairOptions,
    Nqn, TransportId,
};
use nvmf_loopback::{DEFAULT_NQN, Fault, Loopback, Namespace, Rule, SubsystemBuilder};

fn driver(loopback: &Loopback) -> Driver {
    Driver::builder().transport(loopback.transport()).host(HostIdentity::random().unwrap()).build()
}

fn connect(loopback: &Loopback) -> (Driver, Controller) {
    let driver = driver(loopback);
    let trid = loopback.trid(DEFAULT_NQN).unwrap();
    let ctrlr = driver.connect(&trid, &ControllerOptions::default()).unwrap();
    (driver, ctrlr)
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !is() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_controller_is_found_by_discovery_and_does_io() {
    let loopback = Loopback::builder()
        .namespace(Namespace::memory(8 << 20).block_size(4096))
        .subsystem(SubsystemBuilder::new("nqn.2024-01.org.example:closed").deny_other_hosts())
        .build()
        .unwrap();
    let driver = driver(&loopback);
    let mut found = Vec::new();
    let callbacks = Callbacks::new()
        .attach(|ctrlr| found.push(ctrlr))
        .attach_fail(|trid: &TransportId, error| panic!("{trid}: {error}"));
    driver.probe(Some(&loopback.discovery_trid()), callbacks).unwrap();
    assert_eq!(found.len(), 1, "the closed subsystem is not in the log");
    let ctrlr = found.pop().unwrap();
    assert_eq!(ctrlr.subnqn(), DEFAULT_NQN);
    let ns = ctrlr.namespace(1).unwrap();
    assert_eq!((ns.block_size(), ns.size()), (4096, 8 << 20));
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    // Longer than MDTS, so that it is split.
    let mut buf = qpair.alloc(3 << 20).unwrap();
    buf.iter_mut().zip(0u32..).for_each(|(byte, i)| *byte = (i >> 9) as u8 ^ i as u8);
    let sent = buf.to_vec();
    qpair.write_blocking(&ns, 5, buf).unwrap();
    let buf = qpair.alloc(3 << 20).unwrap();
    let found = qpair.read_blocking(&ns, 5, buf).unwrap();
    assert!(found[..] == sent[..]);
    qpair.flush_blocking(&ns).unwrap();
    assert_eq!(loopback.stats().bytes_written, 3 << 20);
}

#[test]
fn changes_of_namespaces_reach_the_host() {
    let loopback = Loopback::builder().namespace(Namespace::memory(1 << 20)).build().unwrap();
    let (_driver, ctrlr) = connect(&loopback);
    assert_eq!(ctrlr.namespaces().len(), 1);
    let told = || {
        let changed =
            |event: &AsyncEvent| event.as_notice() == Some(NoticeEvent::NAMESPACE_ATTRIBUTE_CHANGED);
        eventually("the host is not told", || ctrlr.take_events().iter().any(changed));
        // Until this page is read the event stays masked.
        ctrlr.log_page(LogPageId::CHANGED_NAMESPACES, 0xffff_ffff, 4096).unwrap();
        ctrlr.rescan_namespaces().unwrap();
    };
    let nsid = loopback.add_namespace(DEFAULT_NQN, Namespace::memory(2 << 20)).unwrap();
    told();
    assert_eq!(ctrlr.namespace(nsid).unwrap().size(), 2 << 20);
    loopback.resize_namespace(DEFAULT_NQN, 1, 4 << 20).unwrap();
    told();
    assert_eq!(ctrlr.namespace(1).unwrap().size(), 4 << 20);
    loopback.remove_namespace(DEFAULT_NQN, nsid).unwrap();
    told();
    assert!(ctrlr.namespace(nsid).is_none());
}

#[test]
fn the_discovery_log_is_read_whole() {
    let loopback = Loopback::builder().build().unwrap();
    for index in 0..40 {
        loopback.add_subsystem(SubsystemBuilder::new(format!("nqn.2024-01.org.example:{index}"))).unwrap();
    }
    let driver = driver(&loopback);
    let ctrlr = driver.connect(&loopback.discovery_trid(), &ControllerOptions::default()).unwrap();
    let log = ctrlr.discovery_log().unwrap();
    assert_eq!((log.genctr, log.records.len()), (loopback.discovery_generation(), 40));
    assert_eq!(loopback.controllers(Nqn::DISCOVERY), 1);
}

#[test]
fn failures_come_back_as_they_were_scripted() {
    let loopback = Loopback::builder().namespace(Namespace::memory(1 << 20)).build().unwrap();
    let (_driver, ctrlr) = connect(&loopback);
    let ns = ctrlr.namespace(1).unwrap();
    let mut qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let status = nvmf_core::spec::Status::INTERNAL_ERROR;
    loopback.faults().push(Rule::new(Fault::CompleteWith(status)).io().opcode(NvmOpcode::READ.0));
    let buf = qpair.alloc(512).unwrap();
    let error = qpair.read_blocking(&ns, 0, buf).unwrap_err();
    assert!(error.status().is_some_and(|found| found.is(status)), "{error}");
    loopback.faults().push(Rule::new(Fault::Disconnect).io());
    let buf = qpair.alloc(512).unwrap();
    qpair.read(&ns, 0, buf, 7).unwrap();
    let mut results = Vec::new();
    let until = Instant::now() + Duration::from_secs(5);
    while results.is_empty() {
        assert!(Instant::now() < until, "no completion");
        let _ = qpair
            .process_completions(0, |completion| results.push((completion.user_data, completion.result)));
    }
    assert_eq!(results, [(7, Err(CommandError::Disconnected))]);
}
