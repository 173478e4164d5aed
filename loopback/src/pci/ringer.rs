//! Writing eventfds that somebody else holds as well.
//!
//! Whether a write to an eventfd blocks is up to everybody who has a copy: the flag (O_NONBLOCK) belongs to all copies together, and
//! so does the counter, which blocks writers when it is full. There is no write that says for itself that it must not wait. So it
//! is a thread of its own that writes, and nobody waits for it: at worst, whoever fills his counter gets no more interrupts.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::{ReadWriteFlags, preadv2};

use super::signal::Signal;

/// Threads of a function that may be stuck at a time; with that many, no more eventfds are taken.
const MAX_STUCK: usize = 4;

/// The eventfds of one thread, by vector.
#[derive(Debug)]
pub(super) struct Lines {
    fds: Mutex<Vec<Option<Arc<File>>>>,
    signal: Signal,
    stop: AtomicBool,
    ended: AtomicBool,
}

impl Lines {
    fn fds(&self) -> MutexGuard<'_, Vec<Option<Arc<File>>>> {
        self.fds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the thread write to a vector's eventfd.
    pub(super) fn ring(&self, vector: u16) {
        self.signal.ring(Some(vector.into()), 0);
    }

    fn serve(&self) {
        self.signal.attend();
        while !self.stop.load(Ordering::Acquire) {
            self.signal.take_news();
            self.signal.take(|vector, _| {
                let fd = vector.and_then(|vector| self.fds().get(vector).cloned().flatten());
                if let Some(fd) = fd.filter(|_| !self.stop.load(Ordering::Acquire)) {
                    // Two interrupts that nobody took are one; an error means the same.
                    let _ = (&*fd).write(&1u64.to_ne_bytes());
                }
            });
            self.signal.wait(Duration::ZERO, None);
        }
        self.ended.store(true, Ordering::Release);
    }

    /// Ends the thread, once it is not stuck.
    fn end(&self) {
        self.stop.store(true, Ordering::Release);
        self.signal.wake();
        self.fds().iter().flatten().for_each(|fd| drain(fd));
    }
}

/// Empties a counter, so that nobody is stuck at it. Never blocks, whatever the flags say.
fn drain(fd: &File) {
    let mut value = [0; 8];
    // Offset -1 is the current position; the only one an eventfd has.
    let _ = preadv2(fd, &mut [IoSliceMut::new(&mut value)], u64::MAX, ReadWriteFlags::NOWAIT);
}

/// Makes eventfds readable without ever blocking. Starts its thread with the first of them.
#[derive(Debug, Default)]
pub(super) struct Ringer {
    lines: Option<Arc<Lines>>,
    /// Told to end, and perhaps stuck.
    ending: Vec<Arc<Lines>>,
}

impl Ringer {
    /// Takes the eventfd of a vector below `vectors`. `None` when there can be no thread to write to it.
    pub(super) fn set(&mut self, vectors: u16, vector: u16, eventfd: OwnedFd) -> Option<Arc<Lines>> {
        if self.lines.is_none() {
            self.lines = self.start(vectors);
        }
        let lines = self.lines.as_ref()?;
        let before = lines.fds().get_mut(usize::from(vector))?.replace(Arc::new(File::from(eventfd)));
        if let Some(before) = before {
            drain(&before);
        }
        Some(Arc::clone(lines))
    }

    /// Forgets the eventfd of a vector.
    pub(super) fn unset(&mut self, vector: u16) {
        let lines = self.lines.as_ref();
        if let Some(fd) = lines.and_then(|lines| lines.fds().get_mut(usize::from(vector))?.take()) {
            drain(&fd);
        }
    }

    /// Forgets all of them.
    pub(super) fn stop(&mut self) {
        if let Some(lines) = self.lines.take() {
            self.ending.push(lines);
        }
        self.ending.retain(|lines| {
            lines.end();
            !lines.ended.load(Ordering::Acquire)
        });
    }

    fn start(&mut self, vectors: u16) -> Option<Arc<Lines>> {
        self.stop();
        if self.ending.len() >= MAX_STUCK {
            tracing::warn!("no more interrupts: earlier clients keep the counters of theirs full");
            return None;
        }
        let lines = Arc::new(Lines {
            fds: Mutex::new((0..vectors).map(|_| None).collect()),
            signal: Signal::new(vectors.into()),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&lines);
        let thread = std::thread::Builder::new().name("nvmf-pci-irq".into()).spawn(move || of_thread.serve());
        match thread {
            Ok(_) => Some(lines),
            Err(error) => {
                tracing::error!(%error, "no thread for interrupts");
                None
            }
        }
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    fn full() -> OwnedFd {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let file = File::from(fd);
        (&file).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!((&file).write_all(&1u64.to_ne_bytes()).is_err(), "the counter is full");
        fcntl_setfl(&file, OFlags::empty()).unwrap();
        file.into()
    }

    fn within_10_s(what: &str, mut f: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !f() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_is_rung_becomes_readable() {
        let mut ringer = Ringer::default();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let mut ear = File::from(fd.try_clone().unwrap());
        let lines = ringer.set(4, 3, fd).unwrap();
        for _ in 0..100 {
            lines.ring(3);
            within_10_s("an interrupt", || ear.read(&mut [0; 8]).is_ok());
        }
        lines.ring(2);
        ringer.unset(3);
        lines.ring(3);
        std::thread::sleep(Duration::from_millis(20));
        assert!(ear.read(&mut [0; 8]).is_err());
        ringer.stop();
        within_10_s("the thread ends", || lines.ended.load(Ordering::Acquire));
    }

    #[test]
    fn a_full_counter_holds_up_nobody_but_its_owner() {
        let mut ringer = Ringer::default();
        let mut all = Vec::new();
        for _ in 0..3 * MAX_STUCK {
            let fd = full();
            all.push(fd.try_clone().unwrap());
            let lines = ringer.set(1, 0, fd).unwrap();
            lines.ring(0);
            // Long enough to get stuck, most of the time.
            std::thread::sleep(Duration::from_millis(5));
            ringer.stop();
            within_10_s("the thread ends", || {
                ringer.stop();
                lines.ended.load(Ordering::Acquire)
            });
        }
        assert!(ringer.ending.is_empty());
    }
}
