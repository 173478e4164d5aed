//! `nvmf perf`: how many I/Os, how fast, how long each.

mod report;
mod run;

use std::fmt;
use std::time::Duration;

use nvmf_core::transport::GroupShares;
use nvmf_core::{Controller, IoQpairOptions, Namespace};
pub(crate) use report::Report;

use super::{Format, print, print_json};
use crate::connect::{ConnectArgs, check_multiple, check_range, detach, plain_namespace};
use crate::failure::Failure;
use crate::recovery::RecoveryArgs;
use crate::size::{parse_length, parse_length32, parse_seconds, parse_seconds_or_none, parse_size};
use crate::units;

/// Measure IOPS, throughput and latency of a namespace
///
/// Options have the letters of spdk_nvme_perf. Each thread polls its queue pairs without sleeping (see --interrupt). Latency
/// is from submission to the poll that found the completion. Workloads that write OVERWRITE the namespace and need
/// --yes, which spdk_nvme_perf does not ask for.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  TRID=nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf perf $TRID                                       4 KiB random reads, depth 32
  nvmf perf $TRID -q 1 -t 10                            latency
  nvmf perf $TRID -o 128K -w read                       throughput
  nvmf perf $TRID -w randrw -M 70 --threads 2 --yes     overwrites the namespace
  nvmf perf $TRID --json | jq .iops")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    recovery: RecoveryArgs,

    /// I/Os outstanding at once, per queue pair
    #[arg(short = 'q', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096), default_value_t = 32)]
    queue_depth: u16,

    /// Bytes per I/O, a multiple of the block size
    #[arg(short = 'o', long, value_name = "SIZE", value_parser = parse_length32, default_value = "4KiB")]
    io_size: u32,

    /// What to do
    #[arg(short = 'w', long, value_name = "WORKLOAD", value_enum, default_value = "randread")]
    workload: Workload,

    /// Percentage of reads in randrw
    #[arg(short = 'M', long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    mixread: Option<u8>,

    /// Seconds to measure for
    #[arg(short = 't', long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "5")]
    time: Duration,

    /// Seconds to run before measuring
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds_or_none, default_value = "0")]
    warmup: Duration,

    /// Queue pairs per thread
    #[arg(short = 'P', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128), default_value_t = 1)]
    qpairs: u16,

    /// Threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128), default_value_t = 1)]
    threads: u16,

    /// Namespace
    #[arg(long, value_name = "NSID", default_value_t = 1)]
    nsid: u32,

    /// Byte offset of the range to use, a multiple of the block size
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    offset: u64,

    /// Bytes of the range to use; by default to the end of the namespace
    #[arg(long, value_name = "SIZE", value_parser = parse_length)]
    length: Option<u64>,

    /// Sleep until something arrives instead of polling; one thread per queue pair
    #[arg(long)]
    interrupt: bool,

    /// Seed of the random offsets
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Yes, overwrite the range; needed by workloads that write
    #[arg(long)]
    yes: bool,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Read, in order.
    Read,
    /// Write, in order.
    Write,
    /// Read at random offsets.
    Randread,
    /// Write at random offsets.
    Randwrite,
    /// Read and write at random offsets.
    Randrw,
}

impl Workload {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
        }
    }

    fn is_random(self) -> bool {
        !matches!(self, Self::Read | Self::Write)
    }
}

/// A measurement to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) workload: Workload,
    /// Percentage of reads.
    pub(crate) reads: u8,
    pub(crate) io_size: u32,
    pub(crate) queue_depth: u16,
    pub(crate) qpairs: u16,
    pub(crate) threads: u16,
    pub(crate) warmup: Duration,
    pub(crate) time: Duration,
    /// Range, bytes.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) interrupt: bool,
    pub(crate) seed: u64,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.workload.as_str())?;
        if self.workload == Workload::Randrw {
            write!(f, " ({} % reads)", self.reads)?;
        }
        write!(f, ", {}, queue depth {}", units::bytes(self.io_size.into()), self.queue_depth)?;
        if self.qpairs > 1 {
            write!(f, " x {} queue pairs", self.qpairs)?;
        }
        if self.threads > 1 {
            write!(f, " x {} threads", self.threads)?;
        }
        if self.interrupt { f.write_str(", sleeping") } else { Ok(()) }
    }
}

