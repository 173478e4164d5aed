//! From a transport identifier to addresses: numbers at once, names on a thread of their own.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::mpsc::{Receiver, channel};

use nvmf_core::transport_id::AddressFamily;
use nvmf_core::{ControllerOptions, Error, Result, TransportId};

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    Address(SocketAddr),
    Name { host: String, port: u16, family: Option<AddressFamily> },
}

impl Destination {
    pub(crate) fn new(trid: &TransportId) -> Result<Self> {
        let Some(port) = trid.port() else {
            return Err(Error::api_misuse(format!("{:?} is not an RDMA port", trid.trsvcid())).peer(trid));
        };
        match trid.ip_addr() {
            Some(ip) => {
                let scope = trid.scope().map_or(Ok(0), scope_id).map_err(|error| error.peer(trid))?;
                Ok(Self::Address(socket_addr(ip, port, scope)))
            }
            None => Ok(Self::Name { host: trid.traddr().to_owned(), port, family: trid.adrfam() }),
        }
    }
}

/// The local address to connect from, if one was given: the identifier's first, then the options'.
pub(crate) fn source(trid: &TransportId, options: &ControllerOptions) -> Result<Option<SocketAddr>> {
    if let Some(interface) = trid.host_iface().or(options.host_iface.as_deref()) {
        return Err(Error::unsupported(format!(
            "NVMe/RDMA through a given interface ({interface}): the connection manager goes by addresses"
        ))
        .hint("give the interface's address as host_traddr"));
    }
    let port = match trid.host_trsvcid().or(options.src_svcid.as_deref()) {
        None => 0,
        Some(text) => text.parse().map_err(|_| {
            Error::api_misuse(format!("the local port {text:?} to connect from is not a number up to 65535"))
        })?,
    };
    let Some(text) = trid.host_traddr().or(options.src_addr.as_deref()) else {
        if port != 0 {
            return Err(Error::api_misuse("a local port to connect from without a local address"));
        }
        return Ok(None);
    };
    let (ip, scope) = match text.split_once('%') {
        Some((ip, scope)) => (ip, scope_id(scope)?),
        None => (text, 0),
    };
    let ip = ip.parse().map_err(|_| Error::api_misuse(format!("{text:?} is not an IP address")))?;
    Ok(Some(socket_addr(ip, port, scope)))
}

fn socket_addr(ip: IpAddr, port: u16, scope: u32) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
    }
}

/// The number of the interface that `scope` names.
fn scope_id(scope: &str) -> Result<u32> {
    if let Ok(number) = scope.parse() {
        return Ok(number);
    }
    let index = std::fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok();
    index.and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
        Error::api_misuse(format!(
            "this machine has no interface {scope:?}, which the address names as its scope"
        ))
    })
}

/// Resolves on a thread of its own, because getaddrinfo blocks. A thread nobody waits for any more ends by itself.
pub(crate) fn resolve(
    host: String,
    port: u16,
    family: Option<AddressFamily>,
) -> Result<Receiver<io::Result<Vec<SocketAddr>>>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("nvmf-resolve".to_owned())
        .spawn(move || {
            let wanted = |address: &SocketAddr| match family {
                Some(AddressFamily::Ipv4) => address.is_ipv4(),
                Some(AddressFamily::Ipv6) => address.is_ipv6(),
                _ => true,
            };
            let found = (host.as_str(), port).to_socket_addrs().map(|all| all.filter(wanted).collect());
            // Nobody listens when connecting was given up meanwhile.
            let _ = sender.send(found);
        })
        .map_err(|error| Error::from(error).doing("starting a thread for name resolution"))?;
    Ok(receiver)
}
