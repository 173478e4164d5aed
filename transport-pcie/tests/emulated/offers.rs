//! What a controller offers and the driver takes: shadow doorbells, controller memory, other page sizes; and controllers that are
//! treated in their own way.

use nvmf_core::spec::registers::NSSR_RESET;
use nvmf_core::transport::TransportController;
use nvmf_core::{ErrorKind, IoQpair};
use nvmf_loopback::VfioUserServer;
use nvmf_transport_pcie::{Bar0, BarAccess, PciIdentity, PcieController, VfioUserDevice, VfioUserOptions};

use super::*;

fn with(pci: PciOptions) -> Bench {
    bench_with("offers", &pci, |device| Box::new(device))
}

/// Writes and reads back one block after the other. Doorbell registers written meanwhile.
fn work(bench: &Bench, qpair: &mut IoQpair, controller: &Controller, blocks: u64) -> u64 {
    let ns = namespace(controller, 2);
    let before = bench.function.doorbell_writes();
    for i in 0..blocks {
        qpair.write_blocking(&ns, i, filled(controller, 4096, i as usize)).unwrap();
    }
    for i in 0..blocks {
        let read = qpair.read_blocking(&ns, i, controller.alloc(4096).unwrap()).unwrap();
        assert!(*read == *filled(controller, 4096, i as usize), "block {i}");
    }
    bench.function.doorbell_writes() - before
}

#[test]
fn shadow_doorbells_spare_registers() {
    let bench = with(PciOptions::new().shadow_doorbells(true));
    let mut options = ControllerOptions::default();
    options.num_io_queues = 2;
    let controller = bench.driver.connect(&trid(), &options).unwrap();
    assert!(bench.function.has_shadow_doorbells());
    for _ in 0..3 {
        // Queues of the same identifiers again and again.
        let mut qpairs = [(); 2].map(|()| controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap());
        for qpair in &mut qpairs {
            let written = work(&bench, qpair, &controller, 100);
            assert!(written < 300, "{written} writes for 200 commands and as many completions");
        }
    }
    controller.detach().unwrap();
    options.shadow_doorbells = false;
    let controller = bench.driver.connect(&trid(), &options).unwrap();
    assert!(!bench.function.has_shadow_doorbells());
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    // One for each command; the last completion has no command to be acknowledged with.
    assert!(work(&bench, &mut qpair, &controller, 100) >= 399);
}

#[test]
fn submission_queues_are_put_into_controller_memory_as_long_as_there_is_room() {
    for legacy in [false, true] {
        // Room for two queues of 64 entries.
        let pci = PciOptions::new().controller_memory(8 << 10).legacy_controller_memory(legacy);
        let bench = with(pci);
        let mut options = ControllerOptions::default();
        (options.use_cmb_sqs, options.io_queue_size) = (true, 64);
        let controller = bench.driver.connect(&trid(), &options).unwrap();
        for _ in 0..3 {
            let mut qpairs = [(); 3].map(|()| controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap());
            assert_eq!(bench.function.queues_in_controller_memory(), 2);
            for qpair in &mut qpairs {
                work(&bench, qpair, &controller, 100);
            }
            drop(qpairs);
            assert_eq!(bench.function.queues_in_controller_memory(), 0);
        }
        controller.detach().unwrap();
        // Not unless it is asked for; and again after another host had it.
        for wanted in [false, true] {
            options.use_cmb_sqs = wanted;
            let controller = bench.driver.connect(&trid(), &options).unwrap();
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
            assert_eq!(bench.function.queues_in_controller_memory(), usize::from(wanted));
            work(&bench, &mut qpair, &controller, 10);
        }
    }
}

#[test]
fn memory_pages_of_the_controllers_choice() {
    for (mpsmin, mpsmax) in [(0, 4), (2, 2), (4, 4), (4, 8)] {
        let bench = with(PciOptions::new().memory_pages(mpsmin, mpsmax).shadow_doorbells(true));
        let controller = attach(&bench);
        assert_eq!(controller.max_transfer(), 1 << 20, "MDTS");
        let ns = namespace(&controller, 1);
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        // One piece and many, of lengths that have nothing to do with the page.
        for lens in [vec![3 << 20], vec![512, 4096, 65536, 512, 8192 + 1024, 131072], vec![512; 40]] {
            let pieces: Vec<DmaBuf> = lens.iter().map(|&len| filled(&controller, len, len)).collect();
            let expected: Vec<u8> = pieces.iter().flat_map(|p| p.to_vec()).collect();
            qpair.execute(nvmf_core::IoCommand::write(&ns, 7, pieces)).unwrap();
            let pieces: Vec<DmaBuf> = lens.iter().map(|&len| controller.alloc(len).unwrap()).collect();
            let (_, back) = qpair.execute(nvmf_core::IoCommand::read(&ns, 7, pieces)).unwrap();
            let back: Vec<u8> = back.bufs().iter().flat_map(|b| b.to_vec()).collect();
            assert!(back == expected, "MPSMIN {mpsmin}");
        }
        drop(qpair);
        assert_eq!(controller.pool().stats().outstanding, 0);
    }
}

