//! The secondary's side: finding the primary, and one connection for each controller.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::channel::{Channel, Received};
use super::directory::Place;
use super::wire::{Facts, Hello, ProcessFacts, Reply, Request, VERSION, WireError};
use crate::error::{Error, Result};
use crate::host::HostIdentity;
use crate::nqn::{HostId, Nqn};
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
        Ok(Primary::new(connection.channel, calls, facts))
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
        Reply::Removed(why) => Error::disconnected((*why).to_owned()),
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
}

impl Connection {
    fn open(place: &Place) -> Result<Self> {
        let channel = Channel::connect(&place.socket())?;
        let (uid, _) = channel.peer()?;
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
        let connection = Self { channel };
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

/// One request on a channel that carries nothing else, and its answers.
fn ask(
    channel: &Channel,
    request: &Request<'_>,
    f: &mut dyn FnMut(Reply<'_>, &mut Vec<OwnedFd>) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + ANSWER;
    let late = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => Error::timed_out("waiting for the primary", ANSWER),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => closed(),
        _ => error.into(),
    };
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
    Done { tag: u64, status: Option<crate::spec::Status>, value: u64, data: Vec<u8> },
    Pong { tag: u64 },
    Event(u32),
    Down(String),
}

/// A connection to the primary of an instance that is about one controller. Its end is that of the attachment.
pub struct Primary {
    main: Channel,
    /// For requests that are answered at once; one at a time.
    calls: Mutex<Channel>,
    waiting: Mutex<VecDeque<Vec<u8>>>,
    facts: Mutex<Facts>,
    /// The controller can be used, as far as the primary has said.
    up: AtomicBool,
    /// Why it is over.
    gone: Mutex<Option<Error>>,
    /// Tells admin queues of this connection apart.
    epochs: AtomicU32,
}

impl Primary {
    fn new(main: Channel, calls: Channel, facts: Facts) -> Self {
        Self {
            main,
            calls: Mutex::new(calls),
            waiting: Mutex::default(),
            up: AtomicBool::new(facts.has(Facts::READY)),
            facts: Mutex::new(facts),
            gone: Mutex::default(),
            epochs: AtomicU32::new(0),
        }
    }

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
    pub(crate) fn failure(&self) -> Option<Error> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lose(&self, error: Error) -> Error {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error).clone()
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
                    Told::Down(why.to_owned())
                }
                Reply::Up(facts) => {
                    *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
                    self.up.store(true, Ordering::Release);
                    continue;
                }
                reply => return Err(self.lose(unexpected(&reply))),
            }));
        }
    }

    /// An I/O queue identifier that is this process's until it is returned or the connection ends.
    pub(super) fn lease(&self) -> Result<u16> {
        let mut leased = None;
        self.call(&Request::Lease, &mut |reply| match reply {
            Reply::Leased(qid) if qid > 0 => {
                leased = Some(qid);
                Ok(())
            }
            Reply::Refused(why) => Err(Error::exhausted(why.to_owned())),
            reply => Err(unexpected(&reply)),
        })?;
        leased.ok_or_else(closed)
    }

    /// The queue does not exist any more.
    pub(super) fn give_back(&self, qid: u16) -> Result<()> {
        self.call(&Request::Return(qid), &mut |reply| match reply {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        })
    }

    /// A request that is answered at once.
    fn call(&self, request: &Request<'_>, f: &mut dyn FnMut(Reply<'_>) -> Result<()>) -> Result<()> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&calls, request, &mut |reply, _| f(reply).map(|()| true))
    }
}
