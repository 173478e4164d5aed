//! Discovery Information Management (opcode 21h): entering a host or a subsystem into a discovery service. NVMe Base 2.1 §5.3.4.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::discovery::extended::{EXTENDED_HEAD, ExtendedAttributes, entry_length};
use super::discovery::{DiscoveryLogEntry, RECORD_SIZE};
use super::identify::text::{fill, lossy_text};
use super::{AdminOpcode, Sqe};

open_enum! {
    /// TAS: what is to be done.
    pub struct DimTask(u8) {
        /// Enter.
        REGISTER = 0 => "register",
        /// Take out.
        DEREGISTER = 1 => "deregister",
        /// Enter again, with other information.
        UPDATE = 2 => "update",
    }
}

open_enum! {
    /// ENTFMT: how the entries look.
    pub struct DimEntryFormat(u16) {
        /// 1024 bytes each.
        BASIC = 1 => "basic",
        /// Extended, with attributes.
        EXTENDED = 2 => "extended",
    }
}

open_enum! {
    /// ETYPE: who is entered.
    pub struct DimEntityType(u16) {
        /// A host.
        HOST = 1 => "host",
        /// A direct discovery controller.
        DIRECT_DISCOVERY = 2 => "direct discovery controller",
        /// A central discovery controller.
        CENTRAL_DISCOVERY = 3 => "central discovery controller",
    }
}

/// EKTYPE: the fields that tell entries apart. The specification allows no other value.
pub const ENTRY_KEY_TYPE: u16 = 0x5f;

/// What precedes the entries.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DimHeader {
    /// TDL: bytes of header and entries.
    pub tdl: U32,
    /// Reserved.
    pub reserved_4: [u8; 4],
    /// NUMENT: entries.
    pub nument: U64,
    /// ENTFMT.
    pub entfmt: U16,
    /// ETYPE.
    pub etype: U16,
    /// PORTLCL: only for the port the command comes by.
    pub portlcl: u8,
    /// Reserved.
    pub reserved_21: u8,
    /// EKTYPE; [`ENTRY_KEY_TYPE`].
    pub ektype: U16,
    /// EID: entity identifier, the NQN of who is entered.
    pub eid: [u8; 256],
    /// ENAME: entity name, such as the host's name.
    pub ename: [u8; 256],
    /// EVER: entity version, such as that of the operating system.
    pub ever: [u8; 64],
    /// Reserved.
    pub reserved_600: [u8; 424],
}

const _: () = assert!(size_of::<DimHeader>() == RECORD_SIZE);
const _: () = assert!(offset_of!(DimHeader, entfmt) == 16);
const _: () = assert!(offset_of!(DimHeader, ektype) == 22);
const _: () = assert!(offset_of!(DimHeader, ename) == 280);
const _: () = assert!(offset_of!(DimHeader, reserved_600) == 600);

/// The command, which sends [`dim_data`].
#[must_use]
pub fn dim_command(task: DimTask) -> Sqe {
    Sqe::admin(AdminOpcode::DISCOVERY_INFORMATION_MANAGEMENT, 0).with_cdw10(task.0.into())
}

/// The task a command asks for.
#[must_use]
pub fn dim_task(sqe: &Sqe) -> DimTask {
    DimTask(sqe.cdw10.get() as u8 & 0xf)
}

/// The data of the command: `entries` are whole entries of the format given.
#[must_use]
pub fn dim_data(
    entity: DimEntityType,
    [eid, ename, ever]: [&str; 3],
    format: DimEntryFormat,
    entries: &[Vec<u8>],
) -> Vec<u8> {
    let mut header = DimHeader::new_zeroed();
    let len: usize = entries.iter().map(Vec::len).sum();
    header.tdl = U32::new((size_of::<DimHeader>() + len) as u32);
    header.nument = U64::new(entries.len() as u64);
    header.entfmt = U16::new(format.0);
    header.etype = U16::new(entity.0);
    header.ektype = U16::new(ENTRY_KEY_TYPE);
    fill(&mut header.eid, eid, 0);
    fill(&mut header.ename, ename, b' ');
    fill(&mut header.ever, ever, b' ');
    let mut data = header.as_bytes().to_vec();
    entries.iter().for_each(|entry| data.extend(entry));
    data
}

/// Why the data of a command is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DimError {
    /// Less than a header.
    #[error("the data ends within the header")]
    NoHeader,
    /// TDL is not the length of what was sent.
    #[error("TDL is {tdl}, {sent} bytes were sent")]
    Length {
        /// The length stated.
        tdl: u32,
        /// The bytes there are.
        sent: usize,
    },
    /// A field has a value that is not defined.
    #[error("{0} has an undefined value")]
    Field(&'static str),
    /// There are fewer, more or other entries than stated.
    #[error("the entries do not fill the data")]
    Entries,
}

