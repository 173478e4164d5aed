//! The conformance suite on every transport that needs nothing but this process.

use anyhow::{Context, Result};
use nvmf_core::{ControllerOptions, Driver, Nqn};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder, TcpOptions};
use nvmf_tests::conformance::Fixture;
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
        options.disable_sq_flow_control = true;
        tcp_fixture(TcpOptions::new(), options)
    }

    nvmf_tests::suite!(fixture);
}
