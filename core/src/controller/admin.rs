//! The admin queue: who waits for which completion, keep alive, asynchronous events, aborts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::ControllerState;
use super::events::{Event, EventCallback, Stale};
use super::link::{Link, LinkCell, Phase};
use crate::dma::IoBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::keep_alive::{KeepAlive, KeepAliveStep};
use crate::proto::recovery::{Recovery, RecoveryPolicy};
use crate::qpair::engine::{Done, Engine, Request};
use crate::qpair::{CommandError, CommandId};
use crate::spec::log_page::AsyncEvent;
use crate::spec::status::CommandKind;
use crate::spec::{AdminOpcode, Sqe};
use crate::transport::{TransportController, TransportQpair};
use crate::transport_id::TransportId;

/// Most asynchronous event requests kept outstanding.
const MAX_AERS: u8 = 4;
/// Most commands that wait to be aborted.
pub(super) const MAX_ABORTS_WAITING: usize = 1024;
/// Most events taken within a time; further ones wait at the controller.
const MAX_EVENTS_PER_WINDOW: u32 = 1000;
const EVENT_WINDOW: Duration = Duration::from_secs(1);
/// Events kept for a caller that does not fetch them; older ones are dropped.
const MAX_EVENTS: usize = 256;

/// What an admin command returned.
#[derive(Debug, Clone)]
pub struct AdminResult {
    /// DW1:DW0 of the completion.
    pub value: u64,
    /// The data the controller returned; empty when none was asked for.
    pub data: Vec<u8>,
}

impl AdminResult {
    /// DW0 of the completion.
    #[must_use]
    pub fn dw0(&self) -> u32 {
        self.value as u32
    }
}

/// What came of Abort commands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct AbortStats {
    /// Abort commands sent.
    pub sent: u64,
    /// The controller aborted the command.
    pub aborted: u64,
    /// The controller did not abort the command: it had completed, was too far, or was not known.
    pub not_aborted: u64,
    /// The Abort command itself failed.
    pub failed: u64,
}

/// Who gets the completion of an admin operation.
enum Sink {
    /// Somebody waits for it, or will fetch it.
    Waiting(Option<Waker>),
    /// It arrived and waits to be fetched.
    Arrived(Result<u64, CommandError>, IoBuf),
    /// Nobody wants it any more.
    Nobody,
    KeepAlive,
    Aer,
    Abort,
}

/// Called when a controller is lost after it was attached.
pub(crate) type RemoveCallback = Arc<dyn Fn(&TransportId) + Send + Sync>;

/// What has to be told to others once the lock is released.
#[derive(Default)]
pub(super) struct Notices {
    pub(super) wakers: Vec<Waker>,
    pub(super) arrived: bool,
    pub(super) removed: Option<RemoveCallback>,
    pub(super) events: Vec<Event>,
}

/// State behind the controller's one lock.
pub(super) struct Admin {
    pub(super) transport: Box<dyn TransportController>,
    pub(super) engine: Option<Engine<Box<dyn TransportQpair>>>,
    /// Who gets the completion of each operation; an operation's number is used again, its generation is not.
    sinks: HashMap<CommandId, Sink>,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) aers_wanted: u8,
    aers: u8,
    aborts: u16,
    pub(super) abort_limit: u16,
    aborts_waiting: VecDeque<(u16, u16)>,
    pub(super) abort_stats: AbortStats,
    pub(super) events: VecDeque<AsyncEvent>,
    /// Events since `events_since`, to bound how many a controller may report.
    events_in_window: u32,
    events_since: Instant,
    /// What changed and is to be identified again.
    pub(super) stale: Stale,
    pub(super) on_event: Option<EventCallback>,
    pub(super) remove: Option<RemoveCallback>,
    /// The removal was told and the controller has not been back since.
    told: bool,
    pub(super) recovery: Recovery,
    /// It was not ready yet.
    pub(super) attaching: bool,
    /// Why it was lost last, or the last attempt to connect it failed.
    pub(super) loss: Option<Error>,
    link: Arc<LinkCell>,
    association: u64,
    /// Attempts to connect it again.
    attempts: u64,
    /// One bit per I/O queue identifier in use; index 0 is the admin queue. Identifiers that are not granted any more may still
    /// be in use by queue pairs that wait for better times.
    qids: Vec<bool>,
    granted: u16,
    last_qid: u16,
    /// Queue identifiers come from another process.
    leased: bool,
    /// Completions that arrived for somebody, ever.
    pub(super) arrivals: u64,
    /// Detached on purpose: no removal is reported.
    pub(super) closed: bool,
}

