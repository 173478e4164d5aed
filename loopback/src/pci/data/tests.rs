//! The walkers on a small memory.

use nvmf_core::DmaRegion;
use proptest::prelude::*;
use zerocopy::Immutable;

use super::super::grant::{device_memory, to_function};
use super::*;

const PAGE: u64 = 4096;
/// Where the memory starts.
const BASE: u64 = 0x1_0000;

/// Some pages, mapped for the device.
fn memory(pages: usize) -> DeviceMemory {
    let extent = DmaRegion::allocate(pages * PAGE as usize).unwrap();
    let mut memory = device_memory();
    memory.map_region(BASE, &to_function(extent.region())).unwrap();
    memory
}

fn put<T: IntoBytes + Immutable + ?Sized>(memory: &DeviceMemory, iova: u64, value: &T) {
    memory.write(iova, value.as_bytes()).unwrap();
}

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

fn prp(memory: &DeviceMemory, prp1: u64, prp2: u64, len: usize) -> Result<Vec<(u64, usize)>, Status> {
    let mut pieces = Pieces::default();
    pieces.prp(memory, DataPointer::prp(prp1, prp2), len, PAGE)?;
    Ok(pieces.0.iter().map(plain).collect())
}

fn plain(piece: &Piece) -> (u64, usize) {
    match *piece {
        Piece::Memory { iova, len } => (iova, len),
        Piece::Bucket(len) => (0, len),
    }
}

fn sgl(
    memory: &DeviceMemory,
    d: SglDescriptor,
    len: usize,
    to_host: bool,
) -> Result<Vec<(u64, usize)>, Status> {
    let mut pieces = Pieces::default();
    pieces.sgl(memory, d, len, to_host)?;
    Ok(pieces.0.iter().map(plain).collect())
}

fn list(entries: impl IntoIterator<Item = u64>) -> Vec<U64> {
    entries.into_iter().map(U64::new).collect()
}

#[test]
fn one_and_two_prp_entries() {
    let m = memory(8);
    assert_eq!(prp(&m, page(0) + 512, 1, 3584).unwrap(), [(page(0) + 512, 3584)], "PRP2 is not looked at");
    assert_eq!(prp(&m, page(0) + 512, page(4), 4096).unwrap(), [(page(0) + 512, 3584), (page(4), 512)]);
    assert_eq!(prp(&m, page(0), page(1), 8192).unwrap(), [(page(0), 8192)], "joined");
    assert_eq!(prp(&m, 3, 3, 0).unwrap(), [], "nothing to move");
    assert_eq!(prp(&m, page(0) + 2, 0, 512).unwrap_err(), PRP_OFFSET);
    assert_eq!(prp(&m, page(0), page(1) + 8, 8192).unwrap_err(), PRP_OFFSET);
}

#[test]
fn prp_lists_chain_across_pages() {
    let m = memory(8);
    // The list starts three entries before the end of page 1: two of data, then a pointer to page 2.
    let at = page(2) - 24;
    put(&m, at, &*list([page(7), page(5), page(2)]));
    put(&m, page(2), &*list([page(3), page(6)]));
    let got = prp(&m, page(0) + 4, at, 4092 + 3 * 4096 + 100).unwrap();
    assert_eq!(got, [(page(0) + 4, 4092), (page(7), 4096), (page(5), 4096), (page(3), 4096), (page(6), 100)]);
    // With exactly as many pages as entries the last one is data.
    put(&m, at, &*list([page(7), page(5), page(3)]));
    let got = prp(&m, page(0), at, 4 * 4096).unwrap();
    assert_eq!(got, [(page(0), 4096), (page(7), 4096), (page(5), 4096), (page(3), 4096)]);
    // A list that begins with its pointer.
    put(&m, page(2) - 8, &*list([page(2)]));
    put(&m, page(2), &*list([page(3), page(6)]));
    assert_eq!(prp(&m, page(0), page(2) - 8, 3 * 4096).unwrap().len(), 3);
}

#[test]
fn hostile_prp_lists() {
    let m = memory(8);
    assert_eq!(prp(&m, page(0), page(1) + 4, 3 * 4096).unwrap_err(), PRP_OFFSET, "list not on a qword");
    assert_eq!(prp(&m, page(0), page(8), 3 * 4096).unwrap_err(), TRANSFER, "list out of reach");
    put(&m, page(1), &*list([page(2), page(3) + 16]));
    assert_eq!(prp(&m, page(0), page(1), 3 * 4096).unwrap_err(), PRP_OFFSET, "entry with an offset");
    put(&m, page(2) - 16, &*list([page(3), page(4) + 8]));
    assert_eq!(prp(&m, page(0), page(2) - 16, 5 * 4096).unwrap_err(), PRP_OFFSET, "chain with an offset");
    // A list that leads to itself is walked for as long as there is data, no longer.
    put(&m, page(1), &*list((0..511).map(|_| page(3)).chain([page(1)])));
    let got = prp(&m, page(0), page(1), 2000 * 4096).unwrap();
    assert_eq!(got.len(), 2000);
    // Data out of reach is found by the copy.
    let mut pieces = Pieces::default();
    pieces.prp(&m, DataPointer::prp(u64::MAX - 4095, 0), 4096, PAGE).unwrap();
    assert_eq!(pieces.gather(&m, &mut [0; 4096]).unwrap_err(), TRANSFER);
    assert_eq!(pieces.scatter(&m, &[0; 4096]).unwrap_err(), TRANSFER);
}

