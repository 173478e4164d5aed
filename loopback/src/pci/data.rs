//! Where the data of a command is in the host's memory: PRP entries and lists, SGLs (Base 2.1 §4.3).
//!
//! Both come down to a list of [`Pieces`] that is copied from or to. The list is bounded by the length of the transfer for
//! PRPs and by [`MAX_DESCRIPTORS`] for SGLs, whatever the host wrote.

use nvmf_core::dma::DeviceMemory;
use nvmf_core::spec::command::{FLAGS_PSDT_MASK, FLAGS_PSDT_SGL_METADATA_SGL};
use nvmf_core::spec::data_ptr::{DataPointer, SglDescriptor, SglSubtype, SglType};
use nvmf_core::spec::{Sqe, Status};
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

/// Descriptors of one SGL at most, all segments together.
const MAX_DESCRIPTORS: u32 = 4096;
/// PRP entries, and SGL descriptors, read at a time.
const BATCH: usize = 32;

const PRP_OFFSET: Status = Status::INVALID_PRP_OFFSET.with_dnr();
const SEGMENT: Status = Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr();
const COUNT: Status = Status::INVALID_SGL_DESCRIPTOR_COUNT.with_dnr();
const TYPE: Status = Status::INVALID_SGL_DESCRIPTOR_TYPE.with_dnr();
const LENGTH: Status = Status::INVALID_DATA_SGL_LENGTH.with_dnr();
const METADATA_LENGTH: Status = Status::INVALID_METADATA_SGL_LENGTH.with_dnr();
/// Memory that is not mapped for the device.
pub(super) const TRANSFER: Status = Status::DATA_TRANSFER_ERROR.with_dnr();

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    Memory {
        iova: u64,
        len: usize,
    },
    /// Bytes of a read nobody wants.
    Bucket(usize),
}

/// The memory of one command, in order. Used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<Piece>);

impl Pieces {
    /// Adds memory, joined with the piece before where it goes on there.
    fn push(&mut self, iova: u64, len: usize) {
        if let Some(Piece::Memory { iova: before, len: so_far }) = self.0.last_mut()
            && before.checked_add(*so_far as u64) == Some(iova)
        {
            *so_far += len;
            return;
        }
        self.0.push(Piece::Memory { iova, len });
    }

    /// Walks the PRP entries of `len` bytes; `page` is the memory page size, CC.MPS (§4.3.1).
    pub(super) fn prp(
        &mut self,
        memory: &DeviceMemory,
        pointer: DataPointer,
        len: usize,
        page: u64,
    ) -> Result<(), Status> {
        self.0.clear();
        if len == 0 {
            return Ok(());
        }
        let (first, second) = (pointer.lo.get(), pointer.hi.get());
        // PRP entry 1 may start anywhere in a page, on a dword.
        if !first.is_multiple_of(4) {
            return Err(PRP_OFFSET);
        }
        let in_first = (page - first % page).min(len as u64) as usize;
        self.push(first, in_first);
        let mut left = len - in_first;
        if left == 0 {
            return Ok(());
        }
        if left as u64 <= page {
            if !second.is_multiple_of(page) {
                return Err(PRP_OFFSET);
            }
            self.push(second, left);
            return Ok(());
        }
        let mut list = second;
        if !list.is_multiple_of(8) {
            return Err(PRP_OFFSET);
        }
        while left > 0 {
            // What this page of the list has room for, and whether its last entry points to the next one.
            let room = (page - list % page) / 8;
            let wanted = (left as u64).div_ceil(page);
            let chained = wanted > room;
            let data_entries = if chained { room - 1 } else { wanted };
            let mut at = list;
            let mut entries = [U64::ZERO; BATCH];
            let mut unread = data_entries;
            while unread > 0 {
                let n = unread.min(BATCH as u64) as usize;
                memory.read(at, entries[..n].as_mut_bytes()).map_err(|_| TRANSFER)?;
                for entry in &entries[..n] {
                    if !entry.get().is_multiple_of(page) {
                        return Err(PRP_OFFSET);
                    }
                    let part = (left as u64).min(page) as usize;
                    self.push(entry.get(), part);
                    left -= part;
                }
                unread -= n as u64;
                at += 8 * n as u64;
            }
            if chained {
                let mut next = [U64::ZERO];
                memory.read(at, next.as_mut_bytes()).map_err(|_| TRANSFER)?;
                let next = next[0].get();
                // A list that starts in the last entry of a page would hold nothing but a pointer: it may, once, for
                // PRP entry 2; lists after that start a page.
                if !next.is_multiple_of(page) {
                    return Err(PRP_OFFSET);
                }
                list = next;
            }
        }
        Ok(())
    }

