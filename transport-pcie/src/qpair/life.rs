//! How a queue comes to be and goes: the admin commands that create and delete it, and what the admin queue does before the controller
//! is stopped.

use std::time::Instant;

use nvmf_core::Result;
use nvmf_core::spec::data_ptr::DataPointer;
use nvmf_core::spec::{AdminOpcode, Sqe, Status};

use super::PcieQpair;
use crate::farewell::Farewell;

/// Whether the controller knows one of an I/O queue's two rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exists {
    No,
    Maybe,
    Yes,
}

/// An admin command that was handed out and whose end is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    CreateCq,
    CreateSq,
    DeleteSq,
    DeleteCq,
}

/// What the controller knows of the queue, and what is being done about it.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) cq: Exists,
    pub(super) sq: Exists,
    pub(super) sent: Option<Sent>,
    pub(super) closing: bool,
    /// The controller cannot reach the rings or the data of any command any more, or never could.
    pub(super) quiesced: bool,
    /// A queue could not be deleted although the controller works otherwise.
    pub(super) stuck: bool,
}

impl Life {
    /// Of a queue the controller has never heard of.
    pub(super) fn new() -> Self {
        Self { cq: Exists::No, sq: Exists::No, sent: None, closing: false, quiesced: false, stuck: false }
    }
}

impl PcieQpair {
    /// Base 2.1 §5.2.1 (Create I/O Completion Queue), §5.2.2 (Create I/O Submission Queue), §5.2.3, §5.2.4.
    pub(super) fn command(&self, what: Sent) -> Sqe {
        let (sq, cq) = self.ring_addresses();
        let size_and_id = u32::from(self.entries - 1) << 16 | u32::from(self.qid);
        let prp = |address| DataPointer::prp(address, 0);
        match what {
            Sent::CreateCq => {
                // PC: physically contiguous; IEN and IV: interrupt.
                let interrupt = self.vector.map_or(0, |vector| 1 << 1 | u32::from(vector) << 16);
                let mut sqe = Sqe::admin(AdminOpcode::CREATE_IO_CQ, 0)
                    .with_cdw10(size_and_id)
                    .with_cdw11(1 | interrupt);
                sqe.dptr = prp(cq);
                sqe
            }
            Sent::CreateSq => {
                // PC, QPRIO, and the completion queue of the same identifier.
                let mut sqe = Sqe::admin(AdminOpcode::CREATE_IO_SQ, 0)
                    .with_cdw10(size_and_id)
                    .with_cdw11(1 | u32::from(self.priority & 3) << 1 | u32::from(self.qid) << 16);
                sqe.dptr = prp(sq);
                sqe
            }
            Sent::DeleteSq => Sqe::admin(AdminOpcode::DELETE_IO_SQ, 0).with_cdw10(u32::from(self.qid)),
            Sent::DeleteCq => Sqe::admin(AdminOpcode::DELETE_IO_CQ, 0).with_cdw10(u32::from(self.qid)),
        }
    }

    /// Takes notice of the end of the admin command that was handed out. Returns its name and status if it failed.
    pub(super) fn ended(&mut self, status: Status) -> Option<(&'static str, Status)> {
        let created = if status.is_success() { Exists::Yes } else { Exists::No };
        // A queue the controller does not know is as good as deleted.
        let gone = status.is_success() || status.is(Status::INVALID_QUEUE_IDENTIFIER);
        let name = match self.life.sent.take()? {
            Sent::CreateCq => {
                self.life.cq = created;
                self.shared.note_queue(self.controller_life, self.qid, created == Exists::Yes);
                "Create I/O Completion Queue"
            }
            Sent::CreateSq => {
                self.life.sq = created;
                "Create I/O Submission Queue"
            }
            Sent::DeleteSq => {
                self.life.sq = if gone { Exists::No } else { self.life.sq };
                self.life.stuck |= !gone;
                "Delete I/O Submission Queue"
            }
            Sent::DeleteCq => {
                if gone {
                    self.life.cq = Exists::No;
                    self.shared.note_queue(self.controller_life, self.qid, false);
                }
                self.life.stuck |= !gone;
                "Delete I/O Completion Queue"
            }
        };
        (!status.is_success()).then_some((name, status))
    }

    /// Deletes the I/O queues of a controller that works before it is disabled; see [`Farewell`]. Only the admin queue
    /// does, and it goes on with it in every call.
    pub(super) fn say_farewell(&mut self, now: Instant) {
        let Some(mut farewell) = self.farewell.take() else { return };
        if farewell.begins() {
            farewell.begin(self.shared.begin_deleting(self.controller_life, now));
        }
        if !farewell.is_over() {
            match self.delete_queues(&mut farewell) {
                Ok(()) if !farewell.is_over() => {}
                result => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "while deleting the I/O queues of a controller that is stopped");
                        farewell.end();
                    }
                    self.shared.queues_deleted(self.controller_life, now);
                }
            }
        }
        self.farewell = Some(farewell);
    }

    fn delete_queues(&mut self, farewell: &mut Farewell) -> Result<()> {
        for _ in 0..self.entries {
            let Some(cqe) = self.next_cqe()? else { break };
            // What the other commands came to is nobody's business any more.
            farewell.completed(cqe.cid.get());
        }
        let (tail, head) = (self.sq_tail, self.cq_head);
        // Commands without a completion may not have been fetched.
        while let Some(sqe) = farewell.next(usize::from(self.entries) - 1) {
            self.put(&sqe.words(), false)?;
        }
        if self.cq_rung != head {
            self.shared.bar.doorbell(self.cq_doorbell, u32::from(head))?;
            self.cq_rung = head;
        }
        if self.sq_tail != tail {
            self.shared.bar.doorbell(self.sq_doorbell, u32::from(self.sq_tail))?;
            self.sq_rung = self.sq_tail;
        }
        Ok(())
    }
}
