//! A queue pair: command capsules out, responses in, one completion queue for both. NVMe RDMA Transport 1.1 §3.
//!
//! ```text
//!   submit ─▶ capsule, batch ──flush──▶ one doorbell ─▶ device ─▶ controller
//!   poll   ◀─ completion queue: SEND done, response arrived ◀──── device
//!              └── receives posted again, in one go
//! ```

mod connect;
mod link;
mod reject;
mod share;

use std::cell::Cell;
use std::fmt;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use nvmf_core::dma::{DmaBuf, DmaPool, IoBuf, RegionId};
use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::fabrics::FabricsType;
use nvmf_core::spec::{AdminOpcode, Cqe, Sqe};
use nvmf_core::transport::{
    ConnectProgress, GroupShares, QpairSetup, Quiesce, TransportQpair, TransportStats,
};
use nvmf_core::{DmaRegion, Error, Result};
use zerocopy::{FromBytes, IntoBytes};

use crate::memory::{Found, Keys};
use crate::proto::{self, Answered, Ledger, Piece, Signal};
use crate::provider::{
    Bind, CmEvent, Domain, Endpoint, POLL_BATCH, Provider, ReceiveRequest, SendBatch, SendRequest, Work,
    WorkCompletion, WorkStatus,
};
use crate::qpair::connect::Connector;
pub(crate) use crate::qpair::connect::{Memories, Plan, Route};
use crate::qpair::link::{Kind, Link, RESPONSE_BYTES};
use crate::qpair::share::Share;

/// How often an idle queue pair asks the connection manager for news: that is a system call.
const CM_CHECK: Duration = Duration::from_millis(20);
/// Idle polls between two looks at the clock.
const IDLE_POLLS: u32 = 64;
/// How long flushed work is waited for before the queue pair is destroyed without.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Regions whose keys a queue pair remembers.
const CACHED_REGIONS: usize = 1024;

enum Phase<P: Provider> {
    /// Resolving and connecting.
    Opening(Box<Connector<P>>),
    Running,
    /// Given up, for this reason.
    Failed(Error),
}

/// How far giving up has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Teardown {
    /// Not begun.
    None,
    /// The queue pair is in the error state; these markers have not come back yet.
    Flushing {
        deadline: Instant,
        send: bool,
        receive: bool,
    },
    Done,
    Unconfirmed,
}

/// A queue pair of a controller reached over RDMA.
pub struct RdmaQpair<P: Provider> {
    phase: Phase<P>,
    link: Option<Link<P>>,
    ledger: Ledger,
    limits: proto::Limits,
    qid: u16,
    peer: String,
    batch: SendBatch,
    /// Receives whose message was taken, to be posted again.
    reposts: Vec<ReceiveRequest>,
    /// Commands that wait for a credit, by slot.
    held: Vec<Sqe>,
    pieces: Vec<Piece>,
    /// Copies of data in more pieces than the controller takes, by slot.
    bounce: Vec<Option<DmaBuf>>,
    pool: DmaPool,
    /// Keys of regions, by region.
    regions: Vec<(RegionId, Keys)>,
    completions: [WorkCompletion; POLL_BATCH],
    /// Responses that came with completions of a queue that is shared.
    responses: [[u8; RESPONSE_BYTES]; POLL_BATCH],
    /// The slot of the Connect command.
    connect_slot: Option<u16>,
    /// The last poll stopped at its budget.
    more: bool,
    /// The next completion raises a notification.
    armed: Cell<bool>,
    idle_polls: u32,
    last_check: Instant,
    teardown: Teardown,
    stats: TransportStats,
    /// Keys for single commands: given, and ended by the controller.
    keys: (u64, u64),
}