impl Args {
    /// The settings, but for what only the namespace tells.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let reads = match (self.workload, self.mixread) {
            (Workload::Randrw, percent) => percent.unwrap_or(50),
            (_, Some(_)) => return Err(Failure::usage("--mixread is for -w randrw only")),
            (Workload::Read | Workload::Randread, None) => 100,
            (Workload::Write | Workload::Randwrite, None) => 0,
        };
        if reads < 100 && !self.yes {
            return Err(Failure::usage(format!(
                "{} overwrites namespace {}; add --yes if that is what you want",
                self.workload.as_str(),
                self.nsid
            )));
        }
        // Sleeping on several queue pairs at once takes a thread for each.
        let (qpairs, threads) = match self.interrupt {
            true => (1, self.threads.saturating_mul(self.qpairs)),
            false => (self.qpairs, self.threads),
        };
        Ok(Settings {
            workload: self.workload,
            reads,
            io_size: self.io_size,
            queue_depth: self.queue_depth,
            qpairs,
            threads,
            warmup: self.warmup,
            time: self.time,
            offset: self.offset,
            length: self.length.unwrap_or(0),
            interrupt: self.interrupt,
            seed: self.seed,
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut settings = args.settings()?;
    let queues = settings.qpairs.saturating_mul(settings.threads);
    let mut options = args.connect.options(queues)?;
    // Nobody sleeps: an interrupt would only cost the controller's side.
    options.enable_interrupts = settings.interrupt;
    args.recovery.apply(&mut options);
    let controller = args.connect.attach_with(&options)?;
    let ns = plain_namespace(&controller, args.nsid)?;
    settings.length = args.length.unwrap_or_else(|| {
        let rest = ns.size().saturating_sub(settings.offset);
        rest - rest % u64::from(settings.io_size)
    });
    check_multiple(&ns, "--io-size", settings.io_size.into())?;
    check_range(&ns, settings.offset, settings.length)?;
    if settings.length < settings.io_size.into() {
        return Err(Failure::usage(format!(
            "the range has {} bytes, less than one I/O of {}",
            settings.length, settings.io_size
        )));
    }
    if controller.num_io_queues() < queues {
        return Err(Failure::usage(format!(
            "{queues} queue pairs are asked for, the controller grants {}; use fewer (-P, --threads)",
            controller.num_io_queues()
        )));
    }
    let report = measure(&controller, &ns, settings)?;
    let printed = match format(args) {
        Format::Json => print_json(&report.to_json(&controller, &ns)),
        Format::Normal => print(report.text(&controller, &ns)),
    };
    detach(controller);
    printed?;
    match report.first_error {
        Some(error) => Err(Failure::failed(format!(
            "{} of {} I/Os failed; the first: {error}",
            units::count(report.errors),
            units::count(report.ios + report.errors)
        ))),
        None => Ok(()),
    }
}

fn format(args: &Args) -> Format {
    if args.json { Format::Json } else { Format::Normal }
}

/// Runs the workload on queue pairs of its own.
pub(crate) fn measure(
    controller: &Controller,
    ns: &Namespace,
    settings: Settings,
) -> Result<Report, Failure> {
    let options = IoQpairOptions::default()
        .queue_size(settings.queue_depth.saturating_add(1).max(2))
        .queue_requests(settings.queue_depth.into())
        .delay_submit(true);
    let mut groups = Vec::new();
    for _ in 0..settings.threads {
        let (mut group, shares) = (Vec::new(), GroupShares::new());
        for _ in 0..settings.qpairs {
            group.push(match settings.qpairs {
                1 => controller.alloc_io_qpair(&options)?,
                _ => controller.alloc_io_qpair_in(&shares, &options)?,
            });
        }
        groups.push((group, shares));
    }
    run::run(groups, ns, settings)
}
