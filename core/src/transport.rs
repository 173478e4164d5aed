//! What a transport implements, and what it is lent.
//!
//! [`Transport`] finds and constructs controllers, [`TransportController`] creates queue pairs and gives access to
//! registers where there are any, [`TransportQpair`] moves commands, data and completions. All three are object
//! safe; a third party can register its own with [`crate::DriverBuilder::transport`].

mod group;
pub mod ip;

use std::any::Any;
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use group::{GroupShare, GroupShares};

use crate::dma::{DmaRegion, SharedMemory};
use crate::error::{Error, Result};
use crate::host::HostIdentity;
use crate::options::ControllerOptions;
use crate::proto::Tracker;
pub use crate::share::{Primary, PrimaryWatcher, Standing};
use crate::spec::identify::IdentifyController;
use crate::spec::{Cqe, Sqe, Status};
use crate::transport_id::{TransportId, TransportType};

/// A kind of connection to controllers: PCIe, RDMA, TCP, or one's own.
pub trait Transport: Send + Sync {
    /// Which transport identifiers it serves.
    fn trtype(&self) -> TransportType;

    /// Whether controllers are found by scanning a local bus. Others are found through a discovery controller, which
    /// the core does for them.
    fn is_local(&self) -> bool {
        false
    }

    /// Reports every controller on the local bus that `filter` (all when `None`) covers. Fabrics report none.
    ///
    /// # Errors
    /// When the bus cannot be read.
    fn scan(&self, filter: Option<&TransportId>, found: &mut dyn FnMut(TransportId)) -> Result<()> {
        let _ = (filter, found);
        Ok(())
    }

    /// Whether the local controller at `trid` is still on the bus, where that can be told by looking. `Some(false)` makes the
    /// core give an attached controller up.
    fn is_present(&self, trid: &TransportId) -> Option<bool> {
        let _ = trid;
        None
    }

    /// Starts telling when local controllers come and go. `None` when this transport never tells.
    ///
    /// # Errors
    /// When the bus cannot be looked at.
    fn hotplug(&self) -> Result<Option<Box<dyn HotplugMonitor>>> {
        Ok(None)
    }

    /// Makes the transport's side of the controller at `trid`. Must not block: connecting is the queue pairs' work.
    ///
    /// # Errors
    /// When the address makes no sense to this transport or a local device cannot be opened.
    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>>;

    /// Makes the transport's side of a controller that another process, the primary of an instance, has attached: only I/O queues are
    /// made of it. Fabrics need nothing beyond [`Transport::ctrlr_construct`], which is the default.
    ///
    /// # Errors
    /// As [`Transport::ctrlr_construct`], and when controllers of this kind cannot be shared.
    fn ctrlr_construct_secondary(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
        primary: &Arc<Primary>,
    ) -> Result<Box<dyn TransportController>> {
        let _ = primary;
        if self.is_local() {
            return Err(Error::unsupported("controllers of this transport are not shared").peer(trid));
        }
        self.ctrlr_construct(trid, options)
    }

    /// Who the host is to the controller at `trid`, where another process has decided that.
    ///
    /// # Errors
    /// When that process cannot be asked, or does not know the controller.
    fn shared_host(&self, trid: &TransportId) -> Result<Option<HostIdentity>> {
        let _ = trid;
        Ok(None)
    }
}

/// A change of what is on a local bus.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum HotplugEvent {
    /// A controller is there that was not, or can be attached from now on (its function was handed to user space).
    Inserted(TransportId),
    /// A controller is gone, or can be attached no longer (its function was taken back).
    Removed(TransportId),
}

impl HotplugEvent {
    /// Where it happened.
    #[must_use]
    pub fn trid(&self) -> &TransportId {
        match self {
            Self::Inserted(trid) | Self::Removed(trid) => trid,
        }
    }
}

/// Tells when controllers come and go on a transport's bus, from when it was made on.
pub trait HotplugMonitor: Send {
    /// Becomes readable when there is something to poll for; `None` when the bus has to be polled to know.
    fn event_fd(&self) -> Option<RawFd>;

