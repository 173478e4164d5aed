//! Command identifiers and what is in flight under each of them.
//!
//! A queue pair has a fixed number of *slots*, one per command the controller may hold, and a fixed number of
//! *operations*, one per I/O of the caller. An operation larger than one command may carry is served by several
//! slots. The operation owns the caller's buffer from submission to completion; a slot names a byte range of it.
//!
//! The transport is lent the tracker whenever it runs: it looks up the command identifiers a peer names, reads and
//! writes the data in place, and reports completions. It can reach a buffer only through a slot that is in flight.

use crate::dma::{DmaBuf, DmaPool, DmaSegment, IoBuf};
use crate::error::{Error, Result};
use crate::spec::Cqe;
use crate::spec::command::DataDirection;

/// Most slots a tracker can have: a command identifier has 16 bits and FFFFh is never used.
pub const MAX_SLOTS: u16 = 32_768;
/// Operations there is room for from the beginning.
const FEW_OPS: u32 = 4;

/// The life of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    /// No command.
    Free,
    /// The controller may hold the command and access its data.
    InFlight,
    /// The completion was reported; the queue pair has not taken it yet.
    Completed,
}

#[derive(Clone, Debug)]
struct Slot {
    state: SlotState,
    /// Command identifier of the current or next command: slot number below, generation above.
    cid: u16,
    direction: DataDirection,
    op: u32,
    /// Byte range of the operation's data.
    offset: usize,
    len: u32,
    /// Byte range of the operation's metadata; a length of 0 is none.
    metadata_offset: usize,
    metadata_len: u32,
}

/// Table of the commands in flight on one queue pair.
#[derive(Debug)]
pub struct Tracker {
    /// Those that were ever in use. They are made one by one: a queue pair that is never busy takes little memory.
    slots: Vec<Slot>,
    /// How many there may be.
    max_slots: u16,
    /// Of `slots`, those not in use.
    free: Vec<u16>,
    bufs: Vec<IoBuf>,
    completed: Vec<(u16, Cqe)>,
    slot_mask: u16,
}

impl Tracker {
    /// A tracker of `slots` commands (1..=[`MAX_SLOTS`], clamped) for `ops` operations. With `generations` the bits
    /// of a command identifier above the slot number change with every use of the slot, so that a late or repeated
    /// completion is recognised; without, identifiers stay small for controllers that need that.
    #[must_use]
    pub fn new(slots: u16, ops: u32, generations: bool) -> Self {
        let mut tracker = Self {
            slots: Vec::new(),
            max_slots: 0,
            free: Vec::new(),
            // Grows as operations are used for the first time.
            bufs: Vec::with_capacity(ops.min(FEW_OPS) as usize),
            completed: Vec::new(),
            slot_mask: 0,
        };
        tracker.restart(slots, generations);
        tracker
    }

    /// Makes new slots for another connection; the operations keep their data. Only when no command is in flight.
    pub fn restart(&mut self, slots: u16, generations: bool) {
        debug_assert_eq!(self.in_flight(), 0, "a command of the connection before may still access its data");
        let slots = slots.clamp(1, MAX_SLOTS);
        let bits = slots.next_power_of_two().trailing_zeros();
        self.slots.clear();
        self.max_slots = slots;
        self.free.clear();
        self.completed.clear();
        self.slot_mask = if generations { ((1u32 << bits) - 1) as u16 } else { u16::MAX };
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u16 {
        self.max_slots
    }

    /// Slots not in use.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        usize::from(self.max_slots) - self.slots.len() + self.free.len()
    }

