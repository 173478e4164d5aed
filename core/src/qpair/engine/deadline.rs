//! Operations that take too long.

use std::time::{Duration, Instant};

use super::{CONNECT_OP, DEADLINE_SCAN, Engine, Op};
use crate::error::Error;
use crate::qpair::{CommandError, CommandId};
use crate::spec::Sqe;
use crate::transport::TransportQpair;

/// An operation whose deadline passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    pub(crate) id: CommandId,
    pub(crate) user_data: u64,
    pub(crate) sqe: Sqe,
    pub(crate) timeout: Duration,
    /// How often by now.
    pub(crate) times: u32,
}

impl Late {
    /// What to give a queue pair up with because of it.
    pub(crate) fn error(&self) -> Error {
        Error::timed_out(
            format!(
                "waiting for the completion of a command (opcode {:#04x}, nsid {:#x})",
                self.sqe.opcode, self.sqe.nsid
            ),
            self.timeout,
        )
    }
}

impl<Q: TransportQpair> Engine<Q> {
    /// Reports deadlines that pass with [`Engine::take_late`] instead of giving the queue pair up.
    pub(crate) fn report_late(&mut self) {
        self.report_late = true;
    }

    /// Whether [`Engine::take_late`] has something.
    pub(crate) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Operations whose deadline passed since the last call.
    pub(crate) fn take_late(&mut self) -> Vec<Late> {
        std::mem::take(&mut self.late)
    }

    /// The oldest operation submitted with this value that has not completed.
    pub(crate) fn find(&self, user_data: u64) -> Option<CommandId> {
        let ops = (0u32..).zip(&self.ops).skip(CONNECT_OP as usize + 1);
        let live = |&(_, op): &(u32, &Op)| op.active && op.user_data == user_data;
        ops.filter(live).map(|(index, op)| CommandId { op: index, generation: op.generation }).next()
    }

    pub(super) fn check_deadlines(&mut self, now: Instant) {
        if now.duration_since(self.last_scan) < DEADLINE_SCAN {
            return;
        }
        self.last_scan = now;
        for (index, op) in (0u32..).zip(&mut self.ops).filter(|(_, op)| op.active && op.in_flight > 0) {
            let Some(timeout) = op.timeout.get() else { continue };
            // The clock is not read per command: time counts from the first scan that sees the operation.
            let seen = *op.seen.get_or_insert(now);
            if now.duration_since(seen) < timeout {
                continue;
            }
            op.seen = Some(now);
            op.late = op.late.saturating_add(1);
            let id = CommandId { op: index, generation: op.generation };
            self.late.push(Late {
                id,
                user_data: op.user_data,
                sqe: op.command.sqe(),
                timeout,
                times: op.late,
            });
            if !self.report_late {
                break;
            }
        }
        if !self.report_late
            && let Some(late) = self.late.pop()
        {
            self.fail(late.error(), CommandError::TimedOut, now);
        }
    }
}
