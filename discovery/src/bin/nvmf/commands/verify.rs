//! `nvmf verify`: writes a pattern, reads it back in another order, and compares every byte.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nvmf_core::{Controller, Error, IoQpair, IoQpairOptions, Namespace};

use super::print;
use crate::connect::{ConnectArgs, check_multiple, check_range, detach, plain_namespace};
use crate::failure::Failure;
use crate::pattern::{Pattern, Shuffle};
use crate::pipeline::{self, Direction, Io, Job, Plan};
use crate::recovery::RecoveryArgs;
use crate::size::{parse_length, parse_length32, parse_seconds, parse_size};
use crate::{progress, units};

/// Write a pattern to a namespace, read it back in random order, compare every byte
///
/// OVERWRITES the range. Each block of the pattern holds its own offset and the seed, so that misplaced and stale data are
/// told apart from damage.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  TRID=nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:scratch
  nvmf verify $TRID --length 64MiB --yes
  nvmf verify $TRID --length 1GiB --block-size 64KiB --seed 42 -g -G --yes

Exit code 1 means that data did not match.")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    recovery: RecoveryArgs,

    /// Namespace
    #[arg(long, value_name = "NSID", default_value_t = 1)]
    nsid: u32,

    /// Byte offset to start at, a multiple of the block size of the namespace
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    offset: u64,

    /// Bytes to write and read, a multiple of --block-size
    #[arg(long, value_name = "SIZE", value_parser = parse_length, default_value = "64MiB")]
    length: u64,

    /// Bytes per I/O and per block of the pattern, a multiple of the block size of the namespace
    #[arg(long, value_name = "SIZE", value_parser = parse_length32, default_value = "4KiB")]
    block_size: u32,

    /// I/Os outstanding at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), default_value_t = 32)]
    queue_depth: u16,

    /// Seed of the pattern and of the order of reading
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Poll without sleeping
    #[arg(long)]
    poll: bool,
    /// Reset the controller again and again meanwhile, with this pause and as many I/Os as the queue depth in between
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    reset_every: Option<Duration>,

    /// Yes, overwrite the range
    #[arg(long)]
    yes: bool,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if !args.yes {
        return Err(Failure::usage(format!(
            "verify overwrites {} of namespace {} from offset {}; add --yes if that is what you want",
            units::bytes(args.length),
            args.nsid,
            args.offset
        )));
    }
    if !args.length.is_multiple_of(args.block_size.into()) {
        return Err(Failure::usage(format!(
            "--length {} is not a multiple of --block-size {}",
            args.length, args.block_size
        )));
    }
    let controller = args.connect.attach_for_good(1, &args.recovery)?;
    let ns = plain_namespace(&controller, args.nsid)?;
    check_multiple(&ns, "--block-size", args.block_size.into())?;
    check_range(&ns, args.offset, args.length)?;
    let mut options = IoQpairOptions::default();
    if args.reset_every.is_some() {
        options = options.auto_reconnect(true);
    }
    let mut qpair = controller.alloc_io_qpair(&options)?;
    let done = AtomicU64::new(0);
    let range = Range {
        offset: args.offset,
        length: args.length,
        depth: args.queue_depth.into(),
        poll: args.poll,
        pattern: Pattern { seed: args.seed, block: args.block_size as usize },
        done: Some(&done),
    };
    let resets = args.reset_every.map(|pause| Resets { pause, least: args.queue_depth.into(), done: &done });
    let ((write_time, read_time), resets) = with_resets(&controller, resets, || {
        let write_time = write(&mut qpair, &ns, range, args.quiet)?;
        Ok((write_time, read(&mut qpair, &ns, range, args.quiet)?))
    })?;
    drop(qpair);
    detach(controller);
    let length = args.length;
    print(format!(
        "verified  {} in blocks of {}, seed {}: every byte matches\n\
         write     {}, {}\n\
         read      {}, {}, random order\n",
        units::bytes(length),
        units::bytes(args.block_size.into()),
        args.seed,
        units::time(write_time),
        units::rate(length, write_time),
        units::time(read_time),
        units::rate(length, read_time),
    ))?;
    match args.reset_every {
        Some(_) => print(format!("resets    {resets}\n")),
        None => Ok(()),
    }
}

/// When the controller is reset.
struct Resets<'a> {
    pause: Duration,
    /// I/Os between two resets: however slow the machine is, the work comes to its end.
    least: u64,
    /// I/Os done.
    done: &'a AtomicU64,
}

