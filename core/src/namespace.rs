//! A namespace of an attached controller.

use std::fmt;
use std::sync::Arc;

use crate::protection::{Guard, Protection, ProtectionFormat, ProtectionType};
use crate::proto::controller_init::NamespaceInfo;
use crate::proto::split::Span;
use crate::spec::identify::{IdentifyNamespace, IdentifyNamespaceNvm};
use crate::spec::log_page::AnaState;

/// A namespace: geometry and names as last identified. Cheap to clone; a snapshot that does not change when the
/// controller rescans.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    info: NamespaceInfo,
    block_size: u32,
    metadata_size: u16,
    extended: bool,
    /// Bytes per block of a command that says nothing of metadata; 0 when there is none, since metadata needs a buffer.
    plain_block: u32,
    protection: Option<ProtectionFormat>,
    max_transfer: u32,
    /// Most blocks of a command that says nothing of metadata.
    max_plain_blocks: u32,
    /// NOIOB.
    boundary: u32,
    /// Limits of commands without data, in blocks.
    max_zeroes_blocks: u32,
    max_verify_blocks: u32,
    ana_state: Option<AnaState>,
}

/// Limits that a controller puts on commands to its namespaces.
pub(crate) struct Limits {
    pub(crate) max_transfer: u32,
    /// WZSL, bytes.
    pub(crate) write_zeroes: Option<u64>,
    /// VSL, bytes.
    pub(crate) verify: Option<u64>,
}

impl Namespace {
    /// `None` when the namespace's format makes no sense (hostile or unsupported Identify data).
    pub(crate) fn new(info: NamespaceInfo, limits: &Limits, ana_state: Option<AnaState>) -> Option<Self> {
        let format = info.identify.lba_format()?;
        let block_size = format.block_size()?;
        let blocks = |limit: Option<u64>| {
            limit.map_or(65_536, |bytes| (bytes / u64::from(block_size)).clamp(1, 65_536) as u32)
        };
        let (metadata_size, extended) = (format.ms.get(), info.identify.is_extended_lba());
        let plain_block = match (metadata_size, extended) {
            (0, _) => block_size,
            (_, true) => block_size.checked_add(metadata_size.into())?,
            (_, false) => 0,
        };
        let inner = Inner {
            block_size,
            metadata_size,
            extended,
            plain_block,
            protection: protection_of(&info, block_size, metadata_size),
            max_transfer: limits.max_transfer,
            max_plain_blocks: limits.max_transfer.checked_div(plain_block).unwrap_or(1).clamp(1, 65_536),
            boundary: info.identify.noiob.get().into(),
            max_zeroes_blocks: blocks(limits.write_zeroes),
            max_verify_blocks: blocks(limits.verify),
            ana_state,
            info,
        };
        Some(Self(Arc::new(inner)))
    }

