//! NVM subsystems: a name, namespaces, who may connect, and the controllers hosts have made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nvmf_core::Nqn;
use nvmf_core::spec::features::AsyncEventConfig;
use nvmf_core::spec::log_page::{AnaState, AsyncEvent, LogPageId, NoticeEvent};

use crate::config::MAX_NSID;
use crate::controller::Controller;
use crate::error::LoopbackError;
use crate::namespace::{ActiveNamespace, Namespace};
use crate::target::Front;

/// Largest CNTLID a controller may have; those above are reserved (Base 2.1 §3.1.3.2).
const MAX_CNTLID: u16 = 0xffef;

/// A subsystem to be made.
#[derive(Clone, Debug)]
pub struct SubsystemBuilder {
    nqn: String,
    serial: String,
    model: String,
    firmware: String,
    namespaces: Vec<Namespace>,
    hosts: Hosts,
}

#[derive(Clone, Debug)]
struct Hosts {
    any: bool,
    allowed: BTreeSet<String>,
}

impl SubsystemBuilder {
    /// A subsystem of this name, without namespaces, open to every host.
    #[must_use]
    pub fn new(nqn: impl Into<String>) -> Self {
        Self {
            nqn: nqn.into(),
            serial: "LOOP0000000000000001".to_owned(),
            model: "nvmf loopback".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            namespaces: Vec::new(),
            hosts: Hosts { any: true, allowed: BTreeSet::new() },
        }
    }

    /// The serial number, ASCII, at most 20 bytes; longer ones are cut.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = serial.into();
        self
    }

    /// The model number, ASCII, at most 40 bytes; longer ones are cut.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = model.into();
        self
    }

    /// The firmware revision, ASCII, at most 8 bytes; longer ones are cut.
    #[must_use]
    pub fn firmware(mut self, revision: impl Into<String>) -> Self {
        self.firmware = revision.into();
        self
    }

    /// Adds a namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespaces.push(namespace);
        self
    }

    /// Lets only the hosts named so connect: this one and those of other calls. Others do not find the subsystem in the
    /// discovery log either.
    #[must_use]
    pub fn allow_host(mut self, hostnqn: impl Into<String>) -> Self {
        self.hosts.any = false;
        self.hosts.allowed.insert(hostnqn.into());
        self
    }

    /// Lets no host connect, but those of [`SubsystemBuilder::allow_host`].
    #[must_use]
    pub fn deny_other_hosts(mut self) -> Self {
        self.hosts.any = false;
        self
    }

    pub(crate) fn build(self) -> Result<Subsystem, LoopbackError> {
        let nqn = match Nqn::new(&self.nqn) {
            Ok(nqn) if nqn.is_discovery() => return Err(LoopbackError::DiscoveryNqn),
            Ok(nqn) => nqn,
            Err(source) => return Err(LoopbackError::Nqn { name: self.nqn, source }),
        };
        let subsystem = Subsystem::new(nqn, false, [self.serial, self.model, self.firmware], self.hosts);
        for namespace in self.namespaces {
            subsystem.add_namespace(namespace)?;
        }
        Ok(subsystem)
    }
}

#[derive(Debug)]
pub(crate) struct Subsystem {
    nqn: Nqn,
    is_discovery: bool,
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) firmware: String,
    hosts: RwLock<Hosts>,
    namespaces: RwLock<BTreeMap<u32, Arc<ActiveNamespace>>>,
    /// Changes with every change of the table above, so that queues may keep what they looked up.
    generation: AtomicU64,
    controllers: Mutex<Controllers>,
    ana_state: AtomicU8,
    ana_changes: AtomicU64,
}

#[derive(Debug)]
struct Controllers {
    by_id: BTreeMap<u16, Arc<Controller>>,
    next: u16,
}

impl Subsystem {
    fn new(nqn: Nqn, is_discovery: bool, [serial, model, firmware]: [String; 3], hosts: Hosts) -> Self {
        Self {
            nqn,
            is_discovery,
            serial,
            model,
            firmware,
            hosts: RwLock::new(hosts),
            namespaces: RwLock::default(),
            generation: AtomicU64::new(1),
            controllers: Mutex::new(Controllers { by_id: BTreeMap::new(), next: 1 }),
            ana_state: AtomicU8::new(AnaState::OPTIMIZED.0),
            ana_changes: AtomicU64::new(0),
        }
    }

    pub(crate) fn discovery(nqn: Nqn) -> Self {
        let builder = SubsystemBuilder::new(Nqn::DISCOVERY);
        let texts = [builder.serial, builder.model, builder.firmware];
        Self::new(nqn, true, texts, builder.hosts)
    }

    pub(crate) fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    pub(crate) fn is_discovery(&self) -> bool {
        self.is_discovery
    }

    // --- hosts ---------------------------------------------------------------------------------------------------

    pub(crate) fn allows(&self, host: &Nqn) -> bool {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.any || hosts.allowed.contains(host.as_str())
    }

    pub(crate) fn allow_host(&self, host: &str) {
        self.hosts.write().unwrap_or_else(PoisonError::into_inner).allowed.insert(host.to_owned());
    }

