//! `nvmf share`: a primary that attaches controllers and lets other processes use them.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nvmf_core::{Callbacks, Controller, ControllerOptions, TransportId};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::print;
use crate::connect::{Transports, detach, primary};
use crate::failure::Failure;
use crate::recovery::RecoveryArgs;
use crate::size::parse_seconds;

/// Attach controllers and share them with other processes of this user, until a signal
///
/// Other processes take part with --instance NAME, and have I/O queues of their own: on their data path this process has no
/// part. The memory for that of a local controller (PCIe, vfio-user) is theirs and mapped by this one. When one of them ends, in whatever way, what it had is taken back; when this one ends, their I/O fails.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf share --instance disks nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf share --instance disks nvme+tcp://192.0.2.1:4420     everything that is offered there
  nvmf share --instance disks 'trtype:pcie traddr:0000:01:00.0'
  nvmf list --instance disks
  nvmf read --instance disks $TRID --length 1MiB --output head.img")]
pub(crate) struct Args {
    /// What other processes call it: letters, digits, '-', '_', '.'
    #[arg(long, value_name = "NAME")]
    instance: String,

    /// Controllers, or discovery controllers for everything they offer; one argument each
    #[arg(value_name = "TRID", required = true)]
    trid: Vec<String>,

    /// Deadline for connecting, and for each command
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    timeout: Duration,

    /// I/O queues to ask each controller for, which all processes divide among them
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    queues: u16,

    /// RDMA: give a controller access to just the data of each command, and take it away at its end (memory windows, type 2B), instead of
    /// access to all memory for data. For this process's own queues: others say it for theirs
    #[cfg(feature = "rdma")]
    #[arg(long)]
    memory_windows: bool,

    /// Map the doorbells of vfio-user servers that could cut their file short, SPDK's being one: without that other processes cannot use
    /// them, but a server that does it ends this process and them
    #[cfg(feature = "pcie")]
    #[arg(long)]
    map_unsealed: bool,

    #[command(flatten)]
    recovery: RecoveryArgs,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // Both signals are caught from here on, so that none is lost between the last line and the wait.
    let catching = |error: std::io::Error| Failure::failed(format!("catching signals: {error}"));
    let (mut told, tell) = UnixStream::pair().map_err(catching)?;
    for signal in [SIGINT, SIGTERM] {
        let tell = tell.try_clone().map_err(catching)?;
        signal_hook::low_level::pipe::register(signal, tell).map_err(catching)?;
    }
    let trids: Vec<TransportId> = args
        .trid
        .iter()
        .map(|text| text.parse().map_err(|error| Failure::usage(format!("TRID {text}: {error}"))))
        .collect::<Result<_, _>>()?;
    let mut options = ControllerOptions::default();
    options.num_io_queues = args.queues;
    options.connect_timeout = args.timeout;
    options.admin_timeout = args.timeout;
    args.recovery.apply(&mut options);

    let driver = primary(
        &args.instance,
        &Transports {
            #[cfg(feature = "rdma")]
            rdma: nvmf_transport_rdma::RdmaOptions::default().memory_windows(args.memory_windows),
            #[cfg(feature = "pcie")]
            vfio_user: nvmf_transport_pcie::VfioUserOptions {
                map_unsealed: args.map_unsealed,
                ..Default::default()
            },
        },
    )?;
    let mut attached: Vec<Controller> = Vec::new();
    let mut failure = None;
    for trid in &trids {
        let callbacks = Callbacks::new()
            .options(options.clone())
            .attach(|controller| attached.push(controller))
            .attach_fail(|_, error| failure = Some(error.clone()))
            .remove(|trid| tracing::warn!(%trid, "a shared controller is lost"));
        driver.probe(Some(trid), callbacks).map_err(|error| Failure::attach(&error))?;
        if let Some(error) = failure.take() {
            attached.into_iter().for_each(detach);
            return Err(Failure::attach(&error));
        }
    }
    if attached.is_empty() {
        return Err(Failure::unreachable("there is nothing to share: no controller was found"));
    }
    for controller in &attached {
        print(format!("sharing {} as {}\n", controller.trid(), args.instance))?;
    }
    // Blocks until a signal writes a byte.
    let _ = told.read(&mut [0]);
    // Others are told before their controllers go.
    drop(driver);
    attached.into_iter().for_each(detach);
    Ok(())
}
