//! What the queue pairs of one poll group share on one device: a completion queue, and a receive queue with the memory of its
//! responses.
//!
//! Completions are taken for all members at once and put into each member's inbox, responses copied, so that a receive is
//! posted again before its owner is polled. A member counts on as many receives and completions as it has reserved; what does
//! not fit into a set any more gets a set of its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nvmf_core::transport::GroupShare;
use nvmf_core::{Error, Result};

use super::link::{Kind, RESPONSE_BYTES, Ring};
use crate::proto::{Limits, Violation};
use crate::provider::{
    Domain, POLL_BATCH, Provider, ReceiveRequest, SharedQueues, WorkCompletion, WorkStatus,
};

/// Receives of a set, if no member needs more.
const SET_RECEIVES: u32 = 1024;
/// Receives nobody counts on: a queue pair that fails may take one with it.
const SPARE_RECEIVES: u32 = 32;
/// Completions of a set for each of its receives: members have up to twice as many sends.
const COMPLETIONS_PER_RECEIVE: u32 = 3;
/// Most batches of completions that are taken at a time.
const MAX_BATCHES: usize = 256;
/// Where a member's number is in the identifier of a request, above the request's kind.
const MEMBER_SHIFT: u32 = 32 + Kind::BITS;

/// The sets of one poll group.
pub(crate) struct Share<P: Provider>(Mutex<Vec<Weak<Set<P::Domain>>>>);

impl<P: Provider> Share<P> {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    fn sets(&self) -> MutexGuard<'_, Vec<Weak<Set<P::Domain>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a queue pair on this device; `None` when the device has nothing to share.
    pub(super) fn admit(
        &self,
        domain: &Arc<P::Domain>,
        sends: u32,
        receives: u32,
    ) -> Result<Option<Member<P::Domain>>> {
        let mut sets = self.sets();
        sets.retain(|set| set.strong_count() > 0);
        for set in sets.iter().filter_map(Weak::upgrade).filter(|set| Arc::ptr_eq(&set.domain, domain)) {
            if let Some(member) = Member::new(&set, sends, receives) {
                return Ok(Some(member));
            }
        }
        let Some(set) = Set::new(domain, sends, receives)? else { return Ok(None) };
        let member = Member::new(&set, sends, receives);
        sets.push(Arc::downgrade(&set));
        Ok(member)
    }
}

