//! Sending: commands and the data that R2Ts ask for.

use std::io::IoSlice;

use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::data_ptr::SglDescriptor;
use nvmf_core::spec::tcp::{
    ADMIN_IN_CAPSULE_DATA, CapsuleCmd, DIGEST_LEN, DataPdu, FLAG_DDGST, FLAG_HDGST, FLAG_LAST, PduType,
};
use nvmf_core::spec::{AdminOpcode, Sqe};
use nvmf_core::{Error, Result};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::super::digest::{Crc32c, crc32c};
use super::{Connection, Grant, Progress, common};

/// Payloads up to this many bytes are copied next to their header: one long slice is cheaper than many short ones.
const COPY_MAX: u32 = 8192;
/// Bytes of a command capsule without data.
const CAPSULE_LEN: usize = size_of::<CapsuleCmd>();
/// Bytes for one send. Each costs some microseconds and ends in a segment that is not full; while it lasts the kernel does not look at
/// acknowledgements, and frees nothing of what was sent. More had better not be queued: new commands wait behind it.
pub const SEND_MAX: usize = 1024 * 1024;
/// So much leaves at once when the controller has nothing else to do, or answers before the host asks for more: it goes on while the rest of
/// the batch is being copied. Otherwise a queue that is filled in one go is answered in one go, and host and controller wait for
/// each other in turn. Where it is the host that is behind, one send for all costs it less.
const PART: u64 = 48 * 1024;
/// Receives that bring something, after one that found nothing, until the host is taken to be behind.
const AHEAD: u8 = 4;
/// H2CData PDUs are made as they can be sent: no more are made while this many segments, or the bytes of a send, are queued. What was
/// read for a digest is then still in the processor's cache when it is sent.
const H2C_SEGMENTS: usize = 64;

