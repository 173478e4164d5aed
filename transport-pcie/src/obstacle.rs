//! Why a function cannot be driven by this process.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nvmf_core::Error;

use crate::scan::{PciFunction, link_name};
use crate::vfio::{CdevFiles, VfioBackend, may_use};

/// The driver that lends functions to processes.
pub(crate) const VFIO_DRIVER: &str = "vfio-pci";

/// What stands between a function and this process.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Obstacle {
    /// The machine has no IOMMU, or it is off.
    NoIommu,
    /// A driver of the kernel holds it.
    KernelDriver(String),
    /// No driver holds it, vfio-pci does not either.
    Unbound,
    /// Drivers of the kernel hold other devices that the IOMMU cannot tell apart from it.
    GroupShared {
        /// The group.
        group: u32,
        /// The other devices, with their drivers.
        others: Vec<(String, String)>,
    },
    /// The kernel's VFIO is not loaded.
    NoVfio,
    /// The kernel has no file of its own for the device, or no iommufd, and nothing else is to be used.
    NoIommufd,
    /// This user may not use a file of VFIO.
    NoPermission(PathBuf),
}

impl Obstacle {
    /// The way to a function, or the first thing that is in it. `sys` and `dev` are where `/sys` and `/dev` are.
    pub(crate) fn or_way(
        sys: &Path,
        dev: &Path,
        function: &PciFunction,
        backend: VfioBackend,
    ) -> Result<Way, Self> {
        let group = function.iommu_group.ok_or(Self::NoIommu)?;
        match &function.driver {
            None => return Err(Self::Unbound),
            Some(driver) if !lends(driver) => return Err(Self::KernelDriver(driver.clone())),
            Some(_) => {}
        }
        let others = held_by_others(sys, group);
        if !others.is_empty() {
            return Err(Self::GroupShared { group, others });
        }
        let by_group = || {
            let files = [dev.join("vfio/vfio"), dev.join("vfio").join(group.to_string())];
            usable(files).map(|()| Way::Group)
        };
        let by_cdev = || {
            let files = CdevFiles::find(sys, dev, function.address).ok_or(Self::NoIommufd)?;
            usable([files.device.clone(), files.iommu.clone()]).map(|()| Way::Cdev(files))
        };
        match backend {
            VfioBackend::Group => by_group(),
            VfioBackend::Cdev => by_cdev(),
            VfioBackend::Auto => by_cdev().or_else(|cdev| {
                // A kernel without groups has only the one way.
                by_group().map_err(|group| match (group, cdev) {
                    (Self::NoVfio, cdev @ Self::NoPermission(_)) => cdev,
                    (group, _) => group,
                })
            }),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self, function: &PciFunction) -> String {
        let address = function.address;
        match self {
            Self::NoIommu => {
                "enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on or amd_iommu=on"
                    .to_owned()
            }
            Self::KernelDriver(_) | Self::Unbound => format!("hand it to user space: nvmf bind {address}"),
            Self::GroupShared { .. } => {
                "bind the other devices to vfio-pci as well, or move the device to another slot".to_owned()
            }
            Self::NoVfio => "load VFIO: modprobe vfio-pci".to_owned(),
            Self::NoIommufd => {
                "load it (modprobe iommufd) if the kernel has it (CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV), or use the IOMMU group"
                    .to_owned()
            }
            Self::NoPermission(path) => {
                format!("run as root, or give yourself access: chown $USER {}", path.display())
            }
        }
    }

    /// As the error of trying to use the function all the same.
    pub(crate) fn error(&self, function: &PciFunction) -> Error {
        let error = match self {
            Self::NoPermission(_) => {
                Error::from(io::Error::new(io::ErrorKind::PermissionDenied, self.to_string()))
            }
            _ => Error::unsupported(self.to_string()),
        };
        error.doing(format!("opening {function}")).hint(self.hint(function))
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIommu => f.write_str("no IOMMU"),
            Self::KernelDriver(driver) => write!(f, "held by the kernel's {driver} driver"),
            Self::Unbound => write!(f, "not bound to {VFIO_DRIVER}"),
            Self::GroupShared { group, others } => {
                write!(f, "IOMMU group {group} is shared with ")?;
                for (index, (device, driver)) in others.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{device} ({driver})")?;
                }
                Ok(())
            }
            Self::NoVfio => f.write_str("VFIO is not loaded"),
            Self::NoIommufd => f.write_str("no iommufd, or no file of its own in /dev/vfio/devices"),
            Self::NoPermission(path) => write!(f, "no permission for {}", path.display()),
        }
    }
}

/// How a function is to be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Group,
    Cdev(CdevFiles),
}

/// Whether this process may use all of these files.
fn usable<const N: usize>(files: [PathBuf; N]) -> Result<(), Obstacle> {
    files.into_iter().try_for_each(|path| match may_use(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Obstacle::NoVfio),
        Err(_) => Err(Obstacle::NoPermission(path)),
    })
}

/// Whether a driver lends its functions to processes through VFIO.
pub(crate) fn lends(driver: &str) -> bool {
    driver == VFIO_DRIVER || driver.ends_with("-vfio-pci") || driver.ends_with("_vfio_pci")
}

