//! The clock that latencies are taken with.

use std::time::Instant;

/// What the kernel tells the time with.
const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// Nanoseconds since it was made. It is read once per batch of I/Os, which shows when a batch is one I/O of a microsecond: the
/// system's clock takes some 54 ns, the processor's counter 26.
pub(super) struct Clock(Source);

enum Source {
    /// The time stamp counter, where the kernel relies on it too, and when it began.
    Counter(quanta::Clock, u64),
    System(Instant),
}

impl Clock {
    /// Begins to count. The first one of a process may take some milliseconds to find out how fast the counter is.
    pub(super) fn start() -> Self {
        let reliable = std::fs::read_to_string(CLOCKSOURCE).is_ok_and(|name| name.trim() == "tsc");
        Self(match reliable {
            true => {
                let clock = quanta::Clock::new();
                let start = clock.raw();
                Source::Counter(clock, start)
            }
            false => Source::System(Instant::now()),
        })
    }

    /// Begins anew.
    pub(super) fn restart(&mut self) {
        match &mut self.0 {
            Source::Counter(clock, start) => *start = clock.raw(),
            Source::System(start) => *start = Instant::now(),
        }
    }

    /// Nanoseconds since the start.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        match &self.0 {
            Source::Counter(clock, start) => clock.delta_as_nanos(*start, clock.raw()),
            Source::System(start) => start.elapsed().as_nanos() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_sources_tell_the_time_that_passes() {
        let mut counter = Clock(Source::Counter(quanta::Clock::new(), 0));
        counter.restart();
        for mut clock in [Clock::start(), Clock(Source::System(Instant::now())), counter] {
            clock.restart();
            // The clock is asked within two looks at the system's.
            let outside = Instant::now();
            let before = clock.now();
            let inside = Instant::now();
            std::thread::sleep(Duration::from_millis(50));
            let least = inside.elapsed();
            let passed = Duration::from_nanos(clock.now() - before);
            let most = outside.elapsed();
            let tolerance = Duration::from_millis(1);
            assert!(
                passed + tolerance >= least && passed <= most + tolerance,
                "{least:?} {passed:?} {most:?}"
            );
        }
    }
}
