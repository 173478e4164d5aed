//! The receive staging buffer: one fixed piece of memory that big receives go to and PDUs are parsed from.

/// Received bytes that have not been consumed yet, contiguous, in a buffer that never grows.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    pub(super) fn new(capacity: usize) -> Self {
        Self { memory: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has been received and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
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

    /// Room for the next receive, at most `window` bytes. What is left over is moved to the front first: usually
    /// part of one header.
    pub(super) fn room(&mut self, window: usize) -> &mut [u8] {
        if self.start > 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
