//! Runs the conformance suite against controllers that exist, over any transport. What their namespaces hold is lost.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{Controller, Driver, IoCommand, IoQpairOptions, Namespace, Nqn, TransportId};
use nvmf_tests::conformance::{Fixture, PARTS, Part, Subject};
use nvmf_tests::program;
use nvmf_tests::workload::{Workload, copy_out, fill_block};
use nvmf_transport_rdma::RdmaOptions;

const HELP: &str = "\
conformance TRID... [--nsid N]... [--part NAME]... [--interrupt] [--memory-windows] [--discovery TRID]
            [--list]

Runs the conformance suite against the controllers named, all of them at the same time, and then uses them together in one
program. OVERWRITES their namespaces, each of which must have 16 MiB.

  --nsid N          use only these namespaces (default: all that hold nothing but data)
  --part NAME       run only these parts
  --interrupt       sleep on interrupts; without it none is enabled
  --memory-windows  RDMA: a key for each command's data
  --discovery TRID  where to discover a fabrics subsystem (default: the discovery subsystem at its own address)
  --list            name the parts and stop
";

/// A part that has taken this long hangs.
const PART_DEADLINE: Duration = Duration::from_secs(300);

#[derive(Clone, Default)]
struct Args {
    trids: Vec<TransportId>,
    nsids: Vec<u32>,
    parts: Vec<String>,
    interrupt: bool,
    memory_windows: bool,
    discovery: Option<TransportId>,
    list: bool,
}

impl Args {
    /// None when help was asked for.
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut args = Self::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("`{word}` needs a value"));
            match word.as_str() {
                "-h" | "--help" => return Ok(None),
                "--nsid" => args.nsids.push(value()?.parse().context("--nsid")?),
                "--part" => args.parts.push(value()?),
                "--discovery" => args.discovery = Some(value()?.parse().context("--discovery")?),
                "--interrupt" => args.interrupt = true,
                "--memory-windows" => args.memory_windows = true,
                "--list" => args.list = true,
                option if option.starts_with('-') => bail!("unknown option `{option}`\n\n{HELP}"),
                trid => args.trids.push(trid.parse().with_context(|| format!("`{trid}`"))?),
            }
        }
        for name in &args.parts {
            ensure!(
                name == TOGETHER || PARTS.iter().any(|part| part.name == name),
                "no part `{name}`; see --list"
            );
        }
        ensure!(args.list || !args.trids.is_empty(), "no controller is named\n\n{HELP}");
        Ok(Some(args))
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|name| name == part)
    }

    fn driver(&self) -> Driver {
        program::driver_with(RdmaOptions::default().memory_windows(self.memory_windows))
    }

    fn subject(&self, trid: &TransportId) -> Result<Subject> {
        let discovery = match &self.discovery {
            None if trid.trtype().is_fabrics() => Some(trid.clone().with_subnqn(Nqn::new(Nqn::DISCOVERY)?)),
            given => given.clone(),
        };
        let fixture = Fixture {
            driver: self.driver(),
            trid: trid.clone(),
            discovery,
            options: program::options(self.interrupt),
            target: Box::new(()),
        };
        Ok(Subject::with_namespaces(fixture, &self.nsids))
    }
}

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) if args.list => {
            PARTS.iter().for_each(|part| println!("{}", part.name));
            println!("{TOGETHER}");
            ExitCode::SUCCESS
        }
        Ok(Some(args)) => match run(&args) {
            0 => ExitCode::SUCCESS,
            failures => {
                println!("{failures} parts failed");
                ExitCode::FAILURE
            }
        },
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns how many parts failed.
fn run(args: &Args) -> usize {
    let began = Instant::now();
    let mut count = 0;
    let failures = std::thread::scope(|scope| {
        let parts: Vec<&Part> = PARTS.iter().filter(|part| args.wants(part.name)).collect();
        count = parts.len() * args.trids.len();
        let workers: Vec<_> = args
            .trids
            .iter()
            .map(|trid| {
                let parts = parts.clone();
                scope.spawn(move || parts.iter().filter(|part| !run_part(args, trid, part)).count())
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(1)).sum::<usize>()
    });
    let mut failures = failures;
    if args.trids.len() > 1 && args.wants(TOGETHER) {
        count += 1;
        let args = args.clone();
        failures += usize::from(!watched("all", TOGETHER, move || together(&args).map(|()| Vec::new())));
    }
    println!("{} of {count} parts passed, {:.1} s", count - failures, began.elapsed().as_secs_f64());
    failures
}

fn run_part(args: &Args, trid: &TransportId, part: &Part) -> bool {
    let (args, of, run) = (args.clone(), trid.clone(), part.run);
    watched(trid.traddr(), part.name, move || {
        let subject = args.subject(&of)?;
        run(&subject)?;
        Ok(subject.left_out())
    })
}

/// Runs something with a deadline and says what became of it. It returns what it left out.
fn watched(who: &str, what: &str, run: impl FnOnce() -> Result<Vec<String>> + Send + 'static) -> bool {
    let began = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let _ = sender.send(run());
    });
    let outcome = match receiver.recv_timeout(PART_DEADLINE) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(anyhow::anyhow!("it hangs")),
        // What it panicked with stands on standard error.
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(anyhow::anyhow!("it panicked")),
    };
    if outcome.is_ok() {
        // It has dropped everything when it is over, and the next part needs what it held.
        let _ = worker.join();
    }
    let seconds = began.elapsed().as_secs_f64();
    match &outcome {
        Ok(left_out) if left_out.is_empty() => println!("ok     {seconds:5.1} s  {who} {what}"),
        Ok(left_out) => println!("ok     {seconds:5.1} s  {who} {what}, without {}", left_out.join(", ")),
        Err(error) => println!("FAILED {seconds:5.1} s  {who} {what}: {error:#}"),
    }
    outcome.is_ok()
}

