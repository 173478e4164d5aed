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
    /// The admin queue of the latest command.
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

    /// A command of this admin queue of the secondary has arrived. Each begins with commands that are about no queue.
    pub(super) fn heard_of(&mut self, epoch: u32) {
        self.epoch = self.epoch.max(epoch);
    }

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

    /// A command from [`Lent::admit`] was sent, in this association at the latest.
    pub(super) fn sent(&mut self, command: &mut QueueCommand, association: u64) {
        command.association = association;
        if let Some(queue) = self.queues.get_mut(&command.qid) {
            queue.association = association;
        }
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

    /// The controller was stopped: none of the queues of before exists any more, and none is made before the secondary knows. What it has
    /// made in `association`, the one in force, without knowing is deleted. Returns whether no queue exists any more.
    pub(super) fn stopped(&mut self, controller: &Controller, association: Option<u64>) -> bool {
        self.forget(association);
        self.queues.is_empty() || self.delete_queues(controller, Some(self.epoch))
    }

    fn forget(&mut self, association: Option<u64>) {
        self.queues.retain(|_, queue| Some(queue.association) == association);
        self.barred = self.epoch;
    }

    /// Deletes all queues, waiting for it; `epoch` is that of the admin queue whose queues they are. Returns whether none exists any more.
    pub(super) fn delete_queues(&mut self, controller: &Controller, epoch: Option<u32>) -> bool {
        self.barred = self.barred.max(epoch.unwrap_or(u32::MAX));
        let qids: Vec<u16> = self.queues.keys().copied().collect();
        // A submission queue before its completion queue (Base 2.1 §5.2.3).
        let deadline = Instant::now() + MAX_STOP;
        for opcode in [AdminOpcode::DELETE_IO_SQ, AdminOpcode::DELETE_IO_CQ] {
            for &qid in &qids {
                self.delete(controller, opcode, qid, deadline);
            }
        }
        self.queues.is_empty()
    }

    fn delete(&mut self, controller: &Controller, opcode: AdminOpcode, qid: u16, deadline: Instant) {
        let Some(&queue) = self.queues.get(&qid) else { return };
        let there = if opcode == AdminOpcode::DELETE_IO_SQ { queue.sq } else { queue.cq };
        if !there {
            return;
        }
        let command = QueueCommand { opcode, qid, association: queue.association };
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::dma::RegionId;

    /// Maps at ever higher addresses, and remembers what it was told.
    #[derive(Default)]
    struct Device {
        mapped: Mutex<Vec<RegionId>>,
        next: Mutex<u64>,
        queues: Mutex<BTreeSet<u16>>,
        stubborn: bool,
    }

    impl Lender for Device {
        fn function(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
            Err(Error::unsupported("no doorbells"))
        }

        fn vector(&self, _qid: u16) -> Result<Option<OwnedFd>> {
            Ok(None)
        }

        fn map(&self, memory: &SharedMemory) -> Result<u64> {
            self.mapped.lock().unwrap().push(memory.extent().region().id());
            let mut next = self.next.lock().unwrap();
            *next += 1 << 32;
            Ok(*next)
        }

        fn unmap(&self, memory: &SharedMemory) -> Result<()> {
            if self.stubborn {
                return Err(Error::disconnected("the IOMMU does not answer"));
            }
            self.mapped.lock().unwrap().retain(|&id| id != memory.extent().region().id());
            Ok(())
        }

        fn life(&self) -> u32 {
            0
        }

        fn note_queue(&self, _life: u32, qid: u16, exists: bool) {
            let mut queues = self.queues.lock().unwrap();
            let _ = if exists { queues.insert(qid) } else { queues.remove(&qid) };
        }
    }

    fn lent(stubborn: bool) -> (Lent, Arc<Device>) {
        let device = Arc::new(Device { stubborn, ..Device::default() });
        (Lent::new(Arc::<Device>::clone(&device)), device)
    }

    fn memory(pages: usize) -> OwnedFd {
        let memory = SharedMemory::allocate(pages * DMA_PAGE).unwrap();
        memory.file().unwrap().try_clone_to_owned().unwrap()
    }

    fn create(opcode: AdminOpcode, qid: u16, entries: u32, cdw11: u32, address: u64) -> Sqe {
        let mut sqe =
            Sqe::admin(opcode, 0).with_cdw10((entries - 1) << 16 | u32::from(qid)).with_cdw11(cdw11);
        sqe.dptr = DataPointer::prp(address, u64::MAX);
        (sqe.mptr, sqe.nsid) = (77.into(), 5.into());
        sqe
    }

    const CQ: AdminOpcode = AdminOpcode::CREATE_IO_CQ;
    const SQ: AdminOpcode = AdminOpcode::CREATE_IO_SQ;

    #[test]
    fn memory_is_mapped_within_limits_and_unmapped_once() {
        let (mut lent, device) = lent(false);
        assert!(lent.map(std::fs::File::open("/dev/zero").unwrap().into()).is_err());
        let (one, at) = lent.map(memory(1)).unwrap();
        let (two, _) = lent.map(memory(2)).unwrap();
        assert!(one != two && at == 1 << 32);
        assert_eq!(device.mapped.lock().unwrap().len(), 2);
        lent.unmap(one).unwrap();
        assert!(lent.unmap(one).is_err() && lent.unmap(4711).is_err());
        assert_eq!((lent.bytes, device.mapped.lock().unwrap().len()), (2 * DMA_PAGE, 1));
        lent.bytes = MAX_BYTES - DMA_PAGE;
        assert!(lent.map(memory(2)).is_err());
        lent.map(memory(1)).unwrap();
        assert!(lent.map(memory(1)).is_err(), "no byte is left");
        lent.bytes = 3 * DMA_PAGE;
        for _ in 2..MAX_PIECES {
            lent.map(memory(1)).unwrap();
        }
        let error = lent.map(memory(1)).unwrap_err();
        assert!(error.to_string().contains("1024 pieces"), "{error}");
        assert!(lent.end().is_empty());
        assert!(device.mapped.lock().unwrap().is_empty());
    }

    #[test]
    fn queues_are_made_with_leased_identifiers_in_memory_of_their_own_and_say_nothing_else() {
        let (mut lent, device) = lent(false);
        let (number, at) = lent.map(memory(2)).unwrap();
        let leases = BTreeSet::from([3]);
        let page = DMA_PAGE as u64;
        for sqe in [
            create(CQ, 4, 2, 1, at),
            create(CQ, 0, 2, 1, at),
            create(CQ, 3, 2, 1, at + 64),
            create(CQ, 3, 2, 1, at - page),
            create(CQ, 3, 513, 1, at),
            create(SQ, 3, 129, 1 | 3 << 16, at),
            create(SQ, 3, 65, 1 | 3 << 16, at + page),
            create(CQ, 3, 2, 1, u64::MAX - 4095),
            // Not contiguous; another's interrupt; another's completion queue.
            create(CQ, 3, 2, 0, at),
            create(CQ, 3, 2, 0b11 | 4 << 16, at),
            create(SQ, 3, 2, 1 | 4 << 16, at),
            Sqe::admin(AdminOpcode::DELETE_IO_SQ, 0).with_cdw10(4),
        ] {
            assert!(lent.admit(&sqe, 1, 1, &leases).is_err(), "{sqe:?}");
        }
        assert!(!lent.has_queue(3) && device.queues.lock().unwrap().is_empty());
        let (clean, cq) =
            lent.admit(&create(CQ, 3, 256, 0b11 | 3 << 16, at), 1, 1, &leases).unwrap().unwrap();
        assert_eq!((clean.mptr.get(), clean.nsid.get(), clean.dptr.hi.get()), (0, 0, 0));
        assert_eq!((clean.dptr.lo.get(), clean.cdw11.get()), (at, 0b11 | 3 << 16));
        assert!(lent.admit(&create(CQ, 3, 2, 1, at), 1, 1, &leases).is_err(), "twice");
        let sq = create(SQ, 3, 64, 0b101 | 3 << 16, at + page);
        let (clean, sq) = lent.admit(&sq, 1, 1, &leases).unwrap().unwrap();
        assert_eq!(clean.cdw11.get(), 0b101 | 3 << 16);
        lent.completed(cq, Some(Status::SUCCESS));
        // The controller refuses the other half, and nobody knows of a third.
        lent.completed(sq, Some(Status::INVALID_FIELD));
        assert!(lent.has_queue(3) && lent.unmap(number).is_err(), "a ring is in it");
        let delete = Sqe::admin(AdminOpcode::DELETE_IO_CQ, 0).with_cdw10(3);
        let (_, delete) = lent.admit(&delete, 1, 1, &leases).unwrap().unwrap();
        lent.completed(delete, None);
        assert!(lent.has_queue(3), "it may still exist");
        lent.completed(delete, Some(Status::SUCCESS));
        assert!(!lent.has_queue(3) && device.queues.lock().unwrap().is_empty());
        lent.unmap(number).unwrap();
    }

    #[test]
    fn queues_of_an_admin_queue_that_has_ended_are_not_made_any_more() {
        let (mut lent, _) = lent(false);
        let (number, at) = lent.map(memory(1)).unwrap();
        let leases = BTreeSet::from([1]);
        let sqe = create(CQ, 1, 2, 1, at);
        lent.heard_of(7);
        let (_, mut before) = lent.admit(&sqe, 7, 1, &leases).unwrap().unwrap();
        lent.forget(None);
        assert!(!lent.has_queue(1));
        assert_eq!(lent.admit(&sqe, 7, 2, &leases), Ok(None), "it has not heard of it");
        assert_eq!(lent.admit(&sqe, 8, 0, &leases), Ok(None), "there is no controller");
        assert!(lent.admit(&sqe, 8, 2, &leases).unwrap().is_some());
        // The end of a command from before says nothing about this one.
        lent.completed(before, Some(Status::INVALID_FIELD));
        assert!(lent.has_queue(1));
        lent.forget(Some(3));
        assert!(!lent.has_queue(1));
        // One that was made a moment after the controller came back is not forgotten.
        lent.heard_of(9);
        before = lent.admit(&sqe, 9, 3, &leases).unwrap().unwrap().1;
        lent.sent(&mut before, 4);
        lent.completed(before, Some(Status::SUCCESS));
        lent.forget(Some(4));
        assert!(lent.has_queue(1));
        assert!(lent.unmap(number).is_err());
        assert_eq!(lent.end(), BTreeSet::from([1]), "its identifier is not used again");
    }

    #[test]
    fn what_may_still_be_reached_is_neither_unmapped_nor_freed() {
        let (mut lent, device) = lent(false);
        let (_, at) = lent.map(memory(1)).unwrap();
        let region = lent.pieces.values().next().unwrap().memory.extent().region().clone();
        let sqe = create(CQ, 1, 2, 1, at);
        lent.admit(&sqe, 1, 1, &BTreeSet::from([1])).unwrap().unwrap();
        assert_eq!(lent.end(), BTreeSet::from([1]));
        assert!(region.in_use() && device.mapped.lock().unwrap().contains(&region.id()));

        let (mut lent, _) = self::lent(true);
        let (number, _) = lent.map(memory(1)).unwrap();
        let region = lent.pieces.values().next().unwrap().memory.extent().region().clone();
        assert!(lent.unmap(number).is_err());
        assert!(region.in_use());
    }
}