/// The data of a command, taken apart.
#[derive(Clone, Debug)]
pub struct DimData {
    /// Who is entered.
    pub entity: DimEntityType,
    /// EID, the entity's NQN, safe to print.
    pub eid: String,
    /// ENAME, safe to print.
    pub ename: String,
    /// EVER, safe to print.
    pub ever: String,
    /// The entries, each with what follows its first 1024 bytes.
    pub entries: Vec<(DiscoveryLogEntry, Vec<u8>)>,
}

impl DimData {
    /// Takes the data of a command apart, as the controller role does.
    ///
    /// # Errors
    /// [`DimError`], whatever the bytes are. Nothing is allocated that did not arrive.
    pub fn parse(data: &[u8]) -> Result<Self, DimError> {
        let (header, mut rest) = DimHeader::read_from_prefix(data).map_err(|_| DimError::NoHeader)?;
        let tdl = header.tdl.get();
        if tdl as usize != data.len() {
            return Err(DimError::Length { tdl, sent: data.len() });
        }
        if header.ektype.get() != ENTRY_KEY_TYPE {
            return Err(DimError::Field("EKTYPE"));
        }
        let entity = DimEntityType(header.etype.get());
        entity.name().ok_or(DimError::Field("ETYPE"))?;
        let format = DimEntryFormat(header.entfmt.get());
        format.name().ok_or(DimError::Field("ENTFMT"))?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let len = match format {
                DimEntryFormat::EXTENDED => entry_length(rest).ok_or(DimError::Entries)? as usize,
                _ => RECORD_SIZE,
            };
            if format == DimEntryFormat::EXTENDED && len < EXTENDED_HEAD {
                return Err(DimError::Entries);
            }
            let (entry, behind) = rest.split_at_checked(len).ok_or(DimError::Entries)?;
            let (entry, tail) = DiscoveryLogEntry::read_from_prefix(entry).map_err(|_| DimError::Entries)?;
            entries.push((entry, tail.to_vec()));
            rest = behind;
        }
        if entries.len() as u64 != header.nument.get() {
            return Err(DimError::Entries);
        }
        let [eid, ename, ever] = [&header.eid[..], &header.ename, &header.ever].map(lossy_text);
        Ok(Self { entity, eid, ename, ever, entries })
    }

    /// The attributes of an entry.
    #[must_use]
    pub fn attributes(&self, index: usize) -> ExtendedAttributes<'_> {
        ExtendedAttributes::new(self.entries.get(index).map_or(&[], |(_, tail)| tail))
    }
}

#[cfg(test)]
mod tests {
    use super::super::discovery::extended::{ExtendedAttribute, ExtendedAttributeType, extended_entry};
    use super::*;

    fn registration() -> Vec<u8> {
        let id = [3; 16];
        let attribute = ExtendedAttribute { kind: ExtendedAttributeType::HOST_ID, value: &id };
        let entry = extended_entry(&DiscoveryLogEntry::default(), &[attribute]);
        let texts = ["nqn.2024-01.com.example:host", "host.example", "Linux 6.1"];
        dim_data(DimEntityType::HOST, texts, DimEntryFormat::EXTENDED, &[entry])
    }

    #[test]
    fn registration_comes_back() {
        let data = registration();
        let dim = DimData::parse(&data).unwrap();
        assert_eq!((dim.entity, dim.eid.as_str()), (DimEntityType::HOST, "nqn.2024-01.com.example:host"));
        assert_eq!((dim.ename.as_str(), dim.ever.as_str()), ("host.example", "Linux 6.1"));
        assert_eq!(dim.entries.len(), 1);
        assert!(dim.attributes(0).next().unwrap().host_id().is_some());
        assert_eq!(dim_task(&dim_command(DimTask::DEREGISTER)), DimTask::DEREGISTER);
    }

    #[test]
    fn whatever_is_wrong_is_refused() {
        let data = registration();
        for len in 0..data.len() {
            assert!(DimData::parse(&data[..len]).is_err(), "{len} bytes");
        }
        let changed = |at: usize, value: u8| {
            let mut data = data.clone();
            data[at] = value;
            DimData::parse(&data).map(drop)
        };
        assert_eq!(changed(16, 9), Err(DimError::Field("ENTFMT")));
        assert_eq!(changed(18, 9), Err(DimError::Field("ETYPE")));
        assert_eq!(changed(22, 0), Err(DimError::Field("EKTYPE")));
        assert_eq!(changed(8, 2), Err(DimError::Entries));
        assert_eq!(changed(2048, 0), Err(DimError::Entries), "a length that ends within the entry");
    }
}
