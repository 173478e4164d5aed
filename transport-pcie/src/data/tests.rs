use nvmf_core::spec::data_ptr::SglType;
use proptest::prelude::*;

use super::*;

const LIST_IOVA: u64 = 0x7000;
const PAGE: u64 = DMA_PAGE as u64;

fn list(memory: &SharedMemory) -> List<'_> {
    List { memory, offset: 0, iova: LIST_IOVA, page: PAGE }
}

fn described(pieces: &[Piece], sgl: SglSupport, memory: &SharedMemory) -> Option<Sqe> {
    let mut sqe = Sqe::new(2, 1);
    describe(&mut sqe, pieces, list(memory), sgl).then_some(sqe)
}

/// Every byte address the PRPs name, as a controller reads them (§4.3.1).
fn walk(sqe: &Sqe, len: u64, memory: &SharedMemory) -> Vec<(u64, u64)> {
    let (prp1, prp2) = (sqe.dptr.lo.get(), sqe.dptr.hi.get());
    let first = (PAGE - prp1 % PAGE).min(len);
    let mut ranges = vec![(prp1, first)];
    let mut left = len - first;
    let in_list = left > PAGE;
    let mut index = 0;
    while left > 0 {
        let page = if in_list {
            assert_eq!(prp2, LIST_IOVA);
            memory.read_u64(index * 8)
        } else {
            prp2
        };
        assert_eq!(page % PAGE, 0, "only the first entry has an offset");
        ranges.push((page, left.min(PAGE)));
        left -= left.min(PAGE);
        index += 1;
    }
    if first == len {
        assert_eq!(prp2, 0);
    }
    ranges
}

fn joined(ranges: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, len) in ranges {
        match out.last_mut() {
            Some((before, so_far)) if *before + *so_far == start => *so_far += len,
            _ => out.push((start, len)),
        }
    }
    out
}

#[test]
fn the_longest_transfer_at_the_worst_offset_fits() {
    let memory = SharedMemory::allocate(LIST_BYTES).unwrap();
    let piece = Piece { iova: 0x10_0000 + PAGE - 4, len: max_transfer(PAGE) };
    let sqe = described(&[piece], SglSupport::No, &memory).unwrap();
    assert_eq!(joined(walk(&sqe, u64::from(piece.len), &memory)), [(piece.iova, u64::from(piece.len))]);
    let more = Piece { iova: 0x10_0000, len: max_transfer(PAGE) + 2 * PAGE as u32 };
    assert!(described(&[more], SglSupport::No, &memory).is_none());
}

#[test]
fn what_prps_cannot_say_becomes_an_sgl_or_is_copied() {
    let memory = SharedMemory::allocate(LIST_BYTES).unwrap();
    let odd = [Piece { iova: 0x1000, len: 512 }, Piece { iova: 0x4000, len: 1024 }];
    assert!(described(&odd, SglSupport::No, &memory).is_none());
    let sqe = described(&odd, SglSupport::Dwords, &memory).unwrap();
    assert_eq!(sqe.flags, 0x40);
    let segment = sqe.dptr.as_sgl();
    assert_eq!(
        (segment.sgl_type(), segment.address.get(), segment.length.get()),
        (SglType::LAST_SEGMENT, LIST_IOVA, 32)
    );
    assert_eq!((memory.read_u64(16), memory.read_u32(24), memory.read_u32(28)), (0x4000, 1024, 0));
    let bytes = [Piece { iova: 0x1000, len: 3 }, Piece { iova: 0x4000, len: 5 }];
    assert!(described(&bytes, SglSupport::Dwords, &memory).is_none());
    assert!(described(&bytes, SglSupport::Yes, &memory).is_some());
    let many: Vec<_> = (0..=SGL_ENTRIES as u64).map(|i| Piece { iova: i << 16, len: 4 }).collect();
    assert!(described(&many, SglSupport::Yes, &memory).is_none());
    assert!(described(&many[1..], SglSupport::Yes, &memory).is_some());
}

#[test]
fn one_long_piece_takes_no_list_where_sgls_may_be_used() {
    let memory = SharedMemory::allocate(LIST_BYTES).unwrap();
    let long = Piece { iova: 0x10_0200, len: 131_072 };
    for sgl in [SglSupport::Yes, SglSupport::Dwords] {
        let sqe = described(&[long], sgl, &memory).unwrap();
        assert_eq!((sqe.flags, sqe.dptr.as_sgl()), (0x40, SglDescriptor::data_block(long.iova, long.len)));
    }
    // Not in whole dwords; and what two PRP entries describe.
    let odd = Piece { len: 131_071, ..long };
    assert_eq!(described(&[odd], SglSupport::Dwords, &memory).unwrap().flags, 0);
    let short = Piece { iova: 0x10_0200, len: 8192 - 0x200 };
    assert_eq!(described(&[short], SglSupport::Yes, &memory).unwrap().flags, 0);
    assert_eq!(described(&[Piece { len: 8192, ..short }], SglSupport::Yes, &memory).unwrap().flags, 0x40);
}

