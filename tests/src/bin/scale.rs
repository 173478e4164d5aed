//! What many connections of one thread cost. `cargo xtask bench scale` runs it.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{ControllerOptions, IoQpairOptions, TransportId};
use nvmf_loopback::{Loopback, Namespace, PciOptions, SubsystemBuilder, TcpOptions, VfioUserServer};
use nvmf_tests::program;
use nvmf_tests::scale::{Attached, Host, Share, cpu_time};

const HELP: &str = "\
scale [--seconds N] [--rounds N] [PART...]

Measures connections of one thread, pinned by whoever starts it, to a target with a null namespace on core 0:

  connections  1, 16, 256 and 1,024 of them: memory and a poll of each number while idle, beside one epoll_wait for as many sockets
               and nothing around it; IOPS while all are busy
  share        32 busy ones alone, and among 1,024
  attach       64 controllers attached at the same time
  idle         processor time of an attached controller that is waited for, over TCP and vfio-user

All of it unless parts are named. Runs take N seconds (2); the share is measured N times each way (3), medians are printed.
";

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6b7e2f0a-1f0f-4a3c-8e56-2f4b6d0c9a11";
const PARTS: [&str; 4] = ["connections", "share", "attach", "idle"];
/// I/Os outstanding in all, where the number of connections allows it.
const OUTSTANDING: usize = 128;

struct Args {
    time: Duration,
    rounds: usize,
    parts: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("-h" | "--help") => {
            print!("{HELP}");
            Ok(())
        }
        _ => parse(&words).and_then(|args| run(&args)),
    };
    program::ended("scale", outcome)
}

fn parse(words: &[String]) -> Result<Args> {
    let mut args = Args { time: Duration::from_secs(2), rounds: 3, parts: Vec::new() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => {
                let seconds: f64 = value()?.parse().context("--seconds")?;
                ensure!((0.2..=600.0).contains(&seconds), "--seconds: not within 0.2..=600");
                args.time = Duration::from_secs_f64(seconds);
            }
            "--rounds" => {
                args.rounds = value()?.parse().context("--rounds")?;
                ensure!((1..=99).contains(&args.rounds), "--rounds: not within 1..=99");
            }
            part if PARTS.contains(&part) => args.parts.push(part.to_owned()),
            other => bail!("`{other}` is not understood\n\n{HELP}"),
        }
    }
    Ok(args)
}

/// The target, in a process of its own; it ends with its standard input.
struct Target {
    child: Child,
    tcp: TransportId,
    vfio_user: TransportId,
    dir: PathBuf,
}

impl Target {
    fn start() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("nvmf-scale-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(std::env::current_exe()?).arg("serve").current_dir(&dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("taskset")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        let tcp = line.trim().parse().context("the target has not said where it is")?;
        let vfio_user = format!("trtype:VFIOUSER traddr:{}", dir.join("cntrl").display()).parse()?;
        Ok(Self { child, tcp, vfio_user, dir })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It is our child and was not waited for: the identifier is its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn serve() -> Result<()> {
    let target = Loopback::builder()
        .subsystem(SubsystemBuilder::new(NQN).namespace(Namespace::null(1 << 30).block_size(512)))
        .tcp(TcpOptions::new().max_connections(8192))
        .max_io_queues(1024)
        .listen_tcp("127.0.0.1:0")
        .build()?;
    let function = target.pci_function_with(NQN, &PciOptions::new())?;
    let server = VfioUserServer::listen(&function, "cntrl")?;
    println!("{}", target.tcp_trid(NQN)?.context("the target does not listen")?);
    // Until whoever started this is gone.
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing)?;
    drop(server);
    Ok(())
}

fn run(args: &Args) -> Result<()> {
    let wants = |part: &str| args.parts.is_empty() || args.parts.iter().any(|of| of == part);
    let target = Target::start()?;
    if wants("connections") {
        connections(&target.tcp, args)?;
    }
    if wants("share") {
        share(&target.tcp, args)?;
    }
    if wants("attach") {
        let driver = program::driver();
        let attached = Attached::measure(&driver, &target.tcp, &options(), 64)?;
        println!("\n64 controllers attached together: {:.1} ms", attached.together.as_secs_f64() * 1e3);
        println!("one controller: {:.1} ms", attached.one.as_secs_f64() * 1e3);
    }
    if wants("idle") {
        println!();
        for (name, trid) in [("TCP", &target.tcp), ("vfio-user", &target.vfio_user)] {
            println!("attached and waited for, {name}: {:.3} % of a core", idle(trid, args)? * 100.0);
        }
    }
    Ok(())
}

fn options() -> ControllerOptions {
    let mut options = program::options(true);
    options.num_io_queues = 64;
    options
}

fn connections(trid: &TransportId, args: &Args) -> Result<()> {
    println!("connections  memory each  idle poll  bare wait   asleep        IOPS  CPU busy");
    for count in [1, 16, 256, 1024] {
        // A driver of its own, whose memory is new.
        let driver = program::driver();
        let (mut host, memory) = Host::connect(&driver, trid, &options(), count)?;
        let idle = host.idle(args.time, memory)?;
        let depth = (OUTSTANDING / count).max(1);
        let busy = host.busy(Share { connections: count, depth }, args.time)?;
        println!(
            "{count:11}  {:7.1} KiB  {:6} ns  {:6} ns  {:5.2} %  {:10.0}  {:6.1} %",
            idle.memory as f64 / 1024.0,
            idle.poll.as_nanos(),
            idle.bare.as_nanos(),
            idle.asleep * 100.0,
            busy.iops,
            busy.cpu * 100.0
        );
        host.close()?;
    }
    Ok(())
}

fn share(trid: &TransportId, args: &Args) -> Result<()> {
    let (mut alone, mut among) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        for (count, of) in [(32, &mut alone), (1024, &mut among)] {
            let driver = program::driver();
            let (mut host, _) = Host::connect(&driver, trid, &options(), count)?;
            of.push(host.busy(Share { connections: 32, depth: OUTSTANDING / 32 }, args.time)?.iops);
            host.close()?;
        }
    }
    let (alone, among) = (median(alone), median(among));
    println!(
        "\n32 busy connections alone: {alone:.0} IOPS; among 1,024: {among:.0}; ratio {:.2}",
        among / alone
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The share of a core that a controller with one queue pair takes while nothing happens.
fn idle(trid: &TransportId, args: &Args) -> Result<f64> {
    let driver = program::driver();
    let controller = driver.connect(trid, &options())?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let time = args.time * 3;
    let (began, before) = (std::time::Instant::now(), cpu_time()?);
    while began.elapsed() < time {
        qpair.process_completions(0, |_| {})?;
        qpair.wait(time.saturating_sub(began.elapsed()))?;
    }
    let used = cpu_time()?.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    drop(qpair);
    controller.detach()?;
    Ok(used)
}
