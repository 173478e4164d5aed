//! Many queue pairs of one thread, polled and waited for together.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::qpair::{Completion, IoQpair};
use crate::transport::TransportQpair;
use crate::wait::{MAX_SLEEP, Waiter};

/// A queue pair's place in a [`PollGroup`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupKey(usize);

/// Queue pairs that one thread polls. They may belong to different controllers and transports.
pub struct PollGroup<Q: TransportQpair = Box<dyn TransportQpair>> {
    qpairs: Vec<Option<IoQpair<Q>>>,
    waiter: Option<Waiter>,
}

impl<Q: TransportQpair> PollGroup<Q> {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self { qpairs: Vec::new(), waiter: None }
    }

    /// Puts a queue pair in, connected or connecting.
    pub fn add(&mut self, qpair: IoQpair<Q>) -> GroupKey {
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

    /// Takes a queue pair out.
    pub fn remove(&mut self, key: GroupKey) -> Option<IoQpair<Q>> {
        self.qpairs.get_mut(key.0)?.take()
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
