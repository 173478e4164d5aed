//! Random I/O over TCP while the connections are harmed at random: every I/O ends exactly once, every read can be explained, nothing
//! leaks, and no call on the I/O thread blocks.
//!
//! The seed fixes the I/Os and the harm, not how they fall together: threads and the kernel decide that.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::spec::Status;
use nvmf_core::{CommandError, Completion, Controller, ControllerOptions, Driver, IoBuf, IoCommand, IoQpair};
use nvmf_core::{IoQpairOptions, Namespace as Ns, TimeoutPolicy, TransportId};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

use crate::history::{History, fill_version};
use crate::proxy::{Direction, FaultProxy, Harm};
use crate::rng::Rng;
use crate::workload::{copy_in, copy_out};

const NQN: &str = "nqn.2024-01.com.example:soak";
/// Blocks a worker has to itself.
const BLOCKS: u64 = 2048;
const BLOCK: usize = 512;
/// Most blocks of one I/O: more than one PDU's worth of data, and less than MDTS.
const LARGEST: u64 = 48;
const DEPTH: usize = 24;
/// Deadline of a command, and of connecting.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the target may still execute what it received on a connection that is gone.
const SETTLE: Duration = Duration::from_secs(5);
/// How much resident memory may grow between the two looks, KiB: buffers of connections that are being taken down, the allocator's slack.
const GROWTH: u64 = 32 * 1024;
/// Calls on the I/O thread that sleep for longer are counted.
pub const SLOW: Duration = Duration::from_millis(2);
/// How long a controller with a recovery policy may stay away.
const LOSS: Duration = Duration::from_secs(20);
/// How long a worker may go without a single success before the soak is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug)]
pub struct Soak {
    /// How long.
    pub time: Duration,
    /// Seed of I/Os and harm.
    pub seed: u64,
    /// Workers: threads with a controller and a queue pair each. Every second one uses digests, and only its bytes are damaged.
    pub workers: usize,
    /// Longest time between two acts of harm to one worker's connections.
    pub pace: Duration,
}

/// What happened.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// I/Os accepted.
    pub submitted: u64,
    /// I/Os that succeeded.
    pub succeeded: u64,
    /// I/Os that ended without an answer, or with a transport error.
    pub lost: u64,
    /// Blocks read and explained.
    pub blocks_read: u64,
    /// Writes whose fate was not known.
    pub unknown_writes: u64,
    /// Blocks whose contents a read had to tell.
    pub resolved: u64,
    /// Times a worker attached.
    pub attached: u64,
    /// Attempts to attach that failed.
    pub refused: u64,
    /// Of the times a worker attached, those with a recovery policy.
    pub persistent: u64,
    /// Times a queue pair with a recovery policy was connected again.
    pub reconnected: u64,
    /// I/Os that ended without having been sent, or were refused, while the controller was away.
    pub not_sent: u64,
    /// Acts of harm.
    pub harm: u64,
    /// The longest call of `process_completions`.
    pub longest_poll: Duration,
    /// The longest call of `submit`.
    pub longest_submit: Duration,
    /// The most time of the processor that a call took.
    pub longest_work: Duration,
    /// The longest that a call waited for a processor others had.
    pub longest_preempted: Duration,
    /// Calls of both that slept, and for longer than [`SLOW`] neither worked nor waited for a processor.
    pub slept: u64,
    /// The longest of these.
    pub longest_sleep: Duration,
    /// Open files at the start and at the end.
    pub files: [usize; 2],
    /// Resident memory, KiB, after a quarter of the time and when it was over.
    pub resident: [u64; 2],
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.submitted += other.submitted;
        self.succeeded += other.succeeded;
        self.lost += other.lost;
        self.blocks_read += other.blocks_read;
        self.unknown_writes += other.unknown_writes;
        self.resolved += other.resolved;
        self.attached += other.attached;
        self.refused += other.refused;
        self.persistent += other.persistent;
        self.reconnected += other.reconnected;
        self.not_sent += other.not_sent;
        self.harm += other.harm;
        self.longest_poll = self.longest_poll.max(other.longest_poll);
        self.longest_submit = self.longest_submit.max(other.longest_submit);
        self.longest_work = self.longest_work.max(other.longest_work);
        self.longest_preempted = self.longest_preempted.max(other.longest_preempted);
        self.slept += other.slept;
        self.longest_sleep = self.longest_sleep.max(other.longest_sleep);
    }
}

