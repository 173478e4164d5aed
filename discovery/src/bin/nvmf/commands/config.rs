//! `nvmf config`: the configuration files of nvme-cli, shown and checked.

use std::path::{Path, PathBuf};

use nvmf_core::HostIdentity;
use nvmf_discovery::config::{Checked, Severity, show};

use super::{Format, print, print_json};
use crate::configured;
use crate::failure::Failure;

/// Show or check the configuration files
///
/// They are /etc/nvme/nvme-fabrics.conf with nvme-fabrics.conf.d/*.conf (nvme-cli 3.0), /etc/nvme/config.json (nvme-cli 2)
/// and /etc/nvme/discovery.conf. All that are there are read.
#[derive(clap::Args, Debug)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
Examples:
  nvmf config show                        which controllers, with which options, and where each is set
  nvmf config validate -J ./new.conf      is that file right?"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ConfigCommand {
    Show(ShowArgs),
    Validate(ValidateArgs),
}

/// Show the effective configuration: every value and where it comes from
///
/// Secrets are not shown.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf config show
  nvmf config show -J /etc/nvme/discovery.conf
  nvmf config show -o json | jq '.hosts[].discovery_controllers'")]
struct ShowArgs {
    #[command(flatten)]
    file: FileArgs,

    /// Output: text or JSON
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: Format,
}

/// Check the configuration and list everything that is wrong with it
///
/// Exit code 2 if there is an error. Warnings are about what is passed over, as nvme-cli does.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf config validate
  nvmf config validate --config ./nvme-fabrics.conf")]
struct ValidateArgs {
    #[command(flatten)]
    file: FileArgs,
}

#[derive(clap::Args, Debug)]
struct FileArgs {
    /// This file instead of those in /etc/nvme, in any of the three formats; with its FILE.d/*.conf if it is an
    /// nvme-fabrics.conf
    #[arg(short = 'J', long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FileArgs {
    fn check(&self) -> Checked {
        configured::check(self.config.as_deref())
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        ConfigCommand::Show(args) => show(args),
        ConfigCommand::Validate(args) => validate(&args.file),
    }
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let config = args.file.check().into_result().map_err(Failure::usage)?;
    // Without one the rest can still be shown.
    let machine = HostIdentity::find(Path::new("/")).ok();
    match args.output_format {
        Format::Normal if config.is_empty() => print("no controllers are configured\n"),
        Format::Normal => print(show::text(&config, machine.as_ref())),
        Format::Json => print_json(&show::json(&config, machine.as_ref())),
    }
}

fn validate(file: &FileArgs) -> Result<(), Failure> {
    let checked = file.check();
    let lines: String = checked.diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
    print(lines)?;
    let errors = checked.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    if errors > 0 {
        let plural = if errors == 1 { "" } else { "s" };
        return Err(Failure::usage(format!("{errors} error{plural} in the configuration")));
    }
    match checked.config.files.as_slice() {
        [] => print("no configuration files in /etc/nvme\n"),
        files => files.iter().try_for_each(|file| print(format!("{}: OK\n", file.display()))),
    }
}
