//! Who is watched and why, and which paths there are and who reports them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_core::spec::discovery::{DiscoveryLogEntry, EntryFlags, SubsystemType};
use nvmf_core::{ControllerOptions, Driver, Error, Result, TransportId};

use super::watch;
use super::{EventQueue, MonitorEvent, MonitorOptions, Path};
use crate::walk::key;

/// The most discovery controllers that are watched at a time: each takes a thread, and each may refer to others.
const MAX_WATCHES: usize = 1024;
/// The most paths and referrals that are kept of all of them together. With its entry one takes some 2 KiB.
const MAX_REPORTED: usize = 65_536;

/// Why a discovery controller is watched.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Holder {
    /// The program named it so.
    Program(TransportId),
    /// Another one refers to it.
    Referral(u64),
    /// It is announced under this name.
    Announced(String),
}

/// How a discovery controller is come by.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// How many referrals led to it.
    depth: u8,
    /// How to connect to it, if not as the monitor does.
    options: Option<Arc<ControllerOptions>>,
}

impl Reach {
    /// By its name.
    pub(crate) fn named(options: Option<ControllerOptions>) -> Self {
        Self { depth: 0, options: options.map(Arc::new) }
    }

    /// By a referral of one that was come by like this.
    fn referred(&self) -> Self {
        Self { depth: self.depth + 1, ..self.clone() }
    }
}

/// Wakes a watching thread.
#[derive(Debug, Default)]
pub(super) struct Signal {
    due: Mutex<bool>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Signal {
    /// There may be something to do.
    pub(super) fn notify(&self) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.notify();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Forgets what was notified.
    pub(super) fn clear(&self) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = self.is_stopped();
    }

    /// Sleeps until notified, at most so long. Returns whether it was.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(due, limit, |due| !*due);
        let (mut due, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        *due = self.is_stopped();
        !timeout.timed_out()
    }
}

/// A discovery controller that is watched.
#[derive(Debug)]
struct Watch {
    id: u64,
    trid: TransportId,
    reach: Reach,
    holders: HashSet<Holder>,
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
    /// The paths of its log, and the discovery controllers it refers to.
    reported: HashMap<TransportId, Arc<DiscoveryLogEntry>>,
    refers_to: HashSet<TransportId>,
    /// What could not be used, so as to tell it once.
    unusable: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    watches: BTreeMap<u64, Watch>,
    by_key: HashMap<TransportId, u64>,
    /// Who reports a path, and how it was told of.
    paths: HashMap<TransportId, (Arc<DiscoveryLogEntry>, BTreeSet<u64>)>,
    /// Threads of those that are no longer watched.
    ending: Vec<JoinHandle<()>>,
    stopped: bool,
}

/// What all threads of a monitor share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) driver: Driver,
    pub(super) options: MonitorOptions,
    state: Mutex<State>,
    events: EventQueue,
}

