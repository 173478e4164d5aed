//! Handing functions from the kernel's driver to vfio-pci and back, through sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nvmf_core::transport_id::PciAddress;
use nvmf_core::{Error, Result};

use crate::obstacle::{VFIO_DRIVER, lends};
use crate::scan::{self, PciFunction, link_name};

/// Writes to a file of sysfs.
type Write<'a> = &'a dyn Fn(&Path, &str) -> io::Result<()>;

/// Where the machine's files are, and how they are written.
pub(crate) struct Binder<'a> {
    pub(crate) sys: &'a Path,
    pub(crate) dev: &'a Path,
    pub(crate) proc: &'a Path,
    pub(crate) write: Write<'a>,
}

/// Writes to a file that must be there already.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::File::options().write(true).open(path)?, text.as_bytes())
}

impl Binder<'_> {
    fn device(&self, address: PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    fn function(&self, address: PciAddress) -> Result<PciFunction> {
        scan::functions(self.sys)?.into_iter().find(|f| f.address == address).ok_or_else(|| {
            Error::api_misuse(format!("there is no NVMe controller at PCI address {address}"))
                .hint("`nvmf list` shows the local controllers")
        })
    }

    fn put(&self, path: &Path, text: &str) -> Result<()> {
        (self.write)(path, text).map_err(|error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let error = Error::from(error).doing(format!("writing {}", path.display()));
            if denied { error.hint("only root may do this") } else { error }
        })
    }

    /// Lets a driver named by `driver_override` (any when empty) take the function, after its present one has let go.
    fn hand_over(&self, function: &PciFunction, to: &str) -> Result<Option<String>> {
        let (device, address) = (self.device(function.address), function.address.to_string());
        // A line feed alone takes the override away.
        self.put(&device.join("driver_override"), &format!("{to}\n"))?;
        if function.driver.is_some() {
            self.put(&device.join("driver/unbind"), &address)?;
        }
        self.put(&self.sys.join("bus/pci/drivers_probe"), &address)?;
        Ok(link_name(&device, "driver"))
    }

    /// Hands a function to vfio-pci. Returns `false` when it was there already.
    pub(crate) fn bind(&self, address: PciAddress) -> Result<bool> {
        let function = self.function(address)?;
        if function.driver.as_deref().is_some_and(lends) {
            return Ok(false);
        }
        if function.iommu_group.is_none() {
            return Err(Error::unsupported("the machine has no IOMMU, or it is off")
                .doing(format!("binding {function} to {VFIO_DRIVER}"))
                .hint("enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on or amd_iommu=on"));
        }
        let users = self.users(address);
        if let Some(reason) = users.first() {
            let more =
                if users.len() > 1 { format!(" (and {} more)", users.len() - 1) } else { String::new() };
            return Err(Error::api_misuse(format!("it is in use: {reason}{more}"))
                .doing(format!("binding {address} to {VFIO_DRIVER}"))
                .hint("unmount it and end what uses it first"));
        }
        if !self.sys.join("bus/pci/drivers").join(VFIO_DRIVER).is_dir() {
            return Err(Error::unsupported(format!("the {VFIO_DRIVER} driver is not loaded"))
                .doing(format!("binding {address} to {VFIO_DRIVER}"))
                .hint("load it: modprobe vfio-pci"));
        }
        let driver = self.hand_over(&function, VFIO_DRIVER)?;
        if driver.as_deref().is_some_and(lends) {
            return Ok(true);
        }
        // Back to how it was, as far as possible.
        let function = PciFunction { driver, ..function };
        let now = self.hand_over(&function, "")?;
        let now = now.map_or_else(|| "no driver has it".to_owned(), |driver| format!("{driver} has it"));
        Err(Error::unsupported(format!("{VFIO_DRIVER} did not take it; {now} now"))
            .doing(format!("binding {address} to {VFIO_DRIVER}"))
            .hint("the kernel log (dmesg) says why"))
    }

    /// Gives a function back to whichever driver of the kernel wants it. Returns that driver.
    pub(crate) fn unbind(&self, address: PciAddress) -> Result<Option<String>> {
        let function = self.function(address)?;
        if !function.driver.as_deref().is_some_and(lends) {
            let holder = function
                .driver
                .map_or_else(|| "no driver".to_owned(), |driver| format!("the {driver} driver"));
            return Err(Error::api_misuse(format!(
                "{address} is not bound to {VFIO_DRIVER}: {holder} has it"
            )));
        }
        if let Some(group) = function.iommu_group {
            let file = self.dev.join("vfio").join(group.to_string());
            if let Some(process) = self.processes(&BTreeSet::from([file])).into_iter().next() {
                return Err(Error::api_misuse(format!("it is in use: {process}"))
                    .doing(format!("giving {address} back to the kernel"))
                    .hint("end the process first"));
            }
        }
        self.hand_over(&function, "")
    }

    /// Who uses the namespaces of a function through the kernel: mounts, swap, other block devices, processes.
    fn users(&self, address: PciAddress) -> Vec<String> {
        let mut users = Vec::new();
        let mut files = BTreeSet::new();
        let mounts = fs::read_to_string(self.proc.join("self/mounts")).unwrap_or_default();
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        let disks = self.disks(address);
        for (name, path) in &disks {
            let file = self.dev.join(name);
            for line in mounts.lines() {
                let mut words = line.split(' ');
                let (Some(source), Some(target)) = (words.next(), words.next()) else { continue };
                if same_file(Path::new(source), &file) {
                    users.push(format!("{} is mounted on {target}", file.display()));
                }
            }
            if swaps
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().next())
                .any(|source| same_file(Path::new(source), &file))
            {
                users.push(format!("{} is used for swap", file.display()));
            }
            for holder in fs::read_dir(path.join("holders")).into_iter().flatten().flatten() {
                users.push(format!("{} is part of {}", file.display(), holder.file_name().to_string_lossy()));
            }
            files.insert(file);
        }
        for name in self.characters(address) {
            files.insert(self.dev.join(name));
        }
        if users.is_empty() {
            users.extend(self.processes(&files));
        }
        if users.is_empty() {
            users.extend(
                disks
                    .iter()
                    .map(|(name, _)| self.dev.join(name))
                    .filter(|file| claimed(file))
                    .map(|file| format!("the kernel has opened {} for itself", file.display())),
            );
        }
        users
    }

    /// The block devices of a function's namespaces and their partitions: name and directory in sysfs.
    fn disks(&self, address: PciAddress) -> Vec<(String, PathBuf)> {
        let Ok(function) = fs::canonicalize(self.device(address)) else { return Vec::new() };
        let mut found = Vec::new();
        for disk in fs::read_dir(self.sys.join("block")).into_iter().flatten().flatten() {
            let path = disk.path();
            let Ok(parent) = fs::canonicalize(path.join("device")) else { continue };
            // The parent of a disk with several paths is the subsystem, which has a link to each controller.
            let behind = parent.starts_with(&function)
                || fs::read_dir(&parent)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|entry| {
                        entry.path().is_symlink() && entry.file_name().as_encoded_bytes().starts_with(b"nvme")
                    })
                    .any(|entry| {
                        fs::canonicalize(entry.path()).is_ok_and(|path| path.starts_with(&function))
                    });
            if !behind {
                continue;
            }
            for part in fs::read_dir(&path).into_iter().flatten().flatten() {
                if part.path().join("partition").exists() {
                    found.push((part.file_name().to_string_lossy().into_owned(), part.path()));
                }
            }
            found.push((disk.file_name().to_string_lossy().into_owned(), path));
        }
        found.sort();
        found
    }

    /// The controller's character devices.
    fn characters(&self, address: PciAddress) -> Vec<String> {
        let entries = fs::read_dir(self.device(address).join("nvme")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Processes that have one of these files open.
    fn processes(&self, files: &BTreeSet<PathBuf>) -> Vec<String> {
        let mut found = Vec::new();
        for process in fs::read_dir(self.proc).into_iter().flatten().flatten() {
            let Ok(id) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
            let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            let opened =
                open.filter_map(|fd| fs::read_link(fd.path()).ok()).find(|file| files.contains(file));
            if let Some(file) = opened {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.push(format!("process {id} ({}) has {} open", name.trim(), file.display()));
            }
        }
        found
    }
}

/// Whether a name given to mount or swapon (perhaps a link like /dev/disk/by-id/...) is this device.
fn same_file(name: &Path, device: &Path) -> bool {
    name == device || fs::canonicalize(name).is_ok_and(|path| path == device)
}

/// Whether somebody has a block device to himself (a file system in another mount namespace, a volume manager).
fn claimed(file: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let block = fs::metadata(file).is_ok_and(|data| data.file_type().is_block_device());
    let busy = |error: io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    // On a block device O_EXCL needs no O_CREAT: it fails when somebody else claims the device.
    block && fs::File::options().read(true).custom_flags(libc::O_EXCL).open(file).is_err_and(busy)
}

#[cfg(test)]
mod tests;
