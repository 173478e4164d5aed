//! `cargo xtask bench`: how fast the initiator is, beside the machine's limits and beside SPDK; what a command costs in
//! instructions; what many connections cost.

mod cell;
mod child;
mod counts;
mod nvmf;
mod others;
mod results;
mod spdk;
mod table;
mod turns;

use std::path::PathBuf;

use anyhow::Result;

pub(crate) use counts::PROGRAM as COUNTED;

use crate::programs::Programs;
use crate::shell;

pub(crate) fn main(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("-h" | "--help") => {
            print!("{}\n{}\n{SCALE_HELP}", table::HELP, counts::HELP);
            Ok(())
        }
        Some("counts") => counts::main(&args[1..]),
        Some("scale") => scale(&args[1..]),
        _ => table::main(args),
    }
}

const SCALE_HELP: &str = "\
cargo xtask bench scale [OPTION...]

Measures what many connections of one thread cost; see `cargo xtask bench scale --help`.
";

fn scale(args: &[String]) -> Result<()> {
    let programs = Programs::release().tests(["scale"]);
    programs.build()?;
    shell::run(&mut child::pinned(1, &programs.path("scale")?, args))
}

/// Where results go unless told otherwise.
fn results_file() -> Result<PathBuf> {
    Ok(shell::target_dir()?.join("bench").join("results.json"))
}
