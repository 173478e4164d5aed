use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;

fn region(pages: usize) -> Extent {
    DmaRegion::allocate(pages * DMA_PAGE).unwrap()
}

#[test]
fn host_and_device_see_the_same_bytes() {
    let shared = SharedMemory::new(region(2));
    let mut device = test_device();
    device.map_region(0x10_0000, &test_grant(shared.extent().region())).unwrap();
    shared.write_u64(8, 0x1122_3344_5566_7788);
    let mut bytes = [0; 8];
    device.read(0x10_0008, &mut bytes).unwrap();
    assert_eq!(bytes, 0x1122_3344_5566_7788u64.to_le_bytes());
    device.store_release_u32(0x10_1ffc, 0xdead_beef).unwrap();
    assert_eq!(shared.load_acquire_u32(0x1ffc), 0xdead_beef);
    assert_eq!(shared.read_u16(0x1ffe), 0xdead);
    assert_eq!(device.load_acquire_u32(0x10_1ffc), Ok(0xdead_beef));
}

#[test]
fn what_goes_past_the_caches_arrives_all_the_same() {
    let memory = SharedMemory::new(region(1));
    let words = std::array::from_fn(|i| U64::new(0x0102_0304_0506_0708 * (i as u64 + 1)));
    memory.write_words(64, &words);
    memory.stream_words::<8>(192, &words);
    streamed_write_barrier();
    let read = |at: usize| (0..8).map(|i| memory.read_u64(at + 8 * i)).collect::<Vec<_>>();
    assert_eq!((read(192), read(128), read(256)), (read(64), vec![0; 8], vec![0; 8]));
}

#[test]
fn accesses_outside_of_what_is_mapped_fault() {
    let one = SharedMemory::new(region(1));
    let mut device = test_device();
    device.map_region(0x4000, &test_grant(one.extent().region())).unwrap();
    let fault = DmaFault { iova: 0x4ffc, len: 8, write: true };
    assert_eq!(device.write(0x4ffc, &[1; 8]), Err(fault));
    assert_eq!(
        fault.to_string(),
        "a write of 8 bytes at bus address 0x4ffc, which are not all mapped for this device"
    );
    assert!(device.read(0x3fff, &mut [0; 2]).is_err());
    assert!(device.read(u64::MAX, &mut [0; 2]).is_err());
    assert!(device.store_release_u32(0x4ffd, 1).is_err(), "across the end");
    assert!(device.store_release_u32(0x4001, 1).is_err(), "not aligned");
    assert!(device.read(0x9000, &mut []).is_ok(), "nothing is always there");
    assert!(device.unmap(0x4000));
    assert!(!device.unmap(0x4000));
    assert!(device.read(0x4000, &mut [0; 1]).is_err());
}

#[test]
fn mappings_do_not_overlap_and_keep_the_region() {
    let (a, b) = (region(2), region(1));
    let mut device = test_device();
    device.map_region(0x4000, &test_grant(a.region())).unwrap();
    for iova in [0x3000 + 1, 0x4000, 0x5000, 0x5fff] {
        assert_eq!(
            device.map_region(iova, &test_grant(b.region())).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }
    assert_eq!(
        device.map_region(u64::MAX - 10, &test_grant(b.region())).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    device.map_region(0x6000, &test_grant(b.region())).unwrap();
    drop((a, b));
    device.write(0x5ffe, &[1, 2, 3, 4]).unwrap();
    let mut bytes = [0; 4];
    device.read(0x5ffe, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4], "across two mappings, after their owners are gone");
    assert_eq!(device.ranges().collect::<Vec<_>>(), [(0x4000, 0x2000), (0x6000, 0x1000)]);
}

#[test]
fn memory_of_a_file_is_shared_and_can_be_read_only() {
    let shared = SharedMemory::new(region(2));
    let region = shared.extent().region();
    let file = || region.file().unwrap().as_fd().try_clone_to_owned().unwrap();
    let mut device = test_device();
    device.map_file(0x8000, file(), DMA_PAGE as u64, DMA_PAGE, false).unwrap();
    shared.write_u32(DMA_PAGE, 7);
    let mut bytes = [0; 4];
    device.read(0x8000, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0, 0, 0]);
    assert!(device.write(0x8000, &[1]).is_err(), "read-only");
    for (offset, len) in [(0, 3 * DMA_PAGE), (1, DMA_PAGE), (0, 0), (u64::MAX - 4095, DMA_PAGE)] {
        let error = device.map_file(0x10_0000, file(), offset, len, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset:#x} {len:#x}");
    }
}

#[test]
#[should_panic(expected = "8 bytes at 0xffc of 0x1000 bytes")]
fn a_word_past_the_end_is_our_own_bug() {
    let _ = SharedMemory::new(region(1)).read_u64(0xffc);
}

proptest! {
    #[test]
    fn copies_are_exact_at_any_alignment(offset in 0usize..40, bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let shared = SharedMemory::new(region(1));
        shared.write_bytes(0, &[0xee; 200]);
        shared.write_bytes(offset, &bytes);
        let mut all = [0; 200];
        shared.read_bytes(0, &mut all);
        prop_assert_eq!(&all[offset..offset + bytes.len()], &bytes[..]);
        prop_assert!(all[..offset].iter().chain(&all[offset + bytes.len()..]).all(|&b| b == 0xee));
        let mut back = vec![0; bytes.len()];
        shared.read_bytes(offset, &mut back);
        prop_assert_eq!(back, bytes);
    }
}
