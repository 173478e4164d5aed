//! Namespaces whose blocks carry metadata: the same commands, with end-to-end protection (NVM Command Set 1.1 §5.3).
//!
//! The backing holds each block's data and after it its metadata, however a host sees them, so that one lock covers both. Bytes of
//! protection information are kept inverted: what was never written, or is deallocated, then reads as FFh there, which is
//! what those blocks have to have (§3.3.3.2.1) and what disables checks.

use nvmf_core::protection::{
    Guard, Protection, ProtectionError, ProtectionField, ProtectionFormat, ProtectionType,
};
use nvmf_core::spec::{NvmOpcode, Sqe, Status};

use super::{ActiveNamespace, Range, blocks_of};
use crate::data::Data;
use crate::error::LoopbackError;
use crate::target::Front;

/// Most bytes a block with its metadata may have.
const MAX_STRIDE: u32 = 65_536;
/// Blocks checked or zeroed at a time.
const BATCH: u64 = 256;

const INVALID_PROTECTION: Status = Status::INVALID_PROTECTION_INFORMATION.with_dnr();

/// Where the metadata of a namespace is, for hosts that have the choice: those on an emulated PCI function. Over fabrics it is
/// always part of the block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MetadataPlace {
    /// At the end of each block's data, in the data buffer (FLBAS bit 4).
    Extended,
    /// In a buffer of its own (MPTR).
    Separate,
}

/// The metadata asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) size: u16,
    pub(super) separate: bool,
    pub(super) kind: Option<ProtectionType>,
    pub(super) guard: Option<Guard>,
    pub(super) first: bool,
}

/// The metadata of a namespace's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metadata {
    block: usize,
    /// Bytes per block.
    pub(super) size: u16,
    place: MetadataPlace,
    pub(super) protection: Option<ProtectionFormat>,
}

impl Wanted {
    /// Checks it; `None` is no metadata.
    pub(super) fn check(self, block_size: u32, null: bool) -> Result<Option<Metadata>, LoopbackError> {
        let wrong = |why: String| Err(LoopbackError::Metadata(why));
        if self.size == 0 {
            return match self.kind {
                Some(_) => {
                    wrong("protection information needs metadata to be in: 8 bytes or more".to_owned())
                }
                None => Ok(None),
            };
        }
        if null {
            return wrong("a namespace that keeps nothing cannot keep metadata".to_owned());
        }
        if block_size + u32::from(self.size) > MAX_STRIDE {
            return wrong(format!(
                "{block_size} bytes of data and {} of metadata are more than {MAX_STRIDE}",
                self.size
            ));
        }
        let protection = match self.kind {
            None => None,
            Some(kind) => {
                let guard = self.guard.unwrap_or(Guard::Crc16);
                let Some(format) = ProtectionFormat::new(kind, guard, block_size, self.size) else {
                    return wrong(format!(
                        "protection information takes {} bytes of metadata, there are {}",
                        guard.size(),
                        self.size
                    ));
                };
                Some(if self.first { format.at_start() } else { format })
            }
        };
        let place = if self.separate { MetadataPlace::Separate } else { MetadataPlace::Extended };
        Ok(Some(Metadata { block: block_size as usize, size: self.size, place, protection }))
    }
}

impl Metadata {
    /// Bytes of a block in the backing.
    fn stride(&self) -> usize {
        self.block + usize::from(self.size)
    }

    /// Where a host sees the metadata.
    pub(super) fn place(&self, front: Front) -> MetadataPlace {
        if front == Front::Pci { self.place } else { MetadataPlace::Extended }
    }

    /// What a command says about protection information, where there is any.
    fn protection(&self, sqe: &Sqe) -> Option<(ProtectionFormat, Protection)> {
        let format = self.protection?;
        Some((format, Protection::of_command(sqe, &format)))
    }

    /// Bytes of metadata per block that a command transfers.
    fn transferred(&self, sqe: &Sqe) -> usize {
        match self.protection(sqe) {
            Some((format, p)) if p.has_pract() && format.is_all_metadata() => 0,
            _ => usize::from(self.size),
        }
    }

    /// Bytes per block in the data buffer and in the metadata buffer of a command that transfers data.
    pub(super) fn buffers(&self, sqe: &Sqe, front: Front) -> (u64, u64) {
        let metadata = self.transferred(sqe) as u64;
        match self.place(front) {
            MetadataPlace::Extended => (self.block as u64 + metadata, 0),
            MetadataPlace::Separate => (self.block as u64, metadata),
        }
    }

