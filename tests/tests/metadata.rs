//! The suite of namespaces with metadata on every transport that needs nothing but this process.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use nvmf_core::{ControllerOptions, Driver, TransportType};
use nvmf_loopback::{Loopback, LoopbackError, MetadataPlace, PciOptions, TcpOptions, VfioUserServer};
use nvmf_tests::conformance::Fixture;
use nvmf_tests::metadata::subsystem;
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserDevice, VfioUserOptions};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:7a1e0c5e-7e57-4c0f-9a55-0123456789cd";

/// Hosts over fabrics see extended blocks whatever the target was asked for.
fn tcp_fixture(place: MetadataPlace, tcp: TcpOptions, options: ControllerOptions) -> Result<Fixture> {
    let target =
        Loopback::builder().subsystem(subsystem(NQN, place)).tcp(tcp).listen_tcp("127.0.0.1:0").build()?;
    Ok(Fixture {
        driver: Driver::builder().transport(TcpTransport::new()).build(),
        trid: target.tcp_trid(NQN)?.context("the target does not listen")?,
        discovery: None,
        options,
        target: Box::new(target),
    })
}

mod tcp {
    use super::*;

    fn fixture() -> Result<Fixture> {
        tcp_fixture(MetadataPlace::Extended, TcpOptions::new(), ControllerOptions::default())
    }

    nvmf_tests::metadata_suite!(fixture);
}

/// Digests, small PDUs, and a target that has metadata apart for others.
mod tcp_intricate {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let tcp = TcpOptions::new().max_h2c_data(4096).cpda(31).max_r2t_length(16 * 1024);
        let mut options = ControllerOptions::default();
        (options.header_digest, options.data_digest) = (true, true);
        tcp_fixture(MetadataPlace::Separate, tcp, options)
    }

    nvmf_tests::metadata_suite!(fixture);
}

mod in_process {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let target = Loopback::builder().subsystem(subsystem(NQN, MetadataPlace::Extended)).build()?;
        Ok(Fixture {
            driver: Driver::builder().transport(target.transport()).build(),
            trid: target.trid(NQN)?,
            discovery: None,
            options: ControllerOptions::default(),
            target: Box::new(target),
        })
    }

    nvmf_tests::metadata_suite!(fixture);
}

fn pcie_fixture(place: MetadataPlace) -> Result<Fixture> {
    let target = Arc::new(Loopback::builder().subsystem(subsystem(NQN, place)).build()?);
    let of_transport = Arc::clone(&target);
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |trid| {
        let function = of_transport.pci_function_with(NQN, &PciOptions::new());
        let function =
            function.map_err(|error| nvmf_core::Error::disconnected(error.to_string()).peer(trid))?;
        Ok(Box::new(function.open()?) as Box<dyn PciDevice>)
    });
    Ok(Fixture {
        driver: Driver::builder().transport(transport).build(),
        trid: "trtype:PCIe traddr:0000:01:00.0".parse()?,
        discovery: None,
        options: ControllerOptions::default(),
        target: Box::new(target),
    })
}

mod pcie_separate {
    use super::*;

    fn fixture() -> Result<Fixture> {
        pcie_fixture(MetadataPlace::Separate)
    }

    nvmf_tests::metadata_suite!(fixture);
}

mod pcie_extended {
    use super::*;

    fn fixture() -> Result<Fixture> {
        pcie_fixture(MetadataPlace::Extended)
    }

    nvmf_tests::metadata_suite!(fixture);
}

fn vfio_user_fixture(place: MetadataPlace) -> Result<Fixture> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let target = Arc::new(Loopback::builder().subsystem(subsystem(NQN, place)).build()?);
    let of_transport = Arc::clone(&target);
    let servers = Arc::new(Mutex::new(Vec::new()));
    let of_fixture = Arc::clone(&servers);
    let transport = PcieTransport::with_devices(TransportType::VfioUser, move |trid| {
        let fail = |error: LoopbackError| nvmf_core::Error::disconnected(error.to_string()).peer(trid);
        let function = of_transport.pci_function(NQN).map_err(fail)?;
        let name = format!("nvmf-metadata-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let server = VfioUserServer::listen(&function, std::env::temp_dir().join(name)).map_err(fail)?;
        let path = server.path().display().to_string();
        servers.lock().unwrap().push(server);
        Ok(Box::new(VfioUserDevice::open(&path, &VfioUserOptions::default())?) as Box<dyn PciDevice>)
    });
    Ok(Fixture {
        driver: Driver::builder().transport(transport).build(),
        trid: "trtype:vfiouser traddr:/nvmf".parse()?,
        discovery: None,
        options: ControllerOptions::default(),
        target: Box::new((of_fixture, target)),
    })
}

mod vfio_user_separate {
    use super::*;

    fn fixture() -> Result<Fixture> {
        vfio_user_fixture(MetadataPlace::Separate)
    }

    nvmf_tests::metadata_suite!(fixture);
}

mod vfio_user_extended {
    use super::*;

    fn fixture() -> Result<Fixture> {
        vfio_user_fixture(MetadataPlace::Extended)
    }

    nvmf_tests::metadata_suite!(fixture);
}
