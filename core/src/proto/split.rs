//! Cutting a transfer into commands: MDTS and transport limits, the 16-bit block count, and the namespace's optimal
//! I/O boundary.

use zerocopy::little_endian::U32;

use crate::spec::Sqe;

/// Blocks an I/O covers, and what one command may cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First logical block.
    pub slba: u64,
    /// Blocks in all; at least 1.
    pub blocks: u64,
    /// Bytes of data per block; 0 for commands that name blocks and carry no data.
    pub block_bytes: u32,
    /// Most blocks of one command (1..=65536).
    pub max_blocks: u32,
    /// No command crosses a multiple of this many blocks (NOIOB); 0 is no boundary.
    pub boundary: u32,
    /// Bytes of metadata per block in a buffer apart from the data; 0 is none.
    pub metadata_bytes: u16,
    /// Bits of the reference tag that counts the blocks of each command (protection type 1 and 2); 0 is none.
    pub ref_tag_bits: u8,
}

/// The part of a [`Span`] that one command covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First logical block.
    pub slba: u64,
    /// Blocks, 1..=65536.
    pub blocks: u32,
    /// Where its data starts in the I/O's data, bytes.
    pub offset: usize,
    /// Length of its data, bytes.
    pub len: u32,
}

impl Piece {
    /// The first part of the piece, of at most `blocks` blocks (at least 1).
    #[must_use]
    pub fn shortened(self, blocks: u32) -> Self {
        let kept = blocks.clamp(1, self.blocks);
        // `len` is a multiple of `blocks`: every block has the same number of bytes.
        Self { blocks: kept, len: self.len / self.blocks * kept, ..self }
    }
}

impl Span {
    /// Where the metadata of a piece of `blocks` blocks that starts after `done` blocks is in the I/O's metadata: offset and
    /// length, bytes. `None` when it has none, or that does not fit into the numbers.
    #[must_use]
    pub fn metadata(&self, done: u64, blocks: u32) -> Option<(usize, u32)> {
        if self.metadata_bytes == 0 {
            return None;
        }
        let bytes = u64::from(self.metadata_bytes);
        let offset = usize::try_from(done.checked_mul(bytes)?).ok()?;
        Some((offset, u32::try_from(u64::from(blocks).checked_mul(bytes)?).ok()?))
    }

    /// Lets the reference tag in `sqe`, that of the I/O's first block, be that of the block `done` blocks later: it counts them
    /// and wraps within its bits, which are the low ones of CDW3 and CDW14 together (NVM Command Set 1.1 §5.3.1.4).
    pub fn advance_ref_tag(&self, sqe: &mut Sqe, done: u64) {
        let mask = u64::MAX >> (64 - u32::from(self.ref_tag_bits.clamp(1, 64)));
        let tags = u64::from(sqe.cdw3.get()) << 32 | u64::from(sqe.cdw14.get());
        let tags = tags & !mask | tags.wrapping_add(done) & mask;
        (sqe.cdw3, sqe.cdw14) = (U32::new((tags >> 32) as u32), U32::new(tags as u32));
    }

    /// Whether one command covers it, with nothing to be thought of: no boundary, no metadata, no tags that count.
    #[inline]
    #[must_use]
    pub fn is_whole(&self) -> bool {
        (1..=u64::from(self.max_blocks.min(65_536))).contains(&self.blocks)
            && self.boundary == 0
            && self.metadata_bytes == 0
            && self.ref_tag_bits == 0
            && self.blocks * u64::from(self.block_bytes) <= u64::from(u32::MAX)
    }

