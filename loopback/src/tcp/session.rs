//! One NVMe/TCP connection in the controller role, without the socket: bytes go in, bytes come out.
//!
//! ```text
//! socket ─▶ space / filled ─▶ process ─▶ Queue (commands) ─▶ output ─▶ output_slices / consume_output ─▶ socket
//! ```
//!
//! Payload of H2CData goes from the socket into the command's buffer without a copy in between; what a namespace that stores
//! nothing would discard does not leave the kernel, unless there is a digest to be checked. Everything a host can
//! make us keep is bounded: commands by the queue's size, buffers by [`MAX_BUFFERED`], output by [`OUTPUT_HIGH`] and one answer.

mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::data_ptr::{SglSubtype, SglType};
use nvmf_core::spec::tcp::{
    ADMIN_IN_CAPSULE_DATA, CapsuleCmd, CommonHeader, DIGEST_DATA, DIGEST_HEADER, DataPdu, FatalErrorStatus,
    IcReq, IcResp, MAX_PDA, PduType, TermReq,
};
use nvmf_core::spec::{AdminOpcode, Sqe, Status};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::output::Output;
use super::pdu::{self, Agreed, Checked, Fatal, at, crc32c};
use crate::data::Data;
use crate::fault::Fault;
use crate::queue::{Admit, Due, Outcome, Queue};
use crate::target::{Target, count};

/// Receive buffer, bytes; every PDU but H2CData fits.
const INPUT: usize = 256 * 1024;
/// Output above which no further PDU is looked at until some of it is sent.
const OUTPUT_HIGH: usize = 1 << 20;
/// Bytes of data that may be on their way from the host, if it is more than one command's.
const MAX_BUFFERED: usize = 32 << 20;
/// Transfers from the host going on at a time; with [`MAX_R2T`] it keeps transfer tags below 2^16.
const MAX_TRANSFERS: usize = 4096;
/// R2Ts outstanding for one command at most, whatever the host takes.
const MAX_R2T: u32 = 15;
/// Payload below this goes through the receive buffer.
const DIRECT: usize = 16 * 1024;
/// Behind the header of payload that is dropped, and behind such payload, so much is received into the receive buffer: the next
/// header, and little of what would be copied for nothing.
const WINDOW: usize = 4096;
/// H2CData of at least this much payload makes it likely that more follows.
const BULK: usize = 32 * 1024;
/// Buffers kept for the next transfers.
const SPARE: usize = 32;
/// How long a host may take for ICReq and Connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Data on its way from the host.
#[derive(Debug)]
struct Transfer {
    sqe: Sqe,
    data: Vec<u8>,
    requested: usize,
    received: usize,
    r2ts: u32,
    digest_error: bool,
    /// Nobody wants the data, and none of it is kept.
    dropped: bool,
    fault: Option<Fault>,
}

/// An R2T the host has not served in full.
#[derive(Debug)]
struct R2tState {
    transfer: usize,
    offset: usize,
    len: usize,
    received: usize,
}

/// Payload of the H2CData PDU that is being received.
#[derive(Debug)]
struct Sink {
    ttag: usize,
    transfer: usize,
    start: usize,
    len: usize,
    filled: usize,
    digest: bool,
    dropped: bool,
}

impl Sink {
    fn left(&self) -> usize {
        self.len - self.filled
    }
}

