//! Sessions of other processes that follow a controller.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Controller, Event, Link};
use crate::transport::Lender;

/// Is told what happens to a controller, by whichever thread notices; must not block.
pub(crate) trait Watcher: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event);
    /// How it is now, perhaps as before.
    fn look(&self, link: Link);
}

#[derive(Default)]
pub(super) struct Watchers {
    any: AtomicBool,
    list: Mutex<Vec<Weak<dyn Watcher>>>,
}

impl Watchers {
    fn each(&self, f: impl Fn(&dyn Watcher)) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|watcher| watcher.upgrade().inspect(|watcher| f(&**watcher)).is_some());
        self.any.store(!list.is_empty(), Ordering::Release);
    }

    pub(super) fn tell(&self, event: &Event) {
        self.each(|watcher| watcher.event(event));
    }

    pub(super) fn look(&self, link: Link) {
        self.each(|watcher| watcher.look(link));
    }
}

impl Controller {
    /// Tells `watcher` what happens to the controller from now on, for as long as it exists.
    pub(crate) fn watch(&self, watcher: Weak<dyn Watcher>) {
        let watchers = &self.0.watchers;
        watchers.list.lock().unwrap_or_else(PoisonError::into_inner).push(watcher);
        watchers.any.store(true, Ordering::Release);
    }

    /// Whether its admin queue is given up, and nothing of it is left.
    pub(crate) fn is_quiet(&self) -> bool {
        self.lock().is_quiet()
    }

    /// Whether its admin queue is given up and what it could reach of memory is known to be out of reach; with it, every I/O queue that
    /// lives by it.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.lock().is_quiesced()
    }

    /// What lets other processes drive I/O queues in memory.
    pub(crate) fn lender(&self) -> Option<Arc<dyn Lender>> {
        self.lock().transport.lender()
    }

    /// A queue identifier for another process, if one is left.
    pub(crate) fn take_qid(&self) -> Option<u16> {
        self.lock().take_qid()
    }

    /// The same controller, for who asks about it: strong references are counted by their holders.
    pub(crate) fn downgrade(&self) -> Weak<super::Inner> {
        Arc::downgrade(&self.0)
    }
}
