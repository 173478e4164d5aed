//! The queue pairs of one measuring thread.

use std::time::Duration;

use nvmf_core::{Completion, Error, GroupKey, IoQpair, PollGroup, QpairStats, Result};

/// Most queue pairs that are polled in turn; more are watched in a poll group.
const IN_TURN: usize = 4;

/// The queue pairs of one thread.
pub(super) enum Lanes {
    /// Few, polled one after the other.
    Few(Vec<IoQpair>),
    /// Many, or such as are slept for.
    Group(Box<PollGroup>, Vec<GroupKey>),
}

impl Lanes {
    pub(super) fn new(qpairs: Vec<IoQpair>, sleeps: bool) -> Self {
        if qpairs.len() <= IN_TURN && !sleeps {
            return Self::Few(qpairs);
        }
        let mut group = Box::new(PollGroup::new());
        let keys = qpairs.into_iter().map(|qpair| group.add(qpair)).collect();
        Self::Group(group, keys)
    }

    #[inline]
    pub(super) fn qpair(&mut self, lane: usize) -> &mut IoQpair {
        match self {
            Self::Few(qpairs) => &mut qpairs[lane],
            Self::Group(group, keys) => {
                group.qpair_mut(keys[lane]).expect("queue pairs stay in the group that they were put into")
            }
        }
    }

    /// Sends what was submitted to a lane, now or with the next poll.
    #[inline]
    pub(super) fn flush(&mut self, lane: usize) {
        if let Self::Few(qpairs) = self {
            qpairs[lane].flush();
        }
    }

    /// Takes completions, at most `max` of each queue pair (0: no limit).
    #[inline]
    pub(super) fn poll(&mut self, max: usize, mut f: impl FnMut(Completion)) -> Result<()> {
        match self {
            Self::Few(qpairs) => {
                for qpair in qpairs {
                    qpair.process_completions(max, &mut f)?;
                }
                Ok(())
            }
            Self::Group(group, _) => {
                let mut lost: Option<Error> = None;
                group.process_completions(max, |_, completion| f(completion), |_, error| lost = Some(error));
                lost.map_or(Ok(()), Err)
            }
        }
    }

    /// Sleeps until something may have completed.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<()> {
        match self {
            Self::Few(qpairs) => qpairs.first_mut().map_or(Ok(false), |qpair| qpair.wait(timeout)).map(drop),
            Self::Group(group, _) => group.wait(timeout).map(drop),
        }
    }

    /// Counters of all queue pairs together.
    pub(super) fn stats(&mut self) -> Vec<QpairStats> {
        match self {
            Self::Few(qpairs) => qpairs.iter().map(IoQpair::stats).collect(),
            Self::Group(group, keys) => {
                keys.iter().filter_map(|&key| group.qpair_mut(key).map(|qpair| qpair.stats())).collect()
            }
        }
    }
}
