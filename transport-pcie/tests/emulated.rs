//! The driver, from probing to I/O, over an NVMe function emulated in this process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nvmf_core::spec::{AdminOpcode, Status};
use nvmf_core::{
    Callbacks, CommandError, Controller, ControllerOptions, DmaBuf, Driver, IoBuf, IoQpairOptions, Namespace,
    TransportId, TransportType,
};
use nvmf_loopback::{
    EmulatedDevice, EmulatedFunction, Fault, Loopback, Namespace as Disk, PciOptions, Rule, SubsystemBuilder,
};
use nvmf_transport_pcie::{PciDevice, PcieTransport};

#[path = "emulated/faults.rs"]
mod faults;
#[path = "emulated/offers.rs"]
mod offers;
#[path = "emulated/ownership.rs"]
mod ownership;

const NQN: &str = "nqn.2024-01.org.example:disk";
const TRID: &str = "trtype:PCIe traddr:0000:01:00.0";

struct Bench {
    driver: Driver,
    function: EmulatedFunction,
    loopback: Loopback,
}

fn bench(name: &str) -> Bench {
    bench_with(name, &PciOptions::new(), |device| Box::new(device))
}

/// As [`bench`], with a function that behaves so, behind what `wrap` makes of it.
fn bench_with(
    name: &str,
    options: &PciOptions,
    wrap: impl Fn(EmulatedDevice) -> Box<dyn PciDevice> + Send + Sync + 'static,
) -> Bench {
    let subsystem = SubsystemBuilder::new(NQN)
        .namespace(Disk::memory(16 << 20).block_size(512))
        .namespace(Disk::memory(64 << 20).block_size(4096));
    // Names are the process's.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let loopback = Loopback::builder().name(name).subsystem(subsystem).build().unwrap();
    let function = loopback.pci_function_with(NQN, options).unwrap();
    let opened = function.clone();
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| Ok(wrap(opened.open()?)))
        .listing(|| vec![TRID.parse().unwrap()]);
    let driver = Driver::builder().transport(transport).build();
    Bench { driver, function, loopback }
}

fn trid() -> TransportId {
    TRID.parse().unwrap()
}

fn attach(bench: &Bench) -> Controller {
    bench.driver.connect(&trid(), &ControllerOptions::default()).unwrap()
}

fn namespace(controller: &Controller, nsid: u32) -> Namespace {
    controller.namespace(nsid).unwrap()
}

fn filled(controller: &Controller, len: usize, seed: usize) -> DmaBuf {
    let mut buf = controller.alloc(len).unwrap();
    buf.iter_mut().enumerate().for_each(|(i, b)| *b = ((i * 31) ^ (i >> 8) ^ seed) as u8);
    buf
}

#[test]
fn a_local_probe_attaches_and_data_comes_back_as_it_was_written() {
    let bench = bench("probe");
    let mut found = Vec::new();
    bench
        .driver
        .probe(
            None,
            Callbacks::new()
                .probe(|_, _| true)
                .attach(|controller| found.push(controller))
                .attach_fail(|trid, error| panic!("{trid}: {error}")),
        )
        .unwrap();
    let controller = found.pop().unwrap();
    assert_eq!(controller.namespaces().len(), 2);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    for nsid in [1, 2] {
        let ns = namespace(&controller, nsid);
        let block = ns.block_size() as usize;
        // From one block to more than one command, PRP list or not.
        for len in [block, 2 * block, 8 * block, 65536, 2 << 20, (5 << 20) + block] {
            let written = filled(&controller, len, len + nsid as usize);
            let expected = written.to_vec();
            qpair.write_blocking(&ns, 3, written).unwrap();
            let read = qpair.read_blocking(&ns, 3, controller.alloc(len).unwrap()).unwrap();
            assert!(*read == expected[..], "nsid {nsid}, {len} bytes");
        }
        qpair.flush_blocking(&ns).unwrap();
    }
    drop(qpair);
    controller.detach().unwrap();
}

