//! I/O commands to be submitted.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::dma::{DmaBuf, DmaPool, IoBuf};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::protection::Protection;
use crate::proto::split::Span;
use crate::spec::Sqe;
use crate::spec::command::{DsmRange, NvmOpcode};

/// An I/O command with its data. Made by one of the constructors, refined by the methods, given to
/// [`crate::IoQpair::submit`].
#[derive(Debug)]
pub struct IoCommand {
    pub(super) sqe: Sqe,
    /// The blocks it covers; `None` is sent as it is; `Err` why it makes no sense, told at submission.
    pub(super) span: Result<Option<Span>, String>,
    pub(super) buf: IoBuf,
}

impl IoCommand {
    /// Read (NVM Command Set 1.1 §3.3.4).
    #[must_use]
    #[inline(always)]
    pub fn read(ns: &Namespace, slba: u64, buf: impl Into<IoBuf>) -> Self {
        Self::with_data(NvmOpcode::READ, ns, slba, buf.into())
    }

    /// Write (§3.3.6).
    #[must_use]
    #[inline(always)]
    pub fn write(ns: &Namespace, slba: u64, buf: impl Into<IoBuf>) -> Self {
        Self::with_data(NvmOpcode::WRITE, ns, slba, buf.into())
    }

    /// Compare (§3.3.1).
    #[must_use]
    pub fn compare(ns: &Namespace, slba: u64, buf: impl Into<IoBuf>) -> Self {
        Self::with_data(NvmOpcode::COMPARE, ns, slba, buf.into())
    }

    /// Read with metadata and protection information. `md` takes the metadata of a namespace that has it apart from the data
    /// ([`Namespace::is_extended`]); its length is [`Namespace::metadata_len`], that of the data [`Namespace::data_len`]. It
    /// comes back with the data ([`IoBuf::into_parts`]).
    #[must_use]
    pub fn read_with_md(
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        md: Option<DmaBuf>,
        protection: Protection,
    ) -> Self {
        Self::with_md(NvmOpcode::READ, ns, slba, buf.into(), md, &protection)
    }

    /// Write with metadata and protection information; see [`IoCommand::read_with_md`].
    #[must_use]
    pub fn write_with_md(
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        md: Option<DmaBuf>,
        protection: Protection,
    ) -> Self {
        Self::with_md(NvmOpcode::WRITE, ns, slba, buf.into(), md, &protection)
    }

    /// Compare with metadata, but for its protection information, which is checked as `protection` says; see
    /// [`IoCommand::read_with_md`].
    #[must_use]
    pub fn compare_with_md(
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        md: Option<DmaBuf>,
        protection: Protection,
    ) -> Self {
        Self::with_md(NvmOpcode::COMPARE, ns, slba, buf.into(), md, &protection)
    }

    /// Verify that checks the protection information of the blocks.
    #[must_use]
    pub fn verify_with_md(ns: &Namespace, slba: u64, blocks: u64, protection: Protection) -> Self {
        Self::of_blocks_with_md(NvmOpcode::VERIFY, ns, slba, blocks, &protection)
    }

    /// Write Zeroes with protection information: with PRACT that of zeroes, else all zeroes.
    #[must_use]
    pub fn write_zeroes_with_md(ns: &Namespace, slba: u64, blocks: u64, protection: Protection) -> Self {
        Self::of_blocks_with_md(NvmOpcode::WRITE_ZEROES, ns, slba, blocks, &protection)
    }

    /// Write Zeroes (§3.3.8).
    #[must_use]
    pub fn write_zeroes(ns: &Namespace, slba: u64, blocks: u64) -> Self {
        Self::of_blocks(NvmOpcode::WRITE_ZEROES, ns, slba, blocks, false)
    }

    /// Verify (§3.3.5).
    #[must_use]
    pub fn verify(ns: &Namespace, slba: u64, blocks: u64) -> Self {
        Self::of_blocks(NvmOpcode::VERIFY, ns, slba, blocks, true)
    }

    /// Write Uncorrectable (§3.3.7).
    #[must_use]
    pub fn write_uncorrectable(ns: &Namespace, slba: u64, blocks: u64) -> Self {
        Self::of_blocks(NvmOpcode::WRITE_UNCORRECTABLE, ns, slba, blocks, false)
    }

