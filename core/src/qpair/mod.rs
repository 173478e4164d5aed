//! I/O queue pairs.

mod command;
pub(crate) mod engine;
mod follow;
mod timeout;

use std::fmt;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

pub use command::IoCommand;
use engine::{Connecting, Done, Engine, Plain, Request, Timeout};
use follow::Follow;
pub use timeout::{TimedOut, TimeoutAction, TimeoutPolicy};

use crate::controller::{AdminCommand, AdminPending, Controller};
use crate::dma::{DmaBuf, IoBuf};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::options::IoQpairOptions;
use crate::protection::Protection;
use crate::spec::command::{DsmRange, NvmOpcode};
use crate::spec::status::CommandKind;
use crate::spec::{Cqe, Status};
use crate::transport::{GroupShares, QpairSetup, TransportController, TransportQpair, TransportStats};
use crate::wait::{MAX_SLEEP, Waiter};

/// Longest sleep while what is waited for does not arrive at the queue pair itself.
const ASSIST_SLEEP: Duration = Duration::from_millis(5);

/// Names an operation submitted on a queue pair until it completes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CommandId {
    pub(crate) op: u32,
    pub(crate) generation: u32,
}

/// Why an operation did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The controller completed it with an error status.
    #[error("{0}")]
    Status(Status),
    /// The queue pair was lost. Whether the controller executed the command is not known.
    #[error("the queue pair was lost; whether the command was executed is not known")]
    Disconnected,
    /// No completion came in time, and the queue pair was given up. Whether the command was executed is not known.
    #[error("no completion came in time; whether the command was executed is not known")]
    TimedOut,
    /// It was cancelled before the controller had all of it.
    #[error("the command was aborted")]
    Aborted,
    /// The queue pair was lost, or the controller could not be reached in time, before any of it was sent. It was not executed.
    #[error("the controller could not be reached; the command was not sent")]
    NotSent,
}

/// An operation that is done: exactly one of these is given out for each accepted submission.
#[derive(Debug)]
pub struct Completion {
    /// The operation.
    pub id: CommandId,
    /// The value given at submission.
    pub user_data: u64,
    /// DW1:DW0 of the completion, or why it failed.
    pub result: Result<u64, CommandError>,
    /// The data, and metadata that went along, back with its owner.
    pub buf: IoBuf,
}

/// A submission that was not accepted; the data comes back.
#[derive(Debug)]
pub struct SubmitError {
    /// Why.
    pub error: Error,
    /// The data, and metadata that went along.
    pub buf: IoBuf,
}

impl SubmitError {
    /// Whether the queue pair has no room now but will after completions were processed.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        matches!(self.error.kind(), crate::ErrorKind::Exhausted(_))
    }
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for SubmitError {}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        error.error
    }
}

/// Counters of a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct QpairStats {
    /// Operations accepted.
    pub submitted: u64,
    /// Operations that had to wait for a free command slot.
    pub queued: u64,
    /// Commands issued; more than operations when I/Os were cut.
    pub commands: u64,
    /// Operations completed, well or not.
    pub completed: u64,
    /// Operations completed with an error.
    pub errors: u64,
    /// Bytes of data of the commands that succeeded.
    pub bytes: u64,
    /// Calls of `process_completions`.
    pub polls: u64,
    /// Of these, calls that completed nothing.
    pub idle_polls: u64,
    /// The transport's own counters.
    pub transport: TransportStats,
}

/// Makes the transport's side of a queue pair.
pub(crate) type Create<Q> = Box<dyn FnMut(&mut dyn TransportController, &QpairSetup) -> Result<Q> + Send>;

/// An I/O queue pair. Belongs to one thread at a time (`Send`, no locks).
///
/// The ordinary type is `IoQpair`, over any transport. `IoQpair<T>` over a concrete transport's queue pair compiles
/// the same code without dynamic dispatch.
pub struct IoQpair<Q: TransportQpair = Box<dyn TransportQpair>> {
    engine: Engine<Q>,
    controller: Controller,
    qid: u16,
    io_timeout: Timeout,
    waiter: Option<Waiter>,
    /// Something woke [`IoQpair::wait`], and it has not been looked for since.
    woken: bool,
    /// An admin command the transport needs: to create its queues, or to delete them.
    assist: Option<Assist>,
    follow: Follow<Q>,
    /// What the poll group it is in shares.
    shares: Option<GroupShares>,
}

