//! The background thread that looks after the admin queues of a driver's controllers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use mio::{Token, Waker};

use crate::controller::{Controller, Inner};
use crate::wait::Waiter;

/// Longest sleep of the thread.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Handle of the thread, shared by the driver and its controllers. The thread starts with the first controller and
/// ends when the last handle is gone.
#[derive(Default)]
pub(crate) struct AdminThread(Mutex<Option<Arc<Shared>>>);

struct Shared {
    controllers: Mutex<Vec<Weak<Inner>>>,
    waker: Waker,
    stop: AtomicBool,
}

impl AdminThread {
    /// Puts a controller into the thread's care. Without a thread (the operating system refuses one), commands still
    /// complete while somebody waits for them, but keep alives are not sent; that is logged.
    pub(crate) fn add(&self, controller: &Arc<Inner>) {
        let mut handle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.is_none() {
            match start() {
                Ok(shared) => *handle = Some(shared),
                Err(error) => {
                    tracing::error!(%error, "no background admin thread: keep alives will not be sent")
                }
            }
        }
        if let Some(shared) = &*handle {
            shared
                .controllers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::downgrade(controller));
            // Fails only when the eventfd's counter is full, in which case the thread is awake anyway.
            let _ = shared.waker.wake();
        }
    }

    /// Lets the thread look at its controllers now.
    pub(crate) fn wake(&self) {
        if let Some(shared) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = shared.waker.wake();
        }
    }
}

impl Drop for AdminThread {
    fn drop(&mut self) {
        // Not joined: the last handle may be dropped by the thread itself.
        if let Some(shared) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            shared.stop.store(true, Ordering::Release);
            let _ = shared.waker.wake();
        }
    }
}

fn start() -> std::io::Result<Arc<Shared>> {
    let waiter = Waiter::new()?;
    let waker = Waker::new(waiter.registry(), Token(1))?;
    let shared = Arc::new(Shared { controllers: Mutex::default(), waker, stop: AtomicBool::new(false) });
    let of_thread = Arc::clone(&shared);
    std::thread::Builder::new().name("nvmf-admin".into()).spawn(move || run(waiter, &of_thread))?;
    Ok(shared)
}

fn run(mut waiter: Waiter, shared: &Shared) {
    let mut sources = Vec::new();
    while !shared.stop.load(Ordering::Acquire) {
        let controllers: Vec<Arc<Inner>> = {
            let mut list = shared.controllers.lock().unwrap_or_else(PoisonError::into_inner);
            list.retain(|weak| weak.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let mut sleep = MAX_SLEEP;
        sources.clear();
        for controller in controllers {
            if let Some((source, nap)) = Controller(controller).background_step(Instant::now()) {
                sources.extend(source);
                sleep = sleep.min(nap);
            }
        }
        if let Err(error) = waiter.wait(&sources, sleep) {
            tracing::error!(%error, "the background admin thread cannot wait");
            std::thread::sleep(sleep.min(Duration::from_millis(10)));
        }
    }
}
