//! The command capsule: where a command's data is, in the capsule itself or in this side's memory. NVMe RDMA Transport
//! 1.1 §3.2, NVMe Base 2.1 §4.3.2.

use nvmf_core::DmaRegion;
use nvmf_core::spec::Sqe;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::data_ptr::{SglDescriptor, SglSubtype};
use zerocopy::IntoBytes;

use crate::memory::Keys;
use crate::provider::Element;

/// Bytes of a submission queue entry.
pub const SQE_BYTES: usize = 64;
/// Most bytes one keyed descriptor can name.
pub const MAX_KEYED: u32 = (1 << 24) - 1;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: usize = 16;

/// What one queue's capsules may hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Bytes of data or descriptors behind the submission queue entry. 0 on admin queues.
    pub in_capsule: u32,
    /// Where they start, bytes after the submission queue entry (ICDOFF).
    pub offset: u32,
    /// Whether data may be there at all (SGLS bit 20).
    pub inline_data: bool,
    /// Most descriptors of a command (MSDBD), at least 1.
    pub descriptors: u16,
    /// Most elements of a SEND.
    pub elements: u32,
}

impl Limits {
    /// Bytes of a capsule without data: room for the descriptors that may be in it.
    #[must_use]
    pub fn capsule_bytes(&self) -> usize {
        let descriptors = if self.descriptors > 1 { usize::from(self.descriptors) } else { 0 };
        if self.in_capsule == 0 {
            return SQE_BYTES;
        }
        SQE_BYTES + self.offset as usize + descriptors * DESCRIPTOR_BYTES
    }
}

/// A contiguous, registered piece of a command's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its address.
    pub address: u64,
    /// Its length, bytes.
    pub length: u32,
    /// Key for a SEND of it.
    pub local_key: u32,
    /// Key for the controller.
    pub remote_key: u32,
    /// The controller is to invalidate its key with the response.
    pub invalidate: bool,
}

impl Piece {
    /// `len` bytes of a region.
    pub(crate) fn new(region: &DmaRegion, offset: usize, len: usize, keys: Keys) -> Self {
        Self {
            address: (region.address() + offset) as u64,
            length: len as u32,
            local_key: keys.local,
            remote_key: keys.remote,
            invalidate: false,
        }
    }

    /// Whether `next` begins where this ends, under the same keys.
    pub(crate) fn continues_with(&self, next: &Self) -> bool {
        self.address + u64::from(self.length) == next.address
            && (self.local_key, self.remote_key) == (next.local_key, next.remote_key)
    }

    /// A key for just this piece takes the place of the controller's.
    pub(crate) fn confine(&mut self, key: u32) {
        self.remote_key = key;
        self.invalidate = true;
    }

    pub(crate) fn element(&self) -> Element {
        Element { address: self.address, length: self.length, key: self.local_key }
    }

    fn descriptor(&self) -> SglDescriptor {
        let subtype = if self.invalidate { SglSubtype::INVALIDATE_KEY } else { SglSubtype::ADDRESS };
        SglDescriptor::keyed(self.address, self.length, self.remote_key, subtype)
    }
}

/// How a command goes out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capsule {
    /// Bytes of the capsule's own memory to be sent.
    pub length: u32,
    /// The pieces follow them in the same SEND.
    pub gathers: bool,
}

/// Whether data that small may be, and can be, sent with its capsule.
pub(crate) fn goes_along(direction: DataDirection, pieces: &[Piece], limits: &Limits) -> bool {
    let total: u64 = pieces.iter().map(|piece| u64::from(piece.length)).sum();
    direction == DataDirection::HostToController
        && limits.inline_data
        && total <= u64::from(limits.in_capsule)
        && pieces.len() < limits.elements as usize
}

/// Whether a command's data can be described as it is: in the capsule, by one descriptor, or by a list of them.
#[must_use]
pub fn fits(direction: DataDirection, pieces: &[Piece], limits: &Limits) -> bool {
    let list = pieces.len() <= usize::from(limits.descriptors)
        && pieces.len() * DESCRIPTOR_BYTES <= limits.in_capsule as usize;
    pieces.len() <= 1 || list || goes_along(direction, pieces, limits)
}

/// Sets the data pointer of `sqe` for `pieces`, which [`fits`] and of which none is longer than [`MAX_KEYED`]. Descriptors go
/// through `write`, with the offset in the capsule where they belong; the entry itself is the caller's to write.
pub fn describe(
    sqe: &mut Sqe,
    direction: DataDirection,
    pieces: &[Piece],
    limits: &Limits,
    mut write: impl FnMut(usize, &[u8]),
) -> Capsule {
    let start = SQE_BYTES + limits.offset as usize;
    if !pieces.is_empty() && goes_along(direction, pieces, limits) {
        let total = pieces.iter().map(|piece| piece.length).sum();
        sqe.set_sgl(SglDescriptor::in_capsule(0, total));
        return Capsule { length: start as u32, gathers: true };
    }
    let plain = Capsule { length: SQE_BYTES as u32, gathers: false };
    match pieces {
        [] => {
            sqe.set_sgl(SglDescriptor::keyed(0, 0, 0, SglSubtype::ADDRESS));
            plain
        }
        [piece] => {
            sqe.set_sgl(piece.descriptor());
            plain
        }
        pieces => {
            for (index, piece) in pieces.iter().enumerate() {
                write(start + index * DESCRIPTOR_BYTES, piece.descriptor().as_bytes());
            }
            let bytes = pieces.len() * DESCRIPTOR_BYTES;
            sqe.set_sgl(SglDescriptor::segment(0, bytes as u32, true, SglSubtype::OFFSET));
            Capsule { length: (start + bytes) as u32, gathers: false }
        }
    }
}

/// The elements of data that is sent with its capsule.
pub fn elements(pieces: &[Piece]) -> impl Iterator<Item = Element> + '_ {
    pieces.iter().map(Piece::element)
}

#[cfg(test)]
mod tests;
