//! The receive staging buffer: one large piece of memory that big receives go to and PDUs are parsed from.
//!
//! Only a connection that is being polled needs it. Between polls it keeps what it has of a PDU, a few bytes, in memory of its own, and the
//! large piece goes to the next connection that the thread polls: idle connections take little memory, and busy ones share
//! memory that is in the processor's cache.

use std::cell::RefCell;

/// Bytes that a connection keeps for itself between polls.
const KEPT: usize = 8192;
/// Large pieces that a thread keeps for connections to come: those of admin queues and of I/O queues differ in size.
const SPARE: usize = 4;

thread_local! {
    static SPARES: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A large piece of this size.
fn take_spare(capacity: usize) -> Box<[u8]> {
    let spare = SPARES.try_with(|spares| {
        let mut spares = spares.borrow_mut();
        let place = spares.iter().rposition(|spare| spare.len() == capacity)?;
        Some(spares.swap_remove(place))
    });
    spare.ok().flatten().unwrap_or_else(|| vec![0; capacity].into_boxed_slice())
}

fn put_spare(memory: Box<[u8]>) {
    if memory.is_empty() {
        return;
    }
    // A thread that is ending keeps nothing.
    let _ = SPARES.try_with(|spares| {
        let mut spares = spares.borrow_mut();
        if spares.len() == SPARE {
            spares.remove(0);
        }
        if spares.capacity() == 0 {
            spares.reserve_exact(SPARE);
        }
        spares.push(memory);
    });
}

/// Received bytes that have not been consumed yet, contiguous, in a buffer that never grows.
#[derive(Debug)]
pub(super) struct Staging {
    capacity: usize,
    /// The large piece; empty while parked.
    memory: Box<[u8]>,
    /// What is kept while parked, and how much.
    kept: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, memory: Box::default(), kept: Box::default(), start: 0, end: 0 }
    }

    /// What has been received and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        if self.memory.is_empty() {
            &self.kept[self.start..self.end]
        } else {
            &self.memory[self.start..self.end]
        }
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end);
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the large piece back, unless too much is in it.
    pub(super) fn park(&mut self) {
        let len = self.len();
        if self.memory.is_empty() || len > KEPT {
            return;
        }
        if len > 0 {
            if self.kept.is_empty() {
                self.kept = vec![0; KEPT].into_boxed_slice();
            }
            self.kept[..len].copy_from_slice(&self.memory[self.start..self.end]);
        }
        (self.start, self.end) = (0, len);
        put_spare(std::mem::take(&mut self.memory));
    }

    /// Room for the next receive, at most `window` bytes. What is left over is moved to the front first: usually
    /// part of one header.
    pub(super) fn room(&mut self, window: usize) -> &mut [u8] {
        if self.memory.is_empty() {
            self.memory = take_spare(self.capacity);
            let len = self.len();
            self.memory[..len].copy_from_slice(&self.kept[self.start..self.end]);
            (self.start, self.end) = (0, len);
        } else if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = &mut self.memory[self.end..];
        let len = room.len().min(window);
        &mut room[..len]
    }

    /// `n` bytes were put into [`Staging::room`].
    pub(super) fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.memory.len());
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        put_spare(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_again_and_large_pieces_are_shared() {
        let (mut a, mut b) = (Staging::new(1 << 18), Staging::new(1 << 18));
        a.room(100)[..10].copy_from_slice(b"0123456789");
        a.filled(10);
        a.consume(4);
        let memory = a.memory.as_ptr();
        a.park();
        assert_eq!(a.bytes(), b"456789");
        a.consume(1);
        assert_eq!(b.room(usize::MAX).len(), 1 << 18);
        assert_eq!(b.memory.as_ptr(), memory, "the next connection takes the same piece");
        assert_eq!(a.room(usize::MAX).len(), (1 << 18) - 5);
        assert_eq!(a.bytes(), b"56789");
        a.park();
        a.consume(5);
        assert!(a.is_empty());
        // Too much to be kept apart.
        b.filled(KEPT + 1);
        b.park();
        assert_eq!((b.len(), b.memory.as_ptr()), (KEPT + 1, memory));
    }

    #[test]
    fn left_over_bytes_move_to_the_front() {
        let mut s = Staging::new(8);
        s.room(100).copy_from_slice(b"abcdefgh");
        s.filled(8);
        assert!(s.room(100).is_empty());
        s.consume(6);
        assert_eq!(s.bytes(), b"gh");
        assert_eq!(s.room(3).len(), 3);
        s.room(3).copy_from_slice(b"ijk");
        s.filled(3);
        assert_eq!(s.bytes(), b"ghijk");
        s.consume(5);
        assert!(s.is_empty());
        assert_eq!(s.room(100).len(), 8);
    }
}
