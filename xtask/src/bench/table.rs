//! The table: initiators against targets and against the bare exchange, one after the other and round after round.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::cell::{Cell, Initiator, Pair, Side, Transport};
use super::nvmf::{self, Built, Figures, Timing};
use super::others;
use super::results::{Results, Runs, grouped};
use super::spdk;

pub(super) const HELP: &str = "\
cargo xtask bench [--spdk DIR] [--on LIST] [--seconds N] [--rounds N] [--cpus T,I] [--json FILE] [--list] [PART...]

Measures `nvmf perf` against `nvmf target` with a null namespace, and both against bare loops that exchange messages of the
same sizes. With --spdk, SPDK's initiator against the same target, and both initiators against SPDK's target. Each target has
one core, each initiator another. Runs of one cell follow each other, round after round; medians are printed. A run during which
others had more than 3 % of two cores is repeated, twice at most.

  PART            measure the cell of this name, or those whose name has this part; may be repeated (default: all)
  --spdk DIR      an SPDK build, configured --with-vfio-user; as root, for it wants hugepages
  --on LIST       targets: null, spdk-null, spdk-malloc (default: all there are)
  --seconds N     of each run (default 1)
  --rounds N      runs of each pair (default 3)
  --cpus T,I      cores of target and initiator (default 0,1)
  --json FILE     results; what FILE has of other cells and targets stays (default: bench/results.json in the target directory)
  --list          name the cells
  --show          print the table of FILE
";

#[derive(Debug)]
struct Options {
    parts: Vec<String>,
    spdk: Option<String>,
    sides: Vec<Side>,
    seconds: f64,
    rounds: usize,
    cpus: (usize, usize),
    json: PathBuf,
    list: bool,
    show: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self {
            parts: Vec::new(),
            spdk: None,
            sides: Side::ALL.to_vec(),
            seconds: 1.0,
            rounds: 3,
            cpus: (0, 1),
            json: super::results_file()?,
            list: false,
            show: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--spdk" => options.spdk = Some(value()?.clone()),
                "--on" => options.sides = sides(value()?)?,
                "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--cpus" => {
                    let (target, initiator) = value()?.split_once(',').context("--cpus wants T,I")?;
                    options.cpus = (target.parse().context("--cpus")?, initiator.parse().context("--cpus")?);
                }
                "--json" => options.json = value()?.into(),
                "--list" => options.list = true,
                "--show" => options.show = true,
                option if option.starts_with('-') => bail!("unknown option `{option}`\n\n{HELP}"),
                part => options.parts.push(part.to_owned()),
            }
        }
        ensure!((0.2..=600.0).contains(&options.seconds), "--seconds: not within 0.2..=600");
        ensure!((1..=99).contains(&options.rounds), "--rounds: not within 1..=99");
        ensure!(options.cpus.0.max(options.cpus.1) < 64, "--cpus: only the first 64 can be named");
        Ok(options)
    }

    fn cells(&self) -> Result<Vec<Cell>> {
        let mut cells = Cell::all();
        if !self.parts.is_empty() {
            let names: Vec<String> = cells.iter().map(ToString::to_string).collect();
            // A whole name means that cell alone, although it may be part of others.
            let means = |part: &String, name: &String| match names.contains(part) {
                true => part == name,
                false => name.contains(part.as_str()),
            };
            cells.retain(|cell| self.parts.iter().any(|part| means(part, &cell.to_string())));
        }
        ensure!(!cells.is_empty(), "no cell has {} in its name; see --list", self.parts.join(" or "));
        Ok(cells)
    }
}

fn sides(list: &str) -> Result<Vec<Side>> {
    let side = |name: &str| Side::ALL.into_iter().find(|side| side.name() == name);
    list.split(',').map(|name| side(name).with_context(|| format!("--on {name}: no such target"))).collect()
}

pub(super) fn main(args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    let cells = options.cells()?;
    if options.list {
        cells.iter().for_each(|cell| println!("{cell}"));
        return Ok(());
    }
    let mut results = Results::load(&options.json)?;
    if options.show {
        print!("{}", results.table());
        return Ok(());
    }
    let spdk = options.spdk.as_deref().map(spdk::Build::at).transpose()?;
    results.note("machine", json!(machine()));
    if let Some(spdk) = &spdk {
        results.note("peer", json!(spdk.version()));
    }
    let mut bench = Bench::start(&options, &cells, spdk)?;
    for cell in &cells {
        let runs = bench.measure(cell);
        results.put(&cell.to_string(), &runs, options.seconds);
        results.save(&options.json)?;
    }
    println!("\n{}\nresults are in {}", results.table(), options.json.display());
    ensure!(bench.failures.is_empty(), "failed: {}", bench.failures.join(", "));
    Ok(())
}

/// Runs of which the least disturbed counts.
const TRIES: usize = 3;

/// Everything that is running, all of it stopped but what is being measured.
struct Bench<'a> {
    options: &'a Options,
    programs: Built,
    spdk: Option<spdk::Build>,
    tcp: Option<nvmf::Target>,
    vfio_user: Option<nvmf::Target>,
    spdk_target: Option<spdk::Target>,
    failures: Vec<String>,
    // Last: they are given back, and removed, when their users are gone.
    _hugepages: Option<spdk::Hugepages>,
    _scratch: Scratch,
}

/// A directory of sockets.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("nvmf-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

