//! `nvmf discover`: the log of a discovery controller, as `nvme discover` prints it.

use std::path::PathBuf;

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_core::spec::discovery::DiscoveryLogAsk;
use nvmf_discovery::{DiscoverOptions, output, walk};

use super::print;
use crate::connect::ConnectArgs;
use crate::fabrics::{ConfigArgs, FabricsArgs};
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
  nvmf discover -t tcp -a 192.0.2.1 --referrals   and where it refers to
  nvmf discover                                 all that are configured in /etc/nvme
  nvmf discover -t tcp -a 192.0.2.1 -o json | jq -r '.records[].subnqn'")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    #[command(flatten)]
    fabrics: FabricsArgs,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    ask: AskArgs,

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

/// What is asked of the log.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct AskArgs {
    /// Only entries of the port that is asked (PLEO)
    #[arg(long, alias = "pleo")]
    port_local: bool,

    /// Entries of all NVM subsystems, also of those that are not meant for this host (ALLSUBE)
    #[arg(long, alias = "allsube")]
    all_subsystems: bool,

    /// Extended entries (EXTDLPE); their attributes are in binary output only
    #[arg(long, alias = "extdlpe")]
    extended: bool,
}

impl AskArgs {
    pub(crate) fn ask(&self) -> DiscoveryLogAsk {
        let asks = [
            (self.port_local, DiscoveryLogAsk::PORT_LOCAL),
            (self.all_subsystems, DiscoveryLogAsk::ALL_SUBSYSTEMS),
            (self.extended, DiscoveryLogAsk::EXTENDED),
        ];
        let asked = asks.into_iter().filter(|(asked, _)| *asked);
        asked.fold(DiscoveryLogAsk::default(), |all, (_, ask)| all.union(ask))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum OutputFormat {
    Normal,
    Json,
    Binary,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut controller = args.connect.options(1)?;
    args.fabrics.apply(&mut controller)?;
    let seeds = args.config.seeds(&args.connect, &controller)?;
    if args.raw.is_some() && seeds.len() > 1 {
        let what =
            "--raw: several discovery controllers are configured and there is one file; name the one to ask";
        return Err(Failure::usage(what));
    }
    let mut options = DiscoverOptions::new(controller).ask(args.ask.ask());
    options.controller.keep_alive_timeout = args.fabrics.keep_alive_tmo.unwrap_or_default();
    if !args.referrals {
        options.max_depth = 0;
    }
    // One that does not answer does not keep the others from being asked; it is what the command fails with.
    let found = walk(&args.connect.driver()?, &seeds, &options);
    for discovery in found.controllers.iter().filter_map(|asked| asked.result.as_ref().ok()) {
        if discovery.has_unique_nqn() {
            tracing::info!(subnqn = discovery.subnqn, "the discovery subsystem has a unique NQN");
        }
        args.print(&discovery.log)?;
    }
    args.config.outcome(&args.connect, &found)
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
