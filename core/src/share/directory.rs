//! Where the processes of an instance find each other: a lock file and a socket in a directory of this user's own.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::Pid;

use crate::error::{Error, Result};

/// Longest path of a socket (sun_path, with its end).
const MAX_SOCKET_PATH: usize = 107;
/// Longest name of an instance.
const MAX_NAME: usize = 64;

/// Who holds the lock of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    /// There is no lock.
    Nobody,
    /// This process.
    Process(i32),
    /// Nobody any more; it was this process.
    Dead(i32),
    /// It has not said yet.
    Unknown,
}

/// The files of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    name: String,
}

impl Place {
    /// The files of instance `name`; in `directory`, or where this user's runtime files are.
    pub(super) fn new(name: &str, directory: Option<&Path>) -> Result<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(good) {
            return Err(Error::api_misuse(format!(
                "instance {name:?}: a name has 1 to {MAX_NAME} letters, digits, '-', '_' and '.', and does not begin with '.'"
            )));
        }
        let directory = match directory {
            Some(directory) => directory.to_owned(),
            None => default_directory(),
        };
        let place = Self { directory, name: name.to_owned() };
        let length = place.socket().as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Error::api_misuse(format!(
                "the path {} has {length} bytes, a socket's has at most {MAX_SOCKET_PATH}",
                place.socket().display()
            )));
        }
        Ok(place)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}.sock", self.name))
    }

    fn lock_file(&self) -> PathBuf {
        self.directory.join(format!("{}.lock", self.name))
    }

    /// Makes the directory, or checks that it is nobody else's.
    pub(super) fn prepare(&self) -> Result<()> {
        let context = |error: io::Error| {
            Error::from(error)
                .doing(format!("preparing the runtime directory {}", self.directory.display()))
                .hint("set XDG_RUNTIME_DIR to a directory of this user's own")
        };
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(context(error)),
            _ => {}
        }
        let metadata = fs::symlink_metadata(&self.directory).map_err(context)?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !ours || metadata.mode() & 0o022 != 0 {
            return Err(Error::unsupported(format!(
                "the runtime directory {} is not one that only this user can change",
                self.directory.display()
            ))
            .hint("remove it, or set XDG_RUNTIME_DIR to a directory of this user's own"));
        }
        Ok(())
    }

    /// Takes the instance's lock, unless another process has it.
    pub(super) fn try_lock(&self) -> Result<Option<Lock>> {
        let path = self.lock_file();
        let context = |error: io::Error| Error::from(error).doing(format!("locking {}", path.display()));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&path)
                .map_err(context)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(context(error.into())),
            }
            // Whoever had it may have removed the file in between.
            let held = file.metadata().map_err(context)?;
            match fs::symlink_metadata(&path) {
                Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                    let mut lock = Lock { file, place: self.clone() };
                    lock.note().map_err(context)?;
                    return Ok(Some(lock));
                }
                _ => {}
            }
        }
    }

    /// Who holds the lock, or held it last, as far as the file says.
    pub(super) fn holder(&self) -> Holder {
        let mut text = String::new();
        let read = File::open(self.lock_file()).and_then(|file| file.take(16).read_to_string(&mut text));
        match (read, text.trim().parse::<i32>().ok().filter(|&pid| pid > 0).and_then(Pid::from_raw)) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Holder::Nobody,
            (Ok(_), Some(pid)) if rustix::process::test_kill_process(pid) == Err(Errno::SRCH) => {
                Holder::Dead(pid.as_raw_nonzero().get())
            }
            (Ok(_), Some(pid)) => Holder::Process(pid.as_raw_nonzero().get()),
            _ => Holder::Unknown,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance {} ({})", self.name, self.socket().display())
    }
}

/// `$XDG_RUNTIME_DIR/nvmf`, or `/run/nvmf` without.
fn default_directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => PathBuf::from(directory).join("nvmf"),
        None => PathBuf::from("/run/nvmf"),
    }
}

/// The lock of an instance; whoever holds it is the primary. Its files go with it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    place: Place,
}

impl Lock {
    fn note(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }

    /// Removes the socket that a primary before has left.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_file(self.place.socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.clear();
        // While it is held nobody else takes this file for the lock.
        let _ = fs::remove_file(self.place.lock_file());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(tag: &str) -> Place {
        let directory = std::env::temp_dir().join(format!("nvmf-share-{}-{tag}", std::process::id()));
        let place = Place::new("one", Some(&directory)).unwrap();
        place.prepare().unwrap();
        place
    }

    #[test]
    fn names_that_are_no_file_names_are_refused() {
        for name in ["", "a/b", "..", ".hidden", "a b", &"x".repeat(65)] {
            assert!(Place::new(name, None).is_err(), "{name:?}");
        }
        assert!(Place::new("db-1.main_2", None).is_ok());
        assert!(Place::new("one", Some(Path::new(&"/d".repeat(60)))).is_err());
    }

    #[test]
    fn one_process_at_a_time_holds_the_lock() {
        let place = place("lock");
        let lock = place.try_lock().unwrap().unwrap();
        assert!(place.try_lock().unwrap().is_none());
        assert_eq!(place.holder(), Holder::Process(std::process::id() as i32));
        drop(lock);
        assert!(!place.lock_file().exists());
        assert_eq!(place.holder(), Holder::Nobody);
        let again = place.try_lock().unwrap().unwrap();
        drop(again);
        fs::remove_dir(&place.directory).unwrap();
    }

    #[test]
    fn a_directory_others_can_change_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let place = place("mode");
        fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(place.prepare().is_err());
        fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o700)).unwrap();
        place.prepare().unwrap();
        fs::remove_dir(&place.directory).unwrap();
    }
}
