//! Attaching: runs the initialisation machine against a transport, without blocking.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::admin::RemoveCallback;
use super::admin_command::Sent;
use super::events::{Event, Stale};
use super::{Admin, Controller, Info, check_connect};
use crate::dma::DmaPool;
use crate::driver::AdminThread;
use crate::error::{Error, Result};
use crate::host::HostIdentity;
use crate::options::ControllerOptions;
use crate::proto::controller_init::{Action, ControllerInit, InitConfig, InitResult, Next, Outcome};
use crate::proto::keep_alive::KeepAlive;
use crate::qpair::engine::{Connecting, Engine, Renewal};
use crate::spec::AdminOpcode;
use crate::spec::fabrics::{self, PropertySize};
use crate::spec::registers::PropertyOffset;
use crate::spec::{Cqe, Status};
use crate::transport::{QpairSetup, Registers, Transport, TransportQpair};
use crate::transport_id::TransportId;

/// Admin operations that may be outstanding, those waiting for a slot included.
const ADMIN_OPS: u32 = 256;

/// What every controller of a driver shares.
pub(crate) struct Environment {
    pub(crate) pool: DmaPool,
    pub(crate) host: HostIdentity,
    pub(crate) thread: Arc<AdminThread>,
}

/// A controller being brought to work: attached, or connected again. Keeps no handle of it.
pub(super) struct Bringup {
    machine: ControllerInit,
    runner: Runner,
    started: Instant,
    deadline: Instant,
}

/// How far it has come.
pub(super) enum Progress {
    /// Nothing more can be done now, and nothing at all before this time.
    Pending(Option<Instant>),
    Ready,
}

impl Bringup {
    pub(super) fn new(controller: &Controller, now: Instant) -> Self {
        Self {
            machine: ControllerInit::new(controller.init_config(), now),
            runner: Runner::Idle,
            started: now,
            deadline: now + controller.options().attach_timeout,
        }
    }

    pub(super) fn state(&self) -> &'static str {
        self.machine.state()
    }

    pub(super) fn result(&self) -> &InitResult {
        self.machine.result()
    }

    /// As many steps as can be made without waiting.
    pub(super) fn step(&mut self, controller: &Controller, now: Instant) -> Result<Progress> {
        loop {
            let machine = &mut self.machine;
            if !self.runner.poll(controller, now, &mut |outcome| machine.complete(outcome, now))? {
                if now >= self.deadline {
                    let limit = controller.options().attach_timeout;
                    return Err(Error::timed_out(self.machine.state(), limit));
                }
                // The machine knows how long its state may take.
                return self.machine.next(now).map(|_| Progress::Pending(None));
            }
            self.keep_alive(controller);
            match self.machine.next(now)? {
                Next::Do(action) => self.runner.begin(action, controller, true)?,
                Next::Wait(_) if now >= self.deadline => {
                    let limit = controller.options().attach_timeout;
                    return Err(Error::timed_out(self.machine.state(), limit));
                }
                Next::Wait(time) => return Ok(Progress::Pending(Some(time))),
                Next::Ready => return Ok(Progress::Ready),
            }
        }
    }

    /// The controller's keep alive timer runs since Connect, however long identifying its namespaces takes.
    fn keep_alive(&mut self, controller: &Controller) {
        let timeout = self.machine.result().keep_alive_timeout;
        if timeout.is_zero() {
            return;
        }
        let mut admin = controller.lock();
        if admin.keep_alive.is_none() {
            admin.keep_alive = KeepAlive::new(timeout, self.started);
        }
    }
}

/// A controller being attached.
pub(crate) struct Attach {
    controller: Controller,
    bringup: Bringup,
}

impl Attach {
    pub(crate) fn start(
        transport: &Arc<dyn Transport>,
        trid: &TransportId,
        options: &ControllerOptions,
        environment: Environment,
        now: Instant,
    ) -> Result<Self> {
        let context = |error: Error| error.doing("attaching the controller").peer(trid);
        let made = transport.ctrlr_construct(trid, options).map_err(context)?;
        let controller =
            Controller::new(Arc::clone(transport), trid.clone(), options.clone(), environment, made);
        let bringup = Bringup::new(&controller, now);
        Ok(Self { controller, bringup })
    }

    pub(crate) fn trid(&self) -> &TransportId {
        self.controller.trid()
    }

