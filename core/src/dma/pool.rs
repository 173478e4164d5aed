//! A pool of DMA buffers in size classes.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::DMA_PAGE;
use super::device_buf::{self, DeviceBuf};
use super::region::{DmaRegion, Extent};

/// Number of size classes: 4 KiB, 8 KiB, … 2 MiB.
const CLASSES: usize = 10;
/// Length of the regions the classes are cut from, bytes; the largest class.
const CHUNK: usize = DMA_PAGE << (CLASSES - 1);

/// A pool of DMA memory, cheap to clone and to share between threads.
///
/// Buffers up to 2 MiB are cut from 2 MiB regions and come back to the pool when dropped; larger ones get a
/// region of their own, unmapped when dropped. Memory grows with use and is returned when the pool and all its
/// buffers are gone.
#[derive(Clone)]
pub struct DmaPool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Held while memory is mapped, by one at a time: what it maps is for the others as well. `state` is not held meanwhile.
    growing: Mutex<()>,
}

#[derive(Default)]
struct State {
    free: [Vec<Extent>; CLASSES],
    stats: PoolStats,
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes mapped for size classes.
    pub mapped_bytes: usize,
    /// Buffers handed out and not yet returned, of any size.
    pub outstanding: usize,
}

impl DmaPool {
    /// An empty pool; memory is mapped at the first allocation.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), growing: Mutex::default() }))
    }

    /// A zeroed buffer of `len` bytes, page aligned. A length of zero gives an empty buffer.
    ///
    /// # Errors
    /// What the operating system reports when memory cannot be mapped.
    pub fn alloc(&self, len: usize) -> io::Result<DmaBuf> {
        let class = class_of(len);
        let mut extent = match class {
            Some(class) => self.take(class)?,
            None => DmaRegion::allocate(len)?,
        };
        extent.as_mut_slice()[..len].fill(0);
        self.lock().stats.outstanding += 1;
        Ok(DmaBuf { extent: Some(extent), len, home: Arc::clone(&self.0) })
    }

    /// A buffer holding a copy of `bytes`.
    ///
    /// # Errors
    /// As [`DmaPool::alloc`].
    pub fn copy_from(&self, bytes: &[u8]) -> io::Result<DmaBuf> {
        let mut buf = self.alloc(bytes.len())?;
        buf.copy_from_slice(bytes);
        Ok(buf)
    }

    /// Wraps memory registered by the caller ([`DmaRegion::register`]) as a buffer of `len` bytes. When dropped, the
    /// memory is released to its owner instead of being pooled.
    #[must_use]
    pub fn adopt(&self, extent: Extent) -> DmaBuf {
        self.lock().stats.outstanding += 1;
        DmaBuf { len: extent.len(), extent: Some(extent), home: Arc::clone(&self.0) }
    }

    /// What the pool holds now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.lock().stats
    }

    fn take(&self, class: usize) -> io::Result<Extent> {
        if let Some(extent) = self.lock().free[class].pop() {
            return Ok(extent);
        }
        // Nobody who gives a buffer back waits for the kernel meanwhile.
        let _growing = self.0.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(extent) = self.lock().free[class].pop() {
            return Ok(extent);
        }
        let mut rest = DmaRegion::allocate(CHUNK)?;
        // Cut into pieces of this class; all but one go to the free list.
        let mut state = self.lock();
        state.stats.mapped_bytes += CHUNK;
        let size = DMA_PAGE << class;
        while rest.len() > size {
            match rest.split_at(size) {
                Ok((piece, tail)) => {
                    state.free[class].push(piece);
                    rest = tail;
                }
                Err(whole) => return Ok(whole),
            }
        }
        Ok(rest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Default for DmaPool {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DmaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DmaPool").field(&self.stats()).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in this module panics while holding the lock; a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The class whose pieces hold `len` bytes, `None` above the largest.
fn class_of(len: usize) -> Option<usize> {
    (0..CLASSES).find(|class| len <= DMA_PAGE << class)
}

/// A buffer in DMA memory: unique, not clonable, page aligned.
///
/// It dereferences to its bytes. Submitting an I/O moves it into the command's slot; the completion moves it out
/// again, and until then no code in this process can reach it.
pub struct DmaBuf {
    /// Always present but while being dropped.
    extent: Option<Extent>,
    len: usize,
    home: Arc<Shared>,
}

impl DmaBuf {
    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The length it can grow to without a new allocation, bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.extent.as_ref().map_or(0, Extent::len)
    }

    /// Sets the length.
    ///
    /// # Panics
    /// When `len` is above [`DmaBuf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} above the buffer's capacity {}", self.capacity());
        self.len = len;
    }

    /// Where in DMA memory the bytes from `offset` on are; `None` at or past the end.
    #[inline]
    fn segment(&self, offset: usize) -> Option<DmaSegment<'_>> {
        let len = self.len.checked_sub(offset).filter(|&len| len > 0)?;
        let extent = self.extent.as_ref()?;
        Some(DmaSegment { region: extent.region(), offset: extent.offset() + offset, len })
    }

    /// The piece of registered memory behind the buffer, for transports that hand addresses to a device.
    #[must_use]
    pub fn extent(&self) -> Option<&Extent> {
        self.extent.as_ref()
    }

    /// The piece of memory itself, which comes back to no pool then.
    pub(super) fn into_extent(mut self) -> Result<Extent, Self> {
        self.extent.take().ok_or(self)
    }

    /// Gives the memory up for good: it stays mapped until the process ends. For buffers a device may still write.
    pub fn leak(mut self) {
        if let Some(extent) = self.extent.take() {
            extent.leak();
        }
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.extent.as_ref().map_or(&[], |extent| &extent.as_slice()[..self.len])
    }
}