    /// Walks an SGL, which has to describe exactly `len` bytes (§4.3.2). `to_host` says whether bit buckets take data.
    pub(super) fn sgl(
        &mut self,
        memory: &DeviceMemory,
        first: SglDescriptor,
        len: usize,
        to_host: bool,
    ) -> Result<(), Status> {
        self.0.clear();
        let mut left = len;
        let Some(mut segment) = self.descriptor(&first, &mut left, to_host)? else {
            return if left == 0 { Ok(()) } else { Err(LENGTH) };
        };
        let mut visited = 0;
        loop {
            let (address, bytes) = (segment.address.get(), segment.length.get());
            if bytes == 0 || !bytes.is_multiple_of(16) || !address.is_multiple_of(8) {
                return Err(SEGMENT);
            }
            let last = segment.sgl_type() == SglType::LAST_SEGMENT;
            let count = bytes / 16;
            visited += count;
            if visited > MAX_DESCRIPTORS {
                return Err(COUNT);
            }
            let mut next = None;
            let mut descriptors = [SglDescriptor::new_zeroed(); BATCH];
            for start in (0..count).step_by(BATCH) {
                let n = (count - start).min(BATCH as u32);
                let batch = &mut descriptors[..n as usize];
                let at = address.checked_add(u64::from(start) * 16).ok_or(TRANSFER)?;
                memory.read(at, batch.as_mut_bytes()).map_err(|_| TRANSFER)?;
                for (index, descriptor) in (start..).zip(batch.iter()) {
                    next = self.descriptor(descriptor, &mut left, to_host)?;
                    match (next.is_some(), index + 1 == count) {
                        (true, true) if last => return Err(SEGMENT),
                        (true, false) => return Err(COUNT),
                        _ => {}
                    }
                }
            }
            match next {
                Some(next) => segment = next,
                None if last => break,
                // A segment that is not the last one has to end in a pointer to the next.
                None => return Err(SEGMENT),
            }
        }
        if left == 0 { Ok(()) } else { Err(LENGTH) }
    }

    /// Finds metadata apart from the data, `len` bytes: one contiguous buffer, or with PSDT 10b what the one descriptor says that
    /// the metadata pointer points to (Base 2.1 Figure 92, MPTR).
    pub(super) fn metadata(
        &mut self,
        memory: &DeviceMemory,
        sqe: &Sqe,
        len: usize,
        to_host: bool,
    ) -> Result<(), Status> {
        self.0.clear();
        if len == 0 {
            return Ok(());
        }
        let address = sqe.mptr.get();
        match sqe.flags & FLAGS_PSDT_MASK {
            FLAGS_PSDT_SGL_METADATA_SGL => {
                if !address.is_multiple_of(8) {
                    return Err(SEGMENT);
                }
                let mut descriptor = SglDescriptor::new_zeroed();
                memory.read(address, descriptor.as_mut_bytes()).map_err(|_| TRANSFER)?;
                self.sgl(memory, descriptor, len, to_host).map_err(|status| match status {
                    LENGTH => METADATA_LENGTH,
                    other => other,
                })
            }
            // PRPs: at a dword.
            0 if !address.is_multiple_of(4) => Err(Status::INVALID_FIELD.with_dnr()),
            _ => {
                self.push(address, len);
                Ok(())
            }
        }
    }

    /// Takes a descriptor in; `Some` when it points to more of them.
    fn descriptor(
        &mut self,
        descriptor: &SglDescriptor,
        left: &mut usize,
        to_host: bool,
    ) -> Result<Option<SglDescriptor>, Status> {
        if descriptor.subtype() != SglSubtype::ADDRESS {
            return Err(TYPE);
        }
        let len = descriptor.length.get() as usize;
        match descriptor.sgl_type() {
            SglType::DATA_BLOCK => {
                *left = left.checked_sub(len).ok_or(LENGTH)?;
                if len > 0 {
                    self.push(descriptor.address.get(), len);
                }
            }
            // Towards the controller the length of a bit bucket counts as zero.
            SglType::BIT_BUCKET if to_host => {
                *left = left.checked_sub(len).ok_or(LENGTH)?;
                self.0.push(Piece::Bucket(len));
            }
            SglType::BIT_BUCKET => {}
            SglType::SEGMENT | SglType::LAST_SEGMENT => return Ok(Some(*descriptor)),
            _ => return Err(TYPE),
        }
        Ok(None)
    }

    /// Copies from the host's memory.
    pub(super) fn gather(&self, memory: &DeviceMemory, to: &mut [u8]) -> Result<(), Status> {
        let mut rest = to;
        for piece in &self.0 {
            let (Piece::Memory { len, .. } | Piece::Bucket(len)) = *piece;
            let (part, after) = rest.split_at_mut_checked(len).ok_or(LENGTH)?;
            if let Piece::Memory { iova, .. } = *piece {
                memory.read(iova, part).map_err(|_| TRANSFER)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Copies to the host's memory.
    pub(super) fn scatter(&self, memory: &DeviceMemory, from: &[u8]) -> Result<(), Status> {
        let mut rest = from;
        for piece in &self.0 {
            let (Piece::Memory { len, .. } | Piece::Bucket(len)) = *piece;
            let (part, after) = rest.split_at_checked(len).ok_or(LENGTH)?;
            if let Piece::Memory { iova, .. } = *piece {
                memory.write(iova, part).map_err(|_| TRANSFER)?;
            }
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
