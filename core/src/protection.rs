//! End-to-end data protection: what a namespace's blocks carry, how commands ask the controller to check, insert or strip it,
//! and a host's own part. NVM Command Set 1.1 §5.3.
//!
//! ```text
//!   host: generate ──▶ Write, PRCHK ──▶ controller checks, stores ──▶ Read, PRCHK: controller checks ──▶ host: verify
//!   host:              Write, PRACT ──▶ controller inserts, stores ─▶ Read, PRACT: controller checks, strips
//! ```
//!
//! [`Protection`] says it for one command and [`ProtectionFormat`] computes and checks the same in the host's memory.

use crc_fast::{CrcAlgorithm, Digest};
use zerocopy::little_endian::U32;

use crate::spec::Sqe;

#[cfg(test)]
mod tests;

/// PRINFO bit 3: protection information action.
const PRACT: u8 = 1 << 3;
/// PRINFO bits 2:0, PRCHK.
const CHECK_GUARD: u8 = 1 << 2;
const CHECK_APP_TAG: u8 = 1 << 1;
const CHECK_REF_TAG: u8 = 1 << 0;
/// Where PRINFO is in CDW12.
const PRINFO_SHIFT: u32 = 26;
/// CDW12 bit 24, STC: check the storage tag.
const CHECK_STORAGE_TAG: u32 = 1 << 24;
/// The application tag that disables checks (§5.3.2).
const ESCAPE: u16 = u16::MAX;

/// Type of protection information (§5.3.1): what the reference tag is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProtectionType {
    /// The reference tag of a block is the low bits of its LBA.
    Type1,
    /// The reference tag counts from a value that each command states.
    Type2,
    /// The reference tag means what the application wants and is not checked.
    Type3,
}

impl ProtectionType {
    /// The type that DPS states, 1 to 3.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Type1),
            2 => Some(Self::Type2),
            3 => Some(Self::Type3),
            _ => None,
        }
    }

    /// 1, 2 or 3.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Type1 => 1,
            Self::Type2 => 2,
            Self::Type3 => 3,
        }
    }
}

/// The guard of protection information, and with it the format of the whole (§5.3.1.1 to §5.3.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Guard {
    /// CRC-16 T10-DIF, 8 bytes with the tags.
    Crc16,
    /// CRC-32C, 16 bytes with the tags.
    Crc32c,
    /// CRC-64/NVME, 16 bytes with the tags.
    Crc64,
}

impl Guard {
    /// The format that PIF states (0 to 2).
    #[must_use]
    pub const fn of_format(pif: u8) -> Option<Self> {
        match pif {
            0 => Some(Self::Crc16),
            1 => Some(Self::Crc32c),
            2 => Some(Self::Crc64),
            _ => None,
        }
    }

    /// PIF: 0 to 2.
    #[must_use]
    pub const fn format(self) -> u8 {
        match self {
            Self::Crc16 => 0,
            Self::Crc32c => 1,
            Self::Crc64 => 2,
        }
    }

    /// Bits of the guard itself.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Crc16 => 16,
            Self::Crc32c => 32,
            Self::Crc64 => 64,
        }
    }

    /// Bytes of protection information in the metadata of a block.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Crc16 => 8,
            Self::Crc32c | Self::Crc64 => 16,
        }
    }

    /// Bits that storage tag and reference tag have together.
    const fn space_bits(self) -> u8 {
        match self {
            Self::Crc16 => 32,
            Self::Crc32c => 80,
            Self::Crc64 => 48,
        }
    }

    /// Bits the storage tag may have.
    const fn storage_tag_bits(self) -> std::ops::RangeInclusive<u8> {
        match self {
            Self::Crc16 => 0..=32,
            Self::Crc32c => 16..=64,
            Self::Crc64 => 0..=48,
        }
    }

    const fn algorithm(self) -> CrcAlgorithm {
        match self {
            Self::Crc16 => CrcAlgorithm::Crc16T10Dif,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc64 => CrcAlgorithm::Crc64Nvme,
        }
    }
}

