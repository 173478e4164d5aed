//! Asking several discovery controllers side by side, and those they refer to.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nvmf_core::spec::discovery::{DiscoveryLogEntry, EntryFlags, SubsystemType};
use nvmf_core::{ControllerOptions, Driver, Error, Nqn, Result, TransportId};

use crate::client::{DiscoverOptions, Discovery, discover_with};

/// The most discovery controllers one walk asks. Each of them may refer to others.
const MAX_CONTROLLERS: usize = 4096;

/// Where a walk begins.
#[derive(Clone, Debug)]
pub struct Seed {
    /// The discovery controller.
    pub trid: TransportId,
    /// How to connect to it, and to those it refers to; `None` for the options of the walk, whose keep alive timeout goes for
    /// all.
    pub options: Option<ControllerOptions>,
}

impl From<TransportId> for Seed {
    fn from(trid: TransportId) -> Self {
        Self { trid, options: None }
    }
}

/// A discovery controller that was asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Asked {
    /// How it was named.
    pub trid: TransportId,
    /// How many referrals led to it from one that the walk began with.
    pub depth: u8,
    /// Who referred to it: an index into [`Walk::controllers`]. `None` for those the walk began with.
    pub referred_by: Option<usize>,
    /// What it said.
    pub result: Result<Discovery>,
    /// What became of each entry of its log, in the order of the log. Empty if it could not be read.
    pub entries: Vec<Verdict>,
    order: Vec<u32>,
}

/// What is to be thought of an entry of a discovery log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// A path to an NVM subsystem.
    Path(TransportId),
    /// A path that was there before: the controller and the entry.
    Duplicate(TransportId, (usize, usize)),
    /// The discovery subsystem the log comes from, or the same one at another of its ports.
    Itself,
    /// A referral to a discovery controller that was asked.
    Followed(TransportId),
    /// A referral that was not followed: to one that was, or is, asked anyway.
    Known(TransportId),
    /// A referral that was not followed: it says that it leads to the same information (DUPRETINFO).
    SameInformation,
    /// A referral that was not followed: there were too many before it.
    TooFar(TransportId),
    /// Something that cannot be used, such as an address that is none.
    Unusable(Error),
}

/// What a walk found: controllers in the order in which one would visit them one after the other, each directly followed by those
/// it refers to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Walk {
    /// The discovery controllers.
    pub controllers: Vec<Asked>,
}

impl Walk {
    /// The paths to NVM subsystems, each once, with its entry.
    pub fn paths(&self) -> impl Iterator<Item = (&TransportId, &DiscoveryLogEntry)> {
        self.controllers.iter().flat_map(|asked| {
            let records = asked.result.as_ref().map_or(&[][..], |discovery| &discovery.log.records);
            asked.entries.iter().zip(records).filter_map(|(verdict, entry)| match verdict {
                Verdict::Path(trid) => Some((trid, entry)),
                _ => None,
            })
        })
    }

    /// The first failure, if any.
    #[must_use]
    pub fn first_error(&self) -> Option<&Error> {
        self.controllers.iter().find_map(|asked| asked.result.as_ref().err())
    }
}

struct Job {
    seed: Seed,
    depth: u8,
    /// The order of who referred to it.
    parent: Option<Vec<u32>>,
    order: Vec<u32>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Jobs being done.
    busy: usize,
    known: HashSet<TransportId>,
    asked: Vec<(Asked, Option<Vec<u32>>)>,
}

