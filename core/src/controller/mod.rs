//! Controllers: the shared handle, admin commands, namespaces, I/O queue pairs.

mod admin;
mod admin_command;
mod attach;
mod detach;
mod discovery;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use admin::AdminResult;
pub(crate) use admin::RemoveCallback;
use admin::{Admin, Notices};
pub use admin_command::{AdminCommand, AdminPending};
pub(crate) use attach::{Attach, Environment, NAP};
pub use detach::Detach;
pub(crate) use discovery::DiscoveryRead;
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
use crate::qpair::engine::{Engine, FabricsConnect};
use crate::qpair::{CommandError, IoQpair};
use crate::spec::fabrics::{
    self, CATTR_DISABLE_SQ_FLOW_CONTROL, ConnectData, ConnectResponse, InvalidParameter,
};
use crate::spec::identify::IdentifyController;
use crate::spec::log_page::AsyncEvent;
use crate::spec::registers::{Cap, Version};
use crate::spec::status::{CommandKind, Status};
use crate::spec::{Cqe, Sqe};
use crate::transport::{QpairSetup, TransportController, TransportQpair};
use crate::transport_id::TransportId;

/// A handle of an attached controller: cheap to clone, usable from any thread.
///
/// The controller is given up when the last handle and the last queue pair are gone; [`Controller::detach`] shuts it
/// down in good order before.
#[derive(Clone)]
pub struct Controller(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    trid: TransportId,
    options: ControllerOptions,
    host: HostIdentity,
    pool: DmaPool,
    admin: Mutex<Admin>,
    /// Told when an admin completion arrived.
    arrived: Condvar,
    info: RwLock<Arc<Info>>,
    /// How often it was attached and not yet detached.
    references: AtomicUsize,
    /// The background thread processes the admin queue.
    background: AtomicBool,
    thread: Arc<AdminThread>,
}

/// What is known of a controller; replaced as a whole when it is identified again.
pub(crate) struct Info {
    init: InitResult,
    namespaces: Vec<Namespace>,
    max_transfer: u32,
}

impl Info {
    pub(crate) fn new(init: InitResult, transport: &dyn TransportController) -> Self {
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
        Self { init, namespaces, max_transfer }
    }
}

impl Controller {
    pub(crate) fn new(
        trid: TransportId,
        options: ControllerOptions,
        host: HostIdentity,
        pool: DmaPool,
        transport: Box<dyn TransportController>,
        init: InitResult,
        thread: Arc<AdminThread>,
    ) -> Self {
        let info = Info::new(init, &*transport);
        Self(Arc::new(Inner {
            trid,
            options,
            host,
            pool,
            admin: Mutex::new(Admin::new(transport)),
            arrived: Condvar::new(),
            info: RwLock::new(Arc::new(info)),
            references: AtomicUsize::new(1),
            background: AtomicBool::new(false),
            thread,
        }))
    }

    // --- what it is ----------------------------------------------------------------------------------------------------

