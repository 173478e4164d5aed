//! `nvmf discover`: the log of a discovery controller, as `nvme discover` prints it.

use std::path::PathBuf;

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_discovery::{discover, output};

use super::print;
use crate::configured;
use crate::connect::{ConnectArgs, driver};
use crate::failure::Failure;

/// Ask a discovery controller what it offers
///
/// Output is that of `nvme discover`, byte for byte. Without an address, every discovery controller that is configured in
/// /etc/nvme is asked (see `nvmf config show`).
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf discover -t tcp -a 192.0.2.1             port 8009
  nvmf discover -t tcp -a 192.0.2.1 -s 4420     many targets answer there
  nvmf discover nvme+tcp://[fe80::1%eth0]:4420
  nvmf discover                                 all that are configured in /etc/nvme
  nvmf discover -t tcp -a 192.0.2.1 -o json | jq -r '.records[].subnqn'")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    /// Output: text, JSON, or the log page as it is
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: OutputFormat,

    /// Write the log page as it is to a file, and nothing to standard output
    #[arg(short, long, value_name = "FILE")]
    raw: Option<PathBuf>,

    /// Without an address: ask the discovery controllers configured in this file instead of those in /etc/nvme
    #[arg(short = 'J', long, value_name = "FILE", conflicts_with_all = ["trid", "transport"])]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum OutputFormat {
    Normal,
    Json,
    Binary,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.connect.is_empty() {
        return run_configured(args);
    }
    let trid = args.connect.trid()?;
    let options = args.connect.options(1)?;
    let discovery =
        discover(&driver(), &trid, &options).map_err(|error| args.connect.discovery_failure(&error))?;
    if discovery.has_unique_nqn() {
        tracing::info!(subnqn = discovery.subnqn, "the discovery subsystem has a unique NQN");
    }
    args.print(&discovery.log)
}

/// Asks every discovery controller configured. One that does not answer does not keep the others from being asked; it is what
/// the command fails with.
fn run_configured(args: &Args) -> Result<(), Failure> {
    let controllers = configured::discovery_controllers(args.config.as_deref(), &args.connect.options(1)?)?;
    if args.raw.is_some() && controllers.len() > 1 {
        let what =
            "--raw: several discovery controllers are configured and there is one file; name the one to ask";
        return Err(Failure::usage(what));
    }
    let driver = driver();
    let mut outcome = Ok(());
    for (trid, options) in controllers {
        match discover(&driver, &trid, &options) {
            Ok(discovery) => args.print(&discovery.log)?,
            Err(error) => {
                tracing::warn!(%error, %trid, "a discovery controller did not answer");
                outcome = outcome.and(Err(Failure::attach(&error)));
            }
        }
    }
    outcome
}

impl Args {
    fn print(&self, log: &DiscoveryLog) -> Result<(), Failure> {
        if let Some(path) = &self.raw {
            return std::fs::write(path, output::binary(log))
                .map_err(|error| Failure::file("writing", path, &error));
        }
        match self.output_format {
            OutputFormat::Normal => print(output::text(log)),
            OutputFormat::Json => print(output::json(log)),
            OutputFormat::Binary => print(output::binary(log)),
        }
    }
}
