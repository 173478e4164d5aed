//! The conformance suite on every transport that needs nothing but this process.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use nvmf_core::{ControllerOptions, Driver, Nqn, TransportType};
use nvmf_loopback::{
    Loopback, LoopbackError, Namespace, PciOptions, RdmaFrontOptions, SubsystemBuilder, TcpOptions,
    VfioUserServer,
};
use nvmf_tests::conformance::Fixture;
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserDevice, VfioUserOptions};
use nvmf_transport_rdma::sim::DeviceLimits;
use nvmf_transport_rdma::sim::Sim;
use nvmf_transport_rdma::{RdmaOptions, RdmaTransport};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:7a1e0c5e-7e57-4c0f-9a55-0123456789ab";

fn subsystem() -> SubsystemBuilder {
    SubsystemBuilder::new(NQN)
        .namespace(Namespace::memory(32 << 20).block_size(512))
        .namespace(Namespace::memory(32 << 20).block_size(4096))
}

fn tcp_fixture(tcp: TcpOptions, options: ControllerOptions) -> Result<Fixture> {
    let target = Loopback::builder().subsystem(subsystem()).tcp(tcp).listen_tcp("127.0.0.1:0").build()?;
    Ok(Fixture {
        driver: Driver::builder().transport(TcpTransport::new()).build(),
        trid: target.tcp_trid(NQN)?.context("the target does not listen")?,
        discovery: target.tcp_trid(Nqn::DISCOVERY)?,
        options,
        target: Box::new(target),
    })
}

mod in_process {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        Ok(Fixture {
            driver: Driver::builder().transport(target.transport()).build(),
            trid: target.trid(NQN)?,
            discovery: Some(target.discovery_trid()),
            options: ControllerOptions::default(),
            target: Box::new(target),
        })
    }

    nvmf_tests::suite!(fixture);
}

mod tcp {
    use super::*;

    fn fixture() -> Result<Fixture> {
        tcp_fixture(TcpOptions::new(), ControllerOptions::default())
    }

    nvmf_tests::suite!(fixture);
}

/// The target looks at its busy connections instead of sleeping.
mod tcp_busy_target {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let tcp = TcpOptions::new().threads(1).busy_poll(std::time::Duration::from_millis(5));
        tcp_fixture(tcp, ControllerOptions::default())
    }

    nvmf_tests::suite!(fixture);
}

/// Digests, alignment, small PDUs, several R2Ts, responses instead of SUCCESS.
mod tcp_intricate {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let tcp = TcpOptions::new()
            .max_h2c_data(4096)
            .cpda(31)
            .c2h_success(false)
            .max_r2t_length(16 * 1024)
            .max_c2h_data(12 * 1024);
        let mut options = ControllerOptions::default();
        (options.header_digest, options.data_digest) = (true, true);
        options.max_r2t = 4;
        tcp_fixture(tcp, options)
    }

    nvmf_tests::suite!(fixture);
}

/// Small queues, and a program that looks after the admin queue itself.
mod tcp_polled {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let mut options = ControllerOptions::default();
        options.background_admin = false;
        options.keep_alive_timeout = std::time::Duration::ZERO;
        options.io_queue_size = 8;
        options.io_queue_requests = 512;
        options.cid_generations = false;
        options.disable_sq_flow_control = false;
        tcp_fixture(TcpOptions::new(), options)
    }

    nvmf_tests::suite!(fixture);
}

fn rdma_fixture(sim: Sim, rdma: RdmaFrontOptions, options: ControllerOptions) -> Result<Fixture> {
    rdma_fixture_with(sim, rdma, RdmaOptions::default().rnr_retry_count(0), options)
}

