//! What every queue pair does, admin and I/O alike: operations and the commands that serve them, waiting for slots,
//! connecting, deadlines, and giving up in an orderly way.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use zerocopy::little_endian::U16;

mod deadline;
mod op;
mod renew;
#[cfg(test)]
mod tests;

use op::{Command, Given, Op};

pub(crate) use deadline::Late;
pub(crate) use op::{Plain, Timeout};
pub(crate) use renew::{Keep, Renewal};

use super::{CommandError, CommandId, QpairStats};
use crate::dma::IoBuf;
use crate::error::{Error, Result};
use crate::proto::Tracker;
use crate::proto::split::Span;
use crate::spec::command::DataDirection;
use crate::spec::{Cqe, Sqe};
use crate::transport::{ConnectProgress, Quiesce, TransportQpair};

/// How often commands in flight are looked at for their deadline.
const DEADLINE_SCAN: Duration = Duration::from_millis(100);
/// How long dropping a queue pair waits for its transport to quiesce before the memory is given up. Some PCIe controllers must not
/// be asked for 2.5 s.
const DROP_QUIESCE: Duration = Duration::from_secs(4);
/// How long a queue pair that is given up waits for its transport to quiesce before the memory is given up.
const QUIESCE: Duration = Duration::from_secs(30);
/// Busy polls between two looks at the clock.
const POLLS_PER_CLOCK: u32 = 256;
/// Idle ones: who sleeps between polls, in an event loop of its own, makes few of them.
const IDLE_POLLS_PER_CLOCK: u32 = 16;

/// The operation of the Fabrics Connect command. The caller's come after it.
const CONNECT_OP: u32 = 0;

/// An operation to be submitted.
pub(crate) struct Request {
    pub(crate) sqe: Sqe,
    pub(crate) span: Option<Span>,
    pub(crate) buf: IoBuf,
    pub(crate) user_data: u64,
    pub(crate) timeout: Timeout,
}

/// An operation that is done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: CommandId,
    pub(crate) user_data: u64,
    pub(crate) result: Result<u64, CommandError>,
    pub(crate) buf: IoBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The transport is connecting.
    Connecting,
    /// The transport is connected, Fabrics Connect is on its way.
    FabricsConnect,
    Ready,
    /// Given up; commands may still be accessed by the peer.
    Quiescing,
    /// Given up; nothing is outstanding.
    Failed,
}

/// The Fabrics Connect command of a queue.
pub(crate) struct FabricsConnect {
    pub(crate) sqe: Sqe,
    pub(crate) data: IoBuf,
}

/// How far connecting has come.
#[derive(Debug)]
pub(crate) enum Connecting {
    Pending,
    /// Send this on the admin queue, then call [`Engine::admin_completed`].
    Admin(Sqe),
    /// Done. The Connect completion, for fabrics.
    Ready(Option<Cqe>),
}

pub(crate) struct Engine<Q: TransportQpair> {
    transport: Q,
    tracker: Tracker,
    /// Made as they are needed: a queue pair that is never busy takes little memory.
    ops: Vec<Op>,
    free_ops: Vec<u32>,
    /// Operations of the caller there may be.
    max_ops: u32,
    /// How often it was connected anew.
    connections: u32,
    /// Operations with something left to issue, oldest first, with the generation they were queued under.
    waiting: VecDeque<(u32, u32)>,
    state: State,
    failure: Option<Error>,
    /// What an operation that was sent is completed with once the queue is quiesced.
    failed_as: CommandError,
    /// What becomes of operations when the queue pair is given up.
    keep: Keep,
    /// Given up, and every operation that is not held is completed.
    drained: bool,
    /// Memory of commands was given up.
    leaked: bool,
    connect: Option<FabricsConnect>,
    connect_cqe: Option<Cqe>,
    connect_deadline: Instant,
    connect_timeout: Duration,
    quiesce_deadline: Instant,
    /// Where deadlines get the time from; it is read at most once per idle poll.
    clock: fn() -> Instant,
    unflushed: bool,
    delay_submit: bool,
    max_segments: u16,
    /// Whether the transport takes metadata in a buffer apart from the data.
    separate_metadata: bool,
    /// Most bytes of a command that is not cut.
    max_transfer: u32,
    /// The transport said that it is quiesced.
    quiesced: bool,
    polls_since_clock: u32,
    last_scan: Instant,
    /// Deadlines that pass are reported instead of giving the queue pair up.
    report_late: bool,
    /// Operations whose deadline passed, to be reported.
    late: Vec<Late>,
    stats: QpairStats,
}

