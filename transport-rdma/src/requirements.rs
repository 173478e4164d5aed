//! What RDMA needs on a machine.

use std::fs;
use std::path::Path;

use nvmf_core::Error;

use crate::sys;

/// Where the dynamic loader looks for libraries that are installed the ordinary way.
const LIBRARY_DIRS: [&str; 8] = [
    "lib",
    "lib64",
    "usr/lib",
    "usr/lib64",
    "usr/local/lib",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib/x86_64-linux-gnu",
];

/// Something RDMA needs that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// The verbs library.
    #[error("libibverbs.so.1 is not installed")]
    Verbs,
    /// The connection manager library.
    #[error("librdmacm.so.1 is not installed")]
    ConnectionManager,
    /// Kernel support for verbs in user space.
    #[error("the kernel offers no verbs (ib_uverbs is not loaded)")]
    KernelVerbs,
    /// Kernel support for the connection manager in user space.
    #[error("the kernel offers no RDMA connection manager (rdma_ucm is not loaded)")]
    KernelConnectionManager,
    /// A device.
    #[error("there is no RDMA device")]
    Device,
    /// A device that can be used from here. Not looked for by [`Requirements`]: it shows when the library opens the devices.
    #[error(
        "the verbs library can use none of the RDMA devices (no driver for them, or they are in another network namespace)"
    )]
    Driver,
    /// Memory that may be locked.
    #[error("no memory may be locked (RLIMIT_MEMLOCK is 0)")]
    LockedMemory,
}

impl Missing {
    /// The error of an attempt to connect without it.
    pub(crate) fn error(self) -> Error {
        Error::unsupported(format!("RDMA is not available here: {self}")).hint(self.remedy())
    }

    /// How to get it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Verbs => "install libibverbs1 and ibverbs-providers (Debian) or rdma-core",
            Self::ConnectionManager => "install librdmacm1 (Debian) or rdma-core",
            Self::KernelVerbs => "modprobe ib_uverbs",
            Self::KernelConnectionManager => "modprobe rdma_ucm",
            Self::Device => {
                "for soft-RoCE over an Ethernet interface: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0"
            }
            Self::Driver => "install ibverbs-providers (Debian) or rdma-core",
            Self::LockedMemory => "ulimit -l unlimited, or LimitMEMLOCK=infinity in a systemd unit",
        }
    }
}

/// What a machine has and lacks for RDMA.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Requirements {
    /// RDMA devices.
    pub devices: Vec<String>,
    /// What is missing, in the order in which to get it.
    pub missing: Vec<Missing>,
}