impl<P: Provider> RdmaQpair<P> {
    pub(crate) fn new(setup: &QpairSetup, plan: Plan<P>) -> Result<Self> {
        let now = Instant::now();
        let limits = plan.limits;
        let slots = usize::from(setup.slots);
        let pool = plan.route.bounce.clone();
        Ok(Self {
            phase: Phase::Opening(Box::new(Connector::new(setup, plan, now)?)),
            link: None,
            ledger: Ledger::new(setup.slots, setup.entries, 1),
            limits,
            qid: setup.qid,
            peer: String::new(),
            batch: SendBatch::default(),
            reposts: Vec::with_capacity(slots + 1),
            held: vec![Sqe::default(); slots],
            pieces: Vec::new(),
            bounce: (0..slots).map(|_| None).collect(),
            pool,
            regions: Vec::new(),
            completions: [WorkCompletion::default(); POLL_BATCH],
            responses: [[0; RESPONSE_BYTES]; POLL_BATCH],
            connect_slot: None,
            more: false,
            armed: Cell::new(false),
            idle_polls: 0,
            last_check: now,
            teardown: Teardown::None,
            stats: TransportStats::default(),
            keys: (0, 0),
        })
    }

    fn queue_name(&self) -> String {
        if self.qid == 0 { "the admin queue".to_owned() } else { format!("I/O queue {}", self.qid) }
    }

    /// Adds to an error which connection it is about.
    fn context(&self, error: Error) -> Error {
        let error = error.doing(format!("NVMe/RDMA connection of {}", self.queue_name()));
        if self.peer.is_empty() { error } else { error.peer(&self.peer) }
    }

    fn failed(&mut self, error: Error) -> Error {
        let error = self.context(error);
        self.phase = Phase::Failed(error.clone());
        error
    }

    fn check_running(&self) -> Result<()> {
        match &self.phase {
            Phase::Running => Ok(()),
            Phase::Failed(error) => Err(error.clone()),
            Phase::Opening(_) => {
                Err(Error::api_misuse("the queue pair was used before its connection was established"))
            }
        }
    }

    fn connect_step(&mut self, now: Instant) -> Result<ConnectProgress> {
        let connector = match &mut self.phase {
            Phase::Opening(connector) => connector,
            Phase::Running => return Ok(ConnectProgress::Established),
            Phase::Failed(error) => return Err(error.clone()),
        };
        let polled = connector.poll(now);
        if let Some(peer) = connector.peer() {
            self.peer = peer.to_string();
        }
        let Some(link) = polled? else { return Ok(ConnectProgress::Pending) };
        self.ledger = Ledger::new(self.held.len() as u16, link.entries, link.sends);
        self.ledger.set_window(link.window);
        if !link.windows.is_empty() {
            self.ledger.with_keys();
            // A window is one piece of memory.
            self.limits.descriptors = 1;
        }
        self.ledger.receives_posted(link.receives);
        self.limits.elements = link.send_elements;
        self.link = Some(link);
        self.phase = Phase::Running;
        self.last_check = now;
        Ok(ConnectProgress::Established)
    }

    // --- sending -------------------------------------------------------------------------------------------------------

    /// The keys for a piece of a region: from this queue pair's own table, else from the protection domain's.
    fn keys(&mut self, region: &DmaRegion, offset: usize, len: usize) -> Result<Keys> {
        let id = region.id();
        let place = self.regions.binary_search_by_key(&id, |&(known, _)| known);
        let mut index = match place {
            Ok(index) => return Ok(self.regions[index].1),
            Err(index) => index,
        };
        let link = self.link.as_ref().ok_or_else(closed)?;
        match link.memory.keys(region, offset, len)? {
            Found::Part(keys) => Ok(keys),
            Found::Whole(keys) => {
                if self.regions.len() >= CACHED_REGIONS {
                    // Regions come and go with large buffers; identifiers are never used again.
                    self.regions.clear();
                    index = 0;
                }
                self.regions.insert(index, (id, keys));
                Ok(keys)
            }
        }
    }

