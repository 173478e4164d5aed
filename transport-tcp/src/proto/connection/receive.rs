//! Receiving: PDUs in, data and completions to the tracker.

use nvmf_core::proto::Tracker;
use nvmf_core::spec::Status;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::completion::Cqe;
use nvmf_core::spec::tcp::{
    CapsuleResp, CommonHeader, DIGEST_DATA, DIGEST_HEADER, DIGEST_LEN, DataPdu, FLAG_LAST, FLAG_SUCCESS,
    FatalErrorStatus, IcResp, MAX_PDA, MIN_MAXH2CDATA, PduType, R2t, TermReq,
};
use nvmf_core::{Error, ErrorKind, Result};
use zerocopy::FromBytes;

use super::super::header::{invalid, out_of_range, out_of_sequence};
use super::{Connection, Grant, Payload, Rx, State};

/// Remaining payload from which bytes are received straight into the command's buffer. Below, one big receive and a copy is
/// cheaper than a system call per PDU.
const DIRECT_MIN: usize = 16 * 1024;
/// A C2HData PDU of this size makes it likely that more follow: receives then leave most of the payload in the socket,
/// to be received directly.
const BULK_MIN: u32 = 64 * 1024;

/// Where the next bytes from the socket go: `direct` first (may be empty), then `staging`.
#[derive(Debug)]
pub struct RecvTarget<'a> {
    /// Part of a command's own buffer.
    pub direct: &'a mut [u8],
    /// The staging buffer.
    pub staging: &'a mut [u8],
}