    /// One step. `Some` once the controller is ready.
    pub(crate) fn poll(&mut self, now: Instant) -> Result<Option<Controller>> {
        self.controller.pump();
        let result = self.bringup.step(&self.controller, now).and_then(|progress| match progress {
            Progress::Pending(_) => Ok(false),
            Progress::Ready => {
                // Nobody knew anything before.
                drop(self.controller.adopt(self.bringup.result().clone(), None, now)?);
                Ok(true)
            }
        });
        match result {
            Ok(false) => Ok(None),
            Ok(true) => Ok(Some(self.controller.clone())),
            Err(error) => {
                self.controller.close();
                // A lost queue says more than the machine's own state does.
                Err(error.doing(self.bringup.state()).peer(self.controller.trid()))
            }
        }
    }

    /// What to sleep on while nothing can be done.
    pub(crate) fn event_source(&self) -> Option<(RawFd, bool)> {
        self.controller.admin_event_source()
    }
}

impl Controller {
    /// Hands a ready controller over to its life: removal callback, background thread.
    pub(crate) fn start_life(&self, remove: Option<RemoveCallback>) {
        self.lock().remove = remove;
        if self.0.options.background_admin {
            self.0.background.store(true, Ordering::Release);
            self.0.thread.add(&self.0);
        }
    }

    /// Lets go of everything without reporting a removal.
    pub(crate) fn close(&self) {
        let mut admin = self.lock();
        admin.closed = true;
        drop(admin);
        self.fail();
    }

    pub(super) fn init_config(&self) -> InitConfig {
        let options = self.options();
        let capabilities = self.lock().transport.capabilities();
        InitConfig {
            fabrics: capabilities.fabrics,
            discovery: capabilities.fabrics_io && self.trid().subnqn().is_none_or(|nqn| nqn.is_discovery()),
            admin_timeout: options.admin_timeout,
            connect_timeout: options.connect_timeout,
            num_io_queues: options.num_io_queues,
            keep_alive_timeout: options.keep_alive_timeout,
            read_ana_log: !options.disable_read_ana_log_page,
            host_id: self.0.host.id.to_bytes(),
            max_transfer: capabilities.max_transfer,
            delays: capabilities.delays,
        }
    }

    /// Takes over what initialisation found out: from now on it can be used. `attempt` is the number of the attempt to connect it
    /// again that found it out.
    pub(super) fn adopt(&self, result: InitResult, attempt: Option<u64>, now: Instant) -> Result<Vec<Event>> {
        let mut admin = self.lock();
        if attempt.is_some_and(|number| !admin.is_attempt(number)) {
            return Err(Error::disconnected("the attempt was called off"));
        }
        admin.transport.identified(&result.identify)?;
        if result.async_events != 0 {
            admin.want_aers(result.identify.aerl_z);
        }
        admin.abort_limit = result.identify.abort_limit();
        admin.set_qids(result.num_io_queues);
        let before = self.info();
        let info = Info::new(result, &*admin.transport, Some((&before, admin.association() + 1)));
        let changes = info.changes_since(&before);
        self.set_info(info);
        admin.stale = Stale::default();
        admin.ready(now);
        Ok(changes)
    }

    /// Reads the list of namespaces and their geometry again. Waits.
    ///
    /// # Errors
    /// When the controller fails a command, a deadline passes, or the admin queue is lost.
    pub fn rescan_namespaces(&self) -> Result<()> {
        let info = self.info();
        if info.init.discovery {
            return Ok(());
        }
        let mut machine = ControllerInit::rescan(self.init_config(), info.init.clone(), Instant::now());
        let mut runner = Runner::Idle;
        let mut waiter = None;
        let mut step = || -> Result<InitResult> {
            loop {
                let seen = self.arrivals();
                let now = Instant::now();
                self.pump();
                if runner.poll(self, now, &mut |outcome| machine.complete(outcome, now))? {
                    match machine.next(now)? {
                        Next::Do(action) => runner.begin(action, self, false)?,
                        Next::Wait(time) => std::thread::sleep(time.saturating_duration_since(now)),
                        Next::Ready => return Ok(machine.result().clone()),
                    }
                } else {
                    machine.next(now)?;
                    self.wait_arrival(seen, &mut waiter)?;
                }
            }
        };
        let result = step();
        runner.abandon(self);
        let changes = self.identified_again(result?);
        self.tell(changes);
        Ok(())
    }

    /// Takes over what was found out about namespaces of a controller that is ready, and says what is new.
    pub(super) fn identified_again(&self, result: InitResult) -> Vec<Event> {
        let admin = self.lock();
        let before = self.info();
        let info = Info::new(result, &*admin.transport, Some((&before, admin.association())));
        let changes = info.changes_since(&before);
        self.set_info(info);
        changes
    }