    /// Finds where the data of `slot` is.
    fn locate(&mut self, slot: u16, tracker: &Tracker) -> Result<()> {
        let len = tracker.data_len(slot);
        self.pieces.clear();
        let mut offset = 0;
        while let Some(segment) = tracker.segment(slot, offset) {
            let keys = self.keys(segment.region, segment.offset, segment.len)?;
            let piece = Piece::new(segment.region, segment.offset, segment.len, keys);
            match self.pieces.last_mut() {
                Some(last) if last.continues_with(&piece) => last.length += piece.length,
                _ => self.pieces.push(piece),
            }
            offset += segment.len as u32;
        }
        if offset == len {
            Ok(())
        } else {
            Err(Error::api_misuse("the command's buffers are shorter than its data"))
        }
    }

    /// Copies the data of `slot` into one piece.
    fn gather(&mut self, slot: u16, tracker: &Tracker) -> Result<()> {
        let copy = tracker.copy(slot, &self.pool)?;
        let extent = copy.extent().ok_or_else(|| Error::exhausted("a buffer without memory"))?;
        let (region, offset) = (extent.region().clone(), extent.offset());
        let keys = self.keys(&region, offset, copy.len())?;
        self.pieces.clear();
        self.pieces.push(Piece::new(&region, offset, copy.len(), keys));
        if let Some(bounce) = self.bounce.get_mut(usize::from(slot)) {
            *bounce = Some(copy);
        }
        Ok(())
    }

    /// A command is over: its data goes where it belongs, and its slot is free.
    fn finish(&mut self, slot: u16, cqe: Cqe, tracker: &mut Tracker) {
        if let Some(copy) = self.bounce.get_mut(usize::from(slot)).and_then(Option::take)
            && tracker.direction(slot) == DataDirection::ControllerToHost
        {
            // As long as the command's data: all of it fits.
            let _ = tracker.write(slot, 0, &copy);
        }
        tracker.complete(slot, cqe);
    }

    /// Puts into the batch what makes a key for just the data of `slot`. Whether there is one.
    fn give_key(&mut self, slot: u16, direction: DataDirection) -> Result<bool> {
        let link = self.link.as_mut().ok_or_else(closed)?;
        let id = link.name(Kind::Account.id(u32::from(slot)));
        let Some(key) = link.windows.get_mut(usize::from(slot)) else { return Ok(false) };
        let [piece] = &mut self.pieces[..] else { return Ok(false) };
        if proto::capsule::goes_along(direction, &[*piece], &self.limits) {
            return Ok(false);
        }
        // Never the same as the last one; only the lowest byte may change.
        *key = *key & !0xff | key.wrapping_add(1) & 0xff;
        let first = self.batch.binds.len() as u32;
        let writable = direction == DataDirection::ControllerToHost;
        self.batch.binds.push(Bind { window: slot, key: *key, element: piece.element(), writable });
        let bind = SendRequest { work: Work::Bind, id, first, count: 0, signalled: false, inline: false };
        self.batch.requests.push(bind);
        piece.confine(*key);
        self.keys.0 += 1;
        Ok(true)
    }

    /// Puts a command into the batch.
    fn send(&mut self, slot: u16, mut sqe: Sqe, tracker: &Tracker) -> Result<()> {
        if let Err(error) = self.locate(slot, tracker) {
            if !tracker.is_open_dma_buf(slot) {
                return Err(error);
            }
            self.gather(slot, tracker)?;
        }
        if !proto::capsule::fits(tracker.direction(slot), &self.pieces, &self.limits) {
            self.gather(slot, tracker)?;
        }
        let direction = tracker.direction(slot);
        let keyed = match &self.link {
            Some(link) if !link.windows.is_empty() => self.give_key(slot, direction)?,
            _ => false,
        };
        let link = self.link.as_ref().ok_or_else(closed)?;
        let ring = link.ring()?;
        let start = ring.capsule(slot);
        let write = |offset, bytes: &[u8]| ring.memory.write_bytes(start + offset, bytes);
        let capsule = proto::capsule::describe(&mut sqe, direction, &self.pieces, &self.limits, write);
        ring.memory.write_bytes(start, sqe.as_bytes());
        let inline = !capsule.gathers && capsule.length <= link.inline;
        let first = self.batch.elements.len() as u32;
        self.batch.elements.push(ring.element(start, capsule.length));
        self.stats.bytes_sent += u64::from(capsule.length);
        if capsule.gathers {
            self.batch.elements.extend(proto::capsule::elements(&self.pieces));
            self.stats.bytes_sent += u64::from(tracker.data_len(slot));
        }
        let signal = self.ledger.post(slot, !inline, keyed);
        let kind = if signal == Signal::Command { Kind::Command } else { Kind::Account };
        self.batch.requests.push(SendRequest {
            work: Work::Send,
            id: link.name(kind.id(u32::from(slot))),
            first,
            count: self.batch.elements.len() as u32 - first,
            signalled: signal != Signal::None,
            inline,
        });
        Ok(())
    }

