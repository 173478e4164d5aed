//! The table: initiators against targets and against the bare exchange, in turns and round after round.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;

use super::cell::{Cell, Initiator, Pair, Side, Transport};
use super::child::{Captured, Running};
use super::nvmf::{self, Built, LimitServer, Timing};
use super::others;
use super::results::{Results, Runs, grouped};
use super::spdk;
use super::turns::{self, Contender};

pub(super) const HELP: &str = "\
cargo xtask bench [--spdk DIR] [--other FILE] [--on LIST] [--seconds N] [--rounds N] [--cpus T,I] [--json FILE] [--list] [PART...]

Measures `nvmf perf` against `nvmf target` with a null namespace, and both against bare loops that exchange messages of the
same sizes. With --spdk, SPDK's initiator against the same target, and both initiators against SPDK's target. Each target has
one core, the initiators another: all that is compared runs at once, and all but one of it are stopped, in turns of 25 ms at most. The turns of a
pair are added up; of several rounds medians are printed. Latencies are the depth divided by the I/Os per second.

  PART            measure the cell of this name, or those whose name has this part; may be repeated (default: all)
  --spdk DIR      an SPDK build, configured --with-vfio-user; as root, for it wants hugepages
  --other FILE    another build of the program nvmf, whose initiator is measured as well: against the same targets
  --on LIST       targets: null, spdk-null, spdk-malloc (default: all there are)
  --seconds N     that each pair has in a round, all its turns together (default 1)
  --rounds N      of each cell (default 3)
  --cpus T,I      cores of target and initiator (default 0,1)
  --json FILE     results; what FILE has of other cells and targets stays (default: bench/results.json in the target directory)
  --list          name the cells
  --show          print the table of FILE
";

#[derive(Debug)]
struct Options {
    parts: Vec<String>,
    spdk: Option<String>,
    other: Option<PathBuf>,
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
            other: None,
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
                "--other" => options.other = Some(value()?.into()),
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
    if let Some(other) = &options.other {
        ensure!(other.is_file(), "--other {}: no such program", other.display());
    }
    let mut bench = Bench::start(&options, &cells, spdk)?;
    for cell in &cells {
        let (runs, seconds) = bench.measure(cell);
        results.put(cell, &runs, seconds);
        results.save(&options.json)?;
    }
    println!("\n{}\nresults are in {}", results.table(), options.json.display());
    ensure!(bench.failures.is_empty(), "failed: {}", bench.failures.join(", "));
    Ok(())
}

/// How long an initiator needs until it does I/O.
fn lead(initiator: Initiator) -> Duration {
    Duration::from_millis(match initiator {
        Initiator::Limit => 100,
        Initiator::Nvmf | Initiator::Other => 500,
        Initiator::Spdk => 2500,
    })
}