    /// Reports what has changed, in order. Does not block. A controller may be reported as inserted twice, when its function is
    /// there and when it is handed to user space, and as removed twice in the same way.
    ///
    /// # Errors
    /// When the bus cannot be looked at.
    fn poll(&mut self, each: &mut dyn FnMut(HotplugEvent)) -> Result<()>;
}

/// The transport's side of one controller.
pub trait TransportController: Send + Any {
    /// What this transport can do for this controller. Asked again after [`TransportController::identified`].
    fn capabilities(&self) -> Capabilities;

    /// The controller's registers, where they are memory-mapped. `None` makes the core send Property commands.
    fn registers(&mut self) -> Option<&mut dyn Registers> {
        None
    }

    /// Values for AQA, ASQ and ACQ of the admin queue created last; memory-mapped controllers only.
    fn admin_queue(&self) -> Option<AdminQueueRegisters> {
        None
    }

    /// Starts a queue pair. Returns at once; [`TransportQpair::poll_connect`] drives it further.
    ///
    /// # Errors
    /// When not even a start is possible: no socket, no memory, an address that cannot be used.
    fn create_qpair(&mut self, setup: &QpairSetup) -> Result<Box<dyn TransportQpair>>;

    /// Tells the transport what Identify Controller said (in-capsule data size, SGL support).
    ///
    /// # Errors
    /// When the controller's limits cannot be worked with.
    fn identified(&mut self, identify: &IdentifyController) -> Result<()>;

    /// Makes it ready for another life of the same controller, after the admin queue pair was disconnected and said
    /// [`Quiesce::Done`]. Queue pairs of the life before may still be there, in other threads; from now on they fail, and their
    /// [`TransportQpair::disconnect`] says `Done`. Returns whether it can be used again; with `false`, the default, the core makes
    /// another one with [`Transport::ctrlr_construct`].
    ///
    /// # Errors
    /// When the controller cannot be used any more and another object would not help: the device is gone.
    fn restart(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Prepares what the controller offers beyond its admin queue, once it is identified and before any I/O queue is made; again
    /// after every reset. The command that is returned is sent on the admin queue, and its end is reported with
    /// [`TransportController::set_up_completed`]. Memory-mapped controllers only.
    ///
    /// # Errors
    /// When the controller cannot be worked with. What is merely not to be had is done without.
    fn set_up(&mut self, identify: &IdentifyController) -> Result<Option<Sqe>> {
        let _ = identify;
        Ok(None)
    }

    /// How the command from [`TransportController::set_up`] ended.
    fn set_up_completed(&mut self, status: Status) {
        let _ = status;
    }

    /// An I/O queue identifier that somebody else gives out, to be used by the next queue pair; `None`, the default, when the core
    /// chooses.
    ///
    /// # Errors
    /// When none is left, or nobody answers.
    fn lease_qid(&mut self) -> Result<Option<u16>> {
        Ok(None)
    }

    /// The queue pair with this identifier is gone for good.
    fn return_qid(&mut self, qid: u16) {
        let _ = qid;
    }

    /// What lets other processes drive I/O queues of this controller on their own, in memory of theirs: memory-mapped controllers
    /// only. `None`, the default, where they connect queues themselves.
    fn lender(&mut self) -> Option<Arc<dyn Lender>> {
        None
    }

    /// Upcast, for callers that want the concrete type.
    fn as_any(&mut self) -> &mut dyn Any;
}

/// A memory-mapped controller in the primary of an instance, as far as secondaries need it for I/O queues of their own.
///
/// It is asked by threads of the secondaries' connections. Who calls it has checked what a secondary asks for: a queue
/// identifier is its own, and memory is unmapped only when none of its queues exists in it any more.
pub trait Lender: Send + Sync {
    /// What [`Transport::ctrlr_construct_secondary`] is told in another process ([`Primary::function`]): up to 16 KiB of the
    /// transport's own, and up to four descriptors.
    ///
    /// # Errors
    /// When doorbells cannot be rung by another process.
    fn function(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)>;

    /// What the I/O queue `qid` sleeps on, if it can have an interrupt.
    ///
    /// # Errors
    /// When there are no descriptors left.
    fn vector(&self, qid: u16) -> Result<Option<OwnedFd>>;

