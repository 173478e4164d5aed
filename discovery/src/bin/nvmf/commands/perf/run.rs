//! The measuring loop.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nvmf_core::spec::status::CommandKind;
use nvmf_core::transport::GroupShares;
use nvmf_core::{CommandError, IoBuf, IoQpair, Namespace};

use super::clock::Clock;
use super::lanes::Lanes;
use super::report::{Report, histogram};
use super::{Settings, Workload, cpus};
use crate::failure::Failure;
use crate::pattern::splitmix;
use crate::progress;
use crate::recovery::comes_back;
use crate::units;

/// Longest sleep with `--interrupt`.
const MAX_SLEEP: Duration = Duration::from_millis(20);
/// How often the live line is written anew.
const LIVE: Duration = Duration::from_millis(500);

/// The range of one namespace that is measured.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    /// The namespace.
    pub(crate) ns: Namespace,
    /// First block.
    pub(crate) first_block: u64,
    /// I/Os there is room for.
    pub(crate) places: u64,
}

impl Range {
    /// All of a namespace.
    pub(crate) fn all(ns: &Namespace, io_size: u32) -> Self {
        Self { first_block: 0, places: ns.size() / u64::from(io_size), ns: ns.clone() }
    }
}

/// A queue pair and the number of the range it is for.
pub(super) type Member = (usize, IoQpair);

/// The queue pairs of one thread, and what they share.
pub(super) struct Group {
    pub(super) members: Vec<Member>,
    pub(super) shares: GroupShares,
}

/// Whether this machine has one processor: whoever spins on it keeps from it whatever else an I/O takes.
fn has_one_processor() -> bool {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
    online.is_ok_and(|list| list.trim().parse::<u32>().is_ok())
}

/// Runs each group of queue pairs on a thread of its own and adds up.
pub(super) fn run(groups: Vec<Group>, ranges: &[Range], settings: &Settings) -> Result<Report, Failure> {
    let barrier = Barrier::new(groups.len());
    let counts: Vec<Count> = groups.iter().map(|_| Count::default()).collect();
    let over = AtomicBool::new(false);
    let live = progress::live("perf");
    let results: Vec<Result<Report, Failure>> = thread::scope(|scope| {
        let watcher = live.as_ref().map(|live| {
            let (counts, over) = (&counts, &over);
            scope.spawn(move || {
                let (mut last, mut then) = (0, Instant::now());
                while !over.load(Ordering::Relaxed) {
                    thread::park_timeout(LIVE);
                    let ios = counts.iter().map(|count| count.0.load(Ordering::Relaxed)).sum::<u64>();
                    let rate = (ios - last) as f64 / then.elapsed().as_secs_f64();
                    (last, then) = (ios, Instant::now());
                    let bytes =
                        units::rate((rate * f64::from(settings.io_size)) as u64, Duration::from_secs(1));
                    live.set_message(format!("{} IOPS, {bytes}", units::count(rate as u64)));
                }
                live.finish_and_clear();
            })
        });
        let watched = watcher.is_some();
        let workers: Vec<_> = groups
            .into_iter()
            .zip(&counts)
            .enumerate()
            .map(|(index, (group, count))| {
                let barrier = &barrier;
                // A line that nobody reads need not be written.
                let count = watched.then_some(&count.0);
                scope.spawn(move || {
                    let pinned = match settings.cpus.get(index) {
                        Some(&cpu) => cpus::pin(cpu),
                        None => Ok(()),
                    };
                    // Memory is touched first by the thread that uses it.
                    let worker = pinned.and_then(|()| Worker::new(group, ranges, settings, index, count));
                    // All begin together, or their times would not be the same time.
                    barrier.wait();
                    worker?.run()
                })
            })
            .collect();
        let panicked = || Err(Failure::failed("a measuring thread panicked"));
        let results =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect();
        over.store(true, Ordering::Relaxed);
        if let Some(watcher) = watcher {
            watcher.thread().unpark();
        }
        results
    });
    let mut total = Report::new(settings.clone(), ranges.len());
    for result in results {
        total.add(result?);
    }
    Ok(total)
}

/// I/Os a thread has completed, alone in its cache line.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicU64);