impl DerefMut for DmaBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.extent.as_mut().map_or(&mut [], |extent| &mut extent.as_mut_slice()[..len])
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({} bytes)", self.len)
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        let mut state = self.home.lock();
        state.stats.outstanding -= 1;
        let Some(extent) = self.extent.take() else { return };
        // Pieces of a class go back; other pieces, whole regions of other sizes and foreign memory are released.
        let pooled = extent.region().len() == CHUNK && extent.region().file().is_some();
        if pooled
            && let Some(class) = class_of(extent.len())
            && extent.len() == DMA_PAGE << class
        {
            state.free[class].push(extent);
        } else {
            drop(state);
            device_buf::end_of_buffer(&extent);
            drop(extent);
        }
    }
}

/// A contiguous piece of a command's data, as a place in a region: what a device is told. It gives no access to the bytes.
#[derive(Clone, Copy, Debug)]
pub struct DmaSegment<'a> {
    /// The region.
    pub region: &'a DmaRegion,
    /// Where in the region it starts, bytes.
    pub offset: usize,
    /// Length, bytes; not zero.
    pub len: usize,
}

/// The data of one I/O: nothing, one buffer, or several in order (vectored I/O); and, where it is not part of the data, its
/// metadata.
#[derive(Debug, Default)]
pub enum IoBuf {
    /// No data.
    #[default]
    None,
    /// One buffer.
    One(DmaBuf),
    /// Several buffers, transferred in order as if they were one.
    Many(Vec<DmaBuf>),
    /// Memory of a dma-buf, for transports whose device moves the data. Others refuse it.
    Device(Box<DeviceBuf>),
    /// Data, and metadata in a buffer of its own. Made by [`IoBuf::with_metadata`].
    WithMetadata(Box<DataAndMetadata>),
}

/// Data, and the metadata of its blocks in a buffer of its own. Submitting the same one again allocates nothing.
#[derive(Debug)]
pub struct DataAndMetadata {
    /// Never has metadata itself.
    data: IoBuf,
    metadata: DmaBuf,
}

