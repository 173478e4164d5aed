//! Many queue pairs of one thread, polled and waited for together.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::qpair::{Completion, IoQpair};
use crate::transport::{GroupShares, TransportQpair};
use crate::wait::{MAX_SLEEP, Waiter};

/// A queue pair's place in a [`PollGroup`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupKey(usize);

/// Queue pairs that one thread polls. They may belong to different controllers and transports.
///
/// Queue pairs of NVMe/RDMA that are put in before they are connected ([`crate::Controller::alloc_io_qpair_async`]) share
/// one completion queue and one receive queue per device.
pub struct PollGroup<Q: TransportQpair = Box<dyn TransportQpair>> {
    qpairs: Vec<Option<IoQpair<Q>>>,
    shares: GroupShares,
    waiter: Option<Waiter>,
}

impl<Q: TransportQpair> PollGroup<Q> {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self { qpairs: Vec::new(), shares: GroupShares::new(), waiter: None }
    }

    /// Puts a queue pair in, connected or connecting.
    pub fn add(&mut self, mut qpair: IoQpair<Q>) -> GroupKey {
        qpair.join_group(self.shares.clone());
        match self.qpairs.iter().position(Option::is_none) {
            Some(place) => {
                self.qpairs[place] = Some(qpair);
                GroupKey(place)
            }
            None => {
                self.qpairs.push(Some(qpair));
                GroupKey(self.qpairs.len() - 1)
            }
        }
    }

    /// Takes a queue pair out. What it shares with the others it shares until its connection ends: whichever thread polls it
    /// takes for them what has come meanwhile, and may keep them from being woken by it for up to 100 ms.
    pub fn remove(&mut self, key: GroupKey) -> Option<IoQpair<Q>> {
        let mut qpair = self.qpairs.get_mut(key.0)?.take()?;
        qpair.leave_group();
        Some(qpair)
    }

    /// A queue pair, for submitting.
    pub fn qpair_mut(&mut self, key: GroupKey) -> Option<&mut IoQpair<Q>> {
        self.qpairs.get_mut(key.0)?.as_mut()
    }

    /// Whether every queue pair is connected.
    #[must_use]
    pub fn all_connected(&self) -> bool {
        self.qpairs.iter().flatten().all(IoQpair::is_connected)
    }

    /// Polls every queue pair, for at most `per_qpair` completions each (0: no limit). A queue pair that is lost is
    /// told to `lost` in every call, after all its operations were completed, until it is removed. Returns how many
    /// operations completed.
    pub fn process_completions(
        &mut self,
        per_qpair: usize,
        mut f: impl FnMut(GroupKey, Completion),
        mut lost: impl FnMut(GroupKey, Error),
    ) -> usize {
        self.shares.poll();
        let mut count = 0;
        for (place, qpair) in self.qpairs.iter_mut().enumerate() {
            let Some(qpair) = qpair else { continue };
            match qpair.process_completions(per_qpair, |completion| f(GroupKey(place), completion)) {
                Ok(n) => count += n,
                Err(error) => lost(GroupKey(place), error),
            }
        }
        count
    }

    /// Sleeps until some queue pair may have something to do, at most `timeout`. Call it after a poll that completed
    /// nothing. Returns whether something woke it.
    ///
    /// # Errors
    /// When the operating system cannot wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        if self.qpairs.iter().flatten().any(IoQpair::has_local_work) {
            return Ok(true);
        }
        let live = || self.qpairs.iter().flatten();
        let sources: Vec<_> = live().filter_map(IoQpair::event_source).collect();
        // A queue pair without a descriptor yet (name resolution) is looked at again soon.
        let nap = if sources.len() < live().count() { Duration::from_millis(5) } else { MAX_SLEEP };
        let waiter = match &mut self.waiter {
            Some(waiter) => waiter,
            none => none.insert(Waiter::new()?),
        };
        Ok(waiter.wait(&sources, nap.min(timeout))?)
    }
}

impl<Q: TransportQpair> Default for PollGroup<Q> {
    fn default() -> Self {
        Self::new()
    }
}
