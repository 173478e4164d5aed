//! Transport identifiers: how to reach a controller or a subsystem.
//!
//! A [`TransportId`] is read from either of two texts (its `FromStr`):
//!
//! ```text
//! trtype:TCP adrfam:IPv4 traddr:192.168.1.20 trsvcid:4420 subnqn:nqn.2016-06.io.spdk:cnode1
//! nvme+tcp://192.168.1.20:4420/nqn.2016-06.io.spdk:cnode1
//! ```
//!
//! Identifiers are equal if they mean the same, whatever the spelling: PCI addresses, IP addresses, ports, host
//! names and transport types are compared by value, defaults count as if they were written out.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use crate::nqn::Nqn;

mod address;
mod error;
mod kind;
#[cfg(test)]
mod tests;
mod text;

use address::{Address, INTERFACE_MAX, read_ip};

pub use address::PciAddress;
pub use error::{Place, TransportIdError};
pub use kind::{AddressFamily, CustomName, TransportType};

/// The longest transport address, in bytes (TRADDR of a discovery log entry).
pub const TRADDR_MAX: usize = 256;

/// The longest transport service identifier, in bytes (TRSVCID of a discovery log entry).
pub const TRSVCID_MAX: usize = 32;

/// The port of NVM subsystems on TCP and RDMA, and of discovery on RDMA, registered with IANA.
pub const DEFAULT_PORT: u16 = 4420;

/// The port of discovery controllers on TCP, registered with IANA (NVMe/TCP 1.1 §3.1.1).
pub const DEFAULT_DISCOVERY_PORT: u16 = 8009;

/// How to reach a controller: transport, address, subsystem, and which side of the host to use.
#[derive(Clone)]
pub struct TransportId {
    trtype: TransportType,
    adrfam: Option<AddressFamily>,
    traddr: String,
    trsvcid: Option<String>,
    subnqn: Option<Nqn>,
    priority: Option<i32>,
    host_traddr: Option<String>,
    host_trsvcid: Option<String>,
    host_iface: Option<String>,
    hostnqn: Option<Nqn>,
    nsid: Option<u32>,
}

impl TransportId {
    /// A controller at `traddr`.
    ///
    /// The address may be empty for PCIe (every function), for `loop` and for custom transports. `adrfam` is
    /// needed only for InfiniBand addresses, or to say which family a host name shall resolve to.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if the address is none of this transport, or contradicts `adrfam`.
    pub fn new(
        trtype: TransportType,
        adrfam: Option<AddressFamily>,
        traddr: &str,
    ) -> Result<Self, TransportIdError> {
        let mut id = Self::blank(trtype);
        if let Some(adrfam) = adrfam {
            id.set_adrfam(adrfam)?;
        }
        id.set_traddr(traddr)?;
        id.check_traddr_given()?;
        Ok(id)
    }

    /// NVMe/TCP at an address or host name, and a port (not 0).
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if `addr` is neither an IP address nor a host name, or `port` is 0.
    pub fn tcp(addr: &str, port: u16) -> Result<Self, TransportIdError> {
        Self::new(TransportType::Tcp, None, addr)?.with_trsvcid(&port.to_string())
    }

    /// NVMe/TCP at a socket address (port not 0).
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if the port is 0.
    pub fn tcp_socket(socket: SocketAddr) -> Result<Self, TransportIdError> {
        match socket {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => {
                Self::tcp(&format!("{}%{}", v6.ip(), v6.scope_id()), v6.port())
            }
            _ => Self::tcp(&socket.ip().to_string(), socket.port()),
        }
    }

    /// NVMe/RDMA at an address or host name, and a port (not 0).
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if `addr` is neither an IP address nor a host name, or `port` is 0.
    pub fn rdma(addr: &str, port: u16) -> Result<Self, TransportIdError> {
        Self::new(TransportType::Rdma, None, addr)?.with_trsvcid(&port.to_string())
    }

    /// A PCI function of this machine.
    #[must_use]
    pub fn pcie(address: PciAddress) -> Self {
        Self { traddr: address.to_string(), ..Self::blank(TransportType::Pcie) }
    }

    /// A controller emulated by another process, whose vfio-user socket is in directory `path`.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if `path` is empty, too long, or contains white space.
    pub fn vfio_user(path: &str) -> Result<Self, TransportIdError> {
        Self::new(TransportType::VfioUser, None, path)
    }

    /// A target inside this process, registered as `name`.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if `name` is too long or contains white space.
    pub fn loopback(name: &str) -> Result<Self, TransportIdError> {
        Self::new(TransportType::Loop, None, name)
    }

    /// The same with this subsystem.
    #[must_use]
    pub fn with_subnqn(mut self, subnqn: Nqn) -> Self {
        self.subnqn = Some(subnqn);
        self
    }

