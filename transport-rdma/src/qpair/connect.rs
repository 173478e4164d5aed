//! Making the connection: name, address, route, queue pair, connect request, accept. Nothing blocks.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nvmf_core::dma::DmaPool;
use nvmf_core::spec::rdma::{CmAccept, CmRequest, RECFMT_0};
use nvmf_core::transport::QpairSetup;
use nvmf_core::transport::ip::{Destination, resolve};
use nvmf_core::{Error, Result};
use zerocopy::FromBytes;

use super::link::Link;
use super::reject::Rejection;
use super::share::{Member, Share};
use crate::memory::Memory;
use crate::options::RdmaOptions;
use crate::proto::Limits;
use crate::provider::{Access, CmEvent, ConnectRequest, Domain, Endpoint, Provider, QueuePairSetup};

/// How long to wait before connecting again when the peer still knows an old connection of the same name.
const STALE_PAUSE: Duration = Duration::from_millis(10);
/// How often that is tried.
const STALE_RETRIES: u32 = 5;
/// Elements of a SEND, if the device has them: a capsule and data in four pieces.
const SEND_ELEMENTS: u32 = 5;
/// Fewest requests of a send queue.
const MIN_SENDS: u32 = 32;
/// Bytes of a capsule without data.
const INLINE: u32 = 64;

/// The registrations of each protection domain in use.
pub(crate) type Memories<P> = Mutex<Vec<Weak<Memory<<P as Provider>::Domain>>>>;

/// Where the queues of one controller go, and what they share.
pub(crate) struct Route<P: Provider> {
    pub(crate) provider: Arc<P>,
    pub(crate) destination: Destination,
    pub(crate) source: Option<SocketAddr>,
    pub(crate) options: RdmaOptions,
    pub(crate) type_of_service: u8,
    pub(crate) ack_timeout: Option<u8>,
    pub(crate) memories: Arc<Memories<P>>,
    /// For copies of data in too many pieces.
    pub(crate) bounce: DmaPool,
    /// Kept from one queue pair to the next, so that memory stays registered.
    pub(crate) memory: Mutex<Option<Arc<Memory<P::Domain>>>>,
    /// All queues go where the admin queue went, even if a name has many addresses.
    pub(crate) pinned: Mutex<Option<SocketAddr>>,
}

impl<P: Provider> Route<P> {
    /// The registrations that belong to `domain`.
    fn memory(&self, domain: &Arc<P::Domain>) -> Result<Arc<Memory<P::Domain>>> {
        let access = if self.options.memory_windows { Access::Windows } else { Access::Remote };
        if access == Access::Windows && !domain.limits().windows {
            return Err(Error::unsupported(format!(
                "the RDMA device {} has no memory windows (type 2B), which are asked for",
                domain.device()
            ))
            .hint("without them the controller has access to all memory registered with the device"));
        }
        let mut own = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = own.as_ref().filter(|memory| Arc::ptr_eq(memory.domain(), domain)) {
            return Ok(Arc::clone(memory));
        }
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.retain(|memory| memory.strong_count() > 0);
        let mut known = memories.iter().filter_map(Weak::upgrade);
        let memory =
            match known.find(|memory| Arc::ptr_eq(memory.domain(), domain) && memory.access() == access) {
                Some(memory) => memory,
                None => {
                    let memory = Arc::new(Memory::new(Arc::clone(domain), access)?);
                    memories.push(Arc::downgrade(&memory));
                    memory
                }
            };
        *own = Some(Arc::clone(&memory));
        Ok(memory)
    }

    /// Lets go of a device that was removed.
    pub(crate) fn forget_lost(&self) {
        let mut own = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if own.as_ref().is_some_and(|memory| memory.domain().is_lost()) {
            *own = None;
        }
    }
}

/// What a queue pair needs to know of its controller.
pub(crate) struct Plan<P: Provider> {
    pub(crate) route: Arc<Route<P>>,
    pub(crate) limits: Limits,
    pub(crate) cntlid: u16,
    /// What its poll group shares.
    pub(crate) share: Option<Arc<Share<P>>>,
}

enum Stage<P: Provider> {
    Resolving(Receiver<io::Result<Vec<SocketAddr>>>),
    /// Another address is to be tried.
    Next,
    Address(P::Endpoint),
    Route(P::Endpoint),
    Connecting(Link<P>),
    /// The same address again, not before this.
    Again(Instant),
    /// Connected and handed out, or failed for good.
    Over,
}

