//! `cargo xtask`: the project's automation. One binary, small dependencies, so that it is ready within seconds on a clean machine.
#![forbid(unsafe_code)]

mod apt;
mod bench;
mod check;
mod deny;
mod dist;
mod fuzz;
mod lanes;
mod lint;
mod native;
mod programs;
mod shell;
mod soak;
mod vm;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  test [--no-vm] [--no-deny] [--no-counts]   everything: format, lint, clippy, docs, tests, instructions of a read, deny,
                               virtual machines
  tests                        what `cargo test --workspace` runs, two test programs at a time
  programs                     release builds of all programs that the other steps run
  vm [SUITE[::TEST]...]        suites against real Linux peers in a QEMU guest (`cargo xtask vm --help`)
  soak [--seconds N] [--seed S]  random I/O over TCP while its connections are harmed (`cargo xtask soak --help`)
  fuzz [--seconds N] [HARNESS...]  parsers of a peer's bytes under libFuzzer (`cargo xtask fuzz --help`)
  bench [counts|scale] [OPTION...]  the initiator beside the machine's limits and beside SPDK (`cargo xtask bench --help`)
  dist                         nvmf in a release build, its man pages and completions, in target/dist
  lint                         house rules the compiler does not know
  deny                         licences, duplicate and forbidden crates, sources (cargo-deny)
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let outcome = match command.as_str() {
        "test" => check::main(&rest),
        "tests" => no_arguments(&rest).and_then(|()| native::main()),
        "programs" => no_arguments(&rest).and_then(|()| check::programs()),
        "vm" => vm::main(&rest),
        "fuzz" => fuzz::main(&rest),
        "bench" => bench::main(&rest),
        "soak" => soak::main(&rest),
        "dist" => no_arguments(&rest).and_then(|()| dist::main()),
        "lint" => no_arguments(&rest).and_then(|()| lint::main()),
        "deny" => no_arguments(&rest).and_then(|()| deny::main()),
        "" | "help" | "-h" | "--help" => {
            print!("{HELP}");
            return if command.is_empty() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
        other => Err(anyhow::anyhow!("unknown command `{other}`\n\n{HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn no_arguments(rest: &[String]) -> anyhow::Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(first) => anyhow::bail!("unexpected argument `{first}`"),
    }
}
