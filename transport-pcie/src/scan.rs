//! Finding NVMe functions in sysfs.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use nvmf_core::transport_id::PciAddress;
use nvmf_core::{Error, Result};

/// Class code of an NVM Express I/O controller: mass storage, non-volatile memory, NVM Express.
pub(crate) const CLASS_NVME: u32 = 0x01_08_02;

/// An NVMe function on the PCI bus.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PciFunction {
    /// Address.
    pub address: PciAddress,
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// Kernel driver bound to it.
    pub driver: Option<String>,
    /// IOMMU group; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// NUMA node, where the machine has several.
    pub numa_node: Option<u32>,
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{:04x}:{:04x}], ", self.address, self.vendor, self.device)?;
        match &self.driver {
            Some(driver) => write!(f, "bound to {driver}")?,
            None => write!(f, "no driver")?,
        }
        match self.iommu_group {
            Some(group) => write!(f, ", IOMMU group {group}"),
            None => write!(f, ", no IOMMU"),
        }
    }
}

pub(crate) fn functions(root: &Path) -> Result<Vec<PciFunction>> {
    let devices = root.join("bus/pci/devices");
    let entries = match fs::read_dir(&devices) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::from(error).doing(format!("scanning {}", devices.display()))),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry =
            entry.map_err(|error| Error::from(error).doing(format!("scanning {}", devices.display())))?;
        let path = entry.path();
        let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A function that vanishes while it is looked at is not there.
        if hex(&path, "class").is_none_or(|class| class != CLASS_NVME) {
            continue;
        }
        found.push(PciFunction {
            address,
            vendor: hex(&path, "vendor").and_then(|v| u16::try_from(v).ok()).unwrap_or(0),
            device: hex(&path, "device").and_then(|v| u16::try_from(v).ok()).unwrap_or(0),
            driver: link_name(&path, "driver"),
            iommu_group: link_name(&path, "iommu_group").and_then(|name| name.parse().ok()),
            numa_node: text(&path, "numa_node").and_then(|node| node.parse().ok()),
        });
    }
    found.sort_by_key(|function| function.address);
    Ok(found)
}

fn text(device: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(device.join(name)).ok()?.trim().to_owned())
}

fn hex(device: &Path, name: &str) -> Option<u32> {
    u32::from_str_radix(text(device, name)?.trim_start_matches("0x"), 16).ok()
}

/// Last part of what a link points to.
pub(crate) fn link_name(device: &Path, name: &str) -> Option<String> {
    Some(fs::read_link(device.join(name)).ok()?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use nvmf_core::transport::Transport;
    use nvmf_core::{Callbacks, Driver, TransportId};

    use super::*;
    use crate::PcieTransport;

    /// A made-up `/sys` that is removed again.
    pub(crate) struct Bus(std::path::PathBuf);

    impl Bus {
        pub(crate) fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("nvmf-pci-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
            Self(root)
        }

        pub(crate) fn root(&self) -> &Path {
            &self.0
        }

        pub(crate) fn add(&self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
            let path = self.0.join("bus/pci/devices").join(address);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("class"), format!("{class}\n")).unwrap();
            fs::write(path.join("vendor"), "0x8086\n").unwrap();
            fs::write(path.join("device"), "0x0a54\n").unwrap();
            fs::write(path.join("numa_node"), "-1\n").unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), path.join("driver")).unwrap();
            }
            if let Some(group) = group {
                symlink(format!("../../../kernel/iommu_groups/{group}"), path.join("iommu_group")).unwrap();
                let members = self.0.join("kernel/iommu_groups").join(group.to_string()).join("devices");
                fs::create_dir_all(&members).unwrap();
                symlink(&path, members.join(address)).unwrap();
            }
        }
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn finds_nvme_functions_only_and_says_who_holds_them() {
        let bus = Bus::new("scan");
        bus.add("0000:04:00.0", "0x010802", Some("nvme"), Some(17));
        bus.add("0000:03:00.0", "0x010802", None, None);
        bus.add("0000:00:1f.2", "0x010601", Some("ahci"), None);
        let found = functions(&bus.0).unwrap();
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "0000:03:00.0 [8086:0a54], no driver, no IOMMU",
                "0000:04:00.0 [8086:0a54], bound to nvme, IOMMU group 17"
            ]
        );
        assert_eq!(found[0].numa_node, None);
    }

    #[test]
    fn a_machine_without_pci_has_no_controllers() {
        assert_eq!(functions(Path::new("/nonexistent")).unwrap(), []);
    }

    #[test]
    fn a_filter_compares_addresses_not_their_spelling() {
        let bus = Bus::new("filter");
        bus.add("0000:04:00.0", "0x010802", None, None);
        bus.add("0000:05:00.0", "0x010802", None, None);
        let trid: TransportId = "trtype:PCIe traddr:4:0.0".parse().unwrap();
        let mut found = Vec::new();
        PcieTransport::with_root(&bus.0).scan(Some(&trid), &mut |trid| found.push(trid)).unwrap();
        assert_eq!(found, [trid]);
    }

    #[test]
    fn a_local_probe_offers_every_function_and_tells_why_it_cannot_attach() {
        let bus = Bus::new("probe");
        bus.add("0000:04:00.0", "0x010802", Some("nvme"), Some(3));
        let driver = Driver::builder().transport(PcieTransport::with_root(&bus.0)).build();
        let (mut offered, mut failed) = (Vec::new(), Vec::new());
        let callbacks = Callbacks::new()
            .probe(|trid, _| {
                offered.push(trid.traddr().to_owned());
                true
            })
            .attach(|_| panic!("nothing can be attached"))
            .attach_fail(|_, error| failed.push(error.to_string()));
        driver.probe(None, callbacks).unwrap();
        assert_eq!(offered, ["0000:04:00.0"]);
        assert!(failed[0].contains("bound to nvme, IOMMU group 3"), "{failed:?}");
        assert!(failed[0].contains("nvmf bind 0000:04:00.0"), "{failed:?}");
    }
}
