//! One NVMe/RDMA connection in the controller role: capsules come in, data is read and written in the host's memory.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::data_ptr::{SglDescriptor, SglSubtype, SglType};
use nvmf_core::spec::rdma::CmRequest;
use nvmf_core::spec::{Cqe, Sqe, Status};
use nvmf_transport_rdma::sim::SimPeer;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::Bell;
use crate::data::Data;
use crate::fault::Fault;
use crate::queue::{Admit, Due, Outcome, Queue};
use crate::target::{Front, Target, count};

/// How long a host may take for Connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A command identifier no host uses: FFFFh is reserved.
const NOBODY: u16 = u16::MAX;

/// A piece of the host's memory.
#[derive(Clone, Copy, Debug)]
struct Remote {
    address: u64,
    len: usize,
    key: u32,
}

/// Where a command's data is or has to go.
enum Payload {
    None,
    /// This part of the in-capsule data.
    Capsule(Range<usize>),
    /// In the host's memory; and the key the host wants to be rid of.
    Host(Vec<Remote>, Option<u32>),
}

/// The connection is over.
struct Closed;

pub(super) struct Session {
    target: Arc<Target>,
    /// Dropped before the peer: a host that sees the end of its admin connection is rid of its controller.
    queue: Queue,
    peer: SimPeer,
    bell: Arc<Bell>,
    /// In-capsule data this queue takes, bytes.
    in_capsule: usize,
    data: Vec<u8>,
    connect_by: Instant,
    qid: u16,
}

impl Session {
    pub(super) fn new(
        target: Arc<Target>,
        peer: SimPeer,
        bell: Arc<Bell>,
        local: SocketAddr,
        fields: &CmRequest,
    ) -> Self {
        let notify = Arc::clone(&bell);
        let queue = Queue::new(Arc::clone(&target), Front::Rdma(local), Arc::new(move || notify.ring()));
        let qid = fields.qid.get();
        let in_capsule = if qid == 0 { 0 } else { target.config.in_capsule as usize };
        let connect_by = Instant::now() + CONNECT_TIMEOUT;
        Self { target, queue, peer, bell, in_capsule, data: Vec::new(), connect_by, qid }
    }

    /// Serves the connection until it ends.
    pub(super) fn run(mut self) {
        while self.step().is_ok() {
            let connect = self.queue.qid().is_none().then_some(self.connect_by);
            let until = [self.queue.deadline(), connect].into_iter().flatten().min();
            self.bell.wait(until);
        }
        tracing::debug!(qid = self.qid, "RDMA connection closed");
    }

    fn step(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        for cqe in self.queue.take_completions() {
            self.answer(cqe, None, None)?;
        }
        while let Some(due) = self.queue.due(now) {
            match due {
                Due::Answer(cqe) => self.answer(cqe, None, None)?,
                Due::Execute(sqe, data) => self.command(&sqe, &data, None)?,
            }
        }
        while let Some(capsule) = self.peer.receive() {
            self.capsule(&capsule, now)?;
        }
        let late = self.queue.qid().is_none() && now >= self.connect_by;
        if late || self.queue.is_closed(now) || !self.peer.is_connected() { Err(Closed) } else { Ok(()) }
    }

    fn capsule(&mut self, capsule: &[u8], now: Instant) -> Result<(), Closed> {
        let Ok((sqe, data)) = Sqe::read_from_prefix(capsule) else {
            return Err(self.broken("a short capsule"));
        };
        if data.len() > self.in_capsule {
            return Err(self.broken("a capsule with more data than fits"));
        }
        match self.queue.begin(&sqe) {
            Admit::Execute(fault) => self.command(&sqe, data, fault),
            Admit::Answer(cqe) => self.answer(cqe, None, None),
            Admit::Hold(delay) => {
                self.queue.hold(sqe, data.to_vec(), delay, now);
                Ok(())
            }
            Admit::Close => Err(Closed),
        }
    }

    fn broken(&self, what: &str) -> Closed {
        tracing::warn!(qid = self.qid, what, "the host broke the protocol; ending the RDMA connection");
        count(&self.target.counters.terminated_connections, 1);
        Closed
    }

    fn command(&mut self, sqe: &Sqe, in_capsule: &[u8], fault: Option<Fault>) -> Result<(), Closed> {
        let payload = match self.payload(sqe, in_capsule) {
            Ok(payload) => payload,
            Err(status) => {
                let cqe = self.queue.fail(sqe, status);
                return self.answer(cqe, None, fault);
            }
        };
        let (outcome, invalidate) = match payload {
            Payload::None => (self.queue.execute(sqe, Data::None), None),
            Payload::Capsule(range) => (self.queue.execute(sqe, Data::Out(&in_capsule[range])), None),
            Payload::Host(pieces, invalidate) => {
                let mut data = std::mem::take(&mut self.data);
                data.resize(pieces.iter().map(|piece| piece.len).sum(), 0);
                let outcome = self.transfer(sqe, &pieces, &mut data, fault.as_ref());
                self.data = data;
                (outcome?, invalidate)
            }
        };
        match outcome {
            Outcome::Answer(cqe) => self.answer(cqe, invalidate, fault),
            Outcome::Pending => Ok(()),
            Outcome::AnswerAndClose(cqe) => {
                self.answer(cqe, invalidate, fault)?;
                Err(Closed)
            }
        }
    }