impl<Q: TransportQpair> IoQpair<Q> {
    pub(crate) fn new(
        engine: Engine<Q>,
        controller: Controller,
        qid: u16,
        options: IoQpairOptions,
        create: Create<Q>,
    ) -> Self {
        let io_timeout = controller.options().io_timeout.into();
        let follow = Follow::new(create, options, controller.link().association, controller.options());
        let mut engine = engine;
        if !matches!(controller.options().timeout_policy, TimeoutPolicy::Disconnect) {
            engine.report_late();
        }
        Self {
            engine,
            controller,
            qid,
            io_timeout,
            waiter: None,
            woken: false,
            assist: None,
            follow,
            shares: None,
        }
    }

    /// Queue identifier.
    #[must_use]
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// The controller it belongs to.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Operations accepted and not completed.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.engine.outstanding()
    }

    /// Whether it is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.engine.is_ready()
    }

    /// Why it was given up, if it was.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.end().or(self.engine.failure())
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> QpairStats {
        self.engine.stats()
    }

    /// A zeroed buffer from the controller's pool.
    ///
    /// # Errors
    /// When the operating system has no memory.
    pub fn alloc(&self, len: usize) -> Result<DmaBuf> {
        self.controller.alloc(len)
    }

    /// It is in a group from now on, also when it is connected anew.
    pub(crate) fn join_group(&mut self, shares: GroupShares) {
        self.engine.transport_mut().join_group(&shares);
        self.shares = Some(shares);
    }

    /// It is in none any more from its next connection on.
    pub(crate) fn leave_group(&mut self) {
        self.shares = None;
    }

    // --- connecting ------------------------------------------------------------------------------------------------

    /// Drives connecting. Returns whether the queue pair is connected; never blocks. Only needed after
    /// [`Controller::alloc_io_qpair_async`]; [`IoQpair::process_completions`] does the same.
    ///
    /// # Errors
    /// When connecting failed for good, with what was attempted and against whom.
    pub fn poll_connect(&mut self) -> Result<bool> {
        let now = Instant::now();
        loop {
            if let Some(assist) = &mut self.assist
                && self.engine.is_connecting()
                && let Some(end) = assist.poll(false)
            {
                self.assist = None;
                match end {
                    AssistEnd::NotSent(error) => {
                        let error = self.explain_connect(error);
                        self.engine.fail(error.clone(), CommandError::Disconnected, now);
                        self.engine.quiesce_completed(Some(&not_sent()));
                        return Err(error);
                    }
                    AssistEnd::Completed(cqe) => self
                        .engine
                        .admin_completed(&cqe, now)
                        .map_err(|error| error.doing(format!("creating I/O queue {}", self.qid)))
                        .map_err(|error| self.explain_connect(error))?,
                    AssistEnd::Lost(error) => {
                        self.engine.fail(error.clone(), CommandError::Disconnected, now);
                        self.engine.quiesce_completed(None);
                        return Err(self.explain_connect(error));
                    }
                }
            }
            let step = self.engine.poll_connect(now).map_err(|error| self.explain_connect(error))?;
            match step {
                Connecting::Pending => return Ok(false),
                Connecting::Ready(None) => {
                    self.connected();
                    return Ok(true);
                }
                Connecting::Ready(Some(cqe)) => {
                    if let Err(error) = self.controller.check_io_connect(&cqe) {
                        let error = self.explain_connect(error);
                        self.engine.fail(error.clone(), CommandError::Disconnected, now);
                        return Err(error);
                    }
                    self.connected();
                    return Ok(true);
                }
                Connecting::Admin(sqe) => {
                    self.assist = Some(Assist::Create(self.controller.admin(sqe).name(CREATING)));
                }
            }
        }
    }

    /// Whether an admin command is awaited on the queue pair's behalf.
    pub(crate) fn awaits_admin(&self) -> bool {
        self.assist.is_some()
    }

    fn explain_connect(&self, error: Error) -> Error {
        error.doing(format!("connecting I/O queue {}", self.qid)).peer(self.controller.trid())
    }

    // --- submitting ------------------------------------------------------------------------------------------------

    /// Submits a command. `user_data` comes back with its completion.
    ///
    /// The data moves into the queue pair and comes back with the [`Completion`], or at once with the error. I/Os
    /// larger than the controller takes in one command are cut; there is one completion all the same.
    ///
    /// # Errors
    /// When the queue pair has no room ([`SubmitError::is_queue_full`]), is given up, or the command makes no sense.
    #[inline(always)]
    pub fn submit(&mut self, command: IoCommand, user_data: u64) -> Result<CommandId, SubmitError> {
        let IoCommand { sqe, span, buf } = command;
        let span = match span {
            Ok(span) => span,
            Err(why) => return Err(SubmitError { error: Error::api_misuse(why), buf }),
        };
        // Nothing more is sent to a controller that is another one now.
        self.notice_loss();
        self.engine
            .submit(Request { sqe, span, buf, user_data, timeout: self.io_timeout })
            .map_err(|(error, buf)| SubmitError { error, buf })
    }

    /// As [`IoQpair::submit`], without an [`IoCommand`] in between.
    #[inline(always)]
    fn submit_plain(
        &mut self,
        opcode: NvmOpcode,
        ns: &Namespace,
        slba: u64,
        buf: IoBuf,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        let Some(span) = ns.plain_span(slba, buf.len()) else {
            return Err(SubmitError { error: Error::api_misuse(ns.no_span(slba, buf.len())), buf });
        };
        self.notice_loss();
        self.engine
            .submit_plain(Plain::new(opcode, ns.nsid(), span), buf, user_data, self.io_timeout)
            .map_err(|(error, buf)| SubmitError { error, buf })
    }

    /// Reads `buf.len()` bytes, a multiple of the namespace's block size, from logical block `slba`.
    ///
    /// # Errors
    /// As [`IoQpair::submit`].
    #[inline(always)]
    pub fn read(
        &mut self,
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit_plain(NvmOpcode::READ, ns, slba, buf.into(), user_data)
    }

    /// Writes `buf` to the blocks from `slba` on.
    ///
    /// # Errors
    /// As [`IoQpair::submit`].
    #[inline(always)]
    pub fn write(
        &mut self,
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit_plain(NvmOpcode::WRITE, ns, slba, buf.into(), user_data)
    }

    /// Compares `buf` with the blocks from `slba` on; completes with Compare Failure when they differ.
    ///
    /// # Errors
    /// As [`IoQpair::submit`].
    pub fn compare(
        &mut self,
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::compare(ns, slba, buf), user_data)
    }

    /// Reads data, and metadata into `md` where the namespace has it apart from the data, with protection information as
    /// `protection` says. Lengths are [`Namespace::data_len`] and [`Namespace::metadata_len`]; both buffers come back with the
    /// completion ([`IoBuf::into_parts`]).
    ///
    /// # Errors
    /// As [`IoQpair::submit`]; also when the lengths do not match the namespace's format.
    pub fn read_with_md(
        &mut self,
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        md: Option<DmaBuf>,
        protection: Protection,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::read_with_md(ns, slba, buf, md, protection), user_data)
    }

    /// Writes data and metadata; see [`IoQpair::read_with_md`].
    ///
    /// # Errors
    /// As [`IoQpair::read_with_md`].
    pub fn write_with_md(
        &mut self,
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        md: Option<DmaBuf>,
        protection: Protection,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::write_with_md(ns, slba, buf, md, protection), user_data)
    }

    /// Compares data and metadata; see [`IoQpair::read_with_md`].
    ///
    /// # Errors
    /// As [`IoQpair::read_with_md`].
    pub fn compare_with_md(
        &mut self,
        ns: &Namespace,
        slba: u64,
        buf: impl Into<IoBuf>,
        md: Option<DmaBuf>,
        protection: Protection,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::compare_with_md(ns, slba, buf, md, protection), user_data)
    }

    /// Sets `blocks` blocks from `slba` on to zero.
    ///
    /// # Errors
    /// As [`IoQpair::submit`].
    pub fn write_zeroes(
        &mut self,
        ns: &Namespace,
        slba: u64,
        blocks: u64,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::write_zeroes(ns, slba, blocks), user_data)
    }

    /// Lets the controller check that `blocks` blocks from `slba` on can be read.
    ///
    /// # Errors
    /// As [`IoQpair::submit`].
    pub fn verify(
        &mut self,
        ns: &Namespace,
        slba: u64,
        blocks: u64,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::verify(ns, slba, blocks), user_data)
    }

    /// Makes everything completed before durable.
    ///
    /// # Errors
    /// As [`IoQpair::submit`].
    pub fn flush_namespace(&mut self, ns: &Namespace, user_data: u64) -> Result<CommandId, SubmitError> {
        self.submit(IoCommand::flush(ns), user_data)
    }

    /// Tells the controller about up to 256 ranges: no longer needed (`deallocate`), or soon read or written.
    ///
    /// # Errors
    /// As [`IoQpair::submit`]; also when there are no ranges or more than 256.
    pub fn dataset_management(
        &mut self,
        ns: &Namespace,
        ranges: &[DsmRange],
        deallocate: bool,
        user_data: u64,
    ) -> Result<CommandId, SubmitError> {
        let command = IoCommand::dataset_management(ns, ranges, deallocate, self.controller.pool())
            .map_err(|error| SubmitError { error, buf: IoBuf::None })?;
        self.submit(command, user_data)
    }

    /// Sends what was submitted with `delay_cmd_submit`.
    pub fn flush(&mut self) {
        self.engine.flush();
    }

    /// Asks the controller to abort an operation. It completes in any case, exactly once, as usual: with
    /// [`CommandError::Aborted`] or the status Command Abort Requested, or as if nothing had been asked. Returns
    /// whether it was found.
    ///
    /// # Errors
    /// When the admin queue is lost.
    pub fn abort(&mut self, id: CommandId, mut f: impl FnMut(Completion)) -> Result<bool> {
        if self.engine.cancel(id, |done| f(done.into())) {
            return Ok(true);
        }
        let targets = self.engine.abort_targets(id);
        for &cid in &targets {
            self.controller.abort(self.follow.association, self.qid, cid)?;
        }
        Ok(!targets.is_empty())
    }

    // --- completing ------------------------------------------------------------------------------------------------

    /// Moves data and hands at most `max` completions (0: no limit) to `f`. Never blocks; work is bounded by what is
    /// outstanding. Returns how many there were. When some are handed out, more may be there already, also without a limit: over TCP a
    /// call ends once it has received 512 KiB, so that commands submitted in the place of completed ones leave meanwhile. When it
    /// returns 0, there are none.
    ///
    /// A queue pair that connects again on its own ([`crate::IoQpairOptions::auto_reconnect`]) is driven by this as well; while it has
    /// no connection, operations that were sent complete with an error, those that were not wait, and this returns 0.
    ///
    /// # Errors
    /// When the queue pair is lost and does not connect again on its own: after every outstanding operation was completed with an
    /// error. Details are in the error.
    #[inline]
    pub fn process_completions(&mut self, max: usize, mut f: impl FnMut(Completion)) -> Result<usize> {
        self.woken = false;
        self.notice_loss();
        // A failure to connect is told below, after what was submitted already.
        if self.engine.is_connecting() && matches!(self.poll_connect(), Ok(false)) {
            return Ok(0);
        }
        if !self.engine.is_given_up() {
            let result = self.engine.process(max, &mut |done| f(done.into()));
            if self.engine.has_late() {
                self.handle_late();
            }
            return result;
        }
        assist_quiesce(&mut self.engine, &self.controller, &mut self.assist, false);
        let mut dropped = 0;
        self.follow(&mut |done| {
            dropped += 1;
            f(done.into());
        });
        if !self.engine.is_given_up() {
            return Ok(dropped);
        }
        match self.engine.process(max, &mut |done| f(done.into())) {
            Ok(n) => Ok(n + dropped),
            Err(_) if dropped > 0 || !self.is_over() => Ok(dropped),
            Err(error) => Err(self.end().cloned().unwrap_or(error)),
        }
    }

    /// Descriptor that becomes readable when [`IoQpair::process_completions`] has something to do, for an event loop of
    /// one's own, and whether to watch it for writing too. `None` while there is none (name resolution). It does not tell of
    /// [`IoQpair::has_local_work`].
    #[must_use]
    pub fn event_source(&self) -> Option<(RawFd, bool)> {
        if self.engine.is_given_up() {
            return None;
        }
        let transport = self.engine.transport();
        Some((transport.event_fd()?, transport.wants_write() || self.engine.is_connecting()))
    }

    /// It was not polled for some time, or will not be.
    pub(crate) fn rested(&mut self) {
        self.engine.rested();
    }

    /// Where an event loop that knows readiness by edges can watch it instead of polling: its descriptor, and a number that changes
    /// with the connection behind it. `None` when it has to be polled.
    pub(crate) fn edge_source(&self) -> Option<(RawFd, u32)> {
        let transport = self.engine.transport();
        if !self.engine.is_ready() || self.assist.is_some() || !transport.is_event_driven() {
            return None;
        }
        Some((transport.event_fd()?, self.engine.connections()))
    }

    /// Whether waiting for the descriptor would miss work that is here already, or commands that were collected and not sent.
    #[must_use]
    pub fn has_local_work(&self) -> bool {
        self.engine.has_local_work() || self.assist.is_some()
    }

    /// Sleeps until [`IoQpair::process_completions`] may have something to do, at most `timeout`. Returns whether
    /// something woke it. Call it after a `process_completions` that returned 0.
    ///
    /// # Errors
    /// When the operating system cannot wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        if self.woken || self.engine.has_local_work() {
            return Ok(true);
        }
        self.rested();
        let edge = self.edge_source();
        let waiter = match &mut self.waiter {
            Some(waiter) => waiter,
            none => none.insert(Waiter::new()?),
        };
        if let Some(edge) = edge {
            // An edge shows once.
            self.woken = waiter.wait_edge(edge, timeout.min(MAX_SLEEP))?;
            return Ok(self.woken);
        }
        waiter.forget_edge();
        let transport = self.engine.transport();
        let write = transport.wants_write() || self.engine.is_connecting();
        let source = if self.engine.is_given_up() { None } else { transport.event_fd() };
        // What is waited for may arrive elsewhere: at the admin queue, which creates the queue.
        let elsewhere = source.is_none() || self.assist.is_some();
        // The end of the controller's connection does not show here.
        let limit = if elsewhere { ASSIST_SLEEP } else { MAX_SLEEP };
        match source {
            Some(fd) => Ok(waiter.wait(&[(fd, write)], timeout.min(limit))?),
            None => Ok(waiter.wait(&[], timeout.min(limit))?),
        }
    }

    // --- blocking helpers --------------------------------------------------------------------------------------------

    /// Submits one command and waits for it. For scripts, tests and examples; other operations' completions must not be
    /// outstanding, they would have nowhere to go.
    ///
    /// # Errors
    /// When the command fails or the queue pair is lost.
    pub fn execute(&mut self, command: IoCommand) -> Result<(u64, IoBuf)> {
        if self.outstanding() > 0 {
            return Err(Error::api_misuse(
                "a blocking call on a queue pair with operations outstanding; process their completions first",
            ));
        }
        let what = command.name();
        self.submit(command, 0)?;
        let mut finished = None;
        while finished.is_none() {
            let n = self.process_completions(0, |completion| finished = Some(completion))?;
            if n == 0 {
                self.wait(MAX_SLEEP)?;
            }
        }
        let Some(completion) = finished else { return Err(Error::disconnected("no completion")) };
        match completion.result {
            Ok(value) => Ok((value, completion.buf)),
            Err(CommandError::Status(status)) => {
                Err(Error::command(CommandKind::Nvm, what, status).peer(self.controller.trid()))
            }
            Err(other) => Err(self
                .failure()
                .cloned()
                .unwrap_or_else(|| Error::disconnected(other.to_string()))
                .doing(what)),
        }
    }

    /// Reads into `buf` and waits.
    ///
    /// # Errors
    /// As [`IoQpair::execute`].
    pub fn read_blocking(&mut self, ns: &Namespace, slba: u64, buf: DmaBuf) -> Result<DmaBuf> {
        let (_, buf) = self.execute(IoCommand::read(ns, slba, buf))?;
        buf.into_one().ok_or_else(|| Error::disconnected("the buffer was given up"))
    }

    /// Writes `buf` and waits.
    ///
    /// # Errors
    /// As [`IoQpair::execute`].
    pub fn write_blocking(&mut self, ns: &Namespace, slba: u64, buf: DmaBuf) -> Result<DmaBuf> {
        let (_, buf) = self.execute(IoCommand::write(ns, slba, buf))?;
        buf.into_one().ok_or_else(|| Error::disconnected("the buffer was given up"))
    }

    /// Makes completed writes durable and waits.
    ///
    /// # Errors
    /// As [`IoQpair::execute`].
    pub fn flush_blocking(&mut self, ns: &Namespace) -> Result<()> {
        self.execute(IoCommand::flush(ns)).map(drop)
    }
}