    /// Inverts protection information, in both directions.
    fn invert(&self, blocks: &mut [u8]) {
        let Some(format) = self.protection else { return };
        let position = format.position();
        for block in blocks.chunks_exact_mut(self.stride()) {
            block[self.block..][position.clone()].iter_mut().for_each(|byte| *byte = !*byte);
        }
    }

    /// Blocks with their metadata from what a host sent; metadata that was not sent is zero.
    fn join(&self, sqe: &Sqe, front: Front, sent: &[u8]) -> Vec<u8> {
        let per_block = self.transferred(sqe);
        let count = sent.len() / (self.block + per_block);
        let mut blocks = vec![0; count * self.stride()];
        for (index, block) in blocks.chunks_exact_mut(self.stride()).enumerate() {
            let (data, metadata) = self.parts(index, count, per_block, front);
            block[..self.block].copy_from_slice(&sent[data]);
            block[self.block..][..per_block].copy_from_slice(&sent[metadata]);
        }
        blocks
    }

    /// The other way of [`Self::join`].
    fn split(&self, sqe: &Sqe, front: Front, blocks: &[u8], to: &mut [u8]) {
        let per_block = self.transferred(sqe);
        let count = blocks.len() / self.stride();
        for (index, block) in blocks.chunks_exact(self.stride()).enumerate() {
            let (data, metadata) = self.parts(index, count, per_block, front);
            to[data].copy_from_slice(&block[..self.block]);
            to[metadata].copy_from_slice(&block[self.block..][..per_block]);
        }
    }

    /// Where data and metadata of a block are among the bytes of a command: the metadata follows the block, or all data.
    fn parts(
        &self,
        index: usize,
        count: usize,
        per_block: usize,
        front: Front,
    ) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (data, metadata) = match self.place(front) {
            MetadataPlace::Extended => {
                let start = index * (self.block + per_block);
                (start, start + self.block)
            }
            MetadataPlace::Separate => (index * self.block, count * self.block + index * per_block),
        };
        (data..data + self.block, metadata..metadata + per_block)
    }
}

/// The status of a failed check.
fn failed(error: ProtectionError) -> Status {
    match error {
        ProtectionError::Mismatch { field: ProtectionField::Guard, .. } => {
            Status::GUARD_CHECK_ERROR.with_dnr()
        }
        ProtectionError::Mismatch { field: ProtectionField::AppTag, .. } => {
            Status::APPLICATION_TAG_CHECK_ERROR.with_dnr()
        }
        ProtectionError::Mismatch { field: ProtectionField::RefTag, .. } => {
            Status::REFERENCE_TAG_CHECK_ERROR.with_dnr()
        }
        ProtectionError::Mismatch { field: ProtectionField::StorageTag, .. } => {
            Status::STORAGE_TAG_CHECK_ERROR.with_dnr()
        }
        _ => Status::INTERNAL_ERROR,
    }
}

/// Whether the protection fields of a command fit the type (§5.3.3).
fn check_fields(format: &ProtectionFormat, p: &Protection, sqe: &Sqe) -> Result<(), Status> {
    match format.kind() {
        // The reference tag of a type 1 block is its LBA.
        ProtectionType::Type1 if p.checks_ref_tag() || p.has_pract() => {
            let expected = format.apply(Sqe::default(), sqe.slba(), &Protection::NONE);
            let expected = Protection::of_command(&expected, format);
            if p.first_ref_tag() == expected.first_ref_tag() { Ok(()) } else { Err(INVALID_PROTECTION) }
        }
        ProtectionType::Type3 if p.checks_ref_tag() => Err(INVALID_PROTECTION),
        _ => Ok(()),
    }
}

impl ActiveNamespace {
    fn load(&self, metadata: &Metadata, range: Range) -> Result<Vec<u8>, Status> {
        let mut blocks = vec![0; range.blocks as usize * metadata.stride()];
        let read = self.backing.read(self.offset(range), &mut blocks);
        read.map_err(|e| self.media(&e, Status::UNRECOVERED_READ_ERROR))?;
        metadata.invert(&mut blocks);
        Ok(blocks)
    }

    fn store(&self, metadata: &Metadata, range: Range, mut blocks: Vec<u8>) -> Result<(), Status> {
        metadata.invert(&mut blocks);
        let written = self.backing.write(self.offset(range), &blocks);
        written.map_err(|e| self.media(&e, Status::WRITE_FAULT))?;
        self.make_readable(range);
        Ok(())
    }

