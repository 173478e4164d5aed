//! Directories with vfio-user sockets in them: what a bus is to other functions.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nvmf_core::transport::{HotplugEvent, HotplugMonitor};
use nvmf_core::{Result, TransportId, TransportType};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::client::SOCKET;
use crate::Finder;

/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 4096;

/// Device and inode: a socket that was replaced is another one.
type Identity = (u64, u64);

/// Finds the sockets of these directories.
#[derive(Debug)]
pub(super) struct Directories(pub(super) Vec<PathBuf>);

impl Finder for Directories {
    fn find(&self, filter: Option<&TransportId>) -> Vec<TransportId> {
        let addresses = match filter {
            Some(trid) if !trid.traddr().is_empty() => {
                let found = sockets(Path::new(trid.traddr()));
                if found.is_empty() && !Path::new(trid.traddr()).is_dir() {
                    // Why there is none shows when it is opened.
                    return vec![trid.clone()];
                }
                found
            }
            _ => self.0.iter().flat_map(|directory| sockets(directory)).collect(),
        };
        addresses.into_iter().filter_map(|(address, _)| trid(&address)).collect()
    }

    fn monitor(&self) -> Result<Option<Box<dyn HotplugMonitor>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(DirectoryMonitor::new(self.0.clone()))))
    }
}

fn trid(address: &str) -> Option<TransportId> {
    TransportId::new(TransportType::VfioUser, None, address)
        .inspect_err(|error| tracing::debug!(address, %error, "a socket that no identifier can name"))
        .ok()
}

fn socket(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_socket())?;
    Some((metadata.dev(), metadata.ino()))
}

/// A socket, or a directory with a socket `cntrl` in it.
fn endpoint(path: &Path) -> Option<Identity> {
    socket(path).or_else(|| socket(&path.join(SOCKET)))
}

/// The endpoints that an address covers: itself, or those that are in it; sorted.
fn sockets(address: &Path) -> Vec<(String, Identity)> {
    let named = |path: &Path, identity| path.to_str().map(|path| (path.to_owned(), identity));
    if let Some(identity) = endpoint(address) {
        return named(address, identity).into_iter().collect();
    }
    let mut found: Vec<_> = entries(address)
        .filter_map(|path| endpoint(&path).and_then(|identity| named(&path, identity)))
        .collect();
    found.sort();
    found
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).take(MAX_ENTRIES)
}

/// Tells when sockets appear and disappear: by inotify, or by looking where that cannot be had.
#[derive(Debug)]
struct DirectoryMonitor {
    directories: Vec<PathBuf>,
    inotify: Option<OwnedFd>,
    known: BTreeMap<String, Identity>,
}

impl DirectoryMonitor {
    fn new(directories: Vec<PathBuf>) -> Self {
        let mut monitor = Self { directories, inotify: None, known: BTreeMap::new() };
        monitor.inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        let watched = monitor.watch();
        if !watched {
            tracing::debug!(directories = ?monitor.directories, "not all can be watched; they are looked at instead");
            monitor.inotify = None;
        }
        monitor.known = monitor.scan();
        monitor
    }

    /// Watches the directories and those in them. Returns whether all of the former are.
    fn watch(&self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let events = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let watch = |path: &Path| inotify::add_watch(inotify, path, events).is_ok();
        let mut all = true;
        for directory in &self.directories {
            all &= watch(directory);
            entries(directory).filter(|path| path.is_dir()).for_each(|path| {
                watch(&path);
            });
        }
        all
    }

    fn scan(&self) -> BTreeMap<String, Identity> {
        self.directories.iter().flat_map(|directory| sockets(directory)).collect()
    }
}