    /// Makes memory of another process reachable for the controller; returns its bus address.
    ///
    /// # Errors
    /// When there are no addresses, or the IOMMU refuses.
    fn map(&self, memory: &SharedMemory) -> Result<u64>;

    /// Takes that back. The controller does not reach the memory any more when this returns well.
    ///
    /// # Errors
    /// When that cannot be confirmed: the memory has to be leaked.
    fn unmap(&self, memory: &SharedMemory) -> Result<()>;

    /// Which life of the controller this is: a queue belongs to one.
    fn life(&self) -> u32;

    /// Another process's I/O queue may exist from now on, or does not exist any more.
    fn note_queue(&self, life: u32, qid: u16, exists: bool);
}

/// Memory-mapped controller registers. Offsets are those of NVMe Base 2.1 §3.1.4.
pub trait Registers {
    /// Reads a 32-bit register.
    ///
    /// # Errors
    /// When the device is gone.
    fn read32(&mut self, offset: u32) -> Result<u32>;
    /// Reads a 64-bit register.
    ///
    /// # Errors
    /// When the device is gone.
    fn read64(&mut self, offset: u32) -> Result<u64>;
    /// Writes a 32-bit register.
    ///
    /// # Errors
    /// When the device is gone.
    fn write32(&mut self, offset: u32, value: u32) -> Result<()>;
    /// Writes a 64-bit register.
    ///
    /// # Errors
    /// When the device is gone.
    fn write64(&mut self, offset: u32, value: u64) -> Result<()>;
}

/// Values of the admin queue registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdminQueueRegisters {
    /// AQA: sizes, 0's based.
    pub aqa: u32,
    /// ASQ: bus address of the submission queue.
    pub asq: u64,
    /// ACQ: bus address of the completion queue.
    pub acq: u64,
}

/// What a transport can do.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// Queues are opened with the Fabrics Connect command and registers are properties.
    pub fabrics: bool,
    /// I/O queues are opened with the Fabrics Connect command as well. Not so where the admin queue is a message-based one to another
    /// process and I/O queues are in memory.
    pub fabrics_io: bool,
    /// Largest transfer of one command, bytes, before MDTS is applied.
    pub max_transfer: u32,
    /// Most buffers one command's data may be made of.
    pub max_segments: u16,
    /// Fewest entries an admin queue may have.
    pub min_admin_entries: u16,
    /// Most bytes of data of one admin command.
    pub max_admin_transfer: u32,
    /// Whether a command's metadata may be in a buffer apart from its data ([`Tracker::metadata_segment`]). NVMe over Fabrics
    /// has no place for it: there it is always at the end of each logical block (Base 2.1 §2.2, Figure 92 MPTR).
    pub separate_metadata: bool,
    /// Pauses that initialising this controller takes.
    pub delays: InitDelays,
}

/// Pauses that some controllers need while they are initialised. None by default.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct InitDelays {
    /// Before its registers are looked at.
    pub before_init: Duration,
    /// After CC.EN was cleared and before CSTS is read.
    pub after_disable: Duration,
}

impl Capabilities {
    /// Capabilities of a message-based transport with no limits of its own.
    #[must_use]
    pub fn fabrics() -> Self {
        Self {
            fabrics: true,
            fabrics_io: true,
            max_transfer: u32::MAX,
            max_admin_transfer: u32::MAX,
            max_segments: u16::MAX,
            min_admin_entries: 2,
            delays: InitDelays::default(),
            separate_metadata: false,
        }
    }

    /// Capabilities of a transport with registers and queues in memory.
    #[must_use]
    pub fn memory_based() -> Self {
        Self { fabrics: false, fabrics_io: false, separate_metadata: true, ..Self::fabrics() }
    }

    /// Sets the largest transfer, bytes.
    #[must_use]
    pub fn with_max_transfer(mut self, bytes: u32) -> Self {
        self.max_transfer = bytes;
        self
    }

    /// Sets the pauses.
    #[must_use]
    pub fn with_delays(mut self, delays: InitDelays) -> Self {
        self.delays = delays;
        self
    }

