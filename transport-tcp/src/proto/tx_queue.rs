//! What is to be sent: headers and small payloads copied, large payloads by reference to the command's own data.

use std::collections::VecDeque;
use std::io::IoSlice;

use nvmf_core::proto::Tracker;

/// A piece of the byte stream.
#[derive(Debug)]
enum Segment {
    /// The next `len` bytes of `staged`.
    Staged { len: usize },
    /// Bytes of the data of the command in `slot`.
    Payload { slot: u16, offset: u32, len: u32 },
}

/// Bytes in the order they are sent. Positions count the bytes of the connection's whole life, so that "has this left?" is
/// one comparison.
#[derive(Debug, Default)]
pub(super) struct TxQueue {
    staged: Vec<u8>,
    /// Bytes at the front of `staged` that have been sent.
    head: usize,
    segments: VecDeque<Segment>,
    /// Bytes at the end of `staged` that come behind all segments: mostly that is everything.
    last: usize,
    queued: u64,
    sent: u64,
}

impl TxQueue {
    /// Position behind the last byte queued.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// Position behind the last byte sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued == self.sent
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len() + usize::from(self.last > 0)
    }

    /// Queues a copy of `bytes`.
    #[inline(always)]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.staged.extend_from_slice(bytes);
        self.grew(bytes.len());
    }

    /// Queues `n` bytes of padding.
    pub(super) fn pad(&mut self, n: usize) {
        self.staged.resize(self.staged.len() + n, 0);
        self.grew(n);
    }

    #[inline(always)]
    fn grew(&mut self, n: usize) {
        self.queued += n as u64;
        self.last += n;
    }

    /// Queues `len` bytes (not 0) of a command's data without copying them. They must stay until they are sent.
    pub(super) fn put_payload(&mut self, slot: u16, offset: u32, len: u32) {
        self.queued += u64::from(len);
        if self.last > 0 {
            self.segments.push_back(Segment::Staged { len: std::mem::take(&mut self.last) });
        }
        self.segments.push_back(Segment::Payload { slot, offset, len });
    }

    /// The copied bytes at the front; empty when a payload is in front.
    pub(super) fn staged_front(&self) -> &[u8] {
        let len = match self.segments.front() {
            Some(&Segment::Staged { len }) => len,
            Some(Segment::Payload { .. }) => 0,
            None => self.last,
        };
        &self.staged[self.head..self.head + len]
    }

    /// All that is to be sent, if it is one piece that was copied.
    pub(super) fn only_staged(&self) -> Option<&[u8]> {
        if self.segments.is_empty() && self.last > 0 { self.staged.get(self.head..) } else { None }
    }

    /// Fills `out` with what is to be sent next, at most `most` bytes, and returns how many slices that took.
    pub(super) fn slices<'a>(&'a self, tracker: &'a Tracker, most: usize, out: &mut [IoSlice<'a>]) -> usize {
        let (mut count, mut left) = (0, most);
        // Whether there is room for more behind these bytes.
        let mut put = |bytes: &'a [u8]| {
            let Some(slice) = out.get_mut(count) else { return false };
            let bytes = &bytes[..bytes.len().min(left)];
            if bytes.is_empty() {
                return false;
            }
            *slice = IoSlice::new(bytes);
            count += 1;
            left -= bytes.len();
            true
        };
        let mut at = self.head;
        for segment in &self.segments {
            match *segment {
                Segment::Staged { len } => {
                    if !put(&self.staged[at..at + len]) {
                        return count;
                    }
                    at += len;
                }
                Segment::Payload { slot, mut offset, mut len } => {
                    while len > 0 {
                        let chunk = tracker.chunk(slot, offset);
                        let chunk = &chunk[..chunk.len().min(len as usize)];
                        if !put(chunk) {
                            return count;
                        }
                        offset += chunk.len() as u32;
                        len -= chunk.len() as u32;
                    }
                }
            }
        }
        put(&self.staged[at..at + self.last]);
        count
    }

    /// `n` bytes were sent.
    pub(super) fn advance(&mut self, mut n: usize) {
        debug_assert!(self.sent + n as u64 <= self.queued);
        self.sent += n as u64;
        while n > 0 {
            let Some(front) = self.segments.front_mut() else {
                let part = n.min(self.last);
                self.last -= part;
                self.head += part;
                break;
            };
            let done = match front {
                Segment::Staged { len } => {
                    let part = n.min(*len);
                    *len -= part;
                    self.head += part;
                    n -= part;
                    *len == 0
                }
                Segment::Payload { offset, len, .. } => {
                    let part = n.min(*len as usize);
                    *len -= part as u32;
                    *offset += part as u32;
                    n -= part;
                    *len == 0
                }
            };
            if done {
                self.segments.pop_front();
            }
        }
        // The copies go when all are sent, which is after nearly every batch; under back pressure when half are.
        if self.head == self.staged.len() {
            self.staged.clear();
            self.head = 0;
        } else if self.head > self.staged.len() / 2 {
            self.staged.drain(..self.head);
            self.head = 0;
        }
    }
}
