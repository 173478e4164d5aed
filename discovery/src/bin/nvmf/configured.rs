//! Discovery controllers out of the configuration files, for commands that are given no address.

use std::path::Path;

use nvmf_core::{ControllerOptions, TransportId};
use nvmf_discovery::config::{Checked, Config};

use crate::failure::Failure;

/// What `path`, or /etc/nvme, has.
pub(crate) fn check(path: Option<&Path>) -> Checked {
    match path {
        Some(path) => Config::check_file(path),
        None => Config::check_system(Path::new("/")),
    }
}

/// The discovery controllers configured and how to connect to each; `base` is what the command line says, which the files go
/// before. One that cannot be used is an error: half a configuration is not what was asked for.
pub(crate) fn discovery_controllers(
    path: Option<&Path>,
    base: &ControllerOptions,
) -> Result<Vec<(TransportId, ControllerOptions)>, Failure> {
    let config = check(path).into_result().map_err(Failure::usage)?;
    let found: Vec<_> = config
        .discovery_controllers()
        .map(|controller| Ok((controller.trid()?, controller.controller_options(base)?)))
        .collect::<Result<_, nvmf_core::Error>>()
        .map_err(Failure::usage)?;
    match (found.is_empty(), path) {
        (false, _) => Ok(found),
        (true, None) => Err(nobody()),
        (true, Some(path)) => {
            Err(Failure::usage(format!("no discovery controller is configured in {}", path.display())))
        }
    }
}

/// There is nobody to ask.
pub(crate) fn nobody() -> Failure {
    Failure::usage(
        "no discovery controller is named, and none is configured in /etc/nvme; give an address such as -t tcp -a \
         192.0.2.1",
    )
}
