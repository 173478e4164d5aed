//! A queue pair: two rings in memory and two doorbells. NVMe over PCIe Transport 1.1 §3; Base 2.1 §3.3.1.
//!
//! ```text
//!   submit ─▶ submission ring, tail ──flush──▶ SQ tail doorbell ─▶ controller
//!   poll   ◀─ completion ring, head, phase ◀─────────────────────── controller
//!              └── with the next tail, or at the next poll ──▶ CQ head doorbell
//! ```

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::dma::{RegionId, SharedMemory, streamed_write_barrier};
use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::data_ptr::DataPointer;
use nvmf_core::spec::status::CommandKind;
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::transport::{ConnectProgress, QpairSetup, Quiesce, TransportQpair, TransportStats};
use nvmf_core::{DmaBuf, DmaRegion, Error, ErrorKind, Result};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::cmb::CmbPart;
use crate::data::{self, LIST_BYTES, List, Piece};
use crate::farewell::Farewell;
use crate::shadow::QueueDoorbells;
use crate::shared::{SglSupport, Shared};

mod distance;
mod life;
#[cfg(test)]
pub(crate) mod tests;

use distance::Distance;
use life::{Exists, Life, Sent};

const SQE_BYTES: usize = 64;
const CQE_BYTES: usize = 16;
/// How often an idle queue pair looks whether the function is still there.
const ALIVE_CHECK: Duration = Duration::from_millis(100);
/// Idle polls between two looks at the clock for that.
const POLLS_PER_CLOCK: u32 = 8;
/// How many commands ahead the place of one is fetched from the controller, where both share memory.
const PREFETCH: u16 = 4;
/// With more commands in flight a controller that is far gets them past the caches: it has others to go on with meanwhile.
const DEEP: usize = 16;
/// Bus addresses of regions kept at hand per queue pair.
const CACHED_REGIONS: usize = 1024;
/// Entries an admin queue has at most (AQA).
const MAX_ADMIN_ENTRIES: u32 = 4096;

/// Copies of a command's data and metadata, which the controller is told instead.
#[derive(Debug, Default)]
struct Copies {
    data: Option<DmaBuf>,
    metadata: Option<DmaBuf>,
}

/// A queue pair of a PCIe controller.
pub struct PcieQpair {
    shared: Arc<Shared>,
    /// The controller's life it belongs to.
    controller_life: u32,
    /// Submission ring (if it is not in the controller's memory), completion ring, and a place per slot for PRP lists or SGL
    /// segments, in this order. Always present but while being dropped.
    memory: Option<SharedMemory>,
    /// The submission ring in the controller's memory.
    cmb: Option<CmbPart>,
    /// Bus address of `memory`.
    iova: u64,
    /// Where the parts of `memory` start.
    sq_offset: usize,
    cq_offset: usize,
    lists_offset: usize,
    qid: u16,
    entries: u16,
    priority: u8,
    vector: Option<u16>,
    /// What to sleep on, for an I/O queue with a vector.
    sleep: Option<OwnedFd>,
    sq_doorbell: u64,
    cq_doorbell: u64,
    shadow: Option<QueueDoorbells>,
    sq_tail: u16,
    /// Tail the controller was told.
    sq_rung: u16,
    distance: Distance,
    /// Commands were written past the caches since the controller was told.
    streamed: bool,
    cq_head: u16,
    /// Head the controller was told.
    cq_rung: u16,
    /// Phase tag of entries the controller has written in this round.
    phase: bool,
    /// Copies of what could not be described where it is, by slot.
    bounce: Vec<Option<Box<Copies>>>,
    pieces: Vec<Piece>,
    /// Bus addresses of regions, by region.
    regions: Vec<(RegionId, u64)>,
    /// The one asked for last.
    last_region: Option<(RegionId, u64)>,
    /// Commands that never reached the controller: slot and identifier.
    unsent: Vec<(u16, u16)>,
    /// The last poll stopped at its budget.
    more: bool,
    last_check: Instant,
    idle_polls: u32,
    /// Somebody may sleep on the vector's descriptor.
    watched: Cell<bool>,
    /// The queues were created; commands are taken from then on.
    usable_at: Option<Instant>,
    life: Life,
    /// Of the admin queue.
    farewell: Option<Farewell>,
    stats: TransportStats,
}

