//! Namespaces: how they are described to a builder, and the commands of the NVM command set on them.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nvmf_core::nqn::Uuid;
use nvmf_core::protection::{Guard, ProtectionType};
use nvmf_core::spec::command::DsmRange;
use nvmf_core::spec::identify::{IdentifyNamespace, IdentifyNamespaceNvm, LbaFormat};
use nvmf_core::spec::{NvmOpcode, Sqe, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros};

use crate::backing::Backing;
use crate::data::Data;
use crate::error::LoopbackError;
use crate::target::Front;

mod metadata;

pub use metadata::MetadataPlace;

/// Most blocks Write Uncorrectable may mark in one namespace.
const MAX_UNCORRECTABLE: usize = 1 << 20;
/// CDW12 bit 30: force unit access.
const FUA: u32 = 1 << 30;
/// Dataset Management CDW11 bit 2: attribute deallocate.
const DSM_DEALLOCATE: u32 = 1 << 2;

/// A namespace to be made: where its bytes are kept, and what it says about itself.
#[derive(Clone, Debug)]
pub struct Namespace {
    source: Source,
    block_size: u32,
    pub(crate) nsid: Option<u32>,
    uuid: Option<[u8; 16]>,
    nguid: [u8; 16],
    eui64: [u8; 8],
    read_only: bool,
    metadata: metadata::Wanted,
}

#[derive(Clone, Debug)]
enum Source {
    Memory(u64),
    File(PathBuf, u64),
    Null(u64),
}

impl Namespace {
    fn new(source: Source) -> Self {
        Self {
            source,
            block_size: 512,
            nsid: None,
            uuid: None,
            nguid: [0; 16],
            eui64: [0; 8],
            read_only: false,
            metadata: metadata::Wanted::default(),
        }
    }

    /// `len` bytes of memory, metadata not counted, allocated as they are written.
    #[must_use]
    pub fn memory(len: u64) -> Self {
        Self::new(Source::Memory(len))
    }

    /// The file at `path`, made if it is missing and extended with a hole if it is shorter than `len` bytes, metadata not
    /// counted. Zero takes the file's own length. Where there is metadata, the file has it after the data of each block, with
    /// its protection information inverted: a hole is a block without protection.
    #[must_use]
    pub fn file(path: impl AsRef<Path>, len: u64) -> Self {
        Self::new(Source::File(path.as_ref().to_owned(), len))
    }

    /// `len` bytes that are kept nowhere, for benchmarks: writes are discarded, reads return zeroes (over PCIe whatever the buffer held), and
    /// Compare always succeeds.
    #[must_use]
    pub fn null(len: u64) -> Self {
        Self::new(Source::Null(len))
    }

    /// Size of a logical block, a power of two from 512 to 65,536 bytes. 512. Bytes of the backing that fill no whole block are
    /// not used.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// The namespace identifier. The lowest that is free unless given.
    #[must_use]
    pub fn nsid(mut self, nsid: u32) -> Self {
        self.nsid = Some(nsid);
        self
    }

    /// The namespace UUID. Unless given, that of a file is made of its path and this machine's identifier, so that a target that is
    /// started again serves the namespace its hosts knew; any other is random.
    #[must_use]
    pub fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// The NGUID. None unless given.
    #[must_use]
    pub fn nguid(mut self, nguid: [u8; 16]) -> Self {
        self.nguid = nguid;
        self
    }

    /// The EUI-64. None unless given.
    #[must_use]
    pub fn eui64(mut self, eui64: [u8; 8]) -> Self {
        self.eui64 = eui64;
        self
    }

    /// Write protects the namespace.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Gives each block `bytes` of metadata. It is kept beside the block.
    #[must_use]
    pub fn metadata(mut self, bytes: u16, place: MetadataPlace) -> Self {
        (self.metadata.size, self.metadata.separate) = (bytes, place == MetadataPlace::Separate);
        self
    }

