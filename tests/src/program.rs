//! What the test programs have in common: every transport there is, and options to attach with.

use nvmf_core::{ControllerOptions, Driver};
use nvmf_transport_pcie::{PcieTransport, VfioUserOptions, vfio_user};
use nvmf_transport_rdma::{RdmaOptions, RdmaTransport};
use nvmf_transport_tcp::TcpTransport;

/// A driver with the transports that the `nvmf` program has.
#[must_use]
pub fn driver() -> Driver {
    driver_with(RdmaOptions::default())
}

/// The same, with options for RDMA.
#[must_use]
pub fn driver_with(rdma: RdmaOptions) -> Driver {
    Driver::builder()
        .transport(TcpTransport::new())
        .transport(RdmaTransport::new().with_options(rdma))
        .transport(PcieTransport::new())
        .transport(vfio_user::transport(VfioUserOptions::default()))
        .build()
}

/// Options for programs that only poll, or for programs that sleep until an interrupt.
#[must_use]
pub fn options(interrupt: bool) -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.enable_interrupts = interrupt;
    // Emulated machines on busy hosts are slow; how long a wait takes is not what is tested.
    options.connect_timeout *= 6;
    options.io_timeout = options.io_timeout.map(|timeout| timeout * 2);
    options
}
