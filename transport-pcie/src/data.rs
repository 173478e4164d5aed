//! How a command's data, and metadata apart from it, is described to a controller: PRP entries or SGL descriptors. NVMe Base
//! 2.1 §4.3, Figure 92 (PSDT, MPTR, DPTR).

use nvmf_core::dma::{DMA_PAGE, SharedMemory};
use nvmf_core::spec::Sqe;
use nvmf_core::spec::command::{FLAGS_PSDT_MASK, FLAGS_PSDT_SGL_METADATA_SGL};
use nvmf_core::spec::data_ptr::{DataPointer, SglDescriptor, SglSubtype};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::shared::{MetadataSupport, SglSupport};

/// Bytes of a slot's list: the smallest memory page, so that none crosses the end of one.
pub(crate) const LIST_BYTES: usize = DMA_PAGE;
/// Entries of a PRP list that fits into it.
pub(crate) const LIST_ENTRIES: usize = LIST_BYTES / 8;
/// Descriptors of an SGL segment that fits into it. The last place is for the descriptor of the metadata.
pub(crate) const SGL_ENTRIES: usize = LIST_BYTES / 16 - 1;
/// Where in a slot's list the descriptor of the metadata is, bytes.
const METADATA_DESCRIPTOR: usize = SGL_ENTRIES * 16;

/// Largest transfer of one command with memory pages (CC.MPS) of `page` bytes: whatever its offset in the first page, PRP entry 1
/// and one list cover it.
pub(crate) fn max_transfer(page: u64) -> u32 {
    u32::try_from(LIST_ENTRIES as u64 * page).unwrap_or(1 << 31)
}

/// A contiguous piece of data at a bus address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) iova: u64,
    pub(crate) len: u32,
}

impl Piece {
    fn end(self) -> u64 {
        self.iova + u64::from(self.len)
    }

    /// PRP entries 1 and 2 where there are no more, for memory pages of `page` bytes.
    #[inline(always)]
    pub(crate) fn two_pages(self, page: u64) -> Option<(u64, u64)> {
        let (next, end) = ((self.iova & !(page - 1)) + page, self.end());
        let fits = self.iova.is_multiple_of(4) && end <= next + page;
        fits.then_some((self.iova, if end > next { next } else { 0 }))
    }
}

/// A slot's place for a PRP list or SGL segment.
#[derive(Clone, Copy)]
pub(crate) struct List<'a> {
    pub(crate) memory: &'a SharedMemory,
    /// Where it starts in `memory`, bytes.
    pub(crate) offset: usize,
    /// Its bus address, a multiple of [`LIST_BYTES`].
    pub(crate) iova: u64,
    /// The memory page (CC.MPS) that PRP entries count in, bytes.
    pub(crate) page: u64,
}

/// Describes `pieces` in `sqe`'s data pointer: one piece that would take a PRP list by an SGL descriptor, which is in the command
/// itself, where `sgl` allows it; others by PRPs where they can, else by an SGL. `false` when neither can: then the data has to be
/// copied.
pub(crate) fn describe(sqe: &mut Sqe, pieces: &[Piece], list: List<'_>, sgl: SglSupport) -> bool {
    let dwords = pieces.iter().all(|piece| piece.iova.is_multiple_of(4) && piece.len.is_multiple_of(4));
    let allowed = sgl == SglSupport::Yes || sgl == SglSupport::Dwords && dwords;
    if let [piece] = pieces
        && allowed
        && piece.end() > (piece.iova & !(list.page - 1)) + 2 * list.page
    {
        sqe.set_sgl(SglDescriptor::data_block(piece.iova, piece.len));
        return true;
    }
    if prp_possible(pieces, list.page) {
        return prps(sqe, pieces, list);
    }
    if !allowed || pieces.len() > SGL_ENTRIES {
        return false;
    }
    for (i, piece) in pieces.iter().enumerate() {
        let descriptor = SglDescriptor::data_block(piece.iova, piece.len);
        list.memory.write_bytes(list.offset + i * 16, descriptor.as_bytes());
    }
    let len = (pieces.len() * 16) as u32;
    sqe.set_sgl(match pieces {
        [piece] => SglDescriptor::data_block(piece.iova, piece.len),
        _ => SglDescriptor::segment(list.iova, len, true, SglSubtype::ADDRESS),
    });
    true
}

/// Describes metadata, one contiguous piece, in `sqe`'s metadata pointer, after [`describe`] has described the data. `false` when
/// that is not possible where it is: then it has to be copied to a dword boundary.
pub(crate) fn describe_metadata(
    sqe: &mut Sqe,
    piece: Piece,
    list: List<'_>,
    support: MetadataSupport,
) -> bool {
    let by_sgl = sqe.flags & FLAGS_PSDT_MASK != 0;
    let dwords = piece.iova.is_multiple_of(4);
    if by_sgl && support.sgl && dwords && piece.len.is_multiple_of(4) {
        let descriptor = SglDescriptor::data_block(piece.iova, piece.len);
        list.memory.write_bytes(list.offset + METADATA_DESCRIPTOR, descriptor.as_bytes());
        sqe.flags = sqe.flags & !FLAGS_PSDT_MASK | FLAGS_PSDT_SGL_METADATA_SGL;
        sqe.mptr = U64::new(list.iova + METADATA_DESCRIPTOR as u64);
        return true;
    }
    // With PRPs it has to start at a dword; with an SGL the controller may take any byte.
    let possible = dwords || by_sgl && support.any_byte;
    if possible {
        sqe.mptr = U64::new(piece.iova);
    }
    possible
}

/// Whether PRPs can describe the pieces: only the first may start, and only the last may end, inside of a page; the offset of the
/// first is a multiple of four (§4.3.1, Figure 108).
fn prp_possible(pieces: &[Piece], page: u64) -> bool {
    let last = pieces.len().saturating_sub(1);
    pieces.iter().enumerate().all(|(i, piece)| {
        let start = if i == 0 { piece.iova.is_multiple_of(4) } else { piece.iova.is_multiple_of(page) };
        start && (i == last || piece.end().is_multiple_of(page))
    })
}

/// PRP entries 1 and 2 and, for more than two pages, a list. `false` when the list is too short.
fn prps(sqe: &mut Sqe, pieces: &[Piece], list: List<'_>) -> bool {
    let Some(first) = pieces.first() else { return true };
    let (mut entries, mut second) = (0usize, 0u64);
    for (i, piece) in pieces.iter().enumerate() {
        // The very first page is PRP entry 1.
        let mut page = (piece.iova & !(list.page - 1)) + if i == 0 { list.page } else { 0 };
        while page < piece.end() {
            if entries == LIST_ENTRIES {
                return false;
            }
            if entries == 0 {
                second = page;
            }
            // Whether there is a list at all shows only with the second of these.
            list.memory.write_u64(list.offset + entries * 8, page);
            entries += 1;
            page += list.page;
        }
    }
    let prp2 = match entries {
        0 => 0,
        1 => second,
        _ => list.iova,
    };
    sqe.flags &= 0x3f;
    sqe.dptr = DataPointer::prp(first.iova, prp2);
    true
}

#[cfg(test)]
mod tests;