    /// Protects blocks end to end, in the last bytes of the metadata, with a 16-bit guard unless [`Self::guard`] says otherwise:
    /// the controller checks, inserts and strips protection information as commands ask for it.
    #[must_use]
    pub fn protection(mut self, kind: ProtectionType) -> Self {
        self.metadata.kind = Some(kind);
        self
    }

    /// Puts protection information into the first bytes of the metadata.
    #[must_use]
    pub fn protection_first(mut self) -> Self {
        self.metadata.first = true;
        self
    }

    /// The guard, and with it the format, of protection information. With [`Guard::Crc32c`] the storage tag has 16 bits, else
    /// there is none.
    #[must_use]
    pub fn guard(mut self, guard: Guard) -> Self {
        self.metadata.guard = Some(guard);
        self
    }

    /// Opens the backing.
    pub(crate) fn open(self, nsid: u32) -> Result<ActiveNamespace, LoopbackError> {
        if !self.block_size.is_power_of_two() || !(512..=65_536).contains(&self.block_size) {
            return Err(LoopbackError::BlockSize(self.block_size));
        }
        let metadata = self.metadata.check(self.block_size, matches!(self.source, Source::Null(_)))?;
        let block_shift = self.block_size.trailing_zeros();
        let stride = u64::from(self.block_size) + metadata.map_or(0, |metadata| u64::from(metadata.size));
        // Lengths are those of the data; whatever fills no block is left as it is.
        let kept = |len: u64| match metadata {
            Some(_) => (len >> block_shift).saturating_mul(stride),
            None => len,
        };
        let mut of_file = None;
        let (backing, len) = match self.source {
            Source::Memory(len) => (Backing::memory(kept(len), stride), kept(len)),
            Source::Null(len) => (Backing::Null, len),
            Source::File(path, len) => {
                let made = Backing::file(&path, kept(len), stride);
                // The file is there now, and so is its canonical path.
                of_file = Some(uuid_of_file(&path));
                made.map_err(|source| LoopbackError::File { path, source })?
            }
        };
        let blocks = len / stride;
        if blocks == 0 {
            return Err(LoopbackError::TooSmall { bytes: len, block_size: self.block_size });
        }
        let uuid = match self.uuid.or(of_file) {
            Some(uuid) => uuid,
            None => Uuid::random().map_err(LoopbackError::Start)?.to_bytes(),
        };
        Ok(ActiveNamespace {
            nsid,
            block_shift,
            stride,
            metadata,
            blocks: AtomicU64::new(blocks),
            backing,
            uuid,
            nguid: self.nguid,
            eui64: self.eui64,
            read_only: self.read_only,
            uncorrectable_count: AtomicUsize::new(0),
            uncorrectable: Mutex::default(),
        })
    }
}

/// A UUID that the same file of the same machine always has: two FNV-1a hashes, marked as made in a way of our own (RFC 9562, version
/// 8).
fn uuid_of_file(path: &Path) -> [u8; 16] {
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let hash = |seed: u64| {
        let bytes = machine.iter().chain(&[0]).chain(path.as_os_str().as_bytes());
        bytes.fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let halves = [hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142)];
    let mut uuid: [u8; 16] = zerocopy::transmute!(halves);
    (uuid[6], uuid[8]) = (uuid[6] & 0x0f | 0x80, uuid[8] & 0x3f | 0x80);
    uuid
}

/// A namespace of a running subsystem.
#[derive(Debug)]
pub(crate) struct ActiveNamespace {
    pub(crate) nsid: u32,
    block_shift: u32,
    /// Bytes of a block in the backing, with its metadata.
    stride: u64,
    metadata: Option<metadata::Metadata>,
    blocks: AtomicU64,
    backing: Backing,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
    read_only: bool,
    /// Length of `uncorrectable`, to be looked at without the lock.
    uncorrectable_count: AtomicUsize,
    uncorrectable: Mutex<BTreeSet<u64>>,
}

