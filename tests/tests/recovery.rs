//! What becomes of I/O when a controller is reset, lost, or comes back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::{
    Controller, ControllerOptions, ControllerState, Driver, IoQpairOptions, TransportId, TransportType,
};
use nvmf_loopback::{Loopback, Namespace, PciOptions, SubsystemBuilder, VfioUserServer};
use nvmf_tests::load::Load;
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserDevice, VfioUserOptions};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2024-01.com.example:recovery";
/// Long enough for a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

fn subsystem() -> SubsystemBuilder {
    SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512).uuid([7; 16]))
}

/// Deadlines that a busy machine does not miss.
fn options() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.num_io_queues = 4;
    options.connect_timeout = Duration::from_secs(20);
    options
}

/// A target and a way to it.
struct Rig {
    target: Loopback,
    driver: Driver,
    trid: TransportId,
    _server: Option<VfioUserServer>,
}

impl Rig {
    fn in_process() -> Result<Self> {
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let driver = Driver::builder().transport(target.transport()).build();
        Ok(Self { driver, trid: target.trid(NQN)?, target, _server: None })
    }

    fn tcp() -> Result<Self> {
        let target = Loopback::builder().subsystem(subsystem()).listen_tcp("127.0.0.1:0").build()?;
        let driver = Driver::builder().transport(TcpTransport::new()).build();
        let trid = target.tcp_trid(NQN)?.context("no listener")?;
        Ok(Self { driver, trid, target, _server: None })
    }

    fn pcie() -> Result<Self> {
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let pci = PciOptions::new().ready_delay(Duration::from_millis(5));
        let function = target.pci_function_with(NQN, &pci)?;
        let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
            Ok(Box::new(function.open()?) as Box<dyn PciDevice>)
        });
        let driver = Driver::builder().transport(transport).build();
        Ok(Self { driver, trid: "trtype:PCIe traddr:0000:01:00.0".parse()?, target, _server: None })
    }

    fn vfio_user() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let function = target.pci_function(NQN)?;
        let name = format!("nvmf-recovery-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let server = VfioUserServer::listen(&function, std::env::temp_dir().join(name))?;
        let path = server.path().display().to_string();
        let transport = PcieTransport::with_devices(TransportType::VfioUser, move |_| {
            Ok(Box::new(VfioUserDevice::open(&path, &VfioUserOptions::default())?) as Box<dyn PciDevice>)
        });
        let driver = Driver::builder().transport(transport).build();
        Ok(Self { driver, trid: "trtype:vfiouser traddr:/nvmf".parse()?, target, _server: Some(server) })
    }

    fn all() -> Result<Vec<Self>> {
        Ok(vec![Self::in_process()?, Self::tcp()?, Self::pcie()?, Self::vfio_user()?])
    }

    fn fabrics() -> Result<Vec<Self>> {
        Ok(vec![Self::in_process()?, Self::tcp()?])
    }

    fn attach(&self, options: &ControllerOptions) -> Result<Controller> {
        Ok(self.driver.connect(&self.trid, options)?)
    }
}

/// Runs a test on every rig, and says on which it failed.
fn each(rigs: Result<Vec<Rig>>, test: impl Fn(&Rig) -> Result<()>) -> Result<()> {
    for rig in rigs? {
        test(&rig).with_context(|| format!("on {}", rig.trid))?;
    }
    Ok(())
}

fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

// --- reset -------------------------------------------------------------------------------------------------------------------

/// Resets again and again while I/O is done by another thread.
fn reset_under_load(rig: &Rig, options: &ControllerOptions, auto: bool) -> Result<()> {
    const RESETS: u32 = 4;
    let controller = rig.attach(options)?;
    let ns = controller.namespace(1).context("no namespace")?;
    let qpair_options = IoQpairOptions::default().auto_reconnect(auto);
    let finished = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let mut lanes = Vec::new();
        for lane in 0..2 {
            let (controller, ns, finished) = (&controller, &ns, &finished);
            let mut qpair = controller.alloc_io_qpair(&qpair_options)?;
            lanes.push(scope.spawn(move || {
                let mut load = Load::new(lane, lane * 4096, 2048, 24);
                let mut since = 0;
                // Some I/O between any two resets, and after the last.
                while finished.load(Ordering::Acquire) < RESETS || load.ends.succeeded < since + 100 {
                    if finished.load(Ordering::Acquire) < RESETS {
                        since = load.ends.succeeded;
                    }
                    load.submit(&mut qpair, ns)?;
                    if load.process(&mut qpair, ns)? {
                        ensure!(!auto, "told as lost: {:?}", qpair.failure());
                        eventually("reconnected", || Ok(controller.state() == ControllerState::Ready))?;
                        // Between two looks the next reset may have begun.
                        let _ = qpair.reconnect();
                    }
                }
                load.drain(&mut qpair, ns)?;
                if qpair.failure().is_some() {
                    qpair.reconnect()?;
                }
                load.verify(&mut qpair, ns)?;
                anyhow::Ok(load.ends)
            }));
        }
        for _ in 0..RESETS {
            std::thread::sleep(Duration::from_millis(40));
            controller.reset()?;
            ensure!(controller.state() == ControllerState::Ready && controller.failure().is_none());
            finished.fetch_add(1, Ordering::AcqRel);
        }
        let mut lost = 0;
        for lane in lanes {
            let ends = lane.join().unwrap()?;
            ensure!(ends.succeeded > 100, "{ends:?}");
            ensure!(!auto || ends.refused == 0, "{ends:?}");
            lost += ends.disconnected;
        }
        ensure!(lost > 0, "no reset met a command");
        anyhow::Ok(())
    })?;
    ensure!(controller.pool().stats().outstanding == 0, "{:?}", controller.pool().stats());
    controller.detach()?;
    Ok(())
}

#[test]
fn every_command_ends_once_when_the_controller_is_reset() -> Result<()> {
    each(Rig::all(), |rig| reset_under_load(rig, &options(), true))
}

#[test]
fn queue_pairs_are_reconnected_by_the_program_if_it_wants_to() -> Result<()> {
    each(Rig::all(), |rig| reset_under_load(rig, &options(), false))
}
