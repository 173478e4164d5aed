//! Controllers that fail while they are attached, on their admin queue, or all at once; and servers of functions that die.

use std::sync::atomic::AtomicBool;

use nvmf_core::ErrorKind;
use nvmf_loopback::VfioUserServer;
use nvmf_transport_pcie::{Bar0, BarAccess, PciIdentity, VfioUserDevice, VfioUserOptions};

use super::*;

/// Options of somebody who does not wait long.
fn hasty() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.admin_timeout = Duration::from_millis(500);
    options
}

#[test]
fn a_fatal_status_while_it_is_enabled_says_so() {
    let bench = bench("fatal-enable");
    bench.function.fatal_when_enabled(true);
    let error = bench.driver.connect(&trid(), &ControllerOptions::default()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ControllerFatal), "{error}");
    assert!(error.to_string().contains("CSTS.RDY=1"), "{error}");
    let mut cc = [0; 4];
    bench.function.bar_read(0, 0x14, &mut cc).unwrap();
    assert_eq!(cc[0] & 1, 0, "CC.EN");
    bench.function.fatal_when_enabled(false);
    attach(&bench).detach().unwrap();
}

#[test]
fn a_fatal_status_at_a_command_fails_everything_once_and_gives_all_memory_back() {
    let bench = bench("fatal-io");
    let controller = attach(&bench);
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    bench.function.faults().push(Rule::new(Fault::FatalStatus).io().after(5));
    for i in 0..40 {
        qpair.read(&ns, i, controller.alloc(512).unwrap(), i).unwrap();
    }
    let (start, mut ended) = (Instant::now(), Vec::new());
    let error = loop {
        match qpair.process_completions(0, |done| ended.push((done.user_data, done.result, done.buf.len()))) {
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(10), "not noticed"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("CSTS.CFS") || error.to_string().contains("disabled"), "{error}");
    ended.sort_by_key(|(user_data, ..)| *user_data);
    assert!(ended.iter().map(|(user_data, ..)| *user_data).eq(0..40), "each once");
    for (user_data, result, len) in ended {
        let expected = if user_data < 5 { Ok(0) } else { Err(CommandError::Disconnected) };
        assert_eq!((result, len), (expected, 512), "{user_data}");
    }
    drop(qpair);
    assert_eq!(controller.pool().stats().outstanding, 0);
}

#[test]
fn a_lie_on_the_admin_queue_ends_the_controller_whenever_it_comes() {
    for nth in [0, 1, 3, 6] {
        let bench = bench("admin-liar");
        bench.function.faults().push(Rule::new(Fault::WrongCid).admin().after(nth));
        let error = bench.driver.connect(&trid(), &hasty()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{nth}: {error}");
        assert!(error.to_string().contains("command identifier"), "{error}");
        attach(&bench).detach().unwrap();
    }
    let bench = bench("admin-liar-later");
    let controller = attach(&bench);
    bench.function.faults().push(Rule::new(Fault::WrongCid).admin());
    let error =
        controller.get_features(nvmf_core::spec::features::FeatureId::NUMBER_OF_QUEUES, 0, 0).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
    assert!(controller.is_failed());
    assert_eq!(controller.pool().stats().outstanding, 0);
}

#[test]
fn admin_commands_that_are_lost_or_not_seen_end_at_their_deadline() {
    for fault in [Fault::Drop, Fault::StuckPhase] {
        let bench = bench("admin-silent");
        bench.function.faults().push(Rule::new(fault).admin().after(1));
        let error = bench.driver.connect(&trid(), &hasty()).unwrap_err();
        assert!(error.is_timeout(), "{error}");
        attach(&bench).detach().unwrap();
    }
}

// --- nobody there -----------------------------------------------------------------------------------------------------------

/// A function whose registers read as all ones while `gone` is set.
struct Vanishing(EmulatedDevice, Arc<AtomicBool>);

struct VanishingBar(Bar0, Arc<AtomicBool>);

impl BarAccess for VanishingBar {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read32(&self, offset: u64) -> nvmf_core::Result<u32> {
        if self.1.load(Ordering::SeqCst) { Ok(u32::MAX) } else { self.0.read32(offset) }
    }

    fn write32(&self, offset: u64, value: u32) -> nvmf_core::Result<()> {
        if self.1.load(Ordering::SeqCst) { Ok(()) } else { self.0.write32(offset, value) }
    }
}

impl PciDevice for Vanishing {
    fn identity(&self) -> PciIdentity {
        self.0.identity()
    }

    fn bar0(&mut self) -> nvmf_core::Result<Bar0> {
        Ok(Bar0::new(Arc::new(VanishingBar(self.0.bar0()?, Arc::clone(&self.1)))))
    }

    fn dma_map(&mut self, grant: &nvmf_core::dma::DmaGrant) -> nvmf_core::Result<u64> {
        self.0.dma_map(grant)
    }

    fn dma_unmap(&mut self, region: nvmf_core::dma::RegionId) -> nvmf_core::Result<()> {
        self.0.dma_unmap(region)
    }

    fn max_vectors(&self) -> u16 {
        0
    }

    fn enable_interrupts(&mut self, vectors: u16) -> nvmf_core::Result<Vec<std::os::fd::OwnedFd>> {
        self.0.enable_interrupts(vectors)
    }

    fn reset(&mut self) -> nvmf_core::Result<()> {
        self.0.reset()
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> nvmf_core::Result<()> {
        self.0.read_config(offset, to)
    }

    fn write_config(&mut self, offset: u32, from: &[u8]) -> nvmf_core::Result<()> {
        self.0.write_config(offset, from)
    }

    fn isolate(&mut self) -> bool {
        self.0.isolate()
    }
}

#[test]
fn registers_of_all_ones_are_nobody() {
    let gone = Arc::new(AtomicBool::new(true));
    let other = Arc::clone(&gone);
    let bench =
        bench_with("ones", &PciOptions::new(), move |device| Box::new(Vanishing(device, Arc::clone(&other))));
    let error = bench.driver.connect(&trid(), &hasty()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Disconnected(_)), "{error}");
    assert!(error.to_string().contains("all ones"), "{error}");

    gone.store(false, Ordering::SeqCst);
    let controller = attach(&bench);
    let ns = namespace(&controller, 1);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    qpair.read_blocking(&ns, 0, controller.alloc(512).unwrap()).unwrap();
    gone.store(true, Ordering::SeqCst);
    let error = qpair.read_blocking(&ns, 0, controller.alloc(512).unwrap()).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    drop(qpair);
    assert_eq!(controller.pool().stats().outstanding, 0, "it was cut off from memory");
    let error = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}

// --- servers that die -----------------------------------------------------------------------------------------------------------

fn served(bench: &Bench, name: &str) -> (VfioUserServer, Driver) {
    let path = std::env::temp_dir().join(format!("nvmf-faults-{name}-{}", std::process::id()));
    let server = VfioUserServer::listen(&bench.function, &path).unwrap();
    let path = server.path().display().to_string();
    let options = VfioUserOptions { timeout: Duration::from_secs(2), ..VfioUserOptions::default() };
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
        Ok(Box::new(VfioUserDevice::open(&path, &options)?))
    });
    (server, Driver::builder().transport(transport).build())
}

