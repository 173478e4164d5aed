//! Functions that are taken away while their queue pairs are asleep.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nvmf_core::{
    Callbacks, Controller, ControllerOptions, Driver, IoQpairOptions, PollGroup, TransportId, TransportType,
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