#[test]
fn buffers_in_pieces_and_queues_kept_full() {
    let bench = bench("vectored");
    let controller = attach(&bench);
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default().queue_size(16)).unwrap();
    // Pieces PRPs cannot describe.
    let lens = [512usize, 1536, 4096, 512, 9728];
    let pieces: Vec<DmaBuf> = lens.iter().map(|&len| filled(&controller, len, len)).collect();
    let expected: Vec<u8> = pieces.iter().flat_map(|p| p.to_vec()).collect();
    qpair.write(&ns, 100, pieces, 0).unwrap();
    while qpair.outstanding() > 0 {
        qpair.process_completions(0, |done| assert_eq!(done.result, Ok(0))).unwrap();
    }
    let pieces: Vec<DmaBuf> = lens.iter().rev().map(|&len| controller.alloc(len).unwrap()).collect();
    qpair.read(&ns, 100, pieces, 0).unwrap();
    let mut back = Vec::new();
    while qpair.outstanding() > 0 {
        qpair
            .process_completions(0, |done| back = done.buf.bufs().iter().flat_map(|b| b.to_vec()).collect())
            .unwrap();
        qpair.wait(Duration::from_millis(50)).unwrap();
    }
    assert!(back == expected);

    // More operations than commands fit, many times around the rings.
    let mut done = 0;
    for round in 0..40 {
        for i in 0..50u64 {
            qpair.write(&ns, i * 8, filled(&controller, 4096, round + i as usize), i).unwrap();
        }
        while qpair.outstanding() > 0 {
            done += qpair.process_completions(0, |c| assert!(c.result.is_ok(), "{:?}", c.result)).unwrap();
        }
    }
    assert_eq!(done, 2000);
    for i in 0..50u64 {
        let read = qpair.read_blocking(&ns, i * 8, controller.alloc(4096).unwrap()).unwrap();
        assert!(*read == *filled(&controller, 4096, 39 + i as usize));
    }
}

#[test]
fn queue_pairs_come_and_go_under_the_same_identifiers() {
    let bench = bench("qids");
    let options = ControllerOptions::default();
    for background in [true, false] {
        let mut options = options.clone();
        (options.num_io_queues, options.background_admin, options.enable_interrupts) =
            (2, background, background);
        let controller = bench.driver.connect(&trid(), &options).unwrap();
        let ns = namespace(&controller, 2);
        for round in 0..6 {
            let mut pairs: Vec<_> =
                (0..2).map(|_| controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap()).collect();
            assert!(controller.alloc_io_qpair(&IoQpairOptions::default()).is_err(), "two queues only");
            for qpair in &mut pairs {
                qpair.write_blocking(&ns, round, filled(&controller, 4096, 1)).unwrap();
                // Dropped with commands in flight: they are ended by the deletion of the queue.
                for i in 0..20 {
                    qpair.read(&ns, i, controller.alloc(4096).unwrap(), 0).unwrap();
                }
            }
        }
        assert_eq!(controller.pool().stats().outstanding, 0, "every buffer came back");
        controller.detach().unwrap();
    }
}

#[test]
fn a_removed_function_fails_everything_once_and_is_reported_once() {
    let bench = bench("removal");
    let removed = Arc::new(AtomicUsize::new(0));
    let attached = Mutex::new(None);
    let counter = Arc::clone(&removed);
    bench
        .driver
        .probe(
            Some(&trid()),
            Callbacks::new()
                .probe(|_, _| true)
                .attach(|controller| *attached.lock().unwrap() = Some(controller))
                .remove(move |_| {
                    counter.fetch_add(1, Ordering::SeqCst);
                }),
        )
        .unwrap();
    let controller = attached.into_inner().unwrap().unwrap();
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    bench.function.remove();
    let accepted = (0..30).filter(|&i| qpair.read(&ns, i, controller.alloc(512).unwrap(), i).is_ok()).count();
    let (start, mut failed) = (Instant::now(), Vec::new());
    let error = loop {
        let result = qpair.process_completions(0, |done| {
            assert!(matches!(done.result, Err(CommandError::Disconnected)), "{:?}", done.result);
            assert!(matches!(done.buf, IoBuf::One(_)), "the buffer comes back");
            failed.push(done.user_data);
        });
        match result {
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(10), "not noticed"),
            Err(error) => break error,
        }
    };
    failed.sort_unstable();
    failed.dedup();
    assert_eq!(failed.len(), accepted);
    assert!(error.to_string().contains("gone") || error.to_string().contains("disabled"), "{error}");
    drop(qpair);
    while removed.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the removal is not reported");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(controller);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(removed.load(Ordering::SeqCst), 1);
}

#[test]
fn a_controller_that_never_becomes_ready_is_given_up_and_left_disabled() {
    let bench = bench("never");
    bench.function.never_ready(true);
    let mut options = ControllerOptions::default();
    options.admin_timeout = Duration::from_millis(300);
    options.attach_timeout = Duration::from_secs(1);
    let error = bench.driver.connect(&trid(), &options).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let mut cc = [0; 4];
    bench.function.bar_read(0, 0x14, &mut cc).unwrap();
    assert_eq!(cc[0] & 1, 0, "CC.EN");
    bench.function.never_ready(false);
    attach(&bench).detach().unwrap();
}