#[test]
fn memory_pages_beyond_reason_are_refused() {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Disk::memory(1 << 20));
    let loopback = Loopback::builder().subsystem(subsystem).mdts(0).build().unwrap();
    for (mpsmin, works) in [(9, true), (10, false), (15, false)] {
        let function = loopback.pci_function_with(NQN, &PciOptions::new().memory_pages(mpsmin, 15)).unwrap();
        let transport =
            PcieTransport::with_devices(TransportType::Pcie, move |_| Ok(Box::new(function.open()?)));
        let driver = Driver::builder().transport(transport).build();
        match driver.connect(&trid(), &ControllerOptions::default()) {
            Ok(_) => assert!(works),
            Err(error) => {
                assert!(!works && matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
                assert!(error.to_string().contains("CAP.MPSMIN"), "{error}");
            }
        }
    }
}

#[test]
fn the_same_over_vfio_user() {
    let bench = with(PciOptions::new().shadow_doorbells(true).controller_memory(64 << 10).memory_pages(4, 4));
    let path = std::env::temp_dir().join(format!("nvmf-offers-{}", std::process::id()));
    let server = VfioUserServer::listen(&bench.function, &path).unwrap();
    let path = server.path().display().to_string();
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
        Ok(Box::new(VfioUserDevice::open(&path, &VfioUserOptions::default())?))
    });
    let driver = Driver::builder().transport(transport).build();
    let mut options = ControllerOptions::default();
    options.use_cmb_sqs = true;
    let controller = driver.connect(&trid(), &options).unwrap();
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    assert!(bench.function.has_shadow_doorbells());
    assert_eq!(bench.function.queues_in_controller_memory(), 1);
    let written = work(&bench, &mut qpair, &controller, 100);
    assert!(written < 300, "{written}");
    drop(qpair);
    controller.detach().unwrap();
}

// --- shutdown and resets -----------------------------------------------------------------------------------------------

#[test]
fn detaching_waits_for_the_shutdown_and_not_for_ever() {
    let delay = Duration::from_millis(400);
    let bench = with(PciOptions::new().shutdown_delay(delay));
    let start = Instant::now();
    attach(&bench).detach().unwrap();
    assert!(start.elapsed() >= delay);

    let mut options = ControllerOptions::default();
    options.admin_timeout = Duration::from_millis(500);
    let controller = bench.driver.connect(&trid(), &options).unwrap();
    bench.function.never_shut_down(true);
    let start = Instant::now();
    let error = controller.detach().unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("CSTS.SHST"), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(500) && start.elapsed() < Duration::from_secs(10));
    // It is given up all the same.
    bench.function.never_shut_down(false);
    attach(&bench).detach().unwrap();
}

#[test]
fn a_subsystem_reset_leaves_the_controller_disabled_and_says_so() {
    let bench = bench("nssr");
    let device = Box::new(bench.function.open().unwrap());
    let mut controller = PcieController::new(device, &ControllerOptions::default()).unwrap();
    let registers = controller.registers().unwrap();
    assert_eq!(registers.read64(0).unwrap() >> 36 & 1, 1, "CAP.NSSRS");
    registers.write32(0x20, NSSR_RESET).unwrap();
    assert_eq!(registers.read32(0x1c).unwrap(), 1 << 4, "CSTS.NSSRO, and nothing else");
    drop(controller);

    // Under a driver that did not ask for it.
    let controller = attach(&bench);
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    bench.function.faults().push(Rule::new(Fault::Drop).io());
    qpair.read(&ns, 0, controller.alloc(512).unwrap(), 0).unwrap();
    bench.function.bar_write(0, 0x20, &NSSR_RESET.to_le_bytes()).unwrap();
    controller.fail();
    let mut ended = 0;
    while qpair.process_completions(0, |_| ended += 1).is_ok() {}
    assert_eq!(ended, 1);
    bench.function.faults().clear();
    drop((qpair, controller));
    let controller = attach(&bench);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    work(&bench, &mut qpair, &controller, 3);
}

// --- quirks ---------------------------------------------------------------------------------------------------------------

/// A function that remembers when its registers were read and written: offset, value if it was a write, time.
struct Watched {
    device: EmulatedDevice,
    log: Log,
}

type Log = Arc<Mutex<Vec<(u64, Option<u32>, Instant)>>>;

struct WatchedBar(Bar0, Log);

impl BarAccess for WatchedBar {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read32(&self, offset: u64) -> nvmf_core::Result<u32> {
        self.1.lock().unwrap().push((offset, None, Instant::now()));
        self.0.read32(offset)
    }