impl Shared {
    pub(super) fn new(driver: Driver, options: MonitorOptions, events: EventQueue) -> Self {
        Self { driver, options, state: Mutex::default(), events }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of something. Called with the state locked where order matters.
    fn tell(&self, event: MonitorEvent) {
        self.events.push(event);
    }

    pub(super) fn next(&self, timeout: Duration) -> Option<MonitorEvent> {
        self.events.next(timeout)
    }

    pub(crate) fn hold(this: &Arc<Self>, trid: &TransportId, holder: Holder, reach: &Reach) -> Result<()> {
        Self::hold_locked(this, &mut this.lock(), trid, holder, reach)
    }

    fn hold_locked(
        this: &Arc<Self>,
        state: &mut State,
        trid: &TransportId,
        holder: Holder,
        reach: &Reach,
    ) -> Result<()> {
        let key = key(trid);
        if state.stopped {
            return Ok(());
        }
        if let Some(watch) = state.by_key.get(&key).and_then(|id| state.watches.get_mut(id)) {
            watch.holders.insert(holder);
            watch.reach.depth = watch.reach.depth.min(reach.depth);
            return Ok(());
        }
        let full = || Error::unsupported(format!("{MAX_WATCHES} discovery controllers are watched already"));
        if state.watches.len() >= MAX_WATCHES {
            return Err(full().doing("watching a discovery controller").peer(trid));
        }
        let id = state.next_id;
        state.next_id += 1;
        let signal = Arc::new(Signal::default());
        this.tell(MonitorEvent::Watching(trid.clone()));
        let thread =
            watch::start(Arc::clone(this), id, trid.clone(), Arc::clone(&signal), reach.options.clone())
                .map_err(|error| Error::from(error).doing("watching a discovery controller").peer(trid))?;
        let watch = Watch {
            id,
            trid: trid.clone(),
            reach: reach.clone(),
            holders: HashSet::from([holder]),
            signal,
            thread: Some(thread),
            reported: HashMap::new(),
            refers_to: HashSet::new(),
            unusable: BTreeSet::new(),
        };
        state.watches.insert(id, watch);
        state.by_key.insert(key, id);
        Ok(())
    }

    pub(crate) fn release(this: &Arc<Self>, trid: &TransportId, holder: &Holder) {
        let mut guard = this.lock();
        let state = &mut *guard;
        if let Some(watch) = state.by_key.get(&key(trid)).and_then(|id| state.watches.get_mut(id)) {
            watch.holders.remove(holder);
            this.sweep(state);
        }
    }

    /// Stops watching what nobody names any more, directly or by referrals. Referrals may go in circles, so it is looked for what
    /// can be reached.
    fn sweep(&self, state: &mut State) {
        let named =
            |watch: &&Watch| watch.holders.iter().any(|holder| !matches!(holder, Holder::Referral(_)));
        let mut reached: BTreeSet<u64> = state.watches.values().filter(named).map(|watch| watch.id).collect();
        let mut todo: Vec<u64> = reached.iter().copied().collect();
        while let Some(watch) = todo.pop().and_then(|id| state.watches.get(&id)) {
            let others = watch.refers_to.iter().filter_map(|other| state.by_key.get(&key(other)));
            todo.extend(others.copied().filter(|&other| reached.insert(other)).collect::<Vec<_>>());
        }
        let lost: Vec<u64> = state.watches.keys().copied().filter(|id| !reached.contains(id)).collect();
        for id in lost {
            let Some(mut watch) = state.watches.remove(&id) else { continue };
            state.by_key.retain(|_, other| *other != id);
            watch.signal.stop();
            state.ending.extend(watch.thread.take());
            let mut gone: Vec<&TransportId> = watch.reported.keys().collect();
            gone.sort_by_key(|path| path.to_string());
            for path in gone {
                self.unreport(state, id, path);
            }
            for other in state.watches.values_mut() {
                other.holders.remove(&Holder::Referral(id));
            }
            self.tell(MonitorEvent::Forgotten(watch.trid));
        }
        state.ending.retain(|thread| !thread.is_finished());
    }

    /// Nobody reports this path under this number any more.
    fn unreport(&self, state: &mut State, id: u64, trid: &TransportId) {
        let Some((entry, by)) = state.paths.get_mut(trid) else { return };
        by.remove(&id);
        if by.is_empty() {
            let entry = Arc::clone(entry);
            state.paths.remove(trid);
            self.tell(MonitorEvent::Removed(Path { trid: trid.clone(), entry }));
        }
    }

    /// A discovery controller reports another name: whoever asks for that one is asking for this. `false` when somebody does already.
    pub(super) fn also_known_as(&self, id: u64, own: &TransportId) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(watch) = state.watches.get(&id) else { return false };
        let (first, own) = (key(&watch.trid), key(own));
        // It may report another one each time.
        state.by_key.retain(|name, other| *other != id || *name == first || *name == own);
        *state.by_key.entry(own).or_insert(id) == id
    }

    pub(super) fn disconnected(&self, id: u64, trid: &TransportId, error: Error, retry_in: Duration) {
        let mut state = self.lock();
        if let Some(watch) = state.watches.get_mut(&id) {
            watch.unusable.clear();
            self.tell(MonitorEvent::Disconnected { trid: trid.clone(), error, retry_in });
        }
    }