/// Where bytes from the socket go.
pub(super) enum Space<'a> {
    /// Into the first, then into the second: payload, and the receive buffer.
    Fill([IoSliceMut<'a>; 2]),
    /// Nowhere: so many are to be taken off the socket as this has bytes, which are not written to.
    Drop(&'a mut [u8]),
}

/// In-capsule data: in the receive buffer, or kept with a held command.
enum Capsule {
    Input(Range<usize>),
    Held(Vec<u8>),
}

/// Where a command's data is or has to go.
enum Payload {
    None,
    /// This part of the in-capsule data.
    Capsule(Range<usize>),
    FromHost(usize),
    ToHost(usize),
}

pub(super) struct Session {
    target: Arc<Target>,
    queue: Queue,
    agreed: Agreed,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of payload, not of the receive buffer, that there was space for last.
    direct: usize,
    sink: Option<Sink>,
    /// Large payload was dropped last.
    bulk: bool,
    output: Output,
    transfers: Vec<Option<Transfer>>,
    /// Transfers going on.
    active: usize,
    r2ts: Vec<Option<R2tState>>,
    /// Transfers that wait for buffers.
    waiting: VecDeque<(Sqe, usize, Option<Fault>)>,
    spare: Vec<Vec<u8>>,
    buffered: usize,
    /// CRC32C of this many zeroes.
    zero_digest: (usize, u32),
    outstanding: u32,
    closing: bool,
    terminated: bool,
    connect_by: Instant,
}

impl Session {
    pub(super) fn new(target: Arc<Target>, queue: Queue, now: Instant) -> Self {
        let cpda = usize::from(target.config.tcp.cpda);
        let agreed = Agreed {
            initialized: false,
            header_digest: false,
            data_digest: false,
            cpda: (cpda + 1) * 4,
            hpda: 4,
            max_r2t: 1,
            in_capsule: ADMIN_IN_CAPSULE_DATA,
            max_h2c_data: target.config.tcp.max_h2c_data,
        };
        Self {
            target,
            queue,
            agreed,
            input: vec![0; INPUT].into(),
            start: 0,
            end: 0,
            direct: 0,
            sink: None,
            bulk: false,
            output: Output::default(),
            transfers: Vec::new(),
            active: 0,
            r2ts: Vec::new(),
            waiting: VecDeque::new(),
            spare: Vec::new(),
            buffered: 0,
            zero_digest: (0, 0),
            outstanding: 0,
            closing: false,
            terminated: false,
            connect_by: now + CONNECT_TIMEOUT,
        }
    }

    // --- the socket's side -------------------------------------------------------------------------------------

    /// Where the next bytes go. Call [`Session::filled`] with their number.
    pub(super) fn space(&mut self) -> Space<'_> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end > INPUT / 2 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut window = if self.bulk { WINDOW } else { INPUT };
        let payload: &mut [u8] = match &self.sink {
            Some(sink) if sink.dropped => {
                if self.start == self.end && sink.left() > WINDOW {
                    // Nothing is in the receive buffer, and nothing gets into it.
                    self.direct = sink.left().min(INPUT);
                    return Space::Drop(&mut self.input[..self.direct]);
                }
                window = window.saturating_add(sink.left());
                &mut []
            }
            Some(sink) if self.start == self.end && sink.left() >= DIRECT => {
                match self.transfers.get_mut(sink.transfer) {
                    Some(Some(transfer)) => {
                        &mut transfer.data[sink.start + sink.filled..sink.start + sink.len]
                    }
                    _ => &mut [],
                }
            }
            _ => &mut [],
        };
        self.direct = payload.len();
        let rest = &mut self.input[self.end..];
        let len = rest.len().min(window);
        Space::Fill([IoSliceMut::new(payload), IoSliceMut::new(&mut rest[..len])])
    }

    /// `n` bytes went where [`Session::space`] said.
    pub(super) fn filled(&mut self, n: usize) {
        let direct = n.min(self.direct);
        if let Some(sink) = &mut self.sink {
            sink.filled += direct;
        }
        self.end = (self.end + n - direct).min(INPUT);
        self.direct = 0;
    }

    pub(super) fn has_output(&self) -> bool {
        self.output.len() > 0
    }

    /// All of the output, if it is to be had as one piece.
    pub(super) fn output_one(&mut self) -> Option<&[u8]> {
        self.output.one()
    }

    /// Fills `out` with what is to be sent next. Returns how many slices that took.
    pub(super) fn output_slices<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        self.output.slices(out)
    }

    pub(super) fn consume_output(&mut self, n: usize) {
        self.output.consume(n);
    }

    /// Whether bytes should be read: not while too much output is waiting.
    pub(super) fn wants_input(&self) -> bool {
        !self.closing && self.output.len() < OUTPUT_HIGH
    }

    /// The connection is to be closed once the output is sent.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// A C2HTermReq was the last thing said.
    pub(super) fn is_terminated(&self) -> bool {
        self.terminated
    }

    /// When [`Session::tick`] is needed though nothing happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let connect = self.queue.qid().is_none().then_some(self.connect_by);
        [self.queue.deadline(), connect].into_iter().flatten().min()
    }

    /// Looks at what did not come from the host: events, faults that end, timers.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.closing {
            return;
        }
        for cqe in self.queue.take_completions() {
            self.answer(cqe, None);
        }
        while let Some(due) = self.queue.due(now) {
            match due {
                Due::Answer(cqe) => self.answer(cqe, None),
                Due::Execute(sqe, data) => {
                    if let Err(fatal) = self.command(&sqe, &Capsule::Held(data), None) {
                        self.terminate(fatal);
                    }
                }
            }
        }
        let late = self.queue.qid().is_none() && now >= self.connect_by;
        if late || self.queue.is_closed(now) {
            self.closing = true;
        }
    }

    /// Works on what was received, as far as there is room for output. Returns whether to call again once some output is
    /// sent, though nothing more was received.
    pub(super) fn process(&mut self, now: Instant) -> bool {
        while self.wants_input() {
            match self.step(now) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(fatal) => self.terminate(fatal),
            }
        }
        !self.closing
    }

    // --- receiving ---------------------------------------------------------------------------------------------

    /// One PDU, or the rest of one. `false` when more bytes are needed.
    fn step(&mut self, now: Instant) -> Result<bool, Fatal> {
        if self.sink.is_some() {
            return Ok(self.fill_sink());
        }
        let bytes = &self.input[self.start..self.end];
        let Ok((ch, _)) = CommonHeader::read_from_prefix(bytes) else { return Ok(false) };
        let pdu = pdu::check(&ch, &self.agreed)?;
        // H2CData can be begun with once its header is there.
        let needed = if pdu.pdu_type == PduType::H2C_DATA { pdu.pdo } else { pdu.plen };
        if bytes.len() < needed {
            return Ok(false);
        }
        if pdu.head > pdu.hlen {
            let found = digest_at(bytes, pdu.hlen);
            if found != crc32c(&bytes[..pdu.hlen]) {
                return Err(Fatal::new(FatalErrorStatus::HEADER_DIGEST_ERROR, found));
            }
        }
        match pdu.pdu_type {
            PduType::IC_REQ => self.ic_req()?,
            PduType::CAPSULE_CMD => self.capsule(&pdu, now)?,
            PduType::H2C_DATA => self.h2c_data(&pdu)?,
            _ => self.term_req(),
        }
        self.start += needed;
        Ok(true)
    }

    /// Reads a header at the start of the receive buffer; it is known to be there.
    fn header<T: FromBytes>(&self) -> Result<T, Fatal> {
        T::read_from_prefix(&self.input[self.start..self.end])
            .map(|(header, _)| header)
            .map_err(|_| Fatal::field(at::HLEN))
    }

    fn ic_req(&mut self) -> Result<(), Fatal> {
        let req: IcReq = self.header()?;
        if req.pfv.get() != 0 {
            return Err(Fatal::new(FatalErrorStatus::UNSUPPORTED_PARAMETER, at::IC_PFV));
        }
        if req.hpda > MAX_PDA {
            return Err(Fatal::field(at::IC_HPDA));
        }
        let tcp = &self.target.config.tcp;
        self.agreed.initialized = true;
        self.agreed.hpda = (usize::from(req.hpda) + 1) * 4;
        self.agreed.max_r2t = req.maxr2t_z.get().saturating_add(1).min(MAX_R2T);
        self.agreed.header_digest = tcp.header_digest && req.digest & DIGEST_HEADER != 0;
        self.agreed.data_digest = tcp.data_digest && req.digest & DIGEST_DATA != 0;
        let mut resp = IcResp::new_zeroed();
        resp.ch = send::header(PduType::IC_RESP, 0, 128, 0, 128);
        resp.cpda = tcp.cpda;
        resp.digest = if self.agreed.header_digest { DIGEST_HEADER } else { 0 }
            | if self.agreed.data_digest { DIGEST_DATA } else { 0 };
        resp.maxh2cdata = U32::new(tcp.max_h2c_data);
        self.output.put(resp.as_bytes());
        Ok(())
    }

    fn term_req(&mut self) {
        if let Ok(req) = self.header::<TermReq>() {
            let fes = FatalErrorStatus(req.fes.get());
            tracing::info!(%fes, fei = req.fei.get(), "the host terminated the connection");
        }
        self.closing = true;
    }

    fn capsule(&mut self, pdu: &Checked, now: Instant) -> Result<(), Fatal> {
        let CapsuleCmd { sqe, .. } = self.header()?;
        // A host that has more commands outstanding than its queue has entries is not worth talking to.
        if self.outstanding >= self.queue.entries() {
            return Err(Fatal::sequence());
        }
        self.outstanding += 1;
        let data = self.start + pdu.pdo..self.start + pdu.pdo + pdu.data_len;
        let intact =
            !pdu.has_data_digest || crc32c(&self.input[data.clone()]) == digest_at(&self.input, data.end);
        match self.queue.begin(&sqe) {
            Admit::Execute(fault) if intact => self.command(&sqe, &Capsule::Input(data), fault)?,
            Admit::Execute(fault) => {
                // NVMe/TCP §3.4.2: a data digest error does not end the connection.
                let cqe = self.queue.fail(&sqe, Status::TRANSIENT_TRANSPORT_ERROR);
                self.answer(cqe, fault);
            }
            Admit::Answer(cqe) => self.answer(cqe, None),
            Admit::Hold(delay) => {
                let data = self.input[data].to_vec();
                self.queue.hold(sqe, data, delay, now);
            }
            Admit::Close => self.closing = true,
        }
        Ok(())
    }

    /// Executes a command, or starts to fetch its data.
    fn command(&mut self, sqe: &Sqe, capsule: &Capsule, fault: Option<Fault>) -> Result<(), Fatal> {
        let fault = match fault {
            Some(Fault::Raw(bytes)) => {
                self.output.put(&bytes);
                return Ok(());
            }
            Some(Fault::Terminate(fes, fei)) => return Err(Fatal::new(fes, fei)),
            Some(Fault::R2tOnRead) => {
                self.send_r2t(sqe.cid.get(), u16::MAX, 0, 4096, false);
                return Ok(());
            }
            Some(Fault::C2hOnWrite) => {
                self.send_c2h(sqe.cid.get(), 0, &[0xee; 4096], true, false, &None);
                None
            }
            other => other,
        };
        let in_capsule = match capsule {
            Capsule::Input(range) => &self.input[range.clone()],
            Capsule::Held(data) => data,
        };
        let outcome = match self.payload(sqe, in_capsule.len()) {
            Ok(Payload::None) => self.queue.execute(sqe, Data::None),
            Ok(Payload::Capsule(range)) => self.queue.execute(sqe, Data::Out(&in_capsule[range])),
            Ok(Payload::ToHost(len)) => {
                self.read(sqe, len, fault);
                return Ok(());
            }
            Ok(Payload::FromHost(len)) => {
                self.waiting.push_back((*sqe, len, fault));
                self.start_transfers();
                return Ok(());
            }
            Err(status) => Outcome::Answer(self.queue.fail(sqe, status)),
        };
        self.finish(outcome, fault);
        if sqe.opcode == AdminOpcode::FABRICS.0 {
            // Admin queues always take 8 KiB (NVMe/TCP §3.3.2), I/O queues what IOCCSZ says.
            self.agreed.in_capsule = match self.queue.qid() {
                Some(1..) => self.target.config.in_capsule,
                _ => ADMIN_IN_CAPSULE_DATA,
            };
        }
        Ok(())
    }

    /// Reads the command's SGL: NVMe/TCP knows one descriptor, for data in the capsule or in PDUs of its own.
    fn payload(&self, sqe: &Sqe, in_capsule: usize) -> Result<Payload, Status> {
        let sgl = sqe.dptr.as_sgl();
        let len = sgl.length.get() as usize;
        let wrong_type = Err(Status::INVALID_SGL_DESCRIPTOR_TYPE.with_dnr());
        let wrong_length = Err(Status::INVALID_DATA_SGL_LENGTH.with_dnr());
        let direction = sqe.direction();
        if direction != DataDirection::HostToController && in_capsule > 0 {
            return wrong_length;
        }
        if matches!(direction, DataDirection::None | DataDirection::Bidirectional) || len == 0 {
            return if in_capsule > 0 { wrong_length } else { Ok(Payload::None) };
        }
        // PSDT 00b would mean PRPs, which fabrics do not have.
        if sqe.flags >> 6 == 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        match (sgl.sgl_type(), sgl.subtype()) {
            (SglType::DATA_BLOCK, SglSubtype::OFFSET) if direction == DataDirection::HostToController => {
                let offset = usize::try_from(sgl.address.get()).ok();
                match offset.and_then(|offset| Some(offset..offset.checked_add(len)?)) {
                    Some(range) if range.end <= in_capsule => Ok(Payload::Capsule(range)),
                    _ => Err(Status::INVALID_SGL_OFFSET.with_dnr()),
                }
            }
            (SglType::TRANSPORT_DATA_BLOCK, SglSubtype::TRANSPORT) if in_capsule == 0 => {
                if len as u64 > self.target.config.max_transfer() || self.queue.qid().is_none() {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                Ok(match direction {
                    DataDirection::ControllerToHost => Payload::ToHost(len),
                    _ => Payload::FromHost(len),
                })
            }
            _ => wrong_type,
        }
    }

    // --- data from the host --------------------------------------------------------------------------------------

    /// Asks for the data of commands that wait, as far as there is room for it.
    fn start_transfers(&mut self) {
        while let Some(&(_, len, _)) = self.waiting.front() {
            if self.active >= MAX_TRANSFERS || (self.buffered > 0 && self.buffered + len > MAX_BUFFERED) {
                return;
            }
            let Some((sqe, len, fault)) = self.waiting.pop_front() else { return };
            // A digest is checked all the same.
            let dropped = !self.agreed.data_digest && !self.queue.moves_data(&sqe);
            let mut data = self.spare.pop().unwrap_or_default();
            data.truncate(len);
            data.resize(len, 0);
            self.buffered += len;
            self.active += 1;
            let (requested, received, r2ts, digest_error) = (0, 0, 0, false);
            let transfer = Transfer { sqe, data, requested, received, r2ts, digest_error, dropped, fault };
            let index = put(&mut self.transfers, transfer);
            self.send_r2ts(index);
        }
    }

    /// Sends R2Ts for a transfer, as many as the host takes.
    fn send_r2ts(&mut self, index: usize) {
        let most = self.target.config.tcp.max_r2t_length as usize;
        loop {
            let Some(Some(transfer)) = self.transfers.get_mut(index) else { return };
            let len = (transfer.data.len() - transfer.requested).min(most);
            if len == 0 || transfer.r2ts >= self.agreed.max_r2t {
                return;
            }
            let offset = transfer.requested;
            transfer.requested += len;
            transfer.r2ts += 1;
            let cid = transfer.sqe.cid.get();
            let shift = match transfer.fault {
                Some(Fault::WrongDatao) => 4096,
                _ => 0,
            };
            let bad = transfer.fault.take_if(|fault| *fault == Fault::BadHeaderDigest).is_some();
            let ttag = put(&mut self.r2ts, R2tState { transfer: index, offset, len, received: 0 });
            self.send_r2t(cid, ttag as u16, offset as u32 + shift, len as u32, bad);
        }
    }

    fn h2c_data(&mut self, pdu: &Checked) -> Result<(), Fatal> {
        let header: DataPdu = self.header()?;
        let ttag = usize::from(header.ttag.get());
        let Some(Some(r2t)) = self.r2ts.get(ttag) else { return Err(Fatal::field(at::DATA_TTAG)) };
        let dropped = match self.transfers.get(r2t.transfer) {
            Some(Some(transfer)) if transfer.sqe.cid == header.cccid => transfer.dropped,
            _ => return Err(Fatal::field(at::DATA_CCCID)),
        };
        let (offset, len) = (header.datao.get() as usize, header.datal.get() as usize);
        if len != pdu.data_len {
            return Err(Fatal::field(at::DATA_DATAL));
        }
        // In order, and nothing but what was asked for (NVMe/TCP §3.3.2.1).
        let left = r2t.len - r2t.received;
        if offset != r2t.offset + r2t.received || len > left {
            return Err(Fatal::new(FatalErrorStatus::DATA_OUT_OF_RANGE, 0));
        }
        if (len == left) != pdu::is_last(pdu.flags) {
            return Err(Fatal::field(at::FLAGS));
        }
        let digest = pdu.has_data_digest;
        self.bulk = dropped && len >= BULK;
        self.sink =
            Some(Sink { ttag, transfer: r2t.transfer, start: offset, len, filled: 0, digest, dropped });
        Ok(())
    }

    /// Takes payload out of the receive buffer. `false` when more bytes are needed.
    fn fill_sink(&mut self) -> bool {
        let Some(sink) = &mut self.sink else { return true };
        let Some(Some(transfer)) = self.transfers.get_mut(sink.transfer) else { return true };
        let n = sink.left().min(self.end - self.start);
        let to = sink.start + sink.filled;
        if !sink.dropped {
            transfer.data[to..to + n].copy_from_slice(&self.input[self.start..self.start + n]);
        }
        sink.filled += n;
        self.start += n;
        if sink.filled < sink.len {
            return false;
        }
        if sink.digest {
            if self.end - self.start < 4 {
                return false;
            }
            let data = &transfer.data[sink.start..sink.start + sink.len];
            transfer.digest_error |= digest_at(&self.input, self.start) != crc32c(data);
            self.start += 4;
        }
        let (index, ttag, len) = (sink.transfer, sink.ttag, sink.len);
        self.sink = None;
        transfer.received += len;
        if let Some(slot) = self.r2ts.get_mut(ttag)
            && let Some(r2t) = slot
        {
            r2t.received += len;
            if r2t.received == r2t.len {
                *slot = None;
                transfer.r2ts -= 1;
            }
        }
        if transfer.received == transfer.data.len() {
            self.received(index)
        } else {
            self.send_r2ts(index)
        }
        true
    }

    /// All data of a command is there.
    fn received(&mut self, index: usize) {
        let Some(transfer) = self.transfers.get_mut(index).and_then(Option::take) else { return };
        let Transfer { sqe, data, digest_error, dropped, fault, .. } = transfer;
        let outcome = if digest_error {
            Outcome::Answer(self.queue.fail(&sqe, Status::TRANSIENT_TRANSPORT_ERROR))
        } else if dropped && self.queue.moves_data(&sqe) {
            // Another namespace took the place of the one that wanted no data.
            Outcome::Answer(self.queue.fail(&sqe, Status::DATA_TRANSFER_ERROR))
        } else {
            self.queue.execute(&sqe, Data::Out(&data))
        };
        self.finish(outcome, fault);
        self.buffered -= data.len();
        self.active -= 1;
        if self.spare.len() < SPARE {
            self.spare.push(data);
        }
        self.start_transfers();
    }

    fn finish(&mut self, outcome: Outcome, fault: Option<Fault>) {
        match outcome {
            Outcome::Answer(cqe) => self.answer(cqe, fault),
            Outcome::Pending => {}
            Outcome::AnswerAndClose(cqe) => {
                self.answer(cqe, fault);
                self.closing = true;
            }
        }
    }
}

/// Puts a value into the first free place.
fn put<T>(places: &mut Vec<Option<T>>, value: T) -> usize {
    match places.iter().position(Option::is_none) {
        Some(index) => {
            places[index] = Some(value);
            index
        }
        None => {
            places.push(Some(value));
            places.len() - 1
        }
    }
}

/// The digest at `offset`; zero when there are no four bytes, which callers have made sure of.
fn digest_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |digest| u32::from_le_bytes(*digest))
}