    /// Posts what is in the batch and every waiting command there is a credit for; receives first.
    fn post(&mut self, tracker: &Tracker) -> Result<()> {
        self.post_receives()?;
        while let Some(slot) = self.ledger.release() {
            let sqe = self.held[usize::from(slot)];
            self.send(slot, sqe, tracker)?;
        }
        if self.batch.requests.is_empty() {
            return Ok(());
        }
        let link = self.link.as_mut().ok_or_else(closed)?;
        let posted = link.endpoint.post_send(&self.batch);
        self.batch.clear();
        self.stats.sends += 1;
        posted.map_err(|error| Error::disconnected(format!("posting commands failed: {error}")))
    }

    fn post_receives(&mut self) -> Result<()> {
        if self.reposts.is_empty() {
            return Ok(());
        }
        let link = self.link.as_mut().ok_or_else(closed)?;
        let posted = link.endpoint.post_receive(&self.reposts);
        self.ledger.receives_posted(self.reposts.len() as u32);
        self.reposts.clear();
        posted.map_err(|error| Error::disconnected(format!("posting receives failed: {error}")))
    }

    // --- receiving -----------------------------------------------------------------------------------------------------

    /// Takes completions until there are none or the budget is used up. Returns how many.
    fn reap(&mut self, tracker: &mut Tracker, budget: usize) -> Result<usize> {
        let mut found = 0;
        self.more = false;
        loop {
            // Every work completion completes at most one command.
            let room = budget.saturating_sub(tracker.completed()).min(POLL_BATCH);
            if room == 0 {
                self.more = true;
                return Ok(found);
            }
            let link = self.link.as_mut().ok_or_else(closed)?;
            let count = link.poll(&mut self.completions[..room], &mut self.responses)?;
            if count == 0 {
                self.stats.empty_receives += 1;
                return Ok(found);
            }
            self.stats.receives += 1;
            found += count;
            let mut failure: Option<WorkCompletion> = None;
            for index in 0..count {
                let completion = self.completions[index];
                if completion.status == WorkStatus::SUCCESS {
                    self.completed(&completion, index, tracker)?;
                } else if failure.is_none_or(|first| first.status == WorkStatus::FLUSHED) {
                    // The first that was not just flushed is the cause.
                    failure = Some(completion);
                }
            }
            if let Some(completion) = failure {
                return Err(self.work_failed(&completion));
            }
            // Fewer than there was room for: that was all.
            if count < room {
                return Ok(found);
            }
        }
    }

    /// One that succeeded, the `place`th of those taken.
    fn completed(&mut self, completion: &WorkCompletion, place: usize, tracker: &mut Tracker) -> Result<()> {
        let number = completion.id as u32;
        let broken =
            |violation: proto::Violation| Error::disconnected(format!("the RDMA device reports {violation}"));
        match Kind::of(completion.id) {
            Some(Kind::Receive) => self.response(number, place, completion, tracker),
            Some(Kind::Command) => {
                let slot = number as u16;
                if let Some(cqe) = self.ledger.sent(Some(slot)).map_err(broken)? {
                    self.finish(slot, cqe, tracker);
                }
                Ok(())
            }
            Some(Kind::Account) => self.ledger.sent(None).map(drop).map_err(broken),
            Some(Kind::Invalidate) => {
                let slot = number as u16;
                if let Some(cqe) = self.ledger.key_ended(slot).map_err(broken)? {
                    self.finish(slot, cqe, tracker);
                }
                Ok(())
            }
            Some(Kind::Drain) | None => Ok(()),
        }
    }

