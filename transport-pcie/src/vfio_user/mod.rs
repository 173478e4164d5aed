//! PCI functions that other processes emulate, over the vfio-user protocol: no kernel driver, no privileges.
//!
//! * [`transport`] is what a driver needs to reach them as `trtype:vfiouser`.
//! * [`VfioUserDevice`] is the client: a [`crate::PciDevice`] behind a unix socket.
//! * [`message`], [`capabilities`] and [`stream`] are the protocol itself, for both sides.
//!
//! A server is given the files of the DMA memory and can write there what it likes and when it likes, like any device
//! without an IOMMU: the memory of this process outside of its DMA regions is out of its reach.

pub mod capabilities;
mod client;
mod device;
pub mod message;
pub mod stream;

pub use client::{DEFAULT_TIMEOUT, VfioUserOptions};
pub use device::VfioUserDevice;
use nvmf_core::TransportType;

use crate::PcieTransport;

/// Controllers of other processes: `trtype:vfiouser`, whose traddr is a socket, or a directory with a socket `cntrl` in it.
#[must_use]
pub fn transport(options: VfioUserOptions) -> PcieTransport {
    PcieTransport::with_devices(TransportType::VfioUser, move |trid| {
        Ok(Box::new(VfioUserDevice::open(trid.traddr(), &options)?))
    })
}

#[cfg(test)]
mod tests;