impl Admin {
    pub(super) fn new(
        transport: Box<dyn TransportController>,
        policy: RecoveryPolicy,
        link: Arc<LinkCell>,
    ) -> Self {
        Self {
            transport,
            engine: None,
            sinks: HashMap::new(),
            keep_alive: None,
            aers_wanted: 0,
            aers: 0,
            aborts: 0,
            abort_limit: 1,
            aborts_waiting: VecDeque::new(),
            abort_stats: AbortStats::default(),
            events: VecDeque::new(),
            events_in_window: 0,
            events_since: Instant::now(),
            stale: Stale::default(),
            on_event: None,
            remove: None,
            told: false,
            recovery: Recovery::new(policy),
            attaching: true,
            loss: None,
            link,
            association: 0,
            attempts: 0,
            qids: Vec::new(),
            granted: 0,
            last_qid: 0,
            leased: false,
            arrivals: 0,
            closed: false,
        }
    }

    // --- queue identifiers -------------------------------------------------------------------------------------------

    pub(super) fn set_qids(&mut self, io_queues: u16) {
        self.granted = io_queues;
        let len = self.qids.len().max(usize::from(io_queues) + 1);
        self.qids.resize(len, false);
    }

    /// Whether the controller grants so many queues that this one is among them.
    pub(super) fn grants(&self, qid: u16) -> bool {
        self.leased || qid <= self.granted
    }

    /// A free queue identifier, the one unused for longest: a target may take a moment to notice that a queue is gone,
    /// and refuses its identifier until then.
    pub(super) fn take_qid(&mut self) -> Option<u16> {
        let queues = usize::from(self.granted);
        if queues == 0 {
            return None;
        }
        let free = (0..queues)
            .map(|i| (usize::from(self.last_qid) + i) % queues + 1)
            .find(|&qid| !self.qids[qid])?;
        self.qids[free] = true;
        self.last_qid = free as u16;
        Some(self.last_qid)
    }

    pub(super) fn free_qid(&mut self, qid: u16) {
        if let Some(used) = self.qids.get_mut(usize::from(qid)) {
            *used = false;
        }
    }

    /// A queue identifier for a queue pair of this process: one of ours, or one that the transport has from elsewhere.
    pub(super) fn lease_qid(&mut self) -> Result<Option<u16>> {
        match self.transport.lease_qid()? {
            None => Ok(self.take_qid()),
            Some(qid) => {
                self.leased = true;
                Ok(Some(qid))
            }
        }
    }

    pub(super) fn return_qid(&mut self, qid: u16) {
        self.free_qid(qid);
        self.transport.return_qid(qid);
    }

    // --- submitting --------------------------------------------------------------------------------------------------

    /// Sends a command whose completion somebody will fetch with [`Admin::take`]. While the controller is being connected, only
    /// what belongs to that is sent.
    pub(super) fn submit(
        &mut self,
        sqe: Sqe,
        buf: IoBuf,
        timeout: Duration,
        connecting: bool,
    ) -> Result<CommandId> {
        if !connecting && !self.attaching && !self.recovery.is_connected() {
            return Err(self
                .reason()
                .unwrap_or_else(|| Error::disconnected("the controller is not connected")));
        }
        self.submit_for(Sink::Waiting(None), sqe, buf, Some(timeout))
    }

