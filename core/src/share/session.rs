//! One connection of a secondary, in the primary: a virtual controller in front of the real one.
//!
//! Admin commands go to the controller, but for those that would change what all processes rely on: these are answered here.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use zerocopy::little_endian::{U16, U32, U64};

use super::channel::{Bell, Channel, Packet, Received, wait};
use super::lent::{Lent, QueueCommand, has_stopped};
use super::server::{Entry, Hub};
use super::wire::{Facts, Hello, Reply, Request, VERSION};
use crate::controller::{AdminPending, Controller, Event, Link, Phase, Watcher};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::features::FeatureId;
use crate::spec::log_page::{AsyncEvent, AsyncEventType, LogPageId, NoticeEvent};
use crate::spec::{AdminOpcode, Sqe, Status};

/// Admin commands of a secondary that may be outstanding; more wait in the socket.
const MAX_PENDING: usize = 64;
/// Replies that may wait for a secondary that does not read; then it is not listened to any more.
const MAX_REPLIES: usize = 64;
/// How long a connection may stay without a controller.
const IDLE: Duration = Duration::from_secs(10);
/// Events kept for a secondary; with more, everything may have changed.
const MAX_EVENTS: usize = 256;
/// How long a secondary has to take what it is told last.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest time an admin command of a secondary may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// What the controller tells a session, from whichever thread.
struct Watch {
    bell: Arc<Bell>,
    events: Mutex<VecDeque<Event>>,
    link: AtomicU64,
}

impl Watcher for Watch {
    fn event(&self, event: &Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(*event);
        self.bell.ring();
    }

    fn look(&self, link: Link) {
        let value = link.association << 2 | link.phase as u64;
        if self.link.swap(value, Ordering::AcqRel) != value {
            self.bell.ring();
        }
    }
}

pub(super) struct Session {
    hub: Arc<Hub>,
    entry: Arc<Entry>,
    main: Channel,
    /// Packets that did not fit into the socket yet.
    out: VecDeque<Vec<u8>>,
    greeted: bool,
    attached: Option<Attached>,
    since: Instant,
}

/// The controller a session is about.
struct Attached {
    id: u32,
    controller: Controller,
    /// Requests that are answered at once.
    calls: Channel,
    watch: Arc<Watch>,
    pending: Vec<Pending>,
    /// Where its queues are in memory.
    lent: Option<Lent>,
    /// The association the secondary knows of, 0 for none.
    association: u64,
    /// Namespaces that changed since the secondary read the list.
    changed: BTreeSet<u32>,
    leases: BTreeSet<u16>,
}

/// An admin command that is outstanding.
struct Pending {
    tag: u64,
    command: AdminPending,
    /// It makes or deletes a queue.
    queue: Option<QueueCommand>,
}

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the other side is gone")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Message(#[from] super::wire::WireError),
    #[error("{0}")]
    Misbehaved(&'static str),
    #[error("the controller is lost")]
    Removed,
    #[error("the primary lets go of the instance")]
    Stopped,
}

impl Session {
    pub(super) fn new(hub: Arc<Hub>, entry: Arc<Entry>, main: Channel) -> Self {
        let out = VecDeque::new();
        Self { hub, entry, main, out, greeted: false, attached: None, since: Instant::now() }
    }

