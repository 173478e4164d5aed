//! `cargo xtask vm`: suites of shell scripts that run in a QEMU guest against real peers (Linux nvmet, nvme-cli, the kernel's own
//! initiator). No KVM, no kernel modules and no privileges on the host: a Debian kernel is unpacked, not installed, and emulated.

mod args;
mod cpio;
mod disk;
mod guest;
mod initramfs;
mod kernel;
mod protocol;
mod suite;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Tool};
use crate::shell;
use args::Args;
use guest::{Guest, Report, Verdict};
use kernel::Kernel;
use suite::Suite;

/// What the lab itself needs on the host; suites add their own (`packages` in `suite.conf`).
const TOOLS: [Tool<'static>; 7] = [
    Tool::new("qemu-system-x86_64", "qemu-system-x86"),
    Tool::new("busybox", "busybox-static"),
    Tool::new("dash", "dash"),
    Tool::new("depmod", "kmod"),
    Tool::new("xz", "xz-utils"),
    Tool::new("ldd", "libc-bin"),
    Tool::new("sha256sum", "coreutils"),
];

pub(crate) fn main(args: &[String]) -> Result<()> {
    let Some(args) = Args::parse(args)? else {
        print!("{}", args::HELP);
        return Ok(());
    };
    let tests_vm = shell::root().join("tests/vm");
    let suites = suite::select(&tests_vm.join("suites"), &args.selection, args.list)?;
    if args.list {
        for (suite, test) in suites.iter().flat_map(|suite| suite.tests.iter().map(move |test| (suite, test)))
        {
            println!("{}::{} ({} s at most): {}", suite.name, test.name, test.deadline.as_secs(), test.about);
        }
        return Ok(());
    }

    if let Some(log) = &args.keep_log {
        std::fs::write(log, "").with_context(|| format!("write {}", log.display()))?;
    }
    let lab = Lab::prepare(&args, &suites, tests_vm)?;
    let started = Instant::now();
    let mut reports = Vec::new();
    for suite in &suites {
        println!("suite {} ({} tests, Linux {})", suite.name, suite.tests.len(), lab.kernel.version);
        reports.extend(lab.run(suite, &args)?);
    }
    let failed: Vec<&Report> = reports.iter().filter(|report| report.verdict != Verdict::Passed).collect();
    for report in &failed {
        println!("\n---- {} {}", report.name, report.verdict);
        println!("{}", report.evidence());
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("\n{} passed, {} failed, {seconds:.1} s", reports.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        let names: Vec<&str> = failed.iter().map(|report| report.name.as_str()).collect();
        bail!("{}", names.join(", "));
    }
    Ok(())
}

/// Everything a boot needs, made once per invocation and cached under `target/vm`.
struct Lab {
    tests_vm: PathBuf,
    cache: PathBuf,
    kernel: Kernel,
    /// `nvmf` and what suites have of the test programs, by name.
    built: Vec<(String, PathBuf)>,
}

impl Lab {
    fn prepare(args: &Args, suites: &[Suite], tests_vm: PathBuf) -> Result<Self> {
        let cache = shell::target_dir()?.join("vm");
        std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
        let stamp = cache.join("apt-lists");
        let suite_tools = suites.iter().flat_map(|suite| suite.conf.tools());
        let tools: Vec<Tool<'_>> = TOOLS.into_iter().chain(suite_tools).collect();
        apt::ensure(&tools, &stamp, "the virtual machine lab")?;
        let kernel = Kernel::locate(args.kernel.as_deref(), &cache, &stamp)?;
        let mut built = vec![("nvmf".to_owned(), nvmf_binary(args.dev)?)];
        let tests = suites.iter().flat_map(|suite| &suite.conf.tests);
        built.extend(programs("nvmf-tests", "--bin", tests, args.dev)?);
        let examples = suites.iter().flat_map(|suite| &suite.conf.examples);
        built.extend(programs("nvmf-discovery", "--example", examples, args.dev)?);
        Ok(Self { tests_vm, cache, kernel, built })
    }

    /// Runs a suite's tests. They share one guest; when a test takes it down, the rest get a new one. When it was QEMU itself that
    /// crashed, the test gets a second chance there: no guest may do that to an emulator, whatever its programs do, and
    /// QEMU's NVMe device is known to when it is unplugged while it fetches commands.
    fn run(&self, suite: &Suite, args: &Args) -> Result<Vec<Report>> {
        let base = initramfs::base(suite, &self.kernel, &self.cache)?;
        let own = suite.conf.tests.iter().chain(&suite.conf.examples);
        let wanted = |name: &str| name == "nvmf" || own.clone().any(|wanted| wanted == name);
        let built: Vec<_> = self.built.iter().filter(|(name, _)| wanted(name)).cloned().collect();
        let mut reports = Vec::new();
        let mut second_chances = BTreeSet::new();
        let mut remaining = suite.tests.as_slice();
        while !remaining.is_empty() {
            let overlay = initramfs::overlay(suite, remaining, &built, &self.tests_vm.join("guest"))?;
            let guest = Guest::start(suite, &self.kernel, &base, &overlay, &self.cache, args.icount)?;
            let mut boot = guest.run(suite, remaining, args.verbose, args.keep_log.as_deref())?;
            if boot.qemu_crashed
                && boot.reports.last().is_some_and(|victim| second_chances.insert(victim.name.clone()))
                && let Some(victim) = boot.take_last_report(suite)
            {
                println!("  {:<24} is run once more: it was QEMU that crashed", victim.name);
            }
            remaining = &remaining[boot.finished.min(remaining.len())..];
            reports.extend(boot.reports);
            if boot.setup_failed {
                println!("  {} tests not run: there is nothing to run them against", remaining.len());
                break;
            }
        }
        Ok(reports)
    }
}

/// The program under test: `NVMF_BIN`, or built now.
fn nvmf_binary(dev: bool) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("NVMF_BIN") {
        let path = PathBuf::from(given);
        return path.canonicalize().with_context(|| format!("NVMF_BIN names {}", path.display()));
    }
    build("nvmf-discovery", "--bin", &["nvmf"], dev)?;
    built_program("nvmf", "--bin", dev)
}

/// Programs of a package that suites have, built now; `kind` is the option of cargo that names them.
fn programs<'a>(
    package: &str,
    kind: &str,
    names: impl Iterator<Item = &'a String>,
    dev: bool,
) -> Result<Vec<(String, PathBuf)>> {
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    if !names.is_empty() {
        build(package, kind, &names.iter().copied().collect::<Vec<_>>(), dev)?;
    }
    names.into_iter().map(|name| Ok((name.to_owned(), built_program(name, kind, dev)?))).collect()
}

fn build(package: &str, kind: &str, programs: &[&str], dev: bool) -> Result<()> {
    let mut args = vec!["build", "--quiet", "--package", package];
    args.extend(programs.iter().flat_map(|program| [kind, program]));
    if !dev {
        args.push("--release");
    }
    let began = Instant::now();
    let programs = programs.join(", ");
    shell::run(&mut shell::cargo(args)?).with_context(|| format!("build {programs}"))?;
    if began.elapsed() > Duration::from_secs(5) {
        println!("built {programs} in {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn built_program(name: &str, kind: &str, dev: bool) -> Result<PathBuf> {
    let mut path = shell::target_dir()?.join(if dev { "debug" } else { "release" });
    if kind == "--example" {
        path.push("examples");
    }
    path.push(name);
    if !path.is_file() {
        bail!("the build left no program at {}", path.display());
    }
    Ok(path)
}