impl Soak {
    /// Runs it against a target of its own.
    ///
    /// # Errors
    /// When an I/O ends twice or never, a read cannot be explained, something leaks, or nothing works for a minute.
    pub fn run(&self) -> Result<Report> {
        let mut subsystem = SubsystemBuilder::new(NQN);
        for _ in 0..self.workers {
            subsystem =
                subsystem.namespace(Namespace::memory(BLOCKS * BLOCK as u64).block_size(BLOCK as u32));
        }
        let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?;
        let upstream = target.tcp_addrs()[0];
        let mut report = Report::default();
        report.files[0] = open_files().len();
        let stop = AtomicBool::new(false);
        let outcomes: Result<Vec<Result<Report>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.workers)
                .map(|index| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let outcome = self.worker(index, upstream, stop);
                        // One verdict is enough.
                        if outcome.is_err() {
                            stop.store(true, Ordering::SeqCst);
                        }
                        outcome
                    })
                })
                .collect();
            // What is allocated once is no leak: the first sample comes late.
            for (part, sample) in [(self.time / 4, 0), (self.time * 3 / 4, 1)] {
                sleep_unless(part, &stop);
                report.resident[sample] = resident()?;
            }
            Ok(workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
                .collect::<Vec<_>>())
        });
        let outcomes = outcomes?;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            report.add(&outcome.with_context(|| format!("worker {index}, seed {}", self.seed))?);
        }
        self.settle(&target, &mut report)?;
        let [first, last] = report.resident;
        ensure!(last < first + GROWTH, "resident memory grew from {first} KiB to {last} KiB");
        Ok(report)
    }

    /// Everything is given back once the target has noticed that everybody left.
    fn settle(&self, target: &Loopback, report: &mut Report) -> Result<()> {
        target.disconnect_all();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let open = open_files();
            report.files[1] = open.len();
            if open.len() <= report.files[0] && target.controllers(NQN) == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} files are open, {} were at the start: {}; the target still has {} controllers",
                open.len(),
                report.files[0],
                open.join(", "),
                target.controllers(NQN)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn worker(&self, index: usize, upstream: SocketAddr, stop: &AtomicBool) -> Result<Report> {
        let proxy = FaultProxy::start(upstream)?;
        let digests = index % 2 == 1;
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let harm = scope.spawn(|| self.harm(&proxy, index, digests, &ended));
            let mut worker = Worker::new(
                self.seed ^ (index as u64 + 1) << 32,
                index as u32 + 1,
                proxy.address(),
                digests,
            )?;
            let outcome = worker.run(Instant::now() + self.time, stop);
            ended.store(true, Ordering::SeqCst);
            let acts = harm.join().map_err(|_| anyhow::anyhow!("the thread that does harm panicked"))?;
            outcome?;
            proxy.refuse(false);
            worker.finish()?;
            worker.report.harm = acts;
            Ok(worker.report)
        })
    }

    /// Harms the connections until the worker is done; how often.
    fn harm(&self, proxy: &FaultProxy, index: usize, digests: bool, ended: &AtomicBool) -> u64 {
        let mut rng = Rng::new(self.seed.rotate_left(17) ^ (index as u64 + 77));
        let mut acts = 0;
        let mut next = Instant::now();
        while !ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
            if Instant::now() < next {
                continue;
            }
            let pace = u64::try_from(self.pace.as_millis()).unwrap_or(u64::MAX).max(1);
            next = Instant::now() + Duration::from_millis(1 + rng.below(pace));
            let direction = if rng.below(2) == 0 { Direction::ToTarget } else { Direction::ToHost };
            let harm = match rng.below(if digests { 9 } else { 6 }) {
                0 => Harm::Cut,
                1 => Harm::Reset,
                2 => Harm::HalfClose,
                3 => Harm::Stall,
                4 => Harm::Delay(Duration::from_millis(1 + rng.below(300))),
                5 => {
                    proxy.refuse(true);
                    proxy.strike(rng.next_u64(), direction, Harm::Cut);
                    std::thread::sleep(Duration::from_millis(rng.below(200)));
                    proxy.refuse(false);
                    acts += 1;
                    continue;
                }
                6 => Harm::Swallow(1 + rng.below(100)),
                _ => Harm::Flip(1 << rng.below(8)),
            };
            acts += u64::from(proxy.strike(rng.next_u64(), direction, harm));
        }
        acts
    }
}

