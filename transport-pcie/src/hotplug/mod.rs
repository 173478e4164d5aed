//! NVMe functions that come and go, or change hands, on the bus.

mod uevent;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use nvmf_core::transport::{HotplugEvent, HotplugMonitor};
use nvmf_core::transport_id::PciAddress;
use nvmf_core::{Result, TransportId};

use self::uevent::{Action, Heard, Uevent, Uevents};
use crate::obstacle::lends;
use crate::{Finder, scan};

/// What a function of the program's says is there.
pub(crate) struct Listing(pub(crate) Arc<dyn Fn() -> Vec<TransportId> + Send + Sync>);

impl Finder for Listing {
    fn find(&self, filter: Option<&TransportId>) -> Vec<TransportId> {
        match filter {
            // Whether there is one shows when it is opened.
            Some(trid) if !trid.traddr().is_empty() => vec![trid.clone()],
            _ => (self.0)(),
        }
    }

    fn monitor(&self) -> Result<Option<Box<dyn HotplugMonitor>>> {
        let known = (self.0)();
        Ok(Some(Box::new(ListingMonitor { list: Arc::clone(&self.0), known })))
    }
}

struct ListingMonitor {
    list: Arc<dyn Fn() -> Vec<TransportId> + Send + Sync>,
    known: Vec<TransportId>,
}

impl HotplugMonitor for ListingMonitor {
    fn event_fd(&self) -> Option<RawFd> {
        None
    }

    fn poll(&mut self, each: &mut dyn FnMut(HotplugEvent)) -> Result<()> {
        let before = std::mem::replace(&mut self.known, (self.list)());
        let gone =
            before.iter().filter(|trid| !self.known.contains(trid)).cloned().map(HotplugEvent::Removed);
        let new =
            self.known.iter().filter(|trid| !before.contains(trid)).cloned().map(HotplugEvent::Inserted);
        gone.chain(new).for_each(each);
        Ok(())
    }
}

/// Messages taken before somebody else has a turn.
const MAX_TAKEN: usize = 1024;

/// Watches the bus: by the kernel's messages, or by looking at it where those cannot be had.
#[derive(Debug)]
pub(crate) struct BusMonitor {
    root: PathBuf,
    uevents: Option<Uevents>,
    /// Functions there are, and whether a process may drive them.
    known: BTreeMap<PciAddress, bool>,
}

impl BusMonitor {
    /// Watches the bus under `root`, `/sys` or what looks like it.
    pub(crate) fn new(root: PathBuf, uevents: Option<Uevents>) -> Result<Self> {
        let mut monitor = Self { root, uevents, known: BTreeMap::new() };
        monitor.known = monitor.scan()?;
        Ok(monitor)
    }

    /// Watches this machine's bus.
    pub(crate) fn of_machine(root: PathBuf) -> Result<Self> {
        let uevents = Uevents::listen()
            .inspect_err(|error| {
                tracing::debug!(%error, "the kernel does not tell about devices; the bus is scanned instead");
            })
            .ok();
        Self::new(root, uevents)
    }

    fn scan(&self) -> Result<BTreeMap<PciAddress, bool>> {
        let functions = scan::functions(&self.root)?;
        Ok(functions.into_iter().map(|f| (f.address, f.driver.as_deref().is_some_and(lends))).collect())
    }

    /// Looks at the bus and reports what is not as it was.
    fn compare(&mut self, each: &mut dyn FnMut(HotplugEvent)) -> Result<()> {
        let now = self.scan()?;
        let before = std::mem::replace(&mut self.known, now);
        for (address, &was_lent) in &before {
            let lent = self.known.get(address);
            if lent.is_none() || (was_lent && lent == Some(&false)) {
                each(HotplugEvent::Removed(TransportId::pcie(*address)));
            }
        }
        for (address, &lent) in &self.known {
            let before = before.get(address);
            if before.is_none() || (lent && before == Some(&false)) {
                each(HotplugEvent::Inserted(TransportId::pcie(*address)));
            }
        }
        Ok(())
    }

    fn take(&mut self, uevent: Uevent, each: &mut dyn FnMut(HotplugEvent)) {
        tracing::debug!(?uevent, "uevent");
        let Uevent { action, address, driver } = uevent;
        let lent = driver.as_deref().is_some_and(lends);
        let known = self.known.get(&address).copied();
        let trid = || TransportId::pcie(address);
        match (action, known) {
            (Action::Add, None) => {
                self.known.insert(address, lent);
                each(HotplugEvent::Inserted(trid()));
            }
            (Action::Bind, _) if lent && known != Some(true) => {
                self.known.insert(address, true);
                each(HotplugEvent::Inserted(trid()));
            }
            (Action::Unbind, Some(true)) => {
                self.known.insert(address, false);
                each(HotplugEvent::Removed(trid()));
            }
            (Action::Remove, Some(_)) => {
                self.known.remove(&address);
                each(HotplugEvent::Removed(trid()));
            }
            _ => {}
        }
    }
}

