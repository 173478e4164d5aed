//! The secondary's side: finding the primary, and one connection for each controller.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::channel::{Channel, Received};
use super::directory::Place;
use super::wire::{Facts, Hello, MAX_FDS, ProcessFacts, Reply, Request, VERSION, WireError};
use crate::error::{Error, Result};
use crate::host::HostIdentity;
use crate::nqn::{HostId, Nqn};
use crate::spec::registers::Cap;
use crate::transport_id::TransportId;

/// How long the primary may take to answer what it answers at once.
const ANSWER: Duration = Duration::from_secs(5);
/// Most controllers and processes that are listed.
const MAX_LISTED: usize = 4096;
/// Packets that may wait to be sent.
const MAX_WAITING: usize = 1024;

/// An instance whose primary is another process.
#[derive(Debug)]
pub(crate) struct Instance {
    place: Place,
}

/// A controller that the primary shares.
#[derive(Clone, Debug)]
pub(crate) struct SharedController {
    pub(crate) facts: Facts,
    pub(crate) host: HostIdentity,
    pub(crate) trid: TransportId,
}

impl Instance {
    pub(crate) fn new(place: Place) -> Self {
        Self { place }
    }

    fn context(&self, error: Error) -> Error {
        error.peer(&self.place).hint("is the primary still running? `nvmf share` starts one")
    }

    /// Connects and exchanges greetings.
    pub(crate) fn greet(&self) -> Result<Connection> {
        Connection::open(&self.place).map_err(|error| self.context(error))
    }

    /// What the primary shares.
    pub(crate) fn controllers(&self) -> Result<Vec<SharedController>> {
        self.list().map_err(|error| self.context(error.doing("asking for the shared controllers")))
    }

    fn list(&self) -> Result<Vec<SharedController>> {
        let connection = self.greet()?;
        let mut controllers = Vec::new();
        connection.ask(&Request::List, |reply, _| match reply {
            Reply::Controller { facts, hostnqn, trid } if controllers.len() < MAX_LISTED => {
                let nqn = Nqn::new(hostnqn)
                    .map_err(|error| Error::peer_misbehaved(format!("a host NQN: {error}")))?;
                let id = HostId::from_bytes(facts.hostid);
                controllers.push(SharedController {
                    facts,
                    host: HostIdentity { nqn, id },
                    trid: trid.parse::<TransportId>()?,
                });
                Ok(false)
            }
            Reply::End => Ok(true),
            reply => Err(unexpected(&reply)),
        })?;
        Ok(controllers)
    }

    /// The processes of the instance.
    pub(crate) fn processes(&self) -> Result<Vec<ProcessFacts>> {
        let ask = || {
            let connection = self.greet()?;
            let mut processes = Vec::new();
            connection.ask(&Request::Processes, |reply, _| match reply {
                Reply::Process(facts) if processes.len() < MAX_LISTED => {
                    processes.push(facts);
                    Ok(false)
                }
                Reply::End => Ok(true),
                reply => Err(unexpected(&reply)),
            })?;
            Ok(processes)
        };
        ask().map_err(|error: Error| self.context(error.doing("asking for the processes of the instance")))
    }

    /// The shared controller at `trid`.
    pub(crate) fn find(&self, trid: &TransportId) -> Result<SharedController> {
        let controllers = self.controllers()?;
        let found = controllers
            .iter()
            .find(|known| is_same(&known.trid, trid) && known.trid.subnqn() == trid.subnqn())
            .cloned();
        found.ok_or_else(|| {
            let known: Vec<String> = controllers.iter().map(|known| known.trid.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join("; ") };
            Error::disconnected(format!("the primary shares no controller {trid}; it shares: {known}"))
                .peer(&self.place)
        })
    }

    /// Attaches to a shared controller.
    pub(crate) fn attach(&self, controller: &SharedController) -> Result<Primary> {
        self.try_attach(controller)
            .map_err(|error| self.context(error.doing("attaching to a shared controller")))
    }

    fn try_attach(&self, controller: &SharedController) -> Result<Primary> {
        let connection = self.greet()?;
        let mut attached = None;
        connection.ask(&Request::Attach(controller.facts.id.get()), |reply, fds| match reply {
            Reply::Attached(facts) => {
                let calls = fds
                    .pop()
                    .filter(|_| fds.is_empty())
                    .ok_or_else(|| Error::peer_misbehaved("the primary sent no socket with its answer"))?;
                attached = Some((facts, Channel::received(calls)?));
                Ok(true)
            }
            reply => Err(unexpected(&reply)),
        })?;
        let (facts, calls) = attached.ok_or_else(|| Error::peer_misbehaved("the primary did not answer"))?;
        Ok(Primary::new(connection.channel, calls, facts, connection.process))
    }
}