    /// A response capsule in receive buffer `index`, or that came with the `place`th completion.
    fn response(
        &mut self,
        index: u32,
        place: usize,
        completion: &WorkCompletion,
        tracker: &mut Tracker,
    ) -> Result<()> {
        self.ledger
            .received()
            .map_err(|violation| Error::disconnected(format!("the RDMA device reports {violation}")))?;
        if completion.length as usize != RESPONSE_BYTES {
            return Err(Error::peer_misbehaved(format!(
                "a response capsule of {} bytes instead of {RESPONSE_BYTES}",
                completion.length
            )));
        }
        let link = self.link.as_ref().ok_or_else(closed)?;
        let mut bytes = self.responses[place];
        if link.is_member() {
            // The receive was posted again when the response was copied.
            self.ledger.receives_posted(1);
        } else {
            let ring = link.ring()?;
            let receive = ring.receive(index);
            let Some(receive) = receive else {
                return Err(Error::disconnected("the RDMA device reports a receive that was not posted"));
            };
            ring.memory.read_bytes(ring.response(index), &mut bytes);
            self.reposts.push(receive);
        }
        let cqe = Cqe::read_from_bytes(&bytes)
            .map_err(|_| Error::peer_misbehaved("a response capsule that is no completion"))?;
        self.stats.bytes_received += RESPONSE_BYTES as u64;
        let cid = cqe.cid.get();
        let unknown = || {
            Error::peer_misbehaved(format!(
                "a response to command identifier {cid:#06x}, which is not outstanding"
            ))
        };
        let slot = tracker.lookup(cid).ok_or_else(unknown)?;
        let window = self.link.as_ref().filter(|link| !link.windows.is_empty());
        let window = window.and_then(|link| link.windows.get(usize::from(slot)).copied());
        let window = window.filter(|_| self.ledger.is_keyed(slot));
        if let Some(key) = completion.invalidated {
            if window != Some(key) {
                // No such key was offered for invalidation: what it belongs to, if anything, is gone with it.
                return Err(Error::peer_misbehaved(format!(
                    "the response to command {cid:#06x} invalidated key {key:#010x}, which was not offered for that"
                )));
            }
            self.keys.1 += 1;
        }
        let answered =
            self.ledger.answered(slot, cqe, completion.invalidated.is_some()).map_err(|_| unknown())?;
        if self.connect_slot == Some(slot) {
            self.connect_slot = None;
            self.ledger.connected(cqe.sqhd.get());
        }
        match answered {
            Answered::Over(cqe) => self.finish(slot, cqe, tracker),
            Answered::EndKey => self.end_key(slot, window),
            Answered::Wait => {}
        }
        Ok(())
    }

    /// Puts into the batch what ends the key for the data of `slot`.
    #[cold]
    fn end_key(&mut self, slot: u16, key: Option<u32>) {
        let (Some(link), Some(key)) = (&self.link, key) else { return };
        self.ledger.post_end_of_key();
        self.batch.requests.push(SendRequest {
            work: Work::Invalidate,
            id: link.name(Kind::Invalidate.id(u32::from(slot))),
            first: key,
            count: 0,
            signalled: true,
            inline: false,
        });
    }

    /// Why a work request failed.
    fn work_failed(&mut self, completion: &WorkCompletion) -> Error {
        let status = completion.status;
        if status == WorkStatus::FLUSHED {
            // Something before it ended the connection; the connection manager may know what.
            return match self.news() {
                Err(error) => error,
                Ok(()) => self.with_cause("the RDMA queue pair failed and flushed its work".to_owned()),
            };
        }
        let what = match Kind::of(completion.id) {
            Some(Kind::Receive) => "receiving a response",
            _ => "sending a command",
        };
        if status == WorkStatus::LOCAL_LENGTH && what == "receiving a response" {
            return Error::peer_misbehaved(format!("a response capsule longer than {RESPONSE_BYTES} bytes"));
        }
        self.with_cause(format!("{what} failed: {status} (vendor code {:#x})", completion.vendor))
    }

