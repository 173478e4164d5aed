//! How much of the processors others had during a run: programs that have nothing to do with it, and the machines beside a
//! virtual one.

use std::time::Instant;

/// Most of the two cores' time that others may have without being told of.
pub(super) const TOLERATED: f64 = 0.03;
/// Kernel's ticks per second in /proc, on every architecture Linux has (USER_HZ).
const TICKS: f64 = 100.0;

/// Processor time at a moment, in ticks.
pub(super) struct Before {
    when: Instant,
    busy: u64,
    own: u64,
    targets: Vec<u32>,
}

impl Before {
    /// Now, before a round with these processes as targets (others that take part are waited for before the round ends).
    pub(super) fn now(targets: Vec<u32>) -> Self {
        Self { when: Instant::now(), busy: busy(), own: own(&targets), targets }
    }

    /// What others had of two cores since, 0 to 1.
    pub(super) fn others(&self) -> f64 {
        let (busy, own) = (busy().saturating_sub(self.busy), own(&self.targets).saturating_sub(self.own));
        let all = self.when.elapsed().as_secs_f64() * TICKS * 2.0;
        (busy.saturating_sub(own) as f64 / all.max(1.0)).min(1.0)
    }
}

/// Time all processors were busy, or taken away (steal).
fn busy() -> u64 {
    busy_of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

fn busy_of(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests take is part of user.
    times
        .iter()
        .take(8)
        .enumerate()
        .filter(|&(field, _)| field != 3 && field != 4)
        .map(|(_, time)| time)
        .sum()
}

/// Time this process, its children that have ended, and the targets have used.
fn own(targets: &[u32]) -> u64 {
    let of = |pid: &str, with_children| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        used(&stat, with_children)
    };
    of("self", true) + targets.iter().map(|pid| of(&pid.to_string(), false)).sum::<u64>()
}

fn used(stat: &str, with_children: bool) -> u64 {
    // Behind the name, which may have anything in it: state, then numbers. utime is field 14 of all.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(if with_children { 4 } else { 2 }).filter_map(|time| time.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_proc() {
        assert_eq!(busy_of("cpu  100 10 200 5000 7 1 2 3 50 0\ncpu0 1 1\n"), 316);
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 1 2 3 4 500 60 7 8 20 0 1";
        assert_eq!((used(stat, false), used(stat, true)), (560, 575));
        assert_eq!(used("", true), 0);
        let before = Before::now(vec![std::process::id()]);
        assert!((0.0..=1.0).contains(&before.others()));
    }
}