/// Whether two identifiers name the same controller: who we are does not matter, and without a subsystem any is meant.
pub(crate) fn is_same(shared: &TransportId, asked: &TransportId) -> bool {
    let bare = |trid: &TransportId| (trid.trtype(), trid.traddr().to_owned(), trid.trsvcid().to_owned());
    let port = |trid: &TransportId| trid.is_discovery() && trid.trsvcid() == "8009";
    let address = bare(shared) == bare(asked)
        || port(asked) && shared.trtype() == asked.trtype() && shared.traddr() == asked.traddr();
    address && (asked.is_discovery() || asked.subnqn().is_none() || shared.subnqn() == asked.subnqn())
}

fn unexpected(reply: &Reply<'_>) -> Error {
    match reply {
        Reply::Refused(why) => Error::unsupported(format!("the primary refuses: {why}")),
        Reply::Removed(why) | Reply::Down(why) => Error::disconnected((*why).to_owned()),
        _ => Error::peer_misbehaved("an answer that does not belong to what was asked"),
    }
}

fn malformed(error: WireError) -> Error {
    Error::peer_misbehaved(format!("the primary sent {error}"))
}

fn closed() -> Error {
    Error::disconnected("the primary is gone")
}

/// A connection to the primary that is about no controller yet.
pub(crate) struct Connection {
    channel: Channel,
    /// Readable once the primary's process has ended; `None` where the kernel does not tell.
    process: Option<OwnedFd>,
}

impl Connection {
    fn open(place: &Place) -> Result<Self> {
        let channel = Channel::connect(&place.socket())?;
        let (uid, pid) = channel.peer()?;
        // The process is there: its socket is. Whether it is still the same is asked below, once this is open.
        let process = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let process = process
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        let ours = rustix::process::geteuid().as_raw();
        if uid != ours {
            // It may say why it does not want us.
            if let Ok(Some((packet, _))) = channel.receive_by(Instant::now() + Duration::from_secs(1))
                && let Ok((_, Reply::Refused(why))) = Reply::decode(&packet)
            {
                return Err(Error::unsupported(format!("the primary refuses: {why}")));
            }
            return Err(Error::unsupported(format!(
                "the primary runs as user {uid}, this process as {ours}: they do not share"
            )));
        }
        let connection = Self { channel, process };
        connection.ask(&Request::Hello(Hello::ours()), |reply, _| match reply {
            Reply::Welcome(hello) if hello.version.get() == VERSION => Ok(true),
            Reply::Welcome(_) => Err(Error::unsupported("the primary speaks another version")),
            reply => Err(unexpected(&reply)),
        })?;
        Ok(connection)
    }

    /// Sends a request and hands what is answered to `f` until that says it is all.
    fn ask(
        &self,
        request: &Request<'_>,
        mut f: impl FnMut(Reply<'_>, &mut Vec<OwnedFd>) -> Result<bool>,
    ) -> Result<()> {
        ask(&self.channel, request, &mut f)
    }
}

/// The error of a call.
fn late(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::timed_out("waiting for the primary", ANSWER),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => closed(),
        _ => error.into(),
    }
}

/// One request on a channel that carries nothing else, and its answers.
fn ask(
    channel: &Channel,
    request: &Request<'_>,
    f: &mut dyn FnMut(Reply<'_>, &mut Vec<OwnedFd>) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + ANSWER;
    // What a primary that refuses us has said is still there to be read.
    let sent = channel.send_by(&request.encode(0), &[], deadline);
    loop {
        let received = channel.receive_by(deadline).map_err(late)?;
        let Some((packet, mut fds)) = received else {
            sent.map_err(late)?;
            return Err(closed());
        };
        let (_, reply) = Reply::decode(&packet).map_err(malformed)?;
        if f(reply, &mut fds)? {
            return Ok(());
        }
    }
}

/// What the primary said and nobody has dealt with yet, or an answer to an admin command.
pub(super) enum Told {
    Done {
        tag: u64,
        status: Option<crate::spec::Status>,
        value: u64,
        data: Vec<u8>,
    },
    Pong {
        tag: u64,
    },
    Event(u32),
    /// No I/O queue of this process exists any more.
    Ended {
        tag: u64,
    },
    Down(String),
}

/// How the controller is for this process, where its I/O queues are in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Queues can be made. None of before exists any more.
    Usable,
    /// The primary deletes the queues of this process.
    Ending,
    /// No queue of this process exists any more: nothing reaches its memory on their behalf.
    Ended,
    /// The primary is gone without a word: queues may still exist.
    Lost,
}

