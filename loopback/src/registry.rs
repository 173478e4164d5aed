//! The loopbacks of this process, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::LoopbackError;
use crate::target::Target;

static RUNNING: Mutex<BTreeMap<String, Weak<Target>>> = Mutex::new(BTreeMap::new());

fn running() -> MutexGuard<'static, BTreeMap<String, Weak<Target>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name nobody has.
pub(crate) fn free_name() -> String {
    let running = running();
    let name = |n: u32| if n == 0 { "loopback".to_owned() } else { format!("loopback-{n}") };
    (0..).map(name).find(|name| !running.contains_key(name)).unwrap_or_default()
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
