//! A PCI function behind VFIO.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nvmf_core::dma::{DmaGrant, RegionId};
use nvmf_core::{Error, Result};
use vfio_bindings::bindings::vfio;

use super::bar::{Region, VfioBar};
use super::container::Container;
use super::iommufd::{self, CdevFiles};
use super::mappings::Mappings;
use super::{open_failed, syscall, until_free};
use crate::device::{Bar0, BarFile, PciDevice, PciIdentity};
use crate::scan::PciFunction;

/// Offset of the command register in configuration space.
const COMMAND: u32 = 4;
/// Command: memory space enable.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command: bus master enable.
const BUS_MASTER: u16 = 1 << 2;

/// An NVMe function that the kernel lends to this process.
#[derive(Debug)]
pub(crate) struct VfioDevice {
    identity: PciIdentity,
    // In this order: a device before its group, a group before its container, or a device before its iommufd.
    file: Arc<File>,
    /// None with iommufd.
    _group: Option<File>,
    mappings: Mappings,
    config: Region,
    registers: Region,
    bar: Option<Arc<VfioBar>>,
    /// Other BARs, by index.
    memory: Vec<(u8, Arc<VfioBar>)>,
    vectors: u16,
    resettable: bool,
    /// Signalled when the kernel wants the device back.
    removal: Option<OwnedFd>,
}

impl VfioDevice {
    /// Opens a function that is bound to vfio-pci, through its own file and iommufd.
    pub(crate) fn open_cdev(files: &CdevFiles, function: &PciFunction) -> Result<Self> {
        let (file, mappings) = iommufd::open(files)?;
        Self::set_up(file, None, mappings, function)
    }

    /// The same through its group and a container; `dev` is where `/dev` is.
    pub(crate) fn open_group(dev: &Path, function: &PciFunction) -> Result<Self> {
        let name = function.address.to_string();
        let Some(number) = function.iommu_group else {
            return Err(Error::unsupported("the function is in no IOMMU group"));
        };
        let path = dev.join("vfio").join(number.to_string());
        let group = open_group(&path).map_err(|e| open_failed(&path, &e))?;
        let flags = syscall::group_flags(group.as_fd()).map_err(|error| {
            Error::from(error).doing(format!("asking for the state of IOMMU group {number}"))
        })?;
        if flags & vfio::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(Error::unsupported(format!(
                "IOMMU group {number} has devices that other drivers hold"
            ))
            .hint("bind all of its devices to vfio-pci"));
        }
        let mappings = Container::open(dev, group.as_fd())?;
        let file = syscall::device(group.as_fd(), &name)
            .map_err(|error| Error::from(error).doing(format!("opening {name} in IOMMU group {number}")))?;
        Self::set_up(File::from(file), Some(group), mappings, function)
    }

    fn set_up(file: File, group: Option<File>, mappings: Mappings, function: &PciFunction) -> Result<Self> {
        let name = function.address.to_string();
        let file = Arc::new(file);
        let device = file.as_fd();
        let info = syscall::device_info(device).map_err(failed("asking VFIO what the device is"))?;
        if info.flags & vfio::VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(Error::unsupported("VFIO says that it is no PCI device"));
        }
        let config = region(&file, vfio::VFIO_PCI_CONFIG_REGION_INDEX)?;
        let registers = region(&file, vfio::VFIO_PCI_BAR0_REGION_INDEX)?;
        let vectors = if info.num_irqs > vfio::VFIO_PCI_MSIX_IRQ_INDEX {
            syscall::interrupts(device, vfio::VFIO_PCI_MSIX_IRQ_INDEX)
                .map_err(failed("asking VFIO for the MSI-X vectors"))?
        } else {
            0
        };
        let removal = removal_notice(&file, info.num_irqs)?;
        let identity = PciIdentity { vendor: function.vendor, device: function.device, name };
        let cdev = group.is_none();
        tracing::debug!(%identity, cdev, bar = registers.size, vectors, flags = info.flags, "opened through VFIO");
        Ok(Self {
            identity,
            config,
            registers,
            bar: None,
            memory: Vec::new(),
            vectors: u16::try_from(vectors).unwrap_or(u16::MAX),
            resettable: info.flags & vfio::VFIO_DEVICE_FLAGS_RESET != 0,
            removal,
            file,
            _group: group,
            mappings,
        })
    }

    /// Checks that a range lies in configuration space; returns where it is in the device's file.
    fn config_at(&self, offset: u32, len: usize) -> Result<u64> {
        let end = u64::from(offset).checked_add(len as u64);
        if end.is_none_or(|end| end > self.config.size) {
            return Err(Error::api_misuse(format!(
                "{len} bytes at {offset:#x} lie outside configuration space, which has {:#x}",
                self.config.size
            )));
        }
        Ok(self.config.offset.saturating_add(offset.into()))
    }

    /// Stops the function from accessing memory of its own accord, as far as it listens.
    fn clear_bus_master(&mut self) -> Result<()> {
        let mut command = [0; 2];
        self.read_config(COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command);
        self.write_config(COMMAND, &(command & !BUS_MASTER).to_le_bytes())
    }
}