impl From<Done> for Completion {
    fn from(done: Done) -> Self {
        Self { id: done.id, user_data: done.user_data, result: done.result, buf: done.buf }
    }
}

impl<Q: TransportQpair> Drop for IoQpair<Q> {
    fn drop(&mut self) {
        let Self { engine, controller, assist, .. } = self;
        let mut waiter = None;
        let quiesced = engine.shut_down_with(|engine| {
            let seen = controller.arrivals();
            assist_quiesce(engine, controller, assist, true);
            if assist.is_none() || controller.wait_arrival(seen, &mut waiter).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // The controller knows the queue by its identifier until it is disconnected; one that may still exist is not
        // used again.
        if quiesced {
            controller.free_qid(self.qid);
        }
    }
}

const CREATING: &str = "creating an I/O queue";
const DELETING: &str = "deleting an I/O queue";
/// Of a command that was never sent: as if the controller had refused it.
fn not_sent() -> Cqe {
    Cqe::new(0, 0, Status::ABORT_REQUESTED)
}

/// An admin command that a transport needs for a queue pair.
enum Assist {
    /// To be sent.
    Create(AdminCommand),
    Delete(AdminCommand),
    Sent(AdminPending),
}

/// What became of it.
enum AssistEnd {
    /// It was not sent: no room in the admin queue, or it is lost.
    NotSent(Error),
    Completed(Cqe),
    /// The admin queue was lost.
    Lost(Error),
}

impl Assist {
    /// Goes on with it; `None` while it is not over. Unless `wait`, it does not wait for a thread that is at the admin queue just then.
    fn poll(&mut self, wait: bool) -> Option<AssistEnd> {
        loop {
            match self {
                Self::Create(command) | Self::Delete(command) => match command.try_submit(wait)? {
                    Ok(pending) => *self = Self::Sent(pending),
                    Err(error) => return Some(AssistEnd::NotSent(error)),
                },
                Self::Sent(pending) => {
                    return Some(match raw(pending.poll_with(None, wait)?) {
                        Ok(cqe) => AssistEnd::Completed(cqe),
                        Err(error) => AssistEnd::Lost(error),
                    });
                }
            }
        }
    }
}

/// Sends the admin commands a transport needs to be quiesced and reports their ends to it. Does not block.
fn assist_quiesce<Q: TransportQpair>(
    engine: &mut Engine<Q>,
    controller: &Controller,
    assist: &mut Option<Assist>,
    wait: bool,
) {
    if let Some(Assist::Create(_)) = assist {
        *assist = None;
        engine.quiesce_completed(Some(&not_sent()));
    }
    loop {
        if let Some(sent) = assist {
            match sent.poll(wait) {
                None => return,
                // No room in the admin queue: once more later.
                Some(AssistEnd::NotSent(error)) if matches!(error.kind(), crate::ErrorKind::Exhausted(_)) => {
                    return;
                }
                Some(AssistEnd::NotSent(_) | AssistEnd::Lost(_)) => engine.quiesce_completed(None),
                Some(AssistEnd::Completed(cqe)) => engine.quiesce_completed(Some(&cqe)),
            }
            *assist = None;
        }
        match engine.quiesce_command() {
            Some(sqe) => *assist = Some(Assist::Delete(controller.admin(sqe).name(DELETING))),
            None => return,
        }
    }
}

/// The completion of an admin command, whatever its status.
fn raw(result: Result<crate::AdminResult>) -> Result<Cqe> {
    match result {
        Ok(result) => Ok(Cqe::new(0, 0, Status::SUCCESS).with_result64(result.value)),
        Err(error) => match error.status() {
            Some(status) => Ok(Cqe::new(0, 0, status)),
            None => Err(error),
        },
    }
}

impl<Q: TransportQpair> fmt::Debug for IoQpair<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoQpair")
            .field("qid", &self.qid)
            .field("outstanding", &self.outstanding())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}
