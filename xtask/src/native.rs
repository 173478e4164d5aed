//! `cargo xtask tests`: what `cargo test --workspace` runs, two test programs at a time. Most of them wait more than they compute.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lanes::{self, Captured};
use crate::shell;

/// Test programs at a time.
const LANES: usize = 2;

/// How long a test program may take: the slowest takes 40 s on two cores. One that hangs is killed.
const LIMIT: Duration = Duration::from_secs(900);

/// A test program, or all documentation tests.
struct Job {
    name: String,
    command: Command,
    /// How many test programs it is.
    programs: usize,
}

/// What libtest counts.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

pub(crate) fn main() -> Result<()> {
    let began = Instant::now();
    let jobs = build()?;
    println!("built {} test programs in {:.0} s", jobs.len() - 1, began.elapsed().as_secs_f64());
    let began = Instant::now();
    let done = lanes::each(LANES, jobs, run)?;
    let sum = |part: fn(&Counts) -> u64| done.iter().map(|(counts, _)| part(counts)).sum::<u64>();
    println!(
        "{} passed, {} failed, {} ignored, {:.1} s",
        sum(|counts| counts.passed),
        sum(|counts| counts.failed),
        sum(|counts| counts.ignored),
        began.elapsed().as_secs_f64()
    );
    let failed: Vec<String> = done.into_iter().filter_map(|(_, failed)| failed).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join(", "));
    }
    Ok(())
}

/// Runs one; prints a line about it, and all its output if it fails. With its name if it does.
fn run(mut job: Job) -> Result<(Counts, Option<String>)> {
    let log = lanes::log_dir()?.join(format!("{}.log", job.name.replace([' ', '/'], "-")));
    let Captured { text, took, outcome } = lanes::capture(&mut job.command, &log, LIMIT)?;
    let counts = counts(&text, job.programs);
    let mut told = format!("  {:<34} {:>4} passed, {:.1} s", job.name, counts.passed, took.as_secs_f64());
    for line in text.lines().filter(|line| line.starts_with("skipped: ")) {
        told.push_str("\n      ");
        told.push_str(line);
    }
    let failed = outcome.err().map(|error| {
        // What passed and had something to say stands before that.
        let text = text.find("\nfailures:\n").map_or(text.as_str(), |at| &text[at..]);
        told = format!("{text}\n  {:<34} FAILED, {:.1} s: {error:#}", job.name, took.as_secs_f64());
        job.name
    });
    println!("{told}");
    Ok((counts, failed))
}

/// The sum of the last so many lines `test result: ok. 3 passed; 0 failed; 1 ignored; ...`: one that is not among them is of a program
/// that a test has started.
fn counts(text: &str, programs: usize) -> Counts {
    let mut sum = Counts::default();
    for line in text.lines().rev().filter(|line| line.starts_with("test result: ")).take(programs) {
        let words: Vec<&str> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => sum.passed += number,
                "failed" => sum.failed += number,
                "ignored" => sum.ignored += number,
                _ => {}
            }
        }
    }
    sum
}

/// Builds all test programs.
fn build() -> Result<Vec<Job>> {
    let mut cargo = shell::cargo(["test", "--workspace", "--no-run", "--quiet", "--message-format", "json"])?;
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if !output.status.success() {
        // Errors of the compiler are among the messages.
        let rendered = messages.iter().filter_map(|message| message["message"]["rendered"].as_str());
        rendered.for_each(|error| print!("{error}"));
        shell::failed(&cargo, output.status)?;
    }
    let mut jobs = messages.iter().filter_map(program).collect::<Vec<Job>>();
    let command = shell::cargo(["test", "--workspace", "--doc", "--quiet"])?;
    jobs.push(Job { name: "documentation".to_owned(), command, programs: usize::MAX });
    Ok(jobs)
}

/// The test program that a message of cargo tells of.
fn program(message: &Value) -> Option<Job> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = message["executable"].as_str()?;
    let folder = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let target = &message["target"];
    let kind = target["kind"][0].as_str()?;
    let name = target["name"].as_str()?;
    let name = match kind {
        "lib" => package,
        "test" => format!("{package} {name}"),
        _ => format!("{package} {kind} {name}"),
    };
    let mut command = Command::new(executable);
    // As cargo does it.
    command.current_dir(&folder).env("CARGO_MANIFEST_DIR", &folder);
    // What a test that passes has to say is looked through for what it left out.
    command.args(["--quiet", "--show-output"]);
    Some(Job { name, command, programs: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added() {
        let text = "\nrunning 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1.50s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(counts(text, 2), Counts { passed: 4, failed: 2, ignored: 1 });
        assert_eq!(counts(text, 1), Counts { passed: 1, failed: 2, ignored: 0 });
        assert_eq!(counts("nothing\n", 1), Counts::default());
    }

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let artifact = |kind: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": "/w/core/Cargo.toml",
                "target": { "kind": [kind], "name": "x" }, "profile": { "test": test }, "executable": "/w/target/x",
            })
        };
        let name = |message: &Value| program(message).map(|job| job.name);
        assert_eq!(name(&artifact("lib", true)).as_deref(), Some("core"));
        assert_eq!(name(&artifact("test", true)).as_deref(), Some("core x"));
        assert_eq!(name(&artifact("bin", true)).as_deref(), Some("core bin x"));
        assert_eq!(name(&artifact("bin", false)), None);
        assert_eq!(name(&serde_json::json!({ "reason": "build-finished" })), None);
    }
}
