//! The measuring loop.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nvmf_core::spec::status::CommandKind;
use nvmf_core::transport::GroupShares;
use nvmf_core::{CommandError, IoBuf, IoQpair, Namespace};

use super::report::{Report, histogram};
use super::{Settings, Workload};
use crate::failure::Failure;
use crate::pattern::splitmix;
use crate::recovery::comes_back;

/// Longest sleep with `--interrupt`.
const MAX_SLEEP: Duration = Duration::from_millis(20);

/// Queue pairs of one thread, and what they share.
pub(super) type Group = (Vec<IoQpair>, GroupShares);

/// Runs each group of queue pairs on a thread of its own and adds up.
pub(super) fn run(groups: Vec<Group>, ns: &Namespace, settings: Settings) -> Result<Report, Failure> {
    let barrier = Barrier::new(groups.len());
    let results: Vec<Result<Report, Failure>> = thread::scope(|scope| {
        let workers: Vec<_> = groups
            .into_iter()
            .enumerate()
            .map(|(index, group)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let worker = Worker::new(group, ns, settings, index as u64);
                    // All begin together, or their times would not be the same time.
                    barrier.wait();
                    worker?.run()
                })
            })
            .collect();
        let panicked = || Err(Failure::failed("a measuring thread panicked"));
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect()
    });
    let mut total = Report::new(settings);
    for result in results {
        total.add(result?);
    }
    Ok(total)
}

/// One queue pair and what is outstanding on it.
struct Lane {
    qpair: IoQpair,
    /// When the I/O in each slot was submitted, ns since the start.
    submitted: Vec<u64>,
    /// Buffers of I/Os that are done, by slot.
    parked: Vec<IoBuf>,
    /// The next I/O of a sequential workload, counted in I/Os.
    cursor: u64,
    outstanding: usize,
}

struct Worker<'a> {
    lanes: Vec<Lane>,
    shares: GroupShares,
    ns: &'a Namespace,
    settings: Settings,
    random: u64,
    /// I/Os the range has room for.
    places: u64,
    blocks_per_io: u64,
    first_block: u64,
    latency: Histogram<u64>,
    report: Report,
    buffers: Vec<(usize, u64, IoBuf)>,
    /// There is another processor for whatever else an I/O takes: spinning keeps nobody from it.
    spare: bool,
    start: Instant,
}

impl<'a> Worker<'a> {
    fn new(
        (qpairs, shares): Group,
        ns: &'a Namespace,
        settings: Settings,
        index: u64,
    ) -> Result<Self, Failure> {
        let places = (settings.length / u64::from(settings.io_size)).max(1);
        let mut random = settings.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let depth = usize::from(settings.queue_depth);
        let lanes_in_all = u64::from(settings.qpairs) * u64::from(settings.threads);
        let mut buffers = Vec::with_capacity(depth * qpairs.len());
        let mut lanes = Vec::with_capacity(qpairs.len());
        for qpair in qpairs {
            for slot in 0..depth {
                let mut buf = qpair.alloc(settings.io_size as usize)?;
                if settings.reads < 100 {
                    // Not zeroes: a device may treat these in a way of its own.
                    for word in buf.chunks_exact_mut(8) {
                        word.copy_from_slice(&splitmix(&mut random).to_le_bytes());
                    }
                }
                buffers.push((lanes.len(), slot as u64, IoBuf::One(buf)));
            }
            // Sequential lanes start evenly spread over the range.
            let number = index * u64::from(settings.qpairs) + lanes.len() as u64;
            let cursor = u64::try_from(u128::from(places) * u128::from(number) / u128::from(lanes_in_all))
                .unwrap_or(0);
            let parked = (0..depth).map(|_| IoBuf::None).collect();
            lanes.push(Lane { qpair, submitted: vec![0; depth], parked, cursor, outstanding: 0 });
        }
        let block = u64::from(ns.block_size());
        Ok(Self {
            lanes,
            shares,
            ns,
            settings,
            random,
            places,
            blocks_per_io: u64::from(settings.io_size) / block,
            first_block: settings.offset / block,
            latency: histogram(),
            report: Report::new(settings),
            buffers,
            spare: thread::available_parallelism().is_ok_and(|processors| processors.get() > 1),
            start: Instant::now(),
        })
    }