struct Io {
    slba: u64,
    blocks: u64,
    /// What was written: a version, 0 for zeroes. None for a read or a flush.
    written: Option<u64>,
    read: bool,
    submitted: Instant,
}

struct Worker {
    rng: Rng,
    nsid: u32,
    driver: Driver,
    trid: TransportId,
    options: ControllerOptions,
    history: History,
    version: u64,
    id: u64,
    report: Report,
}

impl Worker {
    fn new(seed: u64, nsid: u32, address: SocketAddr, digests: bool) -> Result<Self> {
        let mut options = ControllerOptions::default();
        options.connect_timeout = DEADLINE;
        options.admin_timeout = DEADLINE;
        options.io_timeout = Some(DEADLINE);
        options.attach_timeout = DEADLINE * 3;
        options.keep_alive_timeout = DEADLINE;
        (options.header_digest, options.data_digest) = (digests, digests);
        Ok(Self {
            rng: Rng::new(seed),
            nsid,
            driver: Driver::builder().transport(TcpTransport::new()).build(),
            trid: TransportId::tcp_socket(address)?.with_subnqn(NQN.parse()?),
            options,
            history: History::new(BLOCK, SETTLE),
            version: 0,
            id: 0,
            report: Report::default(),
        })
    }

    /// Attaches and does I/O, again and again: as often as not until the connection is lost, else with a recovery policy and for some
    /// time.
    fn run(&mut self, until: Instant, stop: &AtomicBool) -> Result<()> {
        let mut last_success = Instant::now();
        while Instant::now() < until && !stop.load(Ordering::SeqCst) {
            let before = self.report.succeeded;
            let (options, life) = self.draw();
            if let Some((controller, mut qpair, ns)) = self.attach(&options)? {
                let end = life.map_or(until, |life| until.min(Instant::now() + life));
                self.report.persistent += u64::from(life.is_some());
                let outcome = self.io(&mut qpair, &ns, life.is_some(), end, stop);
                drop(qpair);
                let began = Instant::now();
                let _ = controller.detach();
                outcome?;
                let limit = DEADLINE * 5;
                ensure!(began.elapsed() < limit, "detaching took {:?}", began.elapsed());
            }
            let left = self.driver.pool().stats().outstanding;
            ensure!(left == 0, "{left} buffers did not come back");
            if self.report.succeeded > before {
                last_success = Instant::now();
            }
            ensure!(last_success.elapsed() < STUCK, "nothing succeeded for {STUCK:?}");
        }
        Ok(())
    }

    /// How the next controller is to be treated, and for how long if it is connected again when it is lost.
    fn draw(&mut self) -> (ControllerOptions, Option<Duration>) {
        let mut options = self.options.clone();
        if self.rng.below(2) == 0 {
            return (options, None);
        }
        options.reconnect_delay = Some(Duration::from_millis(5 + self.rng.below(200)));
        options.ctrl_loss_timeout = Some(LOSS);
        options.fast_io_fail_timeout =
            (self.rng.below(2) == 0).then(|| Duration::from_millis(self.rng.below(800)));
        options.retry_after_reconnect = self.rng.below(4) as u8;
        options.timeout_policy = match self.rng.below(3) {
            0 => TimeoutPolicy::Disconnect,
            1 => TimeoutPolicy::Abort,
            _ => TimeoutPolicy::AbortThenReset,
        };
        (options, Some(Duration::from_millis(1000 + self.rng.below(20_000))))
    }