#[test]
fn a_fatal_status_ends_the_controller() {
    let bench = bench("fatal");
    let controller = attach(&bench);
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    bench.function.fail();
    let error = qpair.read_blocking(&ns, 0, controller.alloc(512).unwrap()).unwrap_err();
    assert!(error.to_string().contains("CSTS.CFS") || error.to_string().contains("disabled"), "{error}");
    drop(qpair);
    assert_eq!(controller.pool().stats().outstanding, 0);
    drop(controller);
    // The reset that disabling is brings it back, once the thread that looks after the admin queue has let go of it.
    let began = Instant::now();
    let controller = loop {
        match bench.driver.connect(&trid(), &ControllerOptions::default()) {
            Ok(controller) => break controller,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(5), "{error}"),
        }
    };
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    qpair.flush_blocking(&namespace(&controller, 1)).unwrap();
}

#[test]
fn a_device_that_lies_about_completions_loses_the_queue_and_nothing_else() {
    for (fault, expected) in
        [(Fault::WrongCid, "command identifier"), (Fault::DuplicateCompletion, "command identifier")]
    {
        let bench = bench("liar");
        let controller = attach(&bench);
        let ns = namespace(&controller, 1);
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        bench.function.faults().push(Rule::new(fault).io());
        qpair.read(&ns, 0, controller.alloc(4096).unwrap(), 7).unwrap();
        let (start, mut done) = (Instant::now(), 0);
        let error = loop {
            match qpair.process_completions(0, |c| done += c.user_data) {
                Ok(_) => assert!(start.elapsed() < Duration::from_secs(10), "not noticed"),
                Err(error) => break error,
            }
        };
        assert_eq!(done, 7, "completed once");
        assert!(error.to_string().contains(expected), "{error}");
        drop(qpair);
        assert_eq!(
            controller.pool().stats().outstanding,
            0,
            "the queue was deleted and the buffer came back"
        );
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        qpair.read_blocking(&ns, 0, controller.alloc(4096).unwrap()).unwrap();
    }
}

#[test]
fn a_command_without_a_completion_times_out_and_its_buffer_returns_after_the_queue_is_deleted() {
    for fault in [Fault::Drop, Fault::StuckPhase] {
        let bench = bench("silent");
        let mut options = ControllerOptions::default();
        options.io_timeout = Some(Duration::from_millis(300));
        let controller = bench.driver.connect(&trid(), &options).unwrap();
        let ns = namespace(&controller, 2);
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        bench.function.faults().push(Rule::new(fault).io());
        qpair.read(&ns, 0, controller.alloc(4096).unwrap(), 0).unwrap();
        let (start, mut results) = (Instant::now(), Vec::new());
        while qpair.process_completions(0, |c| results.push((c.result, c.buf.len()))).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(10), "never given up");
            qpair.wait(Duration::from_millis(20)).unwrap();
        }
        assert_eq!(results, [(Err(CommandError::TimedOut), 4096)]);
        drop(qpair);
        assert_eq!(controller.pool().stats().outstanding, 0);
        assert!(!controller.is_failed(), "the controller goes on");
        controller.detach().unwrap();
    }
}

#[test]
fn a_queue_the_controller_does_not_delete_keeps_its_memory_and_its_identifier() {
    let bench = bench("undeletable");
    let mut options = ControllerOptions::default();
    options.num_io_queues = 2;
    let controller = bench.driver.connect(&trid(), &options).unwrap();
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let qid = qpair.qid();
    let faults = bench.function.faults();
    // The command stays in flight, and the deletion that would end it is refused.
    faults.push(Rule::new(Fault::Drop).io());
    faults.push(
        Rule::new(Fault::CompleteWith(Status::INTERNAL_ERROR)).admin().opcode(AdminOpcode::DELETE_IO_SQ.0),
    );
    qpair.read(&ns, 0, controller.alloc(4096).unwrap(), 0).unwrap();
    drop(qpair);
    for _ in 0..3 {
        let qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        assert_ne!(qpair.qid(), qid, "the controller still has a queue of this name");
    }
}

#[test]
fn a_queue_pair_that_sleeps_is_created_anew_without_oversleeping() {
    let bench = bench("recreated");
    let controller = attach(&bench);
    let ns = namespace(&controller, 1);
    let options = IoQpairOptions::default().auto_reconnect(true);
    let mut qpair = controller.alloc_io_qpair(&options).unwrap();
    // The best of some: what takes long on a busy machine is the machine. Sleeping through the end of the two Create commands would
    // take 200 ms each time.
    let quickest = (0..5).map(|_| {
        controller.reset().unwrap();
        let start = Instant::now();
        qpair.read_blocking(&ns, 0, controller.alloc(4096).unwrap()).unwrap();
        start.elapsed()
    });
    let quickest = quickest.min().unwrap();
    assert!(quickest < Duration::from_millis(80), "{quickest:?}");
}
