//! A controller's life after it was attached: reset, connecting again, giving up.
//!
//! What [`crate::proto::recovery`] decides is done here, in small steps, by whoever processes the admin queue: the background
//! thread, or the program. Nothing here blocks but what says so.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::admin::{Admin, Notices};
use super::attach::{Bringup, Progress};
use super::events::{Event, Refresh};
use super::{Controller, Phase};
use crate::error::{Error, Result};
use crate::proto::controller_init::InitResult;
use crate::proto::recovery::RecoveryStep;
use crate::spec::fabrics::{self, PropertySize};
use crate::spec::registers::{NSSR_RESET, PropertyOffset};
use crate::transport_id::TransportId;

/// How a controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ControllerState {
    /// It can be used.
    Ready,
    /// The program disconnected it and has to connect it again.
    Disconnected,
    /// It was lost; it is being connected again, or will be.
    Reconnecting,
    /// It is lost for good, unless the program resets it.
    Failed,
}

/// What is being done about a controller.
#[derive(Default)]
pub(super) struct Work {
    attempt: Option<Bringup>,
    /// Which attempt that is.
    number: u64,
    /// When the attempt can go on, unless something arrives before.
    wake: Option<Instant>,
    /// Identifying again what changed.
    pub(super) refresh: Refresh,
}

/// How an attempt ended that did not succeed.
struct Failure {
    error: Error,
    /// No other attempt will do better.
    permanent: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, permanent: false }
    }
}

impl Controller {
    /// How it is.
    #[must_use]
    pub fn state(&self) -> ControllerState {
        match self.link().phase {
            Phase::Ready => ControllerState::Ready,
            Phase::Lost => ControllerState::Failed,
            Phase::Down | Phase::DownFast if self.lock().recovery.is_disconnected() => {
                ControllerState::Disconnected
            }
            Phase::Down | Phase::DownFast => ControllerState::Reconnecting,
        }
    }

    // --- what programs ask for -------------------------------------------------------------------------------------------

    /// Resets the controller: disconnects it, connects and initialises it again, identifies its namespaces again. Waits, at most
    /// [`crate::ControllerOptions::attach_timeout`] and the time it takes to stop it. A controller that is lost is brought back
    /// the same way. While it is being connected already, that is waited for.
    ///
    /// Queue pairs lose their connection: what was sent and not completed ends with [`crate::CommandError::Disconnected`], and
    /// they connect again as [`crate::IoQpairOptions::auto_reconnect`] says.
    ///
    /// # Errors
    /// When it cannot be connected, turns out to be another controller, or was detached. It is then failed, or connecting goes on
    /// as [`crate::ControllerOptions::reconnect_delay`] says.
    pub fn reset(&self) -> Result<()> {
        if !self.lock().recovery.is_attempting() {
            self.disconnect()?;
            self.reconnect_async()?;
        }
        self.finish_reset()
    }

    fn finish_reset(&self) -> Result<()> {
        let mut waiter = None;
        loop {
            let seen = self.arrivals();
            if self.reconnect_poll_async()? {
                return Ok(());
            }
            let wake = self.next_work(Instant::now());
            match wake.map(|time| time.saturating_duration_since(Instant::now())) {
                Some(pause) if !self.in_background() => std::thread::sleep(pause.min(super::NAP)),
                _ => self.wait_arrival(seen, &mut waiter)?,
            }
        }
    }

    /// Resets the whole NVM subsystem (NVMe Base 2.1 §3.7.1), and with it every controller of it, whoever uses them; then connects
    /// this one as [`Controller::reset`] does. Waits.
    ///
    /// # Errors
    /// When the controller cannot do that (CAP.NSSRS), and as [`Controller::reset`].
    pub fn reset_subsystem(&self) -> Result<()> {
        let context = |error: Error| error.doing("resetting the NVM subsystem").peer(self.trid());
        if !self.cap().nssrs() {
            return Err(context(Error::unsupported("the controller has no NVM subsystem reset (CAP.NSSRS)")));
        }
        if !self.is_ready() {
            let reason = self.failure().unwrap_or_else(|| Error::disconnected("it is not connected"));
            return Err(context(reason));
        }
        let offset = PropertyOffset::NSSR;
        match self.with_registers(|registers| registers.write32(offset.0, NSSR_RESET)) {
            Some(result) => result.map_err(context)?,
            None => {
                let set = fabrics::property_set(offset.0, PropertySize::Dword, u64::from(NSSR_RESET));
                match self.admin(set).name("Property Set (NSSR)").wait() {
                    Err(error) if error.status().is_some() => return Err(context(error)),
                    // The reset may end the connection before the answer.
                    Ok(_) | Err(_) => {}
                }
            }
        }
        self.reset().map_err(|error| error.doing("connecting after an NVM subsystem reset"))
    }