const TOGETHER: &str = "together";

/// Every controller with a queue pair of one driver: each is loaded by a thread of its own while the others are, and memory
/// that one of them filled is handed to the next.
fn together(args: &Args) -> Result<()> {
    let driver = args.driver();
    let options = program::options(args.interrupt);
    let attached = args
        .trids
        .iter()
        .map(|trid| {
            let controller = driver.connect(trid, &options).with_context(|| format!("{trid}"))?;
            let ns = usable(&controller, &args.nsids)?;
            Ok((controller, ns))
        })
        .collect::<Result<Vec<(Controller, Namespace)>>>()?;
    ensure!(driver.controllers().len() == args.trids.len(), "{:?}", driver.controllers());

    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (1u64..)
            .zip(&attached)
            .map(|(seed, (controller, ns))| {
                scope.spawn(move || -> Result<()> {
                    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
                    Workload::new(ns, seed, 400, 16).sized(1, 8).run(&mut qpair, ns)
                })
            })
            .collect();
        for (worker, (controller, _)) in workers.into_iter().zip(&attached) {
            let outcome = worker.join().unwrap_or_else(|_| bail!("it panicked"));
            outcome.with_context(|| format!("the load of {}", controller.trid()))?;
        }
        Ok(())
    })?;

    // Round and round: what one has read the next one writes, from the same memory.
    const BYTES: usize = 64 << 10;
    let mut qpairs = HashMap::new();
    for (index, (controller, _)) in attached.iter().enumerate() {
        qpairs.insert(index, controller.alloc_io_qpair(&IoQpairOptions::default())?);
    }
    let mut buf = driver.pool().alloc(BYTES)?;
    fill_block(&mut buf, 0, 4711);
    let expected = buf.to_vec();
    let mut buf = nvmf_core::IoBuf::from(buf);
    for round in 0..8 {
        for (index, (controller, ns)) in attached.iter().enumerate() {
            let qpair = qpairs.get_mut(&index).context("no queue pair")?;
            let command = IoCommand::write(ns, round * 64, buf);
            buf = qpair.execute(command).with_context(|| format!("{}", controller.trid()))?.1;
            // The memory is overwritten in between, so that it is the controller's data that counts.
            nvmf_tests::workload::copy_in(&mut buf, &vec![0xa5; BYTES]);
            buf = qpair.execute(IoCommand::read(ns, round * 64, buf))?.1;
            ensure!(copy_out(&buf) == expected, "round {round}: {} gave other data back", controller.trid());
        }
    }
    drop((qpairs, buf));
    ensure!(driver.pool().stats().outstanding == 0, "{:?}", driver.pool().stats());
    for (controller, _) in attached {
        controller.detach()?;
    }
    Ok(())
}

fn usable(controller: &Controller, nsids: &[u32]) -> Result<Namespace> {
    let mut all = controller.namespaces().into_iter();
    let fits = |ns: &Namespace| {
        ns.csi() == 0 && ns.metadata_size() == 0 && (nsids.is_empty() || nsids.contains(&ns.nsid()))
    };
    all.find(fits).with_context(|| format!("{} has no namespace to use", controller.trid()))
}