/// A connection being made.
pub(super) struct Connector<P: Provider> {
    plan: Plan<P>,
    qid: u16,
    entries: u16,
    slots: u16,
    stage: Stage<P>,
    /// Addresses not tried yet, the next one last.
    addresses: Vec<SocketAddr>,
    peer: Option<SocketAddr>,
    name: String,
    last_error: Option<Error>,
    stale: u32,
    started: Instant,
    /// When the address being tried has had its time.
    until: Instant,
    deadline: Instant,
}

impl<P: Provider> Connector<P> {
    pub(super) fn new(setup: &QpairSetup, plan: Plan<P>, now: Instant) -> Result<Self> {
        let pinned = *plan.route.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, stage, addresses) = match (&plan.route.destination, pinned) {
            (_, Some(address)) if setup.qid != 0 => (address.to_string(), Stage::Next, vec![address]),
            (Destination::Address(address), _) => (address.to_string(), Stage::Next, vec![*address]),
            (Destination::Name { host, port, family }, _) => (
                format!("{host}:{port}"),
                Stage::Resolving(resolve(host.clone(), *port, *family)?),
                Vec::new(),
            ),
        };
        Ok(Self {
            plan,
            qid: setup.qid,
            entries: setup.entries.max(2),
            slots: setup.slots,
            stage,
            addresses,
            peer: None,
            name,
            last_error: None,
            stale: 0,
            started: now,
            until: setup.deadline,
            deadline: setup.deadline,
        })
    }

    /// Queue pairs made from now on use what the group shares.
    pub(super) fn join(&mut self, share: Arc<Share<P>>) {
        self.plan.share = Some(share);
    }

    /// The address being connected to.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The descriptor that becomes readable when there is something to do.
    pub(super) fn event_fd(&self) -> Option<RawFd> {
        match &self.stage {
            Stage::Address(endpoint) | Stage::Route(endpoint) => Some(endpoint.event_fd()),
            Stage::Connecting(link) => Some(link.endpoint.event_fd()),
            _ => None,
        }
    }

    /// Goes on as far as possible without blocking.
    pub(super) fn poll(&mut self, now: Instant) -> Result<Option<Link<P>>> {
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Over);
            let next = match stage {
                Stage::Resolving(receiver) => match self.resolved(receiver, now)? {
                    Ok(()) => Ok(Stage::Next),
                    Err(receiver) => {
                        self.stage = Stage::Resolving(receiver);
                        return Ok(None);
                    }
                },
                Stage::Next => match self.addresses.pop() {
                    Some(peer) => {
                        self.peer = Some(peer);
                        // What time is left is shared by the addresses that are left.
                        let left = self.deadline.saturating_duration_since(now);
                        self.until = now + left / (self.addresses.len() as u32 + 1);
                        self.begin(now)
                    }
                    None => return Err(self.no_address_left()),
                },
                Stage::Again(when) if now < when => {
                    self.stage = Stage::Again(when);
                    return Ok(None);
                }
                Stage::Again(_) => self.begin(now),
                Stage::Address(mut endpoint) => match self.event(&mut endpoint, now, "resolving the address")
                {
                    Ok(None) => {
                        self.stage = Stage::Address(endpoint);
                        return Ok(None);
                    }
                    Ok(Some(CmEvent::AddressResolved)) => self.route(endpoint, now),
                    Ok(Some(event)) => Err(self.failed(&event, "no RDMA device leads to the address")),
                    Err(error) => Err(error),
                },
                Stage::Route(mut endpoint) => match self.event(&mut endpoint, now, "resolving the route") {
                    Ok(None) => {
                        self.stage = Stage::Route(endpoint);
                        return Ok(None);
                    }
                    Ok(Some(CmEvent::RouteResolved)) => self.connect(endpoint),
                    Ok(Some(event)) => Err(self.failed(&event, "there is no route to the address")),
                    Err(error) => Err(error),
                },
                Stage::Connecting(mut link) => {
                    match self.event(&mut link.endpoint, now, "waiting for the RDMA connection") {
                        Ok(None) => {
                            self.stage = Stage::Connecting(link);
                            return Ok(None);
                        }
                        Ok(Some(CmEvent::Established { private_data })) => {
                            return self.accepted(link, &private_data).map(Some);
                        }
                        Ok(Some(CmEvent::Rejected { reason, private_data })) => {
                            match Rejection::new(reason, &private_data) {
                                Rejection::Stale if self.stale < STALE_RETRIES => {
                                    self.stale += 1;
                                    Ok(Stage::Again(now + STALE_PAUSE))
                                }
                                rejection => Err(rejection.error()),
                            }
                        }
                        Ok(Some(event)) => Err(self.failed(&event, "connecting failed")),
                        Err(error) => Err(error),
                    }
                }
                Stage::Over => return Err(super::closed()),
            };
            self.stage = match next {
                Ok(stage) => stage,
                Err(error) => {
                    tracing::debug!(%error, left = self.addresses.len(), "an RDMA connection failed");
                    self.last_error = Some(error);
                    Stage::Next
                }
            };
        }
    }

    /// The addresses of the name, or the receiver back while there are none.
    fn resolved(
        &mut self,
        receiver: Receiver<io::Result<Vec<SocketAddr>>>,
        now: Instant,
    ) -> Result<Result<(), Receiver<io::Result<Vec<SocketAddr>>>>> {
        match receiver.try_recv() {
            Ok(Ok(mut addresses)) => {
                addresses.reverse();
                self.addresses = addresses;
                Ok(Ok(()))
            }
            Ok(Err(error)) => Err(Error::from(error)
                .doing(format!("resolving {}", self.name))
                .hint("is the host name right, and does this machine's resolver know it?")),
            Err(TryRecvError::Empty) if now < self.deadline => Ok(Err(receiver)),
            Err(TryRecvError::Empty) => {
                let after = now.duration_since(self.started);
                Err(Error::timed_out(format!("resolving {}", self.name), after))
            }
            Err(TryRecvError::Disconnected) => {
                Err(Error::exhausted(format!("the thread resolving {} died", self.name)))
            }
        }
    }

    /// An event that matters, or that the time is up.
    fn event(
        &self,
        endpoint: &mut P::Endpoint,
        now: Instant,
        doing: &'static str,
    ) -> Result<Option<CmEvent>> {
        loop {
            let event = endpoint.next_event();
            match event.map_err(|error| Error::from(error).doing("asking the RDMA connection manager"))? {
                Some(CmEvent::Other(_) | CmEvent::TimeWaitExit) => {}
                Some(event) => return Ok(Some(event)),
                None if now < self.until => return Ok(None),
                None => {
                    let after = now.saturating_duration_since(self.started);
                    return Err(Error::timed_out(doing, after).hint(
                        "nothing answers: is the address right, and does UDP port 4791 (RoCE v2) get through?",
                    ));
                }
            }
        }
    }

    fn failed(&self, event: &CmEvent, what: &str) -> Error {
        match event {
            CmEvent::AddressError(errno) | CmEvent::RouteError(errno) => {
                Error::from(os_error(*errno)).doing(what.to_owned()).hint(
                    "is the address right, and has the interface towards it an RDMA device (rdma link show)?",
                )
            }
            CmEvent::Unreachable(errno) if *errno == -libc::ETIMEDOUT => {
                Error::disconnected("the controller's host does not answer RDMA connect requests").hint(
                    "is the address right, does it have an RDMA device, and does UDP port 4791 (RoCE v2) get through?",
                )
            }
            CmEvent::Unreachable(errno) | CmEvent::ConnectError(errno) => {
                Error::disconnected(format!("{what}: {}", os_error(*errno)))
            }
            CmEvent::DeviceRemoved => Error::disconnected("the RDMA device was removed while connecting"),
            CmEvent::AddressChanged => {
                Error::disconnected("the local address moved to another device while connecting")
            }
            CmEvent::Disconnected => Error::disconnected("the controller ended the connection while connecting"),
            event => Error::disconnected(format!("{what}: unexpected event {event:?}")),
        }
    }

    fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    fn begin(&mut self, now: Instant) -> Result<Stage<P>> {
        let route = &self.plan.route;
        let Some(peer) = self.peer else { return Err(super::closed()) };
        if let Some(source) = route.source
            && source.is_ipv4() != peer.is_ipv4()
        {
            return Err(Error::api_misuse(format!(
                "{} can not connect to {}: different address families",
                source.ip(),
                peer.ip()
            )));
        }
        let mut endpoint = route.provider.endpoint()?;
        if route.type_of_service != 0 {
            endpoint
                .set_type_of_service(route.type_of_service)
                .map_err(|error| Error::from(error).doing("setting the type of service"))?;
        }
        if let Some(exponent) = route.ack_timeout {
            endpoint
                .set_ack_timeout(exponent)
                .map_err(|error| Error::from(error).doing("setting the ACK timeout"))?;
        }
        endpoint.resolve_address(route.source, peer, self.left(now)).map_err(|error| {
            Error::from(error)
                .doing("resolving the address")
                .hint("has the interface towards the address an RDMA device (rdma link show)?")
        })?;
        Ok(Stage::Address(endpoint))
    }

    fn route(&self, mut endpoint: P::Endpoint, now: Instant) -> Result<Stage<P>> {
        endpoint
            .resolve_route(self.left(now))
            .map_err(|error| Error::from(error).doing("resolving the route"))?;
        Ok(Stage::Route(endpoint))
    }

    fn connect(&self, mut endpoint: P::Endpoint) -> Result<Stage<P>> {
        let route = &self.plan.route;
        let domain = endpoint
            .domain()
            .map_err(|error| Error::from(error).doing("making a protection domain of the RDMA device"))?;
        let memory = route.memory(&domain)?;
        let device = domain.limits();
        // A marker behind everything needs a place in either queue.
        let most = device.max_work_requests.min(device.max_completions / 2).saturating_sub(1).max(1);
        // With windows a command takes a place to bind its own, which counts, and one to invalidate it, which does not.
        let windows = if route.options.memory_windows { self.slots } else { 0 };
        let per_command = if windows > 0 { 4 } else { 2 };
        let beyond = u32::from(windows);
        let sends =
            (u32::from(self.slots) * per_command).max(MIN_SENDS).min(most.saturating_sub(beyond).max(1));
        let receives = u32::from(self.entries).min(most);
        let member = match &self.plan.share {
            None => None,
            Some(share) => share.admit(&domain, sends + beyond + 1, receives).unwrap_or_else(|error| {
                tracing::debug!(%error, "a queue pair of a poll group shares nothing");
                None
            }),
        };
        let setup = QueuePairSetup {
            sends: sends + beyond + 1,
            receives: if member.is_some() { 0 } else { receives + 1 },
            send_elements: SEND_ELEMENTS.min(device.max_elements).max(1),
            inline: INLINE,
        };
        let shared = member.as_ref().map(Member::queues);
        let inline = endpoint.create_queue_pair(&domain, &setup, shared).map_err(|error| {
            let locked = error.kind() == io::ErrorKind::OutOfMemory;
            let error = Error::from(error).doing(format!(
                "making a queue pair of {} entries on {}",
                self.entries,
                domain.device()
            ));
            if locked { error.hint("is enough memory allowed to be locked (ulimit -l)?") } else { error }
        })?;
        if let Some(member) = &member {
            member.made(endpoint.queue_pair_number());
        }
        let keys = match windows {
            0 => Vec::new(),
            _ => endpoint.make_windows(windows).map_err(|error| {
                Error::from(error).doing(format!("making {windows} memory windows on {}", domain.device()))
            })?,
        };
        let mut limits = self.plan.limits;
        limits.elements = setup.send_elements;
        let mut link = Link::<P>::new(
            endpoint,
            memory,
            member,
            self.slots,
            self.entries,
            sends,
            receives,
            setup.send_elements,
            inline,
            keys,
            &limits,
        )?;
        let mut request = CmRequest::new(self.qid, self.entries, self.plan.cntlid);
        request.hrqsize = (receives as u16).into();
        let request = ConnectRequest {
            private_data: zerocopy::transmute!(request),
            responder_resources: device.max_reads,
            retry_count: route.options.retry_count.min(7),
            rnr_retry_count: route.options.rnr_retry_count.min(7),
        };
        link.endpoint
            .connect(&request)
            .map_err(|error| Error::from(error).doing("sending the RDMA connect request"))?;
        Ok(Stage::Connecting(link))
    }

    fn accepted(&self, mut link: Link<P>, private_data: &[u8]) -> Result<Link<P>> {
        let Ok((accept, _)) = CmAccept::read_from_prefix(private_data) else {
            return Err(Error::peer_misbehaved(format!(
                "it accepted with {} bytes of private data",
                private_data.len()
            ))
            .hint("is it an NVMe/RDMA target?"));
        };
        if accept.recfmt.get() != RECFMT_0 {
            return Err(Error::peer_misbehaved(format!(
                "it accepted with private data of format {}",
                accept.recfmt.get()
            )));
        }
        let granted = u32::from(accept.crqsize.get());
        if granted == 0 {
            return Err(Error::peer_misbehaved("it accepted, but receives no commands (CRQSIZE 0)"));
        }
        if granted < link.window {
            tracing::debug!(
                qid = self.qid,
                granted,
                "the controller takes fewer commands at once than the queue has entries"
            );
        }
        link.window = link.window.min(granted);
        *self.plan.route.pinned.lock().unwrap_or_else(PoisonError::into_inner) = self.peer;
        Ok(link)
    }

    fn no_address_left(&mut self) -> Error {
        self.last_error.take().unwrap_or_else(|| {
            Error::unsupported(format!("{} has no address of the family asked for", self.name))
        })
    }
}

/// A negative errno of an event.
pub(super) fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno.saturating_neg())
}

impl<P: Provider> fmt::Debug for Connector<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("name", &self.name)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