    /// Flush (Base 2.1 §7.2).
    #[must_use]
    pub fn flush(ns: &Namespace) -> Self {
        Self::raw(Sqe::nvm(NvmOpcode::FLUSH, ns.nsid()), IoBuf::None)
    }

    /// Dataset Management (§3.3.3) of up to 256 ranges.
    ///
    /// # Errors
    /// When there are no ranges or too many, or no memory.
    pub fn dataset_management(
        ns: &Namespace,
        ranges: &[DsmRange],
        deallocate: bool,
        pool: &DmaPool,
    ) -> Result<Self> {
        if ranges.is_empty() || ranges.len() > 256 {
            return Err(Error::api_misuse(format!(
                "Dataset Management takes 1 to 256 ranges, not {}",
                ranges.len()
            )));
        }
        let buf = pool.copy_from(ranges.as_bytes())?;
        let sqe = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, ns.nsid())
            .with_cdw10(ranges.len() as u32 - 1)
            .with_cdw11(u32::from(deallocate) << 2);
        Ok(Self::raw(sqe, buf))
    }

    /// Any command, sent as it is in one piece; command identifier and data pointer are filled in. The direction of the
    /// data is that of the opcode's low two bits.
    #[must_use]
    pub fn raw(sqe: Sqe, buf: impl Into<IoBuf>) -> Self {
        Self { sqe, span: Ok(None), buf: buf.into() }
    }

    /// Force Unit Access: done only when durable (CDW12 bit 30).
    #[must_use]
    pub fn fua(self) -> Self {
        self.cdw12_bits(1 << 30)
    }

    /// Limited Retry: do not try hard (CDW12 bit 31).
    #[must_use]
    pub fn limited_retry(self) -> Self {
        self.cdw12_bits(1 << 31)
    }

    /// Deallocate the blocks that Write Zeroes names (CDW12 bit 25).
    #[must_use]
    pub fn deallocate(self) -> Self {
        self.cdw12_bits(1 << 25)
    }

    fn cdw12_bits(mut self, bits: u32) -> Self {
        self.sqe.cdw12 = U32::new(self.sqe.cdw12.get() | bits);
        self
    }

    /// The command in words, for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        NvmOpcode(self.sqe.opcode).name().unwrap_or("I/O command")
    }

    #[inline(always)]
    fn with_data(opcode: NvmOpcode, ns: &Namespace, slba: u64, buf: IoBuf) -> Self {
        let span = ns.data_span(slba, buf.len()).map(Some);
        Self { sqe: Sqe::nvm(opcode, ns.nsid()), span, buf }
    }

    fn with_md(
        opcode: NvmOpcode,
        ns: &Namespace,
        slba: u64,
        buf: IoBuf,
        md: Option<DmaBuf>,
        protection: &Protection,
    ) -> Self {
        let buf = match md {
            Some(md) => IoBuf::with_metadata(buf, md),
            None => buf,
        };
        let metadata = buf.metadata().map_or(0, DmaBuf::len);
        let span = ns.md_span(slba, buf.len(), metadata, protection).map(Some);
        Self { sqe: protected(opcode, ns, slba, protection), span, buf }
    }

    fn of_blocks_with_md(
        opcode: NvmOpcode,
        ns: &Namespace,
        slba: u64,
        blocks: u64,
        protection: &Protection,
    ) -> Self {
        let span = ns.protected_block_span(slba, blocks, opcode == NvmOpcode::VERIFY, protection);
        Self { sqe: protected(opcode, ns, slba, protection), span: span.map(Some), buf: IoBuf::None }
    }

    fn of_blocks(opcode: NvmOpcode, ns: &Namespace, slba: u64, blocks: u64, verify: bool) -> Self {
        Self {
            sqe: Sqe::nvm(opcode, ns.nsid()),
            span: ns.block_span(slba, blocks, verify).map(Some),
            buf: IoBuf::None,
        }
    }
}

/// A command with its protection fields, where the namespace has protection information.
fn protected(opcode: NvmOpcode, ns: &Namespace, slba: u64, protection: &Protection) -> Sqe {
    let sqe = Sqe::nvm(opcode, ns.nsid());
    match ns.protection() {
        Some(format) => format.apply(sqe, slba, protection),
        None => sqe,
    }
}
