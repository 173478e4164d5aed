//! Reading the log of one discovery controller.

use std::time::{Duration, Instant};

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_core::spec::discovery::DiscoveryLogAsk;
use nvmf_core::spec::identify::DiscoveryControllerType;
use nvmf_core::{
    Controller, ControllerOptions, DiscoveryLogOptions, Driver, Error, Nqn, Result, TransportId,
};

/// How long a good-bye may take. The association ends without as well.
const GOOD_BYE: Duration = Duration::from_secs(2);
/// The longest sleep between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How discovery controllers are asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiscoverOptions {
    /// How they are connected to. The keep alive timeout is zero for one reading, unless it was set.
    pub controller: ControllerOptions,
    /// How the log is read.
    pub log: DiscoveryLogOptions,
    /// Connect again by the unique NQN when the well-known one was connected to and Identify Controller names another (NVMe
    /// Base 2.1 §3.1.3.3). On; should the unique NQN be refused, the well-known one has to do.
    pub unique_nqn: bool,
    /// How many referrals may lead from a discovery controller that was named to one that is asked. 8; 0 follows none.
    pub max_depth: u8,
    /// How many discovery controllers are asked at a time, each by a thread; at least 1. 32.
    pub parallel: usize,
}

impl Default for DiscoverOptions {
    fn default() -> Self {
        Self::new(ControllerOptions::default())
    }
}

impl DiscoverOptions {
    /// The defaults, with these options for connecting.
    #[must_use]
    pub fn new(mut controller: ControllerOptions) -> Self {
        controller.keep_alive_timeout = Duration::ZERO;
        Self { controller, log: DiscoveryLogOptions::new(), unique_nqn: true, max_depth: 8, parallel: 32 }
    }

    /// Sets what is asked of the log. Controllers that cannot do it are an error.
    #[must_use]
    pub fn ask(mut self, ask: DiscoveryLogAsk) -> Self {
        self.log.ask = ask;
        self
    }

    /// Sets how many referrals are followed one after the other.
    #[must_use]
    pub fn max_depth(mut self, depth: u8) -> Self {
        self.max_depth = depth;
        self
    }

    /// Sets how many discovery controllers are asked at a time.
    #[must_use]
    pub fn parallel(mut self, controllers: usize) -> Self {
        self.parallel = controllers.max(1);
        self
    }
}

/// What a discovery controller said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Discovery {
    /// The log: one state of it, never a mixture of two.
    pub log: DiscoveryLog,
    /// The NQN the discovery subsystem reports in Identify Controller. It may be a unique one (NVMe Base 2.1 §3.1.3.3)
    /// though the well-known one was connected to; a long-lived connection should then use the unique one, by which
    /// the subsystem can be told from others.
    pub subnqn: String,
    /// By which identifier it was read: the one asked for, or that with the unique NQN.
    pub trid: TransportId,
    /// DCTYPE: whether it is a direct or a central discovery controller, if it says.
    pub kind: DiscoveryControllerType,
}

impl Discovery {
    /// Whether the discovery subsystem has an NQN of its own.
    #[must_use]
    pub fn has_unique_nqn(&self) -> bool {
        self.subnqn != Nqn::DISCOVERY
    }
}

/// Attaches the discovery controller at `trid`, reads its log, and detaches. Waits, but every step has a deadline from
/// `options`.
///
/// A `trid` without a subsystem NQN means the well-known discovery NQN. The host is that of the transport identifier,
/// of the options, or of this machine (`/etc/nvme/hostnqn`, `/etc/nvme/hostid`), in this order. No keep alive is
/// asked for: the association lasts for one reading.
///
/// # Errors
///
/// When the controller cannot be attached, is no discovery controller, or its log cannot be read.
pub fn discover(driver: &Driver, trid: &TransportId, options: &ControllerOptions) -> Result<Discovery> {
    discover_with(driver, trid, &DiscoverOptions::new(options.clone()))
}

/// As [`discover`], with more options.
///
/// # Errors
///
/// As [`discover`]; also when the controller cannot do what is asked of the log.
pub fn discover_with(driver: &Driver, trid: &TransportId, options: &DiscoverOptions) -> Result<Discovery> {
    let never = || false;
    let connected = connect(driver, trid, &options.controller, &|_| options.unique_nqn, &never)?;
    let Some(controller) = connected else {
        return Err(Error::disconnected("stopped").peer(trid));
    };
    let result = read(&controller, options);
    let (subnqn, trid, kind) = (controller.subnqn(), controller.trid().clone(), controller.identify().dctype);
    // With the log in hand, or the reason why not, a failing good-bye changes nothing.
    leave(controller);
    Ok(Discovery { log: result?, subnqn, trid, kind })
}

