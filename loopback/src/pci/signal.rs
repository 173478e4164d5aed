//! Doorbells as atomics, and waking the thread that serves them: no lock in the way of a host that rings.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

const WORD: usize = u64::BITS as usize;

#[derive(Debug)]
pub(super) struct Signal {
    /// The values written last.
    doorbells: Vec<AtomicU32>,
    /// A bit for each doorbell that was written and not looked at.
    rung: Vec<AtomicU64>,
    /// A doorbell was written where none is.
    missed: AtomicBool,
    /// There is something to look at.
    news: AtomicBool,
    sleeping: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Signal {
    pub(super) fn new(doorbells: usize) -> Self {
        Self {
            doorbells: (0..doorbells).map(|_| AtomicU32::new(0)).collect(),
            rung: (0..doorbells.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect(),
            missed: AtomicBool::new(false),
            news: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }

    /// Writes a doorbell. Only its last value counts.
    pub(super) fn ring(&self, index: Option<u64>, value: u32) {
        let index = index.and_then(|index| usize::try_from(index).ok()).filter(|&i| i < self.doorbells.len());
        match index {
            Some(index) => {
                self.doorbells[index].store(value, Ordering::Release);
                self.rung[index / WORD].fetch_or(1 << (index % WORD), Ordering::Release);
            }
            None => self.missed.store(true, Ordering::Release),
        }
        self.wake();
    }

    /// Takes the doorbells that were written: index and value; no index for one that is not there.
    pub(super) fn take(&self, mut each: impl FnMut(Option<usize>, u32)) {
        for (word, rung) in self.rung.iter().enumerate() {
            if rung.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = rung.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let index = word * WORD + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                each(Some(index), self.doorbells[index].load(Ordering::Acquire));
            }
        }
        if self.missed.load(Ordering::Relaxed) && self.missed.swap(false, Ordering::AcqRel) {
            each(None, 0);
        }
    }

    /// Forgets what was written: the queues are gone.
    pub(super) fn clear(&self) {
        self.take(|_, _| {});
    }

    /// There is something to look at.
    pub(super) fn wake(&self) {
        // Pairs with `wait`: either this sees that the thread sleeps, or the thread sees the news.
        self.news.store(true, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst)
            && self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// This thread is the one to be woken.
    pub(super) fn attend(&self) {
        // Set once: a signal has one thread.
        let _ = self.thread.set(std::thread::current());
    }

    /// Whether there was something since the last call.
    pub(super) fn take_news(&self) -> bool {
        self.news.load(Ordering::Relaxed) && self.news.swap(false, Ordering::SeqCst)
    }

    /// Waits for news: for `busy` with open eyes, then asleep, until `deadline` at most.
    pub(super) fn wait(&self, busy: Duration, deadline: Option<Instant>) {
        let start = Instant::now();
        loop {
            if self.news.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return;
            }
            if now - start >= busy {
                break;
            }
            std::thread::yield_now();
        }
        self.sleeping.store(true, Ordering::SeqCst);
        if !self.news.load(Ordering::SeqCst) {
            match deadline {
                Some(deadline) => {
                    std::thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
                }
                None => std::thread::park(),
            }
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_last_value_of_each_doorbell_is_taken_once() {
        let signal = Signal::new(130);
        for (index, value) in [(0, 1), (129, 7), (64, 3), (0, 2)] {
            signal.ring(Some(index), value);
        }
        signal.ring(Some(130), 9);
        signal.ring(None, 9);
        let mut taken = Vec::new();
        signal.take(|index, value| taken.push((index, value)));
        assert_eq!(taken, [(Some(0), 2), (Some(64), 3), (Some(129), 7), (None, 0)]);
        signal.take(|_, _| panic!("nothing is left"));
        assert!(signal.take_news() && !signal.take_news());
    }

    #[test]
    fn a_ring_wakes_the_thread() {
        let signal = Arc::new(Signal::new(2));
        let other = Arc::clone(&signal);
        let thread = std::thread::spawn(move || {
            other.attend();
            let mut sum = 0;
            while sum < 1000 {
                other.wait(Duration::ZERO, None);
                if other.take_news() {
                    other.take(|_, value| sum = value);
                }
            }
        });
        for value in 1..=1000 {
            signal.ring(Some(0), value);
        }
        thread.join().unwrap();
    }
}