    /// Executes a command whose data is in the host's memory.
    fn transfer(
        &mut self,
        sqe: &Sqe,
        pieces: &[Remote],
        data: &mut [u8],
        fault: Option<&Fault>,
    ) -> Result<Outcome, Closed> {
        let mut offset = 0;
        let mut each = |peer: &mut SimPeer, data: &mut [u8], write: bool| {
            for piece in pieces {
                let part = &mut data[offset..offset + piece.len];
                let moved = match write {
                    true => peer.write(piece.address, piece.key, part),
                    false => peer.read(piece.address, piece.key, part),
                };
                moved.map_err(|error| {
                    tracing::warn!(%error, "accessing the host's memory");
                    Closed
                })?;
                offset += piece.len;
            }
            Ok(())
        };
        if sqe.direction() == DataDirection::HostToController {
            each(&mut self.peer, data, false)?;
            return Ok(self.queue.execute(sqe, Data::Out(data)));
        }
        let outcome = self.queue.execute(sqe, Data::In(data));
        if let Outcome::Answer(cqe) | Outcome::AnswerAndClose(cqe) = &outcome
            && cqe.status().is_success()
        {
            if fault == Some(&Fault::CorruptData)
                && let Some(byte) = data.first_mut()
            {
                *byte ^= 0xff;
            }
            each(&mut self.peer, data, true)?;
        }
        Ok(outcome)
    }

    /// Reads the command's SGL: in-capsule data, a keyed descriptor, or a list of keyed descriptors in the capsule.
    fn payload(&self, sqe: &Sqe, in_capsule: &[u8]) -> Result<Payload, Status> {
        let wrong_type = Err(Status::INVALID_SGL_DESCRIPTOR_TYPE.with_dnr());
        let direction = sqe.direction();
        // PSDT 00b would mean PRPs, which fabrics do not have.
        if sqe.flags >> 6 == 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let sgl = sqe.dptr.as_sgl();
        let range = |sgl: &SglDescriptor| {
            let start = usize::try_from(sgl.address.get()).ok()?;
            let end = start.checked_add(sgl.length.get() as usize)?;
            (end <= in_capsule.len()).then_some(start..end)
        };
        let bad_offset = Status::INVALID_SGL_OFFSET.with_dnr();
        let list = match (sgl.sgl_type(), sgl.subtype()) {
            (SglType::DATA_BLOCK, SglSubtype::OFFSET) if direction == DataDirection::HostToController => {
                return range(&sgl).map(Payload::Capsule).ok_or(bad_offset);
            }
            (SglType::KEYED_DATA_BLOCK, _) => vec![sgl],
            (SglType::LAST_SEGMENT, SglSubtype::OFFSET) => {
                let bytes = &in_capsule[range(&sgl).ok_or(bad_offset)?];
                let count = bytes.len() / 16;
                if !bytes.len().is_multiple_of(16) || count > usize::from(self.target.config.rdma.descriptors)
                {
                    return Err(Status::INVALID_SGL_DESCRIPTOR_COUNT.with_dnr());
                }
                bytes.chunks(16).filter_map(|bytes| SglDescriptor::read_from_bytes(bytes).ok()).collect()
            }
            _ => return wrong_type,
        };
        let mut pieces = Vec::new();
        let mut invalidate = None;
        for descriptor in &list {
            match (descriptor.sgl_type(), descriptor.subtype()) {
                (SglType::KEYED_DATA_BLOCK, SglSubtype::ADDRESS) => {}
                (SglType::KEYED_DATA_BLOCK, SglSubtype::INVALIDATE_KEY) => {
                    invalidate = Some(descriptor.key())
                }
                _ => return wrong_type,
            }
            pieces.push(Remote {
                address: descriptor.address.get(),
                len: descriptor.keyed_length() as usize,
                key: descriptor.key(),
            });
        }
        let total: u64 = pieces.iter().map(|piece| piece.len as u64).sum();
        if matches!(direction, DataDirection::None | DataDirection::Bidirectional) || total == 0 {
            return Ok(Payload::None);
        }
        if total > self.target.config.max_transfer() {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(Payload::Host(pieces, invalidate))
    }

    /// Sends a response capsule. The receive its command came in is posted before, so that the host may send the next one.
    fn answer(&mut self, mut cqe: Cqe, invalidate: Option<u32>, fault: Option<Fault>) -> Result<(), Closed> {
        if fault == Some(Fault::WrongCid) {
            cqe.cid = U16::new(NOBODY);
        }
        self.peer.post_receives(1);
        let sent = self.peer.send(cqe.as_bytes(), invalidate);
        if fault == Some(Fault::DuplicateCompletion) {
            // Whether there is a receive for it is up to the host.
            let _ = self.peer.send(cqe.as_bytes(), None);
        }
        sent.map_err(|error| {
            tracing::debug!(%error, qid = self.qid, "sending a response");
            Closed
        })
    }
}
