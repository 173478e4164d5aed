//! The seam below the protocol: what NVMe/RDMA needs of verbs and of the connection manager.
//!
//! `VerbsProvider` is libibverbs and librdmacm; `sim` is a fabric in memory. Everything above is
//! written once, against these traits, and never blocks.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use nvmf_core::{DmaRegion, Result};

/// Most work completions taken with one call.
pub(crate) const POLL_BATCH: usize = 32;

/// A source of connections: the machine's RDMA, or a simulated one.
pub trait Provider: Send + Sync + 'static {
    /// Its protection domains.
    type Domain: Domain;
    /// Its ends of connections.
    type Endpoint: Endpoint<Domain = Self::Domain>;

    /// Whether there is anything to connect with.
    ///
    /// # Errors
    /// Names what is missing, with how to get it as a hint.
    fn check(&self) -> Result<()>;

    /// An end of a connection to be made.
    ///
    /// # Errors
    /// As [`Provider::check`], or what the operating system says.
    fn endpoint(&self) -> Result<Self::Endpoint>;
}

/// A protection domain of a device: what its memory registrations belong to. One per device is shared by all queue pairs.
pub trait Domain: Send + Sync + 'static {
    /// A registration; ends when dropped.
    type Registration: Registration;
    /// Queues for several queue pairs.
    type Shared: SharedQueues;

    /// Name of the device.
    fn device(&self) -> &str;

    /// What the device can do.
    fn limits(&self) -> DeviceLimits;

    /// Whether the device was removed: nothing new is to be made of this domain.
    fn is_lost(&self) -> bool;

    /// The device was removed.
    fn set_lost(&self);

    /// Registers `len` bytes of a region from `offset` on. The registration keeps the region mapped.
    ///
    /// # Errors
    /// What the operating system says; `OutOfMemory` usually means the limit of locked memory.
    fn register(
        self: &Arc<Self>,
        region: &DmaRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<Self::Registration>;

    /// As [`Domain::register`], for a region that is part of a dma-buf: by that, not by its addresses, under which the peer and work
    /// requests name it all the same.
    ///
    /// # Errors
    /// `Unsupported` when the library cannot; else what the operating system says, as `EOPNOTSUPP` for a driver that cannot.
    fn register_dma_buf(
        self: &Arc<Self>,
        region: &DmaRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<Self::Registration>;

    /// Makes a completion queue with room for so many, and a receive queue with room for so many, for several queue pairs.
    ///
    /// # Errors
    /// What the operating system says.
    fn share(self: &Arc<Self>, completions: u32, receives: u32) -> io::Result<Self::Shared>;
}

/// A completion queue and a receive queue of several queue pairs. Destroyed when it is dropped and its last queue pair is gone.
pub trait SharedQueues: Send + Sync + 'static {
    /// As [`Endpoint::post_receive`]; whichever queue pair gets a message takes the oldest.
    ///
    /// # Errors
    /// What the device says; none or some of them may be posted then.
    fn post_receive(&self, requests: &[ReceiveRequest]) -> io::Result<()>;

    /// As [`Endpoint::poll_completions`], for all queue pairs.
    ///
    /// # Errors
    /// What the device says.
    fn poll_completions(&self, completions: &mut [WorkCompletion]) -> io::Result<usize>;

    /// As [`Endpoint::request_notification`]: every queue pair's descriptor becomes readable.
    ///
    /// # Errors
    /// What the device says.
    fn request_notification(&self) -> io::Result<()>;

    /// As [`Endpoint::take_notifications`].
    fn take_notifications(&self) -> bool;
}

/// What a registration allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The device may read and write for this side's own requests: capsules.
    Local,
    /// The peer may read and write as well: data.
    Remote,
    /// The peer may access what memory windows are bound to, and nothing else.
    Windows,
}

/// Registered memory.
pub trait Registration: Send + Sync + 'static {
    /// Key for work requests of this side.
    fn local_key(&self) -> u32;
    /// Key for the peer.
    fn remote_key(&self) -> u32;
}

/// What a device can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceLimits {
    /// Longest registration, bytes.
    pub max_registration: u64,
    /// Most work requests in a queue.
    pub max_work_requests: u32,
    /// Most scatter/gather elements of a work request.
    pub max_elements: u32,
    /// Most entries of a completion queue.
    pub max_completions: u32,
    /// Most RDMA READs the device answers at a time on one queue pair.
    pub max_reads: u8,
    /// Most receives of a receive queue that several queue pairs share; 0 when it has none of these.
    pub max_shared_receives: u32,
    /// Whether it has memory windows of type 2B: keys for part of a registration, on one queue pair, until they are invalidated.
    pub windows: bool,
}

/// What a queue pair is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueuePairSetup {
    /// Work requests of the send queue.
    pub sends: u32,
    /// Work requests of the receive queue.
    pub receives: u32,
    /// Elements of a send.
    pub send_elements: u32,
    /// Bytes that are to fit into a work request itself; a wish.
    pub inline: u32,
}