    fn submit_for(
        &mut self,
        sink: Sink,
        sqe: Sqe,
        buf: IoBuf,
        timeout: Option<Duration>,
    ) -> Result<CommandId> {
        let Some(engine) = &mut self.engine else {
            return Err(Error::disconnected("the admin queue is not connected"));
        };
        let id = engine
            .submit(Request { sqe, span: None, buf, user_data: 0, timeout: timeout.into() })
            .map_err(|(error, _)| error)?;
        self.sinks.insert(id, sink);
        Ok(id)
    }

    /// The result of an operation, if it has arrived; registers `waker` otherwise.
    pub(super) fn take(
        &mut self,
        id: CommandId,
        waker: Option<&Waker>,
    ) -> Option<(Result<u64, CommandError>, IoBuf)> {
        match self.sinks.get_mut(&id)? {
            Sink::Arrived(..) => match self.sinks.remove(&id) {
                Some(Sink::Arrived(result, buf)) => Some((result, buf)),
                _ => None,
            },
            Sink::Waiting(slot) => {
                *slot = waker.cloned();
                None
            }
            _ => None,
        }
    }

    /// Nobody will fetch the result of an operation any more.
    pub(super) fn forget(&mut self, id: CommandId) {
        match self.sinks.get_mut(&id) {
            Some(Sink::Arrived(..)) => drop(self.sinks.remove(&id)),
            Some(sink @ Sink::Waiting(_)) => *sink = Sink::Nobody,
            _ => {}
        }
    }

    /// Why the admin queue is lost, or was lost last.
    pub(super) fn reason(&self) -> Option<Error> {
        let failure = self.engine.as_ref().and_then(|engine| engine.failure().cloned());
        failure.or_else(|| self.loss.clone())
    }

    pub(super) fn abort(&mut self, sqid: u16, cid: u16) -> Result<()> {
        if self.aborts >= self.abort_limit {
            // More would be answered with Abort Command Limit Exceeded; they follow as others complete.
            if !self.aborts_waiting.contains(&(sqid, cid)) && self.aborts_waiting.len() < MAX_ABORTS_WAITING {
                self.aborts_waiting.push_back((sqid, cid));
            }
            return Ok(());
        }
        let sqe = Sqe::admin(AdminOpcode::ABORT, 0).with_cdw10(u32::from(sqid) | u32::from(cid) << 16);
        self.submit_for(Sink::Abort, sqe, IoBuf::None, Some(Duration::from_secs(30)))?;
        self.aborts += 1;
        self.abort_stats.sent += 1;
        Ok(())
    }

    // --- processing --------------------------------------------------------------------------------------------------

