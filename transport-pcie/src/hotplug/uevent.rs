//! The kernel's messages about devices (uevents), through netlink.
//!
//! Anybody in the initial network namespace may listen. Only what comes from the kernel itself counts, not what a process sends
//! (`nl_pid`), nor what an administrator made the kernel say (`SYNTH_UUID`).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nvmf_core::transport_id::PciAddress;
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType, bind, recvfrom, socket_with,
};

use crate::scan::CLASS_NVME;

/// The group that the kernel itself sends to; udev's messages have another.
const KERNEL_GROUP: u32 = 1;
/// Longer messages are not the kernel's, which has 2 KiB for the variables and a path before them.
const MAX_MESSAGE: usize = 8192;

/// What happened to a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Add,
    Remove,
    Bind,
    Unbind,
}

/// A message about an NVMe function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Uevent {
    pub(crate) action: Action,
    pub(crate) address: PciAddress,
    /// The driver that it was bound to.
    pub(crate) driver: Option<String>,
}

impl Uevent {
    /// From a message: `ACTION@DEVPATH`, then `NAME=VALUE`, each ended by a NUL. `None` when it is about something else.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let mut parts = message.split(|&byte| byte == 0);
        let headline = std::str::from_utf8(parts.next()?).ok()?;
        headline.split_once('@').filter(|(_, path)| path.starts_with('/'))?;
        let (mut action, mut address, mut driver) = (None, None, None);
        let (mut is_pci, mut is_nvme) = (false, false);
        for (name, value) in
            parts.filter_map(|part| std::str::from_utf8(part).ok()).filter_map(|part| part.split_once('='))
        {
            match name {
                "ACTION" => {
                    action = Some(match value {
                        "add" => Action::Add,
                        "remove" => Action::Remove,
                        "bind" => Action::Bind,
                        "unbind" => Action::Unbind,
                        _ => return None,
                    });
                }
                "SUBSYSTEM" => is_pci = value == "pci",
                "PCI_CLASS" => is_nvme = u32::from_str_radix(value, 16) == Ok(CLASS_NVME),
                "PCI_SLOT_NAME" => address = value.parse().ok(),
                "DRIVER" => driver = Some(value.to_owned()),
                "SYNTH_UUID" => return None,
                _ => {}
            }
        }
        (is_pci && is_nvme).then_some(())?;
        Some(Self { action: action?, address: address?, driver })
    }
}

/// What listening brought.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    Uevent(Uevent),
    /// Messages were lost.
    Overrun,
}

/// A socket that listens to the kernel.
pub(crate) struct Uevents {
    socket: OwnedFd,
    is_kernel: fn(Option<SocketAddrAny>) -> bool,
}

impl Uevents {
    pub(crate) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket, is_kernel: sent_by_kernel })
    }

    /// A socket of the tests' own that plays the kernel.
    #[cfg(test)]
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self { socket, is_kernel: |_| true }
    }

    /// The next message about an NVMe function; `None` when there is none for now.
    pub(crate) fn next(&self) -> io::Result<Option<Heard>> {
        let mut message = [0; MAX_MESSAGE];
        loop {
            match recvfrom(&self.socket, &mut message[..], RecvFlags::TRUNC) {
                Ok((taken, len, sender)) => {
                    if !(self.is_kernel)(sender) {
                        continue;
                    }
                    if len > taken {
                        return Ok(Some(Heard::Overrun));
                    }
                    if len == 0 {
                        // No message is empty: the other side of what is not a netlink socket is gone.
                        return Ok(None);
                    }
                    if let Some(uevent) = message.get(..len).and_then(Uevent::parse) {
                        return Ok(Some(Heard::Uevent(uevent)));
                    }
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Ok(Some(Heard::Overrun)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Uevents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Uevents").field(&self.socket).finish()
    }
}

/// The kernel's own port is 0; processes have others.
fn sent_by_kernel(sender: Option<SocketAddrAny>) -> bool {
    sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok()).is_some_and(|sender| sender.pid() == 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as the kernel makes them.
    pub(crate) fn message(action: &str, address: &str, extra: &[&str]) -> Vec<u8> {
        let path = format!("/devices/pci0000:00/0000:00:1c.0/{address}");
        let mut parts = vec![
            format!("{action}@{path}"),
            format!("ACTION={action}"),
            format!("DEVPATH={path}"),
            "SUBSYSTEM=pci".into(),
        ];
        parts.extend(extra.iter().map(|&part| part.to_owned()));
        parts.extend([
            "PCI_CLASS=10802".into(),
            "PCI_ID=1B36:0010".into(),
            format!("PCI_SLOT_NAME={address}"),
            "MODALIAS=pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02".into(),
            "SEQNUM=2144".into(),
        ]);
        parts.iter().flat_map(|part| [part.as_bytes(), &[0]].concat()).collect()
    }

    #[test]
    fn messages_about_nvme_functions() {
        let parse = |bytes: &[u8]| Uevent::parse(bytes).map(|u| (u.action, u.address.to_string(), u.driver));
        let at = "0000:01:00.0";
        for (name, action) in [
            ("add", Action::Add),
            ("remove", Action::Remove),
            ("bind", Action::Bind),
            ("unbind", Action::Unbind),
        ] {
            assert_eq!(parse(&message(name, at, &[])), Some((action, at.into(), None)));
        }
        let bound = message("bind", at, &["DRIVER=vfio-pci"]);
        assert_eq!(parse(&bound), Some((Action::Bind, at.into(), Some("vfio-pci".into()))));
        assert_eq!(parse(&message("remove", at, &["SYNTH_UUID=0"])), None, "somebody wrote to `uevent`");
        assert_eq!(parse(&message("change", at, &[])), None);
        assert_eq!(parse(&message("add", "somewhere", &[])), None);
        let text = String::from_utf8(message("add", at, &[])).unwrap();
        assert_eq!(parse(text.replace("10802", "20000").as_bytes()), None, "a network card");
        assert_eq!(parse(text.replace("SUBSYSTEM=pci", "SUBSYSTEM=nvme").as_bytes()), None);
        assert_eq!(parse(text.replacen("add@/", "libudev", 1).as_bytes()), None, "udev's");
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_kernel_may_be_listened_to_and_is_told_from_others() {
        assert!(!sent_by_kernel(None));
        assert!(sent_by_kernel(Some(SocketAddrNetlink::new(0, 1).into())));
        assert!(!sent_by_kernel(Some(SocketAddrNetlink::new(4711, 1).into())));
        let unix = rustix::net::SocketAddrUnix::new("/tmp/x").unwrap();
        assert!(!sent_by_kernel(Some(unix.into())));
        // Where sockets of this kind are not to be had, scanning has to do.
        let Ok(uevents) = Uevents::listen() else { return };
        assert_eq!(uevents.next().unwrap(), None);
        // Who is privileged can send to it, and is not believed.
        let name = rustix::net::getsockname(&uevents.socket).unwrap();
        let sender = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(KOBJECT_UEVENT),
        );
        let forged = message("remove", "0000:01:00.0", &[]);
        let _ = rustix::net::sendto(sender.unwrap(), &forged, rustix::net::SendFlags::empty(), &name);
        assert_eq!(uevents.next().unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_message_does_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0..400usize, at in 0..400usize) {
            let _ = Uevent::parse(&bytes);
            let mut real = message("add", "0000:01:00.0", &[]);
            real.truncate(cut);
            let at = at.min(real.len());
            real.splice(at..at, bytes.drain(..));
            let _ = Uevent::parse(&real);
        }
    }
}
