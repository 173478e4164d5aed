//! The primary's side: accepts connections, and knows who is there.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use zerocopy::little_endian::{U16, U32};

use super::channel::{Bell, Channel, Listener, wait};
use super::directory::{Lock, Place};
use super::session::Session;
use super::wire::{ProcessFacts, Reply};
use crate::controller::{Controller, Inner};
use crate::error::{Error, Result};

/// Most connections at a time; a secondary has one for each controller.
const MAX_SESSIONS: usize = 256;

/// How long sessions are waited for at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves an instance until it is dropped.
pub(crate) struct Server {
    hub: Arc<Hub>,
    /// Its files go when the server goes.
    _lock: Lock,
}

/// What the threads of a server share.
pub(super) struct Hub {
    controllers: Box<dyn Fn() -> Vec<Controller> + Send + Sync>,
    numbers: Mutex<Numbers>,
    entries: Mutex<Vec<Arc<Entry>>>,
    bell: Arc<Bell>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Numbers {
    last: u32,
    known: Vec<(u32, Weak<Inner>)>,
}

/// A connection, as others see it.
pub(super) struct Entry {
    pub(super) pid: u32,
    pub(super) bell: Arc<Bell>,
    pub(super) stop: AtomicBool,
    pub(super) attached: AtomicBool,
    pub(super) queues: AtomicU32,
}

impl Server {
    /// Starts to serve; `controllers` says what is shared.
    pub(crate) fn start(
        place: &Place,
        lock: Lock,
        controllers: impl Fn() -> Vec<Controller> + Send + Sync + 'static,
    ) -> Result<Self> {
        let context = |error: io::Error| Error::from(error).doing("sharing controllers").peer(place);
        lock.clear().map_err(context)?;
        let listener = Listener::bind(&place.socket()).map_err(context)?;
        let hub = Arc::new(Hub {
            controllers: Box::new(controllers),
            numbers: Mutex::default(),
            entries: Mutex::default(),
            bell: Arc::new(Bell::new().map_err(context)?),
            stop: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&hub);
        std::thread::Builder::new()
            .name("nvmf-share".into())
            .spawn(move || accept(&listener, &of_thread))
            .map_err(context)?;
        Ok(Self { hub, _lock: lock })
    }

    pub(crate) fn processes(&self) -> Vec<ProcessFacts> {
        self.hub.processes()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.stop.store(true, Ordering::Release);
        self.hub.bell.ring();
        for entry in self.hub.entries().iter() {
            entry.stop.store(true, Ordering::Release);
            entry.bell.ring();
        }
        // Sessions tell the other processes and let go of their controllers; one that takes long is left to it.
        let deadline = Instant::now() + FAREWELL;
        while !self.hub.entries().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Hub {
    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is shared: attached controllers that have I/O queues, with their numbers.
    pub(super) fn controllers(&self) -> Vec<(u32, Controller)> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.known.retain(|(_, known)| known.strong_count() > 0);
        let mut shared = Vec::new();
        for controller in (self.controllers)() {
            if controller.is_discovery() {
                continue;
            }
            let weak = controller.downgrade();
            let found = numbers.known.iter().find(|(_, known)| known.ptr_eq(&weak)).map(|(id, _)| *id);
            let id = found.unwrap_or_else(|| {
                numbers.last += 1;
                let id = numbers.last;
                numbers.known.push((id, weak));
                id
            });
            shared.push((id, controller));
        }
        shared
    }

    pub(super) fn processes(&self) -> Vec<ProcessFacts> {
        let own = ProcessFacts {
            pid: U32::new(std::process::id()),
            primary: U16::new(1),
            controllers: U16::new(u16::try_from(self.controllers().len()).unwrap_or(u16::MAX)),
            queues: U32::new(0),
        };
        let mut processes = vec![own];
        for entry in self.entries().iter().filter(|entry| entry.attached.load(Ordering::Acquire)) {
            let known = processes.iter().position(|p| p.pid.get() == entry.pid && p.primary.get() == 0);
            let index = known.unwrap_or_else(|| {
                processes.push(ProcessFacts { pid: U32::new(entry.pid), ..ProcessFacts::default() });
                processes.len() - 1
            });
            let process = &mut processes[index];
            process.controllers.set(process.controllers.get().saturating_add(1));
            process.queues.set(process.queues.get() + entry.queues.load(Ordering::Acquire));
        }
        processes
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn leave(&self, entry: &Arc<Entry>) {
        self.entries().retain(|known| !Arc::ptr_eq(known, entry));
    }
}

fn accept(listener: &Listener, hub: &Arc<Hub>) {
    while !hub.is_stopping() {
        match listener.accept() {
            Ok(Some(channel)) => {
                if let Err(error) = admit(channel, hub) {
                    tracing::warn!(%error, "a process was not let in");
                }
            }
            Ok(None) => {
                let sleep =
                    wait(&[(listener.as_fd(), false), (hub.bell.as_fd(), false)], Duration::from_secs(1));
                if let Err(error) = sleep {
                    tracing::error!(%error, "the sharing thread cannot wait");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            Err(error) => {
                // Out of descriptors, mostly: that may pass.
                tracing::error!(%error, "no connection of another process can be taken");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Checks who connects and gives the connection a thread.
fn admit(channel: Channel, hub: &Arc<Hub>) -> io::Result<()> {
    let (uid, pid) = channel.peer()?;
    let ours = rustix::process::geteuid().as_raw();
    if uid != ours {
        let why =
            format!("process {pid} belongs to user {uid}; this instance is shared with user {ours} only");
        tracing::warn!(why, "refused");
        channel.send(&Reply::Refused(&why).encode(0), &[])?;
        return Ok(());
    }
    let entry = Arc::new(Entry {
        pid,
        bell: Arc::new(Bell::new()?),
        stop: AtomicBool::new(false),
        attached: AtomicBool::new(false),
        queues: AtomicU32::new(0),
    });
    {
        let mut entries = hub.entries();
        if entries.len() >= MAX_SESSIONS {
            let why = format!("{MAX_SESSIONS} connections is all the primary takes");
            channel.send(&Reply::Refused(&why).encode(0), &[])?;
            return Ok(());
        }
        entries.push(Arc::clone(&entry));
    }
    let (of_thread, of_entry) = (Arc::clone(hub), Arc::clone(&entry));
    let spawned = std::thread::Builder::new().name("nvmf-session".into()).spawn(move || {
        Session::new(Arc::clone(&of_thread), Arc::clone(&of_entry), channel).run();
        of_thread.leave(&of_entry);
    });
    spawned.map(drop).inspect_err(|_| hub.leave(&entry))
}