/// A range of blocks that lies inside the namespace.
#[derive(Clone, Copy)]
struct Range {
    slba: u64,
    blocks: u64,
}

impl ActiveNamespace {
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    pub(crate) fn size(&self) -> u64 {
        self.blocks() << self.block_shift
    }

    /// Changes the size; what is cut off is lost.
    pub(crate) fn resize(&self, len: u64) -> Result<(), LoopbackError> {
        let blocks = len >> self.block_shift;
        if blocks == 0 {
            return Err(LoopbackError::TooSmall { bytes: len, block_size: 1 << self.block_shift });
        }
        // Commands in between must find every block they are allowed to touch.
        self.blocks.fetch_min(blocks, Ordering::AcqRel);
        let len = if self.metadata.is_some() { blocks * self.stride } else { len };
        self.backing.resize(len).map_err(LoopbackError::Resize)?;
        self.blocks.store(blocks, Ordering::Release);
        Ok(())
    }

    /// Identify Namespace, CNS 00h, as a host at `front` sees it.
    pub(crate) fn identify(&self, mdts_bytes: u64, front: Front) -> IdentifyNamespace {
        let blocks = U64::new(self.blocks());
        let mut data = IdentifyNamespace {
            nsze: blocks,
            ncap: blocks,
            nuse: blocks,
            nmic: 1,
            // Deallocated blocks read as zeroes (001b), Write Zeroes takes the Deallocate bit (bit 3).
            dlfeat: 0b1001,
            anagrpid: U32::new(1),
            nsattr: u8::from(self.read_only),
            nguid: self.nguid,
            eui64: self.eui64,
            nvmcap: u128::from(self.size()).to_le_bytes(),
            ..IdentifyNamespace::default()
        };
        data.lbaf[0] = LbaFormat { ms: U16::ZERO, lbads: self.block_shift as u8, rp: 0 };
        if let Some(metadata) = &self.metadata {
            data.lbaf[0].ms = U16::new(metadata.size);
            let extended = metadata.place(front) == MetadataPlace::Extended;
            // MC: bit 0 extended, bit 1 separate; there is no Format to choose between them.
            (data.flbas, data.mc) = if extended { (1 << 4, 1 << 0) } else { (0, 1 << 1) };
            if let Some(format) = metadata.protection {
                let (kind, first) = (format.kind().number(), format.is_first());
                // DPC: bits 2:0 by type, bit 3 first bytes, bit 4 last bytes; DPS: the type, and bit 3 first bytes.
                data.dpc = 1 << (kind - 1) | if first { 1 << 3 } else { 1 << 4 };
                data.dps = kind | u8::from(first) << 3;
            }
        }
        // NSFEAT bit 4: the optimal sizes are valid. Nothing is gained by alignment here, so they are one block.
        data.nsfeat = 1 << 4;
        data.nows_z = U16::new(((mdts_bytes >> self.block_shift).clamp(1, 65_536) - 1) as u16);
        data
    }

    /// Identify Namespace for the NVM command set, CNS 05h.
    pub(crate) fn identify_nvm(&self) -> IdentifyNamespaceNvm {
        let mut data = IdentifyNamespaceNvm::new_zeroed();
        if let Some(format) = self.metadata.and_then(|metadata| metadata.protection) {
            // ELBAF: storage tag size, and PIF (8:7).
            let pif = u32::from(format.guard().format());
            data.elbaf[0] = U32::new(u32::from(format.storage_tag_bits()) | pif << 7);
        }
        data
    }

    /// Whether blocks have one of the formats that only hosts know which know extended LBA formats.
    pub(crate) fn has_extended_format(&self) -> bool {
        let format = self.metadata.and_then(|metadata| metadata.protection);
        format.is_some_and(|format| format.guard() != Guard::Crc16)
    }

