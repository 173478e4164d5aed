//! Doorbells as memory: a client in another process maps them and writes them without telling anybody, so they have to be looked at.

use std::io;
use std::os::fd::OwnedFd;

use nvmf_core::dma::SharedMemory;
use nvmf_core::spec::registers::DOORBELL_BASE;

/// The doorbells of a function, in a file that starts where BAR 0 starts.
pub(super) struct MappedDoorbells {
    memory: SharedMemory,
    /// Bytes between two doorbells.
    stride: usize,
    /// What each held when it was looked at last.
    seen: Vec<u32>,
}

impl MappedDoorbells {
    /// `count` doorbells, all zero, in a BAR 0 of `len` bytes.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn new(len: u64, stride: u64, count: usize) -> io::Result<Self> {
        let size = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        Ok(Self { memory: SharedMemory::allocate(size(len)?)?, stride: size(stride)?, seen: vec![0; count] })
    }

    /// The file. It cannot be shortened, so that a client maps it without fear.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(super) fn file(&self) -> io::Result<OwnedFd> {
        self.memory.file().ok_or(io::ErrorKind::Unsupported)?.try_clone_to_owned()
    }

    fn at(&self, index: usize) -> usize {
        DOORBELL_BASE as usize + index * self.stride
    }

    /// The doorbell belongs to a new queue: zero, whatever the one before left.
    pub(super) fn reset(&mut self, index: usize) {
        if let Some(seen) = self.seen.get_mut(index) {
            *seen = 0;
            self.memory.write_u32(self.at(index), 0);
        }
    }

    /// The value of a doorbell, if it is another than before.
    pub(super) fn news(&mut self, index: usize) -> Option<u32> {
        let value = self.memory.load_acquire_u32(DOORBELL_BASE as usize + index * self.stride);
        let seen = self.seen.get_mut(index)?;
        if *seen == value {
            return None;
        }
        *seen = value;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::grant::device_memory;
    use super::*;

    #[test]
    fn what_a_client_writes_is_news_once() {
        let mut doorbells = MappedDoorbells::new(0x4000, 8, 4).unwrap();
        let mut client = device_memory();
        client.map_file(0, doorbells.file().unwrap(), 0, 0x4000, true).unwrap();
        assert_eq!(doorbells.news(3), None);
        client.store_release_u32(0x1000 + 3 * 8, 7).unwrap();
        assert_eq!((doorbells.news(2), doorbells.news(3), doorbells.news(3)), (None, Some(7), None));
        client.store_release_u32(0x1000 + 3 * 8, 6).unwrap();
        doorbells.reset(3);
        assert_eq!(doorbells.news(3), None, "what was written for the queue before");
        client.store_release_u32(0x1000 + 3 * 8, 7).unwrap();
        assert_eq!(doorbells.news(3), Some(7));
    }

    #[test]
    fn the_file_cannot_be_shortened() {
        let doorbells = MappedDoorbells::new(0x4000, 4, 4).unwrap();
        let file = std::fs::File::from(doorbells.file().unwrap());
        assert!(file.set_len(0).is_err());
        let seals = rustix::fs::fcntl_get_seals(file.as_fd()).unwrap();
        assert!(seals.contains(rustix::fs::SealFlags::SHRINK));
    }
}