/// Is told how the controller is, by whichever thread notices; must not block for long.
pub trait PrimaryWatcher: Send + Sync {
    /// It is so from now on.
    fn look(&self, standing: Standing);
}

/// Requests that are answered at once; one at a time.
struct Calls {
    channel: Channel,
    /// Tells answers apart from those that came too late.
    last: u64,
    /// Queue identifiers that came too late.
    spare: Vec<u16>,
}

/// A connection to the primary of an instance that is about one controller. Its end is that of the attachment.
pub struct Primary {
    main: Channel,
    calls: Mutex<Calls>,
    process: Option<OwnedFd>,
    waiting: Mutex<VecDeque<Vec<u8>>>,
    facts: Mutex<Facts>,
    /// The controller can be used, as far as the primary has said.
    up: AtomicBool,
    /// Why it is over.
    gone: Mutex<Option<Error>>,
    watchers: Mutex<Vec<Weak<dyn PrimaryWatcher>>>,
    /// Tells admin queues of this connection apart.
    epochs: AtomicU32,
}

impl Primary {
    fn new(main: Channel, calls: Channel, facts: Facts, process: Option<OwnedFd>) -> Self {
        Self {
            main,
            calls: Mutex::new(Calls { channel: calls, last: 0, spare: Vec::new() }),
            process,
            waiting: Mutex::default(),
            up: AtomicBool::new(facts.has(Facts::READY)),
            facts: Mutex::new(facts),
            gone: Mutex::default(),
            watchers: Mutex::default(),
            epochs: AtomicU32::new(0),
        }
    }

    // --- for transports ----------------------------------------------------------------------------------------------

    /// CAP of the controller.
    #[must_use]
    pub fn cap(&self) -> Cap {
        Cap(self.facts().cap.get())
    }

    /// What the transport in the primary says about the controller ([`crate::transport::Lender::function`]).
    ///
    /// # Errors
    /// When the primary does not answer, or doorbells cannot be rung by another process.
    pub fn function(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.call(&Request::Function, &[], |reply, fds| match reply {
            Reply::Function(bytes) => Ok((bytes.to_vec(), std::mem::take(fds))),
            reply => Err(unexpected(&reply)),
        })
    }

    /// What the I/O queue `qid` sleeps on, if it has an interrupt. It has to be leased.
    ///
    /// # Errors
    /// When the primary does not answer, or has no descriptors.
    pub fn vector(&self, qid: u16) -> Result<Option<OwnedFd>> {
        self.call(&Request::Vector(qid), &[], |reply, fds| match reply {
            Reply::Vector if fds.len() < 2 => Ok(fds.pop()),
            reply => Err(unexpected(&reply)),
        })
    }

    /// Has memory mapped for the controller: all of a memfd that is sealed against changes of its length. Returns what it is called and
    /// its bus address. Waits for the primary.
    ///
    /// # Errors
    /// When the primary does not answer, or refuses.
    pub fn map(&self, memory: BorrowedFd<'_>) -> Result<(u32, u64)> {
        self.call(&Request::Map, &[memory], |reply, _| match reply {
            Reply::Mapped { memory, iova } => Ok((memory, iova)),
            reply => Err(unexpected(&reply)),
        })
    }

    /// Has that taken back. Waits for the primary.
    ///
    /// # Errors
    /// When it cannot be confirmed.
    pub fn unmap(&self, memory: u32) -> Result<()> {
        self.call(&Request::Unmap(memory), &[], |reply, _| match reply {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        })
    }

    /// Tells `watcher` how the controller is from now on, for as long as it exists.
    pub fn watch(&self, watcher: Weak<dyn PrimaryWatcher>) {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(watcher);
    }

