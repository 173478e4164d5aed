//! Many queue pairs of one thread, polled and waited for together.
//!
//! Queue pairs behind a socket are watched in one epoll set, so that those at which nothing happens cost nothing. A few that
//! have operations outstanding are polled all the same: to look at a socket is cheaper than to ask which of one to look at. Queue
//! pairs whose completions do not show at a descriptor by themselves (PCIe, RDMA), and those that are connecting or lost, are polled
//! every time.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use mio::Token;

use crate::error::{Error, Result};
use crate::qpair::{Completion, IoQpair};
use crate::transport::{GroupShares, TransportQpair};
use crate::wait::{MAX_SLEEP, TRANSIENT, Waiter};

/// Most queue pairs with operations outstanding that are polled without asking which of them is ready.
const DIRECT: usize = 4;
/// Calls between two looks at the epoll set while queue pairs are polled directly.
const CALLS_PER_LOOK: u32 = 16;
/// Looks at the epoll set that found nothing between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 64;
/// Between two looks at the epoll set while nothing is outstanding. No completion can come then, only the end of a connection.
const IDLE_LOOK: Duration = Duration::from_micros(5);
/// Every queue pair is polled at least so often: for deadlines, and for what shows at no descriptor.
const ROUND: Duration = Duration::from_millis(100);
/// In so many parts, so that nobody waits for all of them.
const PARTS: u32 = 10;

/// A queue pair's place in a [`PollGroup`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupKey(usize);

struct Member<Q: TransportQpair> {
    qpair: IoQpair<Q>,
    /// The descriptor and the connection that are watched.
    watched: Option<(RawFd, u32)>,
    /// In [`PollGroup::due`].
    due: bool,
    /// Its descriptor was ready.
    ready: bool,
    /// Place in [`PollGroup::busy`].
    busy: Option<usize>,
}

/// Queue pairs that one thread polls. They may belong to different controllers and transports.
///
/// Queue pairs of NVMe/RDMA that are put in before they are connected ([`crate::Controller::alloc_io_qpair_async`]) share
/// one completion queue and one receive queue per device.
pub struct PollGroup<Q: TransportQpair = Box<dyn TransportQpair>> {
    members: Vec<Option<Member<Q>>>,
    shares: GroupShares,
    waiter: Option<Waiter>,
    /// Not watched: polled in every call.
    unwatched: Vec<usize>,
    /// Watched, with operations outstanding.
    busy: Vec<usize>,
    /// To be looked at in the next call.
    due: Vec<usize>,
    /// Memory for the list of those to be polled, and of those to be slept for.
    polling: Vec<usize>,
    sources: Vec<(RawFd, bool)>,
    calls_since_look: u32,
    looks_since_clock: u32,
    /// When it was looked at the epoll set with nothing outstanding.
    last_look: Instant,
    last_part: Option<Instant>,
    next_member: usize,
}