impl<P: Provider> GroupShare for Share<P> {
    fn poll(&self) {
        for set in self.sets().iter().filter_map(Weak::upgrade) {
            let mut state = set.lock();
            state.poll(&set.queues);
            set.round.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What came for a member.
#[derive(Clone, Copy)]
struct Entry {
    completion: WorkCompletion,
    response: [u8; RESPONSE_BYTES],
}

/// What is kept for a member.
struct Place {
    /// Never given out twice.
    number: u32,
    /// Number of its queue pair, once there is one.
    queue_pair: Option<u32>,
    sends: u32,
    receives: u32,
    inbox: VecDeque<Entry>,
    /// What was wrong with its completions.
    broken: Option<Violation>,
}

impl Place {
    fn deliver(&mut self, entry: Entry) {
        // So many can be outstanding at a time; a peer that sends more gets no memory for it.
        if self.inbox.len() >= (self.sends + self.receives) as usize {
            self.broken = Some(Violation::NoReceive);
        } else {
            self.inbox.push_back(entry);
        }
    }
}

struct State<D: Domain> {
    ring: Ring<D>,
    places: Vec<Place>,
    next: u32,
    receives_left: u32,
    completions_left: u32,
    /// The next completion raises a notification.
    armed: bool,
    /// Why nothing more comes.
    failure: Option<String>,
    batch: [WorkCompletion; POLL_BATCH],
    reposts: Vec<ReceiveRequest>,
}

/// A completion queue and a receive queue, and who uses them.
pub(super) struct Set<D: Domain> {
    pub(super) queues: Arc<D::Shared>,
    domain: Arc<D>,
    /// Rounds in which the group has polled it.
    round: AtomicU64,
    state: Mutex<State<D>>,
}

impl<D: Domain> Set<D> {
    /// A set with room for at least this member.
    fn new(domain: &Arc<D>, sends: u32, receives: u32) -> Result<Option<Arc<Self>>> {
        let limits = domain.limits();
        let most = limits.max_shared_receives.min(limits.max_completions / COMPLETIONS_PER_RECEIVE);
        let all = SET_RECEIVES.max(receives).saturating_add(SPARE_RECEIVES).min(most);
        let completions = (all * COMPLETIONS_PER_RECEIVE).max(sends + receives).min(limits.max_completions);
        if all < receives.saturating_add(SPARE_RECEIVES) || completions < sends + receives {
            return Ok(None);
        }
        let doing = |what: &str| format!("{what} for a poll group on {}", domain.device());
        let queues = domain
            .share(completions, all)
            .map_err(|error| Error::from(error).doing(doing("making a completion and a receive queue")))?;
        let ring = Ring::new(domain, 0, all, &Limits::default())?;
        let requests: Vec<_> = (0..all).filter_map(|index| ring.receive(index)).collect();
        queues
            .post_receive(&requests)
            .map_err(|error| Error::from(error).doing(doing("posting receives")))?;
        tracing::debug!(device = domain.device(), completions, receives = all, "queues for a poll group");
        let state = State {
            ring,
            places: Vec::new(),
            next: 0,
            receives_left: all - SPARE_RECEIVES,
            completions_left: completions,
            armed: false,
            failure: None,
            batch: [WorkCompletion::default(); POLL_BATCH],
            reposts: Vec::with_capacity(POLL_BATCH),
        };
        let (queues, domain) = (Arc::new(queues), Arc::clone(domain));
        Ok(Some(Arc::new(Self { queues, domain, round: AtomicU64::new(0), state: Mutex::new(state) })))
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Domain> State<D> {
    /// Takes what there is and hands it out.
    fn poll(&mut self, queues: &D::Shared) {
        if self.armed && queues.take_notifications() {
            self.armed = false;
        }
        for _ in 0..MAX_BATCHES {
            if self.failure.is_some() {
                return;
            }
            let count = match queues.poll_completions(&mut self.batch) {
                Ok(count) => count,
                Err(error) => {
                    self.failure = Some(format!("the completion queue failed: {error}"));
                    return;
                }
            };
            for index in 0..count {
                let completion = self.batch[index];
                self.hand_out(&completion);
            }
            if !self.reposts.is_empty() {
                if let Err(error) = queues.post_receive(&self.reposts) {
                    self.failure = Some(format!("posting receives failed: {error}"));
                }
                self.reposts.clear();
            }
            if count < POLL_BATCH {
                return;
            }
        }
    }

    fn hand_out(&mut self, completion: &WorkCompletion) {
        let mut response = [0; RESPONSE_BYTES];
        let request = completion.id & ((1 << MEMBER_SHIFT) - 1);
        let owner = self.places.iter_mut().find(|place| place.queue_pair == Some(completion.queue_pair));
        if Kind::of(request) == Some(Kind::Receive) {
            let index = request as u32;
            let Some(receive) = self.ring.receive(index) else {
                if let Some(owner) = owner {
                    owner.broken = Some(Violation::NoReceive);
                }
                return;
            };
            if completion.status == WorkStatus::SUCCESS {
                self.ring.memory.read_bytes(self.ring.response(index), &mut response);
            }
            self.reposts.push(receive);
            match owner {
                Some(owner) => owner.deliver(Entry { completion: *completion, response }),
                // The last words of a queue pair that is gone.
                None => tracing::debug!(number = completion.queue_pair, "a message for no queue pair"),
            }
            return;
        }
        let number = (completion.id >> MEMBER_SHIFT) as u32;
        match owner {
            Some(owner) if owner.number == number => {
                owner.deliver(Entry { completion: WorkCompletion { id: request, ..*completion }, response });
            }
            // The request says whose it is, and the device says another's: its owner cannot go on.
            _ => match self.places.iter_mut().find(|place| place.number == number) {
                Some(place) => place.broken = Some(Violation::NotPosted),
                None => tracing::debug!(number = completion.queue_pair, "a completion for no queue pair"),
            },
        }
    }

    fn place(&mut self, number: u32) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.number == number)
    }
}

/// A queue pair's place in a set. Given up when dropped, which is after the queue pair was destroyed.
pub(super) struct Member<D: Domain> {
    set: Arc<Set<D>>,
    number: u32,
    /// The group's round in which it was polled last.
    seen: u64,
    /// Somebody sleeps, or is about to, and nothing has come since.
    asleep: bool,
}

impl<D: Domain> Member<D> {
    /// A place, if there is room.
    fn new(set: &Arc<Set<D>>, sends: u32, receives: u32) -> Option<Self> {
        let mut state = set.lock();
        let completions = sends + receives;
        // Numbers have 30 bits.
        let number = state.next.checked_add(1).filter(|number| number >> (64 - MEMBER_SHIFT) == 0)?;
        if state.failure.is_some() || state.receives_left < receives || state.completions_left < completions {
            return None;
        }
        state.next = number;
        state.receives_left -= receives;
        state.completions_left -= completions;
        state.places.push(Place {
            number,
            queue_pair: None,
            sends,
            receives,
            inbox: VecDeque::with_capacity(receives.min(64) as usize),
            broken: None,
        });
        drop(state);
        Some(Self { set: Arc::clone(set), number, seen: u64::MAX, asleep: false })
    }

    /// The queues to make the queue pair with.
    pub(super) fn queues(&self) -> &Arc<D::Shared> {
        &self.set.queues
    }

    /// The queue pair was made.
    pub(super) fn made(&self, queue_pair: u32) {
        if let Some(place) = self.set.lock().place(self.number) {
            place.queue_pair = Some(queue_pair);
        }
    }

    /// The identifier of one of its requests.
    pub(super) fn name(&self, id: u64) -> u64 {
        id | u64::from(self.number) << MEMBER_SHIFT
    }

    /// Takes what came for it, with the responses. The group has looked for it in this round; polled alone, it looks itself.
    pub(super) fn take(
        &mut self,
        completions: &mut [WorkCompletion],
        responses: &mut [[u8; RESPONSE_BYTES]],
    ) -> Result<usize> {
        let set = &*self.set;
        let mut state = set.lock();
        let round = set.round.load(Ordering::Relaxed);
        let looked = std::mem::replace(&mut self.seen, round) != round && round > 0;
        let waiting = |state: &mut State<D>| state.place(self.number).map_or(0, |place| place.inbox.len());
        if !looked && waiting(&mut state) == 0 {
            state.poll(&set.queues);
        }
        self.asleep = state.armed;
        let failure = state.failure.clone();
        let Some(place) = state.place(self.number) else { return Err(super::closed()) };
        if let Some(violation) = place.broken {
            return Err(Error::disconnected(format!("the RDMA device reports {violation}")));
        }
        let mut count = 0;
        for (completion, response) in completions.iter_mut().zip(responses) {
            let Some(entry) = place.inbox.pop_front() else { break };
            (*completion, *response) = (entry.completion, entry.response);
            count += 1;
        }
        match failure {
            Some(why) if count == 0 => Err(Error::disconnected(why)),
            _ => Ok(count),
        }
    }

    /// Whether somebody slept, when it last took what came, and was not woken by a completion.
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep
    }

    /// Whether something is here that was not taken, or may have come before the next completion raises a notification.
    pub(super) fn may_have_more(&self) -> bool {
        let mut state = self.set.lock();
        let number = self.number;
        if state.failure.is_some()
            || state.place(number).is_none_or(|place| !place.inbox.is_empty() || place.broken.is_some())
        {
            return true;
        }
        if state.armed {
            return false;
        }
        state.armed = self.set.queues.request_notification().is_ok();
        true
    }

    /// The queue pair could not be destroyed: the device may still write to the responses' memory.
    pub(super) fn leak(self) {
        std::mem::forget(Arc::clone(&self.set));
    }
}

impl<D: Domain> Drop for Member<D> {
    fn drop(&mut self) {
        let mut state = self.set.lock();
        // Its last completions, before its queue pair's number can be another's.
        state.poll(&self.set.queues);
        if let Some(index) = state.places.iter().position(|place| place.number == self.number) {
            let place = state.places.swap_remove(index);
            state.receives_left += place.receives;
            state.completions_left += place.sends + place.receives;
        }
    }
}