impl<Q: TransportQpair> Engine<Q> {
    /// An engine that issues at most `slots` commands and accepts `ops` operations. The Fabrics Connect command has
    /// an operation of its own, [`CONNECT_OP`], so that callers may use all of theirs while connecting.
    pub(crate) fn new(
        transport: Q,
        slots: u16,
        ops: u32,
        generations: bool,
        connect: Option<FabricsConnect>,
        connect_timeout: Duration,
        now: Instant,
    ) -> Self {
        Self {
            transport,
            tracker: Tracker::new(slots, ops + 1, generations),
            ops: vec![Op::new()],
            free_ops: Vec::new(),
            max_ops: ops,
            connections: 0,
            waiting: VecDeque::new(),
            state: State::Connecting,
            failure: None,
            failed_as: CommandError::Disconnected,
            keep: Keep::default(),
            drained: false,
            leaked: false,
            connect,
            connect_cqe: None,
            connect_deadline: now + connect_timeout,
            connect_timeout,
            quiesce_deadline: now + QUIESCE,
            clock: Instant::now,
            unflushed: false,
            delay_submit: false,
            max_segments: u16::MAX,
            separate_metadata: false,
            max_transfer: u32::MAX,
            quiesced: false,
            polls_since_clock: 0,
            last_scan: now,
            report_late: false,
            late: Vec::new(),
            stats: QpairStats::default(),
        }
    }

    /// Most buffers one command's data may be made of.
    pub(crate) fn set_max_segments(&mut self, segments: u16) {
        self.max_segments = segments.max(1);
    }

    /// Whether commands may have metadata in a buffer apart from the data.
    pub(crate) fn set_separate_metadata(&mut self, possible: bool) {
        self.separate_metadata = possible;
    }

    /// Most bytes of a command that is sent as it is.
    pub(crate) fn set_max_transfer(&mut self, bytes: u32) {
        self.max_transfer = bytes;
    }

    pub(crate) fn set_delay_submit(&mut self, delay: bool) {
        self.delay_submit = delay;
    }

    pub(crate) fn transport(&self) -> &Q {
        &self.transport
    }

    pub(crate) fn transport_mut(&mut self) -> &mut Q {
        &mut self.transport
    }