    /// A log was read. Tells what is new in it; `connected` is the NQN, for the first one of a connection.
    pub(super) fn log(
        this: &Arc<Self>,
        id: u64,
        trid: &TransportId,
        log: &DiscoveryLog,
        connected: Option<String>,
    ) {
        let mut guard = this.lock();
        let state = &mut *guard;
        let others = state.watches.values().filter(|watch| watch.id != id);
        let room = MAX_REPORTED
            .saturating_sub(others.map(|watch| watch.reported.len() + watch.refers_to.len()).sum());
        // It may be forgotten meanwhile.
        let Some(watch) = state.watches.get_mut(&id) else { return };
        if let Some(subnqn) = connected {
            this.tell(MonitorEvent::Connected { trid: trid.clone(), subnqn, genctr: log.genctr });
        }
        let (mut paths, mut referrals) = (Vec::new(), HashSet::new());
        let mut reported = HashMap::new();
        let unusable = &mut watch.unusable;
        let mut complain = |error: Error| {
            if unusable.len() < 64 && unusable.insert(error.to_string()) {
                this.tell(MonitorEvent::Unusable { trid: trid.clone(), error });
            }
        };
        for entry in &log.records {
            let referral = match entry.subtype {
                SubsystemType::NVM => false,
                SubsystemType::REFERRAL
                    if watch.reach.depth < this.options.max_depth
                        && !entry.flags().contains(EntryFlags::DUPLICATE_INFORMATION) =>
                {
                    true
                }
                _ => continue,
            };
            if reported.len() + referrals.len() >= room {
                complain(
                    Error::unsupported(format!(
                        "there are more than {MAX_REPORTED} paths in all: the rest is left out"
                    ))
                    .doing("reading the discovery log")
                    .peer(trid),
                );
                break;
            }
            match TransportId::of_log_entry(entry, trid) {
                Ok(other) if referral => {
                    referrals.insert(other);
                }
                Ok(path) => {
                    let known = watch.reported.get(&path).filter(|known| ***known == *entry);
                    let entry = known.map_or_else(|| Arc::new(*entry), Arc::clone);
                    if reported.insert(path.clone(), entry).is_none() {
                        paths.push(path);
                    }
                }
                Err(error) => complain(error),
            }
        }
        let before = std::mem::replace(&mut watch.reported, reported.clone());
        let referred_before = std::mem::replace(&mut watch.refers_to, referrals.clone());
        let reach = watch.reach.referred();
        // First what is gone, so that a program that has room for so many paths has it.
        let mut gone: Vec<&TransportId> =
            before.keys().filter(|path| !reported.contains_key(*path)).collect();
        gone.sort_by_key(|path| path.to_string());
        for path in gone {
            this.unreport(state, id, path);
        }
        for path in paths {
            let Some(entry) = reported.get(&path).cloned() else { continue };
            match state.paths.get_mut(&path) {
                None => {
                    state.paths.insert(path.clone(), (Arc::clone(&entry), BTreeSet::from([id])));
                    this.tell(MonitorEvent::Added(Path { trid: path, entry }));
                }
                Some((known, by)) => {
                    by.insert(id);
                    // Two discovery controllers may see it differently: the first one counts.
                    let first = by.first() == Some(&id);
                    if first && *known != entry {
                        *known = Arc::clone(&entry);
                        this.tell(MonitorEvent::Changed(Path { trid: path, entry }));
                    }
                }
            }
        }
        for other in referrals.difference(&referred_before) {
            if let Err(error) = Self::hold_locked(this, state, other, Holder::Referral(id), &reach) {
                this.tell(MonitorEvent::Unusable { trid: trid.clone(), error });
            }
        }
        for other in referred_before.difference(&referrals) {
            if let Some(watch) = state.by_key.get(&key(other)).and_then(|id| state.watches.get_mut(id)) {
                watch.holders.remove(&Holder::Referral(id));
            }
        }
        if !referred_before.is_subset(&referrals) {
            this.sweep(state);
        }
    }