    /// Executes a command of the NVM command set from a host at `front`. `max_transfer` is MDTS in bytes. Metadata apart from
    /// the data follows it in `data`.
    pub(crate) fn execute(
        &self,
        sqe: &Sqe,
        data: Data<'_>,
        max_transfer: u64,
        front: Front,
    ) -> Result<(), Status> {
        // Fused operations are not supported (FUSES is 0).
        if sqe.flags & 3 != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if let Some(metadata) = &self.metadata
            && matches!(
                NvmOpcode(sqe.opcode),
                NvmOpcode::READ
                    | NvmOpcode::WRITE
                    | NvmOpcode::COMPARE
                    | NvmOpcode::VERIFY
                    | NvmOpcode::WRITE_ZEROES
            )
        {
            return self.execute_with_metadata(metadata, sqe, data, max_transfer, front);
        }
        match NvmOpcode(sqe.opcode) {
            NvmOpcode::READ => {
                let range = self.transfer_range(sqe, max_transfer)?;
                let to = data.room(self.bytes(range))?;
                self.check_readable(range)?;
                self.backing
                    .read(self.offset(range), to)
                    .map_err(|e| self.media(&e, Status::UNRECOVERED_READ_ERROR))
            }
            NvmOpcode::WRITE => {
                let range = self.transfer_range(sqe, max_transfer)?;
                let from = data.sent(self.bytes(range))?;
                self.check_writable()?;
                self.backing
                    .write(self.offset(range), from)
                    .map_err(|e| self.media(&e, Status::WRITE_FAULT))?;
                self.make_readable(range);
                self.force_unit_access(sqe)
            }
            NvmOpcode::COMPARE => {
                let range = self.transfer_range(sqe, max_transfer)?;
                let with = data.sent(self.bytes(range))?;
                self.check_readable(range)?;
                match self.backing.equals(self.offset(range), with) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Status::COMPARE_FAILURE),
                    Err(e) => Err(self.media(&e, Status::UNRECOVERED_READ_ERROR)),
                }
            }
            NvmOpcode::FLUSH => {
                data.none()?;
                self.flush()
            }
            NvmOpcode::WRITE_ZEROES => {
                data.none()?;
                let range = self.range(sqe.slba(), blocks_of(sqe))?;
                self.check_writable()?;
                self.zero(range)?;
                self.force_unit_access(sqe)
            }
            NvmOpcode::VERIFY => {
                data.none()?;
                let range = self.range(sqe.slba(), blocks_of(sqe))?;
                self.check_readable(range)
            }
            NvmOpcode::WRITE_UNCORRECTABLE => {
                data.none()?;
                let range = self.range(sqe.slba(), blocks_of(sqe))?;
                self.check_writable()?;
                self.make_unreadable(range)
            }
            NvmOpcode::DATASET_MANAGEMENT => self.dataset_management(sqe, data),
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    /// Bytes the command moves in its data buffer and in its metadata buffer.
    pub(crate) fn lengths(&self, sqe: &Sqe, front: Front) -> (u64, u64) {
        match NvmOpcode(sqe.opcode) {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => match &self.metadata {
                None => (blocks_of(sqe) << self.block_shift, 0),
                Some(metadata) => {
                    let (data, apart) = metadata.buffers(sqe, front);
                    (blocks_of(sqe) * data, blocks_of(sqe) * apart)
                }
            },
            NvmOpcode::DATASET_MANAGEMENT => (ranges_of(sqe) as u64 * size_of::<DsmRange>() as u64, 0),
            _ => (0, 0),
        }
    }

    /// Whether the command's data come from nowhere, or go nowhere.
    pub(crate) fn drops_data(&self, sqe: &Sqe) -> bool {
        matches!(self.backing, Backing::Null)
            && matches!(NvmOpcode(sqe.opcode), NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE)
    }

    pub(crate) fn flush(&self) -> Result<(), Status> {
        self.backing.flush().map_err(|e| self.media(&e, Status::WRITE_FAULT))
    }

