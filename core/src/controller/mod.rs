//! Controllers: the shared handle, admin commands, namespaces, I/O queue pairs.

mod admin;
mod admin_command;
mod attach;
mod detach;
mod discovery;
mod events;
mod link;
mod recovery;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

pub(crate) use admin::RemoveCallback;
pub use admin::{AbortStats, AdminResult};
use admin::{Admin, MAX_ABORTS_WAITING, Notices};
pub use admin_command::{AdminCommand, AdminPending};
pub(crate) use attach::{Attach, Environment, NAP};
pub use detach::Detach;
pub use discovery::{DiscoveryLogOptions, DiscoveryLogRead};
pub use events::{Event, NamespaceChange};
use link::Addresses;
pub(crate) use link::{Link, LinkCell, Phase};
pub use recovery::ControllerState;
use recovery::Work;
pub(crate) use watch::Watcher;
use watch::Watchers;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::dma::{DmaBuf, DmaPool, IoBuf};
use crate::driver::AdminThread;
use crate::error::{Error, ErrorKind, Result};
use crate::host::HostIdentity;
use crate::namespace::{Limits, Namespace};
use crate::nqn::Nqn;
use crate::options::{ControllerOptions, IoQpairOptions};
use crate::proto::controller_init::{AnaGroup, InitResult};
use crate::proto::tracker::MAX_SLOTS;
use crate::qpair::engine::{Engine, FabricsConnect, Renewal};
use crate::qpair::{CommandError, Create, IoQpair};
use crate::spec::fabrics::{
    self, CATTR_DISABLE_SQ_FLOW_CONTROL, ConnectData, ConnectResponse, InvalidParameter,
};
use crate::spec::identify::IdentifyController;
use crate::spec::log_page::AsyncEvent;
use crate::spec::registers::{Cap, Version};
use crate::spec::status::{CommandKind, Status};
use crate::spec::{Cqe, Sqe};
use crate::transport::{GroupShares, QpairSetup, Transport, TransportController, TransportQpair};
use crate::transport_id::TransportId;

/// A handle of an attached controller: cheap to clone, usable from any thread.
///
/// The controller is given up when the last handle and the last queue pair are gone; [`Controller::detach`] shuts it
/// down in good order before.
#[derive(Clone)]
pub struct Controller(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    transport: Arc<dyn Transport>,
    addresses: Addresses,
    options: ControllerOptions,
    host: HostIdentity,
    pool: DmaPool,
    /// What is done about the controller in small steps. Taken before `admin`, and never waited for.
    work: Mutex<Work>,
    admin: Mutex<Admin>,
    /// Commands to abort: association, queue, command. Held for a copy.
    aborts: Mutex<Vec<(u64, u16, u16)>>,
    /// What of `admin` queue pairs look at.
    link: Arc<LinkCell>,
    /// The association that a queue pair wants to have ended, 0 for none.
    unwanted: AtomicU64,
    /// The association that a queue pair wants to have ended by a reset, whatever the policy.
    to_reset: AtomicU64,
    /// Told when an admin completion arrived.
    arrived: Condvar,
    info: RwLock<Arc<Info>>,
    /// How often it was attached and not yet detached.
    references: AtomicUsize,
    /// The background thread processes the admin queue.
    background: AtomicBool,
    thread: Arc<AdminThread>,
    /// Other processes' sessions.
    watchers: Watchers,
}

/// What is known of a controller; replaced as a whole when it is identified again.
pub(crate) struct Info {
    init: InitResult,
    namespaces: Vec<Namespace>,
    max_transfer: u32,
    /// By namespace: the association in which it was first seen as what it is now.
    since: HashMap<u32, u64>,
}

