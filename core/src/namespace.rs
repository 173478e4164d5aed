//! A namespace of an attached controller.

use std::fmt;
use std::sync::Arc;

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
    max_transfer: u32,
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
        let inner = Inner {
            block_size,
            metadata_size: format.ms.get(),
            extended: info.identify.is_extended_lba(),
            max_transfer: limits.max_transfer,
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

    /// The span of an I/O of `len` bytes at `slba`; `Err` names why there is none.
    #[inline]
    pub(crate) fn data_span(&self, slba: u64, len: usize) -> Result<Span, String> {
        let block = self.extended_block_size();
        if len == 0 || !(len as u64).is_multiple_of(u64::from(block)) {
            return Err(format!(
                "{len} bytes are not a whole number of {block}-byte logical blocks, at least one"
            ));
        }
        let max_blocks = (self.0.max_transfer / block).max(1);
        self.span(slba, len as u64 / u64::from(block), block, max_blocks)
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
        let boundary = if block_bytes == 0 { 0 } else { u32::from(self.noiob()) };
        Ok(Span { slba, blocks, block_bytes, max_blocks: max_blocks.min(65_536), boundary })
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("nsid", &self.nsid())
            .field("blocks", &self.blocks())
            .field("block_size", &self.block_size())
            .finish_non_exhaustive()
    }
}
