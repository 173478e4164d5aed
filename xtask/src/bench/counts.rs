//! User-space instructions of a command, counted by callgrind: compared with the baseline in the repository, and with SPDK.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::cell::Transport;
use super::child::{capture, pinned};
use super::nvmf::Target;
use super::spdk;
use crate::apt::{self, Tool};
use crate::programs::Programs;
use crate::shell;

pub(super) const HELP: &str = "\
cargo xtask bench counts [--update] [--spdk DIR]

Counts the user-space instructions of the initiator for a 4 KiB read, from submission to completion, over each transport, under
valgrind's callgrind, and compares them with tests/instructions.json: more than 3 % above it is a failure, unless that was counted
with another compiler or C library. Times do not matter here, so that it can be done anywhere.

  --update    write what was counted to tests/instructions.json
  --spdk DIR  instead: both initiators for reads over TCP in batches of 32. Of SPDK what is done when its socket is readable counts,
              which is the completions of a batch and the submission of the next, without what its polls and sends take. The SPDK
              build must do without AVX-512, which valgrind does not know: ./configure --target-arch=haswell
";

/// What is counted.
pub(crate) const PROGRAM: &str = "io_count";
/// How far above its baseline a count may be.
const TOLERANCE: f64 = 0.03;
const TRANSPORTS: [&str; 6] = ["tcp", "pcie", "vfio-user", "rdma", "secondary-tcp", "secondary-vfio-user"];
/// Batches of the shorter of two runs; the longer has twice as many. What both have in common cancels out.
const ROUNDS: usize = 64;
/// Reads of a batch.
const BATCH: usize = 8;
/// Reads of a batch in the comparison with SPDK, and its reads in the shorter run.
const DEPTH: usize = 32;
const READS: usize = 8192;
const LIMIT: Duration = Duration::from_secs(180);
/// `rep movsb` counts as an instruction for each byte: glibc copies with vectors instead.
const TUNABLES: &str = "glibc.cpu.x86_rep_movsb_threshold=0x10000000";

type Counts = BTreeMap<String, f64>;

/// What is in the repository.
struct Baseline {
    /// What a count depends on besides the sources.
    with: BTreeMap<String, String>,
    /// Instructions per read, by transport.
    counts: Counts,
}

impl Baseline {
    fn load() -> Result<Self> {
        let path = baseline_file();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("{}: is there no baseline yet? cargo xtask bench counts --update", path.display())
        })?;
        let mut value: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Self {
            with: serde_json::from_value(value["with"].take())?,
            counts: serde_json::from_value(value["counts"].take())?,
        })
    }

    fn save(&self) -> Result<()> {
        let value = json!({ "with": self.with, "counts": self.counts });
        let path = baseline_file();
        std::fs::write(&path, serde_json::to_string_pretty(&value)? + "\n")
            .with_context(|| path.display().to_string())
    }
}

