//! What a secondary has of a memory-mapped controller, in the primary: memory that is mapped for it, and I/O queues in that memory.
//!
//! Memory is unmapped only when no queue of the secondary exists any more that could have been told of it, and given up for good where
//! that cannot be found out.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::controller::{Controller, Phase};
use crate::dma::{DMA_PAGE, SharedMemory};
use crate::error::{Error, Result};
use crate::spec::data_ptr::DataPointer;
use crate::spec::{AdminOpcode, Sqe, Status};
use crate::transport::Lender;

/// Most memory of one connection, bytes.
pub(super) const MAX_BYTES: usize = 1 << 30;
/// Most pieces of memory of one connection; each takes a descriptor.
pub(super) const MAX_PIECES: usize = 1024;
/// Longest that is waited for a controller which has lost its admin queue to be stopped.
const MAX_STOP: Duration = Duration::from_secs(30);
/// Pause between two looks at it.
const PAUSE: Duration = Duration::from_millis(2);

/// Bytes of a submission and of a completion queue entry.
const SQE_BYTES: u64 = 64;
const CQE_BYTES: u64 = 16;

/// A command that makes or deletes one half of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueCommand {
    opcode: AdminOpcode,
    qid: u16,
    /// The association it was sent in.
    association: u64,
}

/// Mapped memory.
struct Piece {
    memory: SharedMemory,
    iova: u64,
}

/// A queue of which the controller may know one half or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Queue {
    association: u64,
    life: u32,
    sq: bool,
    cq: bool,
    /// The memory its rings are in.
    rings: [Option<u32>; 2],
}

/// Everything of one secondary.
pub(super) struct Lent {
    lender: Arc<dyn Lender>,
    pieces: BTreeMap<u32, Piece>,
    bytes: usize,
    last: u32,
    queues: BTreeMap<u16, Queue>,
    /// Queues are not made for admin queues of the secondary up to this one: it has not heard yet that their queues have ended.
    barred: u32,
    /// Epoch of the latest command.
    epoch: u32,
}

impl Lent {
    pub(super) fn new(lender: Arc<dyn Lender>) -> Self {
        Self {
            lender,
            pieces: BTreeMap::new(),
            bytes: 0,
            last: 0,
            queues: BTreeMap::new(),
            barred: 0,
            epoch: 0,
        }
    }

    pub(super) fn function(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.lender.function()
    }

    pub(super) fn vector(&self, qid: u16) -> Result<Option<OwnedFd>> {
        self.lender.vector(qid)
    }

    // --- memory --------------------------------------------------------------------------------------------------------

    /// Maps memory for the controller.
    pub(super) fn map(&mut self, file: OwnedFd) -> Result<(u32, u64)> {
        if self.pieces.len() >= MAX_PIECES {
            return Err(Error::exhausted(format!(
                "{MAX_PIECES} pieces of memory is all a process may share"
            )));
        }
        let memory = SharedMemory::shared_by(file, MAX_BYTES - self.bytes)?;
        let iova = self.lender.map(&memory)?;
        self.bytes += memory.len();
        // Numbers are not used twice as long as their memory is there.
        while self.last == 0 || self.pieces.contains_key(&self.last) {
            self.last = self.last.wrapping_add(1);
        }
        self.pieces.insert(self.last, Piece { memory, iova });
        Ok((self.last, iova))
    }

    /// Takes memory back, unless a queue is in it.
    pub(super) fn unmap(&mut self, number: u32) -> Result<()> {
        if self.queues.values().any(|queue| queue.rings.contains(&Some(number))) {
            return Err(Error::api_misuse("an I/O queue is in this memory"));
        }
        let piece = self.pieces.remove(&number);
        let piece = piece.ok_or_else(|| Error::api_misuse("there is no such memory"))?;
        self.bytes -= piece.memory.len();
        self.release(piece)
    }

    fn release(&self, piece: Piece) -> Result<()> {
        self.lender.unmap(&piece.memory).inspect_err(|error| {
            tracing::error!(%error, "memory of another process stays mapped for the controller");
            piece.memory.leak();
        })
    }

    /// The memory that holds `len` bytes at this bus address.
    fn holding(&self, address: u64, len: u64) -> Option<u32> {
        let end = address.checked_add(len)?;
        self.pieces.iter().find_map(|(&number, piece)| {
            let inside = address >= piece.iova && end <= piece.iova + piece.memory.len() as u64;
            inside.then_some(number)
        })
    }

    // --- queues --------------------------------------------------------------------------------------------------------

    /// Whether a queue of this identifier may exist.
    pub(super) fn has_queue(&self, qid: u16) -> bool {
        self.queues.contains_key(&qid)
    }

