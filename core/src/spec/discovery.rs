//! Discovery log page (70h). NVMe Base 2.1 §5.1.12.3.1 and the transport specific address subtypes of the
//! NVMe/TCP and NVMe RDMA transports.
//!
//! The words of the enumerations are those other discovery tools print, because scripts match on them.

use core::fmt;
use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::identify::text::{lossy_text, trimmed};

pub mod extended;

/// What the log specific parameter (LSP) of Get Log Page asks of the discovery log (NVMe Base 2.1 §5.1.12.3.1). The same bits in
/// the upper half of the page's entry in Supported Log Pages say what a controller can do (LIDSP).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DiscoveryLogAsk(pub u8);

impl DiscoveryLogAsk {
    /// EXTDLPE: extended entries.
    pub const EXTENDED: Self = Self(1 << 0);
    /// PLEO: only entries of the port the command came by.
    pub const PORT_LOCAL: Self = Self(1 << 1);
    /// ALLSUBE: entries of all NVM subsystems, also of those that are not meant for this host.
    pub const ALL_SUBSYSTEMS: Self = Self(1 << 2);

    /// Whether all that `other` asks is asked.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The words of what is asked, joined by commas, or `none`.
impl fmt::Display for DiscoveryLogAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (Self::EXTENDED, "extended entries"),
            (Self::PORT_LOCAL, "port local entries only"),
            (Self::ALL_SUBSYSTEMS, "all NVM subsystem entries"),
        ];
        let mut separator = "";
        for (_, word) in words.iter().filter(|(flag, _)| self.contains(*flag)) {
            write!(f, "{separator}{word}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// Size of the header, and of each entry.
pub const RECORD_SIZE: usize = 1024;

/// What stands for a value without a word.
const UNRECOGNIZED: &str = "unrecognized";

macro_rules! words {
    ($($type:ident)*) => {
        $(impl $type {
            /// The word for the value, or `unrecognized`.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self.name() {
                    Some(word) => word,
                    None => UNRECOGNIZED,
                }
            }
        })*
    };
}

words!(TransportTypeCode SubsystemType Treq TcpSecurityType RdmaQpType RdmaProviderType RdmaCms);

open_enum! {
    /// TRTYPE: transport type.
    pub struct TransportTypeCode(u8) {
        /// RDMA.
        RDMA = 1 => "rdma",
        /// Fibre Channel.
        FC = 2 => "fc",
        /// TCP.
        TCP = 3 => "tcp",
        /// Intra-host, not on any wire.
        LOOP = 254 => "loop",
    }
}

open_enum! {
    /// ADRFAM: address family.
    pub struct AddressFamilyCode(u8) {
        /// PCI Express; on the wire 0 is "not applicable".
        PCI = 0 => "pci",
        /// IPv4.
        IPV4 = 1 => "ipv4",
        /// IPv6.
        IPV6 = 2 => "ipv6",
        /// InfiniBand.
        INFINIBAND = 3 => "infiniband",
        /// Fibre Channel.
        FIBRE_CHANNEL = 4 => "fibre-channel",
        /// Intra-host.
        LOOP = 254 => "loop",
    }
}

impl AddressFamilyCode {
    /// The word for the value, or `unrecognized`, which other tools also print for the intra-host family.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match (self, self.name()) {
            (Self::LOOP, _) | (_, None) => UNRECOGNIZED,
            (_, Some(word)) => word,
        }
    }
}

open_enum! {
    /// SUBTYPE: what an entry points to.
    pub struct SubsystemType(u8) {
        /// A referral to another discovery subsystem.
        REFERRAL = 1 => "discovery subsystem referral",
        /// An NVM subsystem.
        NVM = 2 => "nvme subsystem",
        /// This discovery subsystem itself.
        CURRENT_DISCOVERY = 3 => "current discovery subsystem",
    }
}

open_enum! {
    /// TREQ: transport requirements. Bits 1:0 secure channel, bit 2 SQ flow control may be disabled.
    pub struct Treq(u8) {
        /// Secure channel not specified.
        NOT_SPECIFIED = 0 => "not specified",
        /// Secure channel required.
        REQUIRED = 1 => "required",
        /// Secure channel not required.
        NOT_REQUIRED = 2 => "not required",
        /// Secure channel not specified; SQ flow control may be disabled.
        NOT_SPECIFIED_NO_FLOW_CONTROL = 4 => "not specified, sq flow control disable supported",
        /// Secure channel required; SQ flow control may be disabled.
        REQUIRED_NO_FLOW_CONTROL = 5 => "required, sq flow control disable supported",
        /// Secure channel not required; SQ flow control may be disabled.
        NOT_REQUIRED_NO_FLOW_CONTROL = 6 => "not required, sq flow control disable supported",
    }
}