impl Info {
    /// `before` is what was known before, and the association in force.
    pub(crate) fn new(
        init: InitResult,
        transport: &dyn TransportController,
        before: Option<(&Self, u64)>,
    ) -> Self {
        let page = init.cap.min_page_size();
        let mut max_transfer = transport.capabilities().max_transfer;
        if let Some(mdts) = init.identify.max_transfer_size(page) {
            max_transfer = max_transfer.min(u32::try_from(mdts).unwrap_or(u32::MAX));
        }
        let limits = Limits {
            max_transfer,
            write_zeroes: init.identify_nvm.as_ref().and_then(|nvm| nvm.write_zeroes_limit(page)),
            verify: init.identify_nvm.as_ref().and_then(|nvm| nvm.verify_limit(page)),
        };
        let namespaces = init
            .namespaces
            .iter()
            .filter_map(|info| {
                let group = info.identify.anagrpid.get();
                let ana = init.ana_groups.iter().find(|g| g.id == group).map(|g| g.state);
                let ns = Namespace::new(info.clone(), &limits, ana);
                if ns.is_none() {
                    tracing::warn!(nsid = info.nsid, "namespace left out: its format makes no sense");
                }
                ns
            })
            .collect();
        let mut info = Self { init, namespaces, max_transfer, since: HashMap::new() };
        if let Some((before, association)) = before {
            for ns in &info.namespaces {
                let same = before.namespaces.iter().any(|known| known.is_same(ns));
                let since = before.since.get(&ns.nsid()).copied().filter(|_| same);
                info.since.insert(ns.nsid(), since.unwrap_or(association));
            }
        }
        info
    }

    /// Whether commands prepared in `association` for this namespace may be sent: it is not another one now.
    pub(crate) fn is_still(&self, nsid: u32, association: u64) -> bool {
        self.since.get(&nsid).is_none_or(|&since| since <= association)
    }
}