/// What one command says about protection information. The default says nothing: it is neither checked nor changed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Protection {
    prinfo: u8,
    check_storage_tag: bool,
    app_tag: u16,
    app_tag_mask: u16,
    ref_tag: Option<u64>,
    storage_tag: u64,
}

impl Protection {
    /// Nothing is checked or changed.
    pub const NONE: Self = Self {
        prinfo: 0,
        check_storage_tag: false,
        app_tag: 0,
        app_tag_mask: 0,
        ref_tag: None,
        storage_tag: 0,
    };

    /// PRACT: the controller inserts protection information into what is written; from what is read it strips it, if it is all
    /// of the metadata. Where it is all of the metadata, none is transferred.
    #[must_use]
    pub const fn pract(mut self) -> Self {
        self.prinfo |= PRACT;
        self
    }

    /// PRCHK bit 2: check the guard.
    #[must_use]
    pub const fn check_guard(mut self) -> Self {
        self.prinfo |= CHECK_GUARD;
        self
    }

    /// PRCHK bit 1: check those bits of the application tag that are set in `mask`.
    #[must_use]
    pub const fn check_app_tag(self, tag: u16, mask: u16) -> Self {
        let mut new = self.app_tag(tag, mask);
        new.prinfo |= CHECK_APP_TAG;
        new
    }

    /// PRCHK bit 0: check the reference tag. Types 1 and 2 only.
    #[must_use]
    pub const fn check_ref_tag(mut self) -> Self {
        self.prinfo |= CHECK_REF_TAG;
        self
    }

    /// STC: check the storage tag.
    #[must_use]
    pub const fn check_storage_tag(mut self, tag: u64) -> Self {
        (self.check_storage_tag, self.storage_tag) = (true, tag);
        self
    }

    /// PRINFO as a number: PRACT (bit 3) and PRCHK (2 guard, 1 application tag, 0 reference tag); replaces these four.
    #[must_use]
    pub const fn prinfo(mut self, bits: u8) -> Self {
        self.prinfo = bits & 0xf;
        self
    }

    /// The application tag to insert or generate, and the bits of it that a check looks at.
    #[must_use]
    pub const fn app_tag(mut self, tag: u16, mask: u16) -> Self {
        (self.app_tag, self.app_tag_mask) = (tag, mask);
        self
    }

    /// The reference tag of the first block. By default its LBA for types 1 and 2, and 0 for type 3. Bits that the format has
    /// no room for are dropped.
    #[must_use]
    pub const fn ref_tag(mut self, tag: u64) -> Self {
        self.ref_tag = Some(tag);
        self
    }

    /// The storage tag to insert or generate.
    #[must_use]
    pub const fn storage_tag(mut self, tag: u64) -> Self {
        self.storage_tag = tag;
        self
    }

    /// The reference tag of the first block, if one was stated.
    #[must_use]
    pub const fn first_ref_tag(&self) -> Option<u64> {
        self.ref_tag
    }

    /// PRINFO as a number.
    #[must_use]
    pub const fn prinfo_bits(&self) -> u8 {
        self.prinfo
    }

    /// Whether PRACT is set.
    #[must_use]
    pub const fn has_pract(&self) -> bool {
        self.prinfo & PRACT != 0
    }

    /// Whether the guard is checked.
    #[must_use]
    pub const fn checks_guard(&self) -> bool {
        self.prinfo & CHECK_GUARD != 0
    }

    /// Whether the application tag is checked.
    #[must_use]
    pub const fn checks_app_tag(&self) -> bool {
        self.prinfo & CHECK_APP_TAG != 0
    }

    /// Whether the reference tag is checked.
    #[must_use]
    pub const fn checks_ref_tag(&self) -> bool {
        self.prinfo & CHECK_REF_TAG != 0
    }