    /// Disconnects the controller without shutting it down, the first of three steps that make up a reset. Does not block:
    /// [`Controller::reconnect_poll_async`] waits for its end. Nothing happens on its own before
    /// [`Controller::reconnect_async`]; I/O is held as for a lost controller.
    ///
    /// # Errors
    /// When it was detached, or is being connected.
    pub fn disconnect(&self) -> Result<()> {
        let now = Instant::now();
        let mut notices = Notices::default();
        let mut admin = self.lock();
        self.check_attached(&admin)?;
        if admin.recovery.is_attempting() {
            return Err(Error::api_misuse("the controller is being connected").peer(self.trid()));
        }
        let error = Error::disconnected("the controller is being reset");
        // First, so that what fails now is no loss.
        admin.recovery.disconnect(now);
        admin.quit(&error, now, &mut notices);
        admin.loss = Some(error);
        admin.publish(now);
        drop(admin);
        self.deliver(notices);
        Ok(())
    }

    /// Starts to connect a controller that was disconnected or lost. Does not block; [`Controller::reconnect_poll_async`] or
    /// [`Controller::process_admin_completions`] drive it, or the background thread.
    ///
    /// # Errors
    /// When it is connected, or was detached.
    pub fn reconnect_async(&self) -> Result<()> {
        let mut admin = self.lock();
        self.check_attached(&admin)?;
        if admin.recovery.is_connected() {
            return Err(
                Error::api_misuse("the controller is connected; disconnect it first").peer(self.trid())
            );
        }
        if !admin.recovery.is_attempting() {
            admin.begin_attempt(true);
            admin.publish(Instant::now());
        }
        drop(admin);
        self.0.thread.wake();
        Ok(())
    }

    /// Drives connecting one step further. Never blocks. Returns whether the controller is ready.
    ///
    /// # Errors
    /// When it could not be connected. It is then failed, or connecting goes on as
    /// [`crate::ControllerOptions::reconnect_delay`] says.
    pub fn reconnect_poll_async(&self) -> Result<bool> {
        self.pump();
        let admin = self.lock();
        if admin.recovery.is_connected() || admin.recovery.is_attempting() {
            return Ok(admin.recovery.is_connected());
        }
        let error = admin.loss.clone().unwrap_or_else(|| Error::disconnected("it is not connected"));
        Err(error.doing("connecting the controller again").peer(self.trid()))
    }

    /// Gives another address of the same subsystem, for the next attempt to connect.
    ///
    /// # Errors
    /// When the controller is connected or being connected, the transport type or the subsystem is another one, or the transport
    /// has no other addresses for a controller (PCIe).
    pub fn set_trid(&self, trid: &TransportId) -> Result<()> {
        let admin = self.lock();
        let current = self.trid();
        let misuse =
            |why: &str| Error::api_misuse(format!("the controller's address cannot become {trid}: {why}"));
        if admin.recovery.is_connected() || admin.recovery.is_attempting() {
            return Err(misuse("it is connected, or being connected; disconnect it first").peer(current));
        }
        if trid.trtype() != current.trtype() {
            return Err(misuse("that is another transport").peer(current));
        }
        if !admin.transport.capabilities().fabrics_io {
            return Err(misuse("it is a local device").peer(current));
        }
        if trid.subnqn() != current.subnqn() {
            return Err(misuse("that is another subsystem").peer(current));
        }
        // An address the transport cannot use is refused now rather than in the next attempt.
        self.0.transport.ctrlr_construct(trid, &self.0.options)?;
        self.0.addresses.set(trid);
        Ok(())
    }

    /// Gives the controller up at once: every outstanding and later command fails, and it is not connected again on its own. No
    /// orderly shutdown.
    pub fn fail(&self) {
        self.fail_because("the controller was given up by this program");
    }