#[test]
fn a_server_that_dies_under_load_fails_everything_once_and_its_memory_is_not_used_again() {
    let bench = bench("server-load");
    let (server, driver) = served(&bench, "load");
    let controller = driver.connect(&trid(), &hasty()).unwrap();
    let ns = namespace(&controller, 2);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    qpair.write_blocking(&ns, 0, filled(&controller, 4096, 1)).unwrap();
    bench.function.faults().push(Rule::new(Fault::Drop).io().always());
    let place = |buf: &DmaBuf| buf.extent().map(|extent| (extent.region().id(), extent.offset()));
    let mut in_flight = Vec::new();
    for i in 0..100 {
        let buf = controller.alloc(4096).unwrap();
        in_flight.push(place(&buf));
        qpair.read(&ns, i, buf, i).unwrap();
    }
    let pool = controller.pool().clone();
    let killer = std::thread::spawn(move || drop(server));
    let (start, mut ended) = (Instant::now(), Vec::new());
    let error = loop {
        match qpair.process_completions(0, |done| ended.push((done.user_data, done.result, done.buf.len()))) {
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(20), "not noticed"),
            Err(error) => break error,
        }
    };
    killer.join().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Disconnected(_)), "{error}");
    ended.sort_by_key(|(user_data, ..)| *user_data);
    assert!(ended.iter().map(|(user_data, ..)| *user_data).eq(0..100), "each once");
    // Nobody can say what a process that is gone without a word still has mapped.
    assert!(ended.iter().all(|&(_, result, len)| result == Err(CommandError::Disconnected) && len == 0));
    drop((qpair, controller));
    let all: Vec<DmaBuf> = (0..1200).map(|_| pool.alloc(4096).unwrap()).collect();
    assert!(!all.iter().any(|buf| in_flight.contains(&place(buf))), "given up, not free");
}

#[test]
fn a_server_that_dies_while_a_controller_is_attached() {
    // Without a doorbell answered, wherever it is: identified, enabled, or not even that.
    for nth in [0, 2, 5] {
        let bench = bench("server-attach");
        let (server, driver) = served(&bench, &format!("attach{nth}"));
        bench.function.faults().push(Rule::new(Fault::Delay(Duration::from_secs(30))).admin().after(nth));
        let mut options = hasty();
        options.admin_timeout = Duration::from_secs(20);
        let mut server = Some(server);
        let start = Instant::now();
        let result = Arc::new(Mutex::new(None));
        let told = Arc::clone(&result);
        let mut context = driver
            .connect_async(&trid(), &options, move |outcome| *told.lock().unwrap() = Some(outcome.map(drop)))
            .unwrap();
        while !context_done(&mut context) {
            if start.elapsed() > Duration::from_millis(300) {
                server = None;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "not noticed");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(server);
        let error = result.lock().unwrap().take().unwrap().unwrap_err();
        assert!(!error.is_timeout(), "{nth}: {error}");
    }
}

/// One step; an error is for the callback.
fn context_done(context: &mut nvmf_core::ProbeContext<'_>) -> bool {
    context.poll().unwrap_or(true)
}