    /// Drives the connection of the admin queue. `Some` with the controller identifier once connected.
    fn poll_admin_connect(&self, now: Instant) -> Result<Option<Option<u16>>> {
        let mut admin = self.lock();
        if admin.engine.is_none() {
            let engine = self.make_admin_engine(&mut admin, now)?;
            admin.engine = Some(engine);
        }
        let Some(engine) = &mut admin.engine else { return Ok(None) };
        match engine.poll_connect(now)? {
            Connecting::Pending => Ok(None),
            Connecting::Ready(None) => Ok(Some(None)),
            Connecting::Ready(Some(cqe)) => check_connect(&cqe, &self.0.host).map(|r| Some(Some(r.cntlid))),
            Connecting::Admin(_) => {
                Err(Error::api_misuse("the transport asks for an admin command to create the admin queue"))
            }
        }
    }

    fn make_admin_engine(&self, admin: &mut Admin, now: Instant) -> Result<Engine<Box<dyn TransportQpair>>> {
        let Renewal { transport, slots, generations, connect, connect_timeout } =
            self.admin_connection(admin, now)?;
        let mut engine = Engine::new(transport, slots, ADMIN_OPS, generations, connect, connect_timeout, now);
        let capabilities = admin.transport.capabilities();
        engine.set_max_transfer(capabilities.max_transfer.min(capabilities.max_admin_transfer));
        Ok(engine)
    }

    /// A new connection for the admin queue.
    pub(super) fn admin_connection(
        &self,
        admin: &mut Admin,
        now: Instant,
    ) -> Result<Renewal<Box<dyn TransportQpair>>> {
        let inner = &*self.0;
        let capabilities = admin.transport.capabilities();
        let entries = inner.options.admin_queue_size.clamp(capabilities.min_admin_entries.max(2), 4096);
        let setup = QpairSetup {
            qid: 0,
            entries,
            slots: entries - 1,
            deadline: now + inner.options.connect_timeout,
            priority: 0,
        };
        let transport = admin.transport.create_qpair(&setup)?;
        let connect = if capabilities.fabrics {
            let kato = u32::try_from(inner.options.keep_alive_timeout.as_millis()).unwrap_or(u32::MAX);
            Some(inner.connect_command(&setup, fabrics::CNTLID_DYNAMIC, kato)?)
        } else {
            None
        };
        Ok(Renewal {
            transport,
            slots: setup.slots,
            generations: inner.options.cid_generations,
            connect,
            connect_timeout: inner.options.connect_timeout,
        })
    }

    /// Runs `f` on the registers, where there are any, unless the admin queue is given up: the controller is being stopped then,
    /// or was, and must not be started by whoever has not noticed.
    pub(super) fn with_registers<T>(
        &self,
        f: impl FnOnce(&mut dyn Registers) -> Result<T>,
    ) -> Option<Result<T>> {
        let mut admin = self.lock();
        let given_up = admin.engine.as_ref().is_some_and(Engine::is_given_up);
        let reason = if given_up { admin.reason() } else { None };
        let registers = admin.transport.registers()?;
        Some(match reason {
            Some(error) => Err(error),
            None => f(registers),
        })
    }
}

/// Does what a machine asks for, one action at a time.
pub(super) enum Runner {
    Idle,
    Connect,
    Get(Sent, PropertySize),
    Set(Sent),
    Admin(Sent),
    SetUp(Sent),
    /// Already done, to be reported at the next poll.
    Value(u64),
    Done,
}

