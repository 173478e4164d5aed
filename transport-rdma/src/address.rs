//! The local address to connect from.

use std::net::SocketAddr;

use nvmf_core::transport::ip;
use nvmf_core::{ControllerOptions, Error, Result, TransportId};

/// The local address to connect from, if one was given: the identifier's first, then the options'.
pub(crate) fn source(trid: &TransportId, options: &ControllerOptions) -> Result<Option<SocketAddr>> {
    if let Some(interface) = trid.host_iface().or(options.host_iface.as_deref()) {
        return Err(Error::unsupported(format!(
            "NVMe/RDMA through a given interface ({interface}): the connection manager goes by addresses"
        ))
        .hint("give the interface's address as host_traddr"));
    }
    let port = ip::local_port(trid, options)?;
    let Some(text) = trid.host_traddr().or(options.src_addr.as_deref()) else {
        if port != 0 {
            return Err(Error::api_misuse("a local port to connect from without a local address"));
        }
        return Ok(None);
    };
    let (address, scope) = ip::parse(text)?;
    Ok(Some(ip::socket_addr(address, port, scope)))
}