    /// Whether it asks for anything that only a namespace with protection information has.
    pub(crate) const fn asks(&self) -> bool {
        self.prinfo != 0 || self.check_storage_tag
    }

    /// What a command on a namespace of this format says: the other way of [`ProtectionFormat::apply`].
    #[must_use]
    pub fn of_command(sqe: &Sqe, format: &ProtectionFormat) -> Self {
        let (cdw12, cdw15) = (sqe.cdw12.get(), sqe.cdw15.get());
        let space = u128::from(sqe.cdw2.get() & 0xffff) << 64
            | u128::from(sqe.cdw3.get()) << 32
            | u128::from(sqe.cdw14.get());
        let (storage_tag, ref_tag) = format.split_space(space);
        Self {
            prinfo: (cdw12 >> PRINFO_SHIFT) as u8 & 0xf,
            check_storage_tag: cdw12 & CHECK_STORAGE_TAG != 0 && format.storage_tag_bits > 0,
            app_tag: cdw15 as u16,
            app_tag_mask: (cdw15 >> 16) as u16,
            ref_tag: Some(ref_tag),
            storage_tag,
        }
    }
}

/// A part of protection information.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProtectionField {
    /// The guard: the CRC of the data.
    Guard,
    /// The application tag.
    AppTag,
    /// The reference tag.
    RefTag,
    /// The storage tag.
    StorageTag,
}

impl std::fmt::Display for ProtectionField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Guard => "guard",
            Self::AppTag => "application tag",
            Self::RefTag => "reference tag",
            Self::StorageTag => "storage tag",
        })
    }
}

/// What is wrong with blocks and their protection information.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectionError {
    /// A block does not match its protection information.
    #[error("block {lba} has the {field} {actual:#x}, expected {expected:#x}")]
    Mismatch {
        /// The block.
        lba: u64,
        /// What does not match.
        field: ProtectionField,
        /// What it should be. Of an application tag only the bits that are looked at.
        expected: u64,
        /// What it is. Of an application tag only the bits that are looked at.
        actual: u64,
    },
    /// The buffers are not the same whole number of blocks.
    #[error(
        "{data} bytes of data and {metadata} bytes of metadata are not the same number of blocks of {block} and {per_block} bytes"
    )]
    Length {
        /// Bytes of data.
        data: usize,
        /// Bytes of metadata.
        metadata: usize,
        /// Bytes of data per block.
        block: usize,
        /// Bytes of metadata per block.
        per_block: usize,
    },
}

/// How the blocks of a namespace are protected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProtectionFormat {
    kind: ProtectionType,
    guard: Guard,
    storage_tag_bits: u8,
    first: bool,
    block_size: u32,
    metadata_size: u16,
}

impl ProtectionFormat {
    /// Blocks of `block_size` bytes of data and `metadata_size` bytes of metadata, whose last bytes are protection information,
    /// without storage tag where that is possible. `None` when the metadata is too short for it.
    #[must_use]
    pub fn new(kind: ProtectionType, guard: Guard, block_size: u32, metadata_size: u16) -> Option<Self> {
        let storage_tag_bits = *guard.storage_tag_bits().start();
        (usize::from(metadata_size) >= guard.size()).then_some(Self {
            kind,
            guard,
            storage_tag_bits,
            first: false,
            block_size,
            metadata_size,
        })
    }

    /// The same with protection information in the first bytes of the metadata (DPS bit 3).
    #[must_use]
    pub const fn at_start(mut self) -> Self {
        self.first = true;
        self
    }

    /// The same with a storage tag of this many bits; `None` when the format does not allow it.
    #[must_use]
    pub fn with_storage_tag_bits(self, bits: u8) -> Option<Self> {
        self.guard.storage_tag_bits().contains(&bits).then_some(Self { storage_tag_bits: bits, ..self })
    }

    /// The type.
    #[must_use]
    pub const fn kind(&self) -> ProtectionType {
        self.kind
    }

