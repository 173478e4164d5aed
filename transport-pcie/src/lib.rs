//! NVMe controllers behind a PCI function: real ones, and whatever else implements [`PciDevice`].
//!
//! ```text
//!   PcieTransport ──▶ PcieController ──▶ PcieQpair: rings, doorbells, PRPs and SGLs
//!                            │                 │
//!                            ▼                 ▼
//!                PciDevice: registers (Bar0), DMA mappings, interrupts, reset
//! ```
//!
//! [`PcieTransport`] scans sysfs for functions of class 01:08:02 and knows who holds each of them ([`PciFunction`]) and why it cannot
//! be driven ([`Obstacle`]). Functions bound to vfio-pci are driven through the kernel's VFIO; [`PcieTransport::bind`] binds them.
//! Other [`PciDevice`]s are brought in with [`PcieTransport::with_devices`].
//!
//! Metadata in a buffer of its own is pointed to where it is; it is copied if it starts at no dword and the controller wants that.
//!
//! # What it does not do
//! Of controller memory buffers only the room for submission queues is used. Two functions of one IOMMU group cannot be driven at the
//! same time.

#![deny(unsafe_code)]

mod bind;
mod cmb;
pub mod controller;
mod data;
pub mod device;
mod farewell;
// UNSAFETY: the promises of docs/safety.md, A1.
#[expect(unsafe_code, reason = "leave for devices to access memory")]
mod grant;
mod hotplug;
mod lent;
// UNSAFETY: volatile accesses to mapped registers.
#[expect(unsafe_code, reason = "mmap, and volatile accesses to device registers")]
mod mmio;
mod obstacle;
mod qpair;
mod quirks;
mod scan;
mod shadow;
mod shared;
#[cfg(test)]
mod testing;
mod vfio;
pub mod vfio_user;
mod wake;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use controller::PcieController;
pub use device::{Bar0, BarAccess, BarArea, BarFile, PciDevice, PciIdentity};
use hotplug::BusMonitor;
pub use mmio::MappedBar;
use nvmf_core::transport::{HotplugMonitor, Primary, Transport, TransportController};
use nvmf_core::transport_id::PciAddress;
use nvmf_core::{ControllerOptions, Error, Result, TransportId, TransportType};
pub use obstacle::Obstacle;
use obstacle::Way;
pub use qpair::PcieQpair;
pub use scan::PciFunction;
pub use vfio::VfioBackend;
use vfio::VfioDevice;
pub use vfio_user::{VfioUserDevice, VfioUserOptions};

type DeviceFactory = dyn Fn(&TransportId) -> Result<Box<dyn PciDevice>> + Send + Sync;

/// Where devices are found that are not on the PCI bus.
trait Finder: Send + Sync {
    /// What there is, or what of it an identifier covers.
    fn find(&self, filter: Option<&TransportId>) -> Vec<TransportId>;

    /// Tells when they come and go.
    fn monitor(&self) -> Result<Option<Box<dyn HotplugMonitor>>>;
}

/// Controllers on the local PCI bus, or behind devices of the program's own.
#[derive(Clone)]
pub struct PcieTransport {
    root: PathBuf,
    trtype: TransportType,
    devices: Option<Arc<DeviceFactory>>,
    finder: Option<Arc<dyn Finder>>,
    backend: VfioBackend,
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
        Self {
            root: root.as_ref().to_owned(),
            trtype: TransportType::Pcie,
            devices: None,
            finder: None,
            backend: VfioBackend::Auto,
        }
    }

    /// Controllers of type `trtype` behind devices that `open` makes. It says in its error why an address has none.
    #[must_use]
    pub fn with_devices(
        trtype: TransportType,
        open: impl Fn(&TransportId) -> Result<Box<dyn PciDevice>> + Send + Sync + 'static,
    ) -> Self {
        Self { trtype, devices: Some(Arc::new(open)), ..Self::new() }
    }

    /// Lets a probe without an address find what `list` returns, instead of what is on the bus. Hotplug monitors look at it when
    /// they are polled.
    #[must_use]
    pub fn listing(self, list: impl Fn() -> Vec<TransportId> + Send + Sync + 'static) -> Self {
        self.finding(hotplug::Listing(Arc::new(list)))
    }

    fn finding(mut self, finder: impl Finder + 'static) -> Self {
        self.finder = Some(Arc::new(finder));
        self
    }

    /// How functions bound to vfio-pci are reached; [`VfioBackend::Auto`] unless this is called.
    #[must_use]
    pub fn backend(mut self, backend: VfioBackend) -> Self {
        self.backend = backend;
        self
    }

    /// Every NVMe function on the bus, by address.
    ///
    /// # Errors
    /// When the bus is there but cannot be read. A machine without PCI has no functions.
    pub fn functions(&self) -> Result<Vec<PciFunction>> {
        scan::functions(&self.root)
    }

    /// What keeps this process from driving a function, if anything does.
    #[must_use]
    pub fn obstacle(&self, function: &PciFunction) -> Option<Obstacle> {
        self.way(function).err()
    }

    fn way(&self, function: &PciFunction) -> std::result::Result<Way, Obstacle> {
        Obstacle::or_way(&self.root, &self.beside("dev"), function, self.backend)
    }

    /// Takes a function from the kernel's driver and binds it to vfio-pci, so that a process can drive it. Returns `false` when it
    /// was bound already.
    ///
    /// # Errors
    /// When there is no such function, it is in use (mounted, swap, part of another device, open), there is no IOMMU, VFIO is not
    /// loaded, or sysfs refuses.
    pub fn bind(&self, address: PciAddress) -> Result<bool> {
        self.binder(|binder| binder.bind(address))
    }

    /// Gives a function back to the kernel. Returns the driver that has taken it, if one has.
    ///
    /// # Errors
    /// When there is no such function, it is not bound to vfio-pci, a process drives it, or sysfs refuses.
    pub fn unbind(&self, address: PciAddress) -> Result<Option<String>> {
        self.binder(|binder| binder.unbind(address))
    }

    fn binder<R>(&self, run: impl FnOnce(&bind::Binder<'_>) -> R) -> R {
        let (dev, proc) = (self.beside("dev"), self.beside("proc"));
        run(&bind::Binder { sys: &self.root, dev: &dev, proc: &proc, write: &bind::write })
    }

    /// `/dev` or `/proc`; for another root than `/sys`, a directory in it.
    fn beside(&self, name: &str) -> PathBuf {
        if self.root == Path::new("/sys") { Path::new("/").join(name) } else { self.root.join(name) }
    }
}

