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
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

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

/// Runs what has no deadlines of its own. When the time is over it is left alone, and goes with the process.
fn within(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let (done, outcome) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("command".to_owned()).spawn(move || {
        // Nobody listens any more when the time is over.
        let _ = done.send(work());
    });
    thread.map_err(|error| Failure::failed(format!("{what}: starting a thread: {error}")))?;
    outcome.recv_timeout(limit).unwrap_or_else(|error| {
        Err(Failure::failed(match error {
            RecvTimeoutError::Timeout => {
                format!("{what} is not done after {} s; --timeout gives it more time", limit.as_secs_f64())
            }
            RecvTimeoutError::Disconnected => format!("{what} ended without a result"),
        }))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_without_an_end_is_left_alone() {
        let limit = Duration::from_millis(20);
        let failure = within(limit, "sleeping", || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let failure = failure.unwrap_err();
        assert_eq!(failure.line(), Some("sleeping is not done after 0.02 s; --timeout gives it more time"));
        within(Duration::from_secs(60), "nothing", || Ok(())).unwrap();
        let failure = within(Duration::from_secs(60), "usage", || Err(Failure::usage("x"))).unwrap_err();
        assert_eq!(failure.code(), 2);
    }
}
