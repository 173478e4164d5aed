//! `nvmf verify`: writes a pattern, reads it back in another order, and compares every byte.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nvmf_core::{IoQpair, IoQpairOptions, Namespace};

use super::print;
use crate::connect::{ConnectArgs, check_multiple, check_range, detach, plain_namespace};
use crate::failure::Failure;
use crate::pattern::{Pattern, Shuffle};
use crate::pipeline::{self, Direction, Io, Job, Plan};
use crate::size::{parse_length, parse_length32, parse_size};
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
    let controller = args.connect.attach(1)?;
    let ns = plain_namespace(&controller, args.nsid)?;
    check_multiple(&ns, "--block-size", args.block_size.into())?;
    check_range(&ns, args.offset, args.length)?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let range = Range {
        offset: args.offset,
        length: args.length,
        depth: args.queue_depth.into(),
        poll: args.poll,
        pattern: Pattern { seed: args.seed, block: args.block_size as usize },
    };
    let write_time = write(&mut qpair, &ns, range, args.quiet)?;
    let read_time = read(&mut qpair, &ns, range, args.quiet)?;
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
    ))
}

/// What is to be written and verified, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) depth: usize,
    pub(crate) poll: bool,
    pub(crate) pattern: Pattern,
}

impl Range {
    fn blocks(&self) -> u64 {
        self.length / self.pattern.block as u64
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
    range: Range,
    quiet: bool,
) -> Result<Duration, Failure> {
    let bar = progress::bar("writing", Some(range.length), quiet);
    let started = Instant::now();
    pipeline::run(qpair, ns, range.plan(Direction::Write), &mut WriteJob { range, next: 0, bar: &bar })?;
    qpair.flush_blocking(ns)?;
    bar.finish_and_clear();
    Ok(started.elapsed())
}

/// Reads the pattern in random order and compares it. Returns the time it took.
pub(crate) fn read(
    qpair: &mut IoQpair,
    ns: &Namespace,
    range: Range,
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
    range: Range,
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
        Ok(())
    }
}

struct ReadJob<'a> {
    range: Range,
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
        self.range
            .pattern
            .check(io.offset, data)
            .map_err(|mismatch| Failure::failed(format!("verification failed: {mismatch}")))
    }
}