/// The devices of a group that drivers hold which do not go together with VFIO, and these drivers.
fn held_by_others(sys: &Path, group: u32) -> Vec<(String, String)> {
    let devices = sys.join("kernel/iommu_groups").join(group.to_string()).join("devices");
    let mut others: Vec<(String, String)> = fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let driver = link_name(&entry.path(), "driver")?;
            // Bridges stay with their driver; pci-stub does nothing.
            let harmless = lends(&driver) || driver == "pcieport" || driver == "pci-stub";
            (!harmless).then(|| (entry.file_name().to_string_lossy().into_owned(), driver))
        })
        .collect();
    others.sort();
    others
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::scan::tests::Bus;

    fn found(bus: &Bus) -> Option<String> {
        way(bus, VfioBackend::Auto).err()
    }

    fn way(bus: &Bus, backend: VfioBackend) -> Result<Way, String> {
        let functions = crate::scan::functions(bus.root()).unwrap();
        Obstacle::or_way(bus.root(), &bus.root().join("dev"), &functions[0], backend)
            .map_err(|o| o.error(&functions[0]).to_string())
    }

    fn vfio_files(bus: &Bus, names: &[&str]) {
        let dir = bus.root().join("dev/vfio");
        fs::create_dir_all(&dir).unwrap();
        names.iter().for_each(|name| fs::write(dir.join(name), "").unwrap());
    }

    #[test]
    fn each_obstacle_is_named_with_what_to_do() {
        let expect = |name: &str, driver, group, parts: &[&str]| {
            let bus = Bus::new(&format!("obstacle-{name}"));
            bus.add("0000:04:00.0", "0x010802", driver, group);
            let text = found(&bus).unwrap();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        expect("iommu", Some("nvme"), None, &["opening 0000:04:00.0", "no IOMMU", "intel_iommu=on"]);
        expect(
            "kernel",
            Some("nvme"),
            Some(3),
            &["held by the kernel's nvme driver", "nvmf bind 0000:04:00.0"],
        );
        expect("unbound", None, Some(3), &["not bound to vfio-pci", "nvmf bind 0000:04:00.0"]);
        expect("vfio", Some("vfio-pci"), Some(3), &["VFIO is not loaded", "modprobe vfio-pci"]);
    }

    #[test]
    fn a_shared_group_is_told_with_its_other_devices() {
        let bus = Bus::new("obstacle-shared");
        bus.add("0000:04:00.0", "0x010802", Some("vfio-pci"), Some(3));
        bus.add("0000:04:00.1", "0x020000", Some("e1000e"), Some(3));
        bus.add("0000:04:00.2", "0x010601", None, Some(3));
        bus.add("0000:00:1c.0", "0x060400", Some("pcieport"), Some(3));
        vfio_files(&bus, &["vfio", "3"]);
        let text = found(&bus).unwrap();
        assert!(text.contains("IOMMU group 3 is shared with 0000:04:00.1 (e1000e);"), "{text}");
    }

    #[test]
    fn the_way_through_iommufd_is_taken_where_there_is_one_and_it_may_be() {
        let bus = Bus::new("obstacle-cdev");
        bus.add("0000:04:00.0", "0x010802", Some("vfio-pci"), Some(3));
        let text = way(&bus, VfioBackend::Cdev).unwrap_err();
        assert!(text.contains("no iommufd") && text.contains("modprobe iommufd"), "{text}");
        assert!(found(&bus).unwrap().contains("VFIO is not loaded"));
        vfio_files(&bus, &["vfio", "3"]);
        assert_eq!(way(&bus, VfioBackend::Auto), Ok(Way::Group));
        assert!(way(&bus, VfioBackend::Cdev).is_err());
        fs::create_dir_all(bus.root().join("bus/pci/devices/0000:04:00.0/vfio-dev/vfio0")).unwrap();
        fs::create_dir_all(bus.root().join("dev/vfio/devices")).unwrap();
        vfio_files(&bus, &["devices/vfio0", "../iommu"]);
        let device = bus.root().join("dev/vfio/devices/vfio0");
        let cdev = Way::Cdev(CdevFiles { device: device.clone(), iommu: bus.root().join("dev/iommu") });
        assert_eq!(way(&bus, VfioBackend::Auto), Ok(cdev.clone()));
        assert_eq!(way(&bus, VfioBackend::Cdev), Ok(cdev));
        assert_eq!(way(&bus, VfioBackend::Group), Ok(Way::Group));
        fs::set_permissions(&device, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may all the same.
        if fs::File::open(&device).is_err() {
            assert_eq!(way(&bus, VfioBackend::Auto), Ok(Way::Group));
            assert!(way(&bus, VfioBackend::Cdev).unwrap_err().contains("no permission for"));
            fs::remove_file(bus.root().join("dev/vfio/vfio")).unwrap();
            assert!(found(&bus).unwrap().contains("no permission for"), "there are no groups");
        }
    }

    #[test]
    fn files_that_may_not_be_used() {
        let bus = Bus::new("obstacle-permission");
        bus.add("0000:04:00.0", "0x010802", Some("vfio-pci"), Some(3));
        vfio_files(&bus, &["vfio", "3"]);
        assert_eq!(found(&bus), None);
        let path = bus.root().join("dev/vfio/3");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may all the same.
        match (found(&bus), fs::File::open(&path)) {
            (None, Ok(_)) => {}
            (Some(text), Err(_)) => {
                assert!(text.contains(&format!("no permission for {}", path.display())), "{text}");
                assert!(text.contains("chown"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}