    /// A lost connection, and what is wrong with the device if that can be told.
    fn with_cause(&self, what: String) -> Error {
        let link = self.link.as_ref();
        match link.and_then(|link| link.endpoint.trouble()) {
            Some(trouble) => Error::disconnected(format!("{trouble}: {what}")),
            None => Error::disconnected(what),
        }
    }

    /// Looks at what the connection manager has to say. An error ends the connection.
    fn news(&mut self) -> Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        loop {
            let event = link.endpoint.next_event();
            let event = event.map_err(|error| {
                Error::disconnected(format!("the RDMA connection manager failed: {error}"))
            })?;
            let device = || link.memory.domain().device();
            return Err(match event {
                None => return Ok(()),
                Some(CmEvent::Disconnected) => Error::disconnected("the controller ended the connection"),
                Some(CmEvent::DeviceRemoved) => {
                    link.memory.domain().set_lost();
                    Error::disconnected(format!("the RDMA device {} was removed", device()))
                }
                Some(CmEvent::AddressChanged) => Error::disconnected(format!(
                    "the local address moved away from the RDMA device {}",
                    device()
                )),
                Some(CmEvent::ConnectError(errno) | CmEvent::Unreachable(errno)) => {
                    Error::disconnected(format!("the connection failed: {}", connect::os_error(errno)))
                }
                Some(_) => continue,
            });
        }
    }

    fn poll_running(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        let found = self.reap(tracker, budget)?;
        if self.armed.get() {
            // Somebody slept on the descriptor, which stays readable until this is done.
            if let Some(link) = &mut self.link
                && link.endpoint.take_notifications()
            {
                self.armed.set(false);
                if found == 0 {
                    self.reap(tracker, budget)?;
                }
            } else if found == 0 {
                self.news()?;
            }
        } else if found == 0 {
            self.idle_polls += 1;
            if self.link.as_ref().is_some_and(Link::is_asleep) {
                self.news()?;
            } else if self.idle_polls >= IDLE_POLLS {
                self.idle_polls = 0;
                let now = Instant::now();
                if now.saturating_duration_since(self.last_check) >= CM_CHECK {
                    self.last_check = now;
                    self.news()?;
                }
            }
        }
        self.post(tracker)
    }

    // --- giving up -----------------------------------------------------------------------------------------------------

    /// Begins to give the queue pair up.
    fn begin_teardown(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Failed(_)) {
            // Whatever was begun ends with the connector.
            self.phase = Phase::Failed(self.context(closed()));
        }
        self.batch.clear();
        self.reposts.clear();
        let Some(link) = &mut self.link else {
            self.teardown = Teardown::Done;
            return;
        };
        match link.begin_flush() {
            Ok(()) => {
                let deadline = now + FLUSH_TIMEOUT;
                let receive = !link.is_member();
                self.teardown = Teardown::Flushing { deadline, send: true, receive };
            }
            Err(error) => {
                tracing::debug!(%error, "an RDMA queue pair is destroyed without being flushed");
                self.destroy();
            }
        }
    }

    /// Collects flushed work until both markers are back.
    fn flush_step(&mut self, now: Instant) {
        let Teardown::Flushing { deadline, mut send, mut receive } = self.teardown else { return };
        let Some(link) = &mut self.link else { return };
        while send || receive {
            match link.poll(&mut self.completions, &mut self.responses) {
                Ok(count @ 1..) => {
                    for completion in &self.completions[..count] {
                        if Kind::of(completion.id) == Some(Kind::Drain) {
                            match completion.id as u32 {
                                link::DRAIN_SEND => send = false,
                                _ => receive = false,
                            }
                        }
                    }
                }
                Ok(0) if now < deadline => {
                    self.teardown = Teardown::Flushing { deadline, send, receive };
                    return;
                }
                Ok(_) | Err(_) => {
                    tracing::debug!(
                        qid = self.qid,
                        "an RDMA queue pair was not flushed in time; it is destroyed"
                    );
                    break;
                }
            }
        }
        self.destroy();
    }

    /// Destroys the queue pair, after which the device accesses nothing for it.
    fn destroy(&mut self) {
        if let (given @ 1.., ended) = std::mem::take(&mut self.keys) {
            tracing::debug!(
                qid = self.qid,
                given,
                ended,
                "keys for single commands, and how many the controller ended"
            );
        }
        self.teardown = match self.link.take().map(Link::destroy) {
            None | Some(Ok(())) => {
                self.bounce.iter_mut().for_each(|bounce| *bounce = None);
                Teardown::Done
            }
            Some(Err(error)) => {
                self.bounce.iter_mut().filter_map(Option::take).for_each(|copy| IoBuf::from(copy).leak());
                tracing::error!(%error, qid = self.qid, "an RDMA queue pair could not be destroyed");
                Teardown::Unconfirmed
            }
        };
    }
}

