//! Detaching: an orderly shutdown, without blocking.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Controller;
use super::attach::Runner;
use crate::error::Result;
use crate::proto::controller_init::Next;
use crate::proto::controller_shutdown::ControllerShutdown;

/// A controller being detached; see [`Controller::detach_async`].
pub struct Detach {
    controller: Controller,
    /// `None` when there is nothing to shut down.
    machine: Option<(ControllerShutdown, Runner)>,
    /// Nothing is to be done before this time.
    not_before: Option<Instant>,
}

impl Controller {
    /// Gives up one attachment. The last one shuts the controller down: CC.SHN is set, its completion awaited, the
    /// connection closed. Queue pairs should be dropped before. Waits: for the RTD3 entry latency that the controller
    /// reports, at most 120 s, or for 10 s or the admin timeout, whichever is less.
    ///
    /// # Errors
    /// When the controller does not confirm its shutdown. It is given up all the same.
    pub fn detach(self) -> Result<()> {
        let mut detach = self.detach_async();
        let mut waiter = None;
        loop {
            let seen = detach.controller.arrivals();
            if detach.poll()? {
                return Ok(());
            }
            if let Some(time) = detach.not_before {
                std::thread::sleep(time.saturating_duration_since(Instant::now()));
                continue;
            }
            detach.controller.wait_arrival(seen, &mut waiter)?;
        }
    }

    /// As [`Controller::detach`], polled.
    #[must_use = "the shutdown proceeds only while it is polled"]
    pub fn detach_async(self) -> Detach {
        let last = self
            .0
            .references
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1))
            .is_ok_and(|before| before == 1);
        let machine = (last && !self.0.options.no_shn_notification && !self.is_failed()).then(|| {
            let rtd3e = self.info().init.identify.rtd3e.get();
            let limit = self.0.options.admin_timeout.max(Duration::from_millis(1));
            (ControllerShutdown::new(rtd3e, limit, Instant::now()), Runner::Idle)
        });
        if last {
            // Losing the connection from now on is what was asked for.
            self.lock().closed = true;
        }
        Detach { controller: self, machine, not_before: None }
    }
}

impl Detach {
    /// One step; never blocks. Returns whether the controller is detached.
    ///
    /// # Errors
    /// When the controller does not confirm its shutdown. It is given up all the same.
    pub fn poll(&mut self) -> Result<bool> {
        let result = self.step(Instant::now());
        match &result {
            Ok(false) => {}
            Ok(true) | Err(_) => {
                self.machine = None;
                if self.controller.is_detached() {
                    self.controller.close();
                }
            }
        }
        result.map_err(|error| error.doing("shutting the controller down").peer(self.controller.trid()))
    }

    fn step(&mut self, now: Instant) -> Result<bool> {
        self.not_before = None;
        let Some((machine, runner)) = &mut self.machine else { return Ok(true) };
        loop {
            if !runner.poll(&self.controller, now, &mut |outcome| machine.complete(&outcome, now))? {
                return machine.next(now).map(|_| false);
            }
            match machine.next(now)? {
                Next::Do(action) => runner.begin(action, &self.controller)?,
                Next::Wait(time) => {
                    self.not_before = Some(time);
                    return Ok(false);
                }
                Next::Ready => return Ok(true),
            }
        }
    }
}