impl<Q: TransportQpair> PollGroup<Q> {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self {
            members: Vec::new(),
            shares: GroupShares::new(),
            waiter: None,
            unwatched: Vec::new(),
            busy: Vec::new(),
            due: Vec::new(),
            polling: Vec::new(),
            sources: Vec::new(),
            calls_since_look: 0,
            looks_since_clock: 0,
            last_look: Instant::now(),
            last_part: None,
            next_member: 0,
        }
    }

    /// Puts a queue pair in, connected or connecting.
    pub fn add(&mut self, mut qpair: IoQpair<Q>) -> GroupKey {
        qpair.join_group(self.shares.clone());
        let member = Member { qpair, watched: None, due: false, ready: false, busy: None };
        let place = match self.members.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.members.push(None);
                self.members.len() - 1
            }
        };
        self.members[place] = Some(member);
        self.unwatched.push(place);
        GroupKey(place)
    }

    /// Takes a queue pair out. What it shares with the others it shares until its connection ends: whichever thread polls it
    /// takes for them what has come meanwhile, and may keep them from being woken by it for up to 100 ms.
    pub fn remove(&mut self, key: GroupKey) -> Option<IoQpair<Q>> {
        let mut member = self.members.get_mut(key.0)?.take()?;
        if let (Some((fd, _)), Some(waiter)) = (member.watched, &self.waiter) {
            waiter.unwatch(fd);
        }
        if let Some(at) = member.busy {
            self.take_off_busy(at);
        }
        for list in [&mut self.unwatched, &mut self.due] {
            list.retain(|&place| place != key.0);
        }
        member.qpair.leave_group();
        Some(member.qpair)
    }

    /// A queue pair, for submitting. What it collects is sent in the next [`PollGroup::process_completions`] or [`PollGroup::wait`].
    pub fn qpair_mut(&mut self, key: GroupKey) -> Option<&mut IoQpair<Q>> {
        let member = self.members.get_mut(key.0)?.as_mut()?;
        if !member.due {
            member.due = true;
            self.due.push(key.0);
        }
        Some(&mut member.qpair)
    }

    /// Whether every queue pair is connected.
    #[must_use]
    pub fn all_connected(&self) -> bool {
        self.members.iter().flatten().all(|member| member.qpair.is_connected())
    }

    /// Polls the queue pairs at which something may have happened, for at most `per_qpair` completions each (0: no limit). A queue
    /// pair that is lost is told to `lost` in every call, after all its operations were completed, until it is removed. Returns how
    /// many operations completed.
    pub fn process_completions(
        &mut self,
        per_qpair: usize,
        f: impl FnMut(GroupKey, Completion),
        lost: impl FnMut(GroupKey, Error),
    ) -> usize {
        self.shares.poll();
        // Where nothing goes on, a look now and then is all there is to do.
        let mut looked = false;
        if self.due.is_empty()
            && self.busy.is_empty()
            && self.unwatched.is_empty()
            && self.looks_since_clock + 1 < LOOKS_PER_CLOCK
            && let Some(waiter) = &mut self.waiter
        {
            let now = Instant::now();
            if now.saturating_duration_since(self.last_look) < IDLE_LOOK {
                return 0;
            }
            self.last_look = now;
            self.looks_since_clock += 1;
            // An error shows to those who wait, and in the rounds everybody is polled.
            if waiter.look().unwrap_or(0) == 0 {
                return 0;
            }
            looked = true;
        }
        self.process(looked, per_qpair, f, lost)
    }

    /// The rest of [`PollGroup::process_completions`]; `looked` if the epoll set was looked at and something found.
    fn process(
        &mut self,
        looked: bool,
        per_qpair: usize,
        mut f: impl FnMut(GroupKey, Completion),
        mut lost: impl FnMut(GroupKey, Error),
    ) -> usize {
        let mut polling = std::mem::take(&mut self.polling);
        std::mem::swap(&mut polling, &mut self.due);
        polling.retain(|&place| {
            let Some(Some(member)) = self.members.get_mut(place) else { return false };
            member.due = false;
            // Submitted to, perhaps: what is collected leaves now. Answers come later, so it is not polled on this account.
            member.qpair.flush();
            if member.busy.is_none() && member.watched.is_some() && member.qpair.outstanding() > 0 {
                member.busy = Some(self.busy.len());
                self.busy.push(place);
            }
            // Those that are not watched are polled below, and asking them would prepare them for a sleep.
            let ready = std::mem::take(&mut member.ready);
            member.watched.is_some()
                && (ready || member.qpair.has_local_work() || member.watched != member.qpair.edge_source())
        });
        let direct = self.busy.len() <= DIRECT;
        if direct {
            for &place in &self.busy {
                if !polling.contains(&place) {
                    polling.push(place);
                }
            }
        }
        self.calls_since_look += 1;
        if looked {
            self.see(&mut polling);
        } else if !direct || self.busy.is_empty() || self.calls_since_look >= CALLS_PER_LOOK {
            self.calls_since_look = 0;
            if let Some(waiter) = &mut self.waiter
                && waiter.look().unwrap_or(0) > 0
            {
                self.see(&mut polling);
            }
            self.looks_since_clock += 1;
            if self.looks_since_clock >= LOOKS_PER_CLOCK {
                self.looks_since_clock = 0;
                self.add_part(Instant::now(), &mut polling);
            }
        }
        polling.extend_from_slice(&self.unwatched);
        let mut count = 0;
        for &place in &polling {
            count += self.poll_one(place, per_qpair, &mut f, &mut lost);
        }
        polling.clear();
        self.polling = polling;
        count
    }

    fn poll_one(
        &mut self,
        place: usize,
        per_qpair: usize,
        f: &mut impl FnMut(GroupKey, Completion),
        lost: &mut impl FnMut(GroupKey, Error),
    ) -> usize {
        let Some(Some(member)) = self.members.get_mut(place) else { return 0 };
        let key = GroupKey(place);
        let result = member.qpair.process_completions(per_qpair, |completion| f(key, completion));
        let now = member.qpair.edge_source();
        if let Some(at) = member.busy
            && member.qpair.outstanding() == 0
        {
            member.busy = None;
            self.take_off_busy(at);
        }
        let Some(Some(member)) = self.members.get_mut(place) else { return 0 };
        if now != member.watched {
            self.watch(place, now);
        } else if member.watched.is_some() && !member.due && member.qpair.has_local_work() {
            member.due = true;
            self.due.push(place);
        }
        match result {
            Ok(n) => n,
            Err(error) => {
                lost(key, error);
                0
            }
        }
    }

    fn take_off_busy(&mut self, at: usize) {
        self.busy.swap_remove(at);
        if let Some(&moved) = self.busy.get(at)
            && let Some(Some(member)) = self.members.get_mut(moved)
        {
            member.busy = Some(at);
        }
    }

    /// Takes note of another connection behind a queue pair, or of none.
    fn watch(&mut self, place: usize, source: Option<(RawFd, u32)>) {
        let Some(Some(member)) = self.members.get_mut(place) else { return };
        // A descriptor that was closed is watched no longer, and its number may be another one's by now.
        let before = member.watched.take();
        if self.waiter.is_none() {
            // Without an epoll set everything is polled every time.
            self.waiter = Waiter::new().ok();
        }
        if let (Some(source), Some(waiter)) = (source, &self.waiter)
            && waiter.watch(source.0, Token(place)).is_ok()
        {
            member.watched = Some(source);
        }
        match (before, member.watched) {
            (None, Some(_)) => {
                self.unwatched.retain(|&other| other != place);
                if member.busy.is_none() && member.qpair.outstanding() > 0 {
                    member.busy = Some(self.busy.len());
                    self.busy.push(place);
                }
            }
            (Some(_), None) => {
                self.unwatched.push(place);
                if let Some(at) = member.busy.take() {
                    self.take_off_busy(at);
                }
            }
            _ => {}
        }
    }

    /// Adds the queue pairs whose descriptor was ready at the last look.
    fn see(&self, ready: &mut Vec<usize>) {
        let Some(waiter) = &self.waiter else { return };
        for Token(place) in waiter.seen() {
            // The few that are polled directly are in the list.
            if place != TRANSIENT.0 && (ready.len() > 2 * DIRECT || !ready.contains(&place)) {
                ready.push(place);
            }
        }
    }

    /// Adds the part of the queue pairs whose turn it is, if it is time.
    fn add_part(&mut self, now: Instant, polling: &mut Vec<usize>) {
        let last = *self.last_part.get_or_insert(now);
        if now.saturating_duration_since(last) < ROUND / PARTS {
            return;
        }
        self.last_part = Some(now);
        let (all, part) = (self.members.len(), self.members.len().div_ceil(PARTS as usize));
        for _ in 0..part {
            if let Some(Some(member)) = self.members.get_mut(self.next_member) {
                member.qpair.rested();
            }
            polling.push(self.next_member);
            self.next_member = (self.next_member + 1) % all.max(1);
        }
    }

    /// Sleeps until some queue pair may have something to do, at most `timeout`. Call it after a poll that completed
    /// nothing. Returns whether something woke it.
    ///
    /// # Errors
    /// When the operating system cannot wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        for index in 0..self.due.len() {
            let place = self.due[index];
            if let Some(Some(member)) = self.members.get_mut(place) {
                // What is collected leaves before anybody sleeps.
                member.qpair.flush();
                if member.ready || member.qpair.has_local_work() {
                    return Ok(true);
                }
            }
        }
        let mut nap = MAX_SLEEP;
        self.sources.clear();
        for &place in &self.unwatched {
            let Some(Some(member)) = self.members.get(place) else { continue };
            if member.qpair.has_local_work() {
                return Ok(true);
            }
            match member.qpair.event_source() {
                Some(source) => self.sources.push(source),
                // Without a descriptor yet (name resolution) it is looked at again soon.
                None => nap = Duration::from_millis(5),
            }
        }
        let waiter = match &mut self.waiter {
            Some(waiter) => waiter,
            none => none.insert(Waiter::new()?),
        };
        let woken = waiter.wait(&self.sources, nap.min(timeout))?;
        for Token(place) in waiter.tokens() {
            let Some(Some(member)) = self.members.get_mut(place) else { continue };
            member.ready = true;
            if !std::mem::replace(&mut member.due, true) {
                self.due.push(place);
            }
        }
        self.looks_since_clock = LOOKS_PER_CLOCK;
        Ok(woken)
    }
}

impl<Q: TransportQpair> Default for PollGroup<Q> {
    fn default() -> Self {
        Self::new()
    }
}
