//! `nvmf`: the command line of the user-space NVMe-oF initiator.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod configured;
mod connect;
mod fabrics;
mod failure;
mod pattern;
mod pipeline;
mod progress;
mod recovery;
mod size;
mod units;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::failure::Failure;

fn main() -> ExitCode {
    let outcome = cli::parse().and_then(|cli| {
        log_to_stderr(cli.verbose)?;
        commands::run(cli.command)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.line().into_iter().for_each(failure::complain);
            ExitCode::from(failure.code())
        }
    }
}

/// Logs nothing unless asked to: errors have their one line anyway. `RUST_LOG` goes before `-v`.
fn log_to_stderr(verbose: u8) -> Result<(), Failure> {
    let level = match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter =
        EnvFilter::builder().with_default_directive(level.into()).try_from_env().or_else(|error| {
            match std::env::var_os(EnvFilter::DEFAULT_ENV) {
                None => Ok(EnvFilter::default().add_directive(level.into())),
                Some(_) => Err(Failure::usage(format!("RUST_LOG: {error}; try RUST_LOG=debug"))),
            }
        })?;
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    Ok(())
}
