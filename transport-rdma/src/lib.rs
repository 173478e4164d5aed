//! NVMe/RDMA.
//!
//! [`RdmaTransport`] looks at run time for what RDMA needs on this machine ([`Requirements`]) and says exactly what is missing
//! and how to get it, soft-RoCE included. Building it needs no RDMA library.
//!
//! # What it does not do
//! It does not connect yet: on a machine that has everything, attaching ends in
//! [`nvmf_core::ErrorKind::Unsupported`].

#![forbid(unsafe_code)]

mod requirements;

use std::path::{Path, PathBuf};

use nvmf_core::transport::{Transport, TransportController};
use nvmf_core::{ControllerOptions, Error, Result, TransportId, TransportType};
pub use requirements::{Missing, Requirements};

/// NVMe over RDMA.
#[derive(Clone, Debug)]
pub struct RdmaTransport {
    root: PathBuf,
}

impl RdmaTransport {
    /// This machine's RDMA.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root("/")
    }

    /// RDMA as another root directory shows it.
    #[must_use]
    pub fn with_root(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned() }
    }

    /// What this machine has and lacks.
    #[must_use]
    pub fn requirements(&self) -> Requirements {
        Requirements::of(&self.root)
    }
}

impl Default for RdmaTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for RdmaTransport {
    fn trtype(&self) -> TransportType {
        TransportType::Rdma
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        _options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        let requirements = self.requirements();
        Err(match requirements.missing.first() {
            Some(missing) => Error::unsupported(format!("RDMA is not available here: {missing}"))
                .peer(trid)
                .hint(missing.remedy()),
            None => Error::unsupported(format!(
                "NVMe/RDMA is not part of this version (devices here: {})",
                requirements.devices.join(", ")
            ))
            .peer(trid)
            .hint("use the subsystem's TCP port, if it has one"),
        })
    }
}
