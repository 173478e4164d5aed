//! What is done about I/O that takes too long.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::Late;
use super::{CommandError, CommandId, Completion, IoQpair};
use crate::error::Result;
use crate::transport::TransportQpair;

/// What is done about an I/O that has not completed within [`crate::ControllerOptions::io_timeout`].
///
/// In no case does the operation end, or its buffer come back, before the controller completed its commands or the queue is
/// quiesced.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum TimeoutPolicy {
    /// The queue pair is given up: what was sent on it ends with [`CommandError::TimedOut`]. A target that loses one command is
    /// not to be trusted with the next.
    #[default]
    Disconnect,
    /// The controller is asked to abort it. When it has not ended after another timeout, the queue pair is given up.
    Abort,
    /// The controller is asked to abort it. When it has not ended after another timeout, the controller is reset.
    AbortThenReset,
    /// This function decides, every time the timeout has passed. It is called by the thread that processes completions, and must
    /// not block.
    Callback(Arc<dyn Fn(&TimedOut) -> TimeoutAction + Send + Sync>),
}

impl fmt::Debug for TimeoutPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnect => "Disconnect",
            Self::Abort => "Abort",
            Self::AbortThenReset => "AbortThenReset",
            Self::Callback(_) => "Callback",
        })
    }
}

/// An I/O that takes too long.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TimedOut {
    /// Queue it is on.
    pub qid: u16,
    /// The operation.
    pub id: CommandId,
    /// The value given at submission.
    pub user_data: u64,
    /// Its opcode.
    pub opcode: u8,
    /// Its namespace.
    pub nsid: u32,
    /// How often the timeout has passed by now, without any of its commands completing.
    pub times: u32,
    /// The timeout.
    pub timeout: Duration,
}

/// What to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TimeoutAction {
    /// Nothing; it is told again after another timeout.
    Wait,
    /// Ask the controller to abort it.
    Abort,
    /// Give the queue pair up.
    Disconnect,
    /// Reset the controller.
    Reset,
}

impl TimeoutPolicy {
    fn action(&self, late: &TimedOut) -> TimeoutAction {
        match self {
            Self::Abort | Self::AbortThenReset if late.times == 1 => TimeoutAction::Abort,
            Self::Disconnect | Self::Abort => TimeoutAction::Disconnect,
            Self::AbortThenReset => TimeoutAction::Reset,
            Self::Callback(decide) => decide(late),
        }
    }
}

impl<Q: TransportQpair> IoQpair<Q> {
    /// Asks the controller to abort the oldest operation submitted with this `user_data`; see [`IoQpair::abort`].
    ///
    /// # Errors
    /// As [`IoQpair::abort`].
    pub fn abort_by_user_data(&mut self, user_data: u64, f: impl FnMut(Completion)) -> Result<bool> {
        match self.engine.find(user_data) {
            Some(id) => self.abort(id, f),
            None => Ok(false),
        }
    }

    /// Does something about operations that take too long.
    pub(super) fn handle_late(&mut self) {
        for late in self.engine.take_late() {
            let told = TimedOut {
                qid: self.qid,
                id: late.id,
                user_data: late.user_data,
                opcode: late.sqe.opcode,
                nsid: late.sqe.nsid.get(),
                times: late.times,
                timeout: late.timeout,
            };
            let action = self.controller.options().timeout_policy.action(&told);
            tracing::warn!(
                qid = self.qid,
                ?action,
                opcode = told.opcode,
                times = told.times,
                "an I/O takes too long"
            );
            match action {
                TimeoutAction::Wait => {}
                TimeoutAction::Abort => {
                    for cid in self.engine.abort_targets(late.id) {
                        if let Err(error) = self.controller.abort(self.follow.association, self.qid, cid) {
                            tracing::debug!(%error, "a command that takes too long cannot be aborted");
                        }
                    }
                }
                TimeoutAction::Disconnect => return self.give_up_late(&late),
                TimeoutAction::Reset => {
                    self.give_up_late(&late);
                    return self.controller.request_reset(self.follow.association);
                }
            }
        }
    }

    fn give_up_late(&mut self, late: &Late) {
        self.engine.fail(late.error(), CommandError::TimedOut, Instant::now());
    }
}