    /// The same because it has left its bus.
    pub(crate) fn removed(&self) {
        self.fail_because("the controller was removed from its bus");
    }

    fn fail_because(&self, why: &'static str) {
        let now = Instant::now();
        let mut notices = Notices::default();
        let mut admin = self.lock();
        let error = Error::disconnected(why);
        if !admin.recovery.is_lost() {
            admin.give_up(&mut notices);
            admin.loss = Some(error.clone());
        }
        admin.quit(&error, now, &mut notices);
        admin.attaching = false;
        admin.publish(now);
        drop(admin);
        self.deliver(notices);
    }

    fn check_attached(&self, admin: &Admin) -> Result<()> {
        if admin.closed {
            return Err(Error::api_misuse("the controller was detached").peer(self.trid()));
        }
        Ok(())
    }

    /// A queue pair lost its connection although the controller is connected: the association is ended and the controller
    /// connected again. Does not wait for a lock.
    pub(crate) fn request_recovery(&self, association: u64) {
        if self.0.unwanted.fetch_max(association, Ordering::AcqRel) < association {
            self.0.thread.wake();
        }
    }

    /// As [`Controller::request_recovery`], whether or not lost controllers are connected again on their own.
    pub(crate) fn request_reset(&self, association: u64) {
        if self.0.to_reset.fetch_max(association, Ordering::AcqRel) < association {
            self.0.thread.wake();
        }
    }

    // --- doing it --------------------------------------------------------------------------------------------------------

    /// When there is something to do again, if nothing arrives before.
    pub(super) fn next_work(&self, now: Instant) -> Option<Instant> {
        let (wake, refresh) = match self.0.work.try_lock() {
            Ok(work) => (work.wake.filter(|_| work.attempt.is_some()), work.refresh.due()),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => (Some(now + super::NAP), None),
        };
        let admin = self.lock();
        match admin.recovery.next(now) {
            RecoveryStep::Idle if admin.recovery.is_connected() && admin.stale.is_any() => {
                Some(refresh.unwrap_or(now))
            }
            RecoveryStep::Idle => None,
            RecoveryStep::Wait(time) => Some(time),
            RecoveryStep::Attempt | RecoveryStep::GiveUp => Some(now),
            RecoveryStep::Attempting(until) => {
                // Stopping a controller has no descriptor.
                Some(wake.unwrap_or(now + 5 * super::NAP).min(until.unwrap_or(now + Duration::from_secs(1))))
            }
        }
    }

    /// Goes on with what is being done about the controller, one step. Somebody else may be at it, who then does it.
    pub(super) fn drive(&self) {
        let Ok(mut work) = self.0.work.try_lock() else { return };
        let mut notices = Notices::default();
        self.drive_step(&mut work, Instant::now(), &mut notices);
        drop(work);
        self.deliver(notices);
    }

    fn drive_step(&self, work: &mut Work, now: Instant, notices: &mut Notices) {
        let mut admin = self.lock();
        if admin.attaching {
            return;
        }
        if self.0.to_reset.load(Ordering::Acquire) == admin.association() && admin.recovery.is_connected() {
            let error = Error::disconnected("the controller is being reset because a command takes too long");
            admin.recovery.disconnect(now);
            admin.quit(&error, now, notices);
            admin.loss = Some(error);
            admin.begin_attempt(true);
        }
        let unwanted = self.0.unwanted.load(Ordering::Acquire);
        if unwanted == admin.association() && admin.recovery.is_connected() {
            let error = Error::disconnected("an I/O queue pair lost its connection");
            admin.lost(&error, now, notices);
        }
        if !admin.is_attempt(work.number) {
            // It was called off, and another one begun.
            work.attempt = None;
        }
        match admin.recovery.poll(now) {
            RecoveryStep::Idle => {
                work.attempt = None;
                if admin.recovery.is_connected() {
                    work.refresh.step(self, admin, now, notices);
                }
            }
            RecoveryStep::Wait(_) => admin.publish(now),
            RecoveryStep::GiveUp => {
                work.attempt = None;
                let error = admin.loss.clone().unwrap_or_else(|| Error::disconnected("it was lost"));
                tracing::warn!(%error, "the controller could not be connected in time and is given up");
                admin.quit(&error, now, notices);
                admin.give_up(notices);
                admin.publish(now);
            }
            RecoveryStep::Attempt => {
                // Until the old queue is quiesced nothing new may begin.
                if admin.is_quiet() {
                    admin.begin_attempt(false);
                    self.start_attempt(admin, work, now, notices);
                }
            }
            RecoveryStep::Attempting(_) => {
                admin.publish(now);
                match &mut work.attempt {
                    None if admin.is_quiet() => self.start_attempt(admin, work, now, notices),
                    None => {}
                    Some(_) => {
                        drop(admin);
                        self.step_attempt(work, now, notices);
                    }
                }
            }
        }
    }

