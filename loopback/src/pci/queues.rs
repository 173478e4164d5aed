//! Submission and completion queues: rings in the host's memory (Base 2.1 §3.3.1), and the commands that create and delete
//! them (§5.2.1 to §5.2.4).

use std::collections::VecDeque;

use nvmf_core::dma::{DeviceMemory, DmaFault};
use nvmf_core::spec::features::NumberOfQueues;
use nvmf_core::spec::log_page::ErrorEvent;
use nvmf_core::spec::registers::ControllerConfig;
use nvmf_core::spec::{Cqe, Sqe, Status};
use zerocopy::little_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

use super::cmb::CmbMemory;
use super::shadow::ShadowDoorbells;
use crate::queue::Queue;

const SQE: u64 = 64;
const CQE: u64 = 16;
/// Of a completion queue entry, the dword with the phase tag.
const PHASE_DWORD: usize = 12;

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const QUEUE_IDENTIFIER: Status = Status::INVALID_QUEUE_IDENTIFIER.with_dnr();
const QUEUE_SIZE: Status = Status::INVALID_QUEUE_SIZE.with_dnr();

/// A submission queue.
pub(super) struct Sq {
    base: u64,
    /// The controller memory buffer, if the ring is in it; `base` counts from its start then.
    buffer: Option<CmbMemory>,
    entries: u32,
    head: u32,
    tail: u32,
    pub(super) cqid: u16,
    /// The controller role's end of it.
    pub(super) queue: Queue,
}

impl Sq {
    pub(super) fn new(base: u64, entries: u32, cqid: u16, queue: Queue) -> Self {
        Self { base, buffer: None, entries, head: 0, tail: 0, cqid, queue }
    }

    /// The ring is in the controller memory buffer, from this byte on.
    pub(super) fn within(mut self, buffer: CmbMemory, offset: u64) -> Self {
        (self.base, self.buffer) = (offset, Some(buffer));
        self
    }

    pub(super) fn is_in_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    /// SQHD of completions.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// The tail doorbell.
    fn ring(&mut self, tail: u32) -> Result<(), ErrorEvent> {
        if tail >= self.entries {
            return Err(ErrorEvent::INVALID_DOORBELL_VALUE);
        }
        self.tail = tail;
        Ok(())
    }

    /// Takes the next command off the queue.
    pub(super) fn fetch(&mut self, memory: &DeviceMemory) -> Result<Option<Sqe>, DmaFault> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut sqe = Sqe::new_zeroed();
        let at = self.base + u64::from(self.head) * SQE;
        match &self.buffer {
            Some(buffer) => buffer.read(at, sqe.as_mut_bytes()),
            None => memory.read(at, sqe.as_mut_bytes())?,
        }
        self.head = (self.head + 1) % self.entries;
        Ok(Some(sqe))
    }
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct Cq {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// MSI-X vector; none without interrupts.
    vector: Option<u16>,
    /// Completions the queue has no room for, in order, with their submission queues.
    waiting: VecDeque<(Cqe, bool)>,
    /// Entries were written since the last interrupt.
    news: bool,
    /// Submission queues that complete here.
    users: u32,
}

impl Cq {
    pub(super) fn new(base: u64, entries: u32, vector: Option<u16>) -> Self {
        let waiting = VecDeque::new();
        Self { base, entries, head: 0, tail: 0, phase: true, vector, waiting, news: false, users: 0 }
    }

    fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }

    /// Whether another completion can be written at once. Commands are fetched only then.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty() && !self.is_full()
    }

    /// The head doorbell: the host took entries off, no more than there were.
    fn ring(&mut self, head: u32) -> Result<(), ErrorEvent> {
        let ahead = |from: u32, to: u32| (to + self.entries - from) % self.entries;
        if head >= self.entries || ahead(self.head, head) > ahead(self.head, self.tail) {
            return Err(ErrorEvent::INVALID_DOORBELL_VALUE);
        }
        self.head = head;
        Ok(())
    }

    /// Adds a completion, behind those that wait. `stale` writes it with the wrong phase tag, a scripted fault.
    pub(super) fn push(&mut self, cqe: Cqe, stale: bool, memory: &DeviceMemory) -> Result<(), DmaFault> {
        self.waiting.push_back((cqe, stale));
        self.write(memory)
    }

    /// Writes completions that wait as far as there is room.
    pub(super) fn write(&mut self, memory: &DeviceMemory) -> Result<(), DmaFault> {
        while !self.is_full()
            && let Some((mut cqe, stale)) = self.waiting.pop_front()
        {
            let phase = self.phase != stale;
            cqe.status_phase = U16::new(cqe.status_phase.get() & !1 | u16::from(phase));
            let at = self.base + u64::from(self.tail) * CQE;
            // The phase tag is what tells the host that the entry is there: the dword it is in comes last.
            let (head, last) = cqe.as_bytes().split_at(PHASE_DWORD);
            memory.write(at, head)?;
            let last = last.try_into().map_or(0, u32::from_le_bytes);
            memory.store_release_u32(at + PHASE_DWORD as u64, last)?;
            self.tail += 1;
            if self.tail == self.entries {
                (self.tail, self.phase) = (0, !self.phase);
            }
            self.news = true;
        }
        Ok(())
    }

    /// The vector to signal, once for everything that was written since the last call.
    pub(super) fn take_interrupt(&mut self) -> Option<u16> {
        if std::mem::take(&mut self.news) { self.vector } else { None }
    }
}

