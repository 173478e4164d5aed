use std::cell::RefCell;
use std::os::unix::fs::symlink;

use super::*;
use crate::scan::tests::Bus;

const ADDRESS: &str = "0000:04:00.0";

/// A machine whose kernel does what is written to its files: `accepts` are the drivers that take a function.
struct Machine {
    bus: Bus,
    accepts: Vec<&'static str>,
    written: RefCell<Vec<String>>,
}

impl Machine {
    fn new(name: &str, driver: Option<&str>, group: Option<u32>) -> Self {
        let bus = Bus::new(&format!("bind-{name}"));
        bus.add(ADDRESS, "0x010802", driver, group);
        fs::create_dir_all(bus.root().join("bus/pci/drivers/vfio-pci")).unwrap();
        fs::create_dir_all(bus.root().join("proc/self")).unwrap();
        Self { bus, accepts: vec!["vfio-pci", "nvme"], written: RefCell::default() }
    }

    fn device(&self) -> PathBuf {
        self.bus.root().join("bus/pci/devices").join(ADDRESS)
    }

    /// What the kernel does.
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let name = path.strip_prefix(self.bus.root()).unwrap().display().to_string();
        self.written.borrow_mut().push(format!("{} <- {}", name.replace("bus/pci/", ""), text.trim()));
        let driver = self.device().join("driver");
        if name.ends_with("driver_override") {
            fs::write(path, text)?;
        } else if name.ends_with("driver/unbind") {
            fs::remove_file(driver)?;
        } else if name.ends_with("drivers_probe") {
            let wanted = fs::read_to_string(self.device().join("driver_override"))?;
            let wanted = if wanted.trim().is_empty() { "nvme" } else { wanted.trim() };
            if self.accepts.contains(&wanted) {
                symlink(format!("../../drivers/{wanted}"), driver)?;
            }
        }
        Ok(())
    }

    fn with<R>(&self, run: impl FnOnce(&Binder<'_>) -> R) -> R {
        let (dev, proc) = (self.bus.root().join("dev"), self.bus.root().join("proc"));
        let write = |path: &Path, text: &str| self.write(path, text);
        run(&Binder { sys: self.bus.root(), dev: &dev, proc: &proc, write: &write })
    }

    fn bind(&self) -> Result<bool, String> {
        self.with(|binder| binder.bind(ADDRESS.parse().unwrap())).map_err(|error| error.to_string())
    }

    fn unbind(&self) -> Result<Option<String>, String> {
        self.with(|binder| binder.unbind(ADDRESS.parse().unwrap())).map_err(|error| error.to_string())
    }

    /// A disk with one partition, as the kernel's driver makes them; of a subsystem with several paths if `multipath`.
    fn disk(&self, multipath: bool) {
        let root = self.bus.root();
        let controller = self.device().join("nvme/nvme0");
        fs::create_dir_all(&controller).unwrap();
        let disk = root.join("block/nvme0n1");
        fs::create_dir_all(disk.join("holders")).unwrap();
        fs::create_dir_all(disk.join("nvme0n1p1/holders")).unwrap();
        fs::write(disk.join("nvme0n1p1/partition"), "1\n").unwrap();
        if multipath {
            let subsystem = root.join("devices/virtual/nvme-subsystem/nvme-subsys0");
            fs::create_dir_all(&subsystem).unwrap();
            symlink(&controller, subsystem.join("nvme0")).unwrap();
            symlink(&subsystem, disk.join("device")).unwrap();
        } else {
            symlink(&controller, disk.join("device")).unwrap();
        }
        // Somebody else's disk, in use all the time.
        fs::create_dir_all(root.join("block/sda/holders/dm-7")).unwrap();
    }

    fn dev(&self, name: &str) -> String {
        self.bus.root().join("dev").join(name).display().to_string()
    }

    fn proc(&self, file: &str, text: &str) {
        fs::write(self.bus.root().join("proc").join(file), text).unwrap();
    }
}

