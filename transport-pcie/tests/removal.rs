//! Functions that are taken away while their queue pairs are asleep.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nvmf_core::{
    Callbacks, Controller, ControllerOptions, Driver, HotplugEvent, IoQpairOptions, PollGroup, TransportId,
    TransportType,
};
use nvmf_loopback::{
    EmulatedFunction, Fault, Loopback, Namespace as Disk, Rule, SubsystemBuilder, VfioUserServer,
};
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserOptions, vfio_user};

const NQN: &str = "nqn.2024-01.org.example:gone";
/// Far longer than anything here takes.
const AGES: Duration = Duration::from_secs(60);
/// Long enough for a thread to notice, short of [`AGES`].
const SOON: Duration = Duration::from_secs(10);

fn function(name: &str) -> (Loopback, EmulatedFunction) {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Disk::memory(1 << 20).block_size(512));
    let loopback = Loopback::builder().name(name).subsystem(subsystem).build().unwrap();
    let function = loopback.pci_function(NQN).unwrap();
    (loopback, function)
}

/// A driver for this function, at `trtype:PCIe traddr:0000:01:00.0`.
fn emulated(function: &EmulatedFunction) -> (Driver, TransportId) {
    let opened = function.clone();
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
        Ok(Box::new(opened.open()?) as Box<dyn PciDevice>)
    });
    (Driver::builder().transport(transport).build(), "trtype:PCIe traddr:0000:01:00.0".parse().unwrap())
}

/// Attaches what is at `trid`; counts how often it is reported as removed.
fn attach(driver: &Driver, trid: &TransportId, background: bool) -> (Controller, Arc<AtomicUsize>) {
    let removed = Arc::new(AtomicUsize::new(0));
    let attached = Mutex::new(None);
    let counter = Arc::clone(&removed);
    let mut options = ControllerOptions::default();
    options.background_admin = background;
    driver
        .probe(
            Some(trid),
            Callbacks::new()
                .options(options)
                .attach(|controller| *attached.lock().unwrap() = Some(controller))
                .attach_fail(|_, error| panic!("{error}"))
                .remove(move |_| {
                    counter.fetch_add(1, Ordering::SeqCst);
                }),
        )
        .unwrap();
    (attached.into_inner().unwrap().unwrap(), removed)
}

/// A thread sleeps in a poll group with a read outstanding that is never completed. Then `remove` is called.
fn a_sleeper_is_woken(
    driver: &Driver,
    trid: &TransportId,
    background: bool,
    function: EmulatedFunction,
    remove: impl FnOnce(),
) {
    let (controller, removed) = attach(driver, trid, background);
    let (asleep, is_asleep) = mpsc::channel();
    let (woken, is_woken) = mpsc::channel();
    let mut qpair = controller.alloc_io_qpair_async(&IoQpairOptions::default()).unwrap();
    let start = Instant::now();
    while !qpair.poll_connect().unwrap() {
        controller.process_admin_completions().unwrap();
        assert!(start.elapsed() < SOON);
    }
    function.faults().push(Rule::new(Fault::Drop).io());
    qpair.read(&controller.namespace(1).unwrap(), 0, controller.alloc(512).unwrap(), 7).unwrap();
    drop(function);
    let thread = std::thread::spawn(move || {
        let mut group = PollGroup::new();
        group.add(qpair);
        let (mut ended, mut lost) = (Vec::new(), false);
        while !lost {
            let done = group.process_completions(0, |_, c| ended.push(c.user_data), |_, _| lost = true);
            if done == 0 && !lost {
                asleep.send(()).unwrap();
                group.wait(AGES).unwrap();
            }
        }
        woken.send(ended).unwrap();
    });
    is_asleep.recv_timeout(SOON).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_asleep.try_iter().count() < 5, "it sleeps, it does not spin");
    remove();
    assert_eq!(is_woken.recv_timeout(SOON), Ok(vec![7]), "it slept on");
    thread.join().unwrap();
    let start = Instant::now();
    while removed.load(Ordering::SeqCst) == 0 {
        if !background {
            let _ = controller.process_admin_completions();
        }
        assert!(start.elapsed() < SOON, "the removal is not reported");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(controller.is_failed());
    drop(controller);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(removed.load(Ordering::SeqCst), 1);
}

#[test]
fn queue_pairs_asleep_on_their_own_vector_are_woken_by_removal() {
    for background in [true, false] {
        let (_loopback, function) = function(&format!("asleep-{background}"));
        let (driver, trid) = emulated(&function);
        a_sleeper_is_woken(&driver, &trid, background, function.clone(), || function.remove());
    }
}

#[test]
fn and_by_whatever_ends_the_controller() {
    let (_loopback, function) = function("given-up");
    let (driver, trid) = emulated(&function);
    let controllers = driver.clone();
    a_sleeper_is_woken(&driver, &trid, true, function, move || controllers.controllers()[0].fail());
}