impl PcieQpair {
    pub(crate) fn new(shared: Arc<Shared>, setup: &QpairSetup, vector: Option<u16>) -> Result<Self> {
        // Longer rings than asked for are no matter to the core, which counts slots.
        let (least, most) = match setup.qid {
            0 => (shared.quirks.min_admin_entries, MAX_ADMIN_ENTRIES),
            _ => (shared.quirks.min_io_entries, shared.cap.max_queue_entries()),
        };
        let least = u32::from(least).min(most) as u16;
        let entries = setup.entries.max(2).max(least);
        let (sq_bytes, cq_bytes) = (usize::from(entries) * SQE_BYTES, usize::from(entries) * CQE_BYTES);
        let page = |bytes: usize| bytes.next_multiple_of(shared.page as usize);
        let cmb = if setup.qid == 0 { None } else { shared.take_cmb(sq_bytes) };
        let cq_at = if cmb.is_some() { 0 } else { page(sq_bytes) };
        let lists_at = cq_at + cq_bytes.next_multiple_of(LIST_BYTES);
        let len = lists_at + usize::from(setup.slots) * LIST_BYTES;
        let (memory, start, sq_offset) = shared.aligned(len)?;
        let iova = start - sq_offset as u64;
        let (sq_doorbell, cq_doorbell) =
            (shared.cap.sq_tail_doorbell(setup.qid), shared.cap.cq_head_doorbell(setup.qid));
        if cq_doorbell + 4 > shared.bar.len() {
            return Err(Error::peer_misbehaved(format!(
                "queue {} would have its doorbell at {cq_doorbell:#x}, but BAR 0 ends at {:#x}",
                setup.qid,
                shared.bar.len()
            )));
        }
        let sleep = vector.filter(|_| setup.qid != 0).and_then(|vector| shared.sleep_on(vector));
        Ok(Self {
            controller_life: shared.life(),
            shared,
            memory: Some(memory),
            cmb,
            iova,
            sq_offset,
            cq_offset: sq_offset + cq_at,
            lists_offset: sq_offset + lists_at,
            qid: setup.qid,
            entries,
            priority: setup.priority,
            vector,
            sleep,
            sq_doorbell,
            cq_doorbell,
            shadow: None,
            sq_tail: 0,
            sq_rung: 0,
            distance: Distance::default(),
            streamed: false,
            cq_head: 0,
            cq_rung: 0,
            phase: true,
            bounce: (0..setup.slots).map(|_| None).collect(),
            pieces: Vec::new(),
            regions: Vec::new(),
            last_region: None,
            unsent: Vec::new(),
            more: false,
            last_check: Instant::now(),
            idle_polls: 0,
            watched: Cell::new(false),
            usable_at: None,
            life: Life::new(),
            farewell: (setup.qid == 0).then(Farewell::default),
            stats: TransportStats::default(),
        })
    }

    /// Bus addresses of submission and completion ring.
    pub(crate) fn ring_addresses(&self) -> (u64, u64) {
        let sq = match &self.cmb {
            Some(part) => part.address(),
            None => self.iova + self.sq_offset as u64,
        };
        (sq, self.iova + self.cq_offset as u64)
    }

    /// Entries of each ring.
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    fn memory(&self) -> Result<&SharedMemory> {
        self.memory.as_ref().ok_or_else(closed)
    }

    // --- submitting ------------------------------------------------------------------------------------------------------

    /// The bus address of a region: from this queue pair's own table, else from the controller's.
    fn address(&mut self, region: &DmaRegion) -> Result<u64> {
        let id = region.id();
        if let Some((last, iova)) = self.last_region
            && last == id
        {
            return Ok(iova);
        }
        let iova = self.known_address(region)?;
        self.last_region = Some((id, iova));
        Ok(iova)
    }