#[test]
fn bind_and_unbind_go_through_the_override() {
    let machine = Machine::new("both", Some("nvme"), Some(3));
    assert_eq!(machine.bind(), Ok(true));
    assert_eq!(machine.bind(), Ok(false));
    assert_eq!(machine.unbind(), Ok(Some("nvme".to_owned())));
    let device = format!("devices/{ADDRESS}");
    let expected = [
        format!("{device}/driver_override <- vfio-pci"),
        format!("{device}/driver/unbind <- {ADDRESS}"),
        format!("drivers_probe <- {ADDRESS}"),
        format!("{device}/driver_override <- "),
        format!("{device}/driver/unbind <- {ADDRESS}"),
        format!("drivers_probe <- {ADDRESS}"),
    ];
    assert_eq!(*machine.written.borrow(), expected);
}

#[test]
fn a_function_without_a_driver_is_not_unbound_first() {
    let machine = Machine::new("free", None, Some(3));
    assert_eq!(machine.bind(), Ok(true));
    assert!(machine.written.borrow().iter().all(|line| !line.contains("unbind")));
}

#[test]
fn a_function_that_vfio_does_not_take_goes_back() {
    let mut machine = Machine::new("refused", Some("nvme"), Some(3));
    machine.accepts = vec!["nvme"];
    let error = machine.bind().unwrap_err();
    assert!(error.contains("vfio-pci did not take it; nvme has it now"), "{error}");
}

#[test]
fn what_cannot_be_bound_is_left_alone() {
    let machine = Machine::new("no-iommu", Some("nvme"), None);
    assert!(machine.bind().unwrap_err().contains("no IOMMU"));
    let machine_without = Machine::new("no-vfio", Some("nvme"), Some(3));
    fs::remove_dir(machine_without.bus.root().join("bus/pci/drivers/vfio-pci")).unwrap();
    assert!(machine_without.bind().unwrap_err().contains("modprobe vfio-pci"));
    assert!(machine.unbind().unwrap_err().contains("the nvme driver has it"));
    let nobody = machine.with(|binder| binder.bind("0000:09:00.0".parse().unwrap())).unwrap_err();
    assert!(nobody.to_string().contains("no NVMe controller at PCI address 0000:09:00.0"));
    assert!(machine.written.borrow().is_empty() && machine_without.written.borrow().is_empty());
}

#[test]
fn devices_in_use_are_refused() {
    for multipath in [false, true] {
        let check = |name: &str, prepare: &dyn Fn(&Machine), expected: &str| {
            let machine = Machine::new(&format!("{name}-{multipath}"), Some("nvme"), Some(3));
            machine.disk(multipath);
            prepare(&machine);
            let error = machine.bind().unwrap_err();
            assert!(error.contains("it is in use: ") && error.contains(expected), "{error}");
            assert!(machine.written.borrow().is_empty());
        };
        check(
            "mount",
            &|m| {
                m.proc(
                    "self/mounts",
                    &format!("proc /proc proc rw 0 0\n{} /data ext4 rw 0 0\n", m.dev("nvme0n1p1")),
                )
            },
            "nvme0n1p1 is mounted on /data",
        );
        check(
            "swap",
            &|m| {
                m.proc(
                    "swaps",
                    &format!("Filename Type Size Used Priority\n{} partition 9 0 -2\n", m.dev("nvme0n1")),
                )
            },
            "nvme0n1 is used for swap",
        );
        check(
            "holder",
            &|m| fs::create_dir(m.bus.root().join("block/nvme0n1/nvme0n1p1/holders/dm-0")).unwrap(),
            "nvme0n1p1 is part of dm-0",
        );
        check(
            "process",
            &|m| {
                fs::create_dir_all(m.bus.root().join("proc/17/fd")).unwrap();
                m.proc("17/comm", "dd\n");
                symlink(m.dev("nvme0"), m.bus.root().join("proc/17/fd/3")).unwrap();
            },
            "process 17 (dd) has",
        );
    }
    let idle = Machine::new("idle", Some("nvme"), Some(3));
    idle.disk(false);
    assert_eq!(idle.bind(), Ok(true));
}

#[test]
fn a_device_some_process_drives_is_not_taken_from_it() {
    let machine = Machine::new("driven", Some("vfio-pci"), Some(3));
    fs::create_dir_all(machine.bus.root().join("proc/21/fd")).unwrap();
    machine.proc("21/comm", "nvmf\n");
    symlink(machine.dev("vfio/3"), machine.bus.root().join("proc/21/fd/9")).unwrap();
    let error = machine.unbind().unwrap_err();
    assert!(error.contains("process 21 (nvmf) has") && machine.written.borrow().is_empty(), "{error}");
}