/// What is known of one queue pair, and what is outstanding on it.
struct Lane {
    range: usize,
    /// The next I/O of a sequential workload, counted in I/Os.
    cursor: u64,
    outstanding: usize,
    /// I/Os that may still be begun.
    left: u64,
    /// I/Os that succeeded within the measured time.
    ios: u64,
}

struct Worker<'a> {
    lanes: Lanes,
    shares: GroupShares,
    /// An idle poll lets others have the processor.
    yields: bool,
    state: Vec<Lane>,
    ranges: &'a [Range],
    settings: &'a Settings,
    depth: usize,
    blocks_per_io: Vec<u64>,
    random: u64,
    /// When the I/O in each slot was submitted, ns since the start. Lane `i` has the slots from `i` times the depth on.
    submitted: Vec<u64>,
    /// Buffers of the first I/O in each slot.
    bufs: Vec<IoBuf>,
    latency: Histogram<u64>,
    report: Report,
    outstanding: usize,
    count: Option<&'a AtomicU64>,
    completed: u64,
    clock: Clock,
}

impl<'a> Worker<'a> {
    fn new(
        Group { members, shares }: Group,
        ranges: &'a [Range],
        settings: &'a Settings,
        index: usize,
        count: Option<&'a AtomicU64>,
    ) -> Result<Self, Failure> {
        let mut random = settings.seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let depth = usize::from(settings.queue_depth);
        // Sequential lanes of one namespace start evenly spread over its range.
        let per_range = u64::from(settings.qpairs) * u64::from(settings.threads);
        let mut numbers = vec![index as u64 * u64::from(settings.qpairs); ranges.len()];
        let mut bufs = Vec::with_capacity(depth * members.len());
        let mut state = Vec::with_capacity(members.len());
        let mut qpairs = Vec::with_capacity(members.len());
        for (range, qpair) in members {
            for _ in 0..depth {
                let mut buf = qpair.alloc(settings.io_size as usize)?;
                if settings.reads < 100 {
                    // Not zeroes: a device may treat these in a way of its own.
                    for word in buf.chunks_exact_mut(8) {
                        word.copy_from_slice(&splitmix(&mut random).to_le_bytes());
                    }
                }
                bufs.push(IoBuf::One(buf));
            }
            let (places, number) = (ranges[range].places, numbers[range]);
            numbers[range] += 1;
            let cursor = u128::from(places) * u128::from(number) / u128::from(per_range.max(1));
            let cursor = u64::try_from(cursor).unwrap_or(0);
            let left = settings.number_ios.unwrap_or(u64::MAX);
            state.push(Lane { range, cursor, outstanding: 0, left, ios: 0 });
            qpairs.push(qpair);
        }
        Ok(Self {
            lanes: Lanes::new(qpairs, settings.interrupt),
            shares,
            yields: has_one_processor(),
            blocks_per_io: ranges
                .iter()
                .map(|range| u64::from(settings.io_size) / u64::from(range.ns.block_size()))
                .collect(),
            submitted: vec![0; bufs.len()],
            state,
            ranges,
            settings,
            depth,
            random,
            bufs,
            latency: histogram(),
            report: Report::new(settings.clone(), ranges.len()),
            outstanding: 0,
            count,
            completed: 0,
            clock: Clock::start(),
        })
    }

    /// Submits one I/O in `slot`.
    #[inline]
    fn submit(&mut self, lane: usize, slot: usize, buf: IoBuf, now: u64) -> Result<(), Failure> {
        let state = &mut self.state[lane];
        if state.left == 0 {
            return Ok(());
        }
        state.left -= 1;
        let range = &self.ranges[state.range];
        let place = if self.settings.workload.is_random() {
            // The high half of the product is uniform over the places, without a division.
            ((u128::from(splitmix(&mut self.random)) * u128::from(range.places)) >> 64) as u64
        } else {
            let place = state.cursor;
            state.cursor = if place + 1 == range.places { 0 } else { place + 1 };
            place
        };
        let read = match self.settings.workload {
            Workload::Rw | Workload::Randrw => {
                splitmix(&mut self.random) % 100 < u64::from(self.settings.reads)
            }
            _ => self.settings.reads == 100,
        };
        let slba = range.first_block + place * self.blocks_per_io[state.range];
        state.outstanding += 1;
        self.outstanding += 1;
        self.submitted[slot] = now;
        let qpair = self.lanes.qpair(lane);
        let submitted = match read {
            true => qpair.read(&range.ns, slba, buf, slot as u64),
            false => qpair.write(&range.ns, slba, buf, slot as u64),
        };
        submitted.map(drop).map_err(|error| Failure::from(error.error))
    }

