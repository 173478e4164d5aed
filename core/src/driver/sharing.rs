//! Drivers that share controllers with other processes.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Attached, Driver, DriverBuilder, Shared};
use crate::error::Result;
use crate::options::ControllerOptions;
use crate::share::{Instance, Joined, Process, Role, SecondaryTransport, Server};
use crate::share::{Sharing as Config, join};
use crate::transport::Transport;

/// Pause between attempts of a secondary to connect to a controller that the primary is connecting again.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

/// What a driver shares.
pub(super) enum Sharing {
    Primary(Server),
    Secondary(Arc<Instance>),
}

/// Collects what a [`Driver`] is made of that takes part in an instance.
#[must_use]
pub struct SharedBuilder {
    builder: DriverBuilder,
    config: Config,
}

impl DriverBuilder {
    /// Shares controllers with other processes of this user: those of the same `instance` (1 to 64 letters, digits, `-`, `_`, `.`).
    /// The first process becomes the primary and attaches controllers as ever; later ones become secondaries and are given
    /// what the primary has attached.
    ///
    /// In a secondary, [`Driver::probe`] scans nothing and asks nobody but the primary, [`Driver::connect`] finds what the primary has
    /// under the same identifier, and everything else is as in a process of its own, with these differences: the host is
    /// who the primary is; a controller that is lost in the primary is waited for at least as its `ctrl_loss_timeout` says; data of an
    /// admin command is at most 128 KiB; settings that all processes rely on (events, number of queues, host identifier)
    /// stay as the primary has made them. Over PCIe and vfio-user the primary maps the memory of each process for the controller, up
    /// to 1 GiB, when it is first used for I/O: a submission with such memory waits for the primary, up to 5 s if that is stopped, and memory
    /// registered by the program ([`crate::DmaRegion::register`]) cannot be used. Detaching gives up this process's attachment; the controller is shut down when the
    /// primary and all secondaries have detached it.
    pub fn shared(self, instance: impl Into<String>) -> SharedBuilder {
        SharedBuilder { builder: self, config: Config::new(instance.into()) }
    }
}

impl SharedBuilder {
    /// Where lock file and socket are. `$XDG_RUNTIME_DIR/nvmf` otherwise, or `/run/nvmf` without; it is made if need be, and must
    /// be this user's own.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.directory = Some(directory.into());
        self
    }

    /// How long to wait for a primary that is still initialising. 5 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// Takes this role only: an error if there is a primary already, or none.
    pub fn only(mut self, role: Role) -> Self {
        self.config.only = Some(role);
        self
    }

    /// The driver.
    ///
    /// # Errors
    /// When the runtime directory cannot be used or is not this user's own, the primary is another user's, does not answer in time
    /// or is gone, or the role cannot be had.
    pub fn build(self) -> Result<Driver> {
        let Self { mut builder, config } = self;
        match join(&config)? {
            Joined::Primary(place, lock) => {
                let driver = builder.build();
                let weak: Weak<Shared> = Arc::downgrade(&driver.0);
                let controllers = move || weak.upgrade().map_or_else(Vec::new, |shared| shared.listed());
                let server = Server::start(&place, lock, controllers)?;
                let _ = driver.0.sharing.set(Sharing::Primary(server));
                Ok(driver)
            }
            Joined::Secondary(instance) => {
                let wrap = |transport: &Arc<dyn Transport>| -> Arc<dyn Transport> {
                    Arc::new(SecondaryTransport::new(Arc::clone(transport), Arc::clone(&instance)))
                };
                builder.transports = builder.transports.iter().map(wrap).collect();
                let driver = builder.build();
                let _ = driver.0.sharing.set(Sharing::Secondary(instance));
                Ok(driver)
            }
        }
    }
}

impl Shared {
    fn listed(&self) -> Vec<crate::Controller> {
        let attached = self.attached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        attached.iter().filter_map(Attached::controller).filter(|ctrlr| !ctrlr.is_detached()).collect()
    }
}

impl Driver {
    /// What this process is in its instance.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.0.sharing.get() {
            Some(Sharing::Secondary(_)) => Role::Secondary,
            Some(Sharing::Primary(_)) | None => Role::Primary,
        }
    }

    /// The processes of the instance, the primary first; none if nothing is shared.
    ///
    /// # Errors
    /// When the primary does not answer.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let facts = match self.0.sharing.get() {
            None => Vec::new(),
            Some(Sharing::Primary(server)) => server.processes(),
            Some(Sharing::Secondary(instance)) => instance.processes()?,
        };
        Ok(facts
            .iter()
            .map(|facts| Process {
                pid: facts.pid.get(),
                role: if facts.primary.get() == 1 { Role::Primary } else { Role::Secondary },
                controllers: facts.controllers.get(),
                queues: facts.queues.get(),
            })
            .collect())
    }

    /// The options a controller is attached with, made fit for sharing it.
    pub(super) fn shared_options(&self, options: &ControllerOptions) -> ControllerOptions {
        let mut options = options.clone();
        match self.0.sharing.get() {
            None | Some(Sharing::Primary(_)) => {}
            Some(Sharing::Secondary(_)) => {
                options.use_cmb_sqs = false;
                let delay = options.reconnect_delay.filter(|delay| !delay.is_zero());
                options.reconnect_delay = Some(delay.unwrap_or(RECONNECT_DELAY));
            }
        }
        options
    }
}