fn read(controller: &Controller, options: &DiscoverOptions) -> Result<DiscoveryLog> {
    check_support(controller, options.log.ask)?;
    controller.discovery_log_with(&options.log)
}

/// Fails if the controller cannot do what is asked of its log.
pub(crate) fn check_support(controller: &Controller, ask: DiscoveryLogAsk) -> Result<()> {
    if ask == DiscoveryLogAsk::default() {
        return Ok(());
    }
    let missing = ask.without(controller.discovery_log_support()?);
    if missing == DiscoveryLogAsk::default() {
        return Ok(());
    }
    Err(Error::unsupported(format!("the discovery controller has no {missing}"))
        .doing("reading the discovery log")
        .peer(controller.trid())
        .hint("ask for the plain log"))
}

/// Connects to a discovery controller, by its unique NQN if it has one and `unique` agrees to that identifier. `None` when `stop` says
/// so meanwhile: it is looked at all the time.
pub(crate) fn connect(
    driver: &Driver,
    trid: &TransportId,
    options: &ControllerOptions,
    unique: &dyn Fn(&TransportId) -> bool,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Controller>> {
    let Some(controller) = attach(driver, trid, options, stop)? else { return Ok(None) };
    if !controller.is_discovery() {
        let error = Error::unsupported("this is an I/O controller, it has no discovery log")
            .doing("reading the discovery log")
            .peer(trid)
            .hint("leave out the subsystem NQN to ask the discovery subsystem at this address");
        // The reason to stop is more interesting than a failing good-bye.
        leave(controller);
        return Err(error);
    }
    let well_known = trid.subnqn().is_none_or(Nqn::is_discovery);
    let own = unique_trid(trid, &controller).filter(|own| well_known && unique(own));
    let Some(own) = own else { return Ok(Some(controller)) };
    match attach(driver, &own, options, stop) {
        Ok(Some(by_own_name)) => {
            leave(controller);
            Ok(Some(by_own_name))
        }
        Ok(None) => {
            leave(controller);
            Ok(None)
        }
        Err(error) => {
            tracing::info!(%error, "the unique discovery NQN was refused; the well-known one has to do");
            Ok(Some(controller))
        }
    }
}

/// The identifier with the unique NQN the controller reports, if it does.
fn unique_trid(trid: &TransportId, controller: &Controller) -> Option<TransportId> {
    let subnqn = Nqn::new(&controller.subnqn()).ok().filter(|nqn| !nqn.is_discovery())?;
    // The port that is left out depends on the name.
    let port = trid.trsvcid();
    let trid = match port.is_empty() {
        true => trid.clone(),
        false => trid.clone().with_trsvcid(port).ok()?,
    };
    Some(trid.with_subnqn(subnqn))
}

fn attach(
    driver: &Driver,
    trid: &TransportId,
    options: &ControllerOptions,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Controller>> {
    let mut outcome = None;
    {
        let mut context = driver.connect_async(trid, options, |result| outcome = Some(result))?;
        while !context.poll()? {
            if stop() {
                // What is half connected is closed with the context.
                return Ok(None);
            }
            context.wait(LOOK)?;
        }
    }
    match outcome {
        Some(result) => result.map(Some),
        None => Err(Error::disconnected("attaching ended without a result").peer(trid)),
    }
}

/// Reads the log, unless `stop` says so meanwhile.
pub(crate) fn read_until(
    controller: &Controller,
    options: &DiscoveryLogOptions,
    stop: &dyn Fn() -> bool,
) -> Result<Option<DiscoveryLog>> {
    let mut read = controller.read_discovery_log(options);
    loop {
        if let Some(log) = read.poll()? {
            return Ok(Some(log));
        }
        if stop() {
            return Ok(None);
        }
        read.wait()?;
    }
}

/// Detaches. A controller that does not confirm its shutdown in time is let go of all the same.
pub(crate) fn leave(controller: Controller) {
    let deadline = Instant::now() + GOOD_BYE;
    let mut detach = controller.detach_async();
    loop {
        match detach.poll() {
            Ok(true) => return,
            Ok(false) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Ok(false) => {
                tracing::debug!("the discovery controller did not confirm its shutdown in time");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "the discovery controller did not confirm its shutdown");
                return;
            }
        }
    }
}
