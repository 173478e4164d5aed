//! IP addresses of fabrics: numbers at once, names on a thread of their own. For transports.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::mpsc::{Receiver, channel};

use crate::error::{Error, Result};
use crate::options::ControllerOptions;
use crate::transport_id::{AddressFamily, TransportId};

/// Where to connect to.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A numeric address, or one that a name was resolved to before.
    Address(SocketAddr),
    /// A host name.
    Name {
        /// As the transport identifier has it.
        host: String,
        /// The port.
        port: u16,
        /// The kind of address wanted, if not any.
        family: Option<AddressFamily>,
    },
}

impl Destination {
    /// Where the controller at `trid` is.
    ///
    /// # Errors
    /// When its service is no port, or the interface is unknown that its address names as its scope.
    pub fn new(trid: &TransportId) -> Result<Self> {
        let Some(port) = trid.port() else {
            let what = format!("{:?} is not a port of {}", trid.trsvcid(), trid.trtype());
            return Err(Error::api_misuse(what).peer(trid));
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

/// An address and a port; the scope counts for IPv6.
#[must_use]
pub fn socket_addr(ip: IpAddr, port: u16, scope: u32) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
    }
}

/// A numeric address with an optional `%scope`.
///
/// # Errors
/// When it is none, or the scope names no interface of this machine.
pub fn parse(text: &str) -> Result<(IpAddr, u32)> {
    let (ip, scope) = match text.split_once('%') {
        Some((ip, scope)) => (ip, Some(scope)),
        None => (text, None),
    };
    let ip = ip.parse().map_err(|_| Error::api_misuse(format!("{text:?} is not an IP address")))?;
    Ok((ip, scope.map_or(Ok(0), scope_id)?))
}

/// The local port to connect from, the transport identifier's first, then that of the options; 0 is any.
///
/// # Errors
/// When it is no number.
pub fn local_port(trid: &TransportId, options: &ControllerOptions) -> Result<u16> {
    let Some(text) = trid.host_trsvcid().or(options.src_svcid.as_deref()) else { return Ok(0) };
    text.parse().map_err(|_| {
        Error::api_misuse(format!("the local port {text:?} to connect from is not a number up to 65535"))
    })
}

/// The number of the interface that `scope` names.
fn scope_id(scope: &str) -> Result<u32> {
    if let Ok(number) = scope.parse() {
        return Ok(number);
    }
    // if_nametoindex without the call, which is not safe.
    let index = std::fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok();
    index.and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
        Error::api_misuse(format!(
            "this machine has no interface {scope:?}, which the address names as its scope"
        ))
    })
}

/// Resolves on a thread of its own, because getaddrinfo blocks. A thread nobody waits for any more ends by itself.
///
/// # Errors
/// When there can be no thread.
pub fn resolve(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_scopes_and_ports_are_checked() {
        let (ip, scope) = parse("fe80::1%7").unwrap();
        assert_eq!(socket_addr(ip, 4420, scope).to_string(), "[fe80::1%7]:4420");
        let (ip, scope) = parse("192.0.2.1").unwrap();
        assert_eq!(socket_addr(ip, 1, scope).to_string(), "192.0.2.1:1");
        let refused = |text| parse(text).unwrap_err().to_string();
        assert!(refused("192.0.2").contains("\"192.0.2\" is not an IP address"));
        assert!(refused("fe80::1%nowhere").contains("no interface \"nowhere\""));

        let mut options = ControllerOptions::default();
        let trid = TransportId::tcp("192.0.2.1", 4420).unwrap();
        assert_eq!(local_port(&trid, &options).unwrap(), 0);
        options.src_svcid = Some("65536".to_owned());
        assert!(local_port(&trid, &options).unwrap_err().to_string().contains("\"65536\""));
        let Destination::Address(found) = Destination::new(&trid).unwrap() else { panic!("a number") };
        assert_eq!(found.to_string(), "192.0.2.1:4420");
    }

    #[test]
    fn names_are_resolved_elsewhere() {
        let trid: TransportId = "trtype:tcp adrfam:ipv4 traddr:localhost trsvcid:4420".parse().unwrap();
        let Destination::Name { host, port, family } = Destination::new(&trid).unwrap() else {
            panic!("a name")
        };
        let found = resolve(host, port, family).unwrap().recv().unwrap().unwrap();
        assert!(found.iter().all(SocketAddr::is_ipv4), "{found:?}");
    }
}