impl IoBuf {
    /// `data` and the metadata of its blocks. Metadata that came with `data` goes back to its pool.
    #[must_use]
    pub fn with_metadata(data: impl Into<Self>, metadata: DmaBuf) -> Self {
        let (data, _) = data.into().into_parts();
        Self::WithMetadata(Box::new(DataAndMetadata { data, metadata }))
    }

    /// Total length of the data, bytes. Metadata does not count.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(buf) => buf.len(),
            other => other.len_of_others(),
        }
    }

    /// Apart: what calls itself is never part of its caller's code.
    #[inline(never)]
    fn len_of_others(&self) -> usize {
        match self {
            Self::WithMetadata(both) => both.data.len(),
            Self::Device(buf) => buf.len(),
            _ => self.bufs().iter().map(DmaBuf::len).sum(),
        }
    }

    /// Whether there are no bytes of data.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the data is in one buffer, or there is none, and no metadata is with it: what most I/Os are.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::None | Self::One(_))
    }

    /// The metadata, where it has a buffer of its own.
    #[inline]
    #[must_use]
    pub fn metadata(&self) -> Option<&DmaBuf> {
        match self {
            Self::WithMetadata(both) => Some(&both.metadata),
            Self::None | Self::One(_) | Self::Many(_) | Self::Device(_) => None,
        }
    }

    /// As [`IoBuf::metadata`], writable.
    #[must_use]
    pub fn metadata_mut(&mut self) -> Option<&mut DmaBuf> {
        match self {
            Self::WithMetadata(both) => Some(&mut both.metadata),
            Self::None | Self::One(_) | Self::Many(_) | Self::Device(_) => None,
        }
    }

    /// Data and metadata apart.
    #[must_use]
    pub fn into_parts(self) -> (Self, Option<DmaBuf>) {
        match self {
            Self::WithMetadata(both) => (both.data, Some(both.metadata)),
            data => (data, None),
        }
    }

    /// The single buffer of data, if it is one. Metadata goes back to its pool.
    #[must_use]
    pub fn into_one(self) -> Option<DmaBuf> {
        match self.into_parts().0 {
            Self::One(buf) => Some(buf),
            _ => None,
        }
    }

    /// The memory of a dma-buf, if it is that. Metadata goes back to its pool.
    #[must_use]
    pub fn into_device(self) -> Option<DeviceBuf> {
        match self.into_parts().0 {
            Self::Device(buf) => Some(*buf),
            _ => None,
        }
    }

    /// The memory of a dma-buf, if it is that.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceBuf> {
        match self {
            Self::Device(buf) => Some(buf),
            Self::WithMetadata(both) => both.data.device(),
            Self::None | Self::One(_) | Self::Many(_) => None,
        }
    }

    /// The buffers of data, in order; none for memory of a dma-buf. Metadata goes back to its pool.
    #[must_use]
    pub fn into_vec(self) -> Vec<DmaBuf> {
        match self.into_parts().0 {
            Self::One(buf) => vec![buf],
            Self::Many(bufs) => bufs,
            Self::None | Self::Device(_) | Self::WithMetadata(_) => Vec::new(),
        }
    }

    /// The buffers of data, in order; none for memory of a dma-buf ([`IoBuf::device`]).
    #[inline]
    #[must_use]
    pub fn bufs(&self) -> &[DmaBuf] {
        match self {
            Self::None | Self::Device(_) => &[],
            Self::One(buf) => std::slice::from_ref(buf),
            Self::Many(bufs) => bufs,
            Self::WithMetadata(both) => both.data.bufs(),
        }
    }

    fn bufs_mut(&mut self) -> &mut [DmaBuf] {
        match self {
            Self::None | Self::Device(_) => &mut [],
            Self::One(buf) => std::slice::from_mut(buf),
            Self::Many(bufs) => bufs,
            Self::WithMetadata(both) => both.data.bufs_mut(),
        }
    }

    /// How many bytes from `offset` on lie within `segments` consecutive buffers.
    #[must_use]
    pub fn reach(&self, mut offset: usize, segments: u16) -> usize {
        if let Some(device) = self.device() {
            return if segments > 0 { device.len().saturating_sub(offset) } else { 0 };
        }
        let mut reach = 0;
        let mut left = segments;
        for buf in self.bufs() {
            if offset >= buf.len() {
                offset -= buf.len();
            } else if left > 0 {
                reach += buf.len() - offset;
                offset = 0;
                left -= 1;
            } else {
                break;
            }
        }
        reach
    }

    /// Where in DMA memory the bytes from `offset` to the end of the buffer that holds them are; `None` at or past the end.
    #[inline]
    #[must_use]
    pub fn segment(&self, offset: usize) -> Option<DmaSegment<'_>> {
        match self {
            Self::One(buf) => buf.segment(offset),
            other => other.segment_of_many(offset),
        }
    }

    #[inline(never)]
    fn segment_of_many(&self, mut offset: usize) -> Option<DmaSegment<'_>> {
        if let Some(device) = self.device() {
            return device.segment(offset);
        }
        for buf in self.bufs() {
            if offset < buf.len() {
                return buf.segment(offset);
            }
            offset -= buf.len();
        }
        None
    }

    /// The bytes from `offset` to the end of the buffer that holds them; empty at or past the end, and for memory of a dma-buf.
    #[inline]
    #[must_use]
    pub fn chunk(&self, offset: usize) -> &[u8] {
        match self {
            Self::One(buf) => buf.get(offset..).unwrap_or(&[]),
            other => other.chunk_of_many(offset),
        }
    }

    #[inline(never)]
    fn chunk_of_many(&self, mut offset: usize) -> &[u8] {
        for buf in self.bufs() {
            if offset < buf.len() {
                return &buf[offset..];
            }
            offset -= buf.len();
        }
        &[]
    }

    /// The writable bytes from `offset` to the end of the buffer that holds them; empty at or past the end, and for memory of a
    /// dma-buf.
    #[inline]
    #[must_use]
    pub fn chunk_mut(&mut self, offset: usize) -> &mut [u8] {
        match self {
            Self::One(buf) => buf.get_mut(offset..).unwrap_or(&mut []),
            other => other.chunk_of_many_mut(offset),
        }
    }

    #[inline(never)]
    fn chunk_of_many_mut(&mut self, mut offset: usize) -> &mut [u8] {
        for buf in self.bufs_mut() {
            if offset < buf.len() {
                return &mut buf[offset..];
            }
            offset -= buf.len();
        }
        &mut []
    }

    /// Gives all memory up for good; see [`DmaBuf::leak`].
    pub fn leak(self) {
        let (data, metadata) = self.into_parts();
        if let Self::Device(buf) = data {
            metadata.into_iter().for_each(DmaBuf::leak);
            return buf.leak();
        }
        data.into_vec().into_iter().chain(metadata).for_each(DmaBuf::leak);
    }
}