impl<'a> Bench<'a> {
    fn start(options: &'a Options, cells: &[Cell], spdk: Option<spdk::Build>) -> Result<Self> {
        let programs = Built::now()?;
        let scratch = Scratch::make()?;
        let path: &Path = &scratch.0;
        let cpu = options.cpus.0;
        let hugepages = spdk.is_some().then(|| spdk::Hugepages::reserve(path)).transpose()?;
        let own = |transport| -> Result<Option<nvmf::Target>> {
            let wanted =
                options.sides.contains(&Side::Null) && cells.iter().any(|cell| cell.transport == transport);
            wanted.then(|| nvmf::Target::start(&programs.nvmf, transport, cpu, path)).transpose()
        };
        let (mut tcp, mut vfio_user) = (own(Transport::Tcp)?, own(Transport::VfioUser)?);
        for target in [&mut tcp, &mut vfio_user].into_iter().flatten() {
            target.process.pause(true)?;
        }
        let mut spdk_target = match &spdk {
            Some(build) if options.sides.iter().any(|side| side.is_spdk()) => {
                Some(spdk::Target::start(build, cpu, path)?)
            }
            _ => None,
        };
        if let Some(target) = &mut spdk_target {
            target.process.pause(true)?;
        }
        Ok(Self {
            options,
            programs,
            spdk,
            tcp,
            vfio_user,
            spdk_target,
            failures: Vec::new(),
            _hugepages: hugepages,
            _scratch: scratch,
        })
    }

    /// A pair that fails is left alone from then on; the others go on.
    fn measure(&mut self, cell: &Cell) -> Runs {
        let pairs = Pair::of(cell, &self.options.sides, self.spdk.is_some());
        let (mut runs, mut failed) = (Runs::new(), Vec::new());
        for round in 1..=self.options.rounds {
            for &pair in &pairs {
                if failed.contains(&pair) {
                    continue;
                }
                match self.run_undisturbed(cell, pair) {
                    Ok((figures, others)) => {
                        let iops = grouped(figures.iops);
                        let others = match others > others::TOLERATED {
                            true => format!(", DISTURBED: others had {:.0} % of two cores", others * 100.0),
                            false => String::new(),
                        };
                        println!("{cell} round {round} {pair}: {iops} IOPS, {:.2} µs{others}", figures.mean);
                        runs.entry(pair).or_default().push(figures);
                    }
                    Err(error) => {
                        println!("{cell} round {round} {pair}: FAILED: {error:#}");
                        failed.push(pair);
                    }
                }
            }
        }
        self.failures.extend(failed.iter().map(|pair| format!("{cell} {pair}")));
        runs
    }

    /// One run, repeated when others needed the processors meanwhile, and how much these had during the one that counts.
    fn run_undisturbed(&mut self, cell: &Cell, pair: Pair) -> Result<(Figures, f64)> {
        let mut best: Option<(Figures, f64)> = None;
        for _ in 0..TRIES {
            let before = others::Before::now(self.target_of(cell, pair));
            let figures = self.run(cell, pair)?;
            let others = before.others();
            if best.is_none_or(|(_, least)| others < least) {
                best = Some((figures, others));
            }
            if others <= others::TOLERATED {
                break;
            }
        }
        best.context("no run")
    }

    /// The process that answers in a run.
    fn target_of(&self, cell: &Cell, pair: Pair) -> Option<u32> {
        let process = match (pair.initiator, pair.side, cell.transport) {
            (Initiator::Limit, ..) => None,
            (_, Side::Null, Transport::Tcp) => self.tcp.as_ref().map(|target| &target.process),
            (_, Side::Null, Transport::VfioUser) => self.vfio_user.as_ref().map(|target| &target.process),
            _ => self.spdk_target.as_ref().map(|target| &target.process),
        };
        process.map(super::child::Running::id)
    }

    fn run(&mut self, cell: &Cell, pair: Pair) -> Result<Figures> {
        let (server, cpu) = self.options.cpus;
        let timing = Timing { seconds: self.options.seconds, cpu };
        if pair.initiator == Initiator::Limit {
            return nvmf::limit(&self.programs.limit, cell, timing, server);
        }
        let (process, trid) = match (pair.side, cell.transport, &mut self.spdk_target) {
            (Side::Null, Transport::Tcp, _) => {
                self.tcp.as_mut().map(|target| (&mut target.process, target.trid.clone()))
            }
            (Side::Null, Transport::VfioUser, _) => {
                self.vfio_user.as_mut().map(|target| (&mut target.process, target.trid.clone()))
            }
            (side, transport, Some(target)) => {
                let trid = target.trid(transport, side);
                Some((&mut target.process, trid))
            }
            _ => None,
        }
        .context("the target is not running")?;
        process.check()?;
        process.pause(false)?;
        let figures = match (pair.initiator, &self.spdk) {
            (Initiator::Spdk, Some(spdk)) => spdk.perf(&trid, cell, timing),
            _ => nvmf::perf(&self.programs.nvmf, &trid, cell, timing),
        };
        process.pause(true)?;
        figures
    }
}

/// What the processor and the kernel are called.
pub(super) fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{cpus} x {model}, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn command_line() {
        let given = options(&["--on", "null,spdk-malloc", "--rounds", "5", "--cpus", "2,3", "4k-randread"]);
        let given = given.unwrap();
        assert_eq!(given.sides, [Side::Null, Side::SpdkMalloc]);
        assert_eq!((given.rounds, given.cpus), (5, (2, 3)));
        assert_eq!(given.cells().unwrap().len(), 9);
        assert_eq!(
            options(&["tcp-4k-randread-q1", "vfio-user-4k-randread-q1"]).unwrap().cells().unwrap().len(),
            2
        );
        assert_eq!(options(&[]).unwrap().cells().unwrap().len(), 24);
        for bad in [
            &["--on", "disk"][..],
            &["--seconds", "0"],
            &["--rounds", "0"],
            &["--cpus", "1"],
            &["--fast"],
            &["--json"],
        ] {
            assert!(options(bad).is_err(), "{bad:?}");
        }
        assert!(options(&["nothing"]).unwrap().cells().is_err());
    }
}