    fn known_address(&mut self, region: &DmaRegion) -> Result<u64> {
        let id = region.id();
        match self.regions.binary_search_by_key(&id, |&(known, _)| known) {
            Ok(index) => Ok(self.regions[index].1),
            Err(mut index) => {
                let iova = self.shared.map(region)?;
                if self.regions.len() >= CACHED_REGIONS {
                    // Regions come and go with large buffers; identifiers are never used again.
                    self.regions.clear();
                    index = 0;
                }
                self.regions.insert(index, (id, iova));
                Ok(iova)
            }
        }
    }

    /// Where the data of `slot` is, if it is one piece, as most is.
    #[inline(always)]
    fn one_piece(&mut self, slot: u16, tracker: &Tracker) -> Result<Option<Piece>> {
        let len = tracker.data_len(slot);
        match tracker.segment(slot, 0) {
            Some(segment) if segment.len == len as usize => {
                Ok(Some(Piece { iova: self.address(segment.region)? + segment.offset as u64, len }))
            }
            _ => Ok(None),
        }
    }

    /// Fills the data pointer for the data of `slot`, given what [`Self::one_piece`] has found.
    fn describe(&mut self, slot: u16, sqe: &mut Sqe, tracker: &Tracker, piece: Option<Piece>) -> Result<()> {
        let len = tracker.data_len(slot);
        if len == 0 {
            return Ok(());
        }
        if let Some((first, second)) = piece.and_then(|piece| piece.two_pages(self.shared.page)) {
            sqe.flags &= 0x3f;
            sqe.dptr = DataPointer::prp(first, second);
            return Ok(());
        }
        self.pieces.clear();
        self.pieces.extend(piece);
        let mut offset = piece.map_or(0, |piece| piece.len);
        while let Some(segment) = tracker.segment(slot, offset) {
            let iova = self.address(segment.region)? + segment.offset as u64;
            self.pieces.push(Piece { iova, len: segment.len as u32 });
            offset += segment.len as u32;
        }
        if offset != len {
            return Err(Error::api_misuse("the command's buffers are shorter than its data"));
        }
        // Admin commands use PRPs on this transport (Base 2.1 §4.3.2).
        let dsm = sqe.opcode == NvmOpcode::DATASET_MANAGEMENT.0 && self.shared.quirks.no_sgl_for_dsm;
        let sgl = if self.qid == 0 || dsm { SglSupport::No } else { self.shared.sgl() };
        if self.describe_pieces(slot, sqe, sgl)? {
            return Ok(());
        }
        self.describe_copy(slot, sqe, tracker)
    }

    /// Fills the data pointer for a copy of the data of `slot`.
    fn describe_copy(&mut self, slot: u16, sqe: &mut Sqe, tracker: &Tracker) -> Result<()> {
        let copy = tracker.copy(slot, &self.shared.bounce)?;
        let piece = self.place(&copy)?;
        self.pieces.clear();
        self.pieces.push(piece);
        if !self.describe_pieces(slot, sqe, SglSupport::No)? {
            return Err(Error::api_misuse(format!("{} bytes do not fit into one command", copy.len())));
        }
        self.bounce[usize::from(slot)].get_or_insert_default().data = Some(copy);
        Ok(())
    }

    /// Where a copy is.
    fn place(&mut self, copy: &DmaBuf) -> Result<Piece> {
        let extent = copy.extent().ok_or_else(|| Error::exhausted("a buffer without memory"))?;
        let (region, start) = (extent.region().clone(), extent.offset() as u64);
        Ok(Piece { iova: self.address(&region)? + start, len: copy.len() as u32 })
    }

