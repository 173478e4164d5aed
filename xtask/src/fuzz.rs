//! `cargo xtask fuzz`: the harnesses of `nvmf_tests::fuzz` under libFuzzer, in a build of their own with coverage counters.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

const HELP: &str = "\
cargo xtask fuzz [--seconds N] [HARNESS...]

Runs each harness (all by default) under libFuzzer for N seconds (60 by default), from the corpus in tests/fuzz/corpus. What is found on the way is
kept in the target directory and used by the next run; an input that fails is kept there, too, and named.
Needs a C++ compiler.
";

/// Coverage counters and comparisons, as libFuzzer wants them.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

pub(crate) fn main(args: &[String]) -> Result<()> {
    let mut seconds = 60u64;
    let mut chosen = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => {
                print!("{HELP}");
                return Ok(());
            }
            "--seconds" => {
                let value = args.next().context("--seconds needs a number")?;
                seconds = value.parse().with_context(|| format!("--seconds {value}: not a number"))?;
                ensure!(seconds > 0, "--seconds 0 would run for ever");
            }
            option if option.starts_with('-') => bail!("unknown option `{option}`\n\n{HELP}"),
            name => chosen.push(name.to_owned()),
        }
    }
    let known = harnesses()?;
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("there is no harness `{unknown}`; there are {}", known.join(", "));
    }
    let program = build()?;
    let mut findings = Vec::new();
    for name in if chosen.is_empty() { &known } else { &chosen } {
        match run(&program, name, seconds)? {
            Ok(summary) => println!("{name:<14} {summary}"),
            Err(finding) => {
                println!("{name:<14} FOUND: {finding}");
                findings.push(name.as_str());
            }
        }
    }
    ensure!(findings.is_empty(), "findings in {}", findings.join(", "));
    Ok(())
}

fn corpus() -> PathBuf {
    shell::root().join("tests/fuzz/corpus")
}

/// A folder of the corpus for each.
fn harnesses() -> Result<Vec<String>> {
    let folder = corpus();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn working_dir() -> Result<PathBuf> {
    Ok(shell::target_dir()?.join("fuzz"))
}

fn build() -> Result<PathBuf> {
    let target = working_dir()?.join("build");
    let manifest = shell::root().join("tests/fuzz/Cargo.toml");
    let mut cargo = shell::cargo(["build", "--release", "--quiet", "--manifest-path"])?;
    // A target triple keeps build scripts and procedural macros free of the flags.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.arg(manifest).args(["--target", &triple]);
    cargo.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    shell::run(&mut cargo).context("building the harnesses (a C++ compiler is needed for libFuzzer)")?;
    Ok(target.join(triple).join("release/fuzz"))
}

/// What libFuzzer did, or the input it found.
fn run(program: &Path, name: &str, seconds: u64) -> Result<std::result::Result<String, String>> {
    let working = working_dir()?;
    let (inputs, found) = (working.join("corpus").join(name), working.join("found").join(name));
    for folder in [&inputs, &found] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log_path = working.join(format!("{name}.log"));
    let log = std::fs::File::create(&log_path).with_context(|| log_path.display().to_string())?;
    let status = shell::command(&program.to_string_lossy(), [&inputs, &corpus().join(name)])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-max_len=16384", "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .env("NVMF_FUZZ_TARGET", name)
        .stdout(Stdio::null())
        .stderr(log)
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&std::fs::read(&log_path)?).into_owned();
    let field =
        |name: &str| text.lines().rev().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim);
    let covered = text.lines().rev().find_map(|line| line.split("cov: ").nth(1)?.split(' ').next());
    if status.success() {
        return Ok(Ok(format!(
            "{} executions in {seconds} s, {} counters covered, {} MiB",
            field("stat::number_of_executed_units:"),
            covered.unwrap_or("?"),
            field("stat::peak_rss_mb:"),
        )));
    }
    let input = text.lines().find_map(|line| line.split("Test unit written to ").nth(1));
    let input = input.map_or_else(|| format!("{status}"), |path| format!("the input is {path}"));
    Ok(Err(format!("{input}; the log is {}", log_path.display())))
}
