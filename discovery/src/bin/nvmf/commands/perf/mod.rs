//! `nvmf perf`: how many I/Os, how fast, how long each.

mod clock;
mod cpus;
mod lanes;
mod report;
mod run;

use std::fmt;
use std::time::Duration;

use nvmf_core::transport::GroupShares;
use nvmf_core::{Controller, IoQpairOptions};
pub(crate) use report::Report;
pub(crate) use run::Range;

use super::{Format, print, print_json};
use crate::connect::{ConnectArgs, check_multiple, check_range, detach, plain_namespace, transport_type};
use crate::failure::Failure;
use crate::recovery::RecoveryArgs;
use crate::size::{parse_length, parse_length32, parse_seconds, parse_seconds_or_none, parse_size};
use crate::units;

/// Measure IOPS, throughput and latency of namespaces
///
/// Options have the letters and the names of spdk_nvme_perf. Each thread has queue pairs of its own to every controller and polls
/// them without sleeping (see -E). Latency is from submission to the poll that found the completion. Unlike spdk_nvme_perf's, the depth
/// is that of each queue pair, and workloads that write OVERWRITE the namespace and need --yes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  TRID=nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf perf $TRID                                       4 KiB random reads, depth 32
  nvmf perf $TRID -q 1 -t 10 -L                         latency
  nvmf perf $TRID -o 128K -w read                       throughput
  nvmf perf -r $TRID -r $OTHER -c 0x3 -P 4              two controllers, two pinned threads
  nvmf perf $TRID -w randrw -M 70 --threads 2 --yes     overwrites the namespace
  nvmf perf $TRID --json | jq .iops")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    recovery: RecoveryArgs,

    /// Another controller. May be repeated; a TRID may say ns:N instead of --nsid
    #[arg(short = 'r', long, value_name = "TRID")]
    controller: Vec<String>,

    /// I/Os outstanding at once, per queue pair
    #[arg(short = 'q', long, visible_alias = "io-depth", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=4096), default_value_t = 32)]
    queue_depth: u16,

    /// Bytes per I/O, a multiple of the block size
    #[arg(short = 'o', long, value_name = "SIZE", value_parser = parse_length32, default_value = "4KiB")]
    io_size: u32,

    /// What to do
    #[arg(
        short = 'w',
        long,
        visible_alias = "io-pattern",
        value_name = "WORKLOAD",
        value_enum,
        default_value = "randread"
    )]
    workload: Workload,

    /// Percentage of reads in rw and randrw
    #[arg(short = 'M', long, visible_alias = "rwmixread", value_name = "PERCENT")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    mixread: Option<u8>,

    /// Seconds to measure for
    #[arg(short = 't', long, value_name = "SECONDS", value_parser = parse_time, default_value = "5")]
    time: Duration,

    /// Seconds to run before measuring
    #[arg(short = 'a', long, visible_alias = "warmup-time", value_name = "SECONDS")]
    #[arg(value_parser = parse_seconds_or_none, default_value = "0")]
    warmup: Duration,

    /// End after so many I/Os of each queue pair, if that is before the time is over
    #[arg(short = 'd', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    number_ios: Option<u64>,

    /// Queue pairs per thread and controller
    #[arg(short = 'P', long, visible_alias = "num-qpairs", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024), default_value_t = 1)]
    qpairs: u16,

    /// Entries of the submission and completion queues; by default as many as the depth needs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..))]
    io_queue_size: Option<u16>,

    /// Completions taken from a queue pair at a time; 0 is no limit
    #[arg(
        short = 'C',
        long,
        visible_alias = "max-completion-per-poll",
        value_name = "N",
        default_value_t = 0
    )]
    max_completions: usize,

    /// Threads, which run where the system puts them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128), default_value_t = 1)]
    threads: u16,

    /// A thread on each of these CPUs: a hexadecimal mask, or a list such as [0,2-3]
    #[arg(short = 'c', long, value_name = "MASK", value_parser = parse_cpus, conflicts_with = "threads")]
    core_mask: Option<Cpus>,

    /// Namespace
    #[arg(long, value_name = "NSID", default_value_t = 1)]
    nsid: u32,

    /// Byte offset of the range to use, a multiple of the block size
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    offset: u64,

    /// Bytes of the range to use; by default to the end of the namespace
    #[arg(long, value_name = "SIZE", value_parser = parse_length)]
    length: Option<u64>,

    /// Sleep until something arrives instead of polling
    #[arg(short = 'E', long, visible_alias = "enable-interrupt")]
    interrupt: bool,

    /// Seed of the random offsets
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// More percentiles of the latency; twice: the whole histogram
    #[arg(short = 'L', long = "enable-sw-latency-tracking", action = clap::ArgAction::Count)]
    latency: u8,

    /// Print what the transport counted: polls, sends, receives
    #[arg(long)]
    transport_stats: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Yes, overwrite the range; needed by workloads that write
    #[arg(long)]
    yes: bool,
}

