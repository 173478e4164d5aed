//! How far from this core whoever reads the commands is.
//!
//! A command's place in the submission ring was last read by the controller. Where that is a program on another core, as with vfio-user, its
//! cache has the line, and to write there means to get it back, which takes four times as long from some cores as from others. Written past
//! the caches, it is sent to memory without being fetched; the controller then reads it from there, which takes longer than from a near
//! cache. So near ones get commands through the cache, and far ones past it.
//!
//! A machine's cores, or what a guest takes for them, change places. So it is measured now and then, on a place that was not fetched before.

use std::time::{Duration, Instant};

use nvmf_core::dma::{SharedMemory, device_write_barrier};

/// Commands between two measurements: each makes the core wait for its stores.
const EVERY: u16 = 4096;
/// To get a line back takes longer: the controller is far.
const FAR: Duration = Duration::from_nanos(100);
/// So many measurements more of the one kind than of the other change the mind.
const MEASUREMENTS: u8 = 4;

/// What is known of it. Near, until measured.
#[derive(Debug)]
pub(super) struct Distance {
    /// Commands until the next measurement.
    left: u16,
    /// Measurements that say far, less those that say near.
    votes: u8,
    far: bool,
}

impl Default for Distance {
    fn default() -> Self {
        Self { left: EVERY, votes: 0, far: false }
    }
}

impl Distance {
    #[inline]
    pub(super) fn is_far(&self) -> bool {
        self.far
    }

    /// Counts a command. Returns how many come before the next measurement: with none, [`Distance::measure`].
    #[inline]
    pub(super) fn count(&mut self) -> u16 {
        self.left -= 1;
        self.left
    }

    /// Writes the word at `at`, as it is about to be written anyway, and takes the time.
    #[cold]
    pub(super) fn measure(&mut self, memory: &SharedMemory, at: usize, word: u64) {
        // What was written before is no part of it.
        device_write_barrier();
        let times = [Instant::now(), Instant::now()];
        memory.write_u64(at, word);
        device_write_barrier();
        let clock = times[1] - times[0];
        self.note(times[1].elapsed().saturating_sub(clock));
    }

    fn note(&mut self, took: Duration) {
        self.left = EVERY;
        self.votes =
            if took > FAR { (self.votes + 1).min(MEASUREMENTS) } else { self.votes.saturating_sub(1) };
        match self.votes {
            0 => self.far = false,
            MEASUREMENTS => self.far = true,
            _ => {}
        }
    }

    /// One that is far and is not measured for the time being.
    #[cfg(test)]
    pub(super) fn far() -> Self {
        Self { left: u16::MAX, votes: MEASUREMENTS, far: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_measurements_change_the_mind() {
        let (near, far) = (Duration::from_nanos(40), Duration::from_nanos(140));
        let mut distance = Distance::default();
        let mut after = |took: Duration, times: u8| {
            for _ in 0..times {
                distance.note(took);
            }
            distance.is_far()
        };
        assert!(!after(near, 9) && !after(far, MEASUREMENTS - 1), "interrupts take their time too");
        assert!(after(far, 1));
        assert!(after(near, MEASUREMENTS - 1) && after(far, 9));
        assert!(!after(near, MEASUREMENTS));
    }

    #[test]
    fn it_is_measured_now_and_then() {
        let memory = SharedMemory::allocate(64).unwrap();
        let mut distance = Distance::default();
        for round in 1..3 {
            assert_eq!((1..EVERY).find(|_| distance.count() == 0), None);
            assert_eq!(distance.count(), 0);
            distance.measure(&memory, 8, round);
            assert_eq!(memory.read_u64(8), round, "it was written");
        }
    }
}