    fn list(&self, slot: u16) -> Result<List<'_>> {
        let offset = self.lists_offset + usize::from(slot) * LIST_BYTES;
        Ok(List { memory: self.memory()?, offset, iova: self.iova + offset as u64, page: self.shared.page })
    }

    fn describe_pieces(&self, slot: u16, sqe: &mut Sqe, sgl: SglSupport) -> Result<bool> {
        Ok(data::describe(sqe, &self.pieces, self.list(slot)?, sgl))
    }

    /// Fills the metadata pointer for the metadata of `slot`, which is apart from its data.
    fn describe_metadata(&mut self, slot: u16, sqe: &mut Sqe, tracker: &Tracker) -> Result<()> {
        let len = tracker.metadata_len(slot);
        let segment = tracker.metadata_segment(slot).filter(|segment| segment.len == len as usize);
        let Some(segment) = segment else {
            return Err(Error::api_misuse("the command's metadata buffer is shorter than its metadata"));
        };
        let piece = Piece { iova: self.address(segment.region)? + segment.offset as u64, len };
        let support = self.shared.metadata_support();
        if data::describe_metadata(sqe, piece, self.list(slot)?, support) {
            return Ok(());
        }
        let mut copy = self.shared.bounce.alloc(len as usize)?;
        if sqe.direction() == DataDirection::HostToController {
            copy.copy_from_slice(tracker.metadata(slot));
        }
        let piece = self.place(&copy)?;
        if !data::describe_metadata(sqe, piece, self.list(slot)?, support) {
            return Err(Error::exhausted("metadata memory that starts at no dword"));
        }
        self.bounce[usize::from(slot)].get_or_insert_default().metadata = Some(copy);
        Ok(())
    }

    /// The command with its pointers filled in; `None` when its data cannot be described, and it will fail.
    fn described(
        &mut self,
        slot: u16,
        sqe: &Sqe,
        tracker: &Tracker,
        piece: Result<Option<Piece>>,
    ) -> Result<Option<Sqe>> {
        let mut sqe = *sqe;
        let mut described = piece.and_then(|piece| self.describe(slot, &mut sqe, tracker, piece));
        if described.is_err() && tracker.is_open_dma_buf(slot) {
            described = self.describe_copy(slot, &mut sqe, tracker);
        }
        if described.is_ok() && tracker.metadata_len(slot) > 0 {
            described = self.describe_metadata(slot, &mut sqe, tracker);
        }
        let Err(error) = described else { return Ok(Some(sqe)) };
        self.bounce[usize::from(slot)] = None;
        if let Some(failure) = self.shared.failure(self.controller_life) {
            return Err(failure);
        }
        if matches!(error.kind(), ErrorKind::Disconnected(_)) {
            return Err(error);
        }
        // The controller never sees it, and the others go on.
        tracing::warn!(%error, qid = self.qid, "a command's data cannot be described to the controller");
        self.unsent.push((slot, sqe.cid.get()));
        Ok(None)
    }

    /// Writes a command into the submission ring, past the caches if that is better.
    #[inline(always)]
    fn put(&mut self, sqe: &[U64; SQE_BYTES / 8], past_caches: bool) -> Result<()> {
        let at = usize::from(self.sq_tail) * SQE_BYTES;
        match &self.cmb {
            Some(part) => part.write(at, sqe.as_bytes())?,
            None => {
                let at = self.sq_offset + at;
                let memory = self.memory.as_ref().ok_or_else(closed)?;
                let unmeasured = self.distance.count();
                if unmeasured == 0 {
                    self.distance.measure(memory, at, sqe[0].get());
                }
                if past_caches {
                    memory.stream_words(at, sqe);
                    self.streamed = true;
                } else {
                    memory.write_words(at, sqe);
                    // The next to touch it is the controller.
                    memory.demote(at);
                    // Commands taken long ago are there. Behind the last place of the ring it is memory of ours as well.
                    if unmeasured != PREFETCH {
                        memory.prefetch_write(at + usize::from(PREFETCH) * SQE_BYTES);
                    }
                }
            }
        }
        self.sq_tail += 1;
        if self.sq_tail == self.entries {
            self.sq_tail = 0;
        }
        Ok(())
    }

    /// Whether the controller was stopped since, and so has forgotten the queue.
    fn is_forgotten(&self) -> bool {
        self.shared.life() != self.controller_life
    }

    fn ring_sq(&mut self) -> Result<()> {
        if self.sq_tail != self.sq_rung {
            // The doorbell may belong to nobody, or to a queue of another life.
            if let Some(failure) = self.shared.failure(self.controller_life) {
                return Err(failure);
            }
            if std::mem::take(&mut self.streamed) {
                streamed_write_barrier();
            }
            let old = std::mem::replace(&mut self.sq_rung, self.sq_tail);
            if self.shadow.as_ref().is_none_or(|shadow| shadow.tail(old, self.sq_tail)) {
                self.shared.bar.doorbell(self.sq_doorbell, u32::from(self.sq_tail))?;
                self.stats.sends += 1;
            }
        }
        Ok(())
    }

    /// Tells the controller which completions were taken. That makes room, which only a controller with a full queue waits for: so
    /// it is told along with the next commands, when the doorbells' cache line or the bus is in use anyway.
    fn ring_cq(&mut self) -> Result<()> {
        if self.cq_head == self.cq_rung {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.cq_rung, self.cq_head);
        if self.shadow.as_ref().is_none_or(|shadow| shadow.head(old, self.cq_head)) {
            self.shared.bar.doorbell(self.cq_doorbell, u32::from(self.cq_head))?;
        }
        Ok(())
    }

    // --- completing --------------------------------------------------------------------------------------------------------

    /// Takes the next completion the controller has written.
    #[inline(always)]
    fn next_cqe(&mut self) -> Result<Option<Cqe>> {
        let at = self.cq_offset + usize::from(self.cq_head) * CQE_BYTES;
        let memory = self.memory()?;
        // The dword with the phase tag is written last (Base 2.1 §4.2.4); nothing else is read before it.
        let dw3 = memory.load_acquire_u32(at + 12);
        if (dw3 >> 16 & 1 != 0) != self.phase {
            return Ok(None);
        }
        let dw2 = memory.read_u32(at + 8);
        let cqe = Cqe::from_words([memory.read_u64(at), u64::from(dw3) << 32 | u64::from(dw2)]);
        self.cq_head += 1;
        if self.cq_head == self.entries {
            self.cq_head = 0;
            self.phase = !self.phase;
        }
        Ok(Some(cqe))
    }

    /// Takes new completions. Returns how many.
    fn consume(&mut self, tracker: &mut Tracker, budget: usize) -> Result<usize> {
        let mut count = 0;
        // One round at most: a controller that writes without end must not keep us here.
        while tracker.completed() < budget && count < usize::from(self.entries) {
            let Some(cqe) = self.next_cqe()? else { return Ok(count) };
            count += 1;
            self.complete(&cqe, tracker)?;
        }
        self.more = true;
        Ok(count)
    }

    fn complete(&mut self, cqe: &Cqe, tracker: &mut Tracker) -> Result<()> {
        let (sqid, sqhd, cid) = (cqe.sqid.get(), cqe.sqhd.get(), cqe.cid.get());
        if sqid != self.qid {
            return Err(Error::peer_misbehaved(format!(
                "completion queue {} holds a completion for submission queue {sqid}",
                self.qid
            )));
        }
        if sqhd >= self.entries {
            return Err(Error::peer_misbehaved(format!(
                "a completion says that submission queue {sqid} of {} entries is consumed up to entry {sqhd}",
                self.entries
            )));
        }
        let Some(slot) = tracker.lookup(cid) else {
            return Err(Error::peer_misbehaved(format!(
                "a completion on queue {} names command identifier {cid:#06x}, under which no command is outstanding",
                self.qid
            )));
        };
        if let Some(farewell) = &mut self.farewell {
            farewell.completed(cid);
        }
        let len = u64::from(tracker.data_len(slot));
        match tracker.direction(slot) {
            DataDirection::None => {}
            DataDirection::HostToController => self.stats.bytes_sent += len,
            DataDirection::ControllerToHost | DataDirection::Bidirectional => {
                self.stats.bytes_received += len
            }
        }
        if let Some(copied @ Some(_)) = self.bounce.get_mut(usize::from(slot))
            && let Some(copies) = copied.take()
            && tracker.direction(slot) == DataDirection::ControllerToHost
        {
            if copies.data.is_some_and(|copy| !tracker.write(slot, 0, &copy)) {
                return Err(Error::api_misuse("the command's buffers are shorter than its data"));
            }
            if let Some(copy) = &copies.metadata {
                // As long as the copy: it was told from this.
                tracker.metadata_mut(slot).copy_from_slice(copy);
            }
        }
        tracker.complete(slot, *cqe);
        Ok(())
    }
}

