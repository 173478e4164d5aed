//! `cargo xtask test`: every check the project has, in the order that finds cheap mistakes first.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lanes::{self, Captured};
use crate::{bench, shell, vm};

/// Something that is done, by a program of its own.
struct Step {
    name: &'static str,
    command: fn() -> Result<Command>,
}

const fn step(name: &'static str, command: fn() -> Result<Command>) -> Step {
    Step { name, command }
}

/// Lanes are worked through side by side.
type Phase = &'static [&'static [Step]];

const PHASES: [Phase; 3] = [
    &[&[
        step("format", || shell::cargo(["fmt", "--all", "--check"])),
        step("lint", || xtask(&["lint"])),
        step("clippy", clippy),
        step("docs", docs),
        step("compile", compile),
        step("programs", || xtask(&["programs"])),
        step("counts", || xtask(&["bench", "counts"])),
    ]],
    // Tests wait more than they compute.
    &[&[step("tests", || xtask(&["tests"]))], &[step("deny", || xtask(&["deny"]))]],
    &[&[step("vm", || xtask(&["vm"]))]],
];

/// A step that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

const OPTIONS: [(&str, &str); 3] = [("--no-vm", "vm"), ("--no-deny", "deny"), ("--no-counts", "counts")];

struct Done {
    name: &'static str,
    took: Duration,
    passed: bool,
}

pub(crate) fn main(args: &[String]) -> Result<()> {
    let mut skipped: Vec<&str> = Vec::new();
    for arg in args {
        match (OPTIONS.iter().find(|(option, _)| option == arg), arg.as_str()) {
            (Some((_, step)), _) => skipped.push(step),
            (None, "-h" | "--help") => {
                println!("cargo xtask test [--no-vm] [--no-deny] [--no-counts]\n\nsteps: {}", names());
                return Ok(());
            }
            (None, other) => bail!("unknown option `{other}` (known: --no-vm, --no-deny, --no-counts)"),
        }
    }
    let started = Instant::now();
    let mut done: Vec<Done> = Vec::new();
    for phase in PHASES {
        let lanes = phase
            .iter()
            .map(|lane| lane.iter().filter(|step| !skipped.contains(&step.name)).collect::<Vec<&Step>>());
        let lanes: Vec<Vec<&Step>> = lanes.filter(|lane| !lane.is_empty()).collect();
        let alone = lanes.len() == 1;
        let ended = lanes::each(lanes.len(), lanes, |lane| {
            let run = if alone { run } else { run_beside };
            Ok(lane.into_iter().map(run).collect::<Vec<Done>>())
        })?;
        done.extend(ended.into_iter().flatten());
    }
    summary(&done, &skipped, started.elapsed())
}

fn summary(done: &[Done], skipped: &[&str], took: Duration) -> Result<()> {
    println!("\n==> summary");
    for Done { name, took, passed } in done {
        println!("{name:<8} {:>7.1} s  {}", took.as_secs_f64(), word(*passed));
    }
    for name in skipped {
        println!("{name:<8}          left out by request");
    }
    let failed: Vec<&str> = done.iter().filter(|step| !step.passed).map(|step| step.name).collect();
    println!("{} steps passed, {} failed, {} s", done.len() - failed.len(), failed.len(), took.as_secs());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn word(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

/// Runs a step and shows what it prints.
fn run(step: &Step) -> Done {
    println!("\n==> {}", step.name);
    let began = Instant::now();
    let outcome = (step.command)().and_then(|mut command| shell::run(&mut command));
    end(step.name, began.elapsed(), outcome)
}

/// Runs a step beside others: what it prints is shown when it has ended.
fn run_beside(step: &Step) -> Done {
    println!("\n==> {} (beside others)", step.name);
    let began = Instant::now();
    let ran = (step.command)().and_then(|mut command| {
        let log = lanes::log_dir()?.join(format!("step-{}.log", step.name));
        lanes::capture(&mut command, &log, LIMIT)
    });
    let outcome = ran.and_then(|Captured { text, outcome, .. }| {
        print!("{text}");
        outcome
    });
    end(step.name, began.elapsed(), outcome)
}

fn end(name: &'static str, took: Duration, outcome: Result<()>) -> Done {
    if let Err(error) = &outcome {
        println!("{name}: {error:#}");
    }
    println!("<== {name}: {}, {:.1} s", word(outcome.is_ok()), took.as_secs_f64());
    Done { name, took, passed: outcome.is_ok() }
}

/// This program.
fn xtask(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find the running xtask binary")?);
    command.args(args);
    Ok(command)
}

fn clippy() -> Result<Command> {
    shell::cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
}

fn docs() -> Result<Command> {
    let mut doc = shell::cargo(["doc", "--workspace", "--no-deps", "--quiet"])?;
    doc.env("RUSTDOCFLAGS", "-D warnings");
    Ok(doc)
}

/// Builds what the step `tests` runs.
fn compile() -> Result<Command> {
    shell::cargo(["test", "--workspace", "--no-run", "--quiet"])
}

/// `cargo xtask programs`: builds what the steps `counts` and `vm` run.
pub(crate) fn programs() -> Result<()> {
    vm::programs()?.tests([bench::COUNTED]).build()
}

fn names() -> String {
    let steps = PHASES.iter().flat_map(|phase| phase.iter()).flat_map(|lane| lane.iter());
    steps.map(|step| step.name).collect::<Vec<_>>().join(", ")
}