    /// The same with this address family.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if the transport has no such addresses, or a value set before is none of this family.
    pub fn with_adrfam(mut self, adrfam: AddressFamily) -> Result<Self, TransportIdError> {
        self.set_adrfam(adrfam)?;
        // The family decides what the other values may be.
        let given = self.clone();
        self.set_traddr(&given.traddr)?;
        if let Some(trsvcid) = &given.trsvcid {
            self.set_trsvcid(trsvcid)?;
        }
        if let Some(address) = &given.host_traddr {
            self.set_host_traddr(address)?;
        }
        if let Some(service) = &given.host_trsvcid {
            self.set_host_trsvcid(service)?;
        }
        Ok(self)
    }

    /// The same with this service identifier: a port (1 to 65535) on TCP and RDMA, at most 32 bytes elsewhere.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if it is none.
    pub fn with_trsvcid(mut self, trsvcid: &str) -> Result<Self, TransportIdError> {
        self.set_trsvcid(trsvcid)?;
        Ok(self)
    }

    /// The same with this socket priority (Linux `SO_PRIORITY`).
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// The same with this name for the host, in place of the one the program uses otherwise.
    #[must_use]
    pub fn with_hostnqn(mut self, hostnqn: Nqn) -> Self {
        self.hostnqn = Some(hostnqn);
        self
    }

    /// The same with this local address to connect from (key `hostaddr`): an IP address on TCP and RDMA.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if it is none, or of another family than the transport address.
    pub fn with_host_traddr(mut self, address: &str) -> Result<Self, TransportIdError> {
        self.set_host_traddr(address)?;
        Ok(self)
    }

    /// The same with this local service identifier to connect from (key `hostsvcid`): a port on TCP and RDMA,
    /// 0 for any.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if it is none.
    pub fn with_host_trsvcid(mut self, service: &str) -> Result<Self, TransportIdError> {
        self.set_host_trsvcid(service)?;
        Ok(self)
    }

    /// The same with this local network interface to connect through (key `hostiface`), at most 15 bytes.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if that can not be the name of an interface.
    pub fn with_host_iface(mut self, interface: &str) -> Result<Self, TransportIdError> {
        self.set_host_iface(interface)?;
        Ok(self)
    }

    /// The same, restricted to one namespace (key `ns`): 1 to FFFFFFFEh.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`] if `nsid` is 0 or the broadcast value FFFFFFFFh.
    pub fn with_nsid(mut self, nsid: u32) -> Result<Self, TransportIdError> {
        self.set_nsid(&nsid.to_string())?;
        Ok(self)
    }

    /// The transport.
    #[must_use]
    pub fn trtype(&self) -> TransportType {
        self.trtype
    }

    /// The address family: as given, else as the address shows. `None` for host names (the resolver will tell)
    /// and for transports that have no address families.
    #[must_use]
    pub fn adrfam(&self) -> Option<AddressFamily> {
        self.adrfam.or_else(|| self.address().family()).or(match self.trtype {
            TransportType::Fc => Some(AddressFamily::Fc),
            TransportType::Loop => Some(AddressFamily::IntraHost),
            _ => None,
        })
    }

    /// The transport address as given, without the brackets of an IPv6 address; may be empty, see [`Self::new`].
    #[must_use]
    pub fn traddr(&self) -> &str {
        &self.traddr
    }

    /// The transport service identifier: as given, else the default of the transport, else empty. The defaults
    /// are 4420 on TCP and RDMA, but 8009 on TCP if the subsystem is absent or the well-known discovery one.
    #[must_use]
    pub fn trsvcid(&self) -> &str {
        match (&self.trsvcid, self.trtype) {
            (Some(trsvcid), _) => trsvcid,
            (None, TransportType::Tcp) if self.is_discovery() => "8009",
            (None, TransportType::Tcp | TransportType::Rdma) => "4420",
            (None, _) => "",
        }
    }