impl TransportQpair for PcieQpair {
    fn poll_connect(&mut self, now: Instant) -> Result<ConnectProgress> {
        if let Some(failure) = self.shared.failure(self.controller_life) {
            return Err(failure);
        }
        if self.qid == 0 {
            // The core writes AQA, ASQ and ACQ and enables the controller before it submits anything.
            return Ok(ConnectProgress::Established);
        }
        if self.life.sent.is_some() {
            return Ok(ConnectProgress::Pending);
        }
        let (next, exists) = match (self.life.cq, self.life.sq) {
            (Exists::Yes, Exists::Yes) => {
                let usable_at = *self.usable_at.get_or_insert(now + self.shared.quirks.after_queue);
                let usable = now >= usable_at;
                return Ok(if usable { ConnectProgress::Established } else { ConnectProgress::Pending });
            }
            (Exists::Yes, _) => (Sent::CreateSq, &mut self.life.sq),
            _ => {
                // The doorbells of an earlier queue of this identifier are not to be taken for this one's.
                self.shadow = self.shared.shadow().and_then(|shadow| shadow.queue(self.qid));
                (Sent::CreateCq, &mut self.life.cq)
            }
        };
        *exists = Exists::Maybe;
        if next == Sent::CreateCq {
            self.shared.note_queue(self.controller_life, self.qid, true);
        }
        self.life.sent = Some(next);
        Ok(ConnectProgress::Admin(self.command(next)))
    }