    /// Slots whose command has not completed.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.completed.len()
    }

    // --- the queue pair's side -------------------------------------------------------------------------------

    /// Gives operation `op` its data. The buffer stays until [`Tracker::take_buf`].
    #[inline]
    pub fn put_buf(&mut self, op: u32, buf: IoBuf) {
        self.reach(op);
        let before = std::mem::replace(&mut self.bufs[op as usize], buf);
        match before {
            // Nothing to be dropped, which the compiler does not see.
            IoBuf::None => _ = std::mem::ManuallyDrop::new(before),
            _ => drop(before),
        }
    }

    #[inline]
    fn reach(&mut self, op: u32) {
        if op as usize >= self.bufs.len() {
            self.grow(op);
        }
    }

    #[cold]
    fn grow(&mut self, op: u32) {
        self.bufs.resize_with(op as usize + 1, || IoBuf::None);
    }

    /// Takes operation `op`'s data back. Only when no slot of the operation is in flight any more.
    #[inline]
    pub fn take_buf(&mut self, op: u32) -> IoBuf {
        debug_assert!(
            !self.slots.iter().any(|s| s.state != SlotState::Free && s.op == op),
            "buffer of operation {op} taken while a command may still access it"
        );
        self.bufs.get_mut(op as usize).map(std::mem::take).unwrap_or_default()
    }

    /// Operation `op`'s data.
    #[inline]
    #[must_use]
    pub fn buf(&self, op: u32) -> &IoBuf {
        &self.bufs[op as usize]
    }

    /// Takes a slot for bytes `offset .. offset + len` of operation `op`. Returns slot and command identifier;
    /// `None` when every slot is in use.
    #[inline]
    pub fn begin(
        &mut self,
        op: u32,
        offset: usize,
        len: u32,
        direction: DataDirection,
    ) -> Option<(u16, u16)> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.new_slot()?,
        };
        self.reach(op);
        let slot = &mut self.slots[usize::from(index)];
        slot.state = SlotState::InFlight;
        (slot.op, slot.offset, slot.len, slot.direction) = (op, offset, len, direction);
        Some((index, slot.cid))
    }

    /// A slot that was never in use, if there is one left.
    #[cold]
    fn new_slot(&mut self) -> Option<u16> {
        let index = self.slots.len() as u16;
        (index < self.max_slots).then(|| {
            self.slots.push(Slot {
                state: SlotState::Free,
                cid: index,
                direction: DataDirection::None,
                op: 0,
                offset: 0,
                len: 0,
                metadata_offset: 0,
                metadata_len: 0,
            });
            // Only a depth that was never reached before takes memory: the lists have room for all slots.
            let room = self.slots.capacity();
            self.free.reserve_exact(room - self.free.len());
            self.completed.reserve_exact(room - self.completed.len());
            index
        })
    }

    /// Gives the command in `slot`, taken with [`Tracker::begin`], bytes `offset .. offset + len` of its operation's metadata
    /// ([`IoBuf::metadata`]).
    #[inline]
    pub fn set_metadata(&mut self, slot: u16, offset: usize, len: u32) {
        let entry = &mut self.slots[usize::from(slot)];
        (entry.metadata_offset, entry.metadata_len) = (offset, len);
    }

    /// Frees a slot whose command never reached the transport, or that the transport can no longer serve because the
    /// queue is quiesced. Its operation's buffer stays with the operation.
    #[inline]
    pub fn release(&mut self, slot: u16) {
        let mask = self.slot_mask;
        let entry = &mut self.slots[usize::from(slot)];
        debug_assert!(entry.state != SlotState::Free, "slot {slot} released twice");
        entry.state = SlotState::Free;
        (entry.len, entry.metadata_len) = (0, 0);
        // Next generation; FFFFh is skipped, it means "all commands" in Cancel and "none" in error logs.
        let step = if mask == u16::MAX { 0 } else { mask + 1 };
        entry.cid = entry.cid.wrapping_add(step);
        if entry.cid == u16::MAX {
            entry.cid = entry.cid.wrapping_add(step);
        }
        self.free.push(slot);
    }

    /// Takes the oldest completion reported by the transport and frees its slot. Returns operation, the offset and length of the
    /// command's data, and the completion.
    #[inline]
    pub fn take_completed(&mut self, index: usize) -> Option<(u32, usize, u32, Cqe)> {
        let &(slot, cqe) = self.completed.get(index)?;
        let entry = &self.slots[usize::from(slot)];
        let taken = (entry.op, entry.offset, entry.len, cqe);
        self.release(slot);
        Some(taken)
    }

    /// Forgets the completions that [`Tracker::take_completed`] handed out.
    #[inline]
    pub fn clear_completed(&mut self) {
        self.completed.clear();
    }

    /// Slots in flight and their operations: what has to be failed when the queue is quiesced.
    pub fn outstanding(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        (0u16..)
            .zip(&self.slots)
            .filter(|(_, entry)| entry.state == SlotState::InFlight)
            .map(|(slot, entry)| (slot, entry.op))
    }

    // --- the transport's side --------------------------------------------------------------------------------

    /// The slot in flight under `cid`; `None` when no such command is outstanding (stale, completed, or never issued).
    #[inline]
    #[must_use]
    pub fn lookup(&self, cid: u16) -> Option<u16> {
        let index = cid & self.slot_mask;
        let slot = self.slots.get(usize::from(index))?;
        (slot.state == SlotState::InFlight && slot.cid == cid).then_some(index)
    }

    /// Command identifier of the command in `slot`.
    #[inline]
    #[must_use]
    pub fn cid(&self, slot: u16) -> u16 {
        self.slots[usize::from(slot)].cid
    }

    /// Bytes of data the command in `slot` transfers.
    #[inline]
    #[must_use]
    pub fn data_len(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].len
    }

    /// Direction of the data of the command in `slot`; `None` when it has no data.
    #[inline]
    #[must_use]
    pub fn direction(&self, slot: u16) -> DataDirection {
        let slot = &self.slots[usize::from(slot)];
        if slot.len == 0 { DataDirection::None } else { slot.direction }
    }

    /// Where in DMA memory the command's data from `offset` on is, as far as it is contiguous; `None` at or past its end. For
    /// transports whose hardware moves the data.
    #[inline]
    #[must_use]
    pub fn segment(&self, slot: u16, offset: u32) -> Option<DmaSegment<'_>> {
        let entry = &self.slots[usize::from(slot)];
        let left = entry.len.checked_sub(offset).filter(|&left| left > 0)?;
        let mut segment = self.bufs[entry.op as usize].segment(entry.offset + offset as usize)?;
        segment.len = segment.len.min(left as usize);
        Some(segment)
    }

    /// Bytes of metadata the command in `slot` transfers apart from its data.
    #[inline]
    #[must_use]
    pub fn metadata_len(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].metadata_len
    }

    /// Where in DMA memory the command's metadata is, one piece; `None` when it has none apart from its data. Shorter than
    /// [`Tracker::metadata_len`] when the operation's buffer is. For transports whose hardware moves it.
    #[must_use]
    pub fn metadata_segment(&self, slot: u16) -> Option<DmaSegment<'_>> {
        let entry = &self.slots[usize::from(slot)];
        if entry.metadata_len == 0 {
            return None;
        }
        let metadata = self.bufs[entry.op as usize].metadata()?;
        let left = metadata.len().checked_sub(entry.metadata_offset).filter(|&left| left > 0)?;
        let extent = metadata.extent()?;
        let (region, offset) = (extent.region(), extent.offset() + entry.metadata_offset);
        Some(DmaSegment { region, offset, len: left.min(entry.metadata_len as usize) })
    }

    /// The command's metadata, where it is apart from its data; else empty.
    #[must_use]
    pub fn metadata(&self, slot: u16) -> &[u8] {
        let entry = &self.slots[usize::from(slot)];
        let range = entry.metadata_offset..entry.metadata_offset + entry.metadata_len as usize;
        self.bufs[entry.op as usize].metadata().and_then(|metadata| metadata.get(range)).unwrap_or(&[])
    }

    /// As [`Tracker::metadata`], writable: where metadata from the controller goes. Empty when the slot is not in flight.
    #[must_use]
    pub fn metadata_mut(&mut self, slot: u16) -> &mut [u8] {
        let entry = &self.slots[usize::from(slot)];
        if entry.state != SlotState::InFlight {
            return &mut [];
        }
        let range = entry.metadata_offset..entry.metadata_offset + entry.metadata_len as usize;
        let metadata = self.bufs[entry.op as usize].metadata_mut();
        metadata.and_then(|metadata| metadata.get_mut(range)).unwrap_or(&mut [])
    }

    /// The command's data from `offset` on, as far as it is contiguous; empty at or past its end.
    #[inline]
    #[must_use]
    pub fn chunk(&self, slot: u16, offset: u32) -> &[u8] {
        let entry = &self.slots[usize::from(slot)];
        let Some(left) = entry.len.checked_sub(offset) else { return &[] };
        let chunk = self.bufs[entry.op as usize].chunk(entry.offset + offset as usize);
        &chunk[..chunk.len().min(left as usize)]
    }

    /// As [`Tracker::chunk`], writable: where data from the controller goes. Empty when the slot is not in flight.
    #[inline]
    #[must_use]
    pub fn chunk_mut(&mut self, slot: u16, offset: u32) -> &mut [u8] {
        let entry = &self.slots[usize::from(slot)];
        if entry.state != SlotState::InFlight {
            return &mut [];
        }
        let Some(left) = entry.len.checked_sub(offset) else { return &mut [] };
        let chunk = self.bufs[entry.op as usize].chunk_mut(entry.offset + offset as usize);
        let len = chunk.len().min(left as usize);
        &mut chunk[..len]
    }

    /// Copies `bytes` into the command's data at `offset`. Returns whether all of them fitted.
    #[inline]
    #[must_use]
    pub fn write(&mut self, slot: u16, mut offset: u32, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let chunk = self.chunk_mut(slot, offset);
            if chunk.is_empty() {
                return false;
            }
            let n = chunk.len().min(bytes.len());
            chunk[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            offset += n as u32;
        }
        true
    }

    /// A copy for a device that cannot use the data of `slot` where it is: with what is to be written, or room for what is read, which
    /// goes back with [`Tracker::write`].
    ///
    /// # Errors
    /// When there is no memory, or the processor cannot access the data: that of a dma-buf.
    #[cold]
    pub fn copy(&self, slot: u16, pool: &DmaPool) -> Result<DmaBuf> {
        if self.chunk(slot, 0).is_empty() {
            return Err(Error::unsupported("copying data that the processor cannot access"));
        }
        let mut copy = pool.alloc(self.data_len(slot) as usize)?;
        if self.direction(slot) == DataDirection::HostToController {
            let mut done = 0;
            while done < copy.len() {
                let chunk = self.chunk(slot, done as u32);
                if chunk.is_empty() {
                    return Err(Error::api_misuse("the command's buffers are shorter than its data"));
                }
                copy[done..done + chunk.len()].copy_from_slice(chunk);
                done += chunk.len();
            }
        }
        Ok(copy)
    }

    /// Whether the data of `slot` is memory of a dma-buf that is open to the processor: where the device does not take it, it can be
    /// copied.
    #[cold]
    #[must_use]
    pub fn is_open_dma_buf(&self, slot: u16) -> bool {
        let segment = self.segment(slot, 0);
        segment.is_some_and(|segment| segment.region.dma_buf().is_some()) && !self.chunk(slot, 0).is_empty()
    }

    /// Reports the completion of the command in `slot`, which must come from [`Tracker::lookup`]: from now on the
    /// transport does not touch its data again. Ignored when the slot is not in flight.
    #[inline]
    pub fn complete(&mut self, slot: u16, cqe: Cqe) {
        let entry = &mut self.slots[usize::from(slot)];
        if entry.state == SlotState::InFlight {
            entry.state = SlotState::Completed;
            self.completed.push((slot, cqe));
        }
    }

    /// Completions reported and not yet taken by the queue pair; the transport stops at its budget.
    #[inline]
    #[must_use]
    pub fn completed(&self) -> usize {
        self.completed.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_copy_has_what_is_written_and_there_is_none_of_what_the_processor_cannot_access() {
        let (pool, mut tracker) = (DmaPool::new(), Tracker::new(4, 4, true));
        let pieces = [&[1u8; 700][..], &[2; 324]].map(|bytes| pool.copy_from(bytes).unwrap());
        tracker.put_buf(0, Vec::from(pieces).into());
        let (slot, _) = tracker.begin(0, 200, 600, DataDirection::HostToController).unwrap();
        let copy = tracker.copy(slot, &pool).unwrap();
        assert_eq!(*copy, [&[1; 500][..], &[2; 100]].concat());
        for (op, direction) in [(1, DataDirection::HostToController), (2, DataDirection::ControllerToHost)] {
            tracker.put_buf(op, crate::dma::DeviceBuf::simulated(4096).unwrap().0.into());
            let (slot, _) = tracker.begin(op, 0, 4096, direction).unwrap();
            assert!(!tracker.is_open_dma_buf(slot));
            // Where it is read into there is nothing to copy now, but there would be later.
            let error = tracker.copy(slot, &pool).unwrap_err();
            assert!(matches!(error.kind(), crate::ErrorKind::Unsupported(_)), "{error}");
        }
    }

    fn finish(tracker: &mut Tracker) -> Vec<u32> {
        let ops = (0..tracker.completed()).map(|i| tracker.take_completed(i).unwrap().0).collect();
        tracker.clear_completed();
        ops
    }

    #[test]
    fn a_completed_identifier_is_not_found_again() {
        let mut t = Tracker::new(4, 4, true);
        let (slot, cid) = t.begin(2, 0, 0, DataDirection::None).unwrap();
        assert_eq!(t.lookup(cid), Some(slot));
        t.complete(slot, Cqe::default());
        assert_eq!(t.lookup(cid), None, "completed twice in one batch");
        t.complete(slot, Cqe::default());
        assert_eq!(finish(&mut t), [2]);
        assert_eq!(t.lookup(cid), None);
        let (_, again) = t.begin(3, 0, 0, DataDirection::None).unwrap();
        assert_ne!(again, cid, "the slot's next command has another generation");
    }

    #[test]
    fn ffff_is_never_issued_in_any_layout() {
        for slots in [1u16, 2, 3, 255, 256, 4096, MAX_SLOTS] {
            let mut t = Tracker::new(slots, 1, true);
            for _ in 0..70_000u32 / u32::from(slots) + 3 {
                let mut held = Vec::new();
                while let Some((slot, cid)) = t.begin(0, 0, 0, DataDirection::None) {
                    assert_ne!(cid, u16::MAX);
                    held.push(slot);
                }
                held.into_iter().for_each(|slot| t.release(slot));
            }
        }
    }

    #[test]
    fn data_is_reached_only_within_the_slots_range() {
        let pool = DmaPool::new();
        let mut t = Tracker::new(2, 1, true);
        t.put_buf(0, vec![pool.alloc(10).unwrap(), pool.alloc(10).unwrap()].into());
        let (slot, _) = t.begin(0, 5, 10, DataDirection::ControllerToHost).unwrap();
        assert_eq!(t.chunk_mut(slot, 0).len(), 5);
        assert_eq!(t.chunk_mut(slot, 5).len(), 5);
        assert!(t.chunk_mut(slot, 10).is_empty());
        assert!(t.chunk_mut(slot, u32::MAX).is_empty());
        assert!(t.write(slot, 0, b"0123456789"));
        assert!(!t.write(slot, 1, b"0123456789"));
        t.complete(slot, Cqe::default());
        assert!(t.chunk_mut(slot, 0).is_empty(), "nothing may be written after completion");
        finish(&mut t);
        let all: Vec<u8> = t.take_buf(0).bufs().iter().flat_map(|b| b.to_vec()).collect();
        assert_eq!(&all[..5], &[0; 5]);
        assert_eq!(&all[15..], &[0; 5]);
    }

    #[test]
    fn metadata_is_reached_only_within_the_slots_range() {
        let pool = DmaPool::new();
        let mut t = Tracker::new(2, 2, true);
        t.put_buf(0, IoBuf::with_metadata(pool.alloc(64).unwrap(), pool.alloc(24).unwrap()));
        let (plain, _) = t.begin(0, 0, 8, DataDirection::ControllerToHost).unwrap();
        assert!(t.metadata_segment(plain).is_none() && t.metadata_mut(plain).is_empty());
        let (slot, _) = t.begin(0, 8, 8, DataDirection::ControllerToHost).unwrap();
        t.set_metadata(slot, 8, 8);
        let start = t.buf(0).metadata().unwrap().extent().unwrap().offset();
        assert_eq!(t.metadata_segment(slot).map(|s| (s.offset, s.len)), Some((start + 8, 8)));
        t.metadata_mut(slot).fill(7);
        t.complete(slot, Cqe::default());
        assert!(t.metadata_mut(slot).is_empty(), "nothing may be written after completion");
        t.complete(plain, Cqe::default());
        finish(&mut t);
        let (_, metadata) = t.take_buf(0).into_parts();
        assert_eq!(metadata.unwrap()[..], [[0; 8], [7; 8], [0; 8]].concat());
        // The next command of the slot has none of it; a range beyond the buffer is no metadata.
        t.put_buf(1, IoBuf::with_metadata(pool.alloc(64).unwrap(), pool.alloc(24).unwrap()));
        let (slot, _) = t.begin(1, 0, 8, DataDirection::ControllerToHost).unwrap();
        assert_eq!((t.metadata_len(slot), t.metadata(slot).len()), (0, 0));
        t.set_metadata(slot, 20, 8);
        assert!(t.metadata(slot).is_empty() && t.metadata_segment(slot).is_some_and(|s| s.len == 4));
        t.set_metadata(slot, 24, 8);
        assert!(t.metadata_segment(slot).is_none());
    }

    proptest! {
        #[test]
        fn identifiers_of_commands_in_flight_are_unique(steps in proptest::collection::vec(any::<(bool, u16)>(), 1..400)) {
            let mut t = Tracker::new(5, 8, true);
            let mut live: Vec<(u16, u16)> = Vec::new();
            for (start, pick) in steps {
                if start {
                    match t.begin(u32::from(pick) % 8, 0, 0, DataDirection::None) {
                        Some((slot, cid)) => {
                            prop_assert!(!live.iter().any(|&(s, c)| s == slot || c == cid));
                            live.push((slot, cid));
                        }
                        None => prop_assert_eq!(live.len(), 5),
                    }
                } else if !live.is_empty() {
                    let (slot, cid) = live.swap_remove(usize::from(pick) % live.len());
                    prop_assert_eq!(t.lookup(cid), Some(slot));
                    t.complete(slot, Cqe::default());
                    finish(&mut t);
                }
                prop_assert_eq!(t.in_flight(), live.len());
            }
        }
    }
}
