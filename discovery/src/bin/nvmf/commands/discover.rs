//! `nvmf discover`: the log of a discovery controller, as `nvme discover` prints it.

use std::path::PathBuf;

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_discovery::output;

use super::print;
use crate::fabrics::DiscoveryArgs;
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
  nvmf discover -t tcp -a 192.0.2.1 --referrals  and where it refers to
  nvmf discover                                 all that are configured in /etc/nvme
  nvmf discover -t tcp -a 192.0.2.1 -o json | jq -r '.records[].subnqn'")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) discovery: DiscoveryArgs,

    /// Output: text, JSON, or the log page as it is
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: OutputFormat,

    /// Write the log page as it is to a file, and nothing to standard output
    #[arg(short, long, value_name = "FILE", conflicts_with = "referrals")]
    raw: Option<PathBuf>,

    /// Ask those it refers to as well, and those they refer to, and print one log after the other
    #[arg(long)]
    referrals: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum OutputFormat {
    Normal,
    Json,
    Binary,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut asking = args.discovery.prepare()?;
    if args.raw.is_some() && asking.seeds.len() > 1 {
        let what =
            "--raw: several discovery controllers are configured and there is one file; name the one to ask";
        return Err(Failure::usage(what));
    }
    asking.options.controller.keep_alive_timeout = args.discovery.fabrics.keep_alive_tmo.unwrap_or_default();
    if !args.referrals {
        asking.options.max_depth = 0;
    }
    // One that does not answer does not keep the others from being asked; it is what the command fails with.
    let found = asking.walk();
    for discovery in found.controllers.iter().filter_map(|asked| asked.result.as_ref().ok()) {
        if discovery.has_unique_nqn() {
            tracing::info!(subnqn = discovery.subnqn, "the discovery subsystem has a unique NQN");
        }
        args.print(&discovery.log)?;
    }
    args.discovery.outcome(&found)
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