/// A connect request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectRequest {
    /// Private data.
    pub private_data: [u8; 32],
    /// RDMA READs the peer may have outstanding.
    pub responder_resources: u8,
    /// Retransmissions of an unanswered packet, 0..=7.
    pub retry_count: u8,
    /// Retries when the peer has no receive posted, 0..=7; 7 is for ever.
    pub rnr_retry_count: u8,
}

/// What the connection manager reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CmEvent {
    /// The address leads to a device.
    AddressResolved,
    /// It does not: a negative errno.
    AddressError(i32),
    /// There is a route.
    RouteResolved,
    /// There is none: a negative errno.
    RouteError(i32),
    /// Connecting failed on this side: a negative errno.
    ConnectError(i32),
    /// The peer does not answer: a negative errno.
    Unreachable(i32),
    /// The peer said no, for this reason, with this private data.
    Rejected {
        /// Reason of the connection manager, or a negative errno (iWARP).
        reason: i32,
        /// What the peer adds.
        private_data: Vec<u8>,
    },
    /// The peer accepted, with this private data.
    Established {
        /// What the peer adds.
        private_data: Vec<u8>,
    },
    /// The peer, or the network for it, ended the connection.
    Disconnected,
    /// The device is going away.
    DeviceRemoved,
    /// The local address moved to another device.
    AddressChanged,
    /// The connection may be made again.
    TimeWaitExit,
    /// Something of no importance here.
    Other(u32),
}

/// A piece of registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Element {
    /// Its address.
    pub address: u64,
    /// Its length, bytes.
    pub length: u32,
    /// The local key of its registration.
    pub key: u32,
}

/// What a request of the send queue does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Work {
    /// Sends its elements.
    #[default]
    Send,
    /// Binds a memory window: `first` is the place of its [`Bind`] in the batch.
    Bind,
    /// Ends the key `first`, of one of the queue pair's memory windows.
    Invalidate,
}

/// A request of the send queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendRequest {
    /// What it does.
    pub work: Work,
    /// Comes back with the completion.
    pub id: u64,
    /// Its first element in the batch.
    pub first: u32,
    /// Number of its elements.
    pub count: u32,
    /// Whether there is a completion when it succeeds.
    pub signalled: bool,
    /// Whether its bytes are copied when it is posted.
    pub inline: bool,
}

/// What a memory window gives the peer access to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bind {
    /// Which of the queue pair's windows; it must not be bound.
    pub window: u16,
    /// Its new key: the last one, but for the lowest byte.
    pub key: u32,
    /// The memory, with the local key of a registration for [`Access::Windows`].
    pub element: Element,
    /// The peer may write there; otherwise it may read.
    pub writable: bool,
}

/// Requests that are posted together.
#[derive(Clone, Default, Debug)]
pub struct SendBatch {
    /// The requests, in order.
    pub requests: Vec<SendRequest>,
    /// Elements of SENDs.
    pub elements: Vec<Element>,
    /// Windows to be bound.
    pub binds: Vec<Bind>,
}

impl SendBatch {
    /// Empties it.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.elements.clear();
        self.binds.clear();
    }

    /// The elements of a request.
    #[must_use]
    pub fn elements_of(&self, request: &SendRequest) -> &[Element] {
        let first = request.first as usize;
        self.elements.get(first..first + request.count as usize).unwrap_or_default()
    }
}

/// A RECEIVE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceiveRequest {
    /// Comes back with the completion.
    pub id: u64,
    /// Where the message goes.
    pub element: Element,
}

/// How a work request ended; the numbers are those of `enum ibv_wc_status`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WorkStatus(pub u32);

impl WorkStatus {
    /// It succeeded.
    pub const SUCCESS: Self = Self(0);
    /// A message did not fit into its receive buffer, or a buffer is too long.
    pub const LOCAL_LENGTH: Self = Self(1);
    /// Local memory was not registered for this.
    pub const LOCAL_PROTECTION: Self = Self(4);
    /// It was not carried out because the queue pair had failed before.
    pub const FLUSHED: Self = Self(5);
    /// A memory window was not bound, or was bound already.
    pub const WINDOW_BIND: Self = Self(6);
    /// The peer found the request invalid.
    pub const REMOTE_INVALID_REQUEST: Self = Self(9);
    /// The peer found an address or key invalid.
    pub const REMOTE_ACCESS: Self = Self(10);
    /// The peer could not carry it out.
    pub const REMOTE_OPERATION: Self = Self(11);
    /// The peer did not answer.
    pub const RETRY_EXCEEDED: Self = Self(12);
    /// The peer had no receive posted.
    pub const RNR_RETRY_EXCEEDED: Self = Self(13);
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "success",
            1 => "a message or buffer has the wrong length",
            2 => "a local queue pair operation error",
            3 => "a local end-to-end context error",
            4 => "local memory is not registered for it",
            5 => "it was flushed after the queue pair had failed",
            6 => "a memory window could not be bound",
            7 => "a bad response of the peer's device",
            8 => "local memory may not be accessed so",
            9 => "the peer's device found the request invalid",
            10 => "the peer's device refused the access to memory",
            11 => "the peer's device could not carry it out",
            12 => "the peer's device does not answer (transport retries exceeded)",
            13 => "the peer had no receive posted (RNR retries exceeded)",
            16 => "the peer's device aborted it",
            19 => "a fatal error of the device",
            20 => "the answer came too late",
            21 => "a general error of the device",
            other => return write!(f, "status {other} of the device"),
        })
    }
}

