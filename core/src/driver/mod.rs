//! The driver: registered transports, attached controllers, probe and connect.

mod admin_thread;
mod hotplug;
mod log_entry;
mod probe;
mod sharing;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

pub(crate) use admin_thread::AdminThread;
pub use hotplug::Hotplug;
pub use probe::{Callbacks, ProbeContext};
pub use sharing::SharedBuilder;
use sharing::Sharing;

use crate::controller::{Attach, Controller, Environment, Inner};
use crate::dma::DmaPool;
use crate::error::{Error, Result};
use crate::host::HostIdentity;
use crate::nqn::{HostId, Nqn};
use crate::options::ControllerOptions;
use crate::transport::{Transport, not_registered};
use crate::transport_id::{TransportId, TransportType};

/// The entry point: knows the transports of this program and the controllers it attached. Cheap to clone.
#[derive(Clone)]
pub struct Driver(Arc<Shared>);

struct Shared {
    transports: Vec<Arc<dyn Transport>>,
    pool: DmaPool,
    attached: Mutex<Vec<Attached>>,
    host: OnceLock<HostIdentity>,
    thread: Arc<AdminThread>,
    sharing: OnceLock<Sharing>,
}

/// A controller that was attached and is not yet dropped.
struct Attached {
    inner: Weak<Inner>,
    /// Its function has left the bus: what is found under its identifier from now on is another one.
    departed: bool,
}

impl Attached {
    fn controller(&self) -> Option<Controller> {
        self.inner.upgrade().map(Controller)
    }
}

/// Collects what a [`Driver`] is made of.
#[derive(Default)]
#[must_use]
pub struct DriverBuilder {
    transports: Vec<Arc<dyn Transport>>,
    host: Option<HostIdentity>,
}

impl DriverBuilder {
    /// Registers a transport. Of several for the same type, the last one counts.
    pub fn transport(mut self, transport: impl Transport + 'static) -> Self {
        self.transports.retain(|known| known.trtype() != transport.trtype());
        self.transports.push(Arc::new(transport));
        self
    }

    /// Sets who we are, for controllers whose options do not say. Otherwise [`HostIdentity::load`].
    pub fn host(mut self, host: HostIdentity) -> Self {
        self.host = Some(host);
        self
    }

    /// The driver.
    #[must_use]
    pub fn build(self) -> Driver {
        let host = OnceLock::new();
        if let Some(identity) = self.host {
            let _ = host.set(identity);
        }
        Driver(Arc::new(Shared {
            transports: self.transports,
            pool: DmaPool::new(),
            attached: Mutex::default(),
            host,
            thread: Arc::new(AdminThread::default()),
            sharing: OnceLock::new(),
        }))
    }
}

impl Driver {
    /// Starts a builder.
    pub fn builder() -> DriverBuilder {
        DriverBuilder::default()
    }

    /// The pool of DMA memory its controllers use.
    #[must_use]
    pub fn pool(&self) -> &DmaPool {
        &self.0.pool
    }