impl From<DmaBuf> for IoBuf {
    fn from(buf: DmaBuf) -> Self {
        Self::One(buf)
    }
}

impl From<DeviceBuf> for IoBuf {
    fn from(buf: DeviceBuf) -> Self {
        Self::Device(Box::new(buf))
    }
}

impl From<Vec<DmaBuf>> for IoBuf {
    fn from(bufs: Vec<DmaBuf>) -> Self {
        Self::Many(bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_need_memory_at_the_same_time_share_what_is_mapped() {
        for _ in 0..20 {
            let pool = DmaPool::new();
            let start = std::sync::Barrier::new(8);
            let bufs: Vec<DmaBuf> = std::thread::scope(|scope| {
                let one = || {
                    start.wait();
                    pool.alloc(DMA_PAGE).unwrap()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(pool.stats(), PoolStats { mapped_bytes: CHUNK, outstanding: 8 });
            drop(bufs);
            assert_eq!(pool.stats().outstanding, 0);
        }
    }

    #[test]
    fn buffers_come_back_to_their_class_and_are_zeroed_again() {
        let pool = DmaPool::new();
        let mut a = pool.alloc(5000).unwrap();
        assert_eq!((a.len(), a.capacity()), (5000, 8192));
        a.fill(7);
        let place = a.as_ptr();
        drop(a);
        let b = pool.alloc(8192).unwrap();
        assert_eq!(b.as_ptr(), place);
        assert!(b.iter().all(|&x| x == 0));
        assert_eq!(pool.stats(), PoolStats { mapped_bytes: CHUNK, outstanding: 1 });
    }

    #[test]
    fn distinct_buffers_do_not_share_bytes() {
        let pool = DmaPool::new();
        let mut bufs: Vec<DmaBuf> = (0..1000).map(|i| pool.alloc(100 + i * 37).unwrap()).collect();
        for (i, buf) in bufs.iter_mut().enumerate() {
            buf.fill(i as u8);
        }
        for (i, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|&x| x == i as u8), "buffer {i} was overwritten");
        }
    }

    #[test]
    fn an_adopted_piece_of_odd_size_is_not_handed_out_as_a_whole_one() {
        let pool = DmaPool::new();
        let Ok((odd, _rest)) = DmaRegion::allocate(CHUNK).unwrap().split_at(5000) else {
            panic!("5000 < CHUNK")
        };
        drop(pool.adopt(odd));
        assert_eq!(pool.alloc(8192).unwrap().len(), 8192);
    }

    #[test]
    fn large_buffers_have_a_region_of_their_own() {
        let pool = DmaPool::new();
        let a = pool.alloc(CHUNK + 1).unwrap();
        assert_eq!(pool.stats().mapped_bytes, 0);
        drop(a);
        assert_eq!(pool.stats().outstanding, 0);
    }

    #[test]
    fn metadata_is_kept_apart_from_data() {
        let pool = DmaPool::new();
        let data = vec![pool.copy_from(b"abc").unwrap(), pool.copy_from(b"de").unwrap()];
        let first = IoBuf::with_metadata(data, pool.copy_from(b"lost").unwrap());
        let mut io = IoBuf::with_metadata(first, pool.copy_from(b"12345678").unwrap());
        assert_eq!(pool.stats().outstanding, 3, "metadata that was replaced is back");
        assert_eq!((io.len(), io.bufs().len(), io.chunk(3)), (5, 2, &b"de"[..]));
        io.chunk_mut(3)[0] = b'D';
        io.metadata_mut().unwrap()[0] = b'0';
        let (data, metadata) = io.into_parts();
        assert_eq!(data.chunk(3), b"De");
        assert_eq!(metadata.unwrap()[..], *b"02345678");
        assert!(data.metadata().is_none());
        let both = IoBuf::with_metadata(pool.alloc(8192).unwrap(), pool.alloc(16).unwrap());
        assert_eq!(both.into_one().unwrap().len(), 8192);
    }

    #[test]
    fn chunks_of_a_vectored_buffer_follow_one_another() {
        let pool = DmaPool::new();
        let mut io = IoBuf::from(vec![
            pool.copy_from(b"abc").unwrap(),
            pool.alloc(0).unwrap(),
            pool.copy_from(b"defg").unwrap(),
        ]);
        assert_eq!(io.len(), 7);
        assert_eq!(io.chunk(1), b"bc");
        assert_eq!(io.chunk(3), b"defg");
        assert_eq!(io.chunk(7), b"");
        assert_eq!(
            (io.reach(0, 1), io.reach(1, 1), io.reach(1, 2), io.reach(3, 1), io.reach(7, 9)),
            (3, 2, 6, 4, 0)
        );
        io.chunk_mut(4)[0] = b'E';
        assert_eq!(io.chunk(3), b"dEfg");
    }
}