impl Connection {
    /// Queues the command in `slot`.
    ///
    /// # Errors
    /// When the connection is not running, or the command can not be sent over it.
    pub fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        self.check_failed()?;
        if !self.is_running() {
            return Err(Error::api_misuse("a command was submitted before the connection was established"));
        }
        let limit = self.in_capsule_limit(sqe);
        let index = usize::from(slot);
        if index >= self.progress.len() {
            self.reach(slot)?;
        }
        let progress = &mut self.progress[index];
        let len = tracker.data_len(slot);
        let mut in_capsule = false;
        let descriptor = match tracker.direction(slot) {
            // A zero-length transport descriptor, as other hosts send it: no target looks at it.
            DataDirection::None => SglDescriptor::transport(0),
            DataDirection::ControllerToHost => SglDescriptor::transport(len),
            DataDirection::HostToController if len <= limit => {
                in_capsule = true;
                // Offset 0: NVMe/TCP has no ICDOFF (NVMe/TCP 1.1 §3.3.2).
                SglDescriptor::in_capsule(0, len)
            }
            DataDirection::HostToController => SglDescriptor::transport(len),
            DataDirection::Bidirectional => {
                return Err(Error::unsupported("commands that transfer data both ways over NVMe/TCP"));
            }
        };
        let start = self.tx.queued();
        if self.tx.is_empty() {
            self.due_at = next_due(start, self.ahead > 0 || tracker.in_flight() == 1);
        }
        *progress =
            Progress { sqe_end: start + CAPSULE_LEN as u64, by_r2t: !in_capsule, ..Progress::default() };
        let data = if in_capsule { Some((slot, 0, len)) } else { None };
        let sqe = sqe.words_with_sgl(descriptor);
        // A CapsuleCmd, put together from whole words: they go from registers to where they are sent from.
        let make = |flags, pdo, plen| -> [U64; CAPSULE_LEN / 8] {
            let ch = common(PduType::CAPSULE_CMD, flags, CAPSULE_LEN, pdo, plen);
            let ch: U64 = zerocopy::transmute!(ch);
            [ch, sqe[0], sqe[1], sqe[2], sqe[3], sqe[4], sqe[5], sqe[6], sqe[7]]
        };
        self.queue_pdu(0, data, tracker, make)?;
        self.progress[usize::from(slot)].tx_end = self.tx.queued();
        Ok(())
    }

    /// Whether what is queued had better leave before the batch is complete. It is said once of each part.
    #[must_use]
    pub fn take_due(&mut self) -> bool {
        let due = self.tx.queued() >= self.due_at;
        if due {
            self.due_at = next_due(self.tx.queued(), self.ahead > 0);
        }
        due
    }

    /// A receive found nothing: the host is ahead of the controller.
    pub fn received_nothing(&mut self) {
        self.ahead = AHEAD;
    }

    /// Makes room for what `slot` does, which is used for the first time.
    #[cold]
    fn reach(&mut self, slot: u16) -> Result<()> {
        if slot >= self.params.slots {
            return Err(Error::api_misuse(format!("slot {slot} is outside of what was set up")));
        }
        self.progress.resize(usize::from(slot) + 1, Progress::default());
        Ok(())
    }

    /// Bytes of data that may travel with a command (NVMe/TCP 1.1 §3.3.2, Base 2.1 IOCCSZ).
    fn in_capsule_limit(&self, sqe: &Sqe) -> u32 {
        if self.params.qid == 0 || sqe.opcode == AdminOpcode::FABRICS.0 {
            ADMIN_IN_CAPSULE_DATA
        } else {
            self.params.in_capsule_io
        }
    }

    /// Queues one PDU: the header `make` builds from flags, PDO and PLEN, its digest, padding, data and data digest.
    #[inline(always)]
    fn queue_pdu<H: IntoBytes + Immutable>(
        &mut self,
        flags: u8,
        data: Option<(u16, u32, u32)>,
        tracker: &Tracker,
        make: impl FnOnce(u8, usize, usize) -> H,
    ) -> Result<()> {
        let hlen = size_of::<H>();
        let digest_len = |on| if on { DIGEST_LEN } else { 0 };
        let header = hlen + digest_len(self.rules.header_digest);
        let mut flags = flags | if self.rules.header_digest { FLAG_HDGST } else { 0 };
        let (mut pdo, mut plen) = (0, header);
        if let Some((_, _, len)) = data {
            pdo = header.next_multiple_of(self.alignment);
            plen = pdo + len as usize + digest_len(self.rules.data_digest);
            flags |= if self.rules.data_digest { FLAG_DDGST } else { 0 };
        }
        let built = make(flags, pdo, plen);
        self.tx.put(built.as_bytes());
        if self.rules.header_digest {
            self.tx.put(&crc32c(built.as_bytes()).to_le_bytes());
        }
        let Some((slot, offset, len)) = data else { return Ok(()) };
        self.tx.pad(pdo - header);
        let digest = self.queue_payload(slot, offset, len, tracker)?;
        if let Some(digest) = digest {
            self.tx.put(&digest.to_le_bytes());
        }
        Ok(())
    }

    /// Queues payload, copied or by reference. Returns its digest if one is to be sent.
    fn queue_payload(&mut self, slot: u16, offset: u32, len: u32, tracker: &Tracker) -> Result<Option<u32>> {
        let copy = len <= COPY_MAX;
        let mut crc = None;
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let chunk = tracker.chunk(slot, at);
            let chunk = &chunk[..chunk.len().min(left as usize)];
            if chunk.is_empty() {
                return Err(Error::api_misuse("the buffer of a command is shorter than its data"));
            }
            if copy {
                self.tx.put(chunk);
            }
            if self.rules.data_digest {
                if chunk.len() == len as usize {
                    if !copy {
                        self.tx.put_payload(slot, offset, len);
                    }
                    return Ok(Some(crc32c(chunk)));
                }
                crc.get_or_insert_with(Crc32c::new).update(chunk);
            }
            at += chunk.len() as u32;
            left -= chunk.len() as u32;
        }
        if !copy {
            self.tx.put_payload(slot, offset, len);
        }
        Ok(crc.map(|crc| crc.value()))
    }

    /// Makes H2CData PDUs for the R2Ts received, as many as can be sent soon.
    ///
    /// # Errors
    /// When the connection failed, or a buffer is shorter than its command says.
    pub fn fill(&mut self, tracker: &Tracker) -> Result<()> {
        while let Some(grant) = self.grants.get_mut(self.granted) {
            if self.tx.segments() >= H2C_SEGMENTS || self.tx.queued() - self.tx.sent() >= SEND_MAX as u64 {
                break;
            }
            let (slot, ttag, offset) = (grant.slot, grant.ttag, grant.offset);
            let len = grant.left.min(self.maxh2cdata);
            grant.offset += len;
            grant.left -= len;
            let last = grant.left == 0;
            let make = |flags, pdo, plen| DataPdu {
                ch: common(PduType::H2C_DATA, flags, size_of::<DataPdu>(), pdo, plen),
                cccid: U16::new(tracker.cid(slot)),
                ttag: U16::new(ttag),
                datao: U32::new(offset),
                datal: U32::new(len),
                reserved: [0; 4],
            };
            let flags = if last { FLAG_LAST } else { 0 };
            self.queue_pdu(flags, Some((slot, offset, len)), tracker, make)?;
            let end = self.tx.queued();
            self.progress[usize::from(slot)].tx_end = end;
            if let Some(grant) = self.grants.get_mut(self.granted) {
                grant.end = end;
            }
            self.granted += usize::from(last);
        }
        Ok(())
    }

    /// Copied bytes to be sent next, while connecting and when there is no tracker.
    #[must_use]
    pub fn transmit_staged(&self) -> &[u8] {
        self.tx.staged_front()
    }

    /// All that is to be sent, if that is one slice of copied bytes, as it is for most batches. Report what was sent with
    /// [`Connection::sent`]. Call [`Connection::fill`] before.
    #[must_use]
    pub fn transmit_one(&self) -> Option<&[u8]> {
        self.tx.only_staged()
    }

    /// Fills `out` with what is to be sent next, at most `most` bytes; returns how many slices. Report what was sent with
    /// [`Connection::sent`]. Call [`Connection::fill`] before.
    pub fn transmit_slices<'a>(
        &'a self,
        tracker: &'a Tracker,
        most: usize,
        out: &mut [IoSlice<'a>],
    ) -> usize {
        self.tx.slices(tracker, most, out)
    }

    /// `n` bytes were sent.
    pub fn sent(&mut self, n: usize) {
        self.tx.advance(n);
        let sent = self.tx.sent();
        while self.granted > 0
            && let Some(&Grant { slot, end, .. }) = self.grants.front()
            && end <= sent
        {
            self.grants.pop_front();
            self.granted -= 1;
            self.progress[usize::from(slot)].r2ts -= 1;
        }
    }
}

/// From which stream position on what is queued is due, if `queued` is the last that has been dealt with.
fn next_due(queued: u64, in_parts: bool) -> u64 {
    if in_parts { queued + PART } else { u64::MAX }
}
