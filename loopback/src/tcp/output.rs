//! Bytes on their way to a host.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

/// What zeroes are sent from.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A buffer filled at its end and emptied from its start. Room that was used once is not cleared again. Runs of zeroes in between
/// take no room.
#[derive(Debug, Default)]
pub(super) struct Output {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Runs of zeroes: where in `buf` they belong, and their length.
    zeroes: VecDeque<(usize, usize)>,
    /// Length of all of them.
    zeroed: usize,
}

impl Output {
    /// Bytes to be sent.
    pub(super) fn len(&self) -> usize {
        self.end - self.start + self.zeroed
    }

    /// Fills `out` with what is to be sent next. Returns how many slices that took.
    pub(super) fn slices<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut put = |bytes: &'a [u8]| match out.get_mut(count) {
            Some(slice) if !bytes.is_empty() => {
                *slice = IoSlice::new(bytes);
                count += 1;
                true
            }
            Some(_) => true,
            None => false,
        };
        let mut from = self.start;
        for &(at, mut len) in &self.zeroes {
            if !put(&self.buf[from..at]) {
                return count;
            }
            from = at;
            while len > 0 {
                let run = &ZEROES[..len.min(ZEROES.len())];
                if !put(run) {
                    return count;
                }
                len -= run.len();
            }
        }
        put(&self.buf[from..self.end]);
        count
    }

    /// `n` bytes were sent.
    pub(super) fn consume(&mut self, mut n: usize) {
        while let Some((at, len)) = self.zeroes.front_mut() {
            let bytes = n.min(*at - self.start);
            self.start += bytes;
            n -= bytes;
            let run = n.min(*len);
            *len -= run;
            self.zeroed -= run;
            n -= run;
            if *len > 0 {
                return;
            }
            self.zeroes.pop_front();
        }
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for `len` bytes behind those pending, holding whatever was there before. It counts once committed.
    pub(super) fn reserve(&mut self, len: usize) -> &mut [u8] {
        if self.start > 0 && self.end + len > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.zeroes.iter_mut().for_each(|(at, _)| *at -= self.start);
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

    /// `len` zeroes are to be sent.
    pub(super) fn put_zeroes(&mut self, len: usize) {
        self.zeroes.push_back((self.end, len));
        self.zeroed += len;
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

    fn pending(output: &Output) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = output.slices(&mut slices);
        let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
        assert_eq!(bytes.len(), output.len());
        bytes
    }

    #[test]
    fn bytes_come_out_in_order_and_room_is_reused() {
        let mut output = Output::default();
        output.put(&[1; 100]);
        output.put(&[2; 100]);
        output.consume(150);
        assert_eq!(pending(&output), [2; 50]);
        output.reserve(1000).fill(3);
        output.commit(10);
        assert_eq!(pending(&output), [[2; 50].as_slice(), &[3; 10]].concat());
        output.consume(60);
        assert!(pending(&output).is_empty());
        assert_eq!(output.reserve(1)[0], 2, "the start is used again, and not cleared");
    }

    #[test]
    fn zeroes_are_where_they_were_put_however_they_are_sent() {
        for step in [1, 7, 100, 65_536, 70_000] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for (byte, len) in [(1, 24), (2, 3), (3, 0), (4, 70_000), (5, 1)] {
                output.put(&[byte; 10]);
                output.put_zeroes(len);
                expected.extend([byte; 10]);
                expected.resize(expected.len() + len, 0);
            }
            output.put(&[6; 10]);
            expected.extend([6; 10]);
            let mut done = 0;
            while done < expected.len() {
                assert_eq!(pending(&output), expected[done..], "{step} {done}");
                let n = step.min(expected.len() - done);
                output.consume(n);
                done += n;
                if done == step {
                    // Moves what is left to the front.
                    let room = output.buf.len() - output.end + 1;
                    output.reserve(room);
                }
                if step == 1 && done > 200 {
                    break;
                }
            }
        }
    }

    #[test]
    fn data_is_aligned_behind_header_and_digest() {
        let layout = Layout::new(24, 512, true, true, 4);
        assert_eq!(layout, Layout { pdo: 28, data: 28..540, plen: 544 });
        let layout = Layout::new(24, 512, true, false, 128);
        assert_eq!(layout, Layout { pdo: 128, data: 128..640, plen: 640 });
    }
}
