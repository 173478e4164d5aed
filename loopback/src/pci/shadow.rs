//! Shadow doorbells, the controller's side (Base 2.1 §5.2.5): reading doorbells from the host's memory, and telling there when the
//! register is to be written.

use nvmf_core::dma::{DeviceMemory, DmaFault};
use nvmf_core::spec::{Sqe, Status};

/// The two buffers a host has given, a memory page each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ShadowDoorbells {
    doorbells: u64,
    events: u64,
    /// Distance of two doorbells, bytes.
    stride: u64,
    page: u64,
}

impl ShadowDoorbells {
    /// What Doorbell Buffer Config asks for, checked: both buffers start at a memory page.
    pub(super) fn from_command(sqe: &Sqe, stride: u64, page: u64) -> Result<Self, Status> {
        let (doorbells, events) = (sqe.dptr.lo.get(), sqe.dptr.hi.get());
        let wraps = |base: u64| base.checked_add(page).is_none();
        if !doorbells.is_multiple_of(page) || !events.is_multiple_of(page) {
            return Err(Status::INVALID_PRP_OFFSET.with_dnr());
        }
        if doorbells == 0 || events == 0 || doorbells == events || wraps(doorbells) || wraps(events) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(Self { doorbells, events, stride, page })
    }

    /// Where a doorbell is in both buffers: `index` is twice the queue identifier, plus one for a completion queue. The admin
    /// queue has none there, nor have those behind the page.
    fn at(self, index: usize) -> Option<u64> {
        let at = (index as u64).checked_mul(self.stride)?;
        (index >= 2 && at.checked_add(4)? <= self.page).then_some(at)
    }

    /// Whether a doorbell is read from memory.
    pub(super) fn covers(self, index: usize) -> bool {
        self.at(index).is_some()
    }

    /// What the host wrote last; `None` when this doorbell is not in memory.
    pub(super) fn value(self, index: usize, memory: &DeviceMemory) -> Result<Option<u32>, DmaFault> {
        let Some(at) = self.at(index) else { return Ok(None) };
        memory.load_acquire_u32(self.doorbells + at).map(Some)
    }

    /// Asks to be told by the register once a doorbell goes beyond `seen`.
    pub(super) fn arm(self, index: usize, seen: u32, memory: &DeviceMemory) -> Result<(), DmaFault> {
        let Some(at) = self.at(index) else { return Ok(()) };
        memory.store_release_u32(self.events + at, seen)
    }
}
