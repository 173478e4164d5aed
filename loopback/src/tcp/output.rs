//! Bytes on their way to a host.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

/// What zeroes are sent from.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
/// A run of zeroes up to this length is sent as one piece with up to so many bytes before and behind it.
const FLAT_ZEROES: usize = 8 * 1024;
const FLAT_AROUND: usize = 256;

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
    /// Zeroes with room around them; made when it is used first.
    flat: Box<[u8]>,
    /// What is not zero behind them.
    behind: Range<usize>,
}

impl Output {
    /// Bytes to be sent.
    pub(super) fn len(&self) -> usize {
        self.end - self.start + self.zeroed
    }

    /// All that is to be sent, if that is one piece, or one short run of zeroes with little around it, as one answer is: a plain
    /// send is cheaper than one of several pieces.
    pub(super) fn one(&mut self) -> Option<&[u8]> {
        let (at, len) = match self.zeroes.len() {
            0 => return Some(&self.buf[self.start..self.end]),
            1 => self.zeroes[0],
            _ => return None,
        };
        let (before, behind) = (at - self.start, self.end - at);
        if len > FLAT_ZEROES || before > FLAT_AROUND || behind > FLAT_AROUND {
            return None;
        }
        if self.flat.is_empty() {
            self.flat = vec![0; FLAT_AROUND + FLAT_ZEROES + FLAT_AROUND].into();
        }
        self.flat[self.behind.clone()].fill(0);
        let (start, end) = (FLAT_AROUND - before, FLAT_AROUND + len);
        self.behind = end..end + behind;
        self.flat[start..FLAT_AROUND].copy_from_slice(&self.buf[self.start..at]);
        self.flat[self.behind.clone()].copy_from_slice(&self.buf[at..self.end]);
        Some(&self.flat[start..self.behind.end])
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

    fn pending(output: &mut Output) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = output.slices(&mut slices);
        let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
        assert_eq!(bytes.len(), output.len());
        if let Some(one) = output.one() {
            assert_eq!(one, bytes);
        }
        bytes
    }

    #[test]
    fn bytes_come_out_in_order_and_room_is_reused() {
        let mut output = Output::default();
        output.put(&[1; 100]);
        output.put(&[2; 100]);
        output.consume(150);
        assert_eq!(pending(&mut output), [2; 50]);
        output.reserve(1000).fill(3);
        output.commit(10);
        assert_eq!(pending(&mut output), [[2; 50].as_slice(), &[3; 10]].concat());
        output.consume(60);
        assert!(pending(&mut output).is_empty());
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
                assert_eq!(pending(&mut output), expected[done..], "{step} {done}");
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
    fn one_answer_is_one_piece() {
        let mut output = Output::default();
        // Longer and shorter ones, with something behind and without: nothing of the one before is left.
        for (byte, zeroes, behind) in [(1, 4096, 4), (2, 8192, 0), (3, 512, 256), (4, 4096, 0), (5, 513, 1)] {
            output.put(&[byte; 24]);
            output.put_zeroes(zeroes);
            output.put(&vec![byte; behind]);
            let expected = [vec![byte; 24], vec![0; zeroes], vec![byte; behind]].concat();
            assert_eq!(output.one(), Some(&*expected));
            output.consume(7);
            assert_eq!(output.one(), Some(&expected[7..]));
            output.consume(expected.len() - 7);
            assert_eq!(output.one(), Some(&[][..]));
        }
        output.put(&[1; 24]);
        output.put_zeroes(8193);
        assert_eq!(output.one(), None, "too long");
        output.consume(24 + 1);
        assert_eq!(output.one(), Some(&[0; 8192][..]));
        output.put(&[2; 24]);
        output.put_zeroes(512);
        assert_eq!(output.one(), None, "two runs");
    }

    #[test]
    fn data_is_aligned_behind_header_and_digest() {
        let layout = Layout::new(24, 512, true, true, 4);
        assert_eq!(layout, Layout { pdo: 28, data: 28..540, plen: 544 });
        let layout = Layout::new(24, 512, true, false, 128);
        assert_eq!(layout, Layout { pdo: 128, data: 128..640, plen: 640 });
    }
}
