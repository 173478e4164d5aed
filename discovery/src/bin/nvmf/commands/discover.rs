//! `nvmf discover`: the log of a discovery controller, as `nvme discover` prints it.

use std::path::PathBuf;

use nvmf_discovery::{discover, output};

use super::print;
use crate::connect::ConnectArgs;
use crate::failure::Failure;

/// Ask a discovery controller what it offers
///
/// Output is that of `nvme discover`, byte for byte.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf discover -t tcp -a 192.0.2.1             port 8009
  nvmf discover -t tcp -a 192.0.2.1 -s 4420     many targets answer there
  nvmf discover nvme+tcp://[fe80::1%eth0]:4420
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
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum OutputFormat {
    Normal,
    Json,
    Binary,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let trid = args.connect.trid()?;
    let options = args.connect.options(1)?;
    let discovery = discover(&args.connect.driver()?, &trid, &options)
        .map_err(|error| args.connect.discovery_failure(&error))?;
    if discovery.has_unique_nqn() {
        tracing::info!(subnqn = discovery.subnqn, "the discovery subsystem has a unique NQN");
    }
    let log = &discovery.log;
    if let Some(path) = &args.raw {
        return std::fs::write(path, output::binary(log))
            .map_err(|error| Failure::file("writing", path, &error));
    }
    match args.output_format {
        OutputFormat::Normal => print(output::text(log)),
        OutputFormat::Json => print(output::json(log)),
        OutputFormat::Binary => print(output::binary(log)),
    }
}