    /// The guard.
    #[must_use]
    pub const fn guard(&self) -> Guard {
        self.guard
    }

    /// Whether it is in the first bytes of the metadata, else in the last.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.first
    }

    /// Bits of the storage tag; 0 is none.
    #[must_use]
    pub const fn storage_tag_bits(&self) -> u8 {
        self.storage_tag_bits
    }

    /// Bits of the reference tag; 0 is none.
    #[must_use]
    pub const fn ref_tag_bits(&self) -> u8 {
        self.guard.space_bits() - self.storage_tag_bits
    }

    /// Bytes of protection information per block.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.guard.size()
    }

    /// Whether the metadata is nothing but protection information: then PRACT transfers none of it.
    #[must_use]
    pub fn is_all_metadata(&self) -> bool {
        usize::from(self.metadata_size) == self.size()
    }

    /// Where in the metadata of a block it is, bytes.
    #[must_use]
    pub fn position(&self) -> std::ops::Range<usize> {
        let start = if self.first { 0 } else { usize::from(self.metadata_size) - self.size() };
        start..start + self.size()
    }

    /// Bits of the reference tag that counts blocks; 0 when none does.
    pub(crate) const fn counted_bits(&self) -> u8 {
        match self.kind {
            ProtectionType::Type1 | ProtectionType::Type2 => self.ref_tag_bits(),
            ProtectionType::Type3 => 0,
        }
    }

    /// Writes what `protection` says into a command whose first block is `slba`: PRINFO and STC into CDW12, the tags into
    /// CDW15, CDW14 and, where they are that long, CDW3 and CDW2.
    #[must_use]
    pub fn apply(&self, mut sqe: Sqe, slba: u64, protection: &Protection) -> Sqe {
        let check = if protection.check_storage_tag { CHECK_STORAGE_TAG } else { 0 };
        sqe.cdw12 = U32::new(sqe.cdw12.get() | u32::from(protection.prinfo) << PRINFO_SHIFT | check);
        sqe.cdw15 = U32::new(u32::from(protection.app_tag_mask) << 16 | u32::from(protection.app_tag));
        let space = self.space(protection.storage_tag, self.first_ref_tag(slba, protection));
        sqe.cdw14 = U32::new(space as u32);
        sqe.cdw3 = U32::new((space >> 32) as u32);
        sqe.cdw2 = U32::new((space >> 64) as u32);
        sqe
    }

    /// What `protection`, stated for some block, is for the block `blocks` later: for a part of a larger I/O.
    #[must_use]
    pub const fn advance(&self, blocks: u64, protection: &Protection) -> Protection {
        let mut later = *protection;
        if let (ProtectionType::Type1 | ProtectionType::Type2, Some(tag)) = (self.kind, protection.ref_tag) {
            later.ref_tag = Some(tag.wrapping_add(blocks));
        }
        later
    }

    // --- the host's part ---------------------------------------------------------------------------------------------

    /// Computes the protection information of the blocks in `data`, the first of which is `slba`, into `metadata`: guard, and
    /// the tags that `protection` states. Other metadata stays.
    ///
    /// # Errors
    /// When the buffers are not the same whole number of blocks.
    pub fn generate(
        &self,
        slba: u64,
        data: &[u8],
        metadata: &mut [u8],
        protection: &Protection,
    ) -> Result<(), ProtectionError> {
        self.check_lengths(data.len(), metadata.len())?;
        let blocks = data.chunks_exact(self.block()).zip(metadata.chunks_exact_mut(self.per_block()));
        for (index, (data, metadata)) in (0..).zip(blocks) {
            self.generate_block(slba, index, data, metadata, protection);
        }
        Ok(())
    }

    /// As [`ProtectionFormat::generate`], for blocks that carry their metadata.
    ///
    /// # Errors
    /// When the buffer is not a whole number of blocks.
    pub fn generate_extended(
        &self,
        slba: u64,
        blocks: &mut [u8],
        protection: &Protection,
    ) -> Result<(), ProtectionError> {
        self.check_extended_length(blocks.len())?;
        for (index, block) in (0..).zip(blocks.chunks_exact_mut(self.block() + self.per_block())) {
            let (data, metadata) = block.split_at_mut(self.block());
            self.generate_block(slba, index, data, metadata, protection);
        }
        Ok(())
    }

    /// Checks blocks, the first of which is `slba`, against their protection information, as far as `protection` asks for it.
    /// Blocks whose application tag is FFFFh (and for type 3 whose other tags are all ones as well) are not checked (§5.3.2).
    ///
    /// # Errors
    /// The first field that does not match; or when the buffers are not the same whole number of blocks.
    pub fn verify(
        &self,
        slba: u64,
        data: &[u8],
        metadata: &[u8],
        protection: &Protection,
    ) -> Result<(), ProtectionError> {
        self.check_lengths(data.len(), metadata.len())?;
        let mut blocks = data.chunks_exact(self.block()).zip(metadata.chunks_exact(self.per_block()));
        (0..).zip(&mut blocks).try_for_each(|(index, (data, metadata))| {
            self.verify_block(slba, index, data, metadata, protection)
        })
    }

    /// As [`ProtectionFormat::verify`], for blocks that carry their metadata.
    ///
    /// # Errors
    /// As [`ProtectionFormat::verify`].
    pub fn verify_extended(
        &self,
        slba: u64,
        blocks: &[u8],
        protection: &Protection,
    ) -> Result<(), ProtectionError> {
        self.check_extended_length(blocks.len())?;
        let mut blocks = blocks.chunks_exact(self.block() + self.per_block());
        (0..).zip(&mut blocks).try_for_each(|(index, block)| {
            let (data, metadata) = block.split_at(self.block());
            self.verify_block(slba, index, data, metadata, protection)
        })
    }

    fn block(&self) -> usize {
        self.block_size as usize
    }

    fn per_block(&self) -> usize {
        usize::from(self.metadata_size)
    }

    fn check_lengths(&self, data: usize, metadata: usize) -> Result<(), ProtectionError> {
        let (block, per_block) = (self.block(), self.per_block());
        let whole = data.is_multiple_of(block) && metadata.is_multiple_of(per_block);
        if whole && data / block == metadata / per_block {
            return Ok(());
        }
        Err(ProtectionError::Length { data, metadata, block, per_block })
    }

    fn check_extended_length(&self, len: usize) -> Result<(), ProtectionError> {
        let (block, per_block) = (self.block(), self.per_block());
        if len.is_multiple_of(block + per_block) {
            return Ok(());
        }
        Err(ProtectionError::Length { data: len, metadata: 0, block: block + per_block, per_block })
    }

    /// The guard covers the data and the metadata before it (§5.3.1).
    fn compute_guard(&self, data: &[u8], before: &[u8]) -> u64 {
        let mut digest = Digest::new(self.guard.algorithm());
        digest.update(data);
        if !before.is_empty() {
            digest.update(before);
        }
        digest.finalize()
    }

    /// The reference tag of the first block.
    fn first_ref_tag(&self, slba: u64, protection: &Protection) -> u64 {
        protection.ref_tag.unwrap_or(match self.kind {
            ProtectionType::Type1 | ProtectionType::Type2 => slba,
            ProtectionType::Type3 => 0,
        })
    }

    /// The reference tag of the block `index` blocks later.
    fn ref_tag_at(&self, slba: u64, index: u64, protection: &Protection) -> u64 {
        let first = self.first_ref_tag(slba, protection);
        match self.kind {
            ProtectionType::Type1 | ProtectionType::Type2 => first.wrapping_add(index),
            ProtectionType::Type3 => first,
        }
    }

    /// Storage tag above, reference tag below.
    fn space(&self, storage_tag: u64, ref_tag: u64) -> u128 {
        let low = |bits: u8| (1u128 << bits) - 1;
        (u128::from(storage_tag) & low(self.storage_tag_bits)) << self.ref_tag_bits()
            | u128::from(ref_tag) & low(self.ref_tag_bits())
    }

    fn split_space(&self, space: u128) -> (u64, u64) {
        let space = space & ((1 << self.guard.space_bits()) - 1);
        // Neither has more than 64 bits.
        ((space >> self.ref_tag_bits()) as u64, (space & ((1 << self.ref_tag_bits()) - 1)) as u64)
    }

    fn generate_block(
        &self,
        slba: u64,
        index: u64,
        data: &[u8],
        metadata: &mut [u8],
        protection: &Protection,
    ) {
        let position = self.position();
        let guard = self.compute_guard(data, &metadata[..position.start]);
        let space = self.space(protection.storage_tag, self.ref_tag_at(slba, index, protection));
        Stored { guard, app_tag: protection.app_tag, space }.write(self.guard, &mut metadata[position]);
    }

    fn verify_block(
        &self,
        slba: u64,
        index: u64,
        data: &[u8],
        metadata: &[u8],
        protection: &Protection,
    ) -> Result<(), ProtectionError> {
        let position = self.position();
        let stored = Stored::read(self.guard, &metadata[position.clone()]);
        let all_ones = stored.space == (1 << self.guard.space_bits()) - 1;
        if stored.app_tag == ESCAPE && (self.kind != ProtectionType::Type3 || all_ones) {
            return Ok(());
        }
        let check = |field, asked: bool, expected: u64, actual: u64| {
            if !asked || expected == actual {
                return Ok(());
            }
            Err(ProtectionError::Mismatch { lba: slba.wrapping_add(index), field, expected, actual })
        };
        if protection.checks_guard() {
            let guard = self.compute_guard(data, &metadata[..position.start]);
            check(ProtectionField::Guard, true, guard, stored.guard)?;
        }
        let masked = |tag: u16| u64::from(tag & protection.app_tag_mask);
        let (expected, actual) = (masked(protection.app_tag), masked(stored.app_tag));
        check(ProtectionField::AppTag, protection.checks_app_tag(), expected, actual)?;
        let wanted = self.space(protection.storage_tag, self.ref_tag_at(slba, index, protection));
        let (wanted_storage, wanted_ref) = self.split_space(wanted);
        let (storage, reference) = self.split_space(stored.space);
        let counts = protection.checks_ref_tag() && self.kind != ProtectionType::Type3;
        check(ProtectionField::RefTag, counts, wanted_ref, reference)?;
        check(ProtectionField::StorageTag, protection.check_storage_tag, wanted_storage, storage)
    }
}

/// Protection information of one block, big endian in memory (Figures 148 to 150): guard, application tag, storage and reference
/// tag.
struct Stored {
    guard: u64,
    app_tag: u16,
    space: u128,
}

impl Stored {
    fn read(guard: Guard, bytes: &[u8]) -> Self {
        let (guard_bytes, tags) = bytes.split_at(usize::from(guard.bits() / 8));
        let number = |bytes: &[u8]| bytes.iter().fold(0u128, |value, &byte| value << 8 | u128::from(byte));
        let (app_tag, space) = tags.split_at(2);
        Self { guard: number(guard_bytes) as u64, app_tag: number(app_tag) as u16, space: number(space) }
    }

    fn write(&self, guard: Guard, bytes: &mut [u8]) {
        let (guard_bytes, tags) = bytes.split_at_mut(usize::from(guard.bits() / 8));
        let (app_tag, space) = tags.split_at_mut(2);
        guard_bytes.copy_from_slice(&self.guard.to_be_bytes()[8 - guard_bytes.len()..]);
        app_tag.copy_from_slice(&self.app_tag.to_be_bytes());
        let all = self.space.to_be_bytes();
        space.copy_from_slice(&all[all.len() - space.len()..]);
    }
}
