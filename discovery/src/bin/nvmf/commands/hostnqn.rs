//! `nvmf show-hostnqn`, `nvmf gen-hostnqn`: the name of this host, as nvme-cli prints it.

use nvmf_core::HostIdentity;
use nvmf_core::host::HostIdentityError;

use super::print;
use crate::failure::Failure;

/// Print the NQN of this host
///
/// That of /etc/nvme/hostnqn, else one made from the firmware's UUID, from /etc/machine-id, or, until the next boot, from
/// the kernel's boot identifier. It is the name every command uses unless told otherwise.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf show-hostnqn")]
pub(crate) struct ShowArgs {}

/// Make an NQN for this host and print it
///
/// It is made from the firmware's UUID where that may be read, which is up to root on most systems, else it is random.
/// Nothing is written.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf gen-hostnqn
  nvmf gen-hostnqn | sudo tee /etc/nvme/hostnqn    keep it")]
pub(crate) struct GenArgs {}

pub(crate) fn show(_args: &ShowArgs) -> Result<(), Failure> {
    print_nqn(HostIdentity::load())
}

pub(crate) fn generate(_args: &GenArgs) -> Result<(), Failure> {
    print_nqn(HostIdentity::generate())
}

fn print_nqn(identity: Result<HostIdentity, HostIdentityError>) -> Result<(), Failure> {
    let identity = identity.map_err(|error| Failure::usage(format!("host identity: {error}")))?;
    print(format!("{}\n", identity.nqn))
}