impl Runner {
    /// Starts an action; `connecting` when it is part of connecting the controller.
    pub(super) fn begin(&mut self, action: Action, controller: &Controller, connecting: bool) -> Result<()> {
        let command = |sqe| {
            let command = controller.admin(sqe);
            if connecting { command.while_connecting() } else { command }
        };
        *self = match action {
            Action::ConnectAdminQueue => Self::Connect,
            Action::PropertyGet(offset, size) => {
                let read = |registers: &mut dyn Registers| match size {
                    PropertySize::Dword => registers.read32(offset.0).map(u64::from),
                    PropertySize::Qword => registers.read64(offset.0),
                };
                match controller.with_registers(read) {
                    Some(value) => Self::Value(value?),
                    None => {
                        let command = command(fabrics::property_get(offset.0, size));
                        Self::Get(command.name(property_name("Property Get", offset)).send()?, size)
                    }
                }
            }
            Action::PropertySet(offset, size, value) => {
                let write = |registers: &mut dyn Registers| match size {
                    PropertySize::Dword => registers.write32(offset.0, value as u32),
                    PropertySize::Qword => registers.write64(offset.0, value),
                };
                match controller.with_registers(write) {
                    Some(result) => {
                        result?;
                        Self::Done
                    }
                    None => {
                        let command = command(fabrics::property_set(offset.0, size, value));
                        Self::Set(command.name(property_name("Property Set", offset)).send()?)
                    }
                }
            }
            Action::SetAdminQueue => {
                let queue = controller
                    .lock()
                    .transport
                    .admin_queue()
                    .ok_or_else(|| Error::api_misuse("the transport has no admin queue registers"))?;
                let write = |registers: &mut dyn Registers| {
                    registers.write32(PropertyOffset::AQA.0, queue.aqa)?;
                    registers.write64(PropertyOffset::ASQ.0, queue.asq)?;
                    registers.write64(PropertyOffset::ACQ.0, queue.acq)
                };
                controller
                    .with_registers(write)
                    .unwrap_or_else(|| Err(Error::api_misuse("the transport has no registers")))?;
                Self::Done
            }
            Action::SetUpTransport(identify) => {
                let wanted = controller.lock().transport.set_up(&identify)?;
                match wanted {
                    Some(sqe) => {
                        let name = AdminOpcode(sqe.opcode).to_string();
                        Self::SetUp(command(sqe).name(name).send()?)
                    }
                    None => Self::Done,
                }
            }
            Action::Admin(wanted) => {
                let admin = command(wanted.sqe)
                    .name(wanted.name)
                    .data_in(wanted.data_in as usize)
                    .data_out(wanted.data_out);
                Self::Admin(admin.send()?)
            }
        };
        Ok(())
    }

    /// Stops caring for the action in progress.
    pub(super) fn abandon(&mut self, controller: &Controller) {
        if let Self::Get(sent, _) | Self::Set(sent) | Self::Admin(sent) | Self::SetUp(sent) = self {
            sent.forget(controller);
        }
        *self = Self::Idle;
    }

    /// Reports the outcome of the action in progress, if there is one. Returns whether the runner is idle now. Does not process
    /// the admin queue.
    pub(super) fn poll(
        &mut self,
        controller: &Controller,
        now: Instant,
        complete: &mut dyn FnMut(Outcome<'_>) -> Result<()>,
    ) -> Result<bool> {
        match self {
            Self::Idle => return Ok(true),
            Self::Connect => match controller.poll_admin_connect(now)? {
                None => return Ok(false),
                Some(cntlid) => complete(Outcome::Connected { cntlid })?,
            },
            Self::Get(pending, size) => match pending.take(controller, None) {
                None => return Ok(false),
                Some(result) => {
                    let value = result?.value;
                    complete(Outcome::Property(match size {
                        PropertySize::Dword => value & u64::from(u32::MAX),
                        PropertySize::Qword => value,
                    }))?;
                }
            },
            Self::Set(pending) => match pending.take(controller, None) {
                None => return Ok(false),
                Some(result) => {
                    result?;
                    complete(Outcome::Done)?;
                }
            },
            Self::Admin(pending) => match pending.take(controller, None) {
                None => return Ok(false),
                Some(Ok(result)) => {
                    let cqe = Cqe::new(0, 0, Status(0)).with_result64(result.value);
                    complete(Outcome::Admin(&cqe, &result.data))?;
                }
                Some(Err(error)) => match error.status() {
                    // What a refusal means is the machine's business.
                    Some(status) => complete(Outcome::Admin(&Cqe::new(0, 0, status), &[]))?,
                    None => return Err(error),
                },
            },
            Self::SetUp(pending) => match pending.take(controller, None) {
                None => return Ok(false),
                Some(result) => {
                    let status = match result {
                        Ok(_) => Status::SUCCESS,
                        // What a refusal means is the transport's business.
                        Err(error) => error.status().ok_or(error)?,
                    };
                    controller.lock().transport.set_up_completed(status);
                    complete(Outcome::Done)?;
                }
            },
            Self::Value(value) => complete(Outcome::Property(*value))?,
            Self::Done => complete(Outcome::Done)?,
        }
        *self = Self::Idle;
        Ok(true)
    }
}

fn property_name(what: &'static str, offset: PropertyOffset) -> String {
    format!("{what} ({})", offset.name().unwrap_or("property"))
}

/// A pause between polls of things that have no descriptor.
pub(crate) const NAP: Duration = Duration::from_millis(2);