    /// Namespace identifier.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.0.info.nsid
    }

    /// Bytes of data per logical block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.0.block_size
    }

    /// Bytes of metadata per logical block; 0 is none.
    #[must_use]
    pub fn metadata_size(&self) -> u16 {
        self.0.metadata_size
    }

    /// Whether the metadata of a block is at the end of its data, in the same buffer (FLBAS bit 4). Otherwise, if there is
    /// any, it is in a buffer of its own.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.0.extended
    }

    /// How blocks are protected end to end (DPS, and the extended LBA format); `None` when they are not, or in a way that is
    /// not known here.
    #[must_use]
    pub fn protection(&self) -> Option<&ProtectionFormat> {
        self.0.protection.as_ref()
    }

    /// Bytes of the data buffer for `blocks` blocks: with metadata where that is part of the block and `protection` does not
    /// have the controller strip it.
    #[must_use]
    pub fn data_len(&self, blocks: u64, protection: &Protection) -> u64 {
        let (block, _) = self.transferred(protection);
        blocks.saturating_mul(block.into())
    }

    /// Bytes of the metadata buffer for `blocks` blocks; 0 when there has to be none.
    #[must_use]
    pub fn metadata_len(&self, blocks: u64, protection: &Protection) -> u64 {
        let (_, metadata) = self.transferred(protection);
        blocks.saturating_mul(metadata.into())
    }

    /// Bytes a logical block occupies in a data buffer: with metadata where that is part of the block.
    #[must_use]
    pub fn extended_block_size(&self) -> u32 {
        self.0.block_size + if self.0.extended { u32::from(self.0.metadata_size) } else { 0 }
    }

    /// Size in logical blocks (NSZE).
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.0.info.identify.nsze.get()
    }

    /// Size in bytes of data; saturates.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blocks().saturating_mul(u64::from(self.0.block_size))
    }

    /// Largest transfer of one command, bytes. Larger I/Os are cut.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        self.0.max_transfer
    }

    /// Optimal I/O boundary in blocks (NOIOB); 0 is none. Commands are cut so that none crosses it.
    #[must_use]
    pub fn noiob(&self) -> u16 {
        self.0.info.identify.noiob.get()
    }

    /// UUID, where there is one.
    #[must_use]
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.0.info.uuid
    }

    /// NGUID, where there is one.
    #[must_use]
    pub fn nguid(&self) -> Option<[u8; 16]> {
        self.0.info.nguid
    }

    /// EUI-64, where there is one.
    #[must_use]
    pub fn eui64(&self) -> Option<[u8; 8]> {
        self.0.info.eui64
    }

    /// Command set identifier: 0 NVM, 1 key value, 2 zoned.
    #[must_use]
    pub fn csi(&self) -> u8 {
        self.0.info.csi
    }

    /// ANA group; 0 when the controller has none.
    #[must_use]
    pub fn ana_group_id(&self) -> u32 {
        self.0.info.identify.anagrpid.get()
    }

    /// State of this controller's path to the namespace, where it reports one.
    #[must_use]
    pub fn ana_state(&self) -> Option<AnaState> {
        self.0.ana_state
    }

    /// Identify Namespace data.
    #[must_use]
    pub fn identify(&self) -> &IdentifyNamespace {
        &self.0.info.identify
    }

    /// NVM command set specific Identify data, where the controller has it.
    #[must_use]
    pub fn identify_nvm(&self) -> Option<&IdentifyNamespaceNvm> {
        self.0.info.nvm.as_deref()
    }

    /// Whether the other one has the same identifiers and format, so that a command for one is right for the other. The size may
    /// differ.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let identity = |ns: &Self| {
            (
                ns.nsid(),
                ns.uuid(),
                ns.nguid(),
                ns.eui64(),
                ns.csi(),
                ns.block_size(),
                ns.metadata_size(),
                ns.0.extended,
            )
        };
        identity(self) == identity(other)
    }

    /// The span of an I/O of `len` bytes at `slba`; `None` when there is none.
    #[inline(always)]
    pub(crate) fn plain_span(&self, slba: u64, len: usize) -> Option<Span> {
        let (block, boundary) = (self.0.plain_block, self.0.boundary);
        if block == 0 {
            return None;
        }
        let (blocks, rest) = (len as u64 / u64::from(block), len as u64 % u64::from(block));
        if rest != 0 || blocks == 0 || slba.checked_add(blocks).is_none() {
            return None;
        }
        let max_blocks = self.0.max_plain_blocks;
        Some(Span {
            slba,
            blocks,
            block_bytes: block,
            max_blocks,
            boundary,
            metadata_bytes: 0,
            ref_tag_bits: 0,
        })
    }

    /// As [`Namespace::plain_span`]; `Err` names why there is none.
    #[inline]
    pub(crate) fn data_span(&self, slba: u64, len: usize) -> Result<Span, String> {
        self.plain_span(slba, len).ok_or_else(|| self.no_span(slba, len))
    }

    #[cold]
    pub(crate) fn no_span(&self, slba: u64, len: usize) -> String {
        let block = self.0.plain_block;
        if block == 0 {
            return format!(
                "the {} bytes of metadata of each block of namespace {} need a buffer of their own: use read_with_md, \
                 write_with_md or compare_with_md",
                self.0.metadata_size,
                self.nsid()
            );
        }
        if len == 0 || !len.is_multiple_of(block as usize) {
            return wrong_length(len, block);
        }
        let blocks = len as u64 / u64::from(block);
        format!("no range of blocks starts at {slba} and has {blocks} blocks")
    }

    /// The span of an I/O of `len` bytes of data and `metadata` bytes of metadata apart from it; `Err` names why there is
    /// none.
    pub(crate) fn md_span(
        &self,
        slba: u64,
        len: usize,
        metadata: usize,
        protection: &Protection,
    ) -> Result<Span, String> {
        self.check_protection(protection)?;
        let (block, per_block) = self.transferred(protection);
        if len == 0 || !(len as u64).is_multiple_of(u64::from(block)) {
            return Err(wrong_length(len, block));
        }
        let blocks = len as u64 / u64::from(block);
        let wanted = blocks * u64::from(per_block);
        if metadata as u64 != wanted {
            let why = match (self.0.metadata_size, self.0.extended) {
                (0, _) => "it has no metadata".to_owned(),
                (_, true) => "its metadata is part of each block, in the data buffer".to_owned(),
                _ if per_block == 0 => "with PRACT its metadata is not transferred".to_owned(),
                (bytes, false) => format!("it has {bytes} bytes per block"),
            };
            return Err(format!(
                "{metadata} bytes of metadata for {blocks} blocks of namespace {}, which take {wanted}: {why}",
                self.nsid()
            ));
        }
        let max_blocks = (self.0.max_transfer / block).max(1);
        let span = self.span(slba, blocks, block, max_blocks)?;
        Ok(Span { metadata_bytes: per_block, ref_tag_bits: self.counted_bits(), ..span })
    }

    /// As [`Self::block_span`], for a command with protection fields.
    pub(crate) fn protected_block_span(
        &self,
        slba: u64,
        blocks: u64,
        verify: bool,
        protection: &Protection,
    ) -> Result<Span, String> {
        self.check_protection(protection)?;
        if verify && protection.has_pract() {
            return Err("Verify has no protection information action: leave PRACT out".to_owned());
        }
        Ok(Span { ref_tag_bits: self.counted_bits(), ..self.block_span(slba, blocks, verify)? })
    }

    fn counted_bits(&self) -> u8 {
        self.0.protection.map_or(0, |format| format.counted_bits())
    }

    fn check_protection(&self, protection: &Protection) -> Result<(), String> {
        match &self.0.protection {
            None if protection.asks() => {
                Err(format!("namespace {} is not formatted with protection information", self.nsid()))
            }
            Some(format) if format.kind() == ProtectionType::Type3 && protection.checks_ref_tag() => {
                Err(format!(
                    "namespace {} has protection information type 3, whose reference tag cannot be checked",
                    self.nsid()
                ))
            }
            _ => Ok(()),
        }
    }

    /// Bytes per block in the data buffer and in a metadata buffer. With PRACT, metadata that is all protection information is
    /// inserted and stripped by the controller and not transferred (NVM Command Set 1.1 §5.3.2).
    fn transferred(&self, protection: &Protection) -> (u32, u16) {
        let all = self.0.protection.is_some_and(|format| format.is_all_metadata());
        let metadata = if protection.has_pract() && all { 0 } else { self.0.metadata_size };
        match self.0.extended {
            // What is less than what the constructor has checked.
            true => (self.0.block_size + u32::from(metadata), 0),
            false => (self.0.block_size, metadata),
        }
    }

    /// The span of a command that names `blocks` blocks and carries no data.
    pub(crate) fn block_span(&self, slba: u64, blocks: u64, verify: bool) -> Result<Span, String> {
        let max = if verify { self.0.max_verify_blocks } else { self.0.max_zeroes_blocks };
        self.span(slba, blocks, 0, max)
    }

    #[inline]
    fn span(&self, slba: u64, blocks: u64, block_bytes: u32, max_blocks: u32) -> Result<Span, String> {
        if blocks == 0 || slba.checked_add(blocks).is_none() {
            return Err(format!("no range of blocks starts at {slba} and has {blocks} blocks"));
        }
        let boundary = if block_bytes == 0 { 0 } else { self.0.boundary };
        let max_blocks = max_blocks.min(65_536);
        Ok(Span { slba, blocks, block_bytes, max_blocks, boundary, metadata_bytes: 0, ref_tag_bits: 0 })
    }
}

fn wrong_length(len: usize, block: u32) -> String {
    format!("{len} bytes are not a whole number of {block}-byte logical blocks, at least one")
}

/// How the blocks of a namespace are protected, as far as Identify makes sense.
fn protection_of(info: &NamespaceInfo, block_size: u32, metadata_size: u16) -> Option<ProtectionFormat> {
    let id = &info.identify;
    let kind = ProtectionType::new(id.protection_type())?;
    let extended = info.nvm.as_ref().and_then(|nvm| nvm.extended_format(id.lba_format_index()));
    let (guard, storage_tag_bits) = match extended {
        None => (Guard::Crc16, 0),
        Some(extended) => (Guard::of_format(extended.guard_format())?, extended.storage_tag_bits()),
    };
    let format = ProtectionFormat::new(kind, guard, block_size, metadata_size)?;
    let format = if id.protection_is_first() { format.at_start() } else { format };
    format.with_storage_tag_bits(storage_tag_bits)
}

#[cfg(test)]
mod tests;

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("nsid", &self.nsid())
            .field("blocks", &self.blocks())
            .field("block_size", &self.block_size())
            .finish_non_exhaustive()
    }
}
