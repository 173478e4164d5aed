//! Queues of several simulated queue pairs.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::{Sim, count};
use crate::provider::{ReceiveRequest, SharedQueues, WorkCompletion};

#[derive(Default)]
struct State {
    receives: VecDeque<ReceiveRequest>,
    completions: VecDeque<WorkCompletion>,
    armed: bool,
    notified: bool,
}

/// A completion queue and a receive queue of several queue pairs.
pub struct SimShared {
    sim: Sim,
    state: Mutex<State>,
    room: (usize, usize),
    bell: OwnedFd,
}

impl SimShared {
    pub(super) fn new(sim: Sim, completions: u32, receives: u32) -> io::Result<Self> {
        let limits = sim.0.limits;
        if completions > limits.max_completions || receives > limits.max_shared_receives {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        count(&sim.0.counters.shared, 1);
        Ok(Self { sim, state: Mutex::default(), room: (completions as usize, receives as usize), bell })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable while there is a notification.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(super) fn complete(&self, completion: WorkCompletion) {
        let mut state = self.lock();
        // What does not fit is lost, as it is with a device.
        if state.completions.len() < self.room.0 {
            state.completions.push_back(completion);
        }
        if std::mem::take(&mut state.armed) {
            state.notified = true;
            // Full means that it is readable already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn take_receive(&self) -> Option<ReceiveRequest> {
        self.lock().receives.pop_front()
    }

    pub(super) fn receives(&self) -> usize {
        self.lock().receives.len()
    }
}

impl SharedQueues for SimShared {
    fn post_receive(&self, requests: &[ReceiveRequest]) -> io::Result<()> {
        let mut state = self.lock();
        if state.receives.len() + requests.len() > self.room.1 {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        state.receives.extend(requests);
        Ok(())
    }

    fn poll_completions(&self, completions: &mut [WorkCompletion]) -> io::Result<usize> {
        let mut state = self.lock();
        let count = completions.len().min(state.completions.len());
        for (to, from) in completions.iter_mut().zip(state.completions.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn request_notification(&self) -> io::Result<()> {
        count(&self.sim.0.counters.armed, 1);
        self.lock().armed = true;
        Ok(())
    }

    fn take_notifications(&self) -> bool {
        let mut state = self.lock();
        let mut bytes = [0; 8];
        // Empty is what it should be.
        let _ = rustix::io::read(&self.bell, &mut bytes);
        std::mem::take(&mut state.notified)
    }
}

impl fmt::Debug for SimShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimShared").field("room", &self.room).finish_non_exhaustive()
    }
}