    fn admin_completed(&mut self, cqe: &Cqe) -> Result<()> {
        match self.ended(cqe.status()) {
            Some((name, status)) => Err(Error::command(CommandKind::Admin, name, status)),
            None => Ok(()),
        }
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        let piece = self.one_piece(slot, tracker);
        let words = if let Ok(Some(piece)) = piece
            && tracker.metadata_len(slot) == 0
            && let Some((first, second)) = piece.two_pages(self.shared.page)
        {
            sqe.words_with_prps(first, second)
        } else {
            match self.described(slot, sqe, tracker, piece)? {
                Some(sqe) => sqe.words(),
                None => return Ok(()),
            }
        };
        if let Some(farewell) = &mut self.farewell {
            farewell.submitted(sqe.cid.get());
        }
        let past_caches = self.distance.is_far() && tracker.in_flight() > DEEP;
        self.put(&words, past_caches)
    }

    fn flush(&mut self, _tracker: &Tracker) -> Result<()> {
        // Room first, or a controller with a full completion queue would take the commands later.
        self.ring_cq()?;
        self.ring_sq()
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        if let Some(failure) = self.shared.failure(self.controller_life) {
            return Err(failure);
        }
        self.more = false;
        while tracker.completed() < budget
            && let Some((slot, cid)) = self.unsent.pop()
        {
            tracker.complete(slot, Cqe::new(cid, 0, Status::DATA_TRANSFER_ERROR));
        }
        // Nothing was submitted since the last poll.
        self.ring_cq()?;
        let mut count = self.consume(tracker, budget)?;
        if count == 0 && (self.qid == 0 || self.watched.get()) {
            // What was signalled before is seen by the second look; what comes after it is signalled again.
            match self.vector {
                Some(vector) if self.qid != 0 => self.shared.silence(vector),
                _ => self.shared.silence_admin()?,
            }
            count = self.consume(tracker, budget)?;
        }
        if count > 0 {
            self.stats.receives += 1;
            return Ok(());
        }
        self.stats.empty_receives += 1;
        self.idle_polls = self.idle_polls.wrapping_add(1);
        if !self.idle_polls.is_multiple_of(POLLS_PER_CLOCK) {
            return Ok(());
        }
        let now = Instant::now();
        if now.duration_since(self.last_check) >= ALIVE_CHECK {
            self.last_check = now;
            self.shared.check_alive()?;
        }
        Ok(())
    }

