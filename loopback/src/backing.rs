//! What a namespace's bytes are kept in: memory, a sparse file, or nothing.
//!
//! Reads and writes of one block are atomic against each other, from any number of threads: a lock covers a chunk of
//! bytes, and a block never straddles two chunks. A transfer over several chunks is not atomic as a whole, which the
//! NVM command set allows (AWUN is one block).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Smallest chunk, bytes, for units that divide it; a multiple of every block size without metadata.
const MIN_CHUNK: u64 = 64 * 1024;
/// Most chunks of a memory backing: the table costs tens of bytes each.
const MAX_CHUNKS: u64 = 65_536;
/// Locks of a file backing.
const STRIPES: usize = 64;
/// Bytes compared or zeroed at a time.
const PIECE: usize = 64 * 1024;

/// Where bytes are kept. Offsets and lengths are bounded by the namespace before they get here; what still lies outside is
/// an error, never a panic.
#[derive(Debug)]
pub(crate) enum Backing {
    Memory(Memory),
    File(Striped),
    Null,
}

/// Chunks of memory, each allocated when it is first written.
#[derive(Debug)]
pub(crate) struct Memory {
    chunk: u64,
    chunks: RwLock<Vec<Chunk>>,
}

/// Bytes, once something was written to them.
type Chunk = RwLock<Option<Box<[u8]>>>;

/// A file under striped locks.
#[derive(Debug)]
pub(crate) struct Striped {
    file: File,
    chunk: u64,
    locks: Vec<RwLock<()>>,
}

fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    // Copying bytes does not panic halfway; a poisoned lock still guards whole data.
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "an access beyond the end of the namespace's backing")
}

/// The pieces of `offset .. offset + len` that lie within one chunk each: chunk number, offset in the chunk, range in
/// the transfer.
fn pieces(chunk: u64, offset: u64, len: u64) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let mut done = 0u64;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done;
        let within = at % chunk;
        let n = (chunk - within).min(len - done);
        let piece = ((at / chunk) as usize, within as usize, done as usize, n as usize);
        done += n;
        Some(piece)
    })
}

/// The smallest chunk of whole units, at most [`MIN_CHUNK`], which is the longest unit there may be.
fn min_chunk(unit: u64) -> u64 {
    MIN_CHUNK - MIN_CHUNK % unit
}

impl Backing {
    /// Memory whose units (blocks with their metadata) of `unit` bytes are read and written as a whole.
    pub(crate) fn memory(len: u64, unit: u64) -> Self {
        let mut chunk = min_chunk(unit);
        while len.div_ceil(chunk) > MAX_CHUNKS {
            chunk *= 2;
        }
        let count = len.div_ceil(chunk) as usize;
        let chunks = (0..count).map(|_| RwLock::new(None)).collect();
        Self::Memory(Memory { chunk, chunks: RwLock::new(chunks) })
    }

