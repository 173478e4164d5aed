//! Shadow doorbells: doorbells in memory, and the controller's word on when it wants to be rung. NVMe Base 2.1 §5.2.5 (Doorbell
//! Buffer Config).
//!
//! ```text
//!   host        writes its tail or head into the shadow doorbell, then reads EventIdx, then perhaps rings the register
//!   controller  writes EventIdx before it goes to sleep, then reads the shadow doorbell once more
//! ```
//!
//! With a full barrier between write and read on both sides, one of the two sees what the other wrote.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvmf_core::dma::{SharedMemory, device_write_barrier};
use nvmf_core::spec::data_ptr::DataPointer;
use nvmf_core::spec::registers::{Cap, DOORBELL_BASE};
use nvmf_core::spec::{AdminOpcode, Sqe};
use nvmf_core::{Error, Result};

use crate::shared::Shared;

/// Longest buffer for doorbells beyond the first memory page, bytes.
const MAX_BUFFER: u64 = 256 * 1024;

/// Both buffers of one controller. The controller reads the one and writes the other until it is disabled.
pub(crate) struct ShadowDoorbells {
    memory: SharedMemory,
    /// Where the two buffers start in `memory`, bytes.
    doorbells: usize,
    events: usize,
    /// Bus addresses of the two.
    addresses: [u64; 2],
    cap: Cap,
    /// The memory page: what lies in the first is taken by every controller.
    page: u64,
    /// Bytes of each buffer.
    len: u64,
}

/// Shadow doorbells on their way to another process.
#[derive(Debug)]
pub(crate) struct LentShadow {
    pub(crate) file: OwnedFd,
    /// Where the two buffers start, bytes.
    pub(crate) doorbells: u64,
    pub(crate) events: u64,
    /// Bytes of each.
    pub(crate) len: u64,
}

impl ShadowDoorbells {
    /// Buffers for queues up to `max_qid`.
    pub(crate) fn new(shared: &Shared, max_qid: u16) -> Result<Self> {
        let (cap, page) = (shared.cap, shared.page);
        // The specification has one page, and controllers that have no more queues than its doorbells. Some read on behind it.
        let wanted = cap.cq_head_doorbell(max_qid) + 4 - DOORBELL_BASE;
        let len = wanted.clamp(page, MAX_BUFFER.max(page)).next_multiple_of(page);
        let (memory, iova, start) = shared.aligned(2 * len as usize)?;
        let addresses = [iova, iova + len];
        Ok(Self { memory, doorbells: start, events: start + len as usize, addresses, cap, page, len })
    }

    /// What another process needs to use them: the memory, and where both buffers start in it and how long each is.
    pub(crate) fn lend(&self) -> std::io::Result<Option<LentShadow>> {
        let Some(file) = self.memory.file() else { return Ok(None) };
        let file = file.try_clone_to_owned()?;
        Ok(Some(LentShadow {
            file,
            doorbells: self.doorbells as u64,
            events: self.events as u64,
            len: self.len,
        }))
    }

    /// Those of the primary, in a secondary.
    pub(crate) fn lent(shadow: LentShadow, cap: Cap, page: u64) -> Result<Self> {
        let LentShadow { file, doorbells, events, len } = shadow;
        let memory = SharedMemory::shared_by(file, 4 * MAX_BUFFER as usize)
            .map_err(|error| Error::from(error).doing("mapping the primary's shadow doorbells"))?;
        let inside = |at: u64| at.is_multiple_of(4) && at.saturating_add(len) <= memory.len() as u64;
        if !inside(doorbells) || !inside(events) {
            return Err(Error::peer_misbehaved("the primary's shadow doorbells lie outside of their memory"));
        }
        let (doorbells, events) = (doorbells as usize, events as usize);
        Ok(Self { memory, doorbells, events, addresses: [0; 2], cap, page, len })
    }

    /// Doorbell Buffer Config: PRP entry 1 is the shadow doorbell buffer, PRP entry 2 the EventIdx buffer.
    pub(crate) fn command(&self) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0);
        sqe.dptr = DataPointer::prp(self.addresses[0], self.addresses[1]);
        sqe
    }

    /// The doorbells of a queue pair, as new. `None` when the buffers have none for it.
    pub(crate) fn queue(self: &Arc<Self>, qid: u16) -> Option<QueueDoorbells> {
        let sq = self.cap.sq_tail_doorbell(qid) - DOORBELL_BASE;
        let cq = self.cap.cq_head_doorbell(qid) - DOORBELL_BASE;
        if cq + 4 > self.len {
            return None;
        }
        let covered = cq + 4 <= self.page;
        let queue = QueueDoorbells { buffers: Arc::clone(self), sq: sq as usize, cq: cq as usize, covered };
        queue.reset();
        Some(queue)
    }

    /// Publishes a doorbell's new value; `at` is where it is in both buffers. Whether the register has to be written as well.
    fn publish(&self, at: usize, old: u16, new: u16) -> bool {
        // What the value announces comes before it.
        device_write_barrier();
        self.memory.write_u32(self.doorbells + at, u32::from(new));
        // And before the look at what the controller waits for.
        device_write_barrier();
        must_ring(self.memory.read_u32(self.events + at) as u16, old, new)
    }
}

/// Whether a doorbell that goes from `old` to `new` passes the value that the controller waits for: it asks to be told once the value
/// is beyond `event`. Wraps as 16-bit numbers do.
fn must_ring(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The shadow doorbells of one queue pair.
pub(crate) struct QueueDoorbells {
    buffers: Arc<ShadowDoorbells>,
    sq: usize,
    cq: usize,
    /// They lie where every controller looks.
    covered: bool,
}

impl QueueDoorbells {
    /// A queue that is created starts at zero.
    pub(crate) fn reset(&self) {
        for at in [self.sq, self.cq] {
            self.buffers.memory.write_u32(self.buffers.doorbells + at, 0);
            self.buffers.memory.write_u32(self.buffers.events + at, 0);
        }
    }

    /// Publishes the submission queue's tail. Whether the doorbell register has to be written.
    pub(crate) fn tail(&self, old: u16, new: u16) -> bool {
        self.buffers.publish(self.sq, old, new) || !self.covered
    }

    /// Publishes the completion queue's head. Whether the doorbell register has to be written.
    pub(crate) fn head(&self, old: u16, new: u16) -> bool {
        self.buffers.publish(self.cq, old, new) || !self.covered
    }
}

/// The error of buffers that cannot be had; doorbells then go to the registers.
pub(crate) fn unavailable(error: &Error) {
    tracing::warn!(%error, "there is no memory for shadow doorbells; they are not used");
}

#[cfg(test)]
mod tests;