    /// [`Self::trsvcid`] as a port number, on TCP and RDMA.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        if self.trtype.uses_ip() { self.trsvcid().parse().ok() } else { None }
    }

    /// The IP address, if there is one and not a host name. Its scope is [`Self::scope`].
    #[must_use]
    pub fn ip_addr(&self) -> Option<IpAddr> {
        match self.address() {
            Address::Ip(ip, _) => Some(ip),
            _ => None,
        }
    }

    /// The scope of a link-local IPv6 address: the name or number of an interface of this host.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        match self.address() {
            Address::Ip(_, scope) => scope,
            _ => None,
        }
    }

    /// The PCI address, if the transport is PCIe and an address is given.
    #[must_use]
    pub fn pci_address(&self) -> Option<PciAddress> {
        match self.address() {
            Address::Pci(address) => Some(address),
            _ => None,
        }
    }

    /// The subsystem. Absent means discovery on fabrics, see [`Self::is_discovery`].
    #[must_use]
    pub fn subnqn(&self) -> Option<&Nqn> {
        self.subnqn.as_ref()
    }

    /// Whether this leads to a discovery controller: over fabrics, to no subsystem or the well-known discovery one.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.trtype.is_fabrics() && self.subnqn.as_ref().is_none_or(Nqn::is_discovery)
    }

    /// The socket priority, if given.
    #[must_use]
    pub fn priority(&self) -> Option<i32> {
        self.priority
    }

    /// The name of the host to use, if given.
    #[must_use]
    pub fn hostnqn(&self) -> Option<&Nqn> {
        self.hostnqn.as_ref()
    }

    /// The local address to connect from, if given.
    #[must_use]
    pub fn host_traddr(&self) -> Option<&str> {
        self.host_traddr.as_deref()
    }

    /// The local service identifier to connect from, if given.
    #[must_use]
    pub fn host_trsvcid(&self) -> Option<&str> {
        self.host_trsvcid.as_deref()
    }

    /// The local interface to connect through, if given.
    #[must_use]
    pub fn host_iface(&self) -> Option<&str> {
        self.host_iface.as_deref()
    }

    /// The one namespace to use, if given.
    #[must_use]
    pub fn nsid(&self) -> Option<u32> {
        self.nsid
    }

    /// Nothing but the transport: not valid yet, see [`Self::check_traddr_given`].
    fn blank(trtype: TransportType) -> Self {
        Self {
            trtype,
            adrfam: None,
            traddr: String::new(),
            trsvcid: None,
            subnqn: None,
            priority: None,
            host_traddr: None,
            host_trsvcid: None,
            host_iface: None,
            hostnqn: None,
            nsid: None,
        }
    }

    fn address(&self) -> Address<'_> {
        Address::of(self.trtype, self.adrfam, &self.traddr)
    }

    fn set_adrfam(&mut self, adrfam: AddressFamily) -> Result<(), TransportIdError> {
        use AddressFamily::{Fc, Ib, IntraHost, Ipv4, Ipv6};
        let possible = match self.trtype {
            TransportType::Tcp => matches!(adrfam, Ipv4 | Ipv6),
            TransportType::Rdma => matches!(adrfam, Ipv4 | Ipv6 | Ib),
            TransportType::Fc => adrfam == Fc,
            TransportType::Loop => adrfam == IntraHost,
            TransportType::Pcie | TransportType::VfioUser => false,
            TransportType::Custom(_) => true,
        };
        if !possible {
            let other = format!("trtype {}, which has no such addresses", self.trtype);
            return Err(TransportIdError::contradiction("adrfam", adrfam.as_str(), other));
        }
        self.adrfam = Some(adrfam);
        Ok(())
    }

    fn set_traddr(&mut self, traddr: &str) -> Result<(), TransportIdError> {
        check_text("traddr", traddr, TRADDR_MAX)?;
        let bare = if self.trtype.uses_ip() { without_brackets(traddr) } else { traddr };
        let address = Address::read(self.trtype, self.adrfam, bare)
            .map_err(|allowed| TransportIdError::invalid("traddr", traddr, allowed))?;
        if let (Some(AddressFamily::Ipv4 | AddressFamily::Ipv6), Some(shown)) =
            (self.adrfam, address.family())
            && self.adrfam != Some(shown)
        {
            let given = self.adrfam.map_or("", AddressFamily::as_str);
            return Err(TransportIdError::contradiction("traddr", traddr, format!("adrfam {given}")));
        }
        self.traddr = bare.to_owned();
        Ok(())
    }

    fn check_traddr_given(&self) -> Result<(), TransportIdError> {
        let reason = match self.trtype {
            _ if !self.traddr.is_empty() => return Ok(()),
            TransportType::Pcie | TransportType::Loop | TransportType::Custom(_) => return Ok(()),
            TransportType::Tcp | TransportType::Rdma => "this transport needs an IP address or a host name",
            TransportType::Fc => "this transport needs a world wide name, nn-0x…:pn-0x…",
            TransportType::VfioUser => "this transport needs the directory of a vfio-user socket",
        };
        Err(TransportIdError::Missing { key: "traddr", reason, place: Place::default() })
    }

    fn set_trsvcid(&mut self, trsvcid: &str) -> Result<(), TransportIdError> {
        check_text("trsvcid", trsvcid, TRSVCID_MAX)?;
        if self.service_is_port() && port(trsvcid).is_none_or(|port| port == 0) {
            return Err(TransportIdError::invalid("trsvcid", trsvcid, "a port number, 1 to 65535"));
        }
        if trsvcid.is_empty() {
            return Err(TransportIdError::invalid("trsvcid", trsvcid, "1 to 32 bytes of text"));
        }
        self.trsvcid = Some(trsvcid.to_owned());
        Ok(())
    }

    fn set_host_traddr(&mut self, address: &str) -> Result<(), TransportIdError> {
        check_text("hostaddr", address, TRADDR_MAX)?;
        if address.is_empty() {
            return Err(TransportIdError::invalid("hostaddr", address, "an address of this host"));
        }
        let mut bare = address;
        if self.service_is_port() {
            bare = without_brackets(address);
            let Some(local) = read_ip(bare) else {
                return Err(TransportIdError::invalid(
                    "hostaddr",
                    address,
                    "an IPv4 or IPv6 address of this host",
                ));
            };
            if let (Some(remote), Some(local)) = (self.adrfam(), local.family())
                && remote != local
            {
                let other = format!("the target's address, which is {remote}");
                return Err(TransportIdError::contradiction("hostaddr", address, other));
            }
        }
        self.host_traddr = Some(bare.to_owned());
        Ok(())
    }

    fn set_host_trsvcid(&mut self, service: &str) -> Result<(), TransportIdError> {
        check_text("hostsvcid", service, TRSVCID_MAX)?;
        if self.service_is_port() && port(service).is_none() {
            return Err(TransportIdError::invalid("hostsvcid", service, "a port number, 0 to 65535"));
        }
        if service.is_empty() {
            return Err(TransportIdError::invalid("hostsvcid", service, "1 to 32 bytes of text"));
        }
        self.host_trsvcid = Some(service.to_owned());
        Ok(())
    }

    fn set_host_iface(&mut self, interface: &str) -> Result<(), TransportIdError> {
        check_text("hostiface", interface, INTERFACE_MAX)?;
        if interface.is_empty() || interface.contains('/') {
            return Err(TransportIdError::invalid("hostiface", interface, "the name of a network interface"));
        }
        self.host_iface = Some(interface.to_owned());
        Ok(())
    }

    fn set_priority(&mut self, priority: &str) -> Result<(), TransportIdError> {
        let Ok(value) = priority.parse() else {
            return Err(TransportIdError::invalid("priority", priority, "a number of 32 bits"));
        };
        self.priority = Some(value);
        Ok(())
    }

    fn set_nsid(&mut self, nsid: &str) -> Result<(), TransportIdError> {
        match nsid.parse() {
            // NVMe Base 2.1 §3.2.1.2: 0 names no namespace, FFFFFFFFh all of them.
            Ok(value @ 1..=0xffff_fffe) => self.nsid = Some(value),
            _ => return Err(TransportIdError::invalid("ns", nsid, "a namespace ID, 1 to 4294967294")),
        }
        Ok(())
    }

    /// Whether service identifiers are ports: always on TCP, on RDMA unless the addresses are InfiniBand ones.
    fn service_is_port(&self) -> bool {
        self.trtype.uses_ip() && self.adrfam != Some(AddressFamily::Ib)
    }

    /// What equality and hash look at.
    fn meaning(&self) -> impl Eq + Hash + '_ {
        fn service(text: &str, is_port: bool) -> Result<u16, &str> {
            if is_port { port(text).ok_or(text) } else { Err(text) }
        }
        let is_port = self.service_is_port();
        let host_traddr = self.host_traddr.as_deref().map(|text| Address::of(self.trtype, self.adrfam, text));
        (
            (self.trtype, self.adrfam(), self.address(), service(self.trsvcid(), is_port), self.subnqn()),
            (host_traddr, self.host_trsvcid().map(|text| service(text, is_port)), self.host_iface()),
            (self.priority, self.hostnqn(), self.nsid),
        )
    }
}

/// A decimal port number: digits only, as `parse` would take a sign.
fn port(text: &str) -> Option<u16> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The inside of `[…]`, as IPv6 addresses are often written.
fn without_brackets(text: &str) -> &str {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) if inside.contains(':') && read_ip(inside).is_some() => inside,
        _ => text,
    }
}

/// No value holds white space (it separates) or control characters (it gets printed).
fn check_text(key: &'static str, value: &str, max: usize) -> Result<(), TransportIdError> {
    if value.len() > max {
        return Err(TransportIdError::TooLong { key, length: value.len(), max, place: Place::default() });
    }
    if value.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(TransportIdError::invalid(key, value, "text without white space and control characters"));
    }
    Ok(())
}

impl PartialEq for TransportId {
    fn eq(&self, other: &Self) -> bool {
        self.meaning() == other.meaning()
    }
}

impl Eq for TransportId {}

impl Hash for TransportId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.meaning().hash(state);
    }
}

impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransportId({self})")
    }
}