    fn write32(&self, offset: u64, value: u32) -> nvmf_core::Result<()> {
        self.1.lock().unwrap().push((offset, Some(value), Instant::now()));
        self.0.write32(offset, value)
    }
}

impl PciDevice for Watched {
    fn identity(&self) -> PciIdentity {
        self.device.identity()
    }

    fn bar0(&mut self) -> nvmf_core::Result<Bar0> {
        Ok(Bar0::new(Arc::new(WatchedBar(self.device.bar0()?, Arc::clone(&self.log)))))
    }

    fn dma_map(&mut self, grant: &nvmf_core::dma::DmaGrant) -> nvmf_core::Result<u64> {
        self.device.dma_map(grant)
    }

    fn dma_unmap(&mut self, region: nvmf_core::dma::RegionId) -> nvmf_core::Result<()> {
        self.device.dma_unmap(region)
    }

    fn max_vectors(&self) -> u16 {
        self.device.max_vectors()
    }

    fn enable_interrupts(&mut self, vectors: u16) -> nvmf_core::Result<Vec<std::os::fd::OwnedFd>> {
        self.device.enable_interrupts(vectors)
    }

    fn reset(&mut self) -> nvmf_core::Result<()> {
        self.device.reset()
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> nvmf_core::Result<()> {
        self.device.read_config(offset, to)
    }

    fn write_config(&mut self, offset: u32, from: &[u8]) -> nvmf_core::Result<()> {
        self.device.write_config(offset, from)
    }

    fn isolate(&mut self) -> bool {
        self.device.isolate()
    }
}

/// A function of this vendor and device, and what happens to its registers.
fn watched(vendor: u16, device: u16) -> (Bench, Log) {
    let log = Log::default();
    let other = Arc::clone(&log);
    let pci = PciOptions::new().identifiers(vendor, device);
    let bench =
        bench_with("quirks", &pci, move |device| Box::new(Watched { device, log: Arc::clone(&other) }));
    (bench, log)
}

#[test]
fn status_is_not_read_too_early_after_some_controllers_are_disabled() {
    let (bench, log) = watched(0x144d, 0xa821);
    // As a driver before this one has left it: enabled, and with nothing good to say.
    bench.function.bar_write(0, 0x14, &0x0046_0001u32.to_le_bytes()).unwrap();
    let controller = attach(&bench);
    let pause = |log: &Log| {
        let mut log = log.lock().unwrap();
        let disabled =
            log.iter().position(|&(at, value, _)| at == 0x14 && value.is_some_and(|cc| cc & 1 == 0));
        let disabled = disabled.expect("CC.EN is cleared");
        let time = log[disabled].2;
        let next = log[disabled..].iter().find(|&&(at, value, _)| at == 0x1c && value.is_none()).map(|n| n.2);
        log.clear();
        next.expect("CSTS is read") - time
    };
    // The log's times are taken a moment after the accesses.
    let (first, limit) = (pause(&log), Duration::from_millis(2490));
    assert!(first >= limit, "{first:?} before initialisation");
    // And when it is given up.
    let pool = controller.pool().clone();
    drop((controller, bench.driver));
    assert!(pause(&log) >= limit);
    assert_eq!(pool.stats().outstanding, 0);

    // Others are not kept waiting.
    let (bench, _) = watched(0x144d, 0xa820);
    bench.function.bar_write(0, 0x14, &0x0046_0001u32.to_le_bytes()).unwrap();
    let start = Instant::now();
    attach(&bench).detach().unwrap();
    assert!(start.elapsed() < Duration::from_millis(2400));
}

#[test]
fn some_controllers_are_given_time_before_anything_else() {
    let (bench, log) = watched(0x8086, 0x0a54);
    let controller = attach(&bench);
    let log = log.lock().unwrap();
    // What was read to make the controller, and then nothing for two seconds.
    let vs = log.iter().position(|&(at, ..)| at == 0x08).unwrap();
    assert!(log[vs].2 - log[vs - 1].2 >= Duration::from_millis(1990));
    drop(log);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    work(&bench, &mut qpair, &controller, 300);
}

#[test]
fn some_controllers_are_given_time_after_a_queue_is_made() {
    let (bench, _) = watched(0x80ee, 0x4e56);
    let controller = attach(&bench);
    for _ in 0..2 {
        let start = Instant::now();
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100));
        work(&bench, &mut qpair, &controller, 3);
    }
}

#[test]
fn some_controllers_get_a_longer_admin_queue() {
    let (bench, log) = watched(0x1414, 0xb111);
    let controller = attach(&bench);
    let aqa = log.lock().unwrap().iter().find(|&&(at, ..)| at == 0x24).and_then(|&(_, value, _)| value);
    assert_eq!(aqa, Some(255 | 255 << 16));
    // Around the end of it.
    for _ in 0..600 {
        controller.get_features(nvmf_core::spec::features::FeatureId::NUMBER_OF_QUEUES, 0, 0).unwrap();
    }
}
