//! The loopbacks of this process, by name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::LoopbackError;
use crate::target::Target;

static RUNNING: Mutex<BTreeMap<String, Weak<Target>>> = Mutex::new(BTreeMap::new());

fn running() -> MutexGuard<'static, BTreeMap<String, Weak<Target>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name nobody has, another one with every call.
pub(crate) fn free_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let name = match NEXT.fetch_add(1, Ordering::Relaxed) {
            0 => "loopback".to_owned(),
            n => format!("loopback-{n}"),
        };
        if !running().contains_key(&name) {
            return name;
        }
    }
}

pub(crate) fn add(target: &Arc<Target>) -> Result<(), LoopbackError> {
    let mut running = running();
    if running.get(&target.name).is_some_and(|other| other.strong_count() > 0) {
        return Err(LoopbackError::NameTaken(target.name.clone()));
    }
    running.insert(target.name.clone(), Arc::downgrade(target));
    Ok(())
}

pub(crate) fn remove(target: &Arc<Target>) {
    let mut running = running();
    if running.get(&target.name).is_some_and(|found| std::ptr::eq(found.as_ptr(), Arc::as_ptr(target))) {
        running.remove(&target.name);
    }
}

/// The loopback of this name; an empty name means the only one. The names there are if there is no such.
pub(crate) fn find(name: &str) -> Result<Arc<Target>, Vec<String>> {
    let running = running();
    let found = match running.len() {
        1 if name.is_empty() => running.values().next(),
        _ => running.get(name),
    };
    found.and_then(Weak::upgrade).ok_or_else(|| running.keys().cloned().collect())
}
