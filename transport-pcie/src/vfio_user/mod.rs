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
mod directory;
pub mod message;
pub mod stream;

pub use client::{DEFAULT_TIMEOUT, VfioUserOptions};
pub use device::VfioUserDevice;
use nvmf_core::TransportType;

use crate::PcieTransport;

/// Controllers of other processes: `trtype:vfiouser`, whose traddr is a socket, or a directory with a socket `cntrl` in it. A probe
/// with another directory finds all that are in it; one without an address, all in [`VfioUserOptions::directories`].
#[must_use]
pub fn transport(options: VfioUserOptions) -> PcieTransport {
    let directories = directory::Directories(options.directories.clone());
    PcieTransport::with_devices(TransportType::VfioUser, move |trid| {
        Ok(Box::new(VfioUserDevice::open(trid.traddr(), &options)?))
    })
    .finding(directories)
}

#[cfg(test)]
mod tests;
