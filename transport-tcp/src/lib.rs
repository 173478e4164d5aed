//! NVMe/TCP for the nvmf initiator, host side (NVM Express TCP Transport Specification 1.1).
//!
//! * [`proto`] is the protocol: PDUs, digests, R2T, in-capsule data, without sockets or clock.
//! * [`TcpQpair`] drives it over a non-blocking socket: one receive brings many PDUs, one send takes a whole batch;
//!   large payloads go straight from and to the commands' own buffers.
//! * [`TcpTransport`] is what a program registers with its driver.
//!
//! TLS is not part of this crate yet: a controller that requires a secure channel closes the connection.

#![forbid(unsafe_code)]

use std::any::Any;
use std::sync::Arc;

use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::transport::ip::Destination;
use nvmf_core::transport::{Capabilities, QpairSetup, Transport, TransportController, TransportQpair};
use nvmf_core::{ControllerOptions, Error, Result, TransportId, TransportType};

use crate::proto::ConnectionParams;
use crate::qpair::Pinned;
use crate::socket::SocketOptions;

pub mod proto;
mod qpair;
mod socket;

pub use qpair::TcpQpair;

/// Largest transfer of one command, bytes: far more than any controller takes, and no PDU length can overflow.
const MAX_TRANSFER: u32 = 1 << 30;

/// NVMe over TCP.
#[derive(Clone, Copy, Default, Debug)]
pub struct TcpTransport;

impl TcpTransport {
    /// The transport; it has no settings of its own, see [`ControllerOptions`].
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    /// As [`Transport::ctrlr_construct`], with the type known.
    ///
    /// # Errors
    /// When the address is none of NVMe/TCP, or a local address, port or interface scope makes no sense.
    pub fn controller(&self, trid: &TransportId, options: &ControllerOptions) -> Result<TcpController> {
        if trid.trtype() != TransportType::Tcp {
            return Err(Error::api_misuse("this transport identifier is not for NVMe/TCP").peer(trid));
        }
        Ok(TcpController {
            destination: Destination::new(trid)?,
            socket: SocketOptions::new(trid, options).map_err(|error| error.peer(trid))?,
            header_digest: options.header_digest,
            data_digest: options.data_digest,
            maxr2t_z: options.max_r2t.clamp(1, 65_536) - 1,
            in_capsule_io: 0,
            pinned: Pinned::default(),
        })
    }
}

impl Transport for TcpTransport {
    fn trtype(&self) -> TransportType {
        TransportType::Tcp
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        Ok(Box::new(self.controller(trid, options)?))
    }
}

/// The NVMe/TCP side of one controller: where it is and what was learned about it.
#[derive(Debug)]
pub struct TcpController {
    destination: Destination,
    socket: SocketOptions,
    header_digest: bool,
    data_digest: bool,
    maxr2t_z: u32,
    in_capsule_io: u32,
    pinned: Pinned,
}

impl TcpController {
    /// As [`TransportController::create_qpair`], with the type known, so that calls can be resolved at compile time.
    ///
    /// # Errors
    /// When no thread for name resolution can be started. Everything else shows while connecting.
    pub fn connect_qpair(&mut self, setup: &QpairSetup) -> Result<TcpQpair> {
        let params = ConnectionParams {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            maxr2t_z: self.maxr2t_z,
            in_capsule_io: self.in_capsule_io,
            ..ConnectionParams::new(setup.qid, setup.slots)
        };
        TcpQpair::new(setup, &self.destination, self.socket.clone(), params, Arc::clone(&self.pinned))
    }
}

impl TransportController for TcpController {
    fn capabilities(&self) -> Capabilities {
        Capabilities::fabrics().with_max_transfer(MAX_TRANSFER)
    }

    fn create_qpair(&mut self, setup: &QpairSetup) -> Result<Box<dyn TransportQpair>> {
        Ok(Box::new(self.connect_qpair(setup)?))
    }

    fn identified(&mut self, identify: &IdentifyController) -> Result<()> {
        let offset = identify.in_capsule_data_offset();
        if offset != 0 {
            return Err(Error::unsupported(format!(
                "the controller wants in-capsule data at offset {offset} (ICDOFF), which NVMe/TCP does not have"
            )));
        }
        // A discovery controller has no I/O queues and may leave IOCCSZ zero, which makes this zero.
        let in_capsule = identify.in_capsule_data_size().min(u64::from(MAX_TRANSFER));
        self.in_capsule_io = in_capsule as u32;
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