/// The end of a work request.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WorkCompletion {
    /// The request's.
    pub id: u64,
    /// How it ended; of the rest only `id` counts unless it succeeded.
    pub status: WorkStatus,
    /// Code of the device for a failure.
    pub vendor: u32,
    /// Whether it was a RECEIVE.
    pub is_receive: bool,
    /// Length of the message received, bytes.
    pub length: u32,
    /// The key the peer invalidated with its message.
    pub invalidated: Option<u32>,
    /// Number of the queue pair, also when it failed.
    pub queue_pair: u32,
}

/// One end of one connection, with its completion queue and its event channels. Nothing blocks.
pub trait Endpoint: Send + 'static {
    /// Protection domains of the same provider.
    type Domain: Domain;

    /// Sets the type of service of its packets. Before the address is resolved.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_type_of_service(&mut self, tos: u8) -> io::Result<()>;

    /// Sets how long an acknowledgement may take: 4.096 µs · 2^`exponent`, 0..=31. Before connecting.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_ack_timeout(&mut self, exponent: u8) -> io::Result<()>;

    /// Starts finding the device an address is reached by; the outcome is an event.
    ///
    /// # Errors
    /// What the operating system says.
    fn resolve_address(
        &mut self,
        source: Option<SocketAddr>,
        destination: SocketAddr,
        timeout: Duration,
    ) -> io::Result<()>;

    /// Starts finding the route; the outcome is an event.
    ///
    /// # Errors
    /// What the operating system says.
    fn resolve_route(&mut self, timeout: Duration) -> io::Result<()>;

    /// The protection domain of the device that was found, the same one for all endpoints on that device.
    ///
    /// # Errors
    /// What the operating system says.
    fn domain(&mut self) -> io::Result<Arc<Self::Domain>>;

    /// Makes the queue pair with queues of its own, or with these for completions and receives. Returns how many bytes fit into a
    /// work request itself.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_queue_pair(
        &mut self,
        domain: &Arc<Self::Domain>,
        setup: &QueuePairSetup,
        shared: Option<&Arc<<Self::Domain as Domain>::Shared>>,
    ) -> io::Result<u32>;

    /// Makes so many memory windows for the queue pair, none of them bound, which are gone with it. Returns their keys.
    ///
    /// # Errors
    /// What the operating system says.
    fn make_windows(&mut self, count: u16) -> io::Result<Vec<u32>>;

    /// Number of the queue pair, 0 without one.
    fn queue_pair_number(&self) -> u32;

    /// Starts connecting; the outcome is an event.
    ///
    /// # Errors
    /// What the operating system says.
    fn connect(&mut self, request: &ConnectRequest) -> io::Result<()>;

    /// The next event of the connection manager.
    ///
    /// # Errors
    /// What the operating system says, other than that there is none.
    fn next_event(&mut self) -> io::Result<Option<CmEvent>>;

    /// Moves the queue pair to the error state, which flushes what is posted, and tells the peer that it is over.
    ///
    /// # Errors
    /// When not even the state could be changed.
    fn disconnect(&mut self) -> io::Result<()>;

    /// Destroys the queue pair. Afterwards the device accesses no memory for it.
    ///
    /// # Errors
    /// When that cannot be confirmed.
    fn destroy_queue_pair(&mut self) -> io::Result<()>;

    /// Posts sends, with one doorbell.
    ///
    /// # Errors
    /// What the device says; none or some of them may be posted then.
    fn post_send(&mut self, batch: &SendBatch) -> io::Result<()>;

    /// Posts receives, with one doorbell. For a queue pair with a receive queue of its own.
    ///
    /// # Errors
    /// As [`Endpoint::post_send`].
    fn post_receive(&mut self, requests: &[ReceiveRequest]) -> io::Result<()>;

    /// Takes completions, at most as many as there is room for and at most 32. No system call. For a queue pair with a
    /// completion queue of its own.
    ///
    /// # Errors
    /// What the device says.
    fn poll_completions(&mut self, completions: &mut [WorkCompletion]) -> io::Result<usize>;

    /// Asks for [`Endpoint::event_fd`] to become readable with the next completion. Completions that are there already
    /// need not do that: poll again.
    ///
    /// # Errors
    /// What the device says.
    fn request_notification(&self) -> io::Result<()>;

    /// Takes the notification back that made [`Endpoint::event_fd`] readable; there is at most one for each time one was asked
    /// for. Whether there was one.
    fn take_notifications(&mut self) -> bool;

    /// What is wrong now with the device or the port the connection uses, in words; for explaining failures.
    fn trouble(&self) -> Option<String>;

    /// A descriptor that is readable when there is an event of the connection manager or a notification.
    fn event_fd(&self) -> RawFd;
}