    /// Checks a command that makes or deletes half of a queue and makes it one that says nothing else. `None` when it came too late:
    /// it is lost, as its admin queue is.
    pub(super) fn admit(
        &mut self,
        sqe: &Sqe,
        epoch: u32,
        association: u64,
        leases: &BTreeSet<u16>,
    ) -> Result<Option<(Sqe, QueueCommand)>, Status> {
        self.epoch = self.epoch.max(epoch);
        if epoch <= self.barred || association == 0 {
            return Ok(None);
        }
        let (opcode, qid) = (AdminOpcode(sqe.opcode), sqe.cdw10.get() as u16);
        if !leases.contains(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        let command = QueueCommand { opcode, qid, association };
        let mut clean = Sqe::admin(opcode, 0).with_cdw10(u32::from(qid));
        let making_cq = opcode == AdminOpcode::CREATE_IO_CQ;
        if making_cq || opcode == AdminOpcode::CREATE_IO_SQ {
            let (size_z, cdw11) = (sqe.cdw10.get() >> 16, sqe.cdw11.get());
            let entry = if making_cq { CQE_BYTES } else { SQE_BYTES };
            let address = sqe.dptr.lo.get();
            let ring = self.holding(address, (u64::from(size_z) + 1) * entry);
            let Some(ring) = ring.filter(|_| address.is_multiple_of(DMA_PAGE as u64)) else {
                return Err(Status::INVALID_FIELD.with_dnr());
            };
            // The completion queue of a submission queue, and the interrupt vector of a completion queue, are its namesakes.
            let kept = if making_cq { 0b11 } else { 0b111 };
            let (bits, other) = (cdw11 & kept, cdw11 >> 16);
            let named = !making_cq || bits & 0b10 != 0;
            if bits & 1 == 0 || named && other != u32::from(qid) {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            let other = if named { u32::from(qid) << 16 } else { 0 };
            clean = clean.with_cdw10(sqe.cdw10.get()).with_cdw11(bits | other);
            clean.dptr = DataPointer::prp(address, 0);
            let life = self.lender.life();
            let fresh = Queue { association, life, sq: false, cq: false, rings: [None; 2] };
            let queue = self.queues.entry(qid).or_insert(fresh);
            let half = if making_cq { &mut queue.cq } else { &mut queue.sq };
            if std::mem::replace(half, true) {
                return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
            }
            queue.rings[usize::from(making_cq)] = Some(ring);
            self.lender.note_queue(life, qid, true);
        }
        Ok(Some((clean, command)))
    }

    /// A command from [`Lent::admit`] was not sent.
    pub(super) fn never_sent(&mut self, command: QueueCommand) {
        if matches!(command.opcode, AdminOpcode::CREATE_IO_SQ | AdminOpcode::CREATE_IO_CQ) {
            self.completed(command, Some(Status::ABORT_REQUESTED));
        }
    }

    /// A command from [`Lent::admit`] has ended: `None` when nobody knows how.
    pub(super) fn completed(&mut self, command: QueueCommand, status: Option<Status>) {
        let Some(status) = status else { return };
        let deletes = matches!(command.opcode, AdminOpcode::DELETE_IO_SQ | AdminOpcode::DELETE_IO_CQ);
        let gone = if deletes {
            // A queue the controller does not know is as good as deleted.
            status.is_success() || status.is(Status::INVALID_QUEUE_IDENTIFIER)
        } else {
            !status.is_success()
        };
        let Some(queue) = self.queues.get_mut(&command.qid).filter(|_| gone) else { return };
        if queue.association != command.association {
            return;
        }
        let is_sq = matches!(command.opcode, AdminOpcode::CREATE_IO_SQ | AdminOpcode::DELETE_IO_SQ);
        let half = if is_sq { &mut queue.sq } else { &mut queue.cq };
        *half = false;
        if !queue.sq && !queue.cq {
            let life = queue.life;
            self.queues.remove(&command.qid);
            self.lender.note_queue(life, command.qid, false);
        }
    }

    /// The controller was stopped: none of the queues exists any more, and none is made before the secondary knows.
    pub(super) fn stopped(&mut self) {
        self.queues.clear();
        self.barred = self.epoch;
    }

    /// Deletes all queues, waiting for it; `epoch` is that of the admin queue whose queues they are. Returns whether none exists any more.
    pub(super) fn delete_queues(&mut self, controller: &Controller, epoch: Option<u32>) -> bool {
        self.barred = self.barred.max(epoch.unwrap_or(u32::MAX));
        let qids: Vec<u16> = self.queues.keys().copied().collect();
        // A submission queue before its completion queue (Base 2.1 §5.2.3).
        for opcode in [AdminOpcode::DELETE_IO_SQ, AdminOpcode::DELETE_IO_CQ] {
            for &qid in &qids {
                self.delete(controller, opcode, qid);
            }
        }
        self.queues.is_empty()
    }

    fn delete(&mut self, controller: &Controller, opcode: AdminOpcode, qid: u16) {
        let Some(&queue) = self.queues.get(&qid) else { return };
        let there = if opcode == AdminOpcode::DELETE_IO_SQ { queue.sq } else { queue.cq };
        if !there {
            return;
        }
        let command = QueueCommand { opcode, qid, association: queue.association };
        let deadline = Instant::now() + MAX_STOP;
        loop {
            let link = controller.link();
            if link.association != queue.association || link.phase != Phase::Ready {
                break;
            }
            match controller.admin(Sqe::admin(opcode, 0).with_cdw10(qid.into())).wait() {
                Ok(_) => return self.completed(command, Some(Status::SUCCESS)),
                Err(error) => match error.status() {
                    Some(status) => {
                        self.completed(command, Some(status));
                        if self.has_queue(qid) {
                            tracing::error!(%error, qid, "an I/O queue of another process cannot be deleted");
                        }
                        return;
                    }
                    // No room in the admin queue; or it is lost, and with it the queue once the controller is stopped.
                    None if Instant::now() < deadline => std::thread::sleep(PAUSE),
                    None => return,
                },
            }
        }
        while !has_stopped(controller, queue.association) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        self.queues.remove(&qid);
    }

    /// The end: everything goes back, or is given up if a queue may still exist. Returns the identifiers of those.
    pub(super) fn end(mut self) -> BTreeSet<u16> {
        for (_, piece) in std::mem::take(&mut self.pieces) {
            if self.queues.is_empty() {
                // What is wrong is told, and the memory kept.
                let _ = self.release(piece);
            } else {
                piece.memory.leak();
            }
        }
        self.queues.keys().copied().collect()
    }
}

/// Whether no queue of this association exists any more, because the controller was stopped.
pub(super) fn has_stopped(controller: &Controller, association: u64) -> bool {
    let link = controller.link();
    // The next association begins only after that.
    link.association != association || link.phase != Phase::Ready && controller.is_quiesced()
}