impl Controller {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        trid: TransportId,
        options: ControllerOptions,
        environment: Environment,
        made: Box<dyn TransportController>,
    ) -> Self {
        let Environment { pool, host, thread } = environment;
        let info = Info::new(InitResult::blank(false), &*made, None);
        let link = Arc::new(LinkCell::new());
        let admin = Admin::new(made, options.recovery_policy(), Arc::clone(&link));
        Self(Arc::new(Inner {
            transport,
            addresses: Addresses::new(trid),
            options,
            host,
            pool,
            work: Mutex::default(),
            admin: Mutex::new(admin),
            aborts: Mutex::default(),
            link,
            unwanted: AtomicU64::new(0),
            to_reset: AtomicU64::new(0),
            arrived: Condvar::new(),
            info: RwLock::new(Arc::new(info)),
            references: AtomicUsize::new(1),
            background: AtomicBool::new(false),
            thread,
            watchers: Watchers::default(),
        }))
    }

    // --- what it is ----------------------------------------------------------------------------------------------------

    /// Its transport identifier; [`Controller::set_trid`] changes it.
    #[must_use]
    pub fn trid(&self) -> &TransportId {
        self.0.addresses.current()
    }

    /// The options it was attached with.
    #[must_use]
    pub fn options(&self) -> &ControllerOptions {
        &self.0.options
    }

    /// Who we are to it.
    #[must_use]
    pub fn host(&self) -> &HostIdentity {
        &self.0.host
    }

    /// Controller identifier.
    #[must_use]
    pub fn cntlid(&self) -> u16 {
        let info = self.info();
        if info.init.cntlid != 0 { info.init.cntlid } else { info.init.identify.cntlid.get() }
    }

    /// Version (VS).
    #[must_use]
    pub fn version(&self) -> Version {
        self.info().init.version
    }

    /// Capabilities (CAP).
    #[must_use]
    pub fn cap(&self) -> Cap {
        self.info().init.cap
    }

    /// Identify Controller data, as read when it was attached.
    #[must_use]
    pub fn identify(&self) -> IdentifyController {
        (*self.info().init.identify).clone()
    }

    /// The subsystem's NQN: as asked for, or as Identify Controller says (Base 2.1 §3.1.3.3, unique discovery NQN).
    #[must_use]
    pub fn subnqn(&self) -> String {
        let reported = self.info().init.identify.subsystem_nqn();
        match self.trid().subnqn() {
            _ if !reported.is_empty() => reported,
            Some(asked) => asked.as_str().to_owned(),
            None => Nqn::DISCOVERY.to_owned(),
        }
    }

    /// Whether it is a discovery controller: no namespaces, no I/O queues, a discovery log page.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.info().init.discovery
    }

    /// I/O queue pairs granted.
    #[must_use]
    pub fn num_io_queues(&self) -> u16 {
        self.info().init.num_io_queues
    }

    /// Largest transfer of one command, bytes.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        self.info().max_transfer
    }

    /// Keep alive timeout in force; zero is off.
    #[must_use]
    pub fn keep_alive_timeout(&self) -> Duration {
        self.info().init.keep_alive_timeout
    }

    /// ANA groups, where it reports them.
    #[must_use]
    pub fn ana_groups(&self) -> Vec<AnaGroup> {
        self.info().init.ana_groups.clone()
    }

    /// Its active namespaces, as last identified.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.info().namespaces.clone()
    }

    /// An active namespace.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<Namespace> {
        self.info().namespaces.iter().find(|ns| ns.nsid() == nsid).cloned()
    }

    /// The pool its buffers come from.
    #[must_use]
    pub fn pool(&self) -> &DmaPool {
        &self.0.pool
    }

    /// A zeroed buffer of `len` bytes for I/O.
    ///
    /// # Errors
    /// When the operating system has no memory.
    pub fn alloc(&self, len: usize) -> Result<DmaBuf> {
        self.0
            .pool
            .alloc(len)
            .map_err(|error| Error::from(error).doing(format!("allocating {len} bytes of I/O memory")))
    }

    /// Whether it is lost and not connected again on its own; [`Controller::reset`] may bring it back.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.0.link.load().phase == Phase::Lost
    }

    /// Whether it can be used.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.link.load().phase == Phase::Ready
    }

    /// Why it cannot be used, if it cannot: its admin queue is lost, or it was disconnected.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        if self.is_ready() {
            return None;
        }
        // An I/O thread asks; it does not wait for whoever connects the controller.
        self.try_lock().map_or_else(|| self.0.link.reason(), |admin| admin.reason())
    }

    /// Whether this association is in force and up.
    #[inline]
    pub(crate) fn is_linked(&self, association: u64) -> bool {
        self.0.link.is_ready(association)
    }

    pub(crate) fn link(&self) -> Link {
        self.0.link.load()
    }

    pub(crate) fn info(&self) -> Arc<Info> {
        Arc::clone(&self.0.info.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_info(&self, info: Info) {
        *self.0.info.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(info);
    }

    fn lock(&self) -> MutexGuard<'_, Admin> {
        self.0.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Self::lock`] if `wait`, else [`Self::try_lock`].
    fn lock_if_free_or(&self, wait: bool) -> Option<MutexGuard<'_, Admin>> {
        if wait { Some(self.lock()) } else { self.try_lock() }
    }

    /// For I/O threads: `None` while another thread is at it, which the operating system may have stopped just then.
    fn try_lock(&self) -> Option<MutexGuard<'_, Admin>> {
        match self.0.admin.try_lock() {
            Ok(admin) => Some(admin),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    // --- attaching more than once ----------------------------------------------------------------------------------------

    /// Counts one more attachment; `false` when it is being detached or is not connected.
    pub(crate) fn reference(&self) -> bool {
        self.is_ready()
            && self
                .0
                .references
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n > 0).then_some(n + 1))
                .is_ok()
    }

    /// Whether the last attachment is gone.
    pub(crate) fn is_detached(&self) -> bool {
        self.0.references.load(Ordering::Acquire) == 0
    }

    // --- admin queue -------------------------------------------------------------------------------------------------------

    /// Prepares an admin command; nothing is sent before [`AdminCommand::submit`] or [`AdminCommand::wait`].
    pub fn admin(&self, sqe: Sqe) -> AdminCommand {
        AdminCommand::new(self.clone(), sqe)
    }

    /// Processes the admin queue once: completions, keep alive, asynchronous events. Never blocks. To be called
    /// regularly when [`ControllerOptions::background_admin`] is off. Returns how many commands completed.
    ///
    /// # Errors
    /// When the admin queue is lost, with the reason.
    pub fn process_admin_completions(&self) -> Result<usize> {
        self.process_admin(self.lock())
    }

    fn process_admin(&self, mut admin: MutexGuard<'_, Admin>) -> Result<usize> {
        let mut notices = Notices::default();
        if let Err(error) = self.send_aborts(&mut admin) {
            tracing::debug!(%error, "commands cannot be aborted");
        }
        let result = admin.process(Instant::now(), &mut notices);
        drop(admin);
        self.deliver(notices);
        self.drive();
        result.map_err(|error| error.peer(self.trid()))
    }

    fn deliver(&self, notices: Notices) {
        if notices.arrived {
            self.0.arrived.notify_all();
        }
        notices.wakers.into_iter().for_each(std::task::Waker::wake);
        self.tell(notices.events);
        self.0.watchers.look(self.link());
        if let Some(remove) = notices.removed {
            remove(self.trid());
        }
    }

    /// Takes the asynchronous events that arrived since the last call, oldest first. At most 256 are kept.
    #[must_use]
    pub fn take_events(&self) -> Vec<AsyncEvent> {
        self.lock().events.drain(..).collect()
    }

    /// The admin queue's descriptor and whether to watch it for writing, for an event loop of one's own.
    #[must_use]
    pub fn admin_event_source(&self) -> Option<(RawFd, bool)> {
        let admin = self.lock();
        let engine = admin.engine.as_ref()?;
        let transport = engine.transport();
        Some((transport.event_fd()?, transport.wants_write() || engine.is_connecting()))
    }

    /// Called by the background thread: processes the admin queue and says what to wait for.
    pub(crate) fn background_step(&self, now: Instant) -> Option<(Option<(RawFd, bool)>, Duration)> {
        // The reason of a failure stays with the queue; there is nobody here to tell.
        let _ = self.process_admin_completions();
        const SHORT: Duration = Duration::from_millis(1);
        let next = self.next_work(now);
        let admin = self.lock();
        let engine = admin.engine.as_ref()?;
        let due = next.map(|time| time.saturating_duration_since(now).max(SHORT));
        if engine.is_given_up() {
            // Its commands complete once the transport is quiesced.
            let nap = if engine.has_local_work() { Some(SHORT) } else { due };
            return nap.map(|nap| (None, nap));
        }
        let mut sleep = if admin.busy() { Duration::from_millis(100) } else { Duration::from_secs(1) };
        if let Some(deadline) = admin.next_deadline(now) {
            // A keep alive that found no room is due all the time.
            sleep = sleep.min(deadline.saturating_duration_since(now).max(SHORT));
        }
        sleep = sleep.min(due.unwrap_or(sleep));
        if engine.has_local_work() {
            sleep = Duration::ZERO;
        }
        let transport = engine.transport();
        let source = transport.event_fd().map(|fd| (fd, transport.wants_write() || engine.is_connecting()));
        if source.is_none() && (admin.busy() || engine.is_connecting()) {
            // Nothing wakes us.
            sleep = sleep.min(SHORT);
        }
        Some((source, sleep))
    }

    /// What came of Abort commands so far.
    #[must_use]
    pub fn abort_stats(&self) -> AbortStats {
        self.lock().abort_stats
    }

    /// Does not wait for a lock: when another thread is at the admin queue, it is sent with the next look at that.
    pub(crate) fn abort(&self, association: u64, sqid: u16, cid: u16) -> Result<()> {
        let mut aborts = self.0.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        if aborts.len() < MAX_ABORTS_WAITING {
            aborts.push((association, sqid, cid));
        }
        drop(aborts);
        let result = self.try_lock().map_or(Ok(()), |mut admin| self.send_aborts(&mut admin));
        self.0.thread.wake();
        result
    }

    /// Sends the aborts that were asked for.
    fn send_aborts(&self, admin: &mut Admin) -> Result<()> {
        let aborts = std::mem::take(&mut *self.0.aborts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut result = Ok(());
        for (association, sqid, cid) in aborts {
            // In another association the identifiers are another command's.
            if association == admin.association() {
                result = result.and(admin.abort(sqid, cid));
            }
        }
        result
    }

    // --- I/O queue pairs -----------------------------------------------------------------------------------------------------

    /// Makes and connects an I/O queue pair. Waits until it is connected, at most
    /// [`ControllerOptions::connect_timeout`].
    ///
    /// # Errors
    /// When the controller grants no more queues, is lost, or the connection fails.
    pub fn alloc_io_qpair(&self, options: &IoQpairOptions) -> Result<IoQpair> {
        self.connected_io_qpair(options, None)
    }

    /// As [`Controller::alloc_io_qpair`], and the queue pair shares what it can with others that one thread polls, as those of a
    /// [`crate::PollGroup`] do: for programs that have a loop of their own, in which they call [`GroupShares::poll`] before
    /// each round of polls.
    ///
    /// # Errors
    /// As [`Controller::alloc_io_qpair`].
    pub fn alloc_io_qpair_in(&self, shares: &GroupShares, options: &IoQpairOptions) -> Result<IoQpair> {
        self.connected_io_qpair(options, Some(shares))
    }

    fn connected_io_qpair(&self, options: &IoQpairOptions, shares: Option<&GroupShares>) -> Result<IoQpair> {
        let deadline = Instant::now() + self.0.options.connect_timeout;
        loop {
            match self.connect_io_qpair(options, shares) {
                // The identifier was used before and the target has not noticed yet that the old queue is gone.
                Err(error)
                    if error.status().is_some_and(|s| s.is(Status::COMMAND_SEQUENCE_ERROR))
                        && Instant::now() < deadline =>
                {
                    tracing::debug!(%error, "trying again");
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result.map_err(|error| self.loss_behind(error)),
            }
        }
    }

    /// Why a queue pair could not be connected: when the connection broke and the controller is lost as well, because of that.
    fn loss_behind(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Disconnected(_)) {
            return error;
        }
        // Its reason is kept and told below.
        let _ = self.process_admin_completions();
        self.failure().map_or(error, |reason| reason.doing("allocating an I/O queue pair").peer(self.trid()))
    }

    fn connect_io_qpair(&self, options: &IoQpairOptions, shares: Option<&GroupShares>) -> Result<IoQpair> {
        let mut qpair = self.alloc_io_qpair_async(options)?;
        if let Some(shares) = shares {
            qpair.join_group(shares.clone());
        }
        let mut waiter = None;
        loop {
            let seen = self.arrivals();
            if qpair.poll_connect()? {
                return Ok(qpair);
            }
            if qpair.awaits_admin() {
                self.wait_arrival(seen, &mut waiter)?;
            } else {
                qpair.wait(Duration::from_millis(20))?;
            }
        }
    }

    /// Makes an I/O queue pair that connects while it is polled ([`IoQpair::poll_connect`],
    /// [`IoQpair::process_completions`]). Does not block, but in a secondary process ([`crate::DriverBuilder::shared`]), which asks the primary
    /// for a queue identifier: up to 5 s if that is stopped. What is submitted before waits.
    ///
    /// # Errors
    /// As [`Controller::alloc_io_qpair`].
    pub fn alloc_io_qpair_async(&self, options: &IoQpairOptions) -> Result<IoQpair> {
        self.alloc_io_qpair_with(options, |transport, setup| transport.create_qpair(setup))
    }

    /// As [`Controller::alloc_io_qpair_async`], with a queue pair of a concrete type made by `create` (see
    /// [`TransportController::as_any`]), so that the hot path has no dynamic dispatch. `create` is called again for every
    /// connection the queue pair makes.
    ///
    /// # Errors
    /// As [`Controller::alloc_io_qpair`], and what `create` returns.
    pub fn alloc_io_qpair_with<Q: TransportQpair>(
        &self,
        options: &IoQpairOptions,
        create: impl FnMut(&mut dyn TransportController, &QpairSetup) -> Result<Q> + Send + 'static,
    ) -> Result<IoQpair<Q>> {
        let inner = &*self.0;
        let info = self.info();
        let mut create: Create<Q> = Box::new(create);
        let mut admin = self.lock();
        if !admin.recovery.is_connected() {
            let failure = admin.reason().unwrap_or_else(|| Error::disconnected("it is not connected"));
            return Err(failure.doing("allocating an I/O queue pair").peer(self.trid()));
        }
        if info.init.discovery {
            return Err(Error::api_misuse("a discovery controller has no I/O queues").peer(self.trid()));
        }
        if options.priority > 3 {
            return Err(Error::api_misuse(format!(
                "queue priority {} is not within 0..=3",
                options.priority
            )));
        }
        let Some(qid) = admin.lease_qid()? else {
            return Err(Error::exhausted(format!(
                "all {} I/O queues the controller granted are in use",
                info.init.num_io_queues
            ))
            .peer(self.trid())
            .hint("free a queue pair, or ask for more with num_io_queues"));
        };
        let now = Instant::now();
        match self.io_connection(&mut admin, qid, options, &mut create, now) {
            Ok(Renewal { transport, slots, generations, connect, connect_timeout }) => {
                let ops = options
                    .io_queue_requests
                    .unwrap_or(inner.options.io_queue_requests)
                    .max(u32::from(slots));
                let mut engine =
                    Engine::new(transport, slots, ops, generations, connect, connect_timeout, now);
                let capabilities = admin.transport.capabilities();
                engine.set_max_segments(capabilities.max_segments);
                engine.set_separate_metadata(capabilities.separate_metadata);
                engine.set_max_transfer(capabilities.max_transfer);
                engine.set_delay_submit(options.delay_cmd_submit);
                drop(admin);
                Ok(IoQpair::new(engine, self.clone(), qid, options.clone(), create))
            }
            Err(error) => {
                admin.return_qid(qid);
                Err(error.doing(format!("making I/O queue {qid}")).peer(self.trid()))
            }
        }
    }

    /// A new connection for an I/O queue.
    fn io_connection<Q: TransportQpair>(
        &self,
        admin: &mut Admin,
        qid: u16,
        options: &IoQpairOptions,
        create: &mut Create<Q>,
        now: Instant,
    ) -> Result<Renewal<Q>> {
        let inner = &*self.0;
        let info = self.info();
        let entries = u32::from(options.io_queue_size.unwrap_or(inner.options.io_queue_size));
        let entries = entries.min(info.init.cap.max_queue_entries()).clamp(2, u32::from(MAX_SLOTS)) as u16;
        let mut slots = entries - 1;
        if info.init.identify.maxcmd.get() > 0 {
            slots = slots.min(info.init.identify.maxcmd.get());
        }
        let setup = QpairSetup {
            qid,
            entries,
            slots,
            deadline: now + inner.options.connect_timeout,
            priority: options.priority,
        };
        let transport = create(&mut *admin.transport, &setup)?;
        let connect = if admin.transport.capabilities().fabrics_io {
            Some(inner.connect_command(&setup, info.init.cntlid, 0)?)
        } else {
            None
        };
        Ok(Renewal {
            transport,
            slots,
            generations: inner.options.cid_generations,
            connect,
            connect_timeout: inner.options.connect_timeout,
        })
    }

    /// A new connection for an I/O queue pair that lost its own, and the association it is made in; `None` while another thread is
    /// at the controller, unless `wait`.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] when the controller does not grant so many queues any more.
    pub(crate) fn renew_io_qpair<Q: TransportQpair>(
        &self,
        qid: u16,
        options: &IoQpairOptions,
        create: &mut Create<Q>,
        now: Instant,
        wait: bool,
    ) -> Result<Option<(Renewal<Q>, Link)>> {
        let Some(mut admin) = self.lock_if_free_or(wait) else { return Ok(None) };
        let context = |error: Error| error.doing(format!("making I/O queue {qid} again")).peer(self.trid());
        if !admin.recovery.is_connected() {
            let failure = admin.reason().unwrap_or_else(|| Error::disconnected("it is not connected"));
            return Err(context(failure));
        }
        if !admin.grants(qid) {
            let granted = self.info().init.num_io_queues;
            return Err(context(Error::exhausted(format!(
                "the controller grants only {granted} I/O queues now"
            ))));
        }
        let renewal = self.io_connection(&mut admin, qid, options, create, now).map_err(context)?;
        Ok(Some((renewal, self.link())))
    }

    pub(crate) fn free_qid(&self, qid: u16) {
        self.lock().return_qid(qid);
    }

    /// Judges the completion of an I/O queue's Fabrics Connect command.
    pub(crate) fn check_io_connect(&self, cqe: &Cqe) -> Result<ConnectResponse> {
        let status = cqe.status();
        if status.is(Status::CONNECT_INVALID_PARAMETERS)
            && InvalidParameter::from_dw0(cqe.dw0.get()) == InvalidParameter::CNTLID
        {
            // It gave us that identifier: the association has ended at its side, and the admin queue will hear of it.
            return Err(Error::disconnected(format!(
                "the target does not know controller {} any more",
                self.cntlid()
            )));
        }
        check_connect(cqe, &self.0.host)
    }
}

impl Inner {
    /// The Fabrics Connect command of a queue (Base 2.1 §6.3).
    pub(crate) fn connect_command(
        &self,
        setup: &QpairSetup,
        cntlid: u16,
        kato_ms: u32,
    ) -> Result<FabricsConnect> {
        let discovery = Nqn::discovery();
        let data = ConnectData {
            hostid: self.host.id.to_bytes(),
            cntlid: U16::new(cntlid),
            reserved18: [0; 238],
            subnqn: self.addresses.current().subnqn().unwrap_or(&discovery).to_wire(),
            hostnqn: self.host.nqn.to_wire(),
            reserved768: [0; 256],
        };
        let cattr = if self.options.disable_sq_flow_control { CATTR_DISABLE_SQ_FLOW_CONTROL } else { 0 };
        Ok(FabricsConnect {
            sqe: fabrics::connect(setup.qid, setup.entries - 1, cattr, kato_ms),
            data: IoBuf::One(self.pool.copy_from(data.as_bytes())?),
        })
    }
}

fn check_connect(cqe: &Cqe, host: &HostIdentity) -> Result<ConnectResponse> {
    let status = cqe.status();
    if !status.is_success() {
        let error = Error::command(CommandKind::Fabrics, "Fabrics Connect", status);
        return Err(match status.code() {
            Status::CONNECT_INVALID_PARAMETERS => {
                let parameter = InvalidParameter::from_dw0(cqe.dw0.get());
                let hint = match parameter.field() {
                    Some("subsystem NQN") => {
                        "the subsystem NQN is not known at this address, or this host may not use it; \
                         `nvmf discover` lists what is offered"
                            .to_owned()
                    }
                    Some("connect attributes") => {
                        "the target does not take a request to go without SQ flow control; do not ask for that \
                         (`--disable-sqflow=no`)"
                            .to_owned()
                    }
                    Some(field) => format!("the target objects to the {field}"),
                    None => format!("the target objects to byte {} of what was sent", parameter.offset),
                };
                error.hint(hint)
            }
            Status::CONNECT_INVALID_HOST => {
                error.hint(format!("allow this host at the target: its NQN is {}", host.nqn))
            }
            Status::CONNECT_CONTROLLER_BUSY => {
                error.hint("the subsystem has no free controller; try again later")
            }
            _ => error,
        });
    }
    let response = ConnectResponse::from_dw0(cqe.dw0.get());
    if response.authentication_required() || response.secure_channel_required() {
        return Err(Error::unsupported(
            "the target requires in-band authentication, which this version does not offer",
        )
        .hint("allow this host without a DH-HMAC-CHAP key at the target"));
    }
    Ok(response)
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("trid", &format_args!("{}", self.trid()))
            .field("cntlid", &self.cntlid())
            .finish_non_exhaustive()
    }
}

/// An error for an admin operation that ended without a status from the controller.
fn admin_error(set: CommandKind, name: &str, error: CommandError, failure: Option<Error>) -> Error {
    match error {
        CommandError::Status(status) => Error::command(set, name.to_owned(), status),
        other => failure
            .unwrap_or_else(|| Error::new(ErrorKind::Disconnected(other.to_string().into())))
            .doing(name.to_owned()),
    }
}
