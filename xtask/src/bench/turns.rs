//! Programs measured side by side: all of them are running, and all but one are stopped. A machine whose speed changes from second to
//! second, as virtual ones do, is then as fast for the one as for the other.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cell::Pair;
use super::child::{Captured, Running};

/// How long a turn lasts at most: short beside what changes a machine's speed, long beside what it takes to go on.
const TURN: Duration = Duration::from_millis(25);
/// How long one round of turns takes at most, for all others together: TCP sends again after 200 ms.
const OTHERS: Duration = Duration::from_millis(180);
/// How long they may need to start and to end, in turns.
const AROUND: Duration = Duration::from_secs(60);

/// An initiator that is running.
pub(super) struct Contender {
    pub(super) pair: Pair,
    program: Captured,
    ran: Duration,
}

impl Contender {
    /// Lets a program run for `lead`, and stops it.
    pub(super) fn start(pair: Pair, program: Captured, target: &mut Running, lead: Duration) -> Result<Self> {
        let mut contender = Self { pair, program, ran: Duration::ZERO };
        contender.turn(target, lead)?;
        contender.ran = Duration::ZERO;
        Ok(contender)
    }

    /// One turn, also for one that has ended: the others' share stays what it is.
    fn turn(&mut self, target: &mut Running, length: Duration) -> Result<()> {
        target.check()?;
        target.pause(false)?;
        let run = self.run(length);
        target.pause(true)?;
        run
    }

    fn run(&mut self, length: Duration) -> Result<()> {
        // Before, for the program may have this thread's processor from then on.
        let began = Instant::now();
        self.program.pause(false)?;
        std::thread::sleep(length);
        self.program.pause(true)?;
        self.ran += began.elapsed();
        Ok(())
    }

    /// What it printed, once it has ended.
    pub(super) fn finish(self) -> Result<String> {
        self.program.finish(Duration::ZERO)
    }
}

/// Lets the contenders run in turns until all have ended. Returns which part of the time each had: over `seconds`, what is counted is that
/// part of what would have been. `with_target` calls back with who answers a pair.
pub(super) fn take(
    contenders: &mut [Contender],
    seconds: u64,
    mut with_target: impl FnMut(Pair, &mut dyn FnMut(&mut Running) -> Result<()>) -> Result<()>,
) -> Result<Vec<f64>> {
    let began = Instant::now();
    let limit = Duration::from_secs(seconds) + AROUND;
    let length = turn_of(contenders.len());
    for cycle in 0.. {
        let mut running = false;
        for one in &mut *contenders {
            running |= !one.program.has_ended()?;
        }
        if !running {
            break;
        }
        if began.elapsed() > limit {
            bail!("not all programs have ended within {} s", limit.as_secs());
        }
        for index in order(cycle, contenders.len()) {
            let contender = &mut contenders[index];
            with_target(contender.pair, &mut |target| contender.turn(target, length))?;
        }
    }
    let all = began.elapsed().as_secs_f64();
    Ok(contenders.iter().map(|one| one.ran.as_secs_f64() / all).collect())
}

/// How long a turn lasts among so many.
fn turn_of(contenders: usize) -> Duration {
    TURN.min(OTHERS / contenders.saturating_sub(1).max(1) as u32)
}

/// Each comes first as often as the others, and after each of its neighbours.
fn order(cycle: usize, len: usize) -> impl Iterator<Item = usize> {
    (0..len).map(move |place| {
        let place = (cycle / 2 + place) % len;
        if cycle.is_multiple_of(2) { place } else { len - 1 - place }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_have_shorter_turns() {
        assert_eq!([1, 2, 8].map(turn_of), [TURN; 3]);
        assert_eq!(turn_of(10), Duration::from_millis(20));
    }

    #[test]
    fn orders() {
        for len in 1..6 {
            let mut first = vec![0; len];
            for cycle in 0..2 * len {
                let mut order: Vec<usize> = order(cycle, len).collect();
                first[order[0]] += 1;
                order.sort_unstable();
                assert_eq!(order, (0..len).collect::<Vec<_>>());
            }
            assert_eq!(first, vec![2; len]);
        }
    }
}
