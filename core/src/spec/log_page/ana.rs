//! Asymmetric Namespace Access log page (0Ch). NVMe Base 2.1 §5.1.12.1.13.
//!
//! The page is a header and variable-length group descriptors, whose counts a controller could set to
//! anything. The reader below looks at no byte outside the page and takes at most as many steps as the page
//! has room for descriptors.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// State of an ANA group (Base 2.1 §8.1.1).
    pub struct AnaState(u8) {
        /// Full access at its best.
        OPTIMIZED = 0x1 => "optimized",
        /// Full access, but another controller may be faster.
        NON_OPTIMIZED = 0x2 => "non-optimized",
        /// No access through this controller now.
        INACCESSIBLE = 0x3 => "inaccessible",
        /// No access through this controller ever again.
        PERSISTENT_LOSS = 0x4 => "persistent loss",
        /// Changing from one state to another.
        CHANGE = 0xf => "change",
    }
}

impl AnaState {
    /// Whether I/O commands may be sent to namespaces in this state.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::OPTIMIZED | Self::NON_OPTIMIZED)
    }
}

/// Header of the ANA log page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaLogHeader {
    /// CHGCNT: changes of the page since reset; wraps.
    pub chgcnt: U64,
    /// NGRPS: group descriptors in the page.
    pub ngrps: U16,
    /// Reserved.
    pub reserved_10: [u8; 6],
}

const _: () = assert!(size_of::<AnaLogHeader>() == 16);
const _: () = assert!(offset_of!(AnaLogHeader, ngrps) == 8);

/// The fixed part of an ANA group descriptor; the NSIDs follow, 4 bytes each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaGroupDescriptor {
    /// ANAGRPID: group identifier, not 0.
    pub anagrpid: U32,
    /// NNSIDS: NSIDs that follow; 0 if the command asked for groups only (LSP bit 0).
    pub nnsids: U32,
    /// Change count of the group.
    pub chgcnt: U64,
    /// ANA state in bits 3:0.
    pub state: u8,
    /// Reserved.
    pub reserved_17: [u8; 15],
}

const _: () = assert!(size_of::<AnaGroupDescriptor>() == 32);
const _: () = assert!(offset_of!(AnaGroupDescriptor, nnsids) == 4);
const _: () = assert!(offset_of!(AnaGroupDescriptor, state) == 16);

/// An ANA log page that does not add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnaLogError {
    /// Not even the header fits.
    #[error("the ANA log page has {length} bytes, less than its 16-byte header")]
    NoHeader {
        /// Bytes there are.
        length: usize,
    },
    /// A descriptor reaches beyond the end of the page. If the page was read only in part, read all of it.
    #[error(
        "ANA group descriptor {index} of {ngrps} needs {needed} bytes but the log page has only {left} left"
    )]
    Truncated {
        /// Which descriptor, from 0.
        index: u16,
        /// How many the header promises.
        ngrps: u16,
        /// Bytes the descriptor needs.
        needed: u64,
        /// Bytes left.
        left: usize,
    },
    /// Group identifier 0 is not valid.
    #[error("ANA group descriptor {index} has group identifier 0, which is not valid")]
    ZeroGroup {
        /// Which descriptor, from 0.
        index: u16,
    },
}

/// An ANA log page in memory.
#[derive(Clone, Copy, Debug)]
pub struct AnaLog<'a> {
    header: AnaLogHeader,
    descriptors: &'a [u8],
}

impl<'a> AnaLog<'a> {
    /// Reads the header of a log page.
    ///
    /// # Errors
    ///
    /// [`AnaLogError::NoHeader`] if there are fewer than 16 bytes.
    pub fn new(page: &'a [u8]) -> Result<Self, AnaLogError> {
        let Ok((header, descriptors)) = AnaLogHeader::read_from_prefix(page) else {
            return Err(AnaLogError::NoHeader { length: page.len() });
        };
        Ok(Self { header, descriptors })
    }

    /// CHGCNT: if it differs from that of an earlier read, something changed.
    #[must_use]
    pub const fn change_count(&self) -> u64 {
        self.header.chgcnt.get()
    }

    /// Groups the page claims to describe.
    #[must_use]
    pub const fn group_count(&self) -> u16 {
        self.header.ngrps.get()
    }

    /// The group descriptors.
    #[must_use]
    pub const fn groups(&self) -> AnaGroups<'a> {
        AnaGroups { rest: self.descriptors, index: 0, ngrps: self.header.ngrps.get() }
    }
}

/// Iterates over the group descriptors of an ANA log page; after an error it yields nothing more.
#[derive(Clone, Debug)]
pub struct AnaGroups<'a> {
    rest: &'a [u8],
    index: u16,
    ngrps: u16,
}

impl<'a> AnaGroups<'a> {
    fn read(&mut self) -> Result<AnaGroup<'a>, AnaLogError> {
        const FIXED: u64 = size_of::<AnaGroupDescriptor>() as u64;
        let (index, ngrps, left) = (self.index, self.ngrps, self.rest.len());
        let truncated = |needed| AnaLogError::Truncated { index, ngrps, needed, left };
        let Ok((descriptor, rest)) = AnaGroupDescriptor::read_from_prefix(self.rest) else {
            return Err(truncated(FIXED));
        };
        let nsid_bytes = u64::from(descriptor.nnsids.get()) * 4;
        let split = usize::try_from(nsid_bytes).ok().and_then(|length| rest.split_at_checked(length));
        let Some((nsids, rest)) = split else {
            return Err(truncated(FIXED + nsid_bytes));
        };
        if descriptor.anagrpid.get() == 0 {
            return Err(AnaLogError::ZeroGroup { index });
        }
        self.rest = rest;
        self.index += 1;
        Ok(AnaGroup { descriptor, nsids })
    }
}

impl<'a> Iterator for AnaGroups<'a> {
    type Item = Result<AnaGroup<'a>, AnaLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.ngrps {
            return None;
        }
        let group = self.read();
        if group.is_err() {
            self.ngrps = 0;
        }
        Some(group)
    }
}

impl core::iter::FusedIterator for AnaGroups<'_> {}

/// One ANA group.
#[derive(Clone, Copy, Debug)]
pub struct AnaGroup<'a> {
    descriptor: AnaGroupDescriptor,
    nsids: &'a [u8],
}

impl<'a> AnaGroup<'a> {
    /// ANAGRPID, not 0.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.descriptor.anagrpid.get()
    }

    /// Change count of the group.
    #[must_use]
    pub const fn change_count(&self) -> u64 {
        self.descriptor.chgcnt.get()
    }

    /// State of the group.
    #[must_use]
    pub const fn state(&self) -> AnaState {
        AnaState(self.descriptor.state & 0xf)
    }

    /// Namespaces in the group, as the controller lists them: not checked for order or validity.
    pub fn nsids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.nsids.as_chunks().0.iter().map(|nsid| u32::from_le_bytes(*nsid))
    }
}