fn rdma_fixture_with(
    sim: Sim,
    rdma: RdmaFrontOptions,
    host: RdmaOptions,
    options: ControllerOptions,
) -> Result<Fixture> {
    let target = Loopback::builder().subsystem(subsystem()).rdma(rdma).listen_rdma(&sim, "192.0.2.1:4420");
    let target = target.build()?;
    let transport = RdmaTransport::with_provider(sim).with_options(host);
    Ok(Fixture {
        driver: Driver::builder().transport(transport).build(),
        trid: target.rdma_trid(NQN)?.context("the target does not listen")?,
        discovery: target.rdma_trid(Nqn::DISCOVERY)?,
        options,
        target: Box::new(target),
    })
}

/// Over the simulated fabric, where a message that finds no receive posted ends the connection.
mod rdma_sim {
    use super::*;

    fn fixture() -> Result<Fixture> {
        rdma_fixture(Sim::new(), RdmaFrontOptions::new(), ControllerOptions::default())
    }

    nvmf_tests::suite!(fixture);
}

/// With a key for each command's data, which the controller ends.
mod rdma_sim_windows {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let host = RdmaOptions::default().rnr_retry_count(0).memory_windows(true);
        rdma_fixture_with(Sim::new(), RdmaFrontOptions::new(), host, ControllerOptions::default())
    }

    nvmf_tests::suite!(fixture);
}

/// A device with little of everything, a controller that takes eight commands at once and data in one piece, and a program
/// that looks after the admin queue itself.
mod rdma_sim_narrow {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let sim = Sim::with_limits(DeviceLimits {
            max_registration: 16 << 20,
            max_work_requests: 24,
            max_elements: 2,
            max_completions: 48,
            max_reads: 1,
            max_shared_receives: 16_384,
            windows: true,
        });
        let mut options = ControllerOptions::default();
        options.background_admin = false;
        options.keep_alive_timeout = std::time::Duration::ZERO;
        options.io_queue_requests = 512;
        options.cid_generations = false;
        options.disable_sq_flow_control = false;
        rdma_fixture(sim, RdmaFrontOptions::new().max_receives(8).descriptors(1), options)
    }

    nvmf_tests::suite!(fixture);
}

/// An emulated PCI function per attachment.
fn pcie_fixture(pci: PciOptions, options: ControllerOptions) -> Result<Fixture> {
    let target = Arc::new(Loopback::builder().subsystem(subsystem()).build()?);
    let of_transport = Arc::clone(&target);
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |trid| {
        let function = of_transport.pci_function_with(NQN, &pci);
        let function =
            function.map_err(|error| nvmf_core::Error::disconnected(error.to_string()).peer(trid))?;
        Ok(Box::new(function.open()?) as Box<dyn PciDevice>)
    });
    Ok(Fixture {
        driver: Driver::builder().transport(transport).build(),
        trid: "trtype:PCIe traddr:0000:01:00.0".parse()?,
        discovery: None,
        options,
        target: Box::new(target),
    })
}

mod pcie_emulated {
    use super::*;

    fn fixture() -> Result<Fixture> {
        pcie_fixture(PciOptions::new(), ControllerOptions::default())
    }

    nvmf_tests::suite!(fixture);
}

/// Without interrupts, with doorbells apart, small queues, and a program that looks after the admin queue itself.
mod pcie_emulated_polled {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let mut options = ControllerOptions::default();
        (options.background_admin, options.enable_interrupts) = (false, false);
        options.io_queue_size = 8;
        options.io_queue_requests = 512;
        options.cid_generations = false;
        pcie_fixture(PciOptions::new().doorbell_stride(3), options)
    }

    nvmf_tests::suite!(fixture);
}

/// Two functions that are taken again and again, and take their time to become ready.
mod pcie_emulated_again {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let pci = PciOptions::new().ready_delay(std::time::Duration::from_millis(20));
        let pci = pci.busy_poll(std::time::Duration::ZERO);
        let functions = [target.pci_function_with(NQN, &pci)?, target.pci_function_with(NQN, &pci)?];
        let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
            // Whichever is free.
            let device = functions[0].open().or_else(|_| functions[1].open())?;
            Ok(Box::new(device) as Box<dyn PciDevice>)
        });
        Ok(Fixture {
            driver: Driver::builder().transport(transport).build(),
            trid: "trtype:PCIe traddr:0000:01:00.0".parse()?,
            discovery: None,
            options: ControllerOptions::default(),
            target: Box::new(target),
        })
    }

    nvmf_tests::suite!(fixture);
}