impl HotplugMonitor for BusMonitor {
    fn event_fd(&self) -> Option<RawFd> {
        self.uevents.as_ref().map(|uevents| uevents.as_fd().as_raw_fd())
    }

    fn poll(&mut self, each: &mut dyn FnMut(HotplugEvent)) -> Result<()> {
        for _ in 0..MAX_TAKEN {
            match self.uevents.as_ref().map(Uevents::next) {
                Some(Ok(Some(Heard::Uevent(uevent)))) => self.take(uevent, each),
                Some(Ok(Some(Heard::Overrun))) => {
                    tracing::debug!("messages about devices were lost; the bus is scanned");
                    self.compare(each)?;
                }
                Some(Ok(None)) => return Ok(()),
                Some(Err(error)) => return Err(nvmf_core::Error::from(error).doing("listening to uevents")),
                None => return self.compare(each),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixDatagram;

    use super::uevent::tests::message;
    use super::*;
    use crate::scan::tests::Bus;

    const A: &str = "0000:01:00.0";
    const B: &str = "0000:02:00.0";

    fn monitor(bus: &Bus) -> (BusMonitor, UnixDatagram) {
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (BusMonitor::new(bus.root().into(), Some(Uevents::over(ours.into()))).unwrap(), kernel)
    }

    fn events(monitor: &mut BusMonitor) -> Vec<String> {
        let mut events = Vec::new();
        monitor
            .poll(&mut |event| {
                let sign = if matches!(event, HotplugEvent::Inserted(_)) { '+' } else { '-' };
                events.push(format!("{sign}{}", event.trid().traddr()));
            })
            .unwrap();
        events
    }

    #[test]
    fn what_the_kernel_says_is_told_in_order_and_once() {
        let bus = Bus::new("uevents");
        bus.add(A, "0x010802", Some("vfio-pci"), Some(3));
        let (mut monitor, kernel) = monitor(&bus);
        assert!(monitor.event_fd().is_some());
        let say = |action, address, driver: &[&str]| {
            kernel.send(&message(action, address, driver)).unwrap();
        };
        assert_eq!(events(&mut monitor), [""; 0]);
        say("add", A, &[]);
        say("bind", A, &["DRIVER=vfio-pci"]);
        assert_eq!(events(&mut monitor), [""; 0], "known from the start");
        say("unbind", A, &[]);
        say("remove", A, &[]);
        say("remove", A, &[]);
        say("add", A, &[]);
        say("bind", A, &["DRIVER=nvme"]);
        assert_eq!(events(&mut monitor), [format!("-{A}"), format!("-{A}"), format!("+{A}")]);
        // From one driver to the other and back.
        say("unbind", A, &[]);
        assert_eq!(events(&mut monitor), [""; 0]);
        say("bind", A, &["DRIVER=vfio-pci"]);
        say("unbind", A, &[]);
        assert_eq!(events(&mut monitor), [format!("+{A}"), format!("-{A}")]);
        say("add", B, &[]);
        say("remove", B, &[]);
        kernel.send(b"remove@/devices/virtual/vfio/3\0ACTION=remove\0SUBSYSTEM=vfio\0").unwrap();
        assert_eq!(events(&mut monitor), [format!("+{B}"), format!("-{B}")]);
        drop(kernel);
        assert_eq!(events(&mut monitor), [""; 0]);
    }

    #[test]
    fn what_was_lost_is_found_by_looking() {
        let bus = Bus::new("overrun");
        bus.add(A, "0x010802", Some("vfio-pci"), Some(3));
        let (mut monitor, kernel) = monitor(&bus);
        fs::remove_dir_all(bus.root().join("bus/pci/devices").join(A)).unwrap();
        bus.add(B, "0x010802", None, Some(4));
        // Longer than any message may be.
        kernel.send(&[b'a'; 10_000]).unwrap();
        assert_eq!(events(&mut monitor), [format!("-{A}"), format!("+{B}")]);
        assert_eq!(events(&mut monitor), [""; 0]);
    }

    #[test]
    fn without_the_kernels_messages_the_bus_is_looked_at() {
        let bus = Bus::new("scanning");
        bus.add(A, "0x010802", None, Some(3));
        bus.add("0000:00:1f.2", "0x010601", None, None);
        let mut monitor = BusMonitor::new(bus.root().into(), None).unwrap();
        assert_eq!((monitor.event_fd(), events(&mut monitor)), (None, vec![]));
        let driver = bus.root().join("bus/pci/devices").join(A).join("driver");
        symlink("../../drivers/vfio-pci", &driver).unwrap();
        assert_eq!(events(&mut monitor), [format!("+{A}")], "it can be attached now");
        fs::remove_file(&driver).unwrap();
        assert_eq!(events(&mut monitor), [format!("-{A}")]);
        fs::remove_dir_all(driver.parent().unwrap()).unwrap();
        bus.add(B, "0x010802", Some("vfio-pci"), None);
        assert_eq!(events(&mut monitor), [format!("-{A}"), format!("+{B}")]);
    }
}
