//! Reading the log of one discovery controller.

use std::time::Duration;

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_core::{ControllerOptions, Driver, Error, Nqn, Result, TransportId};

/// What a discovery controller said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Discovery {
    /// The log: one state of it, never a mixture of two.
    pub log: DiscoveryLog,
    /// The NQN the discovery subsystem reports in Identify Controller. It may be a unique one (NVMe Base 2.1 §3.1.3.3)
    /// though the well-known one was connected to; a long-lived connection should then use the unique one, by which
    /// the subsystem can be told from others.
    pub subnqn: String,
}

impl Discovery {
    /// Whether the discovery subsystem has an NQN of its own.
    #[must_use]
    pub fn has_unique_nqn(&self) -> bool {
        self.subnqn != Nqn::DISCOVERY
    }
}

/// Attaches the discovery controller at `trid`, reads its log, and detaches. Waits, but every step has a deadline from
/// `options`.
///
/// A `trid` without a subsystem NQN means the well-known discovery NQN. The host is that of the transport identifier,
/// of the options, or of this machine (`/etc/nvme/hostnqn`, `/etc/nvme/hostid`), in this order. No keep alive is
/// asked for: the association lasts for one reading.
///
/// The log is read through the association that was asked for even if the subsystem reports a unique NQN: both names
/// lead to the same log, and a second association could only fail.
///
/// # Errors
///
/// When the controller cannot be attached, is no discovery controller, or its log cannot be read.
pub fn discover(driver: &Driver, trid: &TransportId, options: &ControllerOptions) -> Result<Discovery> {
    let mut options = options.clone();
    options.keep_alive_timeout = Duration::ZERO;
    let controller = driver.connect(trid, &options)?;
    if !controller.is_discovery() {
        let error = Error::unsupported("this is an I/O controller, it has no discovery log")
            .doing("reading the discovery log")
            .peer(trid)
            .hint("leave out the subsystem NQN to ask the discovery subsystem at this address");
        // The reason to stop is more interesting than a failing good-bye.
        let _ = controller.detach();
        return Err(error);
    }
    let subnqn = controller.subnqn();
    let log = controller.discovery_log();
    // With the log in hand, or the reason why not, a failing good-bye changes nothing.
    if let Err(error) = controller.detach() {
        tracing::debug!(%error, "the discovery controller did not confirm its shutdown");
    }
    Ok(Discovery { log: log?, subnqn })
}
