//! `cargo xtask test`: every check the project has, in the order that finds cheap mistakes first.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::shell;

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 8] = [
    ("format", || cargo(&["fmt", "--all", "--check"])),
    ("lint", crate::lint::main),
    ("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
    ("docs", docs),
    ("tests", || cargo(&["test", "--workspace", "--quiet", "--no-fail-fast"])),
    ("counts", crate::bench::check_counts),
    ("deny", crate::deny::main),
    ("vm", || crate::vm::main(&[])),
];

pub(crate) fn main(args: &[String]) -> Result<()> {
    let mut skipped: Vec<&str> = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--no-vm" => skipped.push("vm"),
            "--no-deny" => skipped.push("deny"),
            "--no-counts" => skipped.push("counts"),
            "-h" | "--help" => {
                println!("cargo xtask test [--no-vm] [--no-deny] [--no-counts]\n\nsteps: {}", names(&STEPS));
                return Ok(());
            }
            other => bail!("unknown option `{other}` (known: --no-vm, --no-deny, --no-counts)"),
        }
    }
    let started = Instant::now();
    let mut done: Vec<(&str, Duration, bool)> = Vec::new();
    for (name, step) in STEPS.iter().filter(|(name, _)| !skipped.contains(name)) {
        println!("\n==> {name}");
        let began = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            println!("{name}: {error:#}");
        }
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("<== {name}: {word}, {:.1} s", began.elapsed().as_secs_f64());
        done.push((name, began.elapsed(), outcome.is_ok()));
    }
    println!("\n==> summary");
    for (name, took, ok) in &done {
        println!("{:<8} {:>7.1} s  {}", name, took.as_secs_f64(), if *ok { "ok" } else { "FAILED" });
    }
    for name in &skipped {
        println!("{name:<8}          left out by request");
    }
    let failed: Vec<&str> = done.iter().filter(|(.., ok)| !ok).map(|(name, ..)| *name).collect();
    let seconds = started.elapsed().as_secs();
    println!("{} steps passed, {} failed, {seconds} s", done.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    shell::run(&mut shell::cargo(args)?)
}

fn docs() -> Result<()> {
    let mut doc = shell::cargo(["doc", "--workspace", "--no-deps", "--quiet"])?;
    shell::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn names(steps: &[Step]) -> String {
    steps.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