impl RecvTarget<'_> {
    /// Bytes there is room for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.direct.len() + self.staging.len()
    }

    /// Whether there is room for none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Connection {
    /// Where the next bytes go while connecting, when there is no tracker yet.
    pub fn connect_target(&mut self) -> &mut [u8] {
        self.direct_len = 0;
        self.staging.room(usize::MAX)
    }

    /// Looks for the ICResp in what was received. `true` once the connection is running.
    ///
    /// # Errors
    /// When the controller sent anything but an acceptable ICResp. A H2CTermReq is queued where one is due.
    pub fn process_connect(&mut self) -> Result<bool> {
        self.check_failed()?;
        if self.is_running() {
            return Ok(true);
        }
        self.ic_response().map_err(|error| self.fail(error))
    }

    /// Where the next bytes from the socket go. Report how many with [`Connection::received`].
    pub fn recv_target<'a>(&'a mut self, tracker: &'a mut Tracker) -> RecvTarget<'a> {
        self.direct_len = 0;
        let mut direct: &mut [u8] = &mut [];
        let mut window = usize::MAX;
        if self.bulk {
            window = DIRECT_MIN;
        }
        if let Rx::Payload(payload) = self.rx {
            let left = payload.left as usize;
            if left >= DIRECT_MIN && self.staging.is_empty() {
                let chunk = tracker.chunk_mut(payload.slot, payload.offset);
                let len = chunk.len().min(left);
                if len >= DIRECT_MIN {
                    direct = &mut chunk[..len];
                    // What follows is the next PDU, or belongs into another buffer of the command.
                    window = if len == left { DIRECT_MIN } else { 0 };
                }
            } else if self.bulk {
                window = left.saturating_add(DIRECT_MIN);
            }
        }
        self.direct_len = direct.len();
        RecvTarget { direct, staging: self.staging.room(window) }
    }

    /// Lets go of the receive buffer, which connections of one thread share, as far as nothing in it is still needed. Call it when
    /// nothing more is to be received for now.
    pub fn park(&mut self) {
        self.staging.park();
    }

    /// `n` bytes were received into the last [`Connection::recv_target`] (or [`Connection::connect_target`]).
    pub fn received(&mut self, n: usize, tracker: &Tracker) {
        self.ahead = self.ahead.saturating_sub(1);
        let direct = n.min(self.direct_len);
        if direct > 0
            && let Rx::Payload(payload) = &mut self.rx
        {
            if self.rules.data_digest {
                let chunk = tracker.chunk(payload.slot, payload.offset);
                let last = direct == payload.left as usize;
                self.rx_crc.update(&chunk[..direct.min(chunk.len())], last);
            }
            // Not more than `left`: so recv_target cut it.
            payload.offset += direct as u32;
            payload.left -= direct as u32;
        }
        self.connect_received(n - direct);
        self.direct_len = 0;
    }

    /// `n` bytes were received into [`Connection::connect_target`].
    pub fn connect_received(&mut self, n: usize) {
        self.staging.filled(n);
    }

    /// Parses what was received until bytes run out or the tracker holds `budget` completions.
    ///
    /// # Errors
    /// When the controller broke the protocol or terminated the connection. A H2CTermReq is queued where one is due; from
    /// then on every call fails.
    pub fn process(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        self.check_failed()?;
        self.parse(tracker, budget).map_err(|error| self.fail(error))
    }

    fn parse(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        loop {
            if tracker.completed() >= budget {
                let landed = matches!(self.rx, Rx::Payload(Payload { left: 0, .. }));
                self.paused = landed || !self.staging.is_empty();
                return Ok(());
            }
            let progressed = match self.rx {
                Rx::Header => self.header(tracker)?,
                Rx::Payload(payload) => self.payload(payload, tracker)?,
                Rx::Digest(payload) => self.data_digest(payload, tracker),
            };
            if !progressed {
                self.paused = false;
                return Ok(());
            }
        }
    }

    /// The header at the front of the staged bytes, once it is complete: its common part, and the length of header,
    /// header digest and padding.
    #[inline]
    fn next_header(&self) -> Result<Option<(CommonHeader, usize)>> {
        let bytes = self.staging.bytes();
        let Ok((ch, _)) = CommonHeader::read_from_prefix(bytes) else { return Ok(None) };
        let len = self.rules.check(&ch)?;
        if bytes.len() < len {
            return Ok(None);
        }
        if PduType(ch.pdu_type) == PduType::C2H_TERM_REQ {
            let Ok((term, _)) = TermReq::read_from_prefix(bytes) else { return Ok(None) };
            let (fes, fei) = (FatalErrorStatus(term.fes.get()), term.fei.get());
            return Err(Error::new(ErrorKind::Terminated { fes, fei }));
        }
        if self.rules.running {
            self.rules.check_digest(bytes)?;
        }
        Ok(Some((ch, len)))
    }

    fn ic_response(&mut self) -> Result<bool> {
        let Some((_, len)) = self.next_header()? else { return Ok(false) };
        // The rules admit no other PDU in this state.
        let Ok((resp, _)) = IcResp::read_from_prefix(self.staging.bytes()) else { return Ok(false) };
        if !self.tx.is_empty() {
            return Err(out_of_sequence("an ICResp before the ICReq was sent"));
        }
        let unsupported =
            |fei, detail: String| Error::pdu(FatalErrorStatus::UNSUPPORTED_PARAMETER, fei, detail);
        if resp.pfv.get() != 0 {
            return Err(unsupported(
                8,
                format!("PDU format version {} in the ICResp, not 0", resp.pfv.get()),
            ));
        }
        if resp.cpda > MAX_PDA {
            return Err(invalid(10, format!("CPDA {} in the ICResp is above {MAX_PDA}", resp.cpda)));
        }
        let maxh2cdata = resp.maxh2cdata.get();
        if maxh2cdata < MIN_MAXH2CDATA || !maxh2cdata.is_multiple_of(4) {
            let detail = format!("MAXH2CDATA {maxh2cdata} is below {MIN_MAXH2CDATA} or no multiple of 4");
            return Err(invalid(12, detail));
        }
        let asked = if self.params.header_digest { DIGEST_HEADER } else { 0 }
            | if self.params.data_digest { DIGEST_DATA } else { 0 };
        if resp.digest & !asked != 0 {
            let detail = format!(
                "digests {:#04x} in the ICResp, of which only {asked:#04x} were asked for",
                resp.digest
            );
            return Err(invalid(11, detail));
        }
        if resp.digest != asked {
            let which = match asked & !resp.digest {
                DIGEST_HEADER => "header digests",
                DIGEST_DATA => "data digests",
                _ => "header and data digests",
            };
            return Err(Error::unsupported(format!(
                "the controller does not enable the {which} that were asked for"
            ))
            .hint("enable them on the target or connect without"));
        }
        self.staging.consume(len);
        // What follows needs a tracker; there may be no more to receive before it has to be looked at.
        self.paused = !self.staging.is_empty();
        self.rules.header_digest = asked & DIGEST_HEADER != 0;
        self.rules.data_digest = asked & DIGEST_DATA != 0;
        self.rules.running = true;
        self.alignment = (usize::from(resp.cpda) + 1) * 4;
        self.maxh2cdata = maxh2cdata;
        self.state = State::Running;
        Ok(true)
    }

    /// Takes one header. `false` when it is not complete.
    #[inline]
    fn header(&mut self, tracker: &mut Tracker) -> Result<bool> {
        let Some((ch, len)) = self.next_header()? else { return Ok(false) };
        let bytes = self.staging.bytes();
        // next_header saw that `len` bytes are there, so reading can not fail.
        match PduType(ch.pdu_type) {
            PduType::CAPSULE_RESP => {
                let Ok((resp, _)) = CapsuleResp::read_from_prefix(bytes) else { return Ok(false) };
                self.response(resp.cqe, tracker)?;
            }
            PduType::C2H_DATA => {
                let Ok((data, _)) = DataPdu::read_from_prefix(bytes) else { return Ok(false) };
                self.c2h_data(&data, tracker)?;
            }
            PduType::R2T => {
                let Ok((r2t, _)) = R2t::read_from_prefix(bytes) else { return Ok(false) };
                self.r2t(&r2t, tracker)?;
            }
            other => return Err(out_of_sequence(format!("{other} is not possible now"))),
        }
        self.staging.consume(len);
        Ok(true)
    }

    /// The slot of a command that the controller holds and has not completed.
    #[inline]
    fn live(&self, cid: u16, tracker: &Tracker) -> Option<u16> {
        let slot = tracker.lookup(cid)?;
        let progress = self.progress.get(usize::from(slot))?;
        // The controller can not know a command that has not left.
        (!progress.held && self.tx.sent() >= progress.sqe_end).then_some(slot)
    }

    fn response(&mut self, mut cqe: Cqe, tracker: &mut Tracker) -> Result<()> {
        let cid = cqe.cid.get();
        let Some(slot) = self.live(cid, tracker) else {
            return Err(Error::peer_misbehaved(format!(
                "a completion for command identifier {cid:#06x}, which is not outstanding"
            )));
        };
        let progress = &self.progress[usize::from(slot)];
        let len = tracker.data_len(slot);
        if cqe.status().is_success() {
            match tracker.direction(slot) {
                DataDirection::ControllerToHost if progress.received != len => {
                    return Err(Error::peer_misbehaved(format!(
                        "command {cid:#06x} completed with success, but only {} of {len} bytes of data were received",
                        progress.received
                    )));
                }
                DataDirection::HostToController
                    if progress.by_r2t && progress.requested != len
                        || self.tx.sent() < progress.tx_end
                        || progress.r2ts > 0 =>
                {
                    return Err(Error::peer_misbehaved(format!(
                        "command {cid:#06x} completed with success before all of its {len} bytes of data were fetched"
                    )));
                }
                _ => {}
            }
        }
        if progress.damaged {
            cqe = Cqe::new(cid, cqe.sqhd.get(), Status::TRANSIENT_TRANSPORT_ERROR);
        }
        self.complete(slot, cqe, tracker);
        Ok(())
    }

    #[inline]
    fn c2h_data(&mut self, data: &DataPdu, tracker: &Tracker) -> Result<()> {
        let cid = data.cccid.get();
        let Some(slot) = self.live(cid, tracker) else {
            return Err(invalid(8, format!("C2HData for command {cid:#06x}, which is not outstanding")));
        };
        let progress = &mut self.progress[usize::from(slot)];
        let (datao, datal, len) = (data.datao.get(), data.datal.get(), tracker.data_len(slot));
        if tracker.direction(slot) != DataDirection::ControllerToHost {
            return Err(invalid(8, format!("C2HData for command {cid:#06x}, which reads nothing")));
        }
        if progress.last_seen {
            return Err(out_of_sequence(format!("C2HData for command {cid:#06x} after its last")));
        }
        if datal == 0 {
            return Err(invalid(16, "C2HData without data"));
        }
        if datao != progress.received {
            let expected = progress.received;
            return Err(out_of_range(format!(
                "C2HData for command {cid:#06x} at offset {datao}, expected {expected}"
            )));
        }
        let end = match datao.checked_add(datal) {
            Some(end) if end <= len => end,
            _ => {
                return Err(out_of_range(format!(
                    "C2HData for command {cid:#06x} of {datal} bytes at offset {datao}, but its data is {len} bytes"
                )));
            }
        };
        self.rules.check_data_plen(&data.ch, datal)?;
        let success = data.ch.flags & FLAG_SUCCESS != 0;
        if success && end != len {
            return Err(out_of_sequence(format!(
                "C2HData says that command {cid:#06x} succeeded, but only {end} of its {len} bytes were sent"
            )));
        }
        progress.received = end;
        progress.last_seen = data.ch.flags & FLAG_LAST != 0;
        self.bulk = datal >= BULK_MIN;
        self.rx_crc.reset();
        self.rx = Rx::Payload(Payload { slot, offset: datao, left: datal, success });
        Ok(())
    }

    /// Takes staged payload. `false` when none is there.
    fn payload(&mut self, mut payload: Payload, tracker: &mut Tracker) -> Result<bool> {
        let n = self.staging.len().min(payload.left as usize);
        if n == 0 && payload.left > 0 {
            return Ok(false);
        }
        let bytes = &self.staging.bytes()[..n];
        // None are left where all of them were received into the command's buffer, which has been added.
        if self.rules.data_digest && n > 0 {
            self.rx_crc.update(bytes, n == payload.left as usize);
        }
        if !tracker.write(payload.slot, payload.offset, bytes) {
            return Err(Error::api_misuse("the buffer of a command is shorter than its data"));
        }
        self.staging.consume(n);
        payload.offset += n as u32;
        payload.left -= n as u32;
        if payload.left > 0 {
            self.rx = Rx::Payload(payload);
        } else if self.rules.data_digest {
            self.rx = Rx::Digest(payload);
        } else {
            self.payload_done(payload, tracker);
        }
        Ok(true)
    }

    fn data_digest(&mut self, payload: Payload, tracker: &mut Tracker) -> bool {
        let Some(&received) = self.staging.bytes().first_chunk::<DIGEST_LEN>() else { return false };
        self.staging.consume(DIGEST_LEN);
        if u32::from_le_bytes(received) != self.rx_crc.value() {
            // Not fatal to the connection (NVMe/TCP 1.1 §3.3.2.1): the command fails, whatever its response says.
            self.progress[usize::from(payload.slot)].damaged = true;
        }
        self.payload_done(payload, tracker);
        true
    }

    #[inline]
    fn payload_done(&mut self, payload: Payload, tracker: &mut Tracker) {
        self.rx = Rx::Header;
        if payload.success {
            let damaged = self.progress[usize::from(payload.slot)].damaged;
            let status = if damaged { Status::TRANSIENT_TRANSPORT_ERROR } else { Status::default() };
            self.complete(payload.slot, Cqe::new(tracker.cid(payload.slot), 0, status), tracker);
        }
    }

    fn r2t(&mut self, r2t: &R2t, tracker: &Tracker) -> Result<()> {
        let cid = r2t.cccid.get();
        let Some(slot) = self.live(cid, tracker) else {
            return Err(invalid(8, format!("R2T for command {cid:#06x}, which is not outstanding")));
        };
        let progress = &mut self.progress[usize::from(slot)];
        let (offset, wanted, len) = (r2t.r2to.get(), r2t.r2tl.get(), tracker.data_len(slot));
        if tracker.direction(slot) != DataDirection::HostToController {
            return Err(invalid(8, format!("R2T for command {cid:#06x}, which has no data to send")));
        }
        if !progress.by_r2t {
            return Err(out_of_sequence(format!("R2T for command {cid:#06x}, whose data went with it")));
        }
        if wanted == 0 {
            return Err(invalid(16, "R2T for no data"));
        }
        if offset != progress.requested {
            let expected = progress.requested;
            return Err(out_of_range(format!(
                "R2T for command {cid:#06x} at offset {offset}, expected {expected}"
            )));
        }
        let end = match offset.checked_add(wanted) {
            Some(end) if end <= len => end,
            _ => {
                return Err(out_of_range(format!(
                    "R2T for command {cid:#06x} of {wanted} bytes at offset {offset}, but its data is {len} bytes"
                )));
            }
        };
        if progress.r2ts > self.params.maxr2t_z {
            return Err(Error::pdu(
                FatalErrorStatus::R2T_LIMIT_EXCEEDED,
                0,
                format!("{} R2Ts at a time for command {cid:#06x}", u64::from(progress.r2ts) + 1),
            ));
        }
        progress.requested = end;
        progress.r2ts += 1;
        self.grants.push_back(Grant {
            slot,
            ttag: r2t.ttag.get(),
            offset,
            left: wanted,
            end: self.tx.queued(),
        });
        Ok(())
    }

    /// Completes a command, or holds its completion until the bytes queued for it have left: they may lie in its buffer.
    #[inline]
    fn complete(&mut self, slot: u16, cqe: Cqe, tracker: &mut Tracker) {
        let progress = &mut self.progress[usize::from(slot)];
        if progress.r2ts > 0 {
            // Failed early: what has not been queued need not be sent.
            self.grants.retain(|grant| grant.slot != slot);
            self.granted = self.grants.iter().take_while(|grant| grant.left == 0).count();
        }
        if self.tx.sent() < progress.tx_end {
            progress.held = true;
            self.held.push((slot, cqe));
        } else {
            tracker.complete(slot, cqe);
        }
    }

    /// Reports completions that were held back because of bytes that have left meanwhile.
    pub fn release_held(&mut self, tracker: &mut Tracker) {
        if self.held.is_empty() {
            return;
        }
        let (sent, progress) = (self.tx.sent(), &self.progress);
        self.held.retain(|&(slot, cqe)| {
            let waiting = sent < progress[usize::from(slot)].tx_end;
            if !waiting {
                tracker.complete(slot, cqe);
            }
            waiting
        });
    }
}
