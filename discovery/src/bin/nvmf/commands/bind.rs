//! `nvmf bind` and `nvmf unbind`: who holds a local controller, the kernel or user space.

use std::time::Duration;

use nvmf_core::transport_id::PciAddress;
use nvmf_core::{Error, ErrorKind};
use nvmf_transport_pcie::PcieTransport;

use super::{print, within};
use crate::failure::Failure;
use crate::size::parse_seconds;

/// Take a local controller from the kernel, for user space to drive
///
/// The controller's disks disappear from the kernel and it is bound to vfio-pci, which lends it to `nvmf`. Refused while one
/// of its namespaces is mounted or in use. Needs root. `nvmf list` shows the local controllers and who holds them.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf bind 0000:04:00.0
  nvmf identify 'trtype:pcie traddr:0000:04:00.0'
  nvmf unbind 0000:04:00.0                              back to the kernel")]
pub(crate) struct BindArgs {
    /// The controller's PCI address, such as 0000:04:00.0
    #[arg(value_name = "ADDRESS", required = true)]
    address: Vec<PciAddress>,

    /// Give up after so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    timeout: Duration,
}

/// Give a local controller back to the kernel
///
/// Undoes `nvmf bind`: the kernel's own driver takes the controller again, and its disks come back. Refused while a process
/// drives it. Needs root.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf unbind 0000:04:00.0
  nvmf list                                             and see that it is gone")]
pub(crate) struct UnbindArgs {
    /// The controller's PCI address, such as 0000:04:00.0
    #[arg(value_name = "ADDRESS", required = true)]
    address: Vec<PciAddress>,

    /// Give up after so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    timeout: Duration,
}

fn failure(error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::ApiMisuse(_) => Failure::usage(error),
        _ => Failure::failed(error),
    }
}

pub(crate) fn bind(args: &BindArgs) -> Result<(), Failure> {
    one_by_one(&args.address, args.timeout, "bind", |transport, address| match transport.bind(address)? {
        true => Ok(format!("{address} is bound to vfio-pci\n")),
        false => Ok(format!("{address} was bound to vfio-pci already\n")),
    })
}

pub(crate) fn unbind(args: &UnbindArgs) -> Result<(), Failure> {
    one_by_one(&args.address, args.timeout, "unbind", |transport, address| {
        match transport.unbind(address)? {
            Some(driver) => Ok(format!("{address} is bound to {driver}\n")),
            None => Ok(format!("{address} has no driver now: none of the kernel's wants it\n")),
        }
    })
}

/// Does this with each controller in turn, and prints what comes of it. The kernel may make it wait until its driver has let go.
fn one_by_one(
    addresses: &[PciAddress],
    limit: Duration,
    what: &str,
    change: impl Fn(&PcieTransport, PciAddress) -> Result<String, Error> + Send + 'static,
) -> Result<(), Failure> {
    let addresses = addresses.to_vec();
    within(limit, what, move || {
        let transport = PcieTransport::new();
        addresses
            .into_iter()
            .try_for_each(|address| print(change(&transport, address).map_err(|error| failure(&error))?))
    })
}