fn region(device: &File, index: u32) -> Result<Region> {
    let info = syscall::region_info(device.as_fd(), index)
        .map_err(|error| Error::from(error).doing(format!("asking VFIO for region {index}")))?;
    Region::parse(&info).ok_or_else(|| Error::unsupported("VFIO gave an answer that is too short"))
}

/// Opens the file of an IOMMU group.
fn open_group(path: &Path) -> io::Result<File> {
    until_free(
        |error| error.kind() == io::ErrorKind::ResourceBusy,
        || File::options().read(true).write(true).open(path),
    )
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::from(error).doing(doing)
}

/// Asks to be told when the kernel wants the device back (it is unplugged, or its driver is unbound).
fn removal_notice(device: &File, kinds: u32) -> Result<Option<OwnedFd>> {
    let index = vfio::VFIO_PCI_REQ_IRQ_INDEX;
    let device = device.as_fd();
    if kinds <= index || !syscall::interrupts(device, index).is_ok_and(|count| count > 0) {
        return Ok(None);
    }
    let fd = syscall::eventfd().map_err(failed("making an event counter"))?;
    syscall::set_interrupts(device, index, std::slice::from_ref(&fd))
        .map_err(failed("asking to be told about the device's removal"))?;
    Ok(Some(fd))
}

impl PciDevice for VfioDevice {
    fn identity(&self) -> PciIdentity {
        self.identity.clone()
    }

    fn bar0(&mut self) -> Result<Bar0> {
        if let Some(bar) = &self.bar {
            return Ok(Bar0::new(Arc::<VfioBar>::clone(bar)));
        }
        // Registers of a function whose memory space is off are no memory: an access would end this process.
        let mut command = [0; 2];
        self.read_config(COMMAND, &mut command)?;
        self.write_config(COMMAND, &command)?;
        let bar = Arc::new(VfioBar::map(&self.file, &self.registers)?);
        self.bar = Some(Arc::clone(&bar));
        Ok(Bar0::new(bar))
    }

    fn bar(&mut self, index: u8) -> Result<Bar0> {
        if let Some((_, bar)) = self.memory.iter().find(|(known, _)| *known == index) {
            return Ok(Bar0::new(Arc::<VfioBar>::clone(bar)));
        }
        if !(2..=5).contains(&index) {
            return Err(Error::api_misuse(format!("BAR {index} is none of a function's memory")));
        }
        let region = region(&self.file, vfio::VFIO_PCI_BAR0_REGION_INDEX + u32::from(index))?;
        if region.size == 0 {
            return Err(Error::unsupported(format!("the function has no BAR {index}")).peer(&self.identity));
        }
        let bar = Arc::new(VfioBar::map(&self.file, &region)?);
        self.memory.push((index, Arc::clone(&bar)));
        Ok(Bar0::new(bar))
    }

    fn lend_registers(&self) -> Result<BarFile> {
        let lent = self.registers.lend(&self.file).map_err(failed("copying the device's descriptor"))?;
        if !lent.has_doorbells() {
            return Err(Error::unsupported(
                "the kernel does not let the doorbells of this function be mapped",
            ));
        }
        Ok(lent)
    }

