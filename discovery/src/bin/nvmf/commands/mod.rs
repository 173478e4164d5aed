//! One module per command.

#[cfg(feature = "pcie")]
pub(crate) mod bind;
pub(crate) mod config;
pub(crate) mod connect_all;
pub(crate) mod copy;
#[cfg(feature = "tcp")]
pub(crate) mod demo;
pub(crate) mod dim;
pub(crate) mod discover;
pub(crate) mod generate;
pub(crate) mod hostnqn;
pub(crate) mod identify;
pub(crate) mod list;
pub(crate) mod list_subsys;
#[cfg(feature = "pcie")]
mod local;
mod metadata;
pub(crate) mod monitor;
pub(crate) mod perf;
pub(crate) mod reset;
pub(crate) mod share;
#[cfg(feature = "tcp")]
pub(crate) mod target;
pub(crate) mod verify;

use std::io::Write;

use serde::Serialize;

use crate::cli::Command;
use crate::failure::Failure;

/// Runs a command.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        #[cfg(feature = "tcp")]
        Command::Demo(args) => demo::run(&args),
        Command::Discover(args) => discover::run(&args),
        Command::ConnectAll(args) => connect_all::run(&args),
        Command::Monitor(args) => monitor::run(&args),
        Command::Dim(args) => dim::run(&args),
        Command::List(args) => list::run(&args),
        Command::ListSubsys(args) => list_subsys::run(&args),
        #[cfg(feature = "pcie")]
        Command::Bind(args) => bind::bind(&args),
        #[cfg(feature = "pcie")]
        Command::Unbind(args) => bind::unbind(&args),
        Command::Identify(args) => identify::run(&args),
        Command::Read(args) => copy::read(&args),
        Command::Write(args) => copy::write(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Perf(args) => perf::run(&args),
        Command::Reset(args) => reset::reset(&args),
        Command::Share(args) => share::run(&args),
        Command::SubsystemReset(args) => reset::subsystem_reset(&args),
        Command::Config(args) => config::run(&args),
        Command::ShowHostnqn(args) => hostnqn::show(&args),
        Command::GenHostnqn(args) => hostnqn::generate(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
        #[cfg(feature = "tcp")]
        Command::Target(args) => target::run(&args),
    }
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    /// Text for people.
    Normal,
    /// JSON for programs.
    Json,
}

/// Prints to standard output, at once.
pub(crate) fn print(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes.as_ref()).and_then(|()| stdout.flush()).map_err(|error| Failure::stdout(&error))
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = nvmf_discovery::output::json_layout(value)
        .map_err(|error| Failure::failed(format!("writing JSON: {error}")))?;
    print(text)
}
