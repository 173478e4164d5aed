//! Extended entries: those of the extended discovery log page, and of the Discovery Information Management command. NVMe
//! Base 2.1 §5.1.12.3.1 and §5.3.4.
//!
//! An extended entry begins like any other one (1024 bytes). Its total length (TEL) and number of attributes (NUMEXAT) follow,
//! and then the attributes, each padded to a multiple of four bytes.

use core::fmt;

use zerocopy::IntoBytes;

use super::{DiscoveryLogEntry, RECORD_SIZE};
use crate::nqn::HostId;

/// Bytes of an extended entry without attributes.
pub const EXTENDED_HEAD: usize = RECORD_SIZE + 8;
/// Where TEL is.
const TEL: usize = RECORD_SIZE;
/// Bytes of an attribute's type and length.
const ATTRIBUTE_HEAD: usize = 4;

open_enum! {
    /// EXATTYPE: what an extended attribute holds.
    pub struct ExtendedAttributeType(u16) {
        /// Host identifier, 16 bytes.
        HOST_ID = 1 => "host identifier",
        /// Symbolic name, ASCII.
        SYMBOLIC_NAME = 2 => "symbolic name",
    }
}

/// TEL of the extended entry at the start of `bytes`, whatever it is; `None` while less than [`EXTENDED_HEAD`] bytes are there.
#[must_use]
pub fn entry_length(bytes: &[u8]) -> Option<u32> {
    let head = bytes.get(TEL..EXTENDED_HEAD)?;
    head.first_chunk().map(|tel| u32::from_le_bytes(*tel))
}

/// An attribute of an extended entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExtendedAttribute<'a> {
    /// What it holds.
    pub kind: ExtendedAttributeType,
    /// EXATVAL.
    pub value: &'a [u8],
}

impl ExtendedAttribute<'_> {
    /// The host identifier, if this is one.
    #[must_use]
    pub fn host_id(&self) -> Option<HostId> {
        let id: [u8; 16] = self.value.try_into().ok()?;
        (self.kind == ExtendedAttributeType::HOST_ID).then(|| HostId::from_bytes(id))
    }

    /// The symbolic name, safe to print, if this is one.
    #[must_use]
    pub fn symbolic_name(&self) -> Option<String> {
        (self.kind == ExtendedAttributeType::SYMBOLIC_NAME)
            .then(|| super::super::identify::text::lossy_text(self.value))
    }
}

impl fmt::Debug for ExtendedAttribute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ExtendedAttribute");
        out.field("kind", &self.kind);
        match (self.host_id(), self.symbolic_name()) {
            (Some(id), _) => out.field("host_id", &id),
            (_, Some(name)) => out.field("symbolic_name", &name),
            _ => out.field("len", &self.value.len()),
        };
        out.finish()
    }
}

/// The attributes of an extended entry, as far as they are whole.
#[derive(Clone, Debug)]
pub struct ExtendedAttributes<'a> {
    left: u16,
    bytes: &'a [u8],
}

impl<'a> ExtendedAttributes<'a> {
    /// The attributes in what follows the first 1024 bytes of an extended entry: TEL, NUMEXAT, attributes.
    #[must_use]
    pub fn new(tail: &'a [u8]) -> Self {
        let left = tail.get(4..6).map_or(0, |count| u16::from_le_bytes([count[0], count[1]]));
        Self { left, bytes: tail.get(EXTENDED_HEAD - TEL..).unwrap_or_default() }
    }
}

impl<'a> Iterator for ExtendedAttributes<'a> {
    type Item = ExtendedAttribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (head, rest) = self.bytes.split_first_chunk::<ATTRIBUTE_HEAD>()?;
        let kind = ExtendedAttributeType(u16::from_le_bytes([head[0], head[1]]));
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let value = rest.get(..len)?;
        self.bytes = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(ExtendedAttribute { kind, value })
    }
}

/// An extended entry as bytes. Values longer than 65,532 bytes are cut; there are at most 65,535 attributes.
#[must_use]
pub fn extended_entry(entry: &DiscoveryLogEntry, attributes: &[ExtendedAttribute<'_>]) -> Vec<u8> {
    let mut bytes = entry.as_bytes().to_vec();
    bytes.resize(EXTENDED_HEAD, 0);
    let attributes = &attributes[..attributes.len().min(usize::from(u16::MAX))];
    for attribute in attributes {
        let value = &attribute.value[..attribute.value.len().min(65_532)];
        let padded = value.len().next_multiple_of(4);
        // ASCII is padded with spaces, which count (NVMe Base 2.1 §1.4.2).
        let text = attribute.kind == ExtendedAttributeType::SYMBOLIC_NAME;
        let len = if text { padded } else { value.len() };
        bytes.extend(attribute.kind.0.to_le_bytes());
        bytes.extend((len as u16).to_le_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len() + padded - value.len(), if text { b' ' } else { 0 });
    }
    let tel = bytes.len() as u32;
    bytes[TEL..TEL + 4].copy_from_slice(&tel.to_le_bytes());
    bytes[TEL + 4..TEL + 6].copy_from_slice(&(attributes.len() as u16).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back() {
        let id = [7; 16];
        let attributes = [
            ExtendedAttribute { kind: ExtendedAttributeType::HOST_ID, value: &id },
            ExtendedAttribute { kind: ExtendedAttributeType::SYMBOLIC_NAME, value: b"rack 1" },
            ExtendedAttribute { kind: ExtendedAttributeType(9), value: &[1, 2, 3] },
        ];
        let bytes = extended_entry(&DiscoveryLogEntry::default(), &attributes);
        assert_eq!(entry_length(&bytes), Some(bytes.len() as u32));
        assert_eq!(bytes.len(), EXTENDED_HEAD + 20 + 12 + 8);
        let read: Vec<_> = ExtendedAttributes::new(&bytes[RECORD_SIZE..]).collect();
        assert_eq!(read[0].host_id(), Some(HostId::from_bytes(id)));
        assert_eq!(read[1].symbolic_name().as_deref(), Some("rack 1"));
        assert_eq!((read[2].kind.0, read[2].value), (9, &[1, 2, 3][..]));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn cut_attributes_end_the_list() {
        let attribute = ExtendedAttribute { kind: ExtendedAttributeType::SYMBOLIC_NAME, value: b"name" };
        let bytes = extended_entry(&DiscoveryLogEntry::default(), &[attribute, attribute]);
        for len in RECORD_SIZE..bytes.len() {
            let count = ExtendedAttributes::new(&bytes[RECORD_SIZE..len]).count();
            assert!(count < 2, "{count} attributes in {len} bytes");
        }
        assert_eq!(entry_length(&bytes[..EXTENDED_HEAD - 1]), None);
    }
}