    /// The piece that starts after `done` blocks; `None` when all are done.
    #[must_use]
    pub fn piece(&self, done: u64) -> Option<Piece> {
        let left = self.blocks.checked_sub(done).filter(|&left| left > 0)?;
        let slba = self.slba.checked_add(done)?;
        let mut blocks = left.min(u64::from(self.max_blocks.clamp(1, 65_536)));
        if self.boundary > 0 {
            let boundary = u64::from(self.boundary);
            blocks = blocks.min(boundary - slba % boundary);
        }
        let block_bytes = u64::from(self.block_bytes);
        Some(Piece {
            slba,
            blocks: u32::try_from(blocks).ok()?,
            offset: usize::try_from(done.checked_mul(block_bytes)?).ok()?,
            len: u32::try_from(blocks.checked_mul(block_bytes)?).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_cover_exactly_the_span(
            slba in 0u64..1 << 40,
            blocks in 1u64..3000,
            block_bytes in prop_oneof![Just(0u32), Just(512), Just(520), Just(4096)],
            max_blocks in 1u32..400,
            boundary in prop_oneof![Just(0u32), 1u32..300],
            metadata_bytes in prop_oneof![Just(0u16), Just(8), Just(64)],
        ) {
            let span = Span { slba, blocks, block_bytes, max_blocks, boundary, metadata_bytes, ref_tag_bits: 0 };
            let first = span.piece(0).map(|piece| u64::from(piece.blocks));
            prop_assert!(!span.is_whole() || first == Some(blocks));
            prop_assert!(span.is_whole() || boundary > 0 || metadata_bytes > 0 || first != Some(blocks));
            let mut done = 0;
            let mut metadata = 0;
            while let Some(piece) = span.piece(done) {
                prop_assert!(piece.blocks >= 1 && piece.blocks <= max_blocks);
                prop_assert_eq!(piece.slba, slba + done);
                prop_assert_eq!(piece.offset as u64, done * u64::from(block_bytes));
                prop_assert_eq!(piece.len, piece.blocks * block_bytes);
                // Metadata is cut where the data is.
                if let Some((offset, len)) = span.metadata(done, piece.blocks) {
                    prop_assert_eq!(offset, metadata);
                    metadata += len as usize;
                }
                if boundary > 0 {
                    let last = piece.slba + u64::from(piece.blocks) - 1;
                    prop_assert_eq!(piece.slba / u64::from(boundary), last / u64::from(boundary));
                }
                done += u64::from(piece.blocks);
            }
            prop_assert_eq!(done, blocks);
            prop_assert_eq!(metadata as u64, blocks * u64::from(metadata_bytes));
        }

        #[test]
        fn no_span_panics(slba: u64, blocks: u64, block_bytes: u32, max_blocks: u32, boundary: u32, done: u64) {
            let span =
                Span { slba, blocks, block_bytes, max_blocks, boundary, metadata_bytes: u16::MAX, ref_tag_bits: 0 };
            let _ = (span.piece(done), span.metadata(done, max_blocks));
        }
    }

    #[test]
    fn reference_tags_carry_and_leave_the_storage_tag_alone() {
        let tags = |ref_tag_bits, upper, lower| {
            let mut sqe = Sqe::default().with_cdw14(lower);
            sqe.cdw3 = U32::new(upper);
            let span = Span {
                slba: 0,
                blocks: 9,
                block_bytes: 512,
                max_blocks: 1,
                boundary: 0,
                metadata_bytes: 0,
                ref_tag_bits,
            };
            span.advance_ref_tag(&mut sqe, 2);
            (sqe.cdw3.get(), sqe.cdw14.get())
        };
        assert_eq!(tags(32, 0, u32::MAX), (0, 1), "no carry beyond the tag");
        assert_eq!(tags(48, 7, u32::MAX), (8, 1));
        assert_eq!(tags(48, 0xffff, u32::MAX), (0, 1), "it wraps");
        assert_eq!(tags(64, u32::MAX, u32::MAX), (0, 1));
        assert_eq!(tags(16, 3, 0xabcd_ffff), (3, 0xabcd_0001));
    }

    #[test]
    fn an_unlimited_span_is_one_piece() {
        let span = Span {
            slba: 8,
            blocks: 256,
            block_bytes: 512,
            max_blocks: 65_536,
            boundary: 0,
            metadata_bytes: 0,
            ref_tag_bits: 0,
        };
        assert_eq!(span.piece(0), Some(Piece { slba: 8, blocks: 256, offset: 0, len: 131_072 }));
        assert_eq!(span.piece(256), None);
    }
}
