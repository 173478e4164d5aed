//! Who we are: the host NQN and the host identifier, which every Connect command carries.
//!
//! A host NQN must always come with the same host identifier: a subsystem that sees one name with two identifiers
//! (or the reverse) may refuse the second, and reservations follow the identifier. So both are found together,
//! in the order nvme-cli has established:
//!
//! 1. `/etc/nvme/hostnqn` and `/etc/nvme/hostid`. If only one of them exists, the other is derived from the UUID;
//! 2. the system UUID of the firmware, `/sys/class/dmi/id/product_uuid`, which only root may read;
//! 3. a random UUID, which stays the same for the life of the process.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::nqn::{HostId, Nqn, NqnError, Uuid, UuidError};

#[cfg(test)]
mod tests;

/// Where the two files live.
const CONFIG_DIR: &str = "etc/nvme";
/// The system UUID as the firmware's SMBIOS tables give it.
const PRODUCT_UUID: &str = "sys/class/dmi/id/product_uuid";
/// Identity files hold one short line; anything above this many bytes is some other file.
const MAX_FILE_SIZE: usize = 4096;

/// A host NQN and the host identifier that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostIdentity {
    /// The name (HOSTNQN).
    pub nqn: Nqn,
    /// The identifier (HOSTID).
    pub id: HostId,
}

/// Why no host identity could be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostIdentityError {
    /// A file exists but can not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file is no short text file.
    #[error("{} holds {what}; it should hold one line of text, at most {MAX_FILE_SIZE} bytes", path.display())]
    NotOneLine {
        /// The file.
        path: PathBuf,
        /// What it holds instead.
        what: &'static str,
    },
    /// The host NQN file holds no NQN.
    #[error("{} holds no valid host NQN: {source}", path.display())]
    Nqn {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NqnError,
    },
    /// The host identifier file holds no UUID.
    #[error("{} holds no valid host identifier: {source}", path.display())]
    Id {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: UuidError,
    },
    /// The host identifier is all zeroes, which fabrics controllers refuse.
    #[error("{} holds an all-zero host identifier, which controllers refuse: put a UUID there", path.display())]
    ZeroId {
        /// The file.
        path: PathBuf,
    },
    /// There is a host NQN without a UUID in it, and no host identifier.
    #[error("the host NQN {nqn} has no UUID to take the host identifier from: write a UUID to {}", path.display())]
    NoId {
        /// The name found.
        nqn: Nqn,
        /// The file that is missing.
        path: PathBuf,
    },
    /// No random numbers.
    #[error("generating a host identity: {0}")]
    Random(#[from] io::Error),
}

impl HostIdentity {
    /// The identity with this UUID as identifier and in the name.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self { nqn: Nqn::from_uuid(uuid), id: uuid.into() }
    }

    /// A new random identity.
    ///
    /// # Errors
    ///
    /// [`HostIdentityError::Random`] if `/dev/urandom` can not be read.
    pub fn random() -> Result<Self, HostIdentityError> {
        Ok(Self::from_uuid(Uuid::random()?))
    }

    /// The identity of this host: from the files, else from the firmware, else random (the same for the life of
    /// the process).
    ///
    /// # Errors
    ///
    /// Files that exist but are unreadable or wrong are errors, not skipped: connecting under another name
    /// than the administrator set would be refused by the target, or worse, not refused.
    pub fn load() -> Result<Self, HostIdentityError> {
        Self::load_from(Path::new("/"))
    }

    /// As [`Self::load`], with `root` in place of `/`.
    ///
    /// # Errors
    ///
    /// Those of [`Self::load`].
    pub fn load_from(root: &Path) -> Result<Self, HostIdentityError> {
        if let Some(identity) = Self::from_files(&root.join(CONFIG_DIR))? {
            return Ok(identity);
        }
        if let Some(identity) = Self::from_firmware(root) {
            return Ok(identity);
        }
        static OF_THIS_PROCESS: OnceLock<HostIdentity> = OnceLock::new();
        if let Some(identity) = OF_THIS_PROCESS.get() {
            return Ok(identity.clone());
        }
        let fresh = Self::random()?;
        Ok(OF_THIS_PROCESS.get_or_init(|| fresh).clone())
    }

    /// Reads `hostnqn` and `hostid` in `dir` (usually `/etc/nvme`): the first line of each, white space trimmed.
    /// A missing `hostid` is taken from the UUID form of the name; a missing `hostnqn` becomes the UUID form of
    /// the identifier. `None` if neither file exists.
    ///
    /// # Errors
    ///
    /// See [`HostIdentityError`]; each names the file.
    pub fn from_files(dir: &Path) -> Result<Option<Self>, HostIdentityError> {
        let (nqn_path, id_path) = (dir.join("hostnqn"), dir.join("hostid"));
        let nqn = match read_line(&nqn_path)? {
            Some(line) => {
                Some(Nqn::new(&line).map_err(|source| HostIdentityError::Nqn { path: nqn_path, source })?)
            }
            None => None,
        };
        let id: Option<HostId> = match read_line(&id_path)? {
            Some(line) => {
                let parsed = line.parse();
                Some(parsed.map_err(|source| HostIdentityError::Id { path: id_path.clone(), source })?)
            }
            None => None,
        };
        if id.is_some_and(|id| id.is_zero()) {
            return Err(HostIdentityError::ZeroId { path: id_path });
        }
        match (nqn, id) {
            (None, None) => Ok(None),
            (None, Some(id)) => Ok(Some(Self::from_uuid(id.into()))),
            (Some(nqn), Some(id)) => {
                if nqn.uuid().is_some_and(|uuid| HostId::from(uuid) != id) {
                    tracing::warn!(%nqn, %id, "the host identifier is not the UUID in the host NQN");
                }
                Ok(Some(Self { nqn, id }))
            }
            (Some(nqn), None) => match nqn.uuid().filter(|uuid| !uuid.is_zero()) {
                Some(uuid) => Ok(Some(Self { id: uuid.into(), nqn })),
                None => Err(HostIdentityError::NoId { nqn, path: id_path }),
            },
        }
    }

    /// The identity the firmware's system UUID gives, if it may be read and is one: boards without a UUID
    /// of their own report all zeroes or all ones (SMBIOS 3.7 §7.2.1).
    fn from_firmware(root: &Path) -> Option<Self> {
        let uuid: Uuid = read_line(&root.join(PRODUCT_UUID)).ok()??.parse().ok()?;
        let placeholder = uuid.is_zero() || uuid.to_bytes() == [0xff; 16];
        (!placeholder).then(|| Self::from_uuid(uuid))
    }
}

/// The first line of a small file, trimmed; `None` if the file does not exist.
fn read_line(path: &Path) -> Result<Option<String>, HostIdentityError> {
    let wrong = |what| HostIdentityError::NotOneLine { path: path.to_owned(), what };
    let failed = |source| HostIdentityError::Read { path: path.to_owned(), source };
    match fs::metadata(path) {
        // Opening a FIFO would wait for a writer.
        Ok(metadata) if !metadata.is_file() => return Err(wrong("no text (not a regular file)")),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let mut content = Vec::new();
    let limit = MAX_FILE_SIZE as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut content)).map_err(failed)?;
    if content.len() > MAX_FILE_SIZE {
        return Err(wrong("too much"));
    }
    let Ok(text) = std::str::from_utf8(&content) else { return Err(wrong("bytes that are not UTF-8")) };
    match text.lines().next().map(str::trim) {
        Some(line) if !line.is_empty() => Ok(Some(line.to_owned())),
        _ => Err(wrong("an empty first line")),
    }
}