/// All queues of a controller, by identifier.
pub(super) struct Queues {
    sqs: Vec<Option<Sq>>,
    cqs: Vec<Option<Cq>>,
    /// Identifiers of the submission queues there are, in the order of their creation.
    active: Vec<u16>,
}

/// What Create I/O Completion Queue asks for, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NewQueue {
    pub(super) qid: u16,
    pub(super) entries: u32,
    pub(super) base: u64,
    /// The vector of a completion queue; the completion queue of a submission queue.
    pub(super) other: Option<u16>,
}

/// Limits that creating a queue is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) granted: NumberOfQueues,
    /// MQES, not 0's based.
    pub(super) max_entries: u32,
    pub(super) vectors: u16,
    pub(super) cc: ControllerConfig,
    /// Memory page size, bytes.
    pub(super) page: u64,
}

impl Queues {
    /// None, with room for identifiers up to `max_qid`.
    pub(super) fn new(max_qid: u16) -> Self {
        let count = usize::from(max_qid) + 1;
        let (mut sqs, mut cqs) = (Vec::new(), Vec::new());
        sqs.resize_with(count, || None);
        cqs.resize_with(count, || None);
        Self { sqs, cqs, active: Vec::new() }
    }

    /// Drops every queue.
    pub(super) fn clear(&mut self) {
        self.sqs.fill_with(|| None);
        self.cqs.fill_with(|| None);
        self.active.clear();
    }

    /// Identifiers of the submission queues.
    pub(super) fn active(&self) -> &[u16] {
        &self.active
    }

    /// A submission queue and the completion queue it uses.
    pub(super) fn pair(&mut self, qid: u16) -> Option<(&mut Sq, &mut Cq)> {
        let sq = self.sqs.get_mut(usize::from(qid))?.as_mut()?;
        let cq = self.cqs.get_mut(usize::from(sq.cqid))?.as_mut()?;
        Some((sq, cq))
    }

    pub(super) fn sq(&self, qid: u16) -> Option<&Sq> {
        self.sqs.get(usize::from(qid))?.as_ref()
    }

    pub(super) fn cq(&self, qid: u16) -> Option<&Cq> {
        self.cqs.get(usize::from(qid))?.as_ref()
    }

    pub(super) fn cqs_mut(&mut self) -> impl Iterator<Item = &mut Cq> {
        self.cqs.iter_mut().flatten()
    }

    /// Whether there are I/O queues of any kind.
    pub(super) fn any_io(&self) -> bool {
        self.cqs.iter().skip(1).any(Option::is_some) || self.sqs.iter().skip(1).any(Option::is_some)
    }

    /// A doorbell was written: `index` is twice the queue identifier, plus one for a completion queue.
    pub(super) fn doorbell(&mut self, index: usize, value: u32) -> Result<(), ErrorEvent> {
        let missing = ErrorEvent::INVALID_DOORBELL_REGISTER;
        if index.is_multiple_of(2) {
            self.sqs.get_mut(index / 2).and_then(Option::as_mut).ok_or(missing)?.ring(value)
        } else {
            self.cqs.get_mut(index / 2).and_then(Option::as_mut).ok_or(missing)?.ring(value)
        }
    }

    /// Reads the doorbells of all I/O queues from memory. Whether any has changed, and each that makes no sense to `wrong`.
    pub(super) fn poll_shadow(
        &mut self,
        shadow: ShadowDoorbells,
        memory: &DeviceMemory,
        mut wrong: impl FnMut(usize, ErrorEvent),
    ) -> Result<bool, DmaFault> {
        let mut changed = false;
        for (qid, sq) in self.sqs.iter_mut().enumerate() {
            if let Some(sq) = sq
                && let Some(tail) = shadow.value(2 * qid, memory)?
                && tail != sq.tail
            {
                match sq.ring(tail) {
                    Ok(()) => changed = true,
                    Err(event) => wrong(2 * qid, event),
                }
            }
        }
        for (qid, cq) in self.cqs.iter_mut().enumerate() {
            if let Some(cq) = cq
                && let Some(head) = shadow.value(2 * qid + 1, memory)?
                && head != cq.head
            {
                match cq.ring(head) {
                    Ok(()) => changed = true,
                    Err(event) => wrong(2 * qid + 1, event),
                }
            }
        }
        Ok(changed)
    }

