//! NVMe controllers on the local PCI bus.
//!
//! [`PcieTransport`] scans sysfs for functions of class 01:08:02 and knows who holds each of them ([`PciFunction`]), so that
//! a probe of the local bus offers them and `nvmf list` shows them.
//!
//! # What it does not do
//! It does not drive a controller yet: attaching one ends in [`nvmf_core::ErrorKind::Unsupported`], with the function's
//! state in the message.

#![forbid(unsafe_code)]

mod scan;

use std::path::{Path, PathBuf};

use nvmf_core::transport::{Transport, TransportController};
use nvmf_core::{ControllerOptions, Error, Result, TransportId, TransportType};
pub use scan::PciFunction;

/// The local PCI bus.
#[derive(Clone, Debug)]
pub struct PcieTransport {
    root: PathBuf,
}

impl PcieTransport {
    /// This machine's bus, through `/sys`.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root("/sys")
    }

    /// A bus described by another directory with the layout of `/sys`.
    #[must_use]
    pub fn with_root(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned() }
    }

    /// Every NVMe function on the bus, by address.
    ///
    /// # Errors
    /// When the bus is there but cannot be read. A machine without PCI has no functions.
    pub fn functions(&self) -> Result<Vec<PciFunction>> {
        scan::functions(&self.root)
    }
}

impl Default for PcieTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for PcieTransport {
    fn trtype(&self) -> TransportType {
        TransportType::Pcie
    }

    fn is_local(&self) -> bool {
        true
    }

    fn scan(&self, filter: Option<&TransportId>, found: &mut dyn FnMut(TransportId)) -> Result<()> {
        let wanted = filter.and_then(TransportId::pci_address);
        for function in self.functions()? {
            if wanted.is_none_or(|address| address == function.address) {
                found(TransportId::pcie(function.address));
            }
        }
        Ok(())
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        _options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        let address = trid.pci_address();
        let function = self.functions()?.into_iter().find(|f| Some(f.address) == address);
        let Some(function) = function else {
            return Err(Error::api_misuse("there is no NVMe function at this address")
                .peer(trid)
                .hint("`nvmf list` shows the local controllers"));
        };
        Err(Error::unsupported(format!("driving PCIe controllers is not part of this version ({function})"))
            .peer(trid)
            .hint("reach it through the kernel, or export it over TCP"))
    }
}