    fn attach(&mut self, options: &ControllerOptions) -> Result<Option<(Controller, IoQpair, Ns)>> {
        let limit = self.options.attach_timeout + DEADLINE * 4;
        let began = Instant::now();
        let attached = self.driver.connect(&self.trid, options).and_then(|controller| {
            match controller.alloc_io_qpair(&IoQpairOptions::default()) {
                Ok(qpair) => Ok((controller, qpair)),
                Err(error) => {
                    let _ = controller.detach();
                    Err(error)
                }
            }
        });
        ensure!(began.elapsed() < limit, "attaching took {:?}", began.elapsed());
        match attached {
            Ok((controller, qpair)) => {
                self.report.attached += 1;
                // Its description may have been lost: then there is nothing to do I/O on.
                let ns = controller.namespace(self.nsid);
                ensure!(ns.is_some() || controller.is_failed(), "namespace {} is missing", self.nsid);
                Ok(ns.map(|ns| (controller, qpair, ns)))
            }
            Err(_) => {
                self.report.refused += 1;
                std::thread::sleep(Duration::from_millis(5));
                Ok(None)
            }
        }
    }

    /// I/O until `until`, or until the connection is lost for good: `persistent` ones come back.
    fn io(
        &mut self,
        qpair: &mut IoQpair,
        ns: &Ns,
        persistent: bool,
        until: Instant,
        stop: &AtomicBool,
    ) -> Result<()> {
        let mut pending: HashMap<u64, Io> = HashMap::new();
        let mut lost = false;
        let mut connected = true;
        // What is held waits for the controller until that is given up.
        let limit = if persistent { LOSS + DEADLINE * 5 } else { DEADLINE * 5 };
        let mut progress = Instant::now();
        let watch = Watch::new()?;
        loop {
            let over = lost || Instant::now() >= until || stop.load(Ordering::SeqCst);
            while !over && pending.len() < DEPTH {
                if !self.submit(qpair, ns, &mut pending, &watch)? {
                    break;
                }
            }
            if pending.is_empty() {
                if over {
                    break;
                }
                lost |= !persistent && !qpair.is_connected();
            }
            let before = std::mem::replace(&mut connected, qpair.is_connected());
            self.report.reconnected += u64::from(connected && !before);
            let mut done = VecDeque::new();
            let began = watch.look()?;
            let polled = qpair.process_completions(0, |completion| done.push_back(completion));
            let took = self.called(&watch, began)?;
            self.report.longest_poll = self.report.longest_poll.max(took);
            if done.is_empty() {
                if polled.is_ok() {
                    let _ = qpair.wait(Duration::from_millis(5));
                    watch.has_slept()?;
                }
            } else {
                progress = Instant::now();
            }
            for completion in done {
                let id = completion.user_data;
                let io = pending.remove(&id).with_context(|| format!("I/O {id} ended twice"))?;
                self.judge(&completion, &io)
                    .with_context(|| format!("I/O {id} at block {} + {}", io.slba, io.blocks))?;
            }
            if let Err(error) = polled {
                lost = true;
                ensure!(!persistent || !qpair.is_reconnecting(), "given up although it comes back: {error}");
                ensure!(pending.is_empty(), "{} I/Os never ended: {error}", pending.len());
            }
            ensure!(
                pending.is_empty() || progress.elapsed() < limit,
                "{} I/Os do not end within {limit:?}",
                pending.len()
            );
        }
        ensure!(qpair.outstanding() == 0, "{} operations are left over", qpair.outstanding());
        Ok(())
    }

