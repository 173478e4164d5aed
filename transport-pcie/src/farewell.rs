//! Deleting the I/O queues of a controller that works before it is disabled.
//!
//! A host may clear CC.EN at any time (NVMe Base 2.1 §3.7.2), but controllers are used to hosts that end their queues first, and
//! some do not survive it while they fetch commands: QEMU's (7.2 to 10.0) lets a queue that was rung a moment ago take
//! further commands while it waits for the last ones, and then frees it under them. A submission queue whose deletion is completed has no
//! command left (§5.2.4), so that nothing is in flight when the controller is disabled.
//! The completion queues follow: SPDK's vfio-user target (26.09) does not forget one whose submission queue is gone. Linux does the same.
//!
//! Whoever owns a queue may be asleep, and the admin queue is given up at this point: so it is done here, with the admin queue's
//! rings alone. A controller that does not answer in time is disabled all the same.

use nvmf_core::spec::{AdminOpcode, Sqe};
use zerocopy::little_endian::U16;

/// What the admin queue knows of it.
#[derive(Debug, Default)]
pub(crate) struct Farewell {
    stage: Stage,
    /// Identifiers of commands without a completion, and of which queue they are the deletion.
    outstanding: Vec<(u16, Option<u16>)>,
    /// Queues whose deletion was not sent: submission queues, and after them completion queues.
    waiting: Vec<u16>,
    /// Completion queues to be deleted after the submission queues.
    completion_queues: Vec<u16>,
    /// Completion queues are being deleted.
    second_round: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Stage {
    #[default]
    NotYet,
    Deleting,
    Over,
}

impl Farewell {
    /// A command was submitted.
    pub(crate) fn submitted(&mut self, cid: u16) {
        self.outstanding.push((cid, None));
    }

    /// A command has completed, a deletion however it ended: the controller does not know the queue, or cannot be helped.
    pub(crate) fn completed(&mut self, cid: u16) {
        self.outstanding.retain(|&(outstanding, _)| outstanding != cid);
        let deleting = self.outstanding.iter().any(|(_, queue)| queue.is_some());
        if self.stage == Stage::Deleting && self.waiting.is_empty() && !deleting {
            self.waiting = std::mem::take(&mut self.completion_queues);
            self.second_round = true;
            if self.waiting.is_empty() {
                self.stage = Stage::Over;
            }
        }
    }

    /// Whether nothing was done yet.
    pub(crate) fn begins(&self) -> bool {
        self.stage == Stage::NotYet
    }

    /// These queues are to be deleted; there may be none.
    pub(crate) fn begin(&mut self, queues: Vec<u16>) {
        self.stage = if queues.is_empty() { Stage::Over } else { Stage::Deleting };
        self.completion_queues.clone_from(&queues);
        self.waiting = queues;
    }

    /// Nothing more is to be done.
    pub(crate) fn end(&mut self) {
        self.stage = Stage::Over;
    }

    /// Whether there is nothing more to do.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// The next command to send, as long as no more than `room` have no completion. Identifiers are the lowest ones: there are
    /// controllers that take no others.
    pub(crate) fn next(&mut self, room: usize) -> Option<Sqe> {
        if self.outstanding.len() >= room {
            return None;
        }
        let qid = self.waiting.pop()?;
        let taken = |cid: &u16| self.outstanding.iter().any(|(outstanding, _)| outstanding == cid);
        let cid = (0..u16::MAX).find(|cid| !taken(cid))?;
        self.outstanding.push((cid, Some(qid)));
        let opcode = if self.second_round { AdminOpcode::DELETE_IO_CQ } else { AdminOpcode::DELETE_IO_SQ };
        let mut sqe = Sqe::admin(opcode, 0).with_cdw10(u32::from(qid));
        sqe.cid = U16::new(cid);
        Some(sqe)
    }
}

#[cfg(test)]
mod tests;
