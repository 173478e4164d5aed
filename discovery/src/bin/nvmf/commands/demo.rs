//! `nvmf demo`: everything once, against a target in this process.

use std::time::{Duration, Instant};

use nvmf_core::{Callbacks, Controller, IoQpairOptions, Namespace};
use nvmf_discovery::discover;
use nvmf_loopback::{Loopback, SubsystemBuilder};

use super::perf::{Range, Report, Settings, Workload, measure};
use super::{print, verify, within};
use crate::connect::{detach, driver, plain_namespace};
use crate::failure::Failure;
use crate::pattern::Pattern;
use crate::size::parse_seconds;
use crate::units;

const NQN: &str = "nqn.2024-01.com.example:demo";
/// Bytes written and verified.
const LENGTH: u64 = 64 << 20;

/// Show it working: discover, attach, write, verify and measure a target inside this process
///
/// The target keeps its namespace in memory and listens on a free port of 127.0.0.1. Nothing else of this machine is
/// touched; no root is needed. Takes about three seconds. Exit code 0 means that every byte read back was the one written.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf demo")]
pub(crate) struct Args {
    /// Seed of the data
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Give up after so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    timeout: Duration,
}

/// A line of the report.
fn step(name: &str, text: impl std::fmt::Display) -> Result<(), Failure> {
    print(format!("  {name:<11} {text}\n"))
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let seed = args.seed;
    within(args.timeout, "the demo", move || show(seed))
}

fn show(seed: u64) -> Result<(), Failure> {
    let broken = |error: &dyn std::fmt::Display| Failure::failed(format!("starting the target: {error}"));
    let target = Loopback::builder()
        .subsystem(
            SubsystemBuilder::new(NQN).namespace(nvmf_loopback::Namespace::memory(LENGTH).block_size(512)),
        )
        .listen_tcp("127.0.0.1:0")
        .build()
        .map_err(|error| broken(&error))?;
    let Some(address) = target.tcp_addrs().first().copied() else {
        return Err(broken(&"it does not listen"));
    };
    let trid = nvmf_core::TransportId::tcp_socket(address).map_err(|error| broken(&error))?;
    print(format!("nvmf demo: a target inside this process, over TCP on {address}\n\n"))?;

    let driver = driver();
    let options = nvmf_core::ControllerOptions::default();
    let started = Instant::now();
    let discovery = discover(&driver, &trid, &options).map_err(|error| Failure::attach(&error))?;
    let found = units::plural(discovery.log.records.len() as u64, "subsystem");
    step("discover", format_args!("{found} in {}", units::time(started.elapsed())))?;

    let started = Instant::now();
    let (mut attached, mut failed) = (None, None);
    driver
        .probe(
            Some(&trid),
            Callbacks::new()
                .options(options)
                .probe(|_, options| {
                    options.num_io_queues = 4;
                    true
                })
                .attach(|controller| attached = Some(controller))
                .attach_fail(|_, error| failed = Some(Failure::attach(error))),
        )
        .map_err(|error| Failure::attach(&error))?;
    let took = started.elapsed();
    let controller = match (attached, failed) {
        (Some(controller), _) => controller,
        (None, Some(failure)) => return Err(failure),
        (None, None) => return Err(Failure::unreachable("probe found no subsystem")),
    };
    let queues = units::plural(controller.num_io_queues().into(), "I/O queue");
    step("attach", format_args!("{} with {queues} in {}", controller.subnqn(), units::time(took)))?;

    let id = controller.identify();
    let ns = plain_namespace(&controller, 1)?;
    step(
        "identify",
        format_args!(
            "{} {}, NVMe {}; namespace 1: {} in blocks of {} bytes",
            id.model_number(),
            id.firmware_revision(),
            controller.version(),
            units::bytes(ns.size()),
            ns.block_size()
        ),
    )?;

    write_and_verify(&controller, &ns, seed)?;
    measurements(&controller, &ns)?;
    detach(controller);
    print(format!("\nok: {} written, read back in another order, every byte matches\n", units::bytes(LENGTH)))
}

fn write_and_verify(controller: &Controller, ns: &Namespace, seed: u64) -> Result<(), Failure> {
    let range = verify::Range {
        offset: 0,
        length: LENGTH,
        depth: 32,
        poll: false,
        pattern: Pattern { seed, block: 64 * 1024 },
        done: None,
    };
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let line = |took: Duration, what: &str| {
        format!("{} in {}, {}{what}", units::bytes(LENGTH), units::time(took), units::rate(LENGTH, took))
    };
    let took = verify::write(&mut qpair, ns, range, true)?;
    step("write", line(took, ", then flushed"))?;
    let took = verify::read(&mut qpair, ns, range, true)?;
    step("verify", line(took, ", random order, every byte compared"))
}

fn measurements(controller: &Controller, ns: &Namespace) -> Result<(), Failure> {
    let settings = Settings {
        queue_depth: 1,
        warmup: Duration::from_millis(100),
        time: Duration::from_millis(700),
        ..Settings::default()
    };
    let measure = |settings: Settings| {
        let range = Range::all(ns, settings.io_size);
        measure(std::slice::from_ref(controller), &[range], settings)
    };
    let checked = |report: Report| match &report.first_error {
        Some(error) => Err(Failure::failed(format!("reading: {error}"))),
        None => Ok(report),
    };
    let report = checked(measure(settings.clone())?)?;
    step(
        "latency",
        format_args!(
            "4 KiB random reads, one at a time: mean {}, p99 {}",
            units::time(report.mean()),
            units::time(report.quantile(0.99))
        ),
    )?;
    let report = checked(measure(Settings { queue_depth: 32, ..settings.clone() })?)?;
    step(
        "IOPS",
        format_args!(
            "4 KiB random reads, 32 at a time: {}, {}",
            units::count(report.iops() as u64),
            report.rate()
        ),
    )?;
    let settings = Settings { workload: Workload::Read, io_size: 128 * 1024, queue_depth: 16, ..settings };
    let report = checked(measure(settings)?)?;
    step("throughput", format_args!("128 KiB reads in order, 16 at a time: {}", report.rate()))
}