    /// A call on the I/O thread: what it did with its time. Returns how long it took.
    fn called(&mut self, watch: &Watch, began: Look) -> Result<Duration> {
        let ended = watch.look()?;
        let took = ended.at - began.at;
        let work = ended.work.saturating_sub(began.work);
        let preempted = ended.preempted.saturating_sub(began.preempted);
        let report = &mut self.report;
        report.longest_work = report.longest_work.max(work);
        report.longest_preempted = report.longest_preempted.max(preempted);
        // The rest is sleep, or else interrupts, and a hypervisor with other guests.
        let rest = took.saturating_sub(work + preempted);
        if rest > SLOW && watch.has_slept()? {
            report.longest_sleep = report.longest_sleep.max(rest);
            report.slept += 1;
        }
        Ok(took)
    }

    /// False when there is no room now.
    fn submit(
        &mut self,
        qpair: &mut IoQpair,
        ns: &Ns,
        pending: &mut HashMap<u64, Io>,
        watch: &Watch,
    ) -> Result<bool> {
        let largest = if self.rng.below(8) == 0 { LARGEST } else { 8 };
        let blocks = 1 + self.rng.below(largest);
        let slba = self.rng.below(BLOCKS - blocks + 1);
        // What overlaps has no defined order.
        if pending.values().any(|io| io.slba < slba + blocks && slba < io.slba + io.blocks) {
            return Ok(false);
        }
        let len = usize::try_from(blocks)? * BLOCK;
        let mut io = Io { slba, blocks, written: None, read: false, submitted: Instant::now() };
        let command = match self.rng.below(20) {
            0 => {
                io.blocks = 0;
                IoCommand::flush(ns)
            }
            1 => {
                io.written = Some(0);
                IoCommand::write_zeroes(ns, slba, blocks)
            }
            2..11 => {
                self.version += 1;
                io.written = Some(self.version);
                let mut data = vec![0; len];
                for (lba, block) in (slba..).zip(data.chunks_mut(BLOCK)) {
                    fill_version(block, lba, self.version);
                }
                let mut buf = IoBuf::from(qpair.alloc(len)?);
                copy_in(&mut buf, &data);
                IoCommand::write(ns, slba, buf)
            }
            _ => {
                io.read = true;
                IoCommand::read(ns, slba, qpair.alloc(len)?)
            }
        };
        self.id += 1;
        let began = watch.look()?;
        let outcome = qpair.submit(command, self.id);
        let took = self.called(watch, began)?;
        self.report.longest_submit = self.report.longest_submit.max(took);
        match outcome {
            Ok(_) => {
                self.report.submitted += 1;
                pending.insert(self.id, io);
                Ok(true)
            }
            Err(refused) => {
                ensure!(refused.is_queue_full() || !qpair.is_connected(), "submitting: {refused}");
                self.report.not_sent += u64::from(!refused.is_queue_full());
                Ok(false)
            }
        }
    }

    fn judge(&mut self, completion: &Completion, io: &Io) -> Result<()> {
        let now = Instant::now();
        let data = if io.read || io.written.is_some_and(|v| v > 0) { io.blocks * BLOCK as u64 } else { 0 };
        ensure!(
            completion.buf.len() as u64 == data,
            "{} bytes of buffer came back of {data}",
            completion.buf.len()
        );
        let (history, report) = (&mut self.history, &mut self.report);
        match (completion.result, io.written) {
            (Ok(_), written) => {
                report.succeeded += 1;
                if let Some(version) = written {
                    history.acknowledged(io.slba, io.blocks, version, now);
                } else if io.read {
                    history.read(io.slba, &copy_out(&completion.buf), io.submitted, now)?;
                    report.blocks_read += io.blocks;
                }
            }
            // It was not done, and will not be.
            (Err(CommandError::NotSent), _) => report.not_sent += 1,
            (Err(CommandError::Disconnected | CommandError::TimedOut | CommandError::Aborted), written) => {
                report.lost += 1;
                if let Some(version) = written {
                    history.unknown(io.slba, io.blocks, version, now);
                }
            }
            // A digest did not match, the target missed a keep alive and has shut the controller down, or the policy had the command
            // aborted: it is over, its data is not to be used.
            (Err(CommandError::Status(status)), written)
                if status.is(Status::TRANSIENT_TRANSPORT_ERROR)
                    || status.is(Status::COMMAND_SEQUENCE_ERROR)
                    || status.is(Status::ABORT_REQUESTED) =>
            {
                report.lost += 1;
                if let Some(version) = written {
                    history.failed(io.slba, io.blocks, version, now);
                }
            }
            (Err(error), _) => bail!("it failed although only the connection was harmed: {error}"),
        }
        Ok(())
    }

