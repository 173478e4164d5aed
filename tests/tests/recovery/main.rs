//! What becomes of I/O when a controller is reset, lost, or comes back.

mod events;
mod loss;
mod reset;
mod timeouts;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nvmf_core::{Controller, ControllerOptions, Driver, TransportId, TransportType};
use nvmf_loopback::{Loopback, Namespace, PciOptions, SubsystemBuilder, VfioUserServer};
use nvmf_tests::rig;
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserDevice, VfioUserOptions};

const NQN: &str = "nqn.2024-01.com.example:recovery";

fn subsystem() -> SubsystemBuilder {
    SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512).uuid([7; 16]))
}

fn options() -> ControllerOptions {
    let mut options = rig::options();
    options.num_io_queues = 4;
    options
}

/// Options that connect again, often.
fn persistent() -> ControllerOptions {
    let mut options = options();
    options.reconnect_delay = Some(Duration::from_millis(50));
    options.ctrl_loss_timeout = Some(Duration::from_secs(60));
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
        let (target, driver, trid) = rig::in_process(subsystem(), NQN)?;
        Ok(Self { target, driver, trid, _server: None })
    }

    fn tcp() -> Result<Self> {
        let (target, driver, trid) = rig::tcp(subsystem(), NQN)?;
        Ok(Self { target, driver, trid, _server: None })
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
