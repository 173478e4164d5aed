//! `nvmf reset`, `nvmf subsystem-reset`.

use std::time::Instant;

use nvmf_core::{Controller, Error};

use super::print;
use crate::connect::{ConnectArgs, detach};
use crate::failure::Failure;
use crate::units;

/// Reset a controller: disconnect or disable it, connect and initialise it again
///
/// Shows whether a controller comes through a reset, and how long that takes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf reset nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf reset 'trtype:PCIe traddr:0000:01:00.0' --count 100")]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    connect: ConnectArgs,

    /// How often
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 1)]
    count: u32,
}

/// Reset a whole NVM subsystem, whoever else uses it, where the controller can do that (CAP.NSSRS)
///
/// Every controller of the subsystem is reset, those of other hosts included: their I/O is interrupted.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf subsystem-reset 'trtype:PCIe traddr:0000:01:00.0' --yes")]
pub(crate) struct SubsystemResetArgs {
    #[command(flatten)]
    connect: ConnectArgs,

    /// Yes, interrupt everybody
    #[arg(long)]
    yes: bool,
}

pub(crate) fn reset(args: &ResetArgs) -> Result<(), Failure> {
    let controller = args.connect.attach(1)?;
    for _ in 0..args.count {
        report(&controller, "reset", Controller::reset)?;
    }
    detach(controller);
    Ok(())
}

pub(crate) fn subsystem_reset(args: &SubsystemResetArgs) -> Result<(), Failure> {
    if !args.yes {
        return Err(Failure::usage(
            "subsystem-reset interrupts every host of the subsystem; add --yes if that is what you want",
        ));
    }
    let controller = args.connect.attach(1)?;
    report(&controller, "subsystem-reset", Controller::reset_subsystem)?;
    detach(controller);
    Ok(())
}

fn report(
    controller: &Controller,
    what: &str,
    reset: impl FnOnce(&Controller) -> Result<(), Error>,
) -> Result<(), Failure> {
    let started = Instant::now();
    reset(controller).map_err(|error| Failure::attach(&error))?;
    print(format!(
        "{what}  {}, controller {}, {} namespaces, {}\n",
        controller.subnqn(),
        controller.cntlid(),
        controller.namespaces().len(),
        units::time(started.elapsed()),
    ))
}