    /// Controllers attached and not yet detached.
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        self.attached().iter().filter_map(Attached::controller).filter(|ctrlr| !ctrlr.is_detached()).collect()
    }

    /// Finds controllers and attaches those the probe callback agrees to; waits until each is attached or has failed.
    ///
    /// * `None` scans the local bus of every registered local transport; an identifier of such a transport, the part of its bus
    ///   that the identifier covers. What is attached already is not offered: probing again finds what was plugged in since.
    ///   Attached controllers that have left the bus are given up, and their remove callbacks called. One that was lost is offered
    ///   again once its function was replaced or its last handle and queue pair are dropped.
    /// * A fabrics identifier without a subsystem NQN, or with the discovery NQN, names a discovery controller: its log
    ///   is read, and every NVM subsystem in it is offered.
    /// * Any other identifier is offered as it is.
    ///
    /// # Errors
    /// When looking for controllers failed. That one of them could not be attached is told to the attach-fail callback.
    pub fn probe(&self, trid: Option<&TransportId>, callbacks: Callbacks<'_>) -> Result<()> {
        self.probe_async(trid, callbacks)?.finish()
    }

    /// As [`Driver::probe`], driven by [`ProbeContext::poll`]; never blocks.
    ///
    /// # Errors
    /// When the identifier's transport is not registered, or the local bus cannot be scanned.
    pub fn probe_async<'a>(
        &self,
        trid: Option<&TransportId>,
        callbacks: Callbacks<'a>,
    ) -> Result<ProbeContext<'a>> {
        ProbeContext::probe(self.clone(), trid, callbacks)
    }

    /// Attaches the controller at `trid` directly, without discovery. Waits. The discovery NQN, or none, attaches the
    /// discovery controller itself.
    ///
    /// # Errors
    /// When the controller cannot be attached: what was attempted, where, and why it failed.
    pub fn connect(&self, trid: &TransportId, options: &ControllerOptions) -> Result<Controller> {
        let mut outcome = None;
        self.connect_async(trid, options, |result| outcome = Some(result))?.finish()?;
        outcome.unwrap_or_else(|| Err(Error::disconnected("attaching ended without a result").peer(trid)))
    }

    /// As [`Driver::connect`], driven by [`ProbeContext::poll`]; `done` gets the outcome.
    ///
    /// # Errors
    /// When the identifier's transport is not registered.
    pub fn connect_async<'a>(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
        done: impl FnOnce(Result<Controller>) + 'a,
    ) -> Result<ProbeContext<'a>> {
        ProbeContext::connect(self.clone(), trid, options, Box::new(done))
    }

    /// Tells when controllers come and go on the local buses, from now on: a descriptor to wait for, and events.
    ///
    /// # Errors
    /// When a bus cannot be looked at.
    pub fn hotplug(&self) -> Result<Hotplug> {
        Hotplug::new(self.clone())
    }

    fn attached(&self) -> MutexGuard<'_, Vec<Attached>> {
        let mut attached = self.0.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.retain(|attached| attached.inner.strong_count() > 0);
        attached
    }

    fn register(&self, controller: &Controller) {
        self.attached().push(Attached { inner: Arc::downgrade(&controller.0), departed: false });
    }

    /// Whether this local controller is attached, or was lost and is not yet let go of: its function cannot be opened again
    /// before, unless it has been replaced.
    fn is_taken(&self, trid: &TransportId) -> bool {
        // The last handle may be ours: it is to be dropped without the lock.
        let known: Vec<_> =
            self.attached().iter().filter_map(|a| Some((a.controller()?, a.departed))).collect();
        known.iter().any(|(controller, departed)| {
            controller.trid() == trid && !controller.is_detached() && !(*departed && controller.is_failed())
        })
    }

    /// Gives up attached controllers of a local transport that have left its bus.
    fn give_up_departed(&self, transport: &dyn Transport) {
        for controller in self.controllers() {
            let trid = controller.trid();
            if trid.trtype() == transport.trtype() && transport.is_present(trid) == Some(false) {
                self.departed(transport, trid);
            }
        }
    }

    /// Takes notice that what was at `trid` has left the bus.
    fn departed(&self, transport: &dyn Transport, trid: &TransportId) {
        let known: Vec<Controller> = self
            .attached()
            .iter_mut()
            .filter_map(|attached| {
                let controller = attached.controller().filter(|controller| controller.trid() == trid)?;
                attached.departed = true;
                Some(controller)
            })
            .collect();
        // A socket that is closed to others may still serve us.
        if transport.is_present(trid) == Some(false) {
            known.iter().filter(|controller| !controller.is_detached()).for_each(Controller::removed);
        }
    }

    /// The controller attached already under this identifier by the same host, counted once more.
    fn find_attached(&self, trid: &TransportId, host: &HostIdentity) -> Option<Controller> {
        let found = self.controllers().into_iter().find(|c| c.trid() == trid && c.host() == host)?;
        found.reference().then_some(found)
    }

    fn transport(&self, trid: &TransportId) -> Result<&Arc<dyn Transport>> {
        self.0
            .transports
            .iter()
            .find(|transport| transport.trtype() == trid.trtype())
            .ok_or_else(|| not_registered(trid, &self.0.transports))
    }

    /// Whether controllers of this transport type can be attached: it was registered.
    #[must_use]
    pub fn has_transport(&self, trtype: TransportType) -> bool {
        self.0.transports.iter().any(|transport| transport.trtype() == trtype)
    }

    /// Who we are to the controller at `trid`: its own `hostnqn`, else the options', else the driver's.
    fn host_for(&self, trid: &TransportId, options: &ControllerOptions) -> Result<HostIdentity> {
        // With whom a controller is shared does not matter to it.
        if let Some(host) = self.transport(trid)?.shared_host(trid)? {
            return Ok(host);
        }
        let base = match &options.host {
            Some(host) => host.clone(),
            None => self.default_host()?,
        };
        Ok(match trid.hostnqn() {
            Some(nqn) if *nqn != base.nqn => HostIdentity { id: host_id_of(nqn, base.id), nqn: nqn.clone() },
            _ => base,
        })
    }

    fn default_host(&self) -> Result<HostIdentity> {
        if let Some(host) = self.0.host.get() {
            return Ok(host.clone());
        }
        let host = HostIdentity::load().map_err(|error| {
            Error::api_misuse(error.to_string()).doing("finding the identity of this host")
        })?;
        Ok(self.0.host.get_or_init(|| host).clone())
    }

    fn start(&self, trid: &TransportId, options: &ControllerOptions) -> Result<Attach> {
        let transport = self.transport(trid)?;
        let options = &self.shared_options(options);
        let environment = Environment {
            pool: self.0.pool.clone(),
            host: self.host_for(trid, options)?,
            thread: Arc::clone(&self.0.thread),
        };
        Attach::start(transport, trid, options, environment, Instant::now())
    }
}

/// The host identifier that goes with a host NQN given by name: its UUID if it has one, for the same NQN must
/// always come with the same identifier.
fn host_id_of(nqn: &Nqn, fallback: HostId) -> HostId {
    nqn.uuid().map_or(fallback, |uuid| HostId::from_bytes(uuid.to_bytes()))
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transports: Vec<String> = self.0.transports.iter().map(|t| t.trtype().to_string()).collect();
        f.debug_struct("Driver")
            .field("transports", &transports)
            .field("controllers", &self.controllers())
            .finish()
    }
}