    /// Serves the connection to its end.
    pub(super) fn run(mut self) {
        let pid = self.entry.pid;
        let end = loop {
            match self.step() {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        match &end {
            End::Closed => tracing::debug!(pid, "a process is done with its controller"),
            End::Stopped | End::Removed => {}
            end => tracing::warn!(pid, %end, "the connection of a process is ended"),
        }
        let why = end.to_string();
        // Queues in memory first: that they are gone is what it is told. Connections it ends by itself.
        let lent = self.attached.as_mut().is_none_or(Attached::end_queues);
        let last = match &end {
            End::Message(_) | End::Misbehaved(_) => Some(Reply::Refused(&why)),
            End::Stopped if lent => Some(Reply::Removed(&why)),
            End::Stopped => Some(Reply::Refused(&why)),
            _ => None,
        };
        if let Some(last) = last {
            // It is told as far as it listens.
            let _ = self.main.send(&last.encode(0), &[]);
        }
        if let Some(attached) = self.attached.take() {
            attached.end();
        }
    }

    fn step(&mut self) -> Result<(), End> {
        if self.entry.stop.load(Ordering::Acquire) {
            return Err(End::Stopped);
        }
        self.entry.bell.silence();
        let mut again = self.flush()?;
        if self.has_room()
            && let Some((packet, fds)) = received(&self.main)?
        {
            again = true;
            self.request(&packet, &fds)?;
        }
        if let Some(attached) = &mut self.attached {
            if let Some((packet, fds)) = received(&attached.calls)? {
                again = true;
                let (answer, fds) = attached.call(&packet, fds)?;
                self.entry.queues.store(attached.leases.len() as u32, Ordering::Release);
                // One request at a time, or a few: there is room for their answers.
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                attached.calls.send_by(&answer, &fds, Instant::now() + LAST_WORDS)?;
            }
            let waker = Waker::from(Arc::clone(&self.entry.bell));
            again |= attached.completions(&waker, &mut self.out);
            attached.events(&mut self.out);
            if attached.follow(&mut self.out)? {
                let deadline = Instant::now() + LAST_WORDS;
                for packet in self.out.drain(..) {
                    self.main.send_by(&packet, &[], deadline)?;
                }
                return Err(End::Removed);
            }
        } else if self.since.elapsed() > IDLE {
            return Err(End::Misbehaved("no controller was asked for"));
        }
        if again { Ok(()) } else { self.sleep() }
    }

    /// Whether another request can be taken.
    fn has_room(&self) -> bool {
        let pending = self.attached.as_ref().map_or(0, |attached| attached.pending.len());
        self.out.len() < MAX_REPLIES && pending < MAX_PENDING
    }

    fn flush(&mut self) -> Result<bool, End> {
        let mut sent = false;
        while let Some(packet) = self.out.front() {
            if !self.main.send(packet, &[])? {
                if self.out.len() > 4 * MAX_REPLIES {
                    return Err(End::Misbehaved("it does not read what it is told"));
                }
                break;
            }
            self.out.pop_front();
            sent = true;
        }
        Ok(sent)
    }

    fn sleep(&self) -> Result<(), End> {
        let mut time = Duration::from_secs(1);
        let mut fds = vec![(self.entry.bell.as_fd(), false)];
        if self.has_room() || !self.out.is_empty() {
            fds.push((self.main.as_fd(), !self.out.is_empty()));
        }
        if let Some(attached) = &self.attached {
            fds.push((attached.calls.as_fd(), false));
            if attached.is_unsettled() {
                time = Duration::from_millis(5);
            }
        }
        Ok(wait(&fds, time)?)
    }

    fn say(&mut self, tag: u64, reply: &Reply<'_>) {
        self.out.push_back(reply.encode(tag));
    }

    fn request(&mut self, packet: &[u8], fds: &[OwnedFd]) -> Result<(), End> {
        let (tag, request) = Request::decode(packet)?;
        if !fds.is_empty() {
            return Err(End::Misbehaved("descriptors with a message that has none"));
        }
        match request {
            Request::Hello(hello) if !self.greeted => {
                if hello.version.get() != VERSION {
                    return Err(End::Misbehaved("another version of the protocol"));
                }
                self.greeted = true;
                self.say(tag, &Reply::Welcome(Hello::ours()));
            }
            _ if !self.greeted => return Err(End::Misbehaved("no greeting")),
            Request::List => {
                for (id, controller) in self.hub.controllers() {
                    let trid = controller.trid().to_string();
                    let hostnqn = controller.host().nqn.to_string();
                    let facts = facts(id, &controller);
                    self.say(tag, &Reply::Controller { facts, hostnqn: &hostnqn, trid: &trid });
                }
                self.say(tag, &Reply::End);
            }
            Request::Processes => {
                for process in self.hub.processes() {
                    self.say(tag, &Reply::Process(process));
                }
                self.say(tag, &Reply::End);
            }
            Request::Attach(id) => self.attach(tag, id)?,
            Request::Ping => self.say(tag, &Reply::Pong),
            Request::Admin { sqe, data_in, timeout_ms, data } => {
                let Some(attached) = &mut self.attached else {
                    return Err(End::Misbehaved("an admin command without a controller"));
                };
                let timeout = Duration::from_millis(timeout_ms.into()).min(MAX_TIMEOUT);
                if let Some(packet) = attached.admin(tag, sqe, data_in as usize, data, timeout) {
                    self.out.push_back(packet);
                }
            }
            Request::Quit => {
                let Some(attached) = &mut self.attached else {
                    return Err(End::Misbehaved("the end of queues without a controller"));
                };
                if !attached.quit((tag >> 32) as u32) {
                    return Err(End::Misbehaved("its queues cannot be deleted"));
                }
                self.say(tag, &Reply::Ended);
            }
            _ => return Err(End::Misbehaved("a message that does not belong here")),
        }
        Ok(())
    }

    fn attach(&mut self, tag: u64, id: u32) -> Result<(), End> {
        if self.attached.is_some() {
            return Err(End::Misbehaved("a second controller on one connection"));
        }
        let found = self.hub.controllers().into_iter().find(|(known, _)| *known == id);
        let Some((_, controller)) = found.filter(|(_, controller)| controller.reference()) else {
            self.say(tag, &Reply::Refused("the primary has this controller no more, or it is not connected"));
            return Ok(());
        };
        let (calls, theirs) = match Channel::pair() {
            Ok(pair) => pair,
            Err(error) => {
                drop(controller.detach_async());
                return Err(error.into());
            }
        };
        let watch = Arc::new(Watch {
            bell: Arc::clone(&self.entry.bell),
            events: Mutex::default(),
            link: AtomicU64::new(0),
        });
        let weak: Weak<Watch> = Arc::downgrade(&watch);
        controller.watch(weak);
        let lender = controller.lender();
        let facts = facts(id, &controller);
        let attached = Attached {
            id,
            association: if facts.has(Facts::READY) { facts.association.get() } else { 0 },
            controller,
            calls,
            watch,
            pending: Vec::new(),
            lent: lender.map(Lent::new),
            changed: BTreeSet::new(),
            leases: BTreeSet::new(),
        };
        self.attached = Some(attached);
        self.entry.attached.store(true, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(1);
        self.main.send_by(&Reply::Attached(facts).encode(tag), &[theirs.as_fd()], deadline)?;
        Ok(())
    }
}

fn received(channel: &Channel) -> Result<Option<Packet>, End> {
    match channel.receive()? {
        Received::Nothing => Ok(None),
        Received::Closed => Err(End::Closed),
        Received::Packet(packet, fds) => Ok(Some((packet, fds))),
    }
}

/// How a controller is, for others.
fn facts(id: u32, controller: &Controller) -> Facts {
    let link = controller.link();
    let options = controller.options();
    let flags = [
        (link.phase == Phase::Ready, Facts::READY),
        (options.header_digest, Facts::HEADER_DIGEST),
        (options.data_digest, Facts::DATA_DIGEST),
        (controller.lender().is_some(), Facts::MEMORY),
    ];
    Facts {
        id: U32::new(id),
        cntlid: U16::new(controller.cntlid()),
        flags: U16::new(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum()),
        cap: U64::new(controller.cap().0),
        vs: U32::new(controller.version().0),
        reserved: U32::new(0),
        association: U64::new(link.association),
        hostid: controller.host().id.to_bytes(),
    }
}

impl Attached {
    /// Whether there is something to look after although nothing wakes the session.
    fn is_unsettled(&self) -> bool {
        let link = self.controller.link();
        self.association != 0 && (link.phase != Phase::Ready || link.association != self.association)
    }

    // --- admin commands ------------------------------------------------------------------------------------------------

    /// Takes an admin command; returns the answer if there is one at once.
    fn admin(
        &mut self,
        tag: u64,
        sqe: Sqe,
        data_in: usize,
        data: &[u8],
        timeout: Duration,
    ) -> Option<Vec<u8>> {
        if let Some(lent) = &mut self.lent {
            lent.heard_of((tag >> 32) as u32);
        }
        let answer = |status: Status, value: u64, data: &[u8]| {
            Some(Reply::AdminDone { status: Some(status), value, data }.encode(tag))
        };
        let success = |value| answer(Status::SUCCESS, value, &[]);
        let mut forwarded = Sqe { flags: 0, cid: U16::new(0), mptr: U64::new(0), ..sqe };
        forwarded.dptr = Sqe::default().dptr;
        let mut queue = None;
        match AdminOpcode(sqe.opcode) {
            AdminOpcode::CREATE_IO_SQ
            | AdminOpcode::CREATE_IO_CQ
            | AdminOpcode::DELETE_IO_SQ
            | AdminOpcode::DELETE_IO_CQ
                if let Some(lent) = &mut self.lent =>
            {
                match lent.admit(&sqe, (tag >> 32) as u32, self.association, &self.leases) {
                    Ok(Some((clean, command))) => (forwarded, queue) = (clean, Some(command)),
                    Ok(None) => {
                        return Some(Reply::AdminDone { status: None, value: 0, data: &[] }.encode(tag));
                    }
                    Err(status) => return answer(status, 0, &[]),
                }
            }
            // The primary's business, whatever a secondary thinks.
            AdminOpcode::FABRICS
            | AdminOpcode::ASYNC_EVENT_REQUEST
            | AdminOpcode::KEEP_ALIVE
            | AdminOpcode::DOORBELL_BUFFER_CONFIG
            | AdminOpcode::CREATE_IO_SQ
            | AdminOpcode::CREATE_IO_CQ
            | AdminOpcode::DELETE_IO_SQ
            | AdminOpcode::DELETE_IO_CQ => {
                return answer(Status::INVALID_OPCODE.with_dnr(), 0, &[]);
            }
            AdminOpcode::ABORT => {
                let sqid = sqe.cdw10.get() as u16;
                if !self.leases.contains(&sqid) {
                    // DW0 bit 0: not aborted.
                    return success(1);
                }
            }
            AdminOpcode::SET_FEATURES => match FeatureId(sqe.cdw10.get() as u8) {
                FeatureId::NUMBER_OF_QUEUES => {
                    let queues = u64::from(self.controller.num_io_queues().max(1) - 1);
                    return success(queues | queues << 16);
                }
                FeatureId::ASYNC_EVENT_CONFIG
                | FeatureId::KEEP_ALIVE_TIMER
                | FeatureId::HOST_BEHAVIOR_SUPPORT
                | FeatureId::HOST_IDENTIFIER => return success(0),
                FeatureId::HOST_MEMORY_BUFFER => {
                    return answer(Status::INVALID_FIELD.with_dnr(), 0, &[]);
                }
                _ => {}
            },
            AdminOpcode::GET_FEATURES if sqe.cdw10.get() as u8 == FeatureId::KEEP_ALIVE_TIMER.0 => {
                // The one between secondary and primary is the secondary's to choose.
                return success(0);
            }
            AdminOpcode::GET_LOG_PAGE
                if sqe.cdw10.get() as u8 == LogPageId::CHANGED_NAMESPACES.0
                    && self.controller.options().handle_events =>
            {
                let retain = sqe.cdw10.get() & 1 << 15 != 0;
                let list = self.changed_list(data_in, retain);
                return answer(Status::SUCCESS, 0, &list);
            }
            _ => {}
        }
        // A command that passes its deadline ends the primary's admin queue: a secondary cannot make that happen sooner.
        let timeout = timeout.max(self.controller.options().admin_timeout);
        let command = self.controller.admin(forwarded).data_in(data_in).data_out(data.to_vec());
        match command.timeout(timeout).submit() {
            Ok(command) => {
                if let (Some(lent), Some(queue)) = (&mut self.lent, &mut queue) {
                    lent.sent(queue, self.controller.link().association);
                }
                self.pending.push(Pending { tag, command, queue });
                None
            }
            Err(error) => self.not_sent(tag, &error, queue),
        }
    }

    /// The answer to a command that could not be sent.
    fn not_sent(&mut self, tag: u64, error: &Error, queue: Option<QueueCommand>) -> Option<Vec<u8>> {
        if let (Some(lent), Some(queue)) = (&mut self.lent, queue) {
            // What was not made is not there; what was not deleted is.
            lent.never_sent(queue);
        }
        let lost = matches!(error.kind(), ErrorKind::Disconnected(_));
        if !lost {
            tracing::debug!(%error, "an admin command of another process was not sent");
        }
        let status = (!lost).then_some(Status::INTERNAL_ERROR);
        Some(Reply::AdminDone { status, value: 0, data: &[] }.encode(tag))
    }

    /// The Changed Attached Namespace List as this secondary would see it (Base 2.1 §5.1.12.1.5).
    fn changed_list(&mut self, len: usize, retain: bool) -> Vec<u8> {
        let mut list = Vec::with_capacity(len);
        if self.changed.len() > 1024 {
            list.extend_from_slice(&u32::MAX.to_le_bytes());
        } else {
            self.changed.iter().for_each(|nsid| list.extend_from_slice(&nsid.to_le_bytes()));
        }
        if !retain {
            self.changed.clear();
        }
        list.resize(len, 0);
        list
    }

    /// Passes on what has completed.
    fn completions(&mut self, waker: &Waker, out: &mut VecDeque<Vec<u8>>) -> bool {
        let mut context = Context::from_waker(waker);
        let before = out.len();
        let lent = &mut self.lent;
        self.pending.retain_mut(|Pending { tag, command, queue }| {
            let Poll::Ready(result) = Pin::new(command).poll(&mut context) else { return true };
            let (status, value, data) = match &result {
                Ok(result) => (Some(Status::SUCCESS), result.value, &result.data[..]),
                Err(error) => (error.status(), 0, &[][..]),
            };
            if let (Some(lent), Some(queue)) = (&mut *lent, *queue) {
                lent.completed(queue, status);
            }
            out.push_back(Reply::AdminDone { status, value, data }.encode(*tag));
            false
        });
        out.len() > before
    }

    // --- what happens to the controller --------------------------------------------------------------------------------

    fn events(&mut self, out: &mut VecDeque<Vec<u8>>) {
        let events = std::mem::take(&mut *self.watch.events.lock().unwrap_or_else(PoisonError::into_inner));
        let unread = !self.changed.is_empty();
        let mut namespaces = false;
        for event in events {
            let event = match event {
                Event::State(_) => continue,
                Event::Namespace { nsid, .. } => {
                    self.changed.insert(nsid);
                    namespaces = true;
                    continue;
                }
                Event::Ana { .. } => AsyncEvent::notice(NoticeEvent::ANA_CHANGE, LogPageId::ANA),
                Event::DiscoveryLog => {
                    AsyncEvent::notice(NoticeEvent::DISCOVERY_LOG_CHANGE, LogPageId::DISCOVERY)
                }
                Event::Error(error) => AsyncEvent {
                    event_type: AsyncEventType::ERROR,
                    info: error.0,
                    log_page: LogPageId::ERROR_INFORMATION,
                },
                Event::Health(health) => AsyncEvent {
                    event_type: AsyncEventType::HEALTH,
                    info: health.0,
                    log_page: LogPageId::SMART,
                },
                Event::Other(event) => event,
            };
            if out.len() < 2 * MAX_REPLIES {
                out.push_back(Reply::Event(event.to_dw0()).encode(0));
            }
        }
        if namespaces && !unread {
            let event =
                AsyncEvent::notice(NoticeEvent::NAMESPACE_ATTRIBUTE_CHANGED, LogPageId::CHANGED_NAMESPACES);
            out.push_back(Reply::Event(event.to_dw0()).encode(0));
        }
    }

    /// Tells the secondary when the controller goes or is back; returns whether it is gone for good.
    fn follow(&mut self, out: &mut VecDeque<Vec<u8>>) -> Result<bool, End> {
        let link = self.controller.link();
        if link.phase == Phase::Lost && self.controller.is_quiet() {
            let why = self.why();
            // Where queues are in memory it has to be known that they are gone.
            let gone = self.lent.is_none() || self.controller.is_quiesced();
            if let Some(lent) = self.lent.as_mut().filter(|_| gone) {
                lent.stopped(&self.controller, None);
            }
            out.push_back(if gone { Reply::Removed(&why) } else { Reply::Refused(&why) }.encode(0));
            return Ok(true);
        }
        let there = link.phase == Phase::Ready && link.association == self.association;
        // None of its queues exists any more once the admin queue is quiesced.
        if self.association != 0 && !there && (link.phase == Phase::Ready || self.controller.is_quiet()) {
            let why = self.why();
            if let Some(lent) = &mut self.lent {
                if !has_stopped(&self.controller, self.association) {
                    return Ok(false);
                }
                settle(&mut self.pending, lent);
                let now = (link.phase == Phase::Ready).then_some(link.association);
                if !lent.stopped(&self.controller, now) {
                    return Err(End::Misbehaved("its queues cannot be deleted"));
                }
            }
            out.push_back(Reply::Down(&why).encode(0));
            self.association = 0;
        }
        if self.association == 0 && link.phase == Phase::Ready {
            self.association = link.association;
            out.push_back(Reply::Up(facts(self.id, &self.controller)).encode(0));
        }
        Ok(false)
    }

    fn why(&self) -> String {
        self.controller
            .failure()
            .map_or_else(|| "the controller was reset".to_owned(), |error| error.to_string())
    }

    // --- what is answered at once ----------------------------------------------------------------------------------------

    fn call(&mut self, packet: &[u8], mut fds: Vec<OwnedFd>) -> Result<(Vec<u8>, Vec<OwnedFd>), End> {
        let (tag, request) = Request::decode(packet)?;
        let file = if request == Request::Map { fds.pop() } else { None };
        if !fds.is_empty() {
            return Err(End::Misbehaved("descriptors with a message that has none"));
        }
        let refused = |error: Error| Ok((Reply::Refused(&error.to_string()).encode(tag), Vec::new()));
        let said = |reply: Reply<'_>| Ok((reply.encode(tag), Vec::new()));
        match (request, &mut self.lent) {
            (Request::Lease, _) => match self.controller.take_qid() {
                Some(qid) => {
                    self.leases.insert(qid);
                    said(Reply::Leased(qid))
                }
                None => said(Reply::Refused("all I/O queues the controller granted are in use")),
            },
            (Request::Return(qid), lent) => {
                if lent.as_ref().is_some_and(|lent| lent.has_queue(qid)) || !self.leases.remove(&qid) {
                    return Err(End::Misbehaved(
                        "it returns an I/O queue that exists, or that it does not have",
                    ));
                }
                self.controller.free_qid(qid);
                said(Reply::Done)
            }
            (Request::Function, Some(lent)) => match lent.function() {
                Ok((function, fds)) => Ok((Reply::Function(&function).encode(tag), fds)),
                Err(error) => refused(error),
            },
            (Request::Vector(qid), Some(lent)) => {
                if !self.leases.contains(&qid) {
                    return Err(End::Misbehaved(
                        "it asks for the interrupt of a queue that it does not have",
                    ));
                }
                match lent.vector(qid) {
                    Ok(fd) => Ok((Reply::Vector.encode(tag), fd.into_iter().collect())),
                    Err(error) => refused(error),
                }
            }
            (Request::Map, Some(lent)) => {
                let file = file.ok_or(End::Misbehaved("memory without a descriptor"))?;
                match lent.map(file) {
                    Ok((memory, iova)) => said(Reply::Mapped { memory, iova }),
                    // It is not the memory's fault.
                    Err(error) if self.controller.link().phase != Phase::Ready => {
                        said(Reply::Down(&error.to_string()))
                    }
                    Err(error) => refused(error),
                }
            }
            (Request::Unmap(memory), Some(lent)) => match lent.unmap(memory) {
                Ok(()) => said(Reply::Done),
                Err(error) => refused(error),
            },
            _ => Err(End::Misbehaved("a message that does not belong here")),
        }
    }

    /// Deletes the queues of an admin queue that the secondary gives up. Waits for it; returns whether they are gone.
    fn quit(&mut self, epoch: u32) -> bool {
        let Some(lent) = &mut self.lent else { return true };
        settle(&mut self.pending, lent);
        lent.delete_queues(&self.controller, Some(epoch))
    }

    /// Deletes whatever queues there are. Waits for it; returns whether they are gone.
    fn end_queues(&mut self) -> bool {
        let Some(lent) = &mut self.lent else { return true };
        settle(&mut self.pending, lent);
        lent.delete_queues(&self.controller, None)
    }

    /// The secondary is gone, and its queues in memory are: everything it had goes back.
    fn end(mut self) {
        self.pending.clear();
        let kept = self.lent.take().map_or_else(BTreeSet::new, Lent::end);
        self.leases.retain(|qid| !kept.contains(qid));
        for qid in std::mem::take(&mut self.leases) {
            self.controller.free_qid(qid);
        }
        let controller = self.controller;
        let trid = controller.trid().clone();
        if let Err(error) = controller.detach() {
            tracing::warn!(%error, %trid, "a controller that only another process used did not shut down");
        }
    }
}

/// Waits for the commands that make or delete queues.
fn settle(pending: &mut Vec<Pending>, lent: &mut Lent) {
    let (queues, others) = std::mem::take(pending).into_iter().partition(|pending| pending.queue.is_some());
    *pending = others;
    let queues: Vec<Pending> = queues;
    for Pending { command, queue, .. } in queues {
        let status = match command.wait() {
            Ok(_) => Some(Status::SUCCESS),
            Err(error) => error.status(),
        };
        if let Some(queue) = queue {
            lent.completed(queue, status);
        }
    }
}
