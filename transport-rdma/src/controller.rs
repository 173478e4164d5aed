//! The NVMe/RDMA side of one controller: where it is and what was learned about it.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nvmf_core::dma::DmaPool;
use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::transport::ip::Destination;
use nvmf_core::transport::{Capabilities, QpairSetup, TransportController, TransportQpair};
use nvmf_core::{ControllerOptions, Error, Result, TransportId};

use crate::address;
use crate::memory::MAX_TRANSFER;
use crate::options::RdmaOptions;
use crate::proto::Limits;
use crate::provider::Provider;
use crate::qpair::{Memories, Plan, RdmaQpair, Route};

/// Most descriptors of a command that are used, whatever the controller takes: more would only make capsules long.
const MAX_DESCRIPTORS: u16 = 16;
/// Most in-capsule data that is used, bytes.
const MAX_IN_CAPSULE: u64 = 1 << 20;
/// Most bytes between a command and its in-capsule data: each slot has them, in locked memory.
const MAX_OFFSET: u32 = 8 << 10;
/// Unit of the acknowledgement timeout.
const ACK_UNIT: Duration = Duration::from_nanos(4096);

/// The NVMe/RDMA side of one controller.
pub struct RdmaController<P: Provider> {
    route: Arc<Route<P>>,
    /// Of I/O queues.
    limits: Limits,
    cntlid: u16,
}

impl<P: Provider> RdmaController<P> {
    pub(crate) fn new(
        provider: Arc<P>,
        memories: Arc<Memories<P>>,
        rdma: RdmaOptions,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Self> {
        let route = Route {
            provider,
            destination: Destination::new(trid)?,
            source: address::source(trid, options)?,
            options: rdma,
            type_of_service: options.transport_tos,
            ack_timeout: options.transport_ack_timeout.map(ack_exponent),
            memories,
            bounce: DmaPool::new(),
            memory: Mutex::default(),
            pinned: Mutex::default(),
        };
        Ok(Self { route: Arc::new(route), limits: Limits { descriptors: 1, ..Limits::default() }, cntlid: 0 })
    }

    /// As [`TransportController::create_qpair`], with the type known, so that calls can be resolved at compile time.
    ///
    /// # Errors
    /// When no thread for name resolution can be started. Everything else shows while connecting.
    pub fn connect_qpair(&mut self, setup: &QpairSetup) -> Result<RdmaQpair<P>> {
        self.route.forget_lost();
        // Capsules of admin queues hold no data (NVMe RDMA Transport 1.1 §3.2.2), and an admin queue's controller is
        // not known yet.
        let (limits, cntlid) = match setup.qid {
            0 => (Limits { descriptors: 1, ..Limits::default() }, 0),
            _ => (self.limits, self.cntlid),
        };
        RdmaQpair::new(setup, Plan { route: Arc::clone(&self.route), limits, cntlid, share: None })
    }
}

/// The smallest n with 4.096 µs · 2^n not below `timeout`, at most 31.
fn ack_exponent(timeout: Duration) -> u8 {
    (0..31).find(|&n| ACK_UNIT * (1 << n) >= timeout).unwrap_or(31)
}

impl<P: Provider> TransportController for RdmaController<P> {
    fn capabilities(&self) -> Capabilities {
        // Data in more pieces than the controller takes is copied into one.
        Capabilities::fabrics().with_max_transfer(MAX_TRANSFER)
    }

    fn create_qpair(&mut self, setup: &QpairSetup) -> Result<Box<dyn TransportQpair>> {
        Ok(Box::new(self.connect_qpair(setup)?))
    }

    fn identified(&mut self, identify: &IdentifyController) -> Result<()> {
        // A discovery controller has no I/O queues, and may leave all of this zero.
        let has_io = identify.ioccsz.get() != 0;
        if has_io && !identify.supports_keyed_sgl() {
            return Err(Error::unsupported(
                "the controller takes no keyed SGL descriptors (SGLS bit 2), which is all NVMe/RDMA has",
            ));
        }
        let in_capsule = identify.in_capsule_data_size().min(MAX_IN_CAPSULE);
        let offset = if in_capsule > 0 { identify.in_capsule_data_offset() } else { 0 };
        let offset = u32::try_from(offset).ok().filter(|&offset| offset <= MAX_OFFSET);
        let offset = offset.ok_or_else(|| {
            Error::unsupported("in-capsule data more than 8 KiB behind the command (ICDOFF)")
        })?;
        let fitting = u16::try_from(in_capsule / 16).unwrap_or(u16::MAX);
        let wanted = match identify.msdbd {
            0 => MAX_DESCRIPTORS,
            n => u16::from(n).min(MAX_DESCRIPTORS),
        };
        self.limits = Limits {
            in_capsule: in_capsule as u32,
            offset,
            inline_data: identify.supports_sgl_offset(),
            descriptors: wanted.min(fitting).max(1),
            elements: 0,
        };
        self.cntlid = identify.cntlid.get();
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

impl<P: Provider> fmt::Debug for RdmaController<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaController")
            .field("destination", &self.route.destination)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgement_timeouts_are_rounded_up_to_a_power_of_two() {
        assert_eq!(ack_exponent(Duration::ZERO), 0);
        assert_eq!(ack_exponent(Duration::from_nanos(4096)), 0);
        assert_eq!(ack_exponent(Duration::from_nanos(4097)), 1);
        assert_eq!(ack_exponent(Duration::from_millis(67)), 14);
        assert_eq!(ack_exponent(Duration::from_secs(100_000)), 31);
    }
}