    /// Whether the primary's process is known to have ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let Some(process) = &self.process else { return false };
        is_readable(process.as_fd())
    }

    pub(super) fn tell(&self, standing: Standing) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.upgrade().inspect(|watcher| watcher.look(standing)).is_some());
    }

    // -----------------------------------------------------------------------------------------------------------------

    pub(crate) fn facts(&self) -> Facts {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(super) fn next_epoch(&self) -> u32 {
        self.epochs.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.main.raw_fd()
    }

    /// Why the connection is over, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lose(&self, error: Error) -> Error {
        let error = self.gone.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error).clone();
        self.tell(Standing::Lost);
        error
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet for the primary.
    pub(super) fn queue(&self, packet: Vec<u8>) -> Result<()> {
        let mut waiting = self.waiting();
        if waiting.len() == MAX_WAITING {
            return Err(Error::disconnected("the primary does not take what it is sent"));
        }
        waiting.push_back(packet);
        Ok(())
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.waiting().is_empty()
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&self) -> Result<()> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let mut waiting = self.waiting();
        while let Some(packet) = waiting.front() {
            match self.main.send(packet, &[]) {
                Ok(true) => drop(waiting.pop_front()),
                Ok(false) => break,
                // What it said before it went is told first.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    break;
                }
                Err(error) => return Err(self.lose(error.into())),
            }
        }
        Ok(())
    }

    /// The next thing the primary says. What changes how the controller is, is noted on the way.
    pub(super) fn next(&self) -> Result<Option<Told>> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        loop {
            let packet = match self.main.receive() {
                Ok(Received::Packet(packet, fds)) => {
                    drop(fds);
                    packet
                }
                Ok(Received::Nothing) => return Ok(None),
                Ok(Received::Closed) => return Err(self.lose(closed())),
                Err(error) => return Err(self.lose(error.into())),
            };
            let (tag, reply) = Reply::decode(&packet).map_err(|error| self.lose(malformed(error)))?;
            return Ok(Some(match reply {
                Reply::AdminDone { status, value, data } => {
                    Told::Done { tag, status, value, data: data.to_vec() }
                }
                Reply::Pong => Told::Pong { tag },
                Reply::Event(dw0) => Told::Event(dw0),
                Reply::Down(why) => {
                    self.up.store(false, Ordering::Release);
                    self.tell(Standing::Ended);
                    Told::Down(why.to_owned())
                }
                Reply::Up(facts) => {
                    *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
                    self.up.store(true, Ordering::Release);
                    self.tell(Standing::Usable);
                    continue;
                }
                Reply::Ended => {
                    // As when a controller was disabled: it is ready for another life at once.
                    self.tell(Standing::Ended);
                    self.tell(Standing::Usable);
                    Told::Ended { tag }
                }
                Reply::Removed(_) => {
                    self.tell(Standing::Ended);
                    return Err(self.lose(unexpected(&reply)));
                }
                reply => return Err(self.lose(unexpected(&reply))),
            }));
        }
    }

    /// An I/O queue identifier that is this process's until it is returned or the connection ends.
    pub(super) fn lease(&self) -> Result<u16> {
        if let Some(qid) = self.calls.lock().unwrap_or_else(PoisonError::into_inner).spare.pop() {
            return Ok(qid);
        }
        self.call(&Request::Lease, &[], |reply, _| match reply {
            Reply::Leased(qid) if qid > 0 => Ok(qid),
            Reply::Refused(why) => Err(Error::exhausted(why.to_owned())),
            reply => Err(unexpected(&reply)),
        })
    }

    /// The queue does not exist any more. The answer is not waited for.
    pub(super) fn give_back(&self, qid: u16) -> Result<()> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let request = Request::Return(qid);
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        // It belongs to no call, and is skipped by the next one.
        if calls.channel.send(&request.encode(0), &[])? {
            return Ok(());
        }
        drop(calls);
        self.call(&request, &[], |reply, _| match reply {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        })
    }

    /// A request that is answered at once.
    fn call<T>(
        &self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
        f: impl FnOnce(Reply<'_>, &mut Vec<OwnedFd>) -> Result<T>,
    ) -> Result<T> {
        debug_assert!(fds.len() <= MAX_FDS, "more descriptors than a message has");
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let Calls { channel, last, spare } = &mut *calls;
        let deadline = Instant::now() + ANSWER;
        *last += 1;
        channel.send_by(&request.encode(*last), fds, deadline).map_err(late)?;
        loop {
            let Some((packet, mut fds)) = channel.receive_by(deadline).map_err(late)? else {
                return Err(closed());
            };
            let (tag, reply) = Reply::decode(&packet).map_err(malformed)?;
            match reply {
                reply if tag == *last => return f(reply, &mut fds),
                // Answers to what was given up.
                Reply::Leased(qid) if qid > 0 => spare.push(qid),
                Reply::Mapped { memory, .. } => {
                    // Without room it stays mapped until the connection ends.
                    let _ = channel.send(&Request::Unmap(memory).encode(0), &[]);
                }
                _ => {}
            }
        }
    }
}

/// Whether a descriptor is readable now.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}