    /// Asks to be told of everything there is to wait for: new commands, and room in completion queues that are full.
    pub(super) fn arm_shadow(&self, shadow: ShadowDoorbells, memory: &DeviceMemory) -> Result<(), DmaFault> {
        for (qid, sq) in self.sqs.iter().enumerate() {
            if let Some(sq) = sq {
                shadow.arm(2 * qid, sq.tail, memory)?;
            }
        }
        for (qid, cq) in self.cqs.iter().enumerate() {
            if let Some(cq) = cq.as_ref().filter(|cq| !cq.has_room()) {
                shadow.arm(2 * qid + 1, cq.head, memory)?;
            }
        }
        Ok(())
    }

    pub(super) fn add_cq(&mut self, qid: u16, cq: Cq) {
        if let Some(place) = self.cqs.get_mut(usize::from(qid)) {
            *place = Some(cq);
        }
    }

    pub(super) fn add_sq(&mut self, qid: u16, sq: Sq) {
        if let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.cqid)) {
            cq.users += 1;
        }
        if let Some(place) = self.sqs.get_mut(usize::from(qid)) {
            *place = Some(sq);
            self.active.push(qid);
        }
    }

    /// Create I/O Completion Queue (§5.2.1): CDW10 QID and size, CDW11 vector, IEN, PC.
    pub(super) fn check_create_cq(&self, sqe: &Sqe, limits: &Limits) -> Result<NewQueue, Status> {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        let qid = cdw10 as u16;
        if qid == 0 || u32::from(qid) > limits.granted.completion || self.cq(qid).is_some() {
            return Err(QUEUE_IDENTIFIER);
        }
        if limits.cc.iocqes() != 4 {
            return Err(QUEUE_SIZE);
        }
        let (entries, base) = ring(sqe, limits)?;
        let vector = (cdw11 >> 16) as u16;
        let interrupts = cdw11 & 1 << 1 != 0;
        if interrupts && vector >= limits.vectors {
            return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
        }
        Ok(NewQueue { qid, entries, base, other: interrupts.then_some(vector) })
    }

    /// Create I/O Submission Queue (§5.2.2): CDW10 QID and size, CDW11 CQID, QPRIO, PC. Without weighted round robin
    /// the priority means nothing.
    pub(super) fn check_create_sq(&self, sqe: &Sqe, limits: &Limits) -> Result<NewQueue, Status> {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        let qid = cdw10 as u16;
        if qid == 0 || u32::from(qid) > limits.granted.submission || self.sq(qid).is_some() {
            return Err(QUEUE_IDENTIFIER);
        }
        let cqid = (cdw11 >> 16) as u16;
        // An identifier out of range is another mistake than one in range of a queue that is not there.
        if cqid == 0 || u32::from(cqid) > limits.granted.completion {
            return Err(QUEUE_IDENTIFIER);
        }
        if self.cq(cqid).is_none() {
            return Err(Status::INVALID_COMPLETION_QUEUE.with_dnr());
        }
        if limits.cc.iosqes() != 6 {
            return Err(QUEUE_SIZE);
        }
        let (entries, base) = ring(sqe, limits)?;
        Ok(NewQueue { qid, entries, base, other: Some(cqid) })
    }

    /// Delete I/O Submission Queue (§5.2.4). Commands on it that are not completed are gone without a completion.
    pub(super) fn delete_sq(&mut self, qid: u16) -> Result<(), Status> {
        let place = self.sqs.get_mut(usize::from(qid)).filter(|_| qid != 0);
        let sq = place.and_then(Option::take).ok_or(QUEUE_IDENTIFIER)?;
        self.active.retain(|&active| active != qid);
        if let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.cqid)) {
            cq.users -= 1;
            cq.waiting.retain(|(cqe, _)| cqe.sqid.get() != qid);
        }
        Ok(())
    }

    /// Delete I/O Completion Queue (§5.2.3): after the submission queues that use it.
    pub(super) fn delete_cq(&mut self, qid: u16) -> Result<(), Status> {
        let place = self.cqs.get_mut(usize::from(qid)).filter(|_| qid != 0).ok_or(QUEUE_IDENTIFIER)?;
        match place {
            None => Err(QUEUE_IDENTIFIER),
            Some(cq) if cq.users > 0 => Err(Status::INVALID_QUEUE_DELETION.with_dnr()),
            Some(_) => {
                *place = None;
                Ok(())
            }
        }
    }
}

/// Entries and address of a queue to be created. CAP.CQR is set: it has to be contiguous.
fn ring(sqe: &Sqe, limits: &Limits) -> Result<(u32, u64), Status> {
    let entries = (sqe.cdw10.get() >> 16) + 1;
    if entries < 2 || entries > limits.max_entries {
        return Err(QUEUE_SIZE);
    }
    if sqe.cdw11.get() & 1 == 0 {
        return Err(INVALID_FIELD);
    }
    let base = sqe.dptr.lo.get();
    if !base.is_multiple_of(limits.page) {
        return Err(Status::INVALID_PRP_OFFSET.with_dnr());
    }
    // So that no address in it wraps around.
    if base.checked_add(u64::from(entries) * SQE).is_none() {
        return Err(INVALID_FIELD);
    }
    Ok((entries, base))
}