    fn dataset_management(&self, sqe: &Sqe, data: Data<'_>) -> Result<(), Status> {
        let bytes = data.sent_at_least(ranges_of(sqe) * size_of::<DsmRange>())?;
        let ranges = <[DsmRange]>::ref_from_bytes(bytes).map_err(|_| Status::INTERNAL_ERROR)?;
        let ranges = ranges
            .iter()
            .map(|range| self.range(range.slba.get(), u64::from(range.nlb.get())))
            .collect::<Result<Vec<_>, _>>()?;
        // The other attributes are hints, and hints may be ignored.
        if sqe.cdw11.get() & DSM_DEALLOCATE != 0 {
            self.check_writable()?;
            for range in ranges {
                self.zero(range)?;
            }
        }
        Ok(())
    }

    fn zero(&self, range: Range) -> Result<(), Status> {
        let len = range.blocks * self.stride;
        self.backing.zero(self.offset(range), len).map_err(|e| self.media(&e, Status::WRITE_FAULT))?;
        self.make_readable(range);
        Ok(())
    }

    fn force_unit_access(&self, sqe: &Sqe) -> Result<(), Status> {
        if sqe.cdw12.get() & FUA != 0 { self.flush() } else { Ok(()) }
    }

    fn transfer_range(&self, sqe: &Sqe, max_transfer: u64) -> Result<Range, Status> {
        let blocks = blocks_of(sqe);
        // Base 2.1 Figure 312, MDTS: a longer transfer is aborted with Invalid Field in Command.
        if blocks << self.block_shift > max_transfer {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        self.range(sqe.slba(), blocks)
    }

    fn range(&self, slba: u64, blocks: u64) -> Result<Range, Status> {
        match slba.checked_add(blocks) {
            Some(end) if end <= self.blocks() => Ok(Range { slba, blocks }),
            _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
        }
    }

    fn bytes(&self, range: Range) -> usize {
        (range.blocks << self.block_shift) as usize
    }

    fn offset(&self, range: Range) -> u64 {
        range.slba * self.stride
    }

    fn media(&self, error: &io::Error, status: Status) -> Status {
        tracing::warn!(nsid = self.nsid, %error, "the namespace's backing failed");
        status
    }

    fn check_writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr()) } else { Ok(()) }
    }

    fn check_readable(&self, range: Range) -> Result<(), Status> {
        if self.uncorrectable_count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let marked = self.uncorrectable.lock().unwrap_or_else(PoisonError::into_inner);
        match marked.range(range.slba..range.slba + range.blocks).next() {
            Some(_) => Err(Status::UNRECOVERED_READ_ERROR.with_dnr()),
            None => Ok(()),
        }
    }

    fn make_unreadable(&self, range: Range) -> Result<(), Status> {
        let mut marked = self.uncorrectable.lock().unwrap_or_else(PoisonError::into_inner);
        if marked.len() + range.blocks as usize > MAX_UNCORRECTABLE {
            return Err(Status::WRITE_FAULT.with_dnr());
        }
        marked.extend(range.slba..range.slba + range.blocks);
        self.uncorrectable_count.store(marked.len(), Ordering::Release);
        Ok(())
    }

    fn make_readable(&self, range: Range) {
        if self.uncorrectable_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut marked = self.uncorrectable.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = marked.split_off(&range.slba);
        marked.append(&mut rest.split_off(&(range.slba + range.blocks)));
        self.uncorrectable_count.store(marked.len(), Ordering::Release);
    }
}

/// NLB of an NVM command: CDW12 15:0, 0's based.
fn blocks_of(sqe: &Sqe) -> u64 {
    u64::from(sqe.cdw12.get() & 0xffff) + 1
}

/// Ranges of a Dataset Management command: CDW10 7:0, 0's based (NVM Command Set 1.1 §3.2.3).
fn ranges_of(sqe: &Sqe) -> usize {
    usize::from(sqe.cdw10.get() as u8) + 1
}

#[cfg(test)]
mod tests;