proptest! {
    #[test]
    fn prps_cover_exactly_the_data(
        first in 0u64..1024,
        pages in proptest::collection::vec(1u64..40, 1..8),
        cut in 0u64..1024,
    ) {
        let memory = SharedMemory::allocate(LIST_BYTES).unwrap();
        // Buffers at scattered pages; the first starts and the last ends anywhere on a dword.
        let mut pieces: Vec<Piece> = pages
            .iter()
            .enumerate()
            .map(|(i, &n)| Piece { iova: (1 + (i as u64 * 7 % 8)) << 20, len: (n * PAGE) as u32 })
            .collect();
        pieces[0].iova += first * 4;
        pieces[0].len -= (first * 4) as u32;
        let last = pieces.len() - 1;
        pieces[last].len -= ((cut * 4) as u32).min(pieces[last].len - 4);
        let len: u64 = pieces.iter().map(|p| u64::from(p.len)).sum();
        let sqe = described(&pieces, SglSupport::No, &memory).unwrap();
        let expected = joined(pieces.iter().map(|p| (p.iova, u64::from(p.len))));
        prop_assert_eq!(joined(walk(&sqe, len, &memory)), expected);
    }

    #[test]
    fn sgls_cover_exactly_the_data(pieces in proptest::collection::vec((0u64..1 << 40, 1u32..1 << 20), 2..40)) {
        let memory = SharedMemory::allocate(LIST_BYTES).unwrap();
        let pieces: Vec<_> = pieces.into_iter().map(|(iova, len)| Piece { iova, len }).collect();
        prop_assume!(!prp_possible(&pieces, PAGE));
        let sqe = described(&pieces, SglSupport::Yes, &memory).unwrap();
        prop_assert_eq!(sqe.dptr.as_sgl().length.get() as usize, pieces.len() * 16);
        for (i, piece) in pieces.iter().enumerate() {
            prop_assert_eq!(memory.read_u64(i * 16), piece.iova);
            prop_assert_eq!(memory.read_u32(i * 16 + 8), piece.len);
        }
    }
}

#[test]
fn metadata_is_described_as_the_data_is() {
    let memory = SharedMemory::allocate(LIST_BYTES).unwrap();
    let prp = described(&[Piece { iova: 0x1000, len: 4096 }], SglSupport::Yes, &memory).unwrap();
    let sgl = described(&[Piece { iova: 0x1001, len: 3 }], SglSupport::Yes, &memory).unwrap();
    let metadata = |mut sqe: Sqe, iova, any_byte, sgl| {
        let piece = Piece { iova, len: 64 };
        describe_metadata(&mut sqe, piece, list(&memory), MetadataSupport { any_byte, sgl }).then_some(sqe)
    };
    // PRPs: an address at a dword, whatever the controller can do with SGLs.
    for support in [false, true] {
        let sqe = metadata(prp, 0x2004, support, support).unwrap();
        assert_eq!((sqe.flags, sqe.mptr.get(), sqe.dptr), (0, 0x2004, prp.dptr));
        assert_eq!(metadata(prp, 0x2002, support, support), None);
    }
    // An SGL: an address, at any byte only if the controller takes that.
    let sqe = metadata(sgl, 0x2004, false, false).unwrap();
    assert_eq!((sqe.flags, sqe.mptr.get()), (0x40, 0x2004));
    assert_eq!(metadata(sgl, 0x2002, false, false), None);
    assert_eq!(metadata(sgl, 0x2002, true, false).unwrap().mptr.get(), 0x2002);
    // Or an SGL of its own, of one descriptor at a qword, behind all of the data's.
    let sqe = metadata(sgl, 0x2004, false, true).unwrap();
    assert_eq!((sqe.flags, sqe.mptr.get(), sqe.dptr), (0x80, LIST_IOVA + 4080, sgl.dptr));
    assert_eq!((memory.read_u64(4080), memory.read_u64(4088)), (0x2004, 64));
    assert_eq!(metadata(sgl, 0x2002, false, true), None);
}
