//! What queue pairs of one poll group have in common.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a transport's queue pairs in one poll group have in common: a completion queue, for instance. The transport makes it in
/// [`crate::transport::TransportQpair::join_group`] and puts it into the group's [`GroupShares`].
pub trait GroupShare: Any + Send + Sync {
    /// Takes what has come for any member and hands it to that member. The group calls it once before each round in which it polls its
    /// members. What goes wrong is for the members to say when they are polled.
    fn poll(&self);
}

#[derive(Default)]
struct Inner {
    /// Whether there is anything in the list: groups of transports that share nothing do not take the lock.
    used: AtomicBool,
    shares: Mutex<Vec<Arc<dyn GroupShare>>>,
}

/// What the members of one [`crate::PollGroup`] share, at most one thing of a type. Clones are the same.
#[derive(Clone, Default)]
pub struct GroupShares(Arc<Inner>);

impl GroupShares {
    /// Of a group without members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What there is of this type; made now if there is none.
    pub fn get_or_insert_with<T: GroupShare>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shares.iter().find_map(|share| {
            let any: Arc<dyn Any + Send + Sync> = Arc::<dyn GroupShare>::clone(share);
            any.downcast::<T>().ok()
        });
        found.unwrap_or_else(|| {
            let made = Arc::new(make());
            shares.push(Arc::<T>::clone(&made));
            self.0.used.store(true, Ordering::Release);
            made
        })
    }

    /// Polls all of it: see [`GroupShare::poll`].
    #[inline]
    pub fn poll(&self) {
        if self.0.used.load(Ordering::Acquire) {
            self.poll_all();
        }
    }

    #[cold]
    fn poll_all(&self) {
        let shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.iter().for_each(|share| share.poll());
    }
}

impl fmt::Debug for GroupShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("GroupShares").field("shares", &shares.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Counter<const N: u8>(AtomicUsize);

    impl<const N: u8> GroupShare for Counter<N> {
        fn poll(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn there_is_one_of_each_type_and_all_are_polled() {
        let shares = GroupShares::new();
        shares.poll();
        let first = shares.get_or_insert_with(|| Counter::<1>(AtomicUsize::new(0)));
        let again = shares.clone().get_or_insert_with(|| Counter::<1>(AtomicUsize::new(100)));
        let other = shares.get_or_insert_with(|| Counter::<2>(AtomicUsize::new(10)));
        assert!(Arc::ptr_eq(&first, &again));
        shares.poll();
        assert_eq!((first.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)), (1, 11));
    }
}
