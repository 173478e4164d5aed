//! What queue pairs look at in every poll to see whether their controller is still the one they connected to; and the addresses
//! a controller was given.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::Error;
use crate::transport_id::TransportId;

/// Whether I/O can be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Ready,
    /// Not connected; I/O is held.
    Down,
    /// Not connected for so long that I/O fails.
    DownFast,
    /// Given up.
    Lost,
}

/// The association in force, or the last one there was, and whether it is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    /// Counts associations from 1.
    pub(crate) association: u64,
    pub(crate) phase: Phase,
}

/// A [`Link`] that is read without a lock, and why it is down.
pub(crate) struct LinkCell {
    link: AtomicU64,
    /// Held for a copy, never during anything else.
    reason: Mutex<Option<Error>>,
}

impl LinkCell {
    /// Never connected.
    pub(crate) fn new() -> Self {
        Self { link: AtomicU64::new(Phase::Down as u64), reason: Mutex::default() }
    }

    /// Whether this association is in force and up.
    #[inline]
    pub(crate) fn is_ready(&self, association: u64) -> bool {
        self.link.load(Ordering::Acquire) == association << 2
    }

    pub(crate) fn load(&self) -> Link {
        let value = self.link.load(Ordering::Acquire);
        let phase = match value & 3 {
            0 => Phase::Ready,
            1 => Phase::Down,
            2 => Phase::DownFast,
            _ => Phase::Lost,
        };
        Link { association: value >> 2, phase }
    }

    /// Why it was down last, as far as that is known.
    pub(crate) fn reason(&self) -> Option<Error> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `reason` is why, where it is not ready.
    pub(crate) fn store(&self, link: Link, reason: Option<Error>) {
        if link.phase != Phase::Ready {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        }
        self.link.store(link.association << 2 | link.phase as u64, Ordering::Release);
    }
}

/// The addresses a controller has or had. They stay, so that references to them do; there are as many as were ever given.
pub(super) struct Addresses {
    first: Address,
    current: AtomicUsize,
}

struct Address {
    trid: TransportId,
    next: OnceLock<Box<Self>>,
}

impl Addresses {
    pub(super) fn new(trid: TransportId) -> Self {
        Self { first: Address { trid, next: OnceLock::new() }, current: AtomicUsize::new(0) }
    }

    pub(super) fn current(&self) -> &TransportId {
        let mut address = &self.first;
        for _ in 0..self.current.load(Ordering::Acquire) {
            let Some(next) = address.next.get() else { break };
            address = next;
        }
        &address.trid
    }

    pub(super) fn set(&self, trid: &TransportId) {
        let mut address = &self.first;
        let mut index = 0;
        while address.trid != *trid {
            address =
                address.next.get_or_init(|| Box::new(Address { trid: trid.clone(), next: OnceLock::new() }));
            index += 1;
        }
        self.current.store(index, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_comes_back_as_it_was_stored() {
        let cell = LinkCell::new();
        assert_eq!(cell.load(), Link { association: 0, phase: Phase::Down });
        for (index, phase) in
            [Phase::Ready, Phase::Down, Phase::DownFast, Phase::Lost].into_iter().enumerate()
        {
            let link = Link { association: 77, phase };
            cell.store(link, Some(Error::disconnected("gone")));
            // A controller that is ready leaves the reason of its last loss.
            assert_eq!(cell.reason().is_some(), index > 0);
            assert_eq!(cell.load(), link);
            assert_eq!(cell.is_ready(77), phase == Phase::Ready);
            assert!(!cell.is_ready(76));
        }
    }

    #[test]
    fn addresses_given_again_take_no_more_room() {
        let trid =
            |n: u8| -> TransportId { format!("trtype:tcp traddr:10.0.0.{n} trsvcid:4420").parse().unwrap() };
        let addresses = Addresses::new(trid(1));
        let first = addresses.current();
        for n in [2, 3, 1, 2, 3, 3] {
            addresses.set(&trid(n));
            assert_eq!(*addresses.current(), trid(n));
        }
        assert_eq!(*first, trid(1));
        assert!(addresses.first.next.get().unwrap().next.get().unwrap().next.get().is_none());
    }
}