impl Treq {
    /// A secure channel (TLS) is required.
    #[must_use]
    pub const fn secure_channel_required(self) -> bool {
        self.0 & 3 == 1
    }

    /// The subsystem can do without SQ flow control.
    #[must_use]
    pub const fn can_disable_sq_flow_control(self) -> bool {
        self.0 & 4 != 0
    }
}

/// EFLAGS: entry flags.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EntryFlags(pub u16);

impl EntryFlags {
    /// DUPRETINFO: following this referral returns the same entries.
    pub const DUPLICATE_INFORMATION: Self = Self(1 << 0);
    /// EPCSD: explicit persistent connections are supported.
    pub const EXPLICIT_PERSISTENT: Self = Self(1 << 1);
    /// NCC: no connectivity between this direct discovery controller and a central one.
    pub const NO_CDC_CONNECTIVITY: Self = Self(1 << 2);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The words of the flags set, joined by commas, or `none`.
impl fmt::Display for EntryFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (Self::EXPLICIT_PERSISTENT, "explicit discovery connections"),
            (Self::DUPLICATE_INFORMATION, "duplicate discovery information"),
            (Self::NO_CDC_CONNECTIVITY, "no cdc connectivity"),
        ];
        let mut separator = "";
        for (_, word) in words.iter().filter(|(flag, _)| self.contains(*flag)) {
            write!(f, "{separator}{word}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

open_enum! {
    /// TSAS of TCP: security type.
    pub struct TcpSecurityType(u8) {
        /// No security.
        NONE = 0 => "none",
        /// TLS 1.2; obsolete.
        TLS = 1 => "tls",
        /// TLS 1.3 or later.
        TLS13 = 2 => "tls13",
    }
}

open_enum! {
    /// TSAS of RDMA: QP service type.
    pub struct RdmaQpType(u8) {
        /// Reliable connected.
        CONNECTED = 1 => "connected",
        /// Reliable datagram.
        DATAGRAM = 2 => "datagram",
    }
}

open_enum! {
    /// TSAS of RDMA: provider type.
    pub struct RdmaProviderType(u8) {
        /// Not specified.
        NOT_SPECIFIED = 1 => "not specified",
        /// InfiniBand.
        INFINIBAND = 2 => "infiniband",
        /// RoCE v1.
        ROCE = 3 => "roce",
        /// RoCE v2.
        ROCE_V2 = 4 => "roce-v2",
        /// iWARP.
        IWARP = 5 => "iwarp",
    }
}

open_enum! {
    /// TSAS of RDMA: connection management service.
    pub struct RdmaCms(u8) {
        /// RDMA_CM.
        RDMA_CM = 1 => "rdma-cm",
    }
}

/// Transport specific address subtype of RDMA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RdmaTsas {
    /// QP service type.
    pub qptype: RdmaQpType,
    /// Provider type.
    pub prtype: RdmaProviderType,
    /// Connection management service.
    pub cms: RdmaCms,
    /// Partition key, for InfiniBand.
    pub pkey: u16,
}

/// Header of the discovery log page.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogHeader {
    /// GENCTR: generation counter; a change while reading means that the page must be read again.
    pub genctr: U64,
    /// NUMREC: entries that follow.
    pub numrec: U64,
    /// RECFMT: 0 is the only format defined.
    pub recfmt: U16,
    /// Reserved.
    pub reserved_18: [u8; 1006],
}

const _: () = assert!(size_of::<DiscoveryLogHeader>() == RECORD_SIZE);
const _: () = assert!(offset_of!(DiscoveryLogHeader, numrec) == 8);
const _: () = assert!(offset_of!(DiscoveryLogHeader, recfmt) == 16);

impl DiscoveryLogHeader {
    /// A header for `numrec` entries.
    #[must_use]
    pub fn new(genctr: u64, numrec: u64) -> Self {
        Self { genctr: U64::new(genctr), numrec: U64::new(numrec), ..Self::new_zeroed() }
    }

    /// Size of header and entries in bytes; `None` if the number of records is absurd. Callers must still set
    /// a limit of their own before they allocate.
    #[must_use]
    pub const fn page_size(&self) -> Option<u64> {
        match self.numrec.get().checked_add(1) {
            Some(records) => records.checked_mul(RECORD_SIZE as u64),
            None => None,
        }
    }
}

impl fmt::Debug for DiscoveryLogHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryLogHeader")
            .field("genctr", &self.genctr.get())
            .field("numrec", &self.numrec.get())
            .field("recfmt", &self.recfmt.get())
            .finish()
    }
}