/// Asks the discovery controllers at `seeds` and, as far as the options allow, those that they refer to. Each is asked once. Waits;
/// every step has a deadline. A controller that cannot be asked does not keep the others from being asked.
#[must_use]
pub fn walk(driver: &Driver, seeds: &[Seed], options: &DiscoverOptions) -> Walk {
    let mut state = State::default();
    for (index, seed) in (0u32..).zip(seeds) {
        if state.known.insert(key(&seed.trid)) {
            let job = Job { seed: seed.clone(), depth: 0, parent: None, order: vec![index] };
            state.jobs.push_back(job);
        }
    }
    let (state, changed) = (Mutex::new(state), Condvar::new());
    // Where referrals lead is not known yet; those without work sleep.
    let referred = if options.max_depth == 0 { 1 } else { 8 };
    let threads = seeds.len().max(referred).min(options.parallel.max(1));
    thread::scope(|scope| {
        let work = || while work_once(driver, options, &state, &changed) {};
        for _ in 1..threads {
            let helper = thread::Builder::new().name("discovery".to_owned()).spawn_scoped(scope, work);
            if let Err(error) = helper {
                tracing::warn!(%error, "no thread; discovery takes longer");
            }
        }
        work();
    });
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    finish(state.asked)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Every change of the state is one statement.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does one job, waiting for one if others may still bring some. Returns whether there may be more.
fn work_once(driver: &Driver, options: &DiscoverOptions, state: &Mutex<State>, changed: &Condvar) -> bool {
    let job = {
        let mut state = lock(state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.busy += 1;
                break job;
            }
            if state.busy == 0 {
                return false;
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    };
    let mut own = options.clone();
    if let Some(controller) = &job.seed.options {
        own.controller = controller.clone();
        // What keeps a connection alive that stays is not for one reading.
        own.controller.keep_alive_timeout = options.controller.keep_alive_timeout;
    }
    let result = discover_with(driver, &job.seed.trid, &own);
    let mut state = lock(state);
    let entries = match &result {
        Ok(discovery) => look(&mut state, &job, discovery, options.max_depth),
        Err(_) => Vec::new(),
    };
    let Job { seed, depth, parent, order } = job;
    let asked = Asked { trid: seed.trid, depth, referred_by: None, result, entries, order };
    state.asked.push((asked, parent));
    state.busy -= 1;
    drop(state);
    changed.notify_all();
    true
}

/// Looks through a log, and makes jobs of the referrals in it.
fn look(state: &mut State, job: &Job, discovery: &Discovery, max_depth: u8) -> Vec<Verdict> {
    // It may be referred to by its unique NQN too.
    state.known.insert(key(&discovery.trid));
    let mut verdicts = Vec::with_capacity(discovery.log.records.len());
    for (index, entry) in (0u32..).zip(&discovery.log.records) {
        let trid = match entry.subtype {
            SubsystemType::CURRENT_DISCOVERY => {
                verdicts.push(Verdict::Itself);
                continue;
            }
            SubsystemType::REFERRAL if entry.flags().contains(EntryFlags::DUPLICATE_INFORMATION) => {
                verdicts.push(Verdict::SameInformation);
                continue;
            }
            SubsystemType::NVM | SubsystemType::REFERRAL => TransportId::of_log_entry(entry, &job.seed.trid),
            other => Err(Error::unsupported(format!("subsystem type {other}"))),
        };
        verdicts.push(match trid {
            Err(error) => Verdict::Unusable(error),
            Ok(trid) if entry.subtype == SubsystemType::NVM => Verdict::Path(trid),
            Ok(trid) if state.known.contains(&key(&trid)) => Verdict::Known(trid),
            Ok(trid) if job.depth >= max_depth || state.known.len() >= MAX_CONTROLLERS => {
                Verdict::TooFar(trid)
            }
            Ok(trid) => {
                state.known.insert(key(&trid));
                let order = [&job.order[..], &[index]].concat();
                let seed = Seed { trid: trid.clone(), options: job.seed.options.clone() };
                let parent = Some(job.order.clone());
                state.jobs.push_back(Job { seed, depth: job.depth + 1, parent, order });
                Verdict::Followed(trid)
            }
        });
    }
    verdicts
}

/// What makes two identifiers of discovery controllers the same: no name and the well-known name are.
pub(crate) fn key(trid: &TransportId) -> TransportId {
    let port = trid.trsvcid().to_owned();
    let trid = trid.clone();
    let trid = match port.is_empty() {
        true => trid,
        // Written out: what is left out depends on the name.
        false => trid.clone().with_trsvcid(&port).unwrap_or(trid),
    };
    match trid.subnqn() {
        Some(_) => trid,
        None => trid.with_subnqn(Nqn::discovery()),
    }
}

/// Puts what was found into order, and marks what was found twice.
fn finish(mut asked: Vec<(Asked, Option<Vec<u32>>)>) -> Walk {
    asked.sort_by(|(a, _), (b, _)| a.order.cmp(&b.order));
    let index: HashMap<Vec<u32>, usize> =
        asked.iter().enumerate().map(|(index, (asked, _))| (asked.order.clone(), index)).collect();
    let mut controllers = Vec::with_capacity(asked.len());
    let mut seen: HashMap<TransportId, (usize, usize)> = HashMap::new();
    for (nth, (mut asked, parent)) in asked.into_iter().enumerate() {
        asked.referred_by = parent.and_then(|parent| index.get(&parent).copied());
        for (entry, verdict) in asked.entries.iter_mut().enumerate() {
            let Verdict::Path(trid) = verdict else { continue };
            match seen.get(trid) {
                Some(first) => *verdict = Verdict::Duplicate(trid.clone(), *first),
                None => {
                    seen.insert(trid.clone(), (nth, entry));
                }
            }
        }
        controllers.push(asked);
    }
    Walk { controllers }
}