    pub(super) fn paths(&self) -> Vec<Path> {
        let state = self.lock();
        let path = |(trid, (entry, _)): (&TransportId, &(Arc<DiscoveryLogEntry>, _))| Path {
            trid: trid.clone(),
            entry: Arc::clone(entry),
        };
        state.paths.iter().map(path).collect()
    }

    pub(super) fn watched(&self) -> Vec<TransportId> {
        self.lock().watches.values().map(|watch| watch.trid.clone()).collect()
    }

    /// Stops every thread and waits for their end.
    pub(super) fn stop(&self, deadline: Instant) {
        let threads: Vec<JoinHandle<()>> = {
            let mut state = self.lock();
            state.stopped = true;
            let State { watches, by_key, ending, .. } = &mut *state;
            by_key.clear();
            for watch in std::mem::take(watches).into_values() {
                tracing::debug!(watch = watch.id, "no longer watching");
                watch.signal.stop();
                ending.extend(watch.thread);
            }
            std::mem::take(ending)
        };
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A panic was printed already; there is nothing of it left to do.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nvmf_core::Driver;
    use nvmf_core::proto::discovery_log::{DiscoveryLogLimits, DiscoveryLogReader, Step};
    use nvmf_core::spec::discovery::{AddressFamilyCode, DiscoveryLogHeader, TransportTypeCode};
    use zerocopy::IntoBytes;

    use super::*;

    /// A log of NVM subsystems named by numbers.
    fn log(names: std::ops::Range<u32>) -> DiscoveryLog {
        let mut bytes = DiscoveryLogHeader::new(1, names.len() as u64).as_bytes().to_vec();
        for name in names {
            let mut entry = DiscoveryLogEntry {
                trtype: TransportTypeCode::TCP,
                adrfam: AddressFamilyCode::IPV4,
                subtype: SubsystemType::NVM,
                ..DiscoveryLogEntry::default()
            };
            entry.traddr[..9].copy_from_slice(b"192.0.2.1");
            entry.trsvcid[..4].copy_from_slice(b"4420");
            let name = format!("nqn.2024-01.com.example:{name}");
            entry.subnqn[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend_from_slice(entry.as_bytes());
        }
        let mut reader = DiscoveryLogReader::new(DiscoveryLogLimits::new(1 << 20));
        while let Step::Read { offset, len } = reader.next() {
            reader.complete(&bytes[offset as usize..offset as usize + len as usize]).unwrap();
        }
        reader.finish().unwrap()
    }

    #[test]
    fn paths_have_a_bound_over_all_discovery_controllers() {
        let events = EventQueue::new(16);
        let shared = Arc::new(Shared::new(Driver::builder().build(), MonitorOptions::default(), events));
        let trids: Vec<TransportId> =
            (1..=5).map(|n| format!("trtype:tcp traddr:192.0.2.{n} trsvcid:8009").parse().unwrap()).collect();
        // Nothing else speaks of them: their threads have no transport.
        for trid in &trids {
            Shared::hold(&shared, trid, Holder::Program(key(trid)), &Reach::named(None)).unwrap();
        }
        let report = |id: u64, count: u32| {
            let first = id as u32 * 16_384;
            Shared::log(&shared, id, &trids[id as usize], &log(first..first + count), None);
            shared.paths().len()
        };
        for id in 0..4 {
            assert_eq!(report(id, 16_000), (id as usize + 1) * 16_000);
        }
        assert_eq!(report(4, 16_000), MAX_REPORTED);
        let mut told = std::iter::from_fn(|| shared.next(Duration::ZERO));
        let said = told.find_map(|event| match event {
            MonitorEvent::Unusable { error, .. } => Some(error.to_string()),
            _ => None,
        });
        assert!(said.unwrap().contains("more than 65536 paths"));
        // Where others report less there is room again.
        report(0, 1000);
        assert_eq!(report(4, 16_000), 65_000);
        shared.stop(Instant::now() + Duration::from_secs(10));
    }
}