    fn run(mut self) -> Result<Report, Failure> {
        self.clock.restart();
        let mut bufs = std::mem::take(&mut self.bufs).into_iter();
        let slots = bufs.len();
        for lane in 0..self.state.len() {
            for (slot, buf) in (lane * self.depth..).zip(bufs.by_ref().take(self.depth)) {
                self.submit(lane, slot, buf, 0)?;
            }
            self.lanes.flush(lane);
        }
        let begin = self.settings.warmup.as_nanos() as u64;
        let end = begin + self.settings.time.as_nanos() as u64;
        // What one poll has found is a small part of all mostly, and stays in the processor's nearest cache.
        let mut done: Vec<(u64, IoBuf)> = Vec::with_capacity(slots);
        // Latencies, and how many I/Os in a row had each: those submitted together are often found together.
        let mut latencies: Vec<(u64, u64)> = Vec::with_capacity(slots);
        let mut failed: Vec<(u64, CommandError)> = Vec::new();
        while self.outstanding > 0 {
            // The parts of a completion go where they are needed: moving it as a whole would make the processor wait for what it
            // has just written.
            self.shares.poll();
            self.lanes.poll(self.settings.max_completions, |completion| {
                if let Err(error) = completion.result {
                    failed.push((completion.user_data, error));
                }
                done.push((completion.user_data, completion.buf));
            })?;
            if done.is_empty() {
                if self.settings.interrupt {
                    self.lanes.wait(MAX_SLEEP)?;
                } else if self.yields {
                    thread::yield_now();
                }
                continue;
            }
            // One look at the clock for the whole batch.
            let now = self.clock.now();
            let measuring = now >= begin && now < end;
            let mut flush = usize::MAX;
            for (slot, buf) in done.drain(..) {
                let lane = if self.state.len() == 1 { 0 } else { slot as usize / self.depth };
                if lane != flush && flush != usize::MAX {
                    self.lanes.flush(flush);
                }
                flush = lane;
                self.state[lane].outstanding -= 1;
                self.outstanding -= 1;
                self.completed += 1;
                match failed.iter().find(|(of, _)| *of == slot) {
                    None if measuring => {
                        self.state[lane].ios += 1;
                        // The counters of two processors may differ a little, and the thread may have moved.
                        let latency = now.saturating_sub(self.submitted[slot as usize]);
                        match latencies.last_mut() {
                            Some((last, count)) if *last == latency => *count += 1,
                            _ => latencies.push((latency, 1)),
                        }
                    }
                    None => {}
                    Some(&(_, error)) => self.failed(lane, error)?,
                }
                if now < end {
                    self.submit(lane, slot as usize, buf, now)?;
                }
            }
            failed.clear();
            self.lanes.flush(flush);
            // While the next are on their way.
            for (latency, count) in latencies.drain(..) {
                self.latency.saturating_record_n(latency, count);
            }
            if let Some(count) = self.count {
                count.store(self.completed, Ordering::Relaxed);
            }
        }
        let ran = Duration::from_nanos(self.clock.now()).saturating_sub(self.settings.warmup);
        self.report.seconds = self.settings.time.min(ran).as_secs_f64();
        self.report.latency = self.latency;
        for lane in &self.state {
            self.report.ios += lane.ios;
            self.report.per_range[lane.range] += lane.ios;
        }
        self.report.stats = self.lanes.stats();
        Ok(self.report)
    }

    /// Counts a failed I/O. A queue pair that is lost for good ends the measurement.
    #[cold]
    fn failed(&mut self, lane: usize, error: CommandError) -> Result<(), Failure> {
        let qpair = self.lanes.qpair(lane);
        let what = match error {
            CommandError::Status(status) => status.describe(CommandKind::Nvm).to_string(),
            _ if comes_back(qpair, error) => error.to_string(),
            _ => {
                return Err(match qpair.failure() {
                    Some(failure) => Failure::from(failure.clone()),
                    None => Failure::unreachable(error),
                });
            }
        };
        self.report.errors += 1;
        self.report.first_error.get_or_insert(what);
        Ok(())
    }
}
