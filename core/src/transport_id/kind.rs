//! Transport types and address families.

use std::fmt;
use std::str::FromStr;

use super::error::TransportIdError;

/// The longest name of a custom transport, in bytes (`trstring` of other initiators has the same bound).
const NAME_MAX: usize = 32;

/// Which transport leads to a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TransportType {
    /// RDMA (InfiniBand, RoCE, iWARP); 1 in discovery log entries.
    Rdma,
    /// Fibre Channel; 2 in discovery log entries.
    Fc,
    /// TCP; 3 in discovery log entries.
    Tcp,
    /// Intra-host: a target in this process; 254 in discovery log entries. The text is `loop`.
    Loop,
    /// A PCI Express function of this machine.
    Pcie,
    /// A PCI Express function emulated by another process, over the vfio-user protocol.
    VfioUser,
    /// A transport registered by the program, known by its name only.
    Custom(CustomName),
}

impl TransportType {
    /// The number other initiators give the type in configuration: the TRTYPE of discovery log entries (NVMe Base
    /// 2.1, Figure "Get Log Page – Discovery Log Page Entry") where there is one, 256 for PCIe, 1024 for
    /// vfio-user, 4096 for custom ones.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Rdma => 1,
            Self::Fc => 2,
            Self::Tcp => 3,
            Self::Loop => 254,
            Self::Pcie => 256,
            Self::VfioUser => 1024,
            Self::Custom(_) => 4096,
        }
    }

    /// The type with this TRTYPE in a discovery log entry.
    #[must_use]
    pub const fn from_wire(trtype: u8) -> Option<Self> {
        match trtype {
            1 => Some(Self::Rdma),
            2 => Some(Self::Fc),
            3 => Some(Self::Tcp),
            254 => Some(Self::Loop),
            _ => None,
        }
    }

    /// The TRTYPE of discovery log entries, `None` for types that have none.
    #[must_use]
    pub const fn to_wire(self) -> Option<u8> {
        match self {
            Self::Rdma => Some(1),
            Self::Fc => Some(2),
            Self::Tcp => Some(3),
            Self::Loop => Some(254),
            Self::Pcie | Self::VfioUser | Self::Custom(_) => None,
        }
    }

    /// Whether controllers are reached by NVMe over Fabrics (Connect, Properties, discovery) and not through
    /// registers in memory. Custom transports count as memory based.
    #[must_use]
    pub const fn is_fabrics(self) -> bool {
        matches!(self, Self::Rdma | Self::Fc | Self::Tcp | Self::Loop)
    }

    /// Whether addresses are IP addresses or host names, and services are ports.
    pub(super) const fn uses_ip(self) -> bool {
        matches!(self, Self::Rdma | Self::Tcp)
    }

    /// The name as the canonical form prints it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Rdma => "RDMA",
            Self::Fc => "FC",
            Self::Tcp => "TCP",
            Self::Loop => "loop",
            Self::Pcie => "PCIe",
            Self::VfioUser => "VFIOUSER",
            Self::Custom(name) => name.as_str(),
        }
    }

    fn builtin(text: &str) -> Option<Self> {
        const NAMES: [(&str, TransportType); 7] = [
            ("rdma", TransportType::Rdma),
            ("fc", TransportType::Fc),
            ("tcp", TransportType::Tcp),
            ("loop", TransportType::Loop),
            ("pcie", TransportType::Pcie),
            ("vfiouser", TransportType::VfioUser),
            ("vfio-user", TransportType::VfioUser),
        ];
        NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|&(_, kind)| kind)
    }
}

impl FromStr for TransportType {
    type Err = TransportIdError;

    /// Parses a name in any case. A name that is none of the built-in ones is a custom transport.
    fn from_str(text: &str) -> Result<Self, TransportIdError> {
        match Self::builtin(text) {
            Some(kind) => Ok(kind),
            None => CustomName::new(text).map(Self::Custom),
        }
    }
}

impl fmt::Display for TransportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The name of a transport that is not built in: 1 to 32 of `A–Z 0–9 - _ .`, kept in upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomName {
    bytes: [u8; NAME_MAX],
    length: u8,
}

impl CustomName {
    /// Checks a name and keeps it in upper case.
    ///
    /// # Errors
    ///
    /// [`TransportIdError::InvalidValue`] if it is empty, over 32 bytes, has other characters, or is the name of a
    /// built-in transport.
    pub fn new(name: &str) -> Result<Self, TransportIdError> {
        const ALLOWED: &str = "RDMA, FC, TCP, PCIe, VFIOUSER, loop or the name of a registered transport (1 to 32 letters, digits, - _ .)";
        let fits = (1..=NAME_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && TransportType::builtin(name).is_none();
        let (true, Ok(length)) = (fits, u8::try_from(name.len())) else {
            return Err(TransportIdError::invalid("trtype", name, ALLOWED));
        };
        let mut bytes = [0; NAME_MAX];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from.to_ascii_uppercase();
        }
        Ok(Self { bytes, length })
    }

    /// The name in upper case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The constructor lets only ASCII in.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for CustomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What kind of address `traddr` is; the discriminants are ADRFAM of discovery log entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum AddressFamily {
    /// IPv4.
    Ipv4 = 1,
    /// IPv6.
    Ipv6 = 2,
    /// InfiniBand.
    Ib = 3,
    /// Fibre Channel.
    Fc = 4,
    /// Within this host.
    IntraHost = 0xfe,
}

impl AddressFamily {
    /// The family with this ADRFAM in a discovery log entry.
    #[must_use]
    pub const fn from_wire(adrfam: u8) -> Option<Self> {
        match adrfam {
            1 => Some(Self::Ipv4),
            2 => Some(Self::Ipv6),
            3 => Some(Self::Ib),
            4 => Some(Self::Fc),
            0xfe => Some(Self::IntraHost),
            _ => None,
        }
    }

    /// ADRFAM of discovery log entries.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// The name as the canonical form prints it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
            Self::Ib => "IB",
            Self::Fc => "FC",
            Self::IntraHost => "IntraHost",
        }
    }
}

impl FromStr for AddressFamily {
    type Err = TransportIdError;

    fn from_str(text: &str) -> Result<Self, TransportIdError> {
        match text.to_ascii_lowercase().as_str() {
            "ipv4" => Ok(Self::Ipv4),
            "ipv6" => Ok(Self::Ipv6),
            "ib" => Ok(Self::Ib),
            "fc" => Ok(Self::Fc),
            "intrahost" | "intra_host" | "intra-host" => Ok(Self::IntraHost),
            _ => Err(TransportIdError::invalid("adrfam", text, "IPv4, IPv6, IB, FC or IntraHost")),
        }
    }
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
