//! Bytes on their way to a host.

use std::ops::Range;

/// A buffer filled at its end and emptied from its start. Room that was used once is not cleared again.
#[derive(Debug, Default)]
pub(super) struct Output {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Output {
    /// Bytes to be sent.
    pub(super) fn pending(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// `n` bytes were sent.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for `len` bytes behind those pending, holding whatever was there before. It counts once committed.
    pub(super) fn reserve(&mut self, len: usize) -> &mut [u8] {
        if self.start > 0 && self.end + len > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end + len > self.buf.len() {
            self.buf.resize((self.end + len).next_power_of_two(), 0);
        }
        &mut self.buf[self.end..self.end + len]
    }

    /// The first `len` bytes reserved last are to be sent.
    pub(super) fn commit(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buf.len());
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len()).copy_from_slice(bytes);
        self.commit(bytes.len());
    }
}

/// Where the parts of a PDU with data are, from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) pdo: usize,
    pub(super) data: Range<usize>,
    pub(super) plen: usize,
}

impl Layout {
    /// A PDU of `hlen` bytes of header and `len` of data, which is aligned to `align` bytes.
    pub(super) fn new(hlen: usize, len: usize, header_digest: bool, data_digest: bool, align: usize) -> Self {
        let pdo = (hlen + if header_digest { 4 } else { 0 }).next_multiple_of(align);
        let plen = pdo + len + if data_digest { 4 } else { 0 };
        Self { pdo, data: pdo..pdo + len, plen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_room_is_reused() {
        let mut output = Output::default();
        output.put(&[1; 100]);
        output.put(&[2; 100]);
        output.consume(150);
        assert_eq!(output.pending(), [2; 50]);
        output.reserve(1000).fill(3);
        output.commit(10);
        assert_eq!(output.pending(), [[2; 50].as_slice(), &[3; 10]].concat());
        output.consume(60);
        assert!(output.pending().is_empty());
        assert_eq!(output.reserve(1)[0], 2, "the start is used again, and not cleared");
    }

    #[test]
    fn data_is_aligned_behind_header_and_digest() {
        let layout = Layout::new(24, 512, true, true, 4);
        assert_eq!(layout, Layout { pdo: 28, data: 28..540, plen: 544 });
        let layout = Layout::new(24, 512, true, false, 128);
        assert_eq!(layout, Layout { pdo: 128, data: 128..640, plen: 640 });
    }
}
