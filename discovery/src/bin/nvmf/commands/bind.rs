//! `nvmf bind` and `nvmf unbind`: who holds a local controller, the kernel or user space.

use nvmf_core::transport_id::PciAddress;
use nvmf_core::{Error, ErrorKind};
use nvmf_transport_pcie::PcieTransport;

use super::print;
use crate::failure::Failure;

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
}

fn failure(error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::ApiMisuse(_) => Failure::usage(error),
        _ => Failure::failed(error),
    }
}

pub(crate) fn bind(args: &BindArgs) -> Result<(), Failure> {
    let transport = PcieTransport::new();
    for &address in &args.address {
        let line = match transport.bind(address).map_err(|error| failure(&error))? {
            true => format!("{address} is bound to vfio-pci\n"),
            false => format!("{address} was bound to vfio-pci already\n"),
        };
        print(line)?;
    }
    Ok(())
}

pub(crate) fn unbind(args: &UnbindArgs) -> Result<(), Failure> {
    let transport = PcieTransport::new();
    for &address in &args.address {
        let line = match transport.unbind(address).map_err(|error| failure(&error))? {
            Some(driver) => format!("{address} is bound to {driver}\n"),
            None => format!("{address} has no driver now: none of the kernel's wants it\n"),
        };
        print(line)?;
    }
    Ok(())
}
