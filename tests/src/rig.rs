//! What tests of the initiator against a target of this process have in common.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::{ControllerOptions, Driver, TransportId};
use nvmf_loopback::{Loopback, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

/// Long enough for a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until the condition holds.
///
/// # Errors
/// When it does not within [`SOON`], and those of the condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Deadlines that a busy machine does not miss.
#[must_use]
pub fn options() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.connect_timeout = Duration::from_secs(20);
    options
}

/// A target, a driver for it, and the address of its subsystem, whose name is `nqn`; without a transport in between.
///
/// # Errors
/// When there is no such target.
pub fn in_process(subsystem: SubsystemBuilder, nqn: &str) -> Result<(Loopback, Driver, TransportId)> {
    let target = Loopback::builder().subsystem(subsystem).build()?;
    let driver = Driver::builder().transport(target.transport()).build();
    let trid = target.trid(nqn)?;
    Ok((target, driver, trid))
}

/// The same over TCP.
///
/// # Errors
/// When there is no such target.
pub fn tcp(subsystem: SubsystemBuilder, nqn: &str) -> Result<(Loopback, Driver, TransportId)> {
    let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?;
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = target.tcp_trid(nqn)?.context("no listener")?;
    Ok((target, driver, trid))
}