    /// Takes a host off the list, which ends the controllers it has, and lets only hosts on the list connect.
    pub(crate) fn deny_host(&self, host: &str) {
        {
            let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
            hosts.any = false;
            hosts.allowed.remove(host);
        }
        for controller in self.controllers() {
            // Whoever sits on a PCI function has no name.
            if controller.front != Front::Pci && !self.allows(&controller.hostnqn) {
                controller.kill("the host is no longer allowed");
            }
        }
    }

    // --- namespaces ----------------------------------------------------------------------------------------------

    fn table(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Arc<ActiveNamespace>>> {
        self.namespaces.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Arc<ActiveNamespace>>> {
        self.namespaces.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn namespace(&self, nsid: u32) -> Option<Arc<ActiveNamespace>> {
        self.table().get(&nsid).cloned()
    }

    pub(crate) fn namespaces(&self) -> Vec<Arc<ActiveNamespace>> {
        self.table().values().cloned().collect()
    }

    pub(crate) fn add_namespace(&self, namespace: Namespace) -> Result<u32, LoopbackError> {
        let wanted = namespace.nsid;
        let nsid = {
            let mut table = self.table_mut();
            let free = |nsid: &u32| !table.contains_key(nsid);
            let nsid = match wanted {
                Some(nsid) => (1..=MAX_NSID).contains(&nsid).then_some(nsid).filter(free),
                None => (1..=MAX_NSID).find(free),
            };
            let Some(nsid) = nsid else {
                let (subnqn, nsid) = (self.nqn.to_string(), wanted.unwrap_or(MAX_NSID));
                return Err(LoopbackError::NamespaceId { subnqn, nsid, max: MAX_NSID });
            };
            table.insert(nsid, Arc::new(namespace.open(nsid)?));
            nsid
        };
        self.namespace_changed(nsid);
        Ok(nsid)
    }

    fn missing(&self, nsid: u32) -> LoopbackError {
        LoopbackError::NoSuchNamespace { subnqn: self.nqn.to_string(), nsid }
    }

    pub(crate) fn remove_namespace(&self, nsid: u32) -> Result<(), LoopbackError> {
        let removed = self.table_mut().remove(&nsid);
        removed.ok_or_else(|| self.missing(nsid))?;
        self.namespace_changed(nsid);
        Ok(())
    }

    pub(crate) fn resize_namespace(&self, nsid: u32, len: u64) -> Result<(), LoopbackError> {
        self.namespace(nsid).ok_or_else(|| self.missing(nsid))?.resize(len)?;
        self.namespace_changed(nsid);
        Ok(())
    }

    fn namespace_changed(&self, nsid: u32) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        for controller in self.controllers() {
            controller.namespace_changed(nsid);
        }
    }

    // --- asymmetric namespace access -----------------------------------------------------------------------------

    pub(crate) fn ana_state(&self) -> AnaState {
        AnaState(self.ana_state.load(Ordering::Acquire))
    }

    pub(crate) fn ana_changes(&self) -> u64 {
        self.ana_changes.load(Ordering::Acquire)
    }

    pub(crate) fn set_ana_state(&self, state: AnaState) {
        self.ana_state.store(state.0, Ordering::Release);
        self.ana_changes.fetch_add(1, Ordering::AcqRel);
        let event = AsyncEvent::notice(NoticeEvent::ANA_CHANGE, LogPageId::ANA);
        for controller in self.controllers() {
            controller.raise(event, AsyncEventConfig::ANA_CHANGE);
        }
    }

    // --- controllers ---------------------------------------------------------------------------------------------

    fn lock(&self) -> MutexGuard<'_, Controllers> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn controllers(&self) -> Vec<Arc<Controller>> {
        self.lock().by_id.values().cloned().collect()
    }

    pub(crate) fn controller(&self, cntlid: u16) -> Option<Arc<Controller>> {
        self.lock().by_id.get(&cntlid).cloned()
    }

    /// Makes a controller under a free identifier; `None` when there are `limit` already. Identifiers go round, so that
    /// one just freed is not used at once again.
    pub(crate) fn add_controller(
        &self,
        limit: usize,
        make: impl FnOnce(u16) -> Controller,
    ) -> Option<Arc<Controller>> {
        let mut controllers = self.lock();
        if controllers.by_id.len() >= limit.min(usize::from(MAX_CNTLID)) {
            return None;
        }
        let after = |cntlid: u16| if cntlid >= MAX_CNTLID { 1 } else { cntlid + 1 };
        let mut cntlid = controllers.next;
        while controllers.by_id.contains_key(&cntlid) {
            cntlid = after(cntlid);
        }
        controllers.next = after(cntlid);
        let controller = Arc::new(make(cntlid));
        controllers.by_id.insert(cntlid, Arc::clone(&controller));
        Some(controller)
    }

    pub(crate) fn remove_controller(&self, cntlid: u16) {
        self.lock().by_id.remove(&cntlid);
    }

    pub(crate) fn disconnect_all(&self) {
        for controller in self.controllers() {
            controller.kill("the loopback ended it");
        }
    }
}