/// Probes without an address; returns what was attached, and counts removals.
fn probe(driver: &Driver, removed: &Arc<AtomicUsize>) -> Vec<Controller> {
    let (mut attached, counter) = (Vec::new(), Arc::clone(removed));
    let callbacks = Callbacks::new()
        .attach(|controller| attached.push(controller))
        .attach_fail(|trid, error| panic!("{trid}: {error}"))
        .remove(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
    driver.probe(None, callbacks).unwrap();
    attached
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_function_that_is_plugged_in_again_is_offered_again() {
    let slot: Arc<Mutex<Option<EmulatedFunction>>> = Arc::default();
    let (opened, listed) = (Arc::clone(&slot), Arc::clone(&slot));
    let trid: TransportId = "trtype:PCIe traddr:0000:01:00.0".parse().unwrap();
    let at = trid.clone();
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
        let slot = opened.lock().unwrap();
        Ok(Box::new(slot.as_ref().unwrap().open()?) as Box<dyn PciDevice>)
    })
    .listing(move || listed.lock().unwrap().iter().map(|_| at.clone()).collect());
    let driver = Driver::builder().transport(transport).build();
    let removed = Arc::new(AtomicUsize::new(0));
    let mut hotplug = driver.hotplug().unwrap();
    assert!(probe(&driver, &removed).is_empty());
    let (loopback, first) = function("plugged");
    *slot.lock().unwrap() = Some(first.clone());
    assert_eq!(hotplug.wait(SOON).unwrap(), Some(HotplugEvent::Inserted(trid.clone())));
    let before = probe(&driver, &removed);
    assert_eq!(before.len(), 1);
    assert!(probe(&driver, &removed).is_empty(), "it is attached");
    slot.lock().unwrap().take().unwrap().remove();
    assert_eq!(hotplug.wait(SOON).unwrap(), Some(HotplugEvent::Removed(trid.clone())));
    until("the removal is told", || removed.load(Ordering::SeqCst) == 1);
    *slot.lock().unwrap() = Some(loopback.pci_function(NQN).unwrap());
    assert_eq!(hotplug.wait(SOON).unwrap(), Some(HotplugEvent::Inserted(trid)));
    let after = probe(&driver, &removed);
    assert_eq!(after.len(), 1, "although there still is a handle of the one before");
    assert!(before[0].is_failed() && !after[0].is_failed());
    assert_eq!((removed.load(Ordering::SeqCst), hotplug.poll().unwrap()), (1, None));
}

#[test]
fn sockets_in_a_directory_are_a_bus() {
    let directory = socket("bus");
    std::fs::create_dir(&directory).unwrap();
    let mut options = VfioUserOptions::default();
    options.directories.push(directory.clone());
    let driver = Driver::builder().transport(vfio_user::transport(options)).build();
    let mut hotplug = driver.hotplug().unwrap();
    let removed = Arc::new(AtomicUsize::new(0));
    let path = directory.join("one");
    let trid: TransportId = format!("trtype:vfiouser traddr:{}", path.display()).parse().unwrap();
    let mut attached = Vec::new();
    for round in 1..=2 {
        let (loopback, function) = function(&format!("bus-{round}"));
        let server = VfioUserServer::listen(&function, &path).unwrap();
        assert_eq!(hotplug.wait(SOON).unwrap(), Some(HotplugEvent::Inserted(trid.clone())));
        attached.extend(probe(&driver, &removed));
        assert_eq!(attached.len(), round);
        assert!(probe(&driver, &removed).is_empty());
        drop((server, function, loopback));
        assert_eq!(hotplug.wait(SOON).unwrap(), Some(HotplugEvent::Removed(trid.clone())));
        until("the removal is told", || removed.load(Ordering::SeqCst) == round);
        assert!(attached[round - 1].is_failed() && probe(&driver, &removed).is_empty());
    }
    assert_eq!(removed.load(Ordering::SeqCst), 2);
    std::fs::remove_dir(&directory).unwrap();
}

/// A socket path of this test's own.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nvmf-removal-{name}-{}", std::process::id()))
}

#[test]
fn queue_pairs_asleep_are_woken_when_a_vfio_user_server_ends() {
    for background in [true, false] {
        let (loopback, function) = function(&format!("server-{background}"));
        let path = socket(&format!("server-{background}"));
        let server = VfioUserServer::listen(&function, &path).unwrap();
        let driver = Driver::builder().transport(vfio_user::transport(VfioUserOptions::default())).build();
        let trid = format!("trtype:vfiouser traddr:{}", path.display()).parse().unwrap();
        a_sleeper_is_woken(&driver, &trid, background, function, move || drop((server, loopback)));
    }
}