    /// Changes when another connection takes the place of one that was lost.
    pub(crate) fn connections(&self) -> u32 {
        self.connections
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub(crate) fn is_connecting(&self) -> bool {
        matches!(self.state, State::Connecting | State::FabricsConnect)
    }

    pub(crate) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Operations accepted and not completed. Fabrics Connect is none of the caller's.
    pub(crate) fn outstanding(&self) -> usize {
        self.ops.len() - 1 - self.free_ops.len()
    }

    /// A place for an operation.
    #[inline(always)]
    fn take_op(&mut self) -> Option<u32> {
        self.free_ops.pop().or_else(|| self.new_op())
    }

    #[cold]
    fn new_op(&mut self) -> Option<u32> {
        let index = self.ops.len() as u32;
        // CONNECT_OP is not one of the caller's.
        (index <= self.max_ops).then(|| {
            self.ops.push(Op::new());
            // Only a depth that was never reached before takes memory: the lists have room for all operations.
            let room = self.ops.capacity();
            self.free_ops.reserve_exact(room - self.free_ops.len());
            self.waiting.reserve_exact(room.saturating_sub(self.waiting.len()));
            index
        })
    }

    pub(crate) fn stats(&self) -> QpairStats {
        QpairStats { transport: self.transport.stats(), ..self.stats }
    }

    /// Time has passed since the last poll: the next one looks at the clock.
    pub(crate) fn rested(&mut self) {
        self.polls_since_clock = POLLS_PER_CLOCK;
    }

    /// Whether sleeping on the transport's event source may miss work that is already here.
    pub(crate) fn has_local_work(&self) -> bool {
        match self.state {
            State::Quiescing => true,
            State::Failed => !self.drained,
            State::Connecting | State::FabricsConnect | State::Ready => {
                self.unflushed || self.transport.has_local_work()
            }
        }
    }

    // --- connecting --------------------------------------------------------------------------------------------

    /// Drives connecting one step. Does not block.
    pub(crate) fn poll_connect(&mut self, now: Instant) -> Result<Connecting> {
        let step = self.connect_step(now);
        if let Err(error) = &step {
            self.fail(error.clone(), CommandError::Disconnected, now);
        }
        step
    }

    fn connect_step(&mut self, now: Instant) -> Result<Connecting> {
        match self.state {
            State::Ready => return Ok(Connecting::Ready(self.connect_cqe)),
            State::Quiescing | State::Failed => return Err(self.failure_or_closed()),
            State::Connecting => match self.transport.poll_connect(now)? {
                ConnectProgress::Pending => {}
                ConnectProgress::Admin(sqe) => return Ok(Connecting::Admin(sqe)),
                ConnectProgress::Established => match self.connect.take() {
                    None => {
                        self.state = State::Ready;
                        self.issue_waiting(false)?;
                        return Ok(Connecting::Ready(None));
                    }
                    Some(connect) => self.send_connect(connect)?,
                },
            },
            State::FabricsConnect => {
                let polled = self.transport.poll(&mut self.tracker, usize::MAX);
                self.drain(&mut |_| {})?;
                polled?;
                if let Some(cqe) = self.connect_cqe {
                    self.state = State::Ready;
                    if cqe.status().is_success() {
                        self.issue_waiting(false)?;
                    }
                    return Ok(Connecting::Ready(Some(cqe)));
                }
            }
        }
        if now >= self.connect_deadline {
            let state = match self.state {
                State::FabricsConnect => "waiting for the response to Fabrics Connect",
                _ => "waiting for the transport connection",
            };
            return Err(Error::timed_out(state, self.connect_timeout));
        }
        Ok(Connecting::Pending)
    }

    fn send_connect(&mut self, connect: FabricsConnect) -> Result<()> {
        let op = CONNECT_OP;
        self.state = State::FabricsConnect;
        let (len, direction) = (connect.data.len() as u32, connect.sqe.direction());
        self.tracker.put_buf(op, connect.data);
        let Some((slot, cid)) = self.tracker.begin(op, 0, len, direction) else {
            return Err(Error::exhausted("no slot is left for the Fabrics Connect command"));
        };
        let mut sqe = connect.sqe;
        sqe.cid = U16::new(cid);
        self.transport.submit(slot, &sqe, &self.tracker)?;
        self.flush_transport()
    }

    /// The completion of a command asked for with [`Connecting::Admin`].
    pub(crate) fn admin_completed(&mut self, cqe: &Cqe, now: Instant) -> Result<()> {
        let result = self.transport.admin_completed(cqe);
        if let Err(error) = &result {
            self.fail(error.clone(), CommandError::Disconnected, now);
        }
        result
    }

    // --- submitting ----------------------------------------------------------------------------------------------

    /// Takes an operation. While connecting it waits; with every slot in use it waits for one.
    pub(crate) fn submit(&mut self, request: Request) -> Result<CommandId, (Error, IoBuf)> {
        let Request { sqe, span, buf, user_data, timeout } = request;
        self.accept(Given { sqe, span }, buf, user_data, timeout)
    }

    /// As [`Engine::submit`].
    #[inline(always)]
    pub(crate) fn submit_plain(
        &mut self,
        command: Plain,
        buf: IoBuf,
        user_data: u64,
        timeout: Timeout,
    ) -> Result<CommandId, (Error, IoBuf)> {
        self.accept(command, buf, user_data, timeout)
    }

    #[inline(always)]
    fn accept(
        &mut self,
        command: impl Command,
        buf: IoBuf,
        user_data: u64,
        timeout: Timeout,
    ) -> Result<CommandId, (Error, IoBuf)> {
        if matches!(self.state, State::Quiescing | State::Failed) && !self.keep.hold {
            return Err((self.failure_or_closed(), buf));
        }
        if command.sqe().direction() == DataDirection::Bidirectional && !buf.is_empty() {
            return Err((Error::unsupported("commands that transfer data both ways"), buf));
        }
        if command.span().is_none() && buf.len() > self.max_transfer as usize {
            return Err((self.too_long(buf.len()), buf));
        }
        let plain = buf.is_plain();
        if !plain && let Err(error) = self.check_parts(command.span(), &buf) {
            return Err((error, buf));
        }
        let Some(op) = self.take_op() else { return Err((self.full(), buf)) };
        self.activate(op, command, user_data, timeout);
        self.tracker.put_buf(op, buf);
        self.stats.submitted += 1;
        let id = CommandId { op, generation: self.ops[op as usize].generation };
        if self.state == State::Ready
            && self.waiting.is_empty()
            // What fits into one command as it is, as most does, needs no cutting.
            && let Err(error) = match command.span() {
                Some(span) if plain && span.is_whole() => self.issue_whole(op, &command.sqe(), &span),
                _ => self.issue(op),
            }
        {
            self.give_up(error);
            return Ok(id);
        }
        if !self.ops[op as usize].all_issued {
            self.waiting.push_back((op, id.generation));
            self.stats.queued += 1;
        }
        if self.unflushed && !self.delay_submit {
            self.flush();
        }
        Ok(id)
    }

    #[cold]
    fn too_long(&self, len: usize) -> Error {
        Error::api_misuse(format!(
            "{len} bytes do not fit into one command, which takes {}",
            self.max_transfer
        ))
    }

    #[cold]
    fn full(&self) -> Error {
        Error::exhausted(format!(
            "the queue is full: {} operations are outstanding; process completions first",
            self.outstanding()
        ))
    }

    /// Whether the parts of data in several buffers, memory of a dma-buf, and metadata apart from the data can go with a command.
    #[cold]
    fn check_parts(&mut self, span: Option<Span>, buf: &IoBuf) -> Result<()> {
        if let Some(device) = buf.device() {
            self.transport.take_device_memory(device.region())?;
        }
        if buf.bufs().len() > usize::from(self.max_segments) {
            self.check_segments(span, buf)?;
        }
        match buf.metadata() {
            Some(metadata) => self.check_metadata(span, metadata.len()),
            None => Ok(()),
        }
    }

    /// Whether data in more buffers than one command may have can be cut so that every piece has few enough.
    fn check_segments(&self, span: Option<Span>, buf: &IoBuf) -> Result<()> {
        let segments = self.max_segments;
        let block = span.map_or(0, |span| span.block_bytes as usize);
        let fits = match block {
            0 => buf.bufs().iter().filter(|buf| !buf.is_empty()).count() <= usize::from(segments),
            _ => (0..buf.len()).step_by(block).all(|offset| buf.reach(offset, segments) >= block),
        };
        if fits {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "data of one command in more than {segments} buffers over this transport"
        )))
    }

    /// Whether `len` bytes of metadata apart from the data can go with a command.
    fn check_metadata(&self, span: Option<Span>, len: usize) -> Result<()> {
        if !self.separate_metadata {
            return Err(Error::unsupported("metadata in a buffer of its own over this transport").hint(
                "NVMe over Fabrics carries metadata at the end of each logical block, in the data buffer",
            ));
        }
        let wanted = match span {
            None => return Ok(()),
            Some(span) => span.blocks.saturating_mul(u64::from(span.metadata_bytes)),
        };
        if wanted == len as u64 {
            return Ok(());
        }
        Err(Error::api_misuse(format!(
            "{len} bytes of metadata for a command that transfers {wanted} apart from its data"
        )))
    }

    #[inline(always)]
    fn activate(&mut self, index: u32, command: impl Command, user_data: u64, timeout: Timeout) {
        let op = &mut self.ops[index as usize];
        op.active = true;
        op.command = command.kept();
        (op.user_data, op.timeout) = (user_data, timeout);
        (op.issued, op.all_issued, op.in_flight) = (0, false, 0);
        (op.result, op.failed_at, op.seen) = (Ok(0), usize::MAX, None);
        (op.retries, op.late) = (0, 0);
    }

    /// Issues the one command of an operation whose span is whole, if there is a slot for it.
    #[inline(always)]
    fn issue_whole(&mut self, index: u32, sqe: &Sqe, span: &Span) -> Result<()> {
        // That the product fits is part of being whole.
        let len = span.blocks as u32 * span.block_bytes;
        let Some((slot, cid)) = self.tracker.begin(index, 0, len, sqe.direction()) else { return Ok(()) };
        let op = &mut self.ops[index as usize];
        (op.issued, op.in_flight, op.all_issued) = (span.blocks, 1, true);
        self.unflushed = true;
        self.stats.commands += 1;
        let sqe = sqe.issued(cid, Some((span.slba, (span.blocks - 1) as u16)));
        self.transport.submit(slot, &sqe, &self.tracker)
    }

    /// Issues as many commands of an operation as there are slots for.
    #[inline]
    fn issue(&mut self, index: u32) -> Result<()> {
        loop {
            let op = &mut self.ops[index as usize];
            if op.all_issued {
                return Ok(());
            }
            let (sqe, span) = (op.command.sqe(), op.command.span());
            let direction = sqe.direction();
            let mut metadata = None;
            let (offset, len, blocks, range) = match span {
                None => {
                    let buf = self.tracker.buf(index);
                    metadata = buf.metadata().map(|metadata| (0, metadata.len() as u32));
                    (0, buf.len() as u32, 1, None)
                }
                Some(span) => match span.piece(op.issued) {
                    Some(mut piece) => {
                        let buf = self.tracker.buf(index);
                        if !buf.is_plain()
                            && span.block_bytes > 0
                            && buf.bufs().len() > usize::from(self.max_segments)
                        {
                            let reach =
                                buf.reach(piece.offset, self.max_segments) / span.block_bytes as usize;
                            piece = piece.shortened(u32::try_from(reach).unwrap_or(u32::MAX));
                        }
                        if span.metadata_bytes > 0 {
                            metadata = span.metadata(op.issued, piece.blocks);
                        }
                        let blocks_z = (piece.blocks - 1) as u16;
                        (piece.offset, piece.len, u64::from(piece.blocks), Some((piece.slba, blocks_z)))
                    }
                    None => {
                        op.all_issued = true;
                        return Ok(());
                    }
                },
            };
            let Some((slot, cid)) = self.tracker.begin(index, offset, len, direction) else { return Ok(()) };
            if let Some((offset, len)) = metadata {
                self.tracker.set_metadata(slot, offset, len);
            }
            let mut sqe = sqe.issued(cid, range);
            if let Some(span) = span
                && span.ref_tag_bits > 0
            {
                span.advance_ref_tag(&mut sqe, op.issued);
            }
            op.issued += blocks;
            op.in_flight += 1;
            let last = span.is_none_or(|span| op.issued >= span.blocks);
            op.all_issued = last;
            self.unflushed = true;
            self.stats.commands += 1;
            self.transport.submit(slot, &sqe, &self.tracker)?;
            if last {
                return Ok(());
            }
        }
    }

    /// Issues what waits, oldest first, as far as there are slots, and sends it unless there is more to come.
    fn issue_waiting(&mut self, more_to_come: bool) -> Result<()> {
        while let Some(&(index, generation)) = self.waiting.front() {
            let op = &self.ops[index as usize];
            if op.active && op.generation == generation && !op.all_issued {
                self.issue(index)?;
                if !self.ops[index as usize].all_issued {
                    break;
                }
            }
            self.waiting.pop_front();
        }
        if self.unflushed && !more_to_come { self.flush_transport() } else { Ok(()) }
    }

    /// Sends what was submitted. A failure shows at the next [`Engine::process`].
    pub(crate) fn flush(&mut self) {
        if self.state == State::Ready
            && let Err(error) = self.flush_transport()
        {
            self.give_up(error);
        }
    }

    fn flush_transport(&mut self) -> Result<()> {
        self.unflushed = false;
        self.transport.flush(&self.tracker)
    }

    /// Cancels an operation that has no command in flight. `false` when the controller may hold one.
    pub(crate) fn cancel(&mut self, id: CommandId, mut f: impl FnMut(Done)) -> bool {
        let Some(op) = self.live(id) else { return false };
        if op.in_flight > 0 {
            return false;
        }
        op.result = Err(CommandError::Aborted);
        op.all_issued = true;
        let done = self.retire(id.op, None);
        f(done);
        true
    }

    /// Stops issuing more commands of an operation and lists the identifiers of those in flight, for Abort.
    pub(crate) fn abort_targets(&mut self, id: CommandId) -> Vec<u16> {
        let Some(op) = self.live(id) else { return Vec::new() };
        if !op.all_issued {
            op.all_issued = true;
            op.result = Err(CommandError::Aborted);
        }
        self.tracker
            .outstanding()
            .filter(|&(_, op)| op == id.op)
            .map(|(slot, _)| self.tracker.cid(slot))
            .collect()
    }

    fn live(&mut self, id: CommandId) -> Option<&mut Op> {
        self.ops.get_mut(id.op as usize).filter(|op| op.active && op.generation == id.generation)
    }

    // --- completing ----------------------------------------------------------------------------------------------

    /// Moves data, completes operations, issues waiting ones. Returns how many operations completed. Once the queue
    /// pair is given up, first every outstanding operation is completed with an error, then this returns the reason.
    #[inline]
    pub(crate) fn process(&mut self, max: usize, f: &mut impl FnMut(Done)) -> Result<usize> {
        let budget = if max == 0 { usize::MAX } else { max };
        let mut count = 0;
        match self.state {
            State::Connecting | State::FabricsConnect => return Ok(0),
            State::Ready => {
                self.stats.polls += 1;
                let result = self.poll_transport(budget, &mut count, f);
                if let Err(error) = result {
                    self.give_up(error);
                }
                if count == 0 {
                    self.stats.idle_polls += 1;
                }
                let weight = if count == 0 { POLLS_PER_CLOCK / IDLE_POLLS_PER_CLOCK } else { 1 };
                self.polls_since_clock += weight;
                if self.polls_since_clock >= POLLS_PER_CLOCK {
                    self.polls_since_clock = 0;
                    if self.outstanding() > 0 {
                        self.check_deadlines((self.clock)());
                    }
                }
                if self.state == State::Ready || count > 0 {
                    return Ok(count);
                }
            }
            State::Quiescing | State::Failed => {}
        }
        if self.state == State::Quiescing {
            let now = (self.clock)();
            match self.transport.disconnect(now) {
                Quiesce::Pending if now < self.quiesce_deadline => return Ok(0),
                Quiesce::Done => self.quiesced(),
                Quiesce::Pending | Quiesce::Unconfirmed => self.leak_outstanding(),
            }
        }
        count += self.complete_all(budget, f);
        if count > 0 || self.keep.hold { Ok(count) } else { Err(self.failure_or_closed()) }
    }

    #[inline]
    fn poll_transport(&mut self, budget: usize, count: &mut usize, f: &mut impl FnMut(Done)) -> Result<()> {
        if self.unflushed {
            self.flush_transport()?;
        }
        let polled = self.transport.poll(&mut self.tracker, budget);
        // Completions that arrived before a failure still count.
        let drained = self.drain(&mut |done| {
            *count += 1;
            f(done);
        });
        polled?;
        drained?;
        // Whoever collects commands submits more in the place of what has completed: these leave together.
        if self.waiting.is_empty() { Ok(()) } else { self.issue_waiting(self.delay_submit && *count > 0) }
    }

    /// Takes the transport's completions.
    #[inline]
    fn drain(&mut self, f: &mut impl FnMut(Done)) -> Result<()> {
        for index in 0..self.tracker.completed() {
            let Some((op_index, offset, len, cqe)) = self.tracker.take_completed(index) else { break };
            if op_index == CONNECT_OP {
                self.connect_cqe = Some(cqe);
                drop(self.tracker.take_buf(op_index));
                continue;
            }
            let op = &mut self.ops[op_index as usize];
            op.in_flight -= 1;
            let status = cqe.status();
            if status.is_success() {
                self.stats.bytes += u64::from(len);
                if op.in_flight == 0 && op.all_issued && op.result.is_ok() {
                    // The usual end. What would be written here would be read again at once.
                    f(self.retire(op_index, Some(cqe.result64())));
                    continue;
                }
                if let Ok(value) = &mut op.result {
                    *value = cqe.result64();
                }
            } else if op.result.is_ok() || offset < op.failed_at {
                // The piece with the lowest offset speaks for the whole; nothing more is issued.
                op.result = Err(CommandError::Status(status));
                op.failed_at = offset;
                op.all_issued = true;
            }
            // A large operation has its time for every command, not for all of them.
            op.seen = None;
            if op.in_flight == 0 && op.all_issued {
                f(self.retire(op_index, None));
            }
        }
        self.tracker.clear_completed();
        Ok(())
    }

    /// Frees a finished operation and gives its result (a success's value, or what is noted) and buffer out.
    #[inline]
    fn retire(&mut self, index: u32, success: Option<u64>) -> Done {
        let buf = self.tracker.take_buf(index);
        let op = &mut self.ops[index as usize];
        let id = CommandId { op: index, generation: op.generation };
        op.active = false;
        op.generation = op.generation.wrapping_add(1);
        self.free_ops.push(index);
        self.stats.completed += 1;
        let result = success.map_or(op.result, Ok);
        if result.is_err() {
            self.stats.errors += 1;
        }
        Done { id, user_data: op.user_data, result, buf }
    }

    // --- giving up -----------------------------------------------------------------------------------------------

    fn give_up(&mut self, error: Error) {
        self.fail(error, CommandError::Disconnected, (self.clock)());
    }

    /// Gives the queue pair up. The first reason stays. Outstanding operations are completed by
    /// [`Engine::process`], with `failed_as`, once the transport is quiesced.
    pub(crate) fn fail(&mut self, error: Error, failed_as: CommandError, now: Instant) {
        if matches!(self.state, State::Quiescing | State::Failed) {
            return;
        }
        tracing::debug!(%error, outstanding = self.outstanding(), "queue pair given up");
        self.failure = Some(error);
        self.failed_as = failed_as;
        self.drained = false;
        self.state = State::Quiescing;
        self.quiesce_deadline = now + QUIESCE;
        self.connect = None;
        match self.transport.disconnect(now) {
            Quiesce::Pending => {}
            Quiesce::Done => self.quiesced(),
            Quiesce::Unconfirmed => self.leak_outstanding(),
        }
    }

    /// Gives the queue pair up and waits, a short time, until its transport is quiesced.
    pub(crate) fn shut_down(&mut self) {
        let mut now = Instant::now();
        let deadline = now + DROP_QUIESCE;
        self.fail(Error::disconnected("the queue pair was closed"), CommandError::Disconnected, now);
        while self.quiesce_step(now, deadline) {
            std::thread::sleep(Duration::from_millis(1));
            now = Instant::now();
        }
    }

    /// One step towards a quiesced transport, at most until `deadline`. Returns whether there is more to do.
    fn quiesce_step(&mut self, now: Instant, deadline: Instant) -> bool {
        if self.state != State::Quiescing {
            return false;
        }
        match self.transport.disconnect(now) {
            Quiesce::Done => self.quiesced(),
            Quiesce::Pending if now < deadline => return true,
            Quiesce::Pending | Quiesce::Unconfirmed => self.leak_outstanding(),
        }
        false
    }

    /// Whether the transport has confirmed that the peer reaches nothing of it any more.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.quiesced
    }

    fn quiesced(&mut self) {
        self.quiesced = true;
        self.state = State::Failed;
    }

    /// As [`Engine::shut_down`] for an I/O queue, whose transport may need admin commands: `assist` gives them to it and waits a
    /// moment. Returns whether the transport confirmed that the peer is done with the queue.
    pub(crate) fn shut_down_with(&mut self, mut assist: impl FnMut(&mut Self)) -> bool {
        let now = Instant::now();
        let deadline = now + DROP_QUIESCE;
        self.fail(Error::disconnected("the queue pair was closed"), CommandError::Disconnected, now);
        while self.quiesce_step(Instant::now(), deadline) {
            assist(self);
        }
        self.quiesced
    }

    /// The admin command the transport needs to be quiesced, while it is being given up.
    pub(crate) fn quiesce_command(&mut self) -> Option<Sqe> {
        if self.state == State::Quiescing { self.transport.quiesce_command() } else { None }
    }

    /// The end of an admin command the transport asked for, while it is being given up.
    pub(crate) fn quiesce_completed(&mut self, cqe: Option<&Cqe>) {
        self.transport.quiesce_completed(cqe);
    }

    /// The peer may write the outstanding commands' memory at any time from now on: give the memory up.
    fn leak_outstanding(&mut self) {
        let mut bytes = 0;
        let (slots, ops): (Vec<u16>, BTreeSet<u32>) = self.tracker.outstanding().unzip();
        slots.into_iter().for_each(|slot| self.tracker.release(slot));
        for op in ops {
            let buf = self.tracker.take_buf(op);
            bytes += buf.len();
            buf.leak();
        }
        if bytes > 0 {
            tracing::error!(
                bytes,
                "queue pair could not be quiesced; the memory of its commands is given up"
            );
        }
        self.leaked = true;
        self.state = State::Failed;
    }

    fn failure_or_closed(&self) -> Error {
        self.failure.clone().unwrap_or_else(|| Error::disconnected("the queue pair is closed"))
    }
}

impl<Q: TransportQpair> Drop for Engine<Q> {
    fn drop(&mut self) {
        // Buffers of commands in flight go back to the pool only once nobody can access them.
        self.shut_down();
    }
}