    fn reserve_addresses(&mut self, at: Option<u64>, len: u64) -> Result<u64> {
        self.mappings.reserve(at, len).map_err(|error| error.peer(&self.identity))
    }

    fn dma_map(&mut self, grant: &DmaGrant) -> Result<u64> {
        self.mappings.map(grant.region()).map_err(|error| error.peer(&self.identity))
    }

    fn dma_unmap(&mut self, region: RegionId) -> Result<()> {
        self.mappings.unmap(region).map_err(|error| error.peer(&self.identity))
    }

    fn max_vectors(&self) -> u16 {
        self.vectors
    }

    fn enable_interrupts(&mut self, vectors: u16) -> Result<Vec<OwnedFd>> {
        if vectors > self.vectors {
            return Err(Error::unsupported(format!(
                "{vectors} interrupt vectors are needed, {} has {}",
                self.identity, self.vectors
            )));
        }
        let fds = (0..vectors)
            .map(|_| syscall::eventfd())
            .collect::<io::Result<Vec<OwnedFd>>>()
            .map_err(failed("making event counters for interrupts"))?;
        syscall::set_interrupts(self.file.as_fd(), vfio::VFIO_PCI_MSIX_IRQ_INDEX, &fds).map_err(|error| {
            Error::from(error).doing(format!("enabling {vectors} MSI-X vectors")).peer(&self.identity)
        })?;
        Ok(fds)
    }

    fn reset(&mut self) -> Result<()> {
        if !self.resettable {
            return Err(Error::unsupported("the kernel knows no way to reset this function alone")
                .peer(&self.identity));
        }
        // The kernel restores what was set before, which is not what a reset promises.
        self.clear_bus_master()?;
        syscall::set_interrupts::<OwnedFd>(self.file.as_fd(), vfio::VFIO_PCI_MSIX_IRQ_INDEX, &[])
            .map_err(failed("turning MSI-X off"))?;
        syscall::reset(self.file.as_fd())
            .map_err(|error| Error::from(error).doing("resetting the function").peer(&self.identity))
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> Result<()> {
        let at = self.config_at(offset, to.len())?;
        self.file.read_exact_at(to, at).map_err(|error| {
            Error::from(error)
                .doing(format!("reading configuration space at {offset:#x}"))
                .peer(&self.identity)
        })
    }

    /// Memory space stays enabled, whatever is written to the command register: while it is off, the kernel answers an access to a
    /// mapped register with a signal that ends the process.
    fn write_config(&mut self, offset: u32, from: &[u8]) -> Result<()> {
        let at = self.config_at(offset, from.len())?;
        let mut bytes = from.to_vec();
        let low = usize::try_from(COMMAND).ok().and_then(|command| command.checked_sub(offset as usize));
        if let Some(byte) = low.and_then(|index| bytes.get_mut(index)) {
            *byte |= MEMORY_SPACE as u8;
        }
        self.file.write_all_at(&bytes, at).map_err(|error| {
            Error::from(error)
                .doing(format!("writing configuration space at {offset:#x}"))
                .peer(&self.identity)
        })
    }

    fn isolate(&mut self) -> bool {
        if let Err(error) = self.clear_bus_master() {
            tracing::debug!(%error, "bus mastering could not be turned off");
        }
        // What the IOMMU no longer translates cannot be reached, whether the function listens or not.
        self.mappings.unmap_all()
    }

    fn is_removed(&self) -> bool {
        self.removal.as_ref().is_some_and(|fd| syscall::is_readable(fd.as_fd()))
    }

    fn removal_fd(&self) -> Option<BorrowedFd<'_>> {
        self.removal.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        let off = syscall::set_interrupts::<OwnedFd>(self.file.as_fd(), vfio::VFIO_PCI_MSIX_IRQ_INDEX, &[]);
        if let Err(error) = off {
            tracing::debug!(%error, "interrupts could not be turned off");
        }
        self.isolate();
        // The kernel waits for the last mapping of the registers before it takes the device back.
        if let Some(bar) = self.bar.take() {
            bar.revoke();
        }
        self.memory.drain(..).for_each(|(_, bar)| bar.revoke());
    }
}