/// CNTLID of an entry: the subsystem uses the dynamic controller model.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// CNTLID of an entry: static controller model, any controller will do.
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// An entry of the discovery log page.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogEntry {
    /// Transport type.
    pub trtype: TransportTypeCode,
    /// Address family.
    pub adrfam: AddressFamilyCode,
    /// What the entry points to.
    pub subtype: SubsystemType,
    /// Transport requirements.
    pub treq: Treq,
    /// PORTID: NVM subsystem port.
    pub portid: U16,
    /// CNTLID: a controller, [`CNTLID_DYNAMIC`] or [`CNTLID_STATIC_ANY`].
    pub cntlid: U16,
    /// ASQSZ: largest admin submission queue, entries; at least 32.
    pub asqsz: U16,
    /// EFLAGS; see [`Self::flags`].
    pub eflags: U16,
    /// Reserved.
    pub reserved_12: [u8; 20],
    /// TRSVCID: transport service identifier, ASCII.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub reserved_64: [u8; 192],
    /// SUBNQN: NVM subsystem NQN, UTF-8.
    pub subnqn: [u8; 256],
    /// TRADDR: transport address, ASCII.
    pub traddr: [u8; 256],
    /// TSAS: transport specific address subtype.
    pub tsas: [u8; 256],
}

const _: () = assert!(size_of::<DiscoveryLogEntry>() == RECORD_SIZE);
const _: () = assert!(offset_of!(DiscoveryLogEntry, treq) == 3);
const _: () = assert!(offset_of!(DiscoveryLogEntry, portid) == 4);
const _: () = assert!(offset_of!(DiscoveryLogEntry, cntlid) == 6);
const _: () = assert!(offset_of!(DiscoveryLogEntry, asqsz) == 8);
const _: () = assert!(offset_of!(DiscoveryLogEntry, eflags) == 10);
const _: () = assert!(offset_of!(DiscoveryLogEntry, trsvcid) == 32);
const _: () = assert!(offset_of!(DiscoveryLogEntry, subnqn) == 256);
const _: () = assert!(offset_of!(DiscoveryLogEntry, traddr) == 512);
const _: () = assert!(offset_of!(DiscoveryLogEntry, tsas) == 768);

impl Default for DiscoveryLogEntry {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl DiscoveryLogEntry {
    /// Transport address, safe to print and, if it is what it should be, to parse: damage does not parse.
    #[must_use]
    pub fn traddr(&self) -> String {
        lossy_text(&self.traddr)
    }

    /// Transport service identifier, safe to print and to parse.
    #[must_use]
    pub fn trsvcid(&self) -> String {
        lossy_text(&self.trsvcid)
    }

    /// NVM subsystem NQN, safe to print. To compare or connect use [`Self::subnqn_bytes`].
    #[must_use]
    pub fn subnqn(&self) -> String {
        lossy_text(&self.subnqn)
    }

    /// NVM subsystem NQN, the bytes up to the first NUL, without trailing spaces.
    #[must_use]
    pub fn subnqn_bytes(&self) -> &[u8] {
        trimmed(&self.subnqn)
    }

    /// Entry flags.
    #[must_use]
    pub const fn flags(&self) -> EntryFlags {
        EntryFlags(self.eflags.get())
    }

    /// TSAS as NVMe/TCP defines it; meaningless for other transports.
    #[must_use]
    pub const fn tcp_security(&self) -> TcpSecurityType {
        TcpSecurityType(self.tsas[0])
    }

    /// TSAS as NVMe RDMA defines it; meaningless for other transports.
    #[must_use]
    pub const fn rdma_tsas(&self) -> RdmaTsas {
        RdmaTsas {
            qptype: RdmaQpType(self.tsas[0]),
            prtype: RdmaProviderType(self.tsas[1]),
            cms: RdmaCms(self.tsas[2]),
            pkey: u16::from_le_bytes([self.tsas[8], self.tsas[9]]),
        }
    }

    /// The whole entries in a stretch of the log page; bytes that do not fill an entry are left out.
    #[must_use]
    pub fn slice_from(bytes: &[u8]) -> &[Self] {
        let whole = bytes.len() / RECORD_SIZE;
        match <[Self]>::ref_from_prefix_with_elems(bytes, whole) {
            Ok((entries, _)) => entries,
            // Cannot happen: the bytes suffice and an entry has no alignment.
            Err(_) => &[],
        }
    }
}

impl fmt::Debug for DiscoveryLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryLogEntry")
            .field("trtype", &self.trtype)
            .field("adrfam", &self.adrfam)
            .field("subtype", &self.subtype)
            .field("treq", &self.treq)
            .field("portid", &self.portid.get())
            .field("cntlid", &format_args!("{:#06x}", self.cntlid.get()))
            .field("asqsz", &self.asqsz.get())
            .field("eflags", &format_args!("{:#06x}", self.eflags.get()))
            .field("trsvcid", &self.trsvcid())
            .field("subnqn", &self.subnqn())
            .field("traddr", &self.traddr())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