    /// Nanoseconds since the start.
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Submits one I/O.
    fn submit(&mut self, lane: usize, slot: u64, buf: IoBuf, now: u64) -> Result<(), Failure> {
        let settings = &self.settings;
        let place = if settings.workload.is_random() {
            // The high half of the product is uniform over the places, without a division.
            ((u128::from(splitmix(&mut self.random)) * u128::from(self.places)) >> 64) as u64
        } else {
            let lane = &mut self.lanes[lane];
            let place = lane.cursor;
            lane.cursor = if place + 1 == self.places { 0 } else { place + 1 };
            place
        };
        let read = match settings.workload {
            Workload::Randrw => splitmix(&mut self.random) % 100 < u64::from(settings.reads),
            _ => settings.reads == 100,
        };
        let slba = self.first_block + place * self.blocks_per_io;
        let lane = &mut self.lanes[lane];
        lane.submitted[slot as usize] = now;
        lane.outstanding += 1;
        let submitted = match read {
            true => lane.qpair.read(self.ns, slba, buf, slot),
            false => lane.qpair.write(self.ns, slba, buf, slot),
        };
        submitted.map(drop).map_err(|error| Failure::from(error.error))
    }

    fn run(mut self) -> Result<Report, Failure> {
        self.start = Instant::now();
        let mut now = 0;
        for (lane, slot, buf) in std::mem::take(&mut self.buffers) {
            self.submit(lane, slot, buf, now)?;
        }
        for lane in &mut self.lanes {
            lane.qpair.flush();
        }
        let begin = self.settings.warmup.as_nanos() as u64;
        let end = begin + self.settings.time.as_nanos() as u64;
        let mut done: Vec<u64> = Vec::with_capacity(self.settings.queue_depth.into());
        let mut failed: Vec<(u64, CommandError)> = Vec::new();
        while self.lanes.iter().any(|lane| lane.outstanding > 0) {
            let mut found = false;
            self.shares.poll();
            for index in 0..self.lanes.len() {
                let Lane { qpair, parked, .. } = &mut self.lanes[index];
                // The parts of a completion go where they are needed: moving it as a whole would make the processor wait for what it
                // has just written.
                let count = qpair.process_completions(0, |completion| {
                    parked[completion.user_data as usize] = completion.buf;
                    if let Err(error) = completion.result {
                        failed.push((completion.user_data, error));
                    }
                    done.push(completion.user_data);
                })?;
                if count == 0 {
                    continue;
                }
                found = true;
                // One look at the clock for the whole batch.
                now = self.now();
                let measuring = now >= begin && now < end;
                for slot in done.drain(..) {
                    let lane = &mut self.lanes[index];
                    lane.outstanding -= 1;
                    let took = now - lane.submitted[slot as usize];
                    let buf = std::mem::take(&mut lane.parked[slot as usize]);
                    match failed.iter().find(|(of, _)| *of == slot) {
                        None if measuring => {
                            self.report.ios += 1;
                            self.latency.saturating_record(took);
                        }
                        None => {}
                        Some(&(_, error)) => self.failed(index, error)?,
                    }
                    if now < end {
                        self.submit(index, slot, buf, now)?;
                    }
                }
                failed.clear();
                self.lanes[index].qpair.flush();
            }
            if !found {
                if self.settings.interrupt {
                    // There is one queue pair per thread.
                    if let Some(lane) = self.lanes.first_mut() {
                        lane.qpair.wait(MAX_SLEEP)?;
                    }
                } else if self.spare {
                    std::hint::spin_loop();
                } else {
                    thread::yield_now();
                }
            }
        }
        self.report.seconds = self.settings.time.as_secs_f64();
        self.report.latency = self.latency;
        Ok(self.report)
    }

    /// Counts a failed I/O. A queue pair that is lost for good ends the measurement.
    fn failed(&mut self, lane: usize, error: CommandError) -> Result<(), Failure> {
        let qpair = &self.lanes[lane].qpair;
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
