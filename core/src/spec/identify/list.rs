//! Lists Identify returns: namespace identifiers (CNS 02h) and namespace identification descriptors (CNS 03h).

use super::{Csi, IDENTIFY_SIZE, NSID_MAX};

/// A namespace list that the specification does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceListError {
    /// NSIDs must strictly increase; a list that does not could keep a host reading for ever.
    #[error("the namespace list goes from NSID {previous} to {found}, which does not increase")]
    NotIncreasing {
        /// The identifier before, or the one the list was to start after.
        previous: u32,
        /// The identifier found.
        found: u32,
    },
    /// FFFFFFFEh and FFFFFFFFh are no namespaces.
    #[error("the namespace list holds NSID {found:#x}, which is reserved")]
    Reserved {
        /// The identifier found.
        found: u32,
    },
}

/// Iterates over a namespace list: up to 1024 identifiers in increasing order, ended by a zero.
///
/// After an error the iterator yields nothing more.
#[derive(Clone, Debug)]
pub struct NamespaceList<'a> {
    rest: &'a [u8],
    previous: u32,
}

impl<'a> NamespaceList<'a> {
    /// Entries in a full list; after one, more may follow: ask again with the last NSID.
    pub const CAPACITY: usize = IDENTIFY_SIZE / 4;

    /// The list in `data`, of which all NSIDs must be greater than `after`: the NSID the command gave.
    #[must_use]
    pub const fn new(data: &'a [u8], after: u32) -> Self {
        Self { rest: data, previous: after }
    }
}

impl Iterator for NamespaceList<'_> {
    type Item = Result<u32, NamespaceListError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (entry, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        let found = u32::from_le_bytes(*entry);
        let previous = self.previous;
        if found != 0 && found > previous && found <= NSID_MAX {
            self.previous = found;
            return Some(Ok(found));
        }
        self.rest = &[];
        match found {
            0 => None,
            _ if found > NSID_MAX => Some(Err(NamespaceListError::Reserved { found })),
            _ => Some(Err(NamespaceListError::NotIncreasing { previous, found })),
        }
    }
}

impl core::iter::FusedIterator for NamespaceList<'_> {}

/// One namespace identification descriptor (Base 2.1 §5.1.13.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NamespaceDescriptor<'a> {
    /// NIDT 1: IEEE extended unique identifier, big endian.
    Eui64([u8; 8]),
    /// NIDT 2: namespace globally unique identifier, big endian.
    Nguid([u8; 16]),
    /// NIDT 3: namespace UUID, in the byte order of RFC 9562.
    Uuid([u8; 16]),
    /// NIDT 4: the namespace's I/O command set.
    CommandSet(Csi),
    /// A type this version of the software does not know.
    Unknown {
        /// NIDT.
        nidt: u8,
        /// The identifier.
        nid: &'a [u8],
    },
}

/// A namespace identification descriptor that the specification does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceDescriptorError {
    /// The descriptor reaches beyond the end of the list.
    #[error(
        "the namespace identification descriptor at byte {offset} has {length} bytes but only {left} are left"
    )]
    Truncated {
        /// Where the descriptor starts.
        offset: usize,
        /// Bytes it claims for the identifier.
        length: usize,
        /// Bytes left for it.
        left: usize,
    },
    /// NIDL is not the length the type has.
    #[error("the namespace identification descriptor at byte {offset} of type {nidt} has length {length}")]
    WrongLength {
        /// Where the descriptor starts.
        offset: usize,
        /// NIDT.
        nidt: u8,
        /// NIDL.
        length: usize,
    },
}

/// Iterates over a namespace identification descriptor list. After a [`NamespaceDescriptorError::Truncated`] the
/// iterator yields nothing more; a descriptor of wrong length is reported and skipped.
#[derive(Clone, Debug)]
pub struct NamespaceDescriptors<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> NamespaceDescriptors<'a> {
    /// The list in `data`.
    #[must_use]
    pub const fn new(data: &'a [u8]) -> Self {
        Self { rest: data, offset: 0 }
    }
}

impl<'a> Iterator for NamespaceDescriptors<'a> {
    type Item = Result<NamespaceDescriptor<'a>, NamespaceDescriptorError>;

    fn next(&mut self) -> Option<Self::Item> {
        // NIDT, NIDL, 2 reserved bytes. A NIDL of 0 ends the list, as does its physical end.
        let (&[nidt, nidl, _, _], rest) = self.rest.split_first_chunk()?;
        let offset = self.offset;
        let length = usize::from(nidl);
        if length == 0 {
            self.rest = &[];
            return None;
        }
        let Some((nid, rest)) = rest.split_at_checked(length) else {
            self.rest = &[];
            return Some(Err(NamespaceDescriptorError::Truncated { offset, length, left: rest.len() }));
        };
        self.rest = rest;
        self.offset += 4 + length;
        let descriptor = match nidt {
            1 => nid.try_into().ok().map(NamespaceDescriptor::Eui64),
            2 => nid.try_into().ok().map(NamespaceDescriptor::Nguid),
            3 => nid.try_into().ok().map(NamespaceDescriptor::Uuid),
            4 => <[u8; 1]>::try_from(nid).ok().map(|[csi]| NamespaceDescriptor::CommandSet(Csi(csi))),
            _ => Some(NamespaceDescriptor::Unknown { nidt, nid }),
        };
        Some(descriptor.ok_or(NamespaceDescriptorError::WrongLength { offset, nidt, length }))
    }
}

impl core::iter::FusedIterator for NamespaceDescriptors<'_> {}