    /// Sets the most buffers per command.
    #[must_use]
    pub fn with_max_segments(mut self, segments: u16) -> Self {
        self.max_segments = segments;
        self
    }
}

/// What a queue pair is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QpairSetup {
    /// Queue identifier, 0 for the admin queue.
    pub qid: u16,
    /// Queue entries (not 0's based); at most `entries - 1` commands are outstanding.
    pub entries: u16,
    /// Slots of the tracker the transport will be lent.
    pub slots: u16,
    /// When connecting has to be done.
    pub deadline: Instant,
    /// Queue priority for weighted round robin, 0 (urgent) to 3 (low).
    pub priority: u8,
}

/// How far connecting a queue pair has come.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ConnectProgress {
    /// Call again, at once or when the event source is ready.
    Pending,
    /// Send this command on the admin queue and hand the completion to [`TransportQpair::admin_completed`].
    Admin(Sqe),
    /// Commands can be exchanged. For fabrics the core sends Connect now.
    Established,
}

/// Whether the peer can still reach the memory of the commands that were in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Quiesce {
    /// No further access is possible: buffers may go back to their owners.
    Done,
    /// Not yet; poll again.
    Pending,
    /// It cannot be confirmed; buffers are leaked.
    Unconfirmed,
}

/// One queue pair of a transport. The hot path.
///
/// The core lends its [`Tracker`] to every call that may touch data. The transport keeps no pointer into a buffer
/// between calls unless its hardware does, and then only until the command completes or the queue is quiesced.
pub trait TransportQpair: Send {
    /// Drives connecting.
    ///
    /// # Errors
    /// When connecting failed for good; names what was attempted. The deadline is the caller's business as well.
    fn poll_connect(&mut self, now: Instant) -> Result<ConnectProgress>;

    /// The completion of a command asked for with [`ConnectProgress::Admin`].
    ///
    /// # Errors
    /// When the completion's status means that the queue cannot be created.
    fn admin_completed(&mut self, cqe: &Cqe) -> Result<()> {
        let _ = cqe;
        Ok(())
    }

    /// Takes a command. `sqe` has its command identifier set; the transport sets data pointer and flags from what the
    /// tracker says about `slot`, and the metadata pointer where there is metadata apart from the data. Nothing needs to be sent before [`TransportQpair::flush`]. There is always room:
    /// never more commands are outstanding than the set-up's slots.
    ///
    /// # Errors
    /// When the queue pair is broken; the command is then treated as outstanding until the queue is quiesced.
    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()>;

    /// Sends what was submitted, as far as that is possible without blocking.
    ///
    /// # Errors
    /// When the queue pair is broken.
    fn flush(&mut self, tracker: &Tracker) -> Result<()>;

    /// Moves data and reports completions with [`Tracker::complete`], until nothing is left to do without blocking or the
    /// tracker holds `budget` completions. With fewer it may stop as well, if there are any and much data came with them: to have
    /// more submitted in their place. Also continues sending.
    ///
    /// # Errors
    /// When the queue pair is broken. Completions reported before still count.
    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()>;

    /// Gives the queue pair up. After `Done` no memory of any command is accessed again.
    fn disconnect(&mut self, now: Instant) -> Quiesce;

    /// The admin command that has to complete before [`TransportQpair::disconnect`] can say `Done`: Delete I/O Submission
    /// Queue, then Delete I/O Completion Queue, on memory-based transports. Asked after `disconnect` said `Pending`; the same
    /// command is returned until [`TransportQpair::quiesce_completed`] reports its end. A command asked for with
    /// [`ConnectProgress::Admin`] that is still outstanding is reported there as well.
    fn quiesce_command(&mut self) -> Option<Sqe> {
        None
    }

    /// The end of a command from [`TransportQpair::quiesce_command`]; `None` when the admin queue was lost before its
    /// completion.
    fn quiesce_completed(&mut self, cqe: Option<&Cqe>) {
        let _ = cqe;
    }

    /// It is in a poll group from now on and may share with the other members what `shares` holds, or what it puts there. Called
    /// when it is put into a group, connected or not, and right after it was made anew for one that is in a group. A queue pair
    /// that shares something still does all of its work when it is polled alone: it may be taken out of the group. By default
    /// nothing is shared.
    fn join_group(&mut self, shares: &GroupShares) {
        let _ = shares;
    }