    fn disconnect(&mut self, now: Instant) -> Quiesce {
        self.life.closing = true;
        if self.life.quiesced {
            return Quiesce::Done;
        }
        let result = if self.is_forgotten() {
            Quiesce::Done
        } else if self.qid == 0
            || self.shared.is_dead()
            || self.shared.failure(self.controller_life).is_some()
        {
            // The admin queue itself, or nobody is left to answer Delete commands.
            self.say_farewell(now);
            self.shared.stop(self.controller_life, now)
        } else if self.life.sent.is_some() {
            Quiesce::Pending
        } else if self.life.stuck {
            Quiesce::Unconfirmed
        } else if self.life.sq == Exists::No && self.life.cq == Exists::No {
            Quiesce::Done
        } else {
            Quiesce::Pending
        };
        self.life.quiesced = result == Quiesce::Done;
        result
    }

    fn quiesce_command(&mut self) -> Option<Sqe> {
        if !self.life.closing
            || self.is_forgotten()
            || self.life.quiesced
            || self.life.stuck
            || self.shared.is_dead()
            || self.qid == 0
        {
            return None;
        }
        let next = match self.life.sent {
            Some(Sent::CreateCq | Sent::CreateSq) => return None,
            Some(delete) => delete,
            // Only after the submission queue is gone may its completion queue go (§5.2.3). The controller completes a
            // deletion after all commands of the queue are completed or aborted.
            None if self.life.sq != Exists::No => Sent::DeleteSq,
            None if self.life.cq != Exists::No => Sent::DeleteCq,
            None => return None,
        };
        self.life.sent = Some(next);
        Some(self.command(next))
    }

    fn quiesce_completed(&mut self, cqe: Option<&Cqe>) {
        match cqe {
            Some(cqe) => {
                if let Some((command, status)) = self.ended(cqe.status()) {
                    tracing::debug!(qid = self.qid, command, %status, "while giving a queue up");
                }
            }
            None => {
                // The admin queue is lost and with it the controller, which is stopped as a whole. If it is not, nobody
                // knows what became of the queue.
                self.life.sent = None;
                self.life.stuck = true;
            }
        }
    }

    fn take_device_memory(&mut self, region: &DmaRegion) -> Result<()> {
        self.address(region).map(drop)
    }

    fn event_fd(&self) -> Option<RawFd> {
        self.watched.set(true);
        if self.qid == 0 {
            return self.shared.admin_fd();
        }
        self.sleep.as_ref().map(AsRawFd::as_raw_fd).or_else(|| self.shared.vector_fd(self.vector?))
    }

    fn has_local_work(&self) -> bool {
        self.more || !self.unsent.is_empty()
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

fn closed() -> Error {
    Error::disconnected("the queue pair is closed")
}

impl Drop for PcieQpair {
    fn drop(&mut self) {
        // A queue the controller never heard of, and one it has forgotten, leave nothing to fear.
        let unknown = self.qid != 0 && self.life.sq == Exists::No && self.life.cq == Exists::No;
        if self.life.quiesced || unknown || self.is_forgotten() {
            return;
        }
        tracing::error!(qid = self.qid, "queue memory is given up: the controller may still access it");
        if let Some(memory) = self.memory.take() {
            memory.leak();
        }
        if let Some(part) = self.cmb.take() {
            part.give_up();
        }
        let copies = self.bounce.iter_mut().filter_map(Option::take);
        copies.flat_map(|copies| [copies.data, copies.metadata]).flatten().for_each(DmaBuf::leak);
    }
}