    /// Whether a command is outstanding whose deadline has to be watched.
    pub(super) fn busy(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.outstanding() > usize::from(self.aers))
    }

    /// When the keep alive timer wants attention.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        match self.keep_alive.as_ref()?.poll(now) {
            KeepAliveStep::Idle(time) => Some(time),
            KeepAliveStep::Send | KeepAliveStep::Dead => Some(now),
        }
    }

    /// Processes the admin queue once. Returns how many commands completed.
    pub(super) fn process(&mut self, now: Instant, notices: &mut Notices) -> Result<usize> {
        let Some(engine) = &mut self.engine else { return Ok(0) };
        let mut done = Vec::new();
        let result = engine.process(0, &mut |d| done.push(d));
        let mut broken = None;
        for done in done {
            if let Err(error) = self.dispatch(done, notices) {
                broken.get_or_insert(error);
            }
        }
        let result = match (result, broken) {
            (Ok(count), None) => self.timers(now).map(|()| count),
            (Ok(_), Some(error)) => Err(error),
            (Err(error), _) => Err(error),
        };
        // A queue that was given up while it was processed is reported to whom it concerns right away.
        let failure = self.engine.as_ref().and_then(|engine| engine.failure().cloned());
        if let Some(error) = result.as_ref().err().cloned().or(failure) {
            self.lost(&error, now, notices);
            if !self.attaching && !self.recovery.is_lost() {
                return Ok(0);
            }
        }
        result
    }

    /// Keep alive and asynchronous event requests.
    fn timers(&mut self, now: Instant) -> Result<()> {
        if !self.engine.as_ref().is_some_and(Engine::is_ready) {
            return Ok(());
        }
        if now.duration_since(self.events_since) >= EVENT_WINDOW {
            (self.events_in_window, self.events_since) = (0, now);
        }
        while self.aers < self.aers_wanted
            && self.events_in_window < MAX_EVENTS_PER_WINDOW
            && self.submit_own(Sink::Aer, AdminOpcode::ASYNC_EVENT_REQUEST)?
        {
            self.aers += 1;
        }
        match self.keep_alive.as_ref().map(|timer| (timer.poll(now), timer.timeout())) {
            Some((KeepAliveStep::Send, _)) => {
                let sent = self.submit_own(Sink::KeepAlive, AdminOpcode::KEEP_ALIVE)?;
                if let Some(timer) = self.keep_alive.as_mut().filter(|_| sent) {
                    timer.sent(now);
                }
            }
            Some((KeepAliveStep::Dead, timeout)) => {
                return Err(Error::timed_out("waiting for the answer to Keep Alive", timeout));
            }
            Some((KeepAliveStep::Idle(_), _)) | None => {}
        }
        Ok(())
    }

    /// Sends a command of our own, without a deadline: Keep Alive has its timer's. `false` when callers have filled the
    /// queue; there will be room once their commands complete.
    fn submit_own(&mut self, sink: Sink, opcode: AdminOpcode) -> Result<bool> {
        match self.submit_for(sink, Sqe::admin(opcode, 0), IoBuf::None, None) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::Exhausted(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dispatch(&mut self, done: Done, notices: &mut Notices) -> Result<()> {
        match self.sinks.remove(&done.id) {
            Some(Sink::Waiting(waker)) => {
                self.sinks.insert(done.id, Sink::Arrived(done.result, done.buf));
                notices.arrived = true;
                self.arrivals += 1;
                notices.wakers.extend(waker);
            }
            Some(Sink::KeepAlive) => match done.result {
                Ok(_) => {
                    if let Some(timer) = &mut self.keep_alive {
                        timer.answered();
                    }
                }
                Err(CommandError::Status(status)) => {
                    return Err(Error::command(CommandKind::Admin, "Keep Alive", status));
                }
                Err(_) => {}
            },
            Some(Sink::Aer) => {
                self.aers -= 1;
                match done.result {
                    Ok(value) => {
                        if self.events.len() == MAX_EVENTS {
                            self.events.pop_front();
                        }
                        let event = AsyncEvent::from_dw0(value as u32);
                        tracing::debug!(?event, "asynchronous event");
                        self.events.push_back(event);
                        self.events_in_window = self.events_in_window.saturating_add(1);
                        self.stale.note(event);
                        notices.events.extend(Event::of(event));
                    }
                    Err(error) => {
                        // A controller that refuses one (limit exceeded, aborted) is not asked again for it.
                        tracing::debug!(%error, "asynchronous event request refused");
                        self.aers_wanted = self.aers_wanted.saturating_sub(1);
                    }
                }
            }
            Some(Sink::Abort) => {
                self.aborts -= 1;
                match done.result {
                    // DW0 bit 0: the command was *not* aborted (Base 2.1 §5.1.1).
                    Ok(value) if value & 1 == 0 => self.abort_stats.aborted += 1,
                    Ok(_) => self.abort_stats.not_aborted += 1,
                    Err(_) => self.abort_stats.failed += 1,
                }
                if let Some((sqid, cid)) = self.aborts_waiting.pop_front() {
                    self.abort(sqid, cid)?;
                }
            }
            Some(Sink::Nobody | Sink::Arrived(..)) | None => {}
        }
        Ok(())
    }

    /// The admin queue is lost: everything outstanding is failed, and either the controller will be connected again or its
    /// removal is told, once. That of an attempt to connect it is for whoever makes the attempt to handle.
    pub(super) fn lost(&mut self, error: &Error, now: Instant, notices: &mut Notices) {
        self.quit(error, now, notices);
        if self.recovery.is_connected() {
            self.loss = Some(error.clone());
            if !self.closed && self.recovery.lost(now) {
                tracing::warn!(%error, "the controller is lost and will be connected again");
                notices.events.push(Event::State(ControllerState::Reconnecting));
                notices.arrived = true;
            } else {
                self.give_up(notices);
            }
            self.publish(now);
        }
    }

    /// Fails everything outstanding on the admin queue and gives the queue up.
    pub(super) fn quit(&mut self, error: &Error, now: Instant, notices: &mut Notices) {
        self.keep_alive = None;
        self.aers_wanted = 0;
        self.aborts_waiting.clear();
        if let Some(engine) = &mut self.engine {
            engine.fail(error.clone(), CommandError::Disconnected, now);
            let mut done = Vec::new();
            while engine.complete_all(usize::MAX, &mut |d| done.push(d)) > 0 {}
            for done in done {
                let _ = self.dispatch(done, notices);
            }
        }
    }

    /// The controller is lost for good.
    pub(super) fn give_up(&mut self, notices: &mut Notices) {
        self.recovery.give_up();
        notices.arrived = true;
        self.arrivals += 1;
        if !self.closed && !std::mem::replace(&mut self.told, true) {
            notices.removed = self.remove.clone();
            notices.events.push(Event::State(ControllerState::Failed));
        }
    }

    /// The controller is ready, for the first time or again.
    pub(super) fn ready(&mut self, now: Instant) {
        self.attaching = false;
        self.told = false;
        self.association += 1;
        self.arrivals += 1;
        self.recovery.connected(now);
        self.publish(now);
    }

    /// An attempt to connect it again begins.
    pub(super) fn begin_attempt(&mut self, wished: bool) {
        self.attempts += 1;
        self.recovery.begin(wished);
    }

    /// The number of the last attempt.
    pub(super) fn attempt(&self) -> u64 {
        self.attempts
    }

    /// Whether the attempt of this number is the one being made.
    pub(super) fn is_attempt(&self, number: u64) -> bool {
        self.recovery.is_attempting() && self.attempts == number
    }

    /// Whether the admin queue is given up and nothing of it is left to be waited for.
    pub(super) fn is_quiet(&self) -> bool {
        self.engine.as_ref().is_none_or(Engine::is_drained)
    }

    /// Whether, besides, the transport has confirmed that nothing of it is reached any more.
    pub(super) fn is_quiesced(&self) -> bool {
        self.engine.as_ref().is_none_or(|engine| engine.is_drained() && engine.is_quiesced())
    }

    /// How often it was connected.
    pub(super) fn association(&self) -> u64 {
        self.association
    }

    /// Lets queue pairs know how things are.
    pub(super) fn publish(&self, now: Instant) {
        let phase = if self.attaching {
            Phase::Down
        } else if self.recovery.is_connected() {
            Phase::Ready
        } else if self.recovery.is_lost() {
            Phase::Lost
        } else if self.recovery.fails_fast(now) {
            Phase::DownFast
        } else {
            Phase::Down
        };
        let reason = if phase == Phase::Ready { None } else { self.reason() };
        self.link.store(Link { association: self.association, phase }, reason);
    }

    /// Asynchronous event requests for a controller that takes `aerl_z + 1` of them.
    pub(super) fn want_aers(&mut self, aerl_z: u8) {
        self.aers_wanted = aerl_z.saturating_add(1).min(MAX_AERS);
    }
}
