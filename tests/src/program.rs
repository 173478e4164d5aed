//! What the test programs have in common: every transport there is, options to attach with, and how they end.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use nvmf_core::{ControllerOptions, Driver};
use nvmf_transport_pcie::{PcieTransport, VfioUserOptions, vfio_user};
use nvmf_transport_rdma::{RdmaOptions, RdmaTransport};
use nvmf_transport_tcp::TcpTransport;

/// A driver with the transports that the `nvmf` program has.
#[must_use]
pub fn driver() -> Driver {
    driver_with(RdmaOptions::default())
}

/// The same, with options for RDMA.
#[must_use]
pub fn driver_with(rdma: RdmaOptions) -> Driver {
    Driver::builder()
        .transport(TcpTransport::new())
        .transport(RdmaTransport::new().with_options(rdma))
        .transport(PcieTransport::new())
        .transport(vfio_user::transport(VfioUserOptions::default()))
        .build()
}

/// Options for programs that only poll, or for programs that sleep until an interrupt.
#[must_use]
pub fn options(interrupt: bool) -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.enable_interrupts = interrupt;
    // Emulated machines on busy hosts are slow; how long a wait takes is not what is tested.
    options.connect_timeout *= 6;
    options.io_timeout = options.io_timeout.map(|timeout| timeout * 2);
    options
}

/// How a program ends: an error is told on standard error.
#[must_use]
pub fn ended(name: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A program whose command line is a few words: `run` is given them, and returns `None` when it does not understand them.
#[must_use]
pub fn by_words(name: &str, help: &str, run: impl FnOnce(&[&str]) -> Option<Result<()>>) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["-h" | "--help"] = words.as_slice() {
        print!("{help}");
        return ExitCode::SUCCESS;
    }
    ended(name, run(&words).unwrap_or_else(|| Err(anyhow!("what to do is not clear\n\n{help}"))))
}