/// Doorbells in memory.
mod pcie_emulated_shadow_doorbells {
    use super::*;

    fn fixture() -> Result<Fixture> {
        pcie_fixture(
            PciOptions::new().shadow_doorbells(true).doorbell_stride(1),
            ControllerOptions::default(),
        )
    }

    nvmf_tests::suite!(fixture);
}

/// Submission queues in the controller's memory, as long as there is room, and doorbells in the host's.
mod pcie_emulated_controller_memory {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let mut options = ControllerOptions::default();
        options.use_cmb_sqs = true;
        let pci = PciOptions::new().controller_memory(64 << 10).shadow_doorbells(true);
        pcie_fixture(pci.busy_poll(std::time::Duration::ZERO), options)
    }

    nvmf_tests::suite!(fixture);
}

/// The same in an older controller whose memory pages are 64 KiB.
mod pcie_emulated_large_pages {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let mut options = ControllerOptions::default();
        options.use_cmb_sqs = true;
        let pci = PciOptions::new().memory_pages(4, 6);
        pcie_fixture(pci.controller_memory(1 << 20).legacy_controller_memory(true), options)
    }

    nvmf_tests::suite!(fixture);
}

/// An emulated PCI function per attachment, each behind a vfio-user socket of its own.
fn vfio_user_fixture(pci: PciOptions, options: ControllerOptions) -> Result<Fixture> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let target = Arc::new(Loopback::builder().subsystem(subsystem()).build()?);
    let of_transport = Arc::clone(&target);
    let servers = Arc::new(Mutex::new(Vec::new()));
    let of_fixture = Arc::clone(&servers);
    let transport = PcieTransport::with_devices(TransportType::VfioUser, move |trid| {
        let fail = |error: LoopbackError| nvmf_core::Error::disconnected(error.to_string()).peer(trid);
        let function = of_transport.pci_function_with(NQN, &pci).map_err(fail)?;
        let name =
            format!("nvmf-conformance-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let server = VfioUserServer::listen(&function, std::env::temp_dir().join(name)).map_err(fail)?;
        let path = server.path().display().to_string();
        servers.lock().unwrap().push(server);
        Ok(Box::new(VfioUserDevice::open(&path, &VfioUserOptions::default())?) as Box<dyn PciDevice>)
    });
    Ok(Fixture {
        driver: Driver::builder().transport(transport).build(),
        trid: "trtype:vfiouser traddr:/nvmf".parse()?,
        discovery: None,
        options,
        target: Box::new((of_fixture, target)),
    })
}

mod vfio_user {
    use super::*;

    fn fixture() -> Result<Fixture> {
        vfio_user_fixture(PciOptions::new(), ControllerOptions::default())
    }

    nvmf_tests::suite!(fixture);
}

/// Without interrupts, and a program that looks after the admin queue itself.
mod vfio_user_polled {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let mut options = ControllerOptions::default();
        (options.background_admin, options.enable_interrupts) = (false, false);
        options.io_queue_size = 8;
        options.io_queue_requests = 512;
        vfio_user_fixture(PciOptions::new(), options)
    }

    nvmf_tests::suite!(fixture);
}

/// Doorbells in the client's memory, submission queues in the server's, pages of 16 KiB.
mod vfio_user_shadow_doorbells {
    use super::*;

    fn fixture() -> Result<Fixture> {
        let mut options = ControllerOptions::default();
        options.use_cmb_sqs = true;
        let pci = PciOptions::new().shadow_doorbells(true).controller_memory(256 << 10).memory_pages(2, 4);
        vfio_user_fixture(pci, options)
    }

    nvmf_tests::suite!(fixture);
}