impl Requirements {
    /// Looks below `root`.
    pub(crate) fn of(root: &Path) -> Self {
        let mut missing = Vec::new();
        // For the machine itself the dynamic loader knows better than any list of directories.
        let library = |name: &str| {
            LIBRARY_DIRS.iter().any(|dir| root.join(dir).join(name).exists())
                || root == Path::new("/") && sys::is_loadable(name)
        };
        if !library(sys::VERBS_LIBRARY) {
            missing.push(Missing::Verbs);
        }
        if !library(sys::CM_LIBRARY) {
            missing.push(Missing::ConnectionManager);
        }
        if !root.join("sys/class/infiniband_verbs/abi_version").exists() {
            missing.push(Missing::KernelVerbs);
        }
        if !root.join("dev/infiniband/rdma_cm").exists() {
            missing.push(Missing::KernelConnectionManager);
        }
        let mut devices: Vec<String> = fs::read_dir(root.join("sys/class/infiniband"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        devices.sort();
        if devices.is_empty() {
            missing.push(Missing::Device);
        }
        if locked_memory_limit(root) == Some(0) {
            missing.push(Missing::LockedMemory);
        }
        Self { devices, missing }
    }
}

/// How much memory this process may lock, bytes; `None` when there is no limit, or it is not known.
pub(crate) fn locked_memory_limit(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is wrong with a device or its port; `None` when nothing is, or nothing is known.
pub(crate) fn port_trouble(root: &Path, device: &str, port: u8) -> Option<String> {
    let devices = root.join("sys/class/infiniband");
    if devices.exists() && !devices.join(device).exists() {
        return Some(format!("the RDMA device {device} is gone"));
    }
    // An identifier that was not routed has no port; most devices have just the one.
    let port = port.max(1);
    let state = fs::read_to_string(devices.join(format!("{device}/ports/{port}/state"))).ok()?;
    // As in "4: ACTIVE".
    let name = state.rsplit(':').next().unwrap_or_default().trim();
    let why = if name.starts_with("ACTIVE") {
        // An Ethernet interface carries nothing from the moment its flag is cleared; its RDMA device hears of it later.
        format!("its network interface {} is down", downed_interface(root, &devices.join(device), port)?)
    } else {
        format!("its state is {name:?}")
    };
    Some(format!("port {port} of the RDMA device {device} is not up ({why})"))
}

/// The network interface below a port of a RoCE device, when it has been set down.
fn downed_interface(root: &Path, device: &Path, port: u8) -> Option<String> {
    const IFF_UP: u32 = 1;
    // The first address of a port names its interface, but it goes away with the link; soft devices name theirs for good.
    let interface = ["parent".to_owned(), format!("ports/{port}/gid_attrs/ndevs/0")]
        .iter()
        .find_map(|file| fs::read_to_string(device.join(file)).ok())?;
    let interface = interface.trim();
    let flags = fs::read_to_string(root.join("sys/class/net").join(interface).join("flags")).ok()?;
    let flags = u32::from_str_radix(flags.trim().strip_prefix("0x")?, 16).ok()?;
    (flags & IFF_UP == 0).then(|| interface.to_owned())
}

#[cfg(test)]
mod tests {
    use nvmf_core::{ControllerOptions, Driver};

    use super::*;
    use crate::{RdmaTransport, VerbsProvider};

    struct Root(std::path::PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("nvmf-rdma-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn add(&self, file: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_missing_is_told_in_order() {
        let root = Root::new("order");
        let all = [
            Missing::Verbs,
            Missing::ConnectionManager,
            Missing::KernelVerbs,
            Missing::KernelConnectionManager,
            Missing::Device,
        ];
        assert_eq!(Requirements::of(&root.0).missing, all);
        root.add("usr/lib/x86_64-linux-gnu/libibverbs.so.1");
        root.add("usr/lib/librdmacm.so.1");
        root.add("sys/class/infiniband_verbs/abi_version");
        root.add("dev/infiniband/rdma_cm");
        assert_eq!(Requirements::of(&root.0).missing, [Missing::Device]);
        root.add("sys/class/infiniband/rxe0/node_type");
        assert_eq!(Requirements::of(&root.0), Requirements { devices: vec!["rxe0".into()], missing: vec![] });
    }

    #[test]
    fn a_port_that_is_down_and_a_device_that_is_gone_are_told() {
        let root = Root::new("port");
        assert_eq!(port_trouble(&root.0, "rxe0", 1), None);
        root.add("sys/class/infiniband/rxe0/ports/1/state");
        let state = root.0.join("sys/class/infiniband/rxe0/ports/1/state");
        fs::write(&state, "4: ACTIVE\n").unwrap();
        assert_eq!(port_trouble(&root.0, "rxe0", 1), None);

        for name in
            ["sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/0", "sys/class/infiniband/rxe0/parent"]
        {
            root.add(name);
            fs::write(root.0.join(name), "eth7\n").unwrap();
            assert_eq!(port_trouble(&root.0, "rxe0", 1), None, "nothing is known of the interface");
            root.add("sys/class/net/eth7/flags");
            let flags = root.0.join("sys/class/net/eth7/flags");
            fs::write(&flags, "0x1003\n").unwrap();
            assert_eq!(port_trouble(&root.0, "rxe0", 1), None);
            fs::write(&flags, "0x1002\n").unwrap();
            let down = port_trouble(&root.0, "rxe0", 1).unwrap();
            assert_eq!(down, "port 1 of the RDMA device rxe0 is not up (its network interface eth7 is down)");
            fs::remove_file(&flags).unwrap();
            fs::remove_file(root.0.join(name)).unwrap();
        }

        fs::write(&state, "1: DOWN\n").unwrap();
        let down = port_trouble(&root.0, "rxe0", 1).unwrap();
        assert_eq!(down, "port 1 of the RDMA device rxe0 is not up (its state is \"DOWN\")");
        assert_eq!(port_trouble(&root.0, "rxe1", 1).unwrap(), "the RDMA device rxe1 is gone");
    }

    #[test]
    fn attaching_says_what_is_missing_and_how_to_get_it() {
        let root = Root::new("attach");
        let driver = Driver::builder()
            .transport(RdmaTransport::with_provider(VerbsProvider::with_root(&root.0)))
            .build();
        let trid =
            "trtype:rdma traddr:192.0.2.1 trsvcid:4420 subnqn:nqn.2024-01.com.example:x".parse().unwrap();
        let error = driver.connect(&trid, &ControllerOptions::default()).unwrap_err().to_string();
        assert!(error.contains("libibverbs.so.1 is not installed"), "{error}");
        assert!(error.contains("install libibverbs1"), "{error}");
    }
}
