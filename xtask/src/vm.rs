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

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Tool};
use crate::lanes;
use crate::programs::Programs;
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

/// Guests at a time. One has two processors and seldom needs both: it starts programs, connects, waits.
const LANES: usize = 2;

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
    let reports = lab.run_all(&suites, &args)?;
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
        let built = build(suites, args.dev)?;
        Ok(Self { tests_vm, cache, kernel, built })
    }

    /// Runs the suites, several at a time, each in a guest of its own that shares nothing with the others. The reports are in the
    /// order of the suites.
    fn run_all(&self, suites: &[Suite], args: &Args) -> Result<Vec<Report>> {
        // The longest first, so that none is left to run alone in the end.
        let mut order: Vec<usize> = (0..suites.len()).collect();
        order.sort_by_key(|&index| Reverse(suites[index].weight()));
        // A guest ends with the thread that started it.
        let lanes = args.lanes.unwrap_or(LANES).min(suites.len());
        let mut reports = lanes::each(lanes, order, |index| Ok((index, self.run(&suites[index], args)?)))?;
        reports.sort_by_key(|(index, _)| *index);
        Ok(reports.into_iter().flat_map(|(_, reports)| reports).collect())
    }

    /// Runs a suite's tests. They share one guest; when a test takes it down, the rest get a new one. When it was QEMU itself that
    /// crashed, the test gets a second chance there: no guest may do that to an emulator, whatever its programs do, and
    /// QEMU's NVMe device is known to when it is unplugged while it fetches commands. So does a guest that never said a word, and one
    /// whose kernel met a breakpoint of its own that was gone.
    fn run(&self, suite: &Suite, args: &Args) -> Result<Vec<Report>> {
        println!("suite {} ({} tests, Linux {})", suite.name, suite.tests.len(), self.kernel.version);
        let began = Instant::now();
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
            if boot.qemu_failed
                && boot.reports.last().is_some_and(|victim| second_chances.insert(victim.name.clone()))
                && let Some(victim) = boot.take_last_report(suite)
            {
                println!(
                    "  {:<24} is run once more: QEMU crashed, did not get the guest started, or ran stale code in it",
                    victim.name
                );
            }
            remaining = &remaining[boot.finished.min(remaining.len())..];
            reports.extend(boot.reports);
            if boot.setup_failed {
                println!("  {} tests not run: there is nothing to run them against", remaining.len());
                break;
            }
        }
        let failed = reports.iter().filter(|report| report.verdict != Verdict::Passed).count();
        let seconds = began.elapsed().as_secs_f64();
        println!("suite {}: {} passed, {failed} failed, {seconds:.1} s", suite.name, reports.len() - failed);
        Ok(reports)
    }
}

/// What the suites have of the workspace's programs.
fn wanted(suites: &[Suite]) -> Programs {
    suites.iter().fold(Programs::release(), |programs, suite| {
        programs.tests(&suite.conf.tests).examples(&suite.conf.examples)
    })
}

/// Everything that a run of all suites has in its guests, for whoever builds it beforehand.
pub(crate) fn programs() -> Result<Programs> {
    Ok(wanted(&suite::select(&shell::root().join("tests/vm/suites"), &[], false)?))
}

/// The programs, built now, by name; the one under test is `NVMF_BIN` if that is set.
fn build(suites: &[Suite], dev: bool) -> Result<Vec<(String, PathBuf)>> {
    let mut programs = wanted(suites);
    programs.dev = dev;
    let given = std::env::var_os("NVMF_BIN").map(PathBuf::from);
    let given =
        given.map(|path| path.canonicalize().with_context(|| format!("NVMF_BIN names {}", path.display())));
    // Where nothing else is wanted there is nothing to build.
    if given.is_none() || programs.has_others() {
        programs.build()?;
    }
    let mut built = programs.others()?;
    built.push(("nvmf".to_owned(), given.transpose()?.map_or_else(|| programs.path("nvmf"), Ok)?));
    Ok(built)
}