/// Does the work while another thread resets the controller, if asked to. Returns how often it was reset as well.
fn with_resets<T>(
    controller: &Controller,
    resets: Option<Resets<'_>>,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, u32), Failure> {
    let Some(Resets { pause, least, done: progress }) = resets else { return Ok((work()?, 0)) };
    let (done, stop) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let resetting = scope.spawn(move || {
            let (mut resets, mut before) = (0, 0);
            while let Err(mpsc::RecvTimeoutError::Timeout) = stop.recv_timeout(pause) {
                if progress.load(Ordering::Relaxed) - before < least {
                    continue;
                }
                controller.reset()?;
                resets += 1;
                before = progress.load(Ordering::Relaxed);
            }
            Ok::<u32, Error>(resets)
        });
        let result = work();
        drop(done);
        let resets =
            resetting.join().unwrap_or_else(|_| Err(Error::disconnected("the resetting thread panicked")));
        // A failed reset explains a failed I/O, not the other way round.
        let resets = resets.map_err(|error| Failure::attach(&error))?;
        Ok((result?, resets))
    })
}

/// What is to be written and verified, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range<'a> {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) depth: usize,
    pub(crate) poll: bool,
    pub(crate) pattern: Pattern,
    /// Counts the I/Os that are done.
    pub(crate) done: Option<&'a AtomicU64>,
}

impl Range<'_> {
    fn blocks(&self) -> u64 {
        self.length / self.pattern.block as u64
    }

    fn count(&self) {
        if let Some(done) = self.done {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn plan(&self, direction: Direction) -> Plan {
        Plan {
            direction,
            io_size: self.pattern.block,
            depth: self.depth,
            in_order: false,
            poll: self.poll,
            metadata: None,
        }
    }
}

/// Writes the pattern and flushes it. Returns the time it took.
pub(crate) fn write(
    qpair: &mut IoQpair,
    ns: &Namespace,
    range: Range<'_>,
    quiet: bool,
) -> Result<Duration, Failure> {
    let bar = progress::bar("writing", Some(range.length), quiet);
    let started = Instant::now();
    pipeline::run(qpair, ns, range.plan(Direction::Write), &mut WriteJob { range, next: 0, bar: &bar })?;
    while let Err(error) = qpair.flush_blocking(ns) {
        // Flushing once more does no harm.
        if error.status().is_some() || !(qpair.is_reconnecting() || qpair.is_connected()) {
            return Err(error.into());
        }
    }
    bar.finish_and_clear();
    Ok(started.elapsed())
}

/// Reads the pattern in random order and compares it. Returns the time it took.
pub(crate) fn read(
    qpair: &mut IoQpair,
    ns: &Namespace,
    range: Range<'_>,
    quiet: bool,
) -> Result<Duration, Failure> {
    let bar = progress::bar("reading", Some(range.length), quiet);
    let order = Shuffle::new(range.blocks(), range.pattern.seed);
    let started = Instant::now();
    pipeline::run(qpair, ns, range.plan(Direction::Read), &mut ReadJob { range, order, next: 0, bar: &bar })?;
    bar.finish_and_clear();
    Ok(started.elapsed())
}

struct WriteJob<'a> {
    range: Range<'a>,
    next: u64,
    bar: &'a ProgressBar,
}

impl Job for WriteJob<'_> {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Io>, Failure> {
        if self.next == self.range.blocks() {
            return Ok(None);
        }
        let offset = self.range.offset + self.next * buf.len() as u64;
        self.next += 1;
        self.range.pattern.fill(offset, buf);
        Ok(Some(Io { offset, len: buf.len() }))
    }

    fn done(&mut self, io: Io, _: &[u8]) -> Result<(), Failure> {
        self.bar.inc(io.len as u64);
        self.range.count();
        Ok(())
    }
}

struct ReadJob<'a> {
    range: Range<'a>,
    order: Shuffle,
    next: u64,
    bar: &'a ProgressBar,
}

impl Job for ReadJob<'_> {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Io>, Failure> {
        if self.next == self.range.blocks() {
            return Ok(None);
        }
        let offset = self.range.offset + self.order.at(self.next) * buf.len() as u64;
        self.next += 1;
        // Data left from an earlier read must not pass for fresh ones.
        buf.fill(0x5a);
        Ok(Some(Io { offset, len: buf.len() }))
    }

    fn done(&mut self, io: Io, data: &[u8]) -> Result<(), Failure> {
        self.bar.inc(io.len as u64);
        self.range.count();
        self.range
            .pattern
            .check(io.offset, data)
            .map_err(|mismatch| Failure::failed(format!("verification failed: {mismatch}")))
    }
}
