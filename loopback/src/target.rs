//! What all queues, controllers and fronts of one loopback share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use nvmf_core::Nqn;
use nvmf_core::spec::dim::{DimData, DimTask};
use nvmf_core::spec::features::AsyncEventConfig;
use nvmf_core::spec::log_page::{AsyncEvent, LogPageId, NoticeEvent};

use crate::config::{Config, Referral};
use crate::error::LoopbackError;
use crate::fault::Faults;
use crate::namespace::Namespace;
use crate::subsystem::{Subsystem, SubsystemBuilder};

/// Most hosts and subsystems that may be entered at a time.
const MAX_REGISTRATIONS: usize = 1024;

/// By which way a queue was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Front {
    /// In process.
    Loop,
    /// Over TCP, at this address of ours.
    Tcp(SocketAddr),
    /// Over a simulated RDMA fabric, at this address of ours.
    Rdma(SocketAddr),
    /// Through the registers and rings of an emulated PCI function.
    Pci,
}

/// Counters; read with [`crate::Loopback::stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) admin_commands: AtomicU64,
    pub(crate) log_page_reads: AtomicU64,
    pub(crate) io_commands: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) failed_commands: AtomicU64,
    pub(crate) terminated_connections: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) faults: Faults,
    pub(crate) counters: Counters,
    pub(crate) started: Instant,
    pub(crate) discovery: Arc<Subsystem>,
    subsystems: RwLock<BTreeMap<Nqn, Arc<Subsystem>>>,
    listeners: RwLock<Vec<SocketAddr>>,
    rdma_listeners: RwLock<Vec<SocketAddr>>,
    referrals: RwLock<Vec<Referral>>,
    registrations: RwLock<BTreeMap<String, DimData>>,
    genctr: AtomicU64,
    stopped: AtomicBool,
    refusing: AtomicBool,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    // The tables are changed by single insertions and removals; they are whole at any time.
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Target {
    pub(crate) fn new(name: String, config: Config) -> Self {
        Self {
            name,
            faults: Faults::default(),
            counters: Counters::default(),
            started: Instant::now(),
            discovery: Arc::new(Subsystem::discovery(config.discovery_nqn.clone())),
            subsystems: RwLock::default(),
            listeners: RwLock::default(),
            rdma_listeners: RwLock::default(),
            referrals: RwLock::new(config.referrals.clone()),
            registrations: RwLock::default(),
            genctr: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            config,
        }
    }

    /// Milliseconds since the start.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends every queue; no new one is accepted.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.disconnect_all();
    }

    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire) || self.is_stopped()
    }

    pub(crate) fn set_refusing(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::Release);
    }

    /// Ends every controller there is, and thereby its connections.
    pub(crate) fn disconnect_all(&self) {
        let subsystems: Vec<_> = read(&self.subsystems).values().cloned().collect();
        for subsystem in subsystems.iter().chain([&self.discovery]) {
            subsystem.disconnect_all();
        }
    }

    pub(crate) fn listeners(&self) -> Vec<SocketAddr> {
        read(&self.listeners).clone()
    }

    pub(crate) fn set_listeners(&self, addresses: Vec<SocketAddr>) {
        *write(&self.listeners) = addresses;
    }

    pub(crate) fn rdma_listeners(&self) -> Vec<SocketAddr> {
        read(&self.rdma_listeners).clone()
    }

    pub(crate) fn set_rdma_listeners(&self, addresses: Vec<SocketAddr>) {
        *write(&self.rdma_listeners) = addresses;
    }

    pub(crate) fn referrals(&self) -> Vec<Referral> {
        read(&self.referrals).clone()
    }

    pub(crate) fn set_referrals(&self, referrals: Vec<Referral>) {
        *write(&self.referrals) = referrals;
        self.discovery_changed();
    }

    pub(crate) fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        read(&self.subsystems).values().cloned().collect()
    }

    /// The subsystem a host asks for, the discovery subsystem included.
    pub(crate) fn find(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        if nqn.is_discovery() || nqn == self.discovery.nqn() {
            return Some(Arc::clone(&self.discovery));
        }
        read(&self.subsystems).get(nqn).cloned()
    }

    /// An NVM subsystem by name.
    pub(crate) fn subsystem(&self, subnqn: &str) -> Result<Arc<Subsystem>, LoopbackError> {
        let nqn =
            Nqn::new(subnqn).map_err(|source| LoopbackError::Nqn { name: subnqn.to_owned(), source })?;
        let found = read(&self.subsystems).get(&nqn).cloned();
        found.ok_or_else(|| LoopbackError::NoSuchSubsystem(subnqn.to_owned()))
    }

    pub(crate) fn add_subsystem(&self, builder: SubsystemBuilder) -> Result<(), LoopbackError> {
        let subsystem = builder.build()?;
        {
            let mut subsystems = write(&self.subsystems);
            if subsystems.contains_key(subsystem.nqn()) {
                return Err(LoopbackError::SubsystemExists(subsystem.nqn().to_string()));
            }
            subsystems.insert(subsystem.nqn().clone(), Arc::new(subsystem));
        }
        self.discovery_changed();
        Ok(())
    }

    pub(crate) fn remove_subsystem(&self, subnqn: &str) -> Result<(), LoopbackError> {
        let subsystem = self.subsystem(subnqn)?;
        write(&self.subsystems).remove(subsystem.nqn());
        subsystem.disconnect_all();
        self.discovery_changed();
        Ok(())
    }

    pub(crate) fn add_namespace(&self, subnqn: &str, namespace: Namespace) -> Result<u32, LoopbackError> {
        self.subsystem(subnqn)?.add_namespace(namespace)
    }

    /// Who is entered, by NQN.
    pub(crate) fn registrations(&self) -> Vec<DimData> {
        read(&self.registrations).values().cloned().collect()
    }

    /// Enters somebody or takes them out. Returns whether it made sense.
    pub(crate) fn register(&self, task: DimTask, data: DimData) -> bool {
        let mut registrations = write(&self.registrations);
        match task {
            DimTask::REGISTER | DimTask::UPDATE
                if registrations.len() < MAX_REGISTRATIONS || registrations.contains_key(&data.eid) =>
            {
                registrations.insert(data.eid.clone(), data);
                true
            }
            DimTask::DEREGISTER => registrations.remove(&data.eid).is_some(),
            _ => false,
        }
    }

    /// GENCTR of the discovery log.
    pub(crate) fn genctr(&self) -> u64 {
        self.genctr.load(Ordering::Acquire)
    }

    /// The discovery log is another one now.
    pub(crate) fn discovery_changed(&self) {
        self.genctr.fetch_add(1, Ordering::AcqRel);
        let event = AsyncEvent::notice(NoticeEvent::DISCOVERY_LOG_CHANGE, LogPageId::DISCOVERY);
        for controller in self.discovery.controllers() {
            controller.raise(event, AsyncEventConfig::DISCOVERY_LOG);
        }
    }
}