impl<P: Provider> TransportQpair for RdmaQpair<P> {
    fn poll_connect(&mut self, now: Instant) -> Result<ConnectProgress> {
        self.connect_step(now).map_err(|error| self.failed(error))
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        self.check_running()?;
        if sqe.opcode == AdminOpcode::FABRICS.0 && sqe.fctype() == FabricsType::CONNECT.0 {
            self.connect_slot = Some(slot);
        }
        if self.ledger.submit(slot) {
            return self.send(slot, *sqe, tracker).map_err(|error| self.failed(error));
        }
        match self.held.get_mut(usize::from(slot)) {
            Some(held) => *held = *sqe,
            None => return Err(Error::api_misuse(format!("slot {slot} of a queue of {}", self.held.len()))),
        }
        Ok(())
    }

    fn flush(&mut self, tracker: &Tracker) -> Result<()> {
        self.check_running()?;
        self.post(tracker).map_err(|error| self.failed(error))
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        self.check_running()?;
        self.poll_running(tracker, budget).map_err(|error| self.failed(error))
    }

    fn disconnect(&mut self, now: Instant) -> Quiesce {
        if self.teardown == Teardown::None {
            self.begin_teardown(now);
        }
        self.flush_step(now);
        match self.teardown {
            Teardown::None | Teardown::Flushing { .. } => Quiesce::Pending,
            Teardown::Done => Quiesce::Done,
            Teardown::Unconfirmed => Quiesce::Unconfirmed,
        }
    }

    fn join_group(&mut self, shares: &GroupShares) {
        // One that is connected keeps the queues it has.
        if let Phase::Opening(connector) = &mut self.phase
            && self.qid != 0
        {
            connector.join(shares.get_or_insert_with(Share::<P>::new));
        }
    }

    fn take_device_memory(&mut self, region: &DmaRegion) -> Result<()> {
        // Before there is a connection it is not known which device will have it.
        match &self.link {
            Some(link) => link.memory.keys(region, 0, 0).map(drop).map_err(|error| self.context(error)),
            None => Ok(()),
        }
    }

    fn event_fd(&self) -> Option<RawFd> {
        match (&self.link, &self.phase) {
            (Some(link), _) => Some(link.endpoint.event_fd()),
            (None, Phase::Opening(connector)) => connector.event_fd(),
            (None, _) => None,
        }
    }

    fn has_local_work(&self) -> bool {
        if self.more {
            return true;
        }
        let (Phase::Running, Some(link)) = (&self.phase, &self.link) else { return false };
        // Programs that only poll never get here, and the device raises no interrupt for them.
        link.may_have_more(&self.armed)
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

impl<P: Provider> fmt::Debug for RdmaQpair<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaQpair")
            .field("qid", &self.qid)
            .field("peer", &self.peer)
            .field("ledger", &self.ledger)
            .field("teardown", &self.teardown)
            .finish_non_exhaustive()
    }
}

impl<P: Provider> Drop for RdmaQpair<P> {
    fn drop(&mut self) {
        self.destroy();
    }
}

fn closed() -> Error {
    Error::disconnected("the queue pair is closed")
}
