use super::super::IoBuf;
use super::*;

fn refused(file: File) -> DmaBufError {
    DmaRegion::from_dma_buf(OwnedFd::from(file), 0, DMA_PAGE).unwrap_err()
}

#[test]
fn what_is_no_dma_buf_is_refused() {
    let (pipe, _other) = io::pipe().unwrap();
    let (_, memfd) = DeviceBuf::simulated(DMA_PAGE).unwrap();
    for file in [
        File::open("/dev/zero").unwrap(),
        File::open("/").unwrap(),
        File::open("/proc/self/exe").unwrap(),
        File::from(OwnedFd::from(pipe)),
        memfd,
    ] {
        assert!(matches!(refused(file), DmaBufError::NotADmaBuf));
    }
    let error = Error::from(refused(File::open("/dev/null").unwrap())).to_string();
    assert!(error.contains("not that of a dma-buf"), "{error}");
}

#[test]
fn its_bytes_are_out_of_reach_and_its_place_is_told() {
    let (buf, _) = DeviceBuf::simulated(4 * DMA_PAGE).unwrap();
    let (mut left, right) = buf.split_at(DMA_PAGE).unwrap();
    left.set_len(700);
    assert_eq!(
        (right.len(), left.capacity(), right.region().id()),
        (3 * DMA_PAGE, DMA_PAGE, left.region().id())
    );
    let left = left.split_at(DMA_PAGE + 1).unwrap_err();
    assert_eq!(left.len(), 700);
    let region = right.region().clone();
    assert!(region.dma_buf().is_some() && region.file().is_none());

    let mut io = IoBuf::from(right);
    assert_eq!(
        (io.len(), io.bufs().len(), io.chunk(0).len(), io.chunk_mut(0).len()),
        (3 * DMA_PAGE, 0, 0, 0)
    );
    assert_eq!((io.reach(0, 1), io.reach(100, 9), io.reach(0, 0)), (3 * DMA_PAGE, 3 * DMA_PAGE - 100, 0));
    let segment = io.segment(512).unwrap();
    assert_eq!((segment.offset, segment.len), (DMA_PAGE + 512, 3 * DMA_PAGE - 512));
    assert!(io.segment(3 * DMA_PAGE).is_none());
    // With metadata it is the same memory.
    let pool = DmaPool::new();
    let both = IoBuf::with_metadata(io, pool.alloc(64).unwrap());
    assert_eq!((both.len(), both.segment(0).unwrap().offset), (3 * DMA_PAGE, DMA_PAGE));
    assert_eq!((both.reach(512, 1), both.chunk(0).len()), (3 * DMA_PAGE - 512, 0));
    assert_eq!(both.into_device().unwrap().len(), 3 * DMA_PAGE);
    assert!(region.in_use());
    drop(left);
    assert!(!region.in_use());
    assert_eq!(pool.stats().outstanding, 0);
}

#[test]
fn leaked_memory_stays_in_use() {
    let (buf, _) = DeviceBuf::simulated(DMA_PAGE).unwrap();
    let region = buf.region().clone();
    IoBuf::with_metadata(buf, DmaPool::new().alloc(8).unwrap()).leak();
    assert!(region.in_use());
}

#[test]
fn what_cannot_be_opened_or_closed_is_handed_back() {
    let pool = DmaPool::new();
    // A memfd knows nothing of handing over.
    let (buf, _) = DeviceBuf::simulated(2 * DMA_PAGE).unwrap();
    let (error, buf) = test_begin(buf, &pool).unwrap_err();
    assert!(matches!(error, DmaBufError::System { .. }), "{error}");
    assert!(error.to_string().contains("DMA_BUF_IOCTL_SYNC"), "{error}");
    assert_eq!(buf.len(), 2 * DMA_PAGE);
    let (error, buf) = pool.alloc(512).unwrap().end_cpu_access().unwrap_err();
    assert!(matches!(error, DmaBufError::Ordinary), "{error}");
    drop(buf);
    assert_eq!(pool.stats().outstanding, 0);
    assert!(pool.stats().mapped_bytes > 0, "it went back to its pool");
}

#[test]
fn memory_that_is_mapped_for_no_program_has_addresses_with_nothing_behind() {
    let (_, file) = DeviceBuf::simulated(DMA_PAGE).unwrap();
    let part = DmaBufPart { file, offset: 0, refused: Some(libc::EINVAL) };
    let extent = DmaRegion::of_dma_buf(set_aside(DMA_PAGE).unwrap(), DMA_PAGE, part);
    let buf = DeviceBuf { extent, len: DMA_PAGE };
    assert!(buf.region().address().is_multiple_of(DMA_PAGE));
    let (error, buf) = test_begin(buf, &DmaPool::new()).unwrap_err();
    assert!(matches!(error, DmaBufError::NotMappable(_)), "{error}");
    let error = Error::from(error);
    assert!(matches!(error.kind(), crate::ErrorKind::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("ordinary memory"), "{error}");
    assert_eq!(buf.segment(0).unwrap().len, DMA_PAGE);
}