    /// Its transport identifier.
    #[must_use]
    pub fn trid(&self) -> &TransportId {
        &self.0.trid
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
        match self.0.trid.subnqn() {
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

    /// Whether its admin queue is lost.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failure().is_some()
    }

    /// Why its admin queue is lost, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.lock().engine.as_ref().and_then(|engine| engine.failure().cloned())
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

    // --- attaching more than once ----------------------------------------------------------------------------------------

    /// Counts one more attachment; `false` when it is being detached or is lost.
    pub(crate) fn reference(&self) -> bool {
        !self.is_failed()
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
        let result = admin.process(Instant::now(), &mut notices);
        drop(admin);
        self.deliver(notices);
        result.map_err(|error| error.peer(&self.0.trid))
    }

    fn deliver(&self, notices: Notices) {
        if notices.arrived {
            self.0.arrived.notify_all();
        }
        notices.wakers.into_iter().for_each(std::task::Waker::wake);
        if let Some(remove) = notices.removed {
            remove(&self.0.trid);
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
        let admin = self.lock();
        let engine = admin.engine.as_ref()?;
        const SHORT: Duration = Duration::from_millis(1);
        if engine.failure().is_some() {
            // Its commands complete once the transport is quiesced.
            return engine.has_local_work().then_some((None, SHORT));
        }
        let mut sleep = if admin.busy() { Duration::from_millis(100) } else { Duration::from_secs(1) };
        if let Some(deadline) = admin.next_deadline(now) {
            // A keep alive that found no room is due all the time.
            sleep = sleep.min(deadline.saturating_duration_since(now).max(SHORT));
        }
        if engine.has_local_work() {
            sleep = Duration::ZERO;
        }
        let transport = engine.transport();
        let source = transport.event_fd().map(|fd| (fd, transport.wants_write()));
        if source.is_none() && admin.busy() {
            // Nothing wakes us.
            sleep = sleep.min(SHORT);
        }
        Some((source, sleep))
    }

    pub(crate) fn abort(&self, sqid: u16, cid: u16) -> Result<()> {
        let result = self.lock().abort(sqid, cid);
        self.0.thread.wake();
        result
    }

    /// Gives the controller up at once: every outstanding and later command fails. No orderly shutdown.
    pub fn fail(&self) {
        self.give_up("the controller was given up by this program");
    }

    /// The same because it has left its bus.
    pub(crate) fn removed(&self) {
        self.give_up("the controller was removed from its bus");
    }

    fn give_up(&self, why: &'static str) {
        let mut notices = Notices::default();
        self.lock().lost(&Error::disconnected(why), Instant::now(), &mut notices);
        self.deliver(notices);
    }

    // --- I/O queue pairs -----------------------------------------------------------------------------------------------------

    /// Makes and connects an I/O queue pair. Waits until it is connected, at most
    /// [`ControllerOptions::connect_timeout`].
    ///
    /// # Errors
    /// When the controller grants no more queues, is lost, or the connection fails.
    pub fn alloc_io_qpair(&self, options: &IoQpairOptions) -> Result<IoQpair> {
        let deadline = Instant::now() + self.0.options.connect_timeout;
        loop {
            match self.connect_io_qpair(options) {
                // The identifier was used before and the target has not noticed yet that the old queue is gone.
                Err(error)
                    if error.status().is_some_and(|s| s.is(Status::COMMAND_SEQUENCE_ERROR))
                        && Instant::now() < deadline =>
                {
                    tracing::debug!(%error, "trying again");
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }

    fn connect_io_qpair(&self, options: &IoQpairOptions) -> Result<IoQpair> {
        let mut qpair = self.alloc_io_qpair_async(options)?;
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
    /// [`IoQpair::process_completions`]). Does not block. What is submitted before waits.
    ///
    /// # Errors
    /// As [`Controller::alloc_io_qpair`].
    pub fn alloc_io_qpair_async(&self, options: &IoQpairOptions) -> Result<IoQpair> {
        self.alloc_io_qpair_with(options, |transport, setup| transport.create_qpair(setup))
    }

    /// As [`Controller::alloc_io_qpair_async`], with a queue pair of a concrete type made by `create` (see
    /// [`TransportController::as_any`]), so that the hot path has no dynamic dispatch.
    ///
    /// # Errors
    /// As [`Controller::alloc_io_qpair`], and what `create` returns.
    pub fn alloc_io_qpair_with<Q: TransportQpair>(
        &self,
        options: &IoQpairOptions,
        create: impl FnOnce(&mut dyn TransportController, &QpairSetup) -> Result<Q>,
    ) -> Result<IoQpair<Q>> {
        let inner = &*self.0;
        let info = self.info();
        let mut admin = self.lock();
        if let Some(failure) = admin.engine.as_ref().and_then(|engine| engine.failure().cloned()) {
            return Err(failure.doing("allocating an I/O queue pair").peer(&inner.trid));
        }
        if info.init.discovery {
            return Err(Error::api_misuse("a discovery controller has no I/O queues").peer(&inner.trid));
        }
        if options.priority > 3 {
            return Err(Error::api_misuse(format!(
                "queue priority {} is not within 0..=3",
                options.priority
            )));
        }
        let Some(qid) = admin.take_qid() else {
            return Err(Error::exhausted(format!(
                "all {} I/O queues the controller granted are in use",
                info.init.num_io_queues
            ))
            .peer(&inner.trid)
            .hint("free a queue pair, or ask for more with num_io_queues"));
        };
        let entries = u32::from(options.io_queue_size.unwrap_or(inner.options.io_queue_size));
        let entries = entries.min(info.init.cap.max_queue_entries()).clamp(2, u32::from(MAX_SLOTS)) as u16;
        let mut slots = entries - 1;
        if info.init.identify.maxcmd.get() > 0 {
            slots = slots.min(info.init.identify.maxcmd.get());
        }
        let ops = options.io_queue_requests.unwrap_or(inner.options.io_queue_requests).max(u32::from(slots));
        let now = Instant::now();
        let setup = QpairSetup {
            qid,
            entries,
            slots,
            deadline: now + inner.options.connect_timeout,
            priority: options.priority,
        };
        let made = create(&mut *admin.transport, &setup).and_then(|transport| {
            let capabilities = admin.transport.capabilities();
            let connect = if capabilities.fabrics {
                Some(inner.connect_command(&setup, info.init.cntlid, 0)?)
            } else {
                None
            };
            let generations = inner.options.cid_generations;
            let timeout = inner.options.connect_timeout;
            let mut engine = Engine::new(transport, slots, ops, generations, connect, timeout, now);
            engine.set_max_segments(capabilities.max_segments);
            engine.set_separate_metadata(capabilities.separate_metadata);
            engine.set_max_transfer(capabilities.max_transfer);
            Ok(engine)
        });
        match made {
            Ok(mut engine) => {
                engine.set_delay_submit(options.delay_cmd_submit);
                drop(admin);
                Ok(IoQpair::new(engine, self.clone(), qid, inner.options.io_timeout))
            }
            Err(error) => {
                admin.free_qid(qid);
                Err(error.doing(format!("making I/O queue {qid}")).peer(&inner.trid))
            }
        }
    }

    pub(crate) fn free_qid(&self, qid: u16) {
        self.lock().free_qid(qid);
    }

    /// Judges the completion of a Fabrics Connect command.
    pub(crate) fn check_connect(&self, cqe: &Cqe) -> Result<ConnectResponse> {
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
        connect_command(&self.trid, &self.options, &self.host, &self.pool, setup, cntlid, kato_ms)
    }
}

fn connect_command(
    trid: &TransportId,
    options: &ControllerOptions,
    host: &HostIdentity,
    pool: &DmaPool,
    setup: &QpairSetup,
    cntlid: u16,
    kato_ms: u32,
) -> Result<FabricsConnect> {
    let discovery = Nqn::discovery();
    let data = ConnectData {
        hostid: host.id.to_bytes(),
        cntlid: U16::new(cntlid),
        reserved18: [0; 238],
        subnqn: trid.subnqn().unwrap_or(&discovery).to_wire(),
        hostnqn: host.nqn.to_wire(),
        reserved768: [0; 256],
    };
    let cattr = if options.disable_sq_flow_control { CATTR_DISABLE_SQ_FLOW_CONTROL } else { 0 };
    Ok(FabricsConnect {
        sqe: fabrics::connect(setup.qid, setup.entries - 1, cattr, kato_ms),
        data: IoBuf::One(pool.copy_from(data.as_bytes())?),
    })
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
            .field("trid", &format_args!("{}", self.0.trid))
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