/// What a count depends on here.
fn conditions() -> BTreeMap<String, String> {
    let said = |program: &mut Command| shell::output_text(program).unwrap_or_default().trim().to_owned();
    // callgrind's processor is the same one everywhere, where the real one has AVX2.
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let avx2 = flags.split_whitespace().any(|flag| flag == "avx2");
    [
        ("rustc", said(Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-V"))),
        ("libc", said(&mut shell::command("getconf", ["GNU_LIBC_VERSION"]))),
        ("processor", format!("{}{}", std::env::consts::ARCH, if avx2 { " with AVX2" } else { "" })),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// In words, in what the baseline's conditions are others.
fn differences(then: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let name = |name: &str| then.get(name).map_or("nothing", String::as_str).to_owned();
    now.iter()
        .filter(|&(key, value)| then.get(key) != Some(value))
        .map(|(key, value)| format!("{key}: {value}, the baseline's: {}", name(key)))
        .collect()
}

pub(super) fn main(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => check(),
        ["--update"] => update(),
        ["--spdk", dir] => compare(dir),
        ["-h" | "--help"] => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("`{}` is not understood\n\n{HELP}", other.join(" ")),
    }
}

fn baseline_file() -> PathBuf {
    shell::root().join("tests/instructions.json")
}

/// Counts and compares with the baseline.
fn check() -> Result<()> {
    let baseline = Baseline::load()?;
    let others = differences(&baseline.with, &conditions());
    let counts = counted()?;
    let (report, worse) = judge(&baseline.counts, &counts);
    print!("{report}");
    if !others.is_empty() {
        println!("NOTE: nothing follows from a rise, for the baseline was counted with something else:");
        others.iter().for_each(|other| println!("  {other}"));
        println!("Count the version before the change here as well: cargo xtask bench counts --update");
        return Ok(());
    }
    ensure!(
        worse.is_empty(),
        "more instructions per read than before over {}. If that is worth it: cargo xtask bench counts --update",
        worse.join(", ")
    );
    Ok(())
}

/// The comparison in words, and what got worse or is not known.
fn judge(baseline: &Counts, counts: &Counts) -> (String, Vec<String>) {
    let (mut report, mut worse) = (String::new(), Vec::new());
    for (name, &count) in counts {
        let line = match baseline.get(name) {
            Some(&before) => {
                if count > before * (1.0 + TOLERANCE) {
                    worse.push(name.clone());
                }
                format!(
                    "{name:<20} {count:8.1}  baseline {before:8.1}  {:+.1} %",
                    (count / before - 1.0) * 100.0
                )
            }
            None => {
                worse.push(name.clone());
                format!("{name:<20} {count:8.1}  no baseline")
            }
        };
        report.push_str(&line);
        report.push('\n');
    }
    (report, worse)
}

fn update() -> Result<()> {
    let counts = counted()?;
    let baseline = Baseline { with: conditions(), counts };
    baseline.save()?;
    for (name, count) in &baseline.counts {
        println!("{name:<20} {count:8.1}");
    }
    Ok(())
}

fn counted() -> Result<Counts> {
    let program = prepare()?.path(PROGRAM)?;
    let mut counts = Counts::new();
    for transport in TRANSPORTS {
        counts.insert(transport.to_owned(), per_read(&program, transport, BATCH)?);
    }
    Ok(counts)
}

/// Instructions of a read over a transport.
fn per_read(program: &Path, transport: &str, batch: usize) -> Result<f64> {
    let out = output_dir()?;
    let run = |rounds: usize| -> Result<u64> {
        let file = out.join(format!("{transport}.{rounds}"));
        let mut command = callgrind(0, &file, &["io_count::submit*", "io_count::complete*"])?;
        command.arg(program).args(["batch", transport, &rounds.to_string(), &batch.to_string()]);
        instructions(&mut command, &file)
    };
    let (short, long) = (run(ROUNDS)?, run(2 * ROUNDS)?);
    ensure!(long > short && short > 0, "callgrind has counted nothing for {transport}");
    Ok(((long - short) as f64 / (ROUNDS * batch) as f64 * 10.0).round() / 10.0)
}

/// The programs, built, and valgrind.
fn prepare() -> Result<Programs> {
    let stamp = shell::target_dir()?.join("apt-lists");
    let tools = [Tool::new("valgrind", "valgrind"), Tool::new("setpriv", "util-linux")];
    apt::ensure(&tools, &stamp, "counting instructions")?;
    let programs = Programs::release().tests([PROGRAM]);
    programs.build()?;
    Ok(programs)
}

fn output_dir() -> Result<PathBuf> {
    let dir = shell::target_dir()?.join("bench/callgrind");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Counts within functions of these names.
fn callgrind(cpu: usize, file: &Path, within: &[&str]) -> Result<Command> {
    let valgrind = shell::find_program("valgrind").context("valgrind is not there")?;
    let mut command = pinned(cpu, &valgrind, ["--tool=callgrind", "--error-exitcode=99"]);
    command.arg(format!("--callgrind-out-file={}", file.display())).arg("--collect-atstart=no");
    command.args(within.iter().map(|name| format!("--toggle-collect={name}")));
    command.env("GLIBC_TUNABLES", TUNABLES);
    Ok(command)
}

/// Runs callgrind and returns how many instructions it has counted.
fn instructions(command: &mut Command, file: &Path) -> Result<u64> {
    capture(command, "callgrind", LIMIT)?;
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    total(&text).with_context(|| format!("{} has no totals", file.display()))
}

/// The sum that callgrind writes, over all parts and threads.
fn total(output: &str) -> Option<u64> {
    let line = output.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    line?.split_whitespace().next()?.parse().ok()
}

fn compare(dir: &str) -> Result<()> {
    let spdk = spdk::Build::at_initiator(dir)?;
    let programs = prepare()?;
    let program = programs.path(PROGRAM)?;
    let out = output_dir()?;
    let ours = per_read(&program, "tcp", DEPTH)?;
    let target = Target::start(&programs.path("nvmf")?, Transport::Tcp, 0, &out)?;
    let count = |reads: usize| -> Result<u64> {
        let file = out.join(format!("spdk.{reads}"));
        // What happens when the socket is readable; submissions are among it, as they are made by completions.
        let mut command = callgrind(1, &file, &["nvme_tcp_qpair_process_completions"])?;
        spdk.counted(&mut command, target.trid(0), DEPTH, reads);
        instructions(&mut command, &file)
    };
    let (short, long) = (count(READS)?, count(2 * READS)?);
    ensure!(
        long > short && short > 0,
        "callgrind has counted nothing of SPDK: was it built without symbols?"
    );
    let theirs = (long - short) as f64 / READS as f64;
    println!("user-space instructions per 4 KiB read over TCP, in batches of {DEPTH}");
    println!("nvmf {ours:8.1}\nSPDK {theirs:8.1}   ({})\nratio {:7.2}", spdk.version(), ours / theirs);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, f64)]) -> Counts {
        of.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
    }

    #[test]
    fn a_rise_fails() {
        let baseline = counts(&[("tcp", 1000.0), ("pcie", 200.0)]);
        assert!(judge(&baseline, &counts(&[("tcp", 1029.0), ("pcie", 150.0)])).1.is_empty());
        assert_eq!(judge(&baseline, &counts(&[("tcp", 1031.0), ("pcie", 200.0)])).1, ["tcp"]);
        assert_eq!(judge(&baseline, &counts(&[("rdma", 1.0)])).1, ["rdma"]);
    }

    #[test]
    fn conditions_differ() {
        let with = |rustc: &str| BTreeMap::from([("rustc".to_owned(), rustc.to_owned())]);
        assert!(differences(&with("1.95"), &with("1.95")).is_empty());
        assert_eq!(differences(&with("1.95"), &with("1.96")), ["rustc: 1.96, the baseline's: 1.95"]);
        assert_eq!(differences(&BTreeMap::new(), &with("1.95")), ["rustc: 1.95, the baseline's: nothing"]);
    }

    #[test]
    fn totals_of_callgrind() {
        assert_eq!(total("events: Ir\nfn=(1) a\n1 5\ntotals: 123456\n"), Some(123_456));
        assert_eq!(total("events: Ir\n"), None);
    }
}
