//! A fabric in memory, for tests and for the embedded subsystem: connections between this process's initiator and a peer in the
//! same process, with what makes RDMA what it is: registrations and their keys, receives that have to be posted,
//! completions that come when the device likes, flushing.
//!
//! [`Sim`] takes the place of [`crate::VerbsProvider`]. The other side listens ([`Sim::listen`]), accepts ([`SimRequest`]) and then moves messages and memory
//! ([`SimPeer`]). A message is read from the sender's memory when the peer takes it, not when it is posted, and memory is
//! accessed only under a key that allows it, so that what is released too early shows. Faults are scripted for connections to come
//! ([`Sim::script`]) and done to those there are ([`Sim::connections`]).

mod domain;
mod endpoint;
#[expect(unsafe_code, reason = "promises what the simulated device accesses")]
mod grant;
// UNSAFETY: what makes it sound that the other side writes to memory of this process.
#[expect(unsafe_code, reason = "the simulated device's part of docs/safety.md, A1")]
mod listen;
mod peer;
mod shared;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nvmf_core::{Error, Result};

pub use domain::{SimDomain, SimRegistration};
pub use endpoint::SimEndpoint;
pub use peer::{SimConnection, SimListener, SimPeer, SimRequest};
pub use shared::SimShared;

pub use crate::provider::{CmEvent, DeviceLimits, WorkStatus};

use crate::provider::Provider;
use peer::Pending;
use wire::Wire;

/// Called when there is something to look at; must not block.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// Something that is to happen to the next connection that comes to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SimFault {
    /// Instead of the address being resolved; `None` is silence.
    Address(Option<CmEvent>),
    /// Instead of the route being resolved; `None` is silence.
    Route(Option<CmEvent>),
    /// Instead of the request reaching a listener; `None` is silence.
    Connect(Option<CmEvent>),
    /// No queue pair can be made: an errno.
    CreateQueuePair(i32),
    /// No memory can be registered: an errno.
    Register(i32),
}

/// What happened so far on a simulated fabric.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SimStats {
    /// Connect requests.
    pub connects: u64,
    /// Calls that posted SENDs.
    pub doorbells: u64,
    /// SENDs posted.
    pub sends: u64,
    /// SENDs posted without a completion.
    pub unsignalled: u64,
    /// Times a completion queue was armed.
    pub armed: u64,
    /// Messages that found no receive posted.
    pub not_ready: u64,
    /// Registrations made.
    pub registrations: u64,
    /// Those of them that were made of dma-bufs.
    pub dma_bufs: u64,
    /// Completion queues for several queue pairs.
    pub shared: u64,
    /// Memory windows bound.
    pub binds: u64,
    /// Keys of memory windows ended by the initiator.
    pub invalidations: u64,
    /// Keys of memory windows ended by the peer.
    pub remote_invalidations: u64,
}

#[derive(Default)]
struct Counters {
    connects: AtomicU64,
    doorbells: AtomicU64,
    sends: AtomicU64,
    unsignalled: AtomicU64,
    armed: AtomicU64,
    not_ready: AtomicU64,
    registrations: AtomicU64,
    dma_bufs: AtomicU64,
    shared: AtomicU64,
    binds: AtomicU64,
    invalidations: AtomicU64,
    remote_invalidations: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

struct ListenerQueue {
    requests: VecDeque<Pending>,
    notify: Notify,
}

#[derive(Default)]
struct Net {
    listeners: HashMap<SocketAddr, ListenerQueue>,
    faults: VecDeque<SimFault>,
    connections: Vec<Weak<Wire>>,
    domain: Weak<SimDomain>,
    next_port: u16,
    /// The last queue pair's.
    number: u32,
    trouble: Option<String>,
}

struct Inner {
    limits: DeviceLimits,
    net: Mutex<Net>,
    counters: Counters,
}

impl Inner {
    fn net(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the first scripted fault that `pick` wants.
    fn fault<T>(&self, pick: impl Fn(&SimFault) -> Option<T>) -> Option<T> {
        let mut net = self.net();
        let index = net.faults.iter().position(|fault| pick(fault).is_some())?;
        net.faults.remove(index).as_ref().and_then(pick)
    }
}

/// A simulated fabric with one RDMA device. Clones are the same fabric.
#[derive(Clone)]
pub struct Sim(Arc<Inner>);

impl Sim {
    /// A fabric whose device has no limit that matters.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(DeviceLimits {
            max_registration: 1 << 40,
            max_work_requests: 16_384,
            max_elements: 16,
            max_completions: 65_536,
            max_reads: 16,
            max_shared_receives: 16_384,
            windows: true,
        })
    }

    /// A fabric whose device has these limits.
    #[must_use]
    pub fn with_limits(limits: DeviceLimits) -> Self {
        Self(Arc::new(Inner { limits, net: Mutex::default(), counters: Counters::default() }))
    }

    /// Scripts a fault. Faults of one kind happen in the order they are scripted in.
    pub fn script(&self, fault: SimFault) {
        self.0.net().faults.push_back(fault);
    }

    /// Connections that were asked for and whose initiator side still exists, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<SimConnection> {
        let mut net = self.0.net();
        net.connections.retain(|wire| wire.strong_count() > 0);
        net.connections.iter().filter_map(Weak::upgrade).map(SimConnection::new).collect()
    }

    /// What is wrong with the device from now on, in words; it does what it did all the same.
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.0.net().trouble = trouble;
    }

    /// Takes the device away: every connection is told, and its work is flushed. What is made afterwards is made on a new device.
    pub fn remove_device(&self) {
        self.0.net().domain = Weak::new();
        for connection in self.connections() {
            // In this order, so that whoever sees the flush finds its cause.
            connection.event(CmEvent::DeviceRemoved);
            connection.fail(None);
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        let c = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SimStats {
            connects: read(&c.connects),
            doorbells: read(&c.doorbells),
            sends: read(&c.sends),
            unsignalled: read(&c.unsignalled),
            armed: read(&c.armed),
            not_ready: read(&c.not_ready),
            registrations: read(&c.registrations),
            dma_bufs: read(&c.dma_bufs),
            shared: read(&c.shared),
            binds: read(&c.binds),
            invalidations: read(&c.invalidations),
            remote_invalidations: read(&c.remote_invalidations),
        }
    }
}

impl Default for Sim {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("limits", &self.0.limits).field("stats", &self.stats()).finish()
    }
}

impl Provider for Sim {
    type Domain = SimDomain;
    type Endpoint = SimEndpoint;

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn endpoint(&self) -> Result<SimEndpoint> {
        SimEndpoint::new(self.clone()).map_err(Error::from)
    }
}