/// Everything that is running, all of it stopped but what is being measured.
struct Bench<'a> {
    options: &'a Options,
    programs: Built,
    spdk: Option<spdk::Build>,
    tcp: Option<nvmf::Target>,
    vfio_user: Option<nvmf::Target>,
    spdk_target: Option<spdk::Target>,
    /// The answering end of the bare exchange, of the cell that is measured.
    limit: Option<LimitServer>,
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
        let reserve = || spdk::Hugepages::reserve(path, options.sides.len());
        let hugepages = spdk.is_some().then(reserve).transpose()?;
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
            limit: None,
            failures: Vec::new(),
            _hugepages: hugepages,
            _scratch: scratch,
        })
    }

    /// All pairs of a cell, and the seconds that were counted in a round. A pair that fails is left alone from then on; the others go on.
    fn measure(&mut self, cell: &Cell) -> (Runs, u64) {
        let mut pairs =
            Pair::of(cell, &self.options.sides, self.spdk.is_some(), self.options.other.is_some());
        let seconds = (self.options.seconds * pairs.len() as f64).ceil() as u64;
        let mut runs = Runs::new();
        for round in 1..=self.options.rounds {
            let before = others::Before::now(self.targets());
            for (pair, iops) in self.round(cell, &pairs, seconds, round) {
                match iops {
                    Ok(iops) => {
                        println!("{cell} round {round} {pair}: {} IOPS", grouped(iops));
                        runs.entry(pair).or_default().push(iops);
                    }
                    Err(error) => {
                        println!("{cell} round {round} {pair}: FAILED: {error:#}");
                        self.failures.push(format!("{cell} {pair}"));
                        pairs.retain(|&other| other != pair);
                    }
                }
            }
            self.limit = None;
            let others = before.others();
            if others > others::TOLERATED {
                println!("{cell} round {round}: DISTURBED: others had {:.0} % of two cores", others * 100.0);
            }
        }
        (runs, seconds)
    }

    /// One round: I/Os per second of each pair.
    fn round(&mut self, cell: &Cell, pairs: &[Pair], seconds: u64, round: usize) -> Vec<(Pair, Result<f64>)> {
        // Those first that need longest.
        let mut starting = pairs.to_vec();
        starting.sort_by_key(|pair| std::cmp::Reverse(lead(pair.initiator)));
        let mut done = Vec::new();
        let mut contenders = Vec::new();
        for (place, &pair) in starting.iter().enumerate() {
            // None is to count before all are there, however soon it does I/O.
            let until_then: Duration = starting[place..].iter().map(|pair| lead(pair.initiator)).sum();
            let warm_up = until_then.as_secs() + 1;
            let timing = Timing { seconds, warm_up, cpu: self.options.cpus.1 };
            match self.start_initiator(cell, pair, timing, pair.initiator.endpoint(round)) {
                Ok(contender) => contenders.push(contender),
                Err(error) => done.push((pair, Err(error))),
            }
        }
        let shares =
            match turns::take(&mut contenders, seconds, |pair, turn| turn(self.target_of(cell, pair)?)) {
                Ok(shares) => shares,
                Err(error) => {
                    let failed = contenders.iter().map(|one| (one.pair, Err(anyhow!("{error:#}"))));
                    done.extend(failed);
                    return done;
                }
            };
        for (contender, share) in contenders.into_iter().zip(shares) {
            let pair = contender.pair;
            let report = contender.finish();
            let iops = report.and_then(|report| match pair.initiator {
                Initiator::Spdk => spdk::iops(&report),
                _ => nvmf::iops(&report),
            });
            done.push((pair, iops.map(|iops| iops / share)));
        }
        done.sort_by_key(|&(pair, _)| pair);
        done
    }

    fn start_initiator(
        &mut self,
        cell: &Cell,
        pair: Pair,
        timing: Timing,
        endpoint: usize,
    ) -> Result<Contender> {
        let (mut command, name) = match pair.initiator {
            Initiator::Limit => {
                let mut server = LimitServer::start(&self.programs.limit, cell, self.options.cpus.0)?;
                server.process.pause(true)?;
                let server = self.limit.insert(server);
                (server.drive(&self.programs.limit, cell, timing), "wire_limit drive")
            }
            Initiator::Nvmf => {
                let trid = self.trid(cell, pair.side, endpoint)?;
                (nvmf::perf(&self.programs.nvmf, &trid, cell, timing), "nvmf perf")
            }
            Initiator::Other => {
                let other = self.options.other.as_ref().context("there is no other build")?;
                let trid = self.trid(cell, pair.side, endpoint)?;
                (nvmf::perf(other, &trid, cell, timing), "the other nvmf perf")
            }
            Initiator::Spdk => {
                let trid = self.trid(cell, pair.side, endpoint)?;
                let spdk = self.spdk.as_ref().context("there is no SPDK")?;
                (spdk.perf(&trid, cell, timing), "spdk_nvme_perf")
            }
        };
        let program = Captured::start(&mut command, name)?;
        Contender::start(pair, program, self.target_of(cell, pair)?, lead(pair.initiator))
    }

    /// Where a target is for who has this endpoint.
    fn trid(&self, cell: &Cell, side: Side, endpoint: usize) -> Result<String> {
        let own = |target: &nvmf::Target| target.trid(endpoint).to_owned();
        match (side, cell.transport) {
            (Side::Null, Transport::Tcp) => self.tcp.as_ref().map(own),
            (Side::Null, Transport::VfioUser) => self.vfio_user.as_ref().map(own),
            (side, transport) => {
                self.spdk_target.as_ref().map(|target| target.trid(transport, side, endpoint))
            }
        }
        .context("the target is not running")
    }

    /// The process that answers a pair.
    fn target_of(&mut self, cell: &Cell, pair: Pair) -> Result<&mut Running> {
        match (pair.initiator, pair.side, cell.transport) {
            (Initiator::Limit, ..) => self.limit.as_mut().map(|server| &mut server.process),
            (_, Side::Null, Transport::Tcp) => self.tcp.as_mut().map(|target| &mut target.process),
            (_, Side::Null, Transport::VfioUser) => self.vfio_user.as_mut().map(|target| &mut target.process),
            _ => self.spdk_target.as_mut().map(|target| &mut target.process),
        }
        .context("the target is not running")
    }

    /// Every target there is.
    fn targets(&self) -> Vec<u32> {
        let own = [&self.tcp, &self.vfio_user].into_iter().flatten().map(|target| target.process.id());
        own.chain(self.spdk_target.iter().map(|target| target.process.id())).collect()
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
            &["--other"],
        ] {
            assert!(options(bad).is_err(), "{bad:?}");
        }
        assert!(options(&["nothing"]).unwrap().cells().is_err());
    }
}