/// CPUs, one thread on each.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Cpus(Vec<usize>);

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    cpus::parse_mask(text).map(Cpus)
}

/// Who comes from nvme-cli means the transport by -t.
fn parse_time(text: &str) -> Result<Duration, String> {
    parse_seconds(text).map_err(|error| match transport_type(text) {
        Ok(_) => format!(
            "-t is the time here, as in spdk_nvme_perf; say --transport {text} --traddr ADDR, or a TRID"
        ),
        Err(_) => error,
    })
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
    /// Read and write, in order.
    Rw,
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
            Self::Rw => "rw",
            Self::Randrw => "randrw",
        }
    }

    fn is_random(self) -> bool {
        !matches!(self, Self::Read | Self::Write | Self::Rw)
    }

    fn is_mixed(self) -> bool {
        matches!(self, Self::Rw | Self::Randrw)
    }
}

/// A measurement to be made.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) workload: Workload,
    /// Percentage of reads.
    pub(crate) reads: u8,
    pub(crate) io_size: u32,
    pub(crate) queue_depth: u16,
    /// Per thread and controller.
    pub(crate) qpairs: u16,
    pub(crate) threads: u16,
    /// Where the threads run; empty: where the system puts them.
    pub(crate) cpus: Vec<usize>,
    /// I/Os of a queue pair after which it ends early.
    pub(crate) number_ios: Option<u64>,
    /// Queue entries, if not as many as the depth needs.
    pub(crate) io_queue_size: Option<u16>,
    /// Completions taken at a time, 0 without limit.
    pub(crate) max_completions: usize,
    pub(crate) warmup: Duration,
    pub(crate) time: Duration,
    /// Where the range begins, bytes.
    pub(crate) offset: u64,
    pub(crate) interrupt: bool,
    pub(crate) seed: u64,
    /// How much is told of the latency, 0 to 2.
    pub(crate) detail: u8,
    pub(crate) transport_stats: bool,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.workload.as_str())?;
        if self.workload.is_mixed() {
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

impl Default for Settings {
    /// 4 KiB random reads of everything there is, 32 at a time, for five seconds.
    fn default() -> Self {
        Self {
            workload: Workload::Randread,
            reads: 100,
            io_size: 4096,
            queue_depth: 32,
            qpairs: 1,
            threads: 1,
            cpus: Vec::new(),
            number_ios: None,
            io_queue_size: None,
            max_completions: 0,
            warmup: Duration::ZERO,
            time: Duration::from_secs(5),
            offset: 0,
            interrupt: false,
            seed: 1,
            detail: 0,
            transport_stats: false,
        }
    }
}

impl Args {
    /// The settings, but for what only the namespace tells.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let reads = match (self.workload, self.mixread) {
            (Workload::Rw | Workload::Randrw, percent) => percent.unwrap_or(50),
            (_, Some(_)) => return Err(Failure::usage("--mixread is for -w rw and randrw only")),
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
        let cpus = self.core_mask.as_ref().map_or(Vec::new(), |cpus| cpus.0.clone());
        Ok(Settings {
            workload: self.workload,
            reads,
            io_size: self.io_size,
            queue_depth: self.queue_depth,
            qpairs: self.qpairs,
            threads: if cpus.is_empty() { self.threads } else { cpus.len() as u16 },
            cpus,
            number_ios: self.number_ios,
            io_queue_size: self.io_queue_size,
            max_completions: self.max_completions,
            warmup: self.warmup,
            time: self.time,
            offset: self.offset,
            interrupt: self.interrupt,
            seed: self.seed,
            detail: self.latency,
            transport_stats: self.transport_stats,
        })
    }

    /// The controllers named: in front, and with -r.
    fn controllers(&self) -> Vec<ConnectArgs> {
        let first = (!self.connect.is_empty() || self.controller.is_empty()).then(|| self.connect.clone());
        let more = self.controller.iter().map(|trid| self.connect.with_trid(trid));
        first.into_iter().chain(more).collect()
    }

    /// The part of a namespace that is to be measured.
    fn range(&self, connect: &ConnectArgs, controller: &Controller) -> Result<Range, Failure> {
        let nsid = connect.trid()?.nsid().unwrap_or(self.nsid);
        let ns = plain_namespace(controller, nsid)?;
        let io_size = u64::from(self.io_size);
        let length = self.length.unwrap_or_else(|| {
            let rest = ns.size().saturating_sub(self.offset);
            rest - rest % io_size
        });
        check_multiple(&ns, "--io-size", io_size)?;
        check_range(&ns, self.offset, length)?;
        if length < io_size {
            return Err(Failure::usage(format!(
                "the range of namespace {nsid} has {length} bytes, less than one I/O of {io_size}"
            )));
        }
        let block = u64::from(ns.block_size());
        Ok(Range { first_block: self.offset / block, places: length / io_size, ns })
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let settings = args.settings()?;
    let queues = settings.qpairs.saturating_mul(settings.threads);
    let (mut controllers, mut ranges) = (Vec::new(), Vec::new());
    for connect in args.controllers() {
        let mut options = connect.options(queues)?;
        // Nobody sleeps: an interrupt would only cost the controller's side.
        options.enable_interrupts = settings.interrupt;
        args.recovery.apply(&mut options);
        let controller = connect.attach_with(&options)?;
        ranges.push(args.range(&connect, &controller)?);
        if controller.num_io_queues() < queues {
            return Err(Failure::usage(format!(
                "{queues} queue pairs are asked for, {} grants {}; use fewer (-P, --threads, -c)",
                controller.subnqn(),
                controller.num_io_queues()
            )));
        }
        controllers.push(controller);
    }
    let report = measure(&controllers, &ranges, settings)?;
    let printed = match format(args) {
        Format::Json => print_json(&report.to_json(&controllers, &ranges)),
        Format::Normal => print(report.text(&controllers, &ranges)),
    };
    controllers.into_iter().for_each(detach);
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

/// Runs the workload on queue pairs of its own, on one range of each controller.
pub(crate) fn measure(
    controllers: &[Controller],
    ranges: &[Range],
    settings: Settings,
) -> Result<Report, Failure> {
    let entries = settings.io_queue_size.unwrap_or(settings.queue_depth.saturating_add(1)).max(2);
    let options = IoQpairOptions::default()
        .queue_size(entries)
        .queue_requests(settings.queue_depth.into())
        .delay_submit(true);
    let mut groups = Vec::new();
    for _ in 0..settings.threads {
        let (mut members, shares) = (Vec::new(), GroupShares::new());
        for (range, controller) in controllers.iter().enumerate() {
            for _ in 0..settings.qpairs {
                let qpair = match settings.qpairs {
                    1 => controller.alloc_io_qpair(&options)?,
                    _ => controller.alloc_io_qpair_in(&shares, &options)?,
                };
                members.push((range, qpair));
            }
        }
        groups.push(run::Group { members, shares });
    }
    run::run(groups, ranges, &settings)
}