    /// Makes memory of a dma-buf ready for commands, before the first one and again before every other. While the queue pair is still
    /// being connected it may say nothing of it.
    ///
    /// # Errors
    /// When it cannot be used, which is nothing against the queue pair. So it is by default: for transports that copy data, whose
    /// `submit` is never given such memory.
    fn take_device_memory(&mut self, region: &DmaRegion) -> Result<()> {
        let _ = region;
        Err(copies())
    }

    /// File descriptor that becomes readable when [`TransportQpair::poll`] has something to do; `None` before there is one.
    fn event_fd(&self) -> Option<RawFd>;

    /// Whether the event source should be watched for writing as well, because data is waiting to be sent.
    fn wants_write(&self) -> bool {
        false
    }

    /// Whether a queue pair that is connected and has no local work needs no [`TransportQpair::poll`] until its event source becomes
    /// readable (or writable, if it waited for that) once more, seen edge-triggered: so it is with sockets. Otherwise the source
    /// has to be armed, or may stay silent, and who waits for many queue pairs polls this one all the same.
    fn is_event_driven(&self) -> bool {
        false
    }

    /// Whether [`TransportQpair::poll`] could go on at once although the event source stays silent, because it stopped
    /// with something already received, or with something left in the event source.
    fn has_local_work(&self) -> bool {
        false
    }

    /// Counters of the transport, for statistics and performance work.
    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
}

/// Counters of a queue pair's transport.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct TransportStats {
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// System calls or doorbell writes to send.
    pub sends: u64,
    /// System calls to receive that brought something.
    pub receives: u64,
    /// System calls to receive that brought nothing.
    pub empty_receives: u64,
}

impl<T: TransportQpair + ?Sized> TransportQpair for Box<T> {
    fn poll_connect(&mut self, now: Instant) -> Result<ConnectProgress> {
        (**self).poll_connect(now)
    }

    fn admin_completed(&mut self, cqe: &Cqe) -> Result<()> {
        (**self).admin_completed(cqe)
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        (**self).submit(slot, sqe, tracker)
    }

    fn flush(&mut self, tracker: &Tracker) -> Result<()> {
        (**self).flush(tracker)
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        (**self).poll(tracker, budget)
    }

    fn disconnect(&mut self, now: Instant) -> Quiesce {
        (**self).disconnect(now)
    }

    fn quiesce_command(&mut self) -> Option<Sqe> {
        (**self).quiesce_command()
    }

    fn quiesce_completed(&mut self, cqe: Option<&Cqe>) {
        (**self).quiesce_completed(cqe);
    }

    fn join_group(&mut self, shares: &GroupShares) {
        (**self).join_group(shares);
    }

    fn take_device_memory(&mut self, region: &DmaRegion) -> Result<()> {
        (**self).take_device_memory(region)
    }

    fn event_fd(&self) -> Option<RawFd> {
        (**self).event_fd()
    }

    fn wants_write(&self) -> bool {
        (**self).wants_write()
    }

    fn is_event_driven(&self) -> bool {
        (**self).is_event_driven()
    }

    fn has_local_work(&self) -> bool {
        (**self).has_local_work()
    }

    fn stats(&self) -> TransportStats {
        (**self).stats()
    }
}

/// Why a transport that copies takes no memory of a dma-buf.
pub(crate) fn copies() -> Error {
    Error::unsupported(
        "memory of a dma-buf that is not open to the processor, over a transport that copies data",
    )
    .hint("open it first (DeviceBuf::begin_cpu_access), or use ordinary memory (DmaPool)")
}

impl fmt::Debug for dyn Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.trtype())
    }
}

/// The error of an address whose transport was not registered with the driver.
pub(crate) fn not_registered(trid: &TransportId, registered: &[Arc<dyn Transport>]) -> Error {
    let known: Vec<String> = registered.iter().map(|t| t.trtype().to_string()).collect();
    Error::unsupported(format!(
        "no transport of type {} is registered with this driver (registered: {})",
        trid.trtype(),
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    ))
    .peer(trid)
}
