//! Transport addresses: what is one, and when two texts mean the same one.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::error::TransportIdError;
use super::kind::{AddressFamily, TransportType};

/// The longest name of a network interface, in bytes (IFNAMSIZ less the NUL).
pub(super) const INTERFACE_MAX: usize = 15;

/// The address of a PCI function: domain, bus, device, function.
///
/// Parses `0000:04:00.0`, the short forms `0:4:0.0` and `04:00.0` (domain 0), and `0000.04.00.0`, which avoids the
/// colon; prints the first. All numbers are hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The function `function` (0 to 7) of `device` (0 to 31) on `bus`. Domains over 16 bits exist (VMD).
    /// `None` if `device` or `function` is out of range.
    #[must_use]
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self { domain, bus, device, function })
    }

    /// The PCI domain (segment).
    #[must_use]
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }

    fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.rsplit_once('.')?;
        let separator = if rest.contains(':') { ':' } else { '.' };
        let mut parts = rest.rsplit(separator);
        let (device, bus) = (parts.next()?, parts.next()?);
        let domain = match (parts.next(), separator) {
            (Some(domain), _) => hex(domain, 8)?,
            (None, ':') => 0,
            // Three numbers with dots alone could be anything.
            (None, _) => return None,
        };
        let byte = |text| hex(text, 2).and_then(|value| u8::try_from(value).ok());
        match parts.next() {
            None => Self::new(domain, byte(bus)?, byte(device)?, byte(function)?),
            Some(_) => None,
        }
    }
}

/// A hexadecimal number of 1 to `digits` (at most 8) digits, no sign.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let well_formed = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    well_formed.then(|| u32::from_str_radix(text, 16).ok())?
}

const PCI_FORM: &str = "a PCI address such as 0000:04:00.0 or 04:00.0 (hexadecimal)";

impl FromStr for PciAddress {
    type Err = TransportIdError;

    fn from_str(text: &str) -> Result<Self, TransportIdError> {
        Self::parse(text).ok_or_else(|| TransportIdError::invalid("traddr", text, PCI_FORM))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciAddress({self})")
    }
}

/// The meaning of a `traddr`: two texts with equal meanings are one address.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Address<'a> {
    /// None given.
    Absent,
    /// An IP address, for IPv6 with its scope.
    Ip(IpAddr, Option<&'a str>),
    /// A PCI function.
    Pci(PciAddress),
    /// Everything else, lower case where case means nothing.
    Text(Cow<'a, str>),
}

impl<'a> Address<'a> {
    /// Reads `text` as an address of this transport; the error says what would be one.
    pub(super) fn read(
        trtype: TransportType,
        adrfam: Option<AddressFamily>,
        text: &'a str,
    ) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Ok(Self::Absent);
        }
        match trtype {
            TransportType::Tcp => read_ip_or_host(text),
            TransportType::Rdma if adrfam == Some(AddressFamily::Ib) => {
                Ok(read_ip(text).unwrap_or_else(|| Self::Text(text.to_ascii_lowercase().into())))
            }
            TransportType::Rdma => read_ip_or_host(text),
            TransportType::Pcie => PciAddress::parse(text).map(Self::Pci).ok_or(PCI_FORM),
            // World wide names are hexadecimal numbers.
            TransportType::Fc => Ok(Self::Text(text.to_ascii_lowercase().into())),
            TransportType::Loop | TransportType::VfioUser | TransportType::Custom(_) => {
                Ok(Self::Text(text.into()))
            }
        }
    }

    /// As [`Self::read`] for a text that was checked before.
    pub(super) fn of(trtype: TransportType, adrfam: Option<AddressFamily>, text: &'a str) -> Self {
        Self::read(trtype, adrfam, text).unwrap_or(Self::Text(text.into()))
    }

    /// The family this address shows by its form.
    pub(super) fn family(&self) -> Option<AddressFamily> {
        match self {
            Self::Ip(IpAddr::V4(_), _) => Some(AddressFamily::Ipv4),
            Self::Ip(IpAddr::V6(_), _) => Some(AddressFamily::Ipv6),
            Self::Absent | Self::Pci(_) | Self::Text(_) => None,
        }
    }
}

/// A numeric IP address, IPv6 with an optional `%scope` (RFC 4007 §11).
pub(super) fn read_ip(text: &str) -> Option<Address<'_>> {
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(Address::Ip(ip.into(), None));
    }
    let (ip, scope) = match text.split_once('%') {
        Some((ip, scope)) => (ip, Some(scope)),
        None => (text, None),
    };
    let plausible = |scope: &str| {
        (1..=INTERFACE_MAX).contains(&scope.len())
            && scope.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    let ip: Ipv6Addr = ip.parse().ok()?;
    scope.is_none_or(plausible).then_some(Address::Ip(ip.into(), scope))
}

fn read_ip_or_host(text: &str) -> Result<Address<'_>, &'static str> {
    const FORM: &str = "an IPv4 address, an IPv6 address or a host name";
    if let Some(address) = read_ip(text) {
        return Ok(address);
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("an IPv4 address of four decimal numbers up to 255 without leading zeroes");
    }
    if let Some((host, port)) = text.split_once(':')
        && (is_host_name(host) || host.parse::<Ipv4Addr>().is_ok())
        && !port.contains(':')
    {
        return Err("an address without port (the port is the value of trsvcid)");
    }
    if !is_host_name(name) {
        return Err(FORM);
    }
    Ok(Address::Text(text.to_ascii_lowercase().into()))
}

/// Labels of 1 to 63 letters, digits, `-` and, as in the field, `_`; 253 bytes in all (RFC 1123 §2.1).
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