    /// Reads everything on a connection that nobody harms.
    fn finish(&mut self) -> Result<()> {
        let deadline = Instant::now() + STUCK;
        loop {
            ensure!(Instant::now() < deadline, "no connection for the last check within {STUCK:?}");
            // Harm that was ordered for the last connections may still hit one of these.
            let Some((controller, mut qpair, ns)) = self.attach(&self.options.clone())? else { continue };
            let submitted = Instant::now();
            let outcome = self.read_all(&mut qpair, &ns);
            drop(qpair);
            let _ = controller.detach();
            if let Ok(data) = outcome {
                self.history.read(0, &data, submitted, Instant::now()).context("the last check")?;
                self.report.blocks_read += BLOCKS;
                break;
            }
        }
        self.report.unknown_writes = self.history.unknown_writes();
        self.report.resolved = self.history.resolved_reads();
        let left = self.driver.pool().stats().outstanding;
        ensure!(left == 0, "{left} buffers did not come back");
        Ok(())
    }

    fn read_all(&self, qpair: &mut IoQpair, ns: &Ns) -> Result<Vec<u8>> {
        let buf = qpair.alloc(usize::try_from(BLOCKS)? * BLOCK)?;
        Ok(qpair.read_blocking(ns, 0, buf)?.to_vec())
    }
}

/// What this thread does with its time, as the kernel accounts for it.
struct Watch {
    schedstat: File,
    status: File,
    /// Voluntary context switches at the last look.
    switches: Cell<u64>,
}

#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    /// Time on a processor.
    work: Duration,
    /// Time in which it could have run, and others did.
    preempted: Duration,
}

impl Watch {
    fn new() -> Result<Self> {
        // Of the thread that opens it.
        let open = |path: &'static str| File::open(path).context(path);
        let (schedstat, status) = (open("/proc/thread-self/schedstat")?, open("/proc/thread-self/status")?);
        let watch = Self { schedstat, status, switches: Cell::new(0) };
        watch.has_slept()?;
        Ok(watch)
    }

    fn look(&self) -> Result<Look> {
        let mut text = [0; 96];
        let count = self.schedstat.read_at(&mut text, 0).context("schedstat")?;
        let text = std::str::from_utf8(&text[..count])?;
        let waited: u64 = text.split_whitespace().nth(1).context("schedstat has no second field")?.parse()?;
        let work = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Ok(Look {
            at: Instant::now(),
            work: Duration::try_from(work)?,
            preempted: Duration::from_nanos(waited),
        })
    }

    /// Whether the thread gave its processor up of its own accord since it was asked last.
    fn has_slept(&self) -> Result<bool> {
        let mut text = [0; 4096];
        let count = self.status.read_at(&mut text, 0).context("status")?;
        let text = String::from_utf8_lossy(&text[..count]);
        let switches = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let switches = switches.context("status has no count of switches")?.trim().parse()?;
        Ok(self.switches.replace(switches) < switches)
    }
}

/// What the open files are.
fn open_files() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|e| std::fs::read_link(e.path()).ok()).map(|p| p.display().to_string()).collect()
}

/// Resident memory, KiB.
fn resident() -> Result<u64> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok());
    number.with_context(|| format!("no VmRSS in {path}"))
}

/// Sleeps for `time`, or until told to stop.
fn sleep_unless(time: Duration, stop: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(20).min(time));
    }
}