    fn start_attempt(
        &self,
        mut admin: std::sync::MutexGuard<'_, Admin>,
        work: &mut Work,
        now: Instant,
        notices: &mut Notices,
    ) {
        tracing::debug!(trid = %self.trid(), "connecting the controller again");
        work.number = admin.attempt();
        match self.renew_admin(&mut admin, now) {
            Ok(()) => {
                drop(admin);
                work.attempt = Some(Bringup::new(self, now));
                self.step_attempt(work, now, notices);
            }
            Err(failure) => self.attempt_failed(&mut admin, failure, now, notices),
        }
    }

    /// Makes the transport and the admin queue new.
    fn renew_admin(&self, admin: &mut Admin, now: Instant) -> Result<(), Failure> {
        let again = admin.transport.restart().map_err(|error| Failure { error, permanent: true })?;
        if !again {
            admin.transport = self.0.transport.ctrlr_construct(self.trid(), &self.0.options)?;
        }
        let renewal = self.admin_connection(admin, now)?;
        if let Some(engine) = &mut admin.engine {
            engine.renew(renewal, now);
        }
        Ok(())
    }

    fn step_attempt(&self, work: &mut Work, now: Instant, notices: &mut Notices) {
        let number = work.number;
        let Some(attempt) = &mut work.attempt else { return };
        let state = attempt.state();
        let outcome = attempt.step(self, now).map_err(Failure::from).and_then(|progress| match progress {
            Progress::Pending(wake) => Ok(Some(wake)),
            Progress::Ready => {
                let found = attempt.result();
                self.check_identity(found).map_err(|error| Failure { error, permanent: true })?;
                let changes = self.adopt(found.clone(), Some(number), now)?;
                notices.events.push(Event::State(ControllerState::Ready));
                notices.events.extend(changes);
                Ok(None)
            }
        });
        match outcome {
            Ok(Some(wake)) => work.wake = wake,
            Ok(None) => {
                work.attempt = None;
                notices.arrived = true;
                tracing::info!(trid = %self.trid(), "the controller is connected again");
            }
            Err(mut failure) => {
                work.attempt = None;
                failure.error = failure.error.doing(state).peer(self.trid());
                let mut admin = self.lock();
                // One that was called off is nobody's failure.
                if admin.is_attempt(number) {
                    self.attempt_failed(&mut admin, failure, now, notices);
                }
            }
        }
    }

    fn attempt_failed(&self, admin: &mut Admin, failure: Failure, now: Instant, notices: &mut Notices) {
        let Failure { error, permanent } = failure;
        tracing::debug!(%error, permanent, "the controller could not be connected again");
        admin.quit(&error, now, notices);
        admin.loss = Some(error);
        if permanent || admin.closed || !admin.recovery.lost(now) {
            admin.give_up(notices);
        }
        admin.publish(now);
        admin.arrivals += 1;
        notices.arrived = true;
    }

    /// Whether what answers at the address is still the same subsystem.
    fn check_identity(&self, found: &InitResult) -> Result<()> {
        let info = self.info();
        let known = &info.init;
        let same = [
            ("subsystem NQN", known.identify.subsystem_nqn() == found.identify.subsystem_nqn()),
            ("serial number", known.identify.sn == found.identify.sn),
            ("kind of controller", known.discovery == found.discovery),
        ];
        match same.iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((what, _)) => Err(Error::peer_misbehaved(format!(
                "another controller answers at this address: its {what} differs from before"
            ))
            .hint("detach this controller and attach the new one")),
        }
    }
}