impl Default for PcieTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for PcieTransport {
    fn trtype(&self) -> TransportType {
        self.trtype
    }

    fn is_local(&self) -> bool {
        true
    }

    fn scan(&self, filter: Option<&TransportId>, found: &mut dyn FnMut(TransportId)) -> Result<()> {
        if let Some(finder) = &self.finder {
            finder.find(filter).into_iter().for_each(found);
            return Ok(());
        }
        if self.devices.is_some() {
            // Whether there is one shows when it is opened.
            filter.filter(|trid| !trid.traddr().is_empty()).cloned().into_iter().for_each(found);
            return Ok(());
        }
        let wanted = filter.and_then(TransportId::pci_address);
        for function in self.functions()? {
            if wanted.is_none_or(|address| address == function.address) {
                found(TransportId::pcie(function.address));
            }
        }
        Ok(())
    }

    fn is_present(&self, trid: &TransportId) -> Option<bool> {
        // Whether other devices are there they say themselves.
        let address = trid.pci_address().filter(|_| self.devices.is_none())?;
        let bus = self.root.join("bus/pci/devices");
        if bus.join(address.to_string()).try_exists().ok()? {
            return Some(true);
        }
        bus.try_exists().ok()?.then_some(false)
    }

    fn hotplug(&self) -> Result<Option<Box<dyn HotplugMonitor>>> {
        if let Some(finder) = &self.finder {
            return finder.monitor();
        }
        if self.devices.is_some() {
            return Ok(None);
        }
        let root = self.root.clone();
        // The kernel tells about its own bus only.
        let monitor = if root == Path::new("/sys") {
            BusMonitor::of_machine(root)
        } else {
            BusMonitor::new(root, None)
        };
        Ok(Some(Box::new(monitor?)))
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        if let Some(open) = &self.devices {
            let device = open(trid).map_err(|error| error.peer(trid))?;
            return Ok(Box::new(PcieController::new(device, options).map_err(|error| error.peer(trid))?));
        }
        let address = trid.pci_address();
        let function = self.functions()?.into_iter().find(|f| Some(f.address) == address);
        let Some(function) = function else {
            return Err(Error::api_misuse("there is no NVMe function at this address")
                .peer(trid)
                .hint("`nvmf list` shows the local controllers"));
        };
        let device = match self.way(&function) {
            Ok(Way::Cdev(files)) => VfioDevice::open_cdev(&files, &function),
            Ok(Way::Group) => VfioDevice::open_group(&self.beside("dev"), &function),
            Err(obstacle) => Err(obstacle.error(&function)),
        };
        let device = device.map_err(|error| error.peer(trid))?;
        Ok(Box::new(PcieController::new(Box::new(device), options).map_err(|error| error.peer(trid))?))
    }

    fn ctrlr_construct_secondary(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
        primary: &Arc<Primary>,
    ) -> Result<Box<dyn TransportController>> {
        let controller = PcieController::lent(primary, options);
        Ok(Box::new(controller.map_err(|error| error.doing("using a controller of the primary").peer(trid))?))
    }
}

impl fmt::Debug for PcieTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcieTransport")
            .field("trtype", &self.trtype)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}
