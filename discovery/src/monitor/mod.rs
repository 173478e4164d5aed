//! Keeping up with a fabric: connections to discovery controllers that stay, and events for what changes.
//!
//! ```text
//!                    ┌──────────── a thread per discovery controller ───────────┐
//!  names, referrals, │ connect ─▶ read log ─▶ compare ─▶ wait ─▶ (event) read … │──▶ State ──▶ events
//!  mDNS ────────────▶│    ▲                                │ lost               │   (paths, by whom)
//!                    │    └────────── pause, longer each time ◀────────────────┘│
//!                    └──────────────────────────────────────────────────────────┘
//! ```

mod queue;
mod state;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::spec::discovery::DiscoveryLogEntry;
use nvmf_core::{ControllerOptions, DiscoveryLogOptions, Driver, Error, Result, TransportId};

use crate::walk::key;
pub use queue::EventQueue;
pub(crate) use state::{Holder, Reach, Shared};

/// So many events wait for a program that does not fetch them before they are merged.
const MAX_WAITING: usize = 4096;

/// How discovery controllers are watched.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MonitorOptions {
    /// How they are connected to. The keep alive timeout is 30 s, as nvme-cli has it for persistent connections; the admin timeout
    /// and the connect timeout are 5 s.
    pub controller: ControllerOptions,
    /// How logs are read.
    pub log: DiscoveryLogOptions,
    /// How many referrals may lead to a discovery controller that is watched. 8; 0 follows none.
    pub max_depth: u8,
    /// The longest pause between two attempts to connect. It begins with a tenth of a second, and doubles. 10 s.
    pub max_backoff: Duration,
    /// Read the log now and then even if the controller reports no change. `None`: only those that cannot report changes, every
    /// 30 s.
    pub refresh: Option<Duration>,
    /// Enter this host into central discovery controllers, and take it out at the end. On.
    pub register: bool,
    /// The symbolic name that goes with that.
    pub symbolic_name: Option<String>,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        let mut controller = ControllerOptions::default();
        controller.keep_alive_timeout = Duration::from_secs(30);
        controller.admin_timeout = Duration::from_secs(5);
        controller.connect_timeout = Duration::from_secs(5);
        Self {
            controller,
            log: DiscoveryLogOptions::new(),
            max_depth: 8,
            max_backoff: Duration::from_secs(10),
            refresh: None,
            register: true,
            symbolic_name: None,
        }
    }
}

/// A path to an NVM subsystem, as a discovery controller reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// How to connect to it.
    pub trid: TransportId,
    /// The entry of the discovery log.
    pub entry: Arc<DiscoveryLogEntry>,
}

/// What changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MonitorEvent {
    /// A discovery controller is watched from now on: it was named, referred to, or announced.
    Watching(TransportId),
    /// It is watched no more: nobody names it.
    Forgotten(TransportId),
    /// A discovery controller is connected, and its log was read.
    Connected {
        /// The discovery controller.
        trid: TransportId,
        /// The NQN it reports.
        subnqn: String,
        /// The generation of its log.
        genctr: u64,
    },
    /// A discovery controller is not, or no longer, connected. The paths it reported stay: that it cannot be asked does not mean that
    /// they are gone.
    Disconnected {
        /// The discovery controller.
        trid: TransportId,
        /// Why.
        error: Error,
        /// When it will be attempted again.
        retry_in: Duration,
    },
    /// A path that was not there before.
    Added(Path),
    /// A path is there no more: no discovery controller reports it.
    Removed(Path),
    /// A path is reported in another way: its requirements or its port have changed.
    Changed(Path),
    /// A discovery controller reports something that cannot be used. Told once for each connection.
    Unusable {
        /// The discovery controller.
        trid: TransportId,
        /// What is wrong with it.
        error: Error,
    },
    /// More happened than the program has fetched, and what waited was merged ([`EventQueue`]). The events that follow tell how what there
    /// is differs from what was told before.
    Merged {
        /// How many events are not told.
        events: u64,
    },
}

/// Watches discovery controllers from threads of its own. Dropping it ends all of them and closes their connections.
#[derive(Debug)]
pub struct DiscoveryMonitor {
    shared: Arc<Shared>,
}

impl DiscoveryMonitor {
    /// A monitor that watches nothing yet. Discovery controllers that the program attaches itself by the same driver are shared with
    /// the monitor, which takes their events: it should use another driver for those.
    #[must_use]
    pub fn new(driver: Driver, options: MonitorOptions) -> Self {
        Self { shared: Arc::new(Shared::new(driver, options, EventQueue::new(MAX_WAITING))) }
    }

    /// Watches the discovery controller at `trid`, if it is not watched anyway. Whether it can be connected to is told by events;
    /// it is attempted for ever.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn watch(&self, trid: &TransportId) -> Result<()> {
        Shared::hold(&self.shared, trid, Holder::Program(key(trid)), &Reach::named(None))
    }

    /// As [`DiscoveryMonitor::watch`], but it and those it refers to are connected to with these options, and not with
    /// those of the monitor. `reconnect_delay`, if there is one, takes the place of [`MonitorOptions::max_backoff`]. One that
    /// is watched already keeps the options it has.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn watch_with(&self, trid: &TransportId, options: ControllerOptions) -> Result<()> {
        Shared::hold(&self.shared, trid, Holder::Program(key(trid)), &Reach::named(Some(options)))
    }

    /// Undoes [`DiscoveryMonitor::watch`]. What only this discovery controller reported is removed, unless it is also
    /// referred to or announced.
    pub fn forget(&self, trid: &TransportId) {
        Shared::release(&self.shared, trid, &Holder::Program(key(trid)));
    }

    #[cfg(feature = "mdns")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The next change; `None` when there was none for so long. Changes come in the order in which they were noticed. When more
    /// than 4,096 wait, they are merged ([`MonitorEvent::Merged`]).
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<MonitorEvent> {
        self.shared.next(timeout)
    }

    /// The paths there are now. [`DiscoveryMonitor::next`] may still have changes to tell that led to this.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        self.shared.paths()
    }

    /// The discovery controllers that are watched now.
    #[must_use]
    pub fn watched(&self) -> Vec<TransportId> {
        self.shared.watched()
    }

    /// Ends all threads and closes all connections. Waits, until `limit` at most; what has not ended then ends by itself.
    pub fn stop(self, limit: Duration) {
        self.shared.stop(Instant::now() + limit);
    }
}

impl Drop for DiscoveryMonitor {
    fn drop(&mut self) {
        self.shared.stop(Instant::now() + Duration::from_secs(10));
    }
}