#[test]
fn sgl_with_segments_and_bit_buckets() {
    let m = memory(8);
    let block = SglDescriptor::data_block;
    let bucket = SglDescriptor { length: 100.into(), kind: SglType::BIT_BUCKET.0 << 4, ..block(0, 0) };
    let more =
        |n: u64, count: u32, last| SglDescriptor::segment(page(n), count * 16, last, SglSubtype::ADDRESS);
    assert_eq!(sgl(&m, block(page(1) + 1, 511), 511, true).unwrap(), [(page(1) + 1, 511)]);
    put(&m, page(0), &[block(page(1), 10), bucket, more(2, 2, true)]);
    put(&m, page(2), &[block(page(3), 0), block(page(3), 20)]);
    let first = more(0, 3, false);
    assert_eq!(sgl(&m, first, 130, true).unwrap(), [(page(1), 10), (0, 100), (page(3), 20)]);
    assert_eq!(sgl(&m, first, 30, false).unwrap(), [(page(1), 10), (page(3), 20)]);
    let mut pieces = Pieces::default();
    pieces.sgl(&m, first, 130, true).unwrap();
    pieces.scatter(&m, &(0..130).collect::<Vec<u8>>()).unwrap();
    let mut back = [0; 20];
    m.read(page(3), &mut back).unwrap();
    assert_eq!(back[..2], [110, 111], "the bucket took a hundred bytes");
}

#[test]
fn hostile_sgls() {
    let m = memory(4);
    let block = SglDescriptor::data_block;
    let more = |at, bytes, last| SglDescriptor::segment(at, bytes, last, SglSubtype::ADDRESS);
    let status = |d, len| sgl(&m, d, len, true).unwrap_err();
    assert_eq!(status(block(page(0), 511), 512), LENGTH);
    assert_eq!(status(block(page(0), 513), 512), LENGTH);
    assert_eq!(status(SglDescriptor::in_capsule(0, 512), 512), TYPE);
    assert_eq!(status(SglDescriptor::transport(512), 512), TYPE);
    assert_eq!(status(SglDescriptor::keyed(page(0), 512, 1, SglSubtype::ADDRESS), 512), TYPE);
    assert_eq!(status(more(page(0), 0, true), 512), SEGMENT);
    assert_eq!(status(more(page(0), 24, true), 512), SEGMENT);
    assert_eq!(status(more(page(0) + 4, 16, true), 512), SEGMENT);
    assert_eq!(status(more(page(9), 16, true), 512), TRANSFER);
    assert_eq!(status(more(page(0), !15, true), 512), COUNT);
    put(&m, page(0), &[more(page(1), 16, true), block(page(2), 512)]);
    assert_eq!(status(more(page(0), 32, false), 512), COUNT, "a pointer before the end");
    put(&m, page(0), &[block(page(2), 512), more(page(1), 16, true)]);
    assert_eq!(status(more(page(0), 32, true), 512), SEGMENT, "the last segment points on");
    put(&m, page(0), &[block(page(2), 512)]);
    assert_eq!(status(more(page(0), 16, false), 512), SEGMENT, "a segment that ends");
    // A segment that leads to itself.
    put(&m, page(0), &[block(page(2), 0), more(page(0), 32, false)]);
    assert_eq!(status(more(page(0), 32, false), 512), COUNT);
}

proptest! {
    #[test]
    fn whatever_the_host_wrote_the_walk_ends_and_covers_the_transfer(
        bytes in proptest::collection::vec(any::<u8>(), 256),
        pointer in any::<[u64; 2]>(),
        near in any::<bool>(),
        len in 0usize..64 * 1024,
    ) {
        let m = memory(4);
        m.write(BASE, &bytes.repeat(4 * PAGE as usize / 256)).unwrap();
        let [lo, hi] = if near { pointer.map(|p| (BASE + p % (4 * PAGE)) & !7) } else { pointer };
        let mut pieces = Pieces::default();
        if pieces.prp(&m, DataPointer::prp(lo, hi), len, PAGE).is_ok() {
            prop_assert_eq!(pieces.0.iter().map(|p| plain(p).1).sum::<usize>(), len);
        }
        if pieces.sgl(&m, DataPointer::prp(lo, hi).as_sgl(), len, true).is_ok() {
            prop_assert_eq!(pieces.0.iter().map(|p| plain(p).1).sum::<usize>(), len);
            prop_assert!(pieces.0.len() as u32 <= MAX_DESCRIPTORS + 1);
        }
    }
}
