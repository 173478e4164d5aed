//! What becomes of operations when a queue pair is given up, and its next connection.

use std::time::{Duration, Instant};

use super::{CONNECT_OP, Done, Engine, FabricsConnect, QUIESCE, State};
use crate::qpair::CommandError;
use crate::spec::{NvmOpcode, Sqe};
use crate::transport::TransportQpair;

/// What becomes of operations when the queue pair is given up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Keep {
    /// Those of which nothing was sent wait for the next connection.
    pub(crate) hold: bool,
    /// How often a read that was sent may be sent again; only with `hold`.
    pub(crate) retries: u8,
}

/// The next connection of a queue pair.
pub(crate) struct Renewal<Q> {
    pub(crate) transport: Q,
    pub(crate) slots: u16,
    pub(crate) generations: bool,
    pub(crate) connect: Option<FabricsConnect>,
    pub(crate) connect_timeout: Duration,
}

impl<Q: TransportQpair> Engine<Q> {
    /// Says what becomes of operations from now on.
    pub(crate) fn set_keep(&mut self, keep: Keep) {
        if self.keep != keep {
            self.keep = keep;
            // What was held may have to be completed.
            self.drained = false;
        }
    }

    /// Whether it is given up.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(self.state, State::Quiescing | State::Failed)
    }

    /// Whether it is given up, its transport is quiesced, and every operation that is not held was completed.
    pub(crate) fn is_drained(&self) -> bool {
        self.state == State::Failed && self.drained
    }

    /// Connects anew over another transport. What is held is sent once that is connected. Only when drained.
    pub(crate) fn renew(&mut self, renewal: Renewal<Q>, now: Instant) {
        debug_assert!(self.is_drained(), "a connection is replaced before all of its commands are completed");
        let Renewal { transport, slots, generations, connect, connect_timeout } = renewal;
        self.transport = transport;
        self.connections += 1;
        self.tracker.restart(slots, generations);
        self.state = State::Connecting;
        (self.failure, self.failed_as) = (None, CommandError::Disconnected);
        (self.drained, self.leaked, self.quiesced) = (false, false, false);
        (self.connect, self.connect_cqe) = (connect, None);
        (self.connect_deadline, self.connect_timeout) = (now + connect_timeout, connect_timeout);
        self.quiesce_deadline = now + QUIESCE;
        self.unflushed = false;
        self.late.clear();
        self.last_scan = now;
    }

    /// Completes operations that are held and of which `condition` holds, as not sent.
    pub(crate) fn drop_held(&mut self, condition: impl Fn(&Sqe) -> bool, f: &mut dyn FnMut(Done)) {
        if self.state != State::Failed {
            return;
        }
        for index in CONNECT_OP + 1..self.ops.len() as u32 {
            let op = &mut self.ops[index as usize];
            if op.active && op.issued == 0 && op.in_flight == 0 && condition(&op.command.sqe()) {
                op.result = Err(CommandError::NotSent);
                let done = self.retire(index, None);
                f(done);
            }
        }
        self.forget_finished();
    }

    /// Completes every operation that is not held with an error; only when quiesced.
    pub(crate) fn complete_all(&mut self, budget: usize, f: &mut dyn FnMut(Done)) -> usize {
        if self.state != State::Failed || self.drained {
            return 0;
        }
        let mut count = 0;
        // What completed before the failure still counts as completed.
        let _ = self.drain(&mut |done| {
            count += 1;
            f(done);
        });
        if self.tracker.in_flight() > 0 {
            let slots: Vec<u16> = self.tracker.outstanding().map(|(slot, _)| slot).collect();
            slots.into_iter().for_each(|slot| self.tracker.release(slot));
        }
        drop(self.tracker.take_buf(CONNECT_OP));
        for index in CONNECT_OP + 1..self.ops.len() as u32 {
            if !self.ops[index as usize].active || self.keeps(index) {
                continue;
            }
            if count >= budget {
                return count;
            }
            let failed_as = self.failed_as;
            let op = &mut self.ops[index as usize];
            op.in_flight = 0;
            if op.result.is_ok() {
                op.result = Err(if op.issued > 0 { failed_as } else { CommandError::NotSent });
            }
            let done = self.retire(index, None);
            f(done);
            count += 1;
        }
        self.drained = true;
        self.forget_finished();
        count
    }

    /// Whether the operation waits for the next connection: nothing of it was sent, or it is a read that may be sent again.
    fn keeps(&mut self, index: u32) -> bool {
        let Keep { hold, retries } = self.keep;
        let op = &mut self.ops[index as usize];
        if !hold || op.result.is_err() {
            return false;
        }
        if op.issued == 0 {
            return true;
        }
        // The queue is quiesced: nobody writes into the buffer any more. Leaked memory is not there to be read into.
        let again = op.retries < retries && !self.leaked && only_reads(&op.command.sqe());
        if again {
            op.retries += 1;
            (op.issued, op.all_issued, op.in_flight) = (0, false, 0);
            (op.seen, op.failed_at) = (None, usize::MAX);
            self.waiting.push_back((index, op.generation));
        }
        again
    }

    /// Takes operations that are done, and second mentions, off the list of those that wait.
    fn forget_finished(&mut self) {
        let mut listed = std::collections::BTreeSet::new();
        let ops = &self.ops;
        self.waiting.retain(|&(index, generation)| {
            let op = &ops[index as usize];
            op.active && op.generation == generation && !op.all_issued && listed.insert(index)
        });
    }
}

/// Whether executing the command a second time, whatever became of the first, is as good as executing it once: it changes nothing.
fn only_reads(sqe: &Sqe) -> bool {
    // A fused command is one half of something.
    sqe.flags & 3 == 0
        && matches!(NvmOpcode(sqe.opcode), NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY)
}