    /// Opens or creates a file. A shorter file is extended with a hole to `len`; zero takes the file's own length.
    /// Returns the length as well. `unit` as in [`Self::memory`].
    pub(crate) fn file(path: &Path, len: u64, unit: u64) -> io::Result<(Self, u64)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let now = file.metadata()?.len();
        let len = if len == 0 { now } else { len };
        if now < len {
            file.set_len(len)?;
        }
        let locks = (0..STRIPES).map(|_| RwLock::new(())).collect();
        Ok((Self::File(Striped { file, chunk: min_chunk(unit), locks }), len))
    }

    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(memory) => {
                let chunks = read_lock(&memory.chunks);
                for (index, within, at, n) in pieces(memory.chunk, offset, to.len() as u64) {
                    let chunk = read_lock(chunks.get(index).ok_or_else(outside)?);
                    match &*chunk {
                        Some(bytes) => to[at..at + n].copy_from_slice(&bytes[within..within + n]),
                        None => to[at..at + n].fill(0),
                    }
                }
                Ok(())
            }
            Self::File(striped) => {
                for (index, _, at, n) in pieces(striped.chunk, offset, to.len() as u64) {
                    let _guard = read_lock(&striped.locks[index % STRIPES]);
                    striped.file.read_exact_at(&mut to[at..at + n], offset + at as u64)?;
                }
                Ok(())
            }
            Self::Null => Ok(()),
        }
    }

    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(memory) => {
                let chunks = read_lock(&memory.chunks);
                for (index, within, at, n) in pieces(memory.chunk, offset, from.len() as u64) {
                    let mut chunk = write_lock(chunks.get(index).ok_or_else(outside)?);
                    let bytes = chunk.get_or_insert_with(|| vec![0; memory.chunk as usize].into());
                    bytes[within..within + n].copy_from_slice(&from[at..at + n]);
                }
                Ok(())
            }
            Self::File(striped) => {
                for (index, _, at, n) in pieces(striped.chunk, offset, from.len() as u64) {
                    let _guard = write_lock(&striped.locks[index % STRIPES]);
                    striped.file.write_all_at(&from[at..at + n], offset + at as u64)?;
                }
                Ok(())
            }
            Self::Null => Ok(()),
        }
    }

    /// Makes a range read as zeroes. Whole chunks of memory are given back.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        match self {
            Self::Memory(memory) => {
                let chunks = read_lock(&memory.chunks);
                for (index, within, _, n) in pieces(memory.chunk, offset, len) {
                    let mut chunk = write_lock(chunks.get(index).ok_or_else(outside)?);
                    if n as u64 == memory.chunk {
                        *chunk = None;
                    } else if let Some(bytes) = &mut *chunk {
                        bytes[within..within + n].fill(0);
                    }
                }
                Ok(())
            }
            Self::File(striped) => {
                let zeroes = [0u8; PIECE];
                let mut found = [0u8; PIECE];
                for (index, _, at, n) in pieces(striped.chunk, offset, len) {
                    let _guard = write_lock(&striped.locks[index % STRIPES]);
                    let at = offset + at as u64;
                    // Zeroes are not written over zeroes: holes of the file stay holes.
                    striped.file.read_exact_at(&mut found[..n], at)?;
                    if found[..n] != zeroes[..n] {
                        striped.file.write_all_at(&zeroes[..n], at)?;
                    }
                }
                Ok(())
            }
            Self::Null => Ok(()),
        }
    }

    /// Whether the bytes from `offset` on are `with`.
    pub(crate) fn equals(&self, offset: u64, with: &[u8]) -> io::Result<bool> {
        if matches!(self, Self::Null) {
            return Ok(true);
        }
        let mut found = [0u8; PIECE];
        for (at, piece) in (0u64..).step_by(PIECE).zip(with.chunks(PIECE)) {
            let found = &mut found[..piece.len()];
            self.read(offset + at, found)?;
            if found != piece {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Changes the length. Bytes cut off are lost, bytes added read as zeroes.
    pub(crate) fn resize(&self, len: u64) -> io::Result<()> {
        match self {
            Self::Memory(memory) => {
                let mut chunks = write_lock(&memory.chunks);
                let count = len.div_ceil(memory.chunk) as usize;
                chunks.resize_with(count, || RwLock::new(None));
                let tail = (len % memory.chunk) as usize;
                if tail != 0
                    && let Some(last) = chunks.last()
                    && let Some(bytes) = &mut *write_lock(last)
                {
                    bytes[tail..].fill(0);
                }
                Ok(())
            }
            Self::File(striped) => {
                let guards: Vec<_> = striped.locks.iter().map(write_lock).collect();
                let result = striped.file.set_len(len);
                drop(guards);
                result
            }
            Self::Null => Ok(()),
        }
    }

    /// Puts what was written on stable storage.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::File(striped) => striped.file.sync_data(),
            Self::Memory(_) | Self::Null => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exercise(backing: &Backing) {
        let mut buf = vec![1; 8192];
        backing.read(MIN_CHUNK - 4096, &mut buf).unwrap();
        assert_eq!(buf, [0; 8192], "fresh bytes read as zeroes");
        let data: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8 + 1).collect();
        backing.write(MIN_CHUNK - 4096, &data).unwrap();
        backing.read(MIN_CHUNK - 4096, &mut buf).unwrap();
        assert_eq!(buf, data);
        assert!(backing.equals(MIN_CHUNK - 4096, &data).unwrap());
        assert!(!backing.equals(MIN_CHUNK - 4095, &data).unwrap());
        backing.zero(MIN_CHUNK - 512, 1024).unwrap();
        backing.read(MIN_CHUNK - 4096, &mut buf).unwrap();
        assert_eq!(buf[..3584], data[..3584]);
        assert_eq!(buf[3584..4608], [0; 1024]);
        assert_eq!(buf[4608..], data[4608..]);
        // What is cut off does not come back.
        backing.resize(MIN_CHUNK - 4096).unwrap();
        assert!(backing.write(4 * MIN_CHUNK, &data).is_err() || matches!(backing, Backing::File(_)));
        backing.resize(2 * MIN_CHUNK).unwrap();
        backing.read(MIN_CHUNK - 4096, &mut buf).unwrap();
        assert_eq!(buf, [0; 8192]);
        backing.flush().unwrap();
    }

    #[test]
    fn memory_keeps_bytes() {
        exercise(&Backing::memory(2 * MIN_CHUNK, 512));
    }

    #[test]
    fn a_file_keeps_bytes_and_grows_to_its_size() {
        let path = std::env::temp_dir().join(format!("nvmf-loopback-backing-{}", std::process::id()));
        let (backing, len) = Backing::file(&path, 2 * MIN_CHUNK, 512).unwrap();
        assert_eq!(len, 2 * MIN_CHUNK);
        exercise(&backing);
        let (_, len) = Backing::file(&path, 0, 512).unwrap();
        assert_eq!(len, 2 * MIN_CHUNK);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn huge_memory_costs_nothing_until_written() {
        let backing = Backing::memory(1 << 44, 512);
        backing.zero(1 << 43, 1 << 20).unwrap();
        let mut buf = [7; 512];
        backing.read((1 << 44) - 512, &mut buf).unwrap();
        assert_eq!(buf, [0; 512]);
    }

    #[test]
    fn units_of_any_size_lie_in_one_chunk() {
        for unit in [512, 520, 4104, 4096 + 64, 65_536, 32_768 + 8] {
            let chunk = min_chunk(unit);
            assert!(chunk > 0 && chunk <= PIECE as u64 && chunk.is_multiple_of(unit), "{unit}");
        }
    }

    #[test]
    fn a_block_is_never_seen_half_written() {
        let backing = Backing::memory(MIN_CHUNK, 4096);
        std::thread::scope(|scope| {
            for value in 1..=2u8 {
                let backing = &backing;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        backing.write(4096, &[value; 4096]).unwrap();
                    }
                });
            }
            for _ in 0..2000 {
                let mut buf = [0; 4096];
                backing.read(4096, &mut buf).unwrap();
                assert!(buf.iter().all(|&b| b == buf[0]), "a torn read");
            }
        });
    }
}