impl HotplugMonitor for DirectoryMonitor {
    fn event_fd(&self) -> Option<RawFd> {
        self.inotify.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn poll(&mut self, each: &mut dyn FnMut(HotplugEvent)) -> Result<()> {
        if let Some(inotify) = &self.inotify {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(inotify, &mut buffer);
            // What they say does not matter: the directories are looked at. Each comes after a change, of which there may be
            // more than there is patience.
            let news = (0..MAX_ENTRIES).take_while(|_| reader.next().is_ok()).count();
            if news == 0 {
                return Ok(());
            }
            // Before looking, so that what comes after the look is told.
            self.watch();
        }
        let now = self.scan();
        let before = std::mem::replace(&mut self.known, now);
        let is_in =
            |map: &BTreeMap<String, Identity>, address: &str, identity| map.get(address) == Some(identity);
        for (address, identity) in &before {
            if let Some(trid) = trid(address).filter(|_| !is_in(&self.known, address, identity)) {
                each(HotplugEvent::Removed(trid));
            }
        }
        for (address, identity) in &self.known {
            if let Some(trid) = trid(address).filter(|_| !is_in(&before, address, identity)) {
                each(HotplugEvent::Inserted(trid));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nvmf_core::transport::Transport;

    use super::*;
    use crate::{VfioUserOptions, vfio_user};

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("nvmf-sockets-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn listen(&self, name: &str) -> UnixListener {
            UnixListener::bind(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn found(transport: &impl Transport, at: Option<&Path>) -> Vec<String> {
        let filter = at.map(|at| trid(at.to_str().unwrap()).unwrap());
        let mut found = Vec::new();
        transport.scan(filter.as_ref(), &mut |trid| found.push(trid.traddr().to_owned())).unwrap();
        found.iter().map(|path| Path::new(path).file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_address_may_be_a_socket_its_directory_or_a_directory_of_such() {
        let place = Place::new("forms");
        let mut options = VfioUserOptions::default();
        options.directories.push(place.0.clone());
        let transport = vfio_user::transport(options);
        assert_eq!(found(&transport, None), [""; 0]);
        assert_eq!(found(&transport, Some(&place.0)), [""; 0]);
        let _b = place.listen("b");
        fs::create_dir(place.0.join("a")).unwrap();
        let _a = place.listen("a/cntrl");
        fs::write(place.0.join("file"), "").unwrap();
        assert_eq!(found(&transport, None), ["a", "b"]);
        assert_eq!(found(&transport, Some(&place.0)), ["a", "b"]);
        assert_eq!(found(&transport, Some(&place.0.join("a"))), ["a"]);
        assert_eq!(found(&transport, Some(&place.0.join("a/cntrl"))), ["cntrl"]);
        assert_eq!(found(&transport, Some(&place.0.join("b"))), ["b"]);
        assert_eq!(found(&transport, Some(&place.0.join("gone"))), ["gone"], "opening it says why");
        assert_eq!(found(&vfio_user::transport(VfioUserOptions::default()), None), [""; 0]);
    }

    fn events(monitor: &mut DirectoryMonitor) -> Vec<String> {
        let mut events = Vec::new();
        monitor
            .poll(&mut |event| {
                let sign = if matches!(event, HotplugEvent::Inserted(_)) { '+' } else { '-' };
                let name = Path::new(event.trid().traddr()).file_name().unwrap().to_str().unwrap().to_owned();
                events.push(format!("{sign}{name}"));
            })
            .unwrap();
        events
    }

    #[test]
    fn sockets_that_come_and_go_are_told() {
        for inotify in [true, false] {
            let place = Place::new(&format!("events-{inotify}"));
            let _old = place.listen("old");
            let mut monitor = DirectoryMonitor::new(vec![place.0.clone()]);
            if !inotify {
                monitor.inotify = None;
            }
            assert_eq!((monitor.event_fd().is_some(), events(&mut monitor)), (inotify, vec![]));
            let _new = place.listen("new");
            assert_eq!(events(&mut monitor), ["+new"]);
            assert_eq!(events(&mut monitor), [""; 0]);
            fs::remove_file(place.0.join("old")).unwrap();
            fs::remove_file(place.0.join("new")).unwrap();
            let _other = place.listen("new");
            let seen = events(&mut monitor);
            // A file system may give the new socket the old one's inode at once.
            assert!(seen == ["-new", "-old", "+new"] || seen == ["-old"], "{seen:?}");
            fs::create_dir(place.0.join("nested")).unwrap();
            assert_eq!(events(&mut monitor), [""; 0]);
            let _nested = place.listen("nested/cntrl");
            assert_eq!(events(&mut monitor), ["+nested"]);
            fs::remove_file(place.0.join("nested/cntrl")).unwrap();
            assert_eq!(events(&mut monitor), ["-nested"]);
        }
        let mut monitor = DirectoryMonitor::new(vec!["/nonexistent".into()]);
        assert_eq!((monitor.event_fd(), events(&mut monitor)), (None, vec![]));
    }
}