    /// Read, Write, Compare, Verify and Write Zeroes of blocks with metadata.
    pub(super) fn execute_with_metadata(
        &self,
        metadata: &Metadata,
        sqe: &Sqe,
        data: Data<'_>,
        max_transfer: u64,
        front: Front,
    ) -> Result<(), Status> {
        let blocks = blocks_of(sqe);
        let protection = metadata.protection(sqe);
        let (per_data, per_metadata) = metadata.buffers(sqe, front);
        let len = (blocks * (per_data + per_metadata)) as usize;
        let moves = matches!(NvmOpcode(sqe.opcode), NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE);
        // MDTS counts metadata that is part of the blocks (Base 2.1 Figure 312).
        if moves && blocks * per_data > max_transfer {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let range = self.range(sqe.slba(), blocks)?;
        if let Some((format, p)) = &protection {
            check_fields(format, p, sqe)?;
        }
        let check = |blocks: &[u8]| match &protection {
            Some((format, p)) => format.verify_extended(range.slba, blocks, p).map_err(failed),
            None => Ok(()),
        };
        match NvmOpcode(sqe.opcode) {
            NvmOpcode::READ => {
                let to = data.room(len)?;
                self.check_readable(range)?;
                let blocks = self.load(metadata, range)?;
                check(&blocks)?;
                metadata.split(sqe, front, &blocks, to);
                Ok(())
            }
            NvmOpcode::WRITE => {
                let from = data.sent(len)?;
                self.check_writable()?;
                let mut blocks = metadata.join(sqe, front, from);
                match &protection {
                    Some((format, p)) if p.has_pract() => {
                        format.generate_extended(range.slba, &mut blocks, p).map_err(failed)?;
                    }
                    _ => check(&blocks)?,
                }
                self.store(metadata, range, blocks)?;
                self.force_unit_access(sqe)
            }
            NvmOpcode::COMPARE => {
                let sent = data.sent(len)?;
                self.check_readable(range)?;
                let with = metadata.join(sqe, front, sent);
                let blocks = self.load(metadata, range)?;
                check(&blocks)?;
                if protection.is_none_or(|(_, p)| !p.has_pract()) {
                    check(&with)?;
                }
                if metadata.same(sqe, &blocks, &with) { Ok(()) } else { Err(Status::COMPARE_FAILURE) }
            }
            NvmOpcode::VERIFY => {
                data.none()?;
                self.check_readable(range)?;
                self.verify(metadata, range, sqe)
            }
            _ => {
                data.none()?;
                self.check_writable()?;
                self.write_zeroes(metadata, range, sqe)?;
                self.force_unit_access(sqe)
            }
        }
    }

    fn verify(&self, metadata: &Metadata, range: Range, sqe: &Sqe) -> Result<(), Status> {
        let Some((format, p)) = metadata.protection(sqe) else { return Ok(()) };
        if p.has_pract() {
            return Err(INVALID_PROTECTION);
        }
        for part in batches(range) {
            let blocks = self.load(metadata, part)?;
            let p = format.advance(part.slba - range.slba, &p);
            format.verify_extended(part.slba, &blocks, &p).map_err(failed)?;
        }
        Ok(())
    }

    /// With PRACT the blocks get the protection information of zeroes, else all zeroes (§3.3.8).
    fn write_zeroes(&self, metadata: &Metadata, range: Range, sqe: &Sqe) -> Result<(), Status> {
        let Some((format, p)) = metadata.protection(sqe) else { return self.zero(range) };
        for part in batches(range) {
            let mut blocks = vec![0; part.blocks as usize * metadata.stride()];
            if p.has_pract() {
                let p = format.advance(part.slba - range.slba, &p);
                format.generate_extended(part.slba, &mut blocks, &p).map_err(failed)?;
            }
            self.store(metadata, part, blocks)?;
        }
        Ok(())
    }
}

impl Metadata {
    /// Whether blocks have the same data and metadata, as far as it was transferred and is no protection information, which is
    /// not compared (§3.3.1).
    fn same(&self, sqe: &Sqe, blocks: &[u8], with: &[u8]) -> bool {
        let per_block = self.transferred(sqe);
        let skipped = self.protection.map_or(0..0, |format| format.position());
        blocks.chunks_exact(self.stride()).zip(with.chunks_exact(self.stride())).all(|(a, b)| {
            let (a, b) = (a.split_at(self.block), b.split_at(self.block));
            let (in_a, in_b) = (&a.1[..per_block], &b.1[..per_block]);
            a.0 == b.0
                && in_a.iter().zip(in_b).enumerate().all(|(at, (a, b))| a == b || skipped.contains(&at))
        })
    }
}

fn batches(range: Range) -> impl Iterator<Item = Range> {
    (0..range.blocks)
        .step_by(BATCH as usize)
        .map(move |done| Range { slba: range.slba + done, blocks: BATCH.min(range.blocks - done) })
}

#[cfg(test)]
mod tests;
