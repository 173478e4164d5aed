//! Who we are: the host NQN and the host identifier, which every Connect command carries.
//!
//! A host NQN must always come with the same host identifier: a subsystem that sees one name with two identifiers
//! (or the reverse) may refuse the second, and reservations follow the identifier. So both are found together, and
//! every process of this machine finds the same, in the order nvme-cli has established and then two steps on:
//!
//! 1. `/etc/nvme/hostnqn` and `/etc/nvme/hostid`. If only one of them exists, the other is taken from the UUID in it
//!    (TP4126);
//! 2. the system UUID of the firmware: `/sys/class/dmi/id/product_uuid`, `/sys/firmware/dmi/entries`, or the partition
//!    UUID of the device tree. Most systems let only root read them;
//! 3. a UUID derived from `/etc/machine-id`;
//! 4. a UUID derived from the kernel's boot identifier and the host's name: until the next boot.
//!
//! An identity is random only where [`HostIdentity::random`] or [`HostIdentity::generate`] is asked for one.

mod derive;
mod file;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::nqn::{HostId, Nqn, NqnError, Uuid, UuidError};

pub use file::MAX_FILE_SIZE;
use file::read_line;

#[cfg(test)]
mod tests;

/// Where the two files live.
const CONFIG_DIR: &str = "etc/nvme";

/// A host NQN and the host identifier that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostIdentity {
    /// The name (HOSTNQN).
    pub nqn: Nqn,
    /// The identifier (HOSTID).
    pub id: HostId,
}

/// Where an identity was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostSource {
    /// The two files `hostnqn` and `hostid`, or one of them, in this directory.
    Files(PathBuf),
    /// The firmware's system UUID, in this file.
    Firmware(PathBuf),
    /// Derived from the machine's identifier in this file.
    MachineId(PathBuf),
    /// Derived from the identifier of the current boot in this file: the next boot has another.
    BootId(PathBuf),
}

impl HostSource {
    /// Whether the identity outlives a boot.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::BootId(_))
    }
}

impl fmt::Display for HostSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(dir) => write!(f, "{}", dir.display()),
            Self::Firmware(path) => write!(f, "{}", path.display()),
            Self::MachineId(path) | Self::BootId(path) => write!(f, "derived from {}", path.display()),
        }
    }
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
    #[error("{}:1: {what}; the file should hold one line of text, at most {MAX_FILE_SIZE} bytes", path.display())]
    NotOneLine {
        /// The file.
        path: PathBuf,
        /// What it holds instead.
        what: &'static str,
    },
    /// The host NQN file holds no NQN.
    #[error("{}:1: no valid host NQN: {source}", path.display())]
    Nqn {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NqnError,
    },
    /// The host identifier file holds no UUID.
    #[error("{}:1: no valid host identifier: {source}", path.display())]
    Id {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: UuidError,
    },
    /// The host identifier is all zeroes, which fabrics controllers refuse.
    #[error("{}:1: an all-zero host identifier, which controllers refuse: put a UUID there", path.display())]
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
    /// The machine has none, and nothing to derive one from.
    #[error(
        "this machine has no host identity: there is no {}/hostnqn, the firmware's UUID cannot be read, and there is no \
         machine-id; `nvmf gen-hostnqn` makes a name to be written there",
        path.display()
    )]
    None {
        /// The directory of the two files.
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

    /// A new identity to be kept: that of the firmware's UUID, else a random one. What `nvme gen-hostnqn` prints.
    ///
    /// # Errors
    ///
    /// [`HostIdentityError::Random`] if `/dev/urandom` can not be read.
    pub fn generate() -> Result<Self, HostIdentityError> {
        Self::generate_from(Path::new("/"))
    }

    /// As [`Self::generate`], with `root` in place of `/` for the firmware's files.
    ///
    /// # Errors
    ///
    /// Those of [`Self::generate`].
    pub fn generate_from(root: &Path) -> Result<Self, HostIdentityError> {
        match derive::firmware(root) {
            Some((uuid, _)) => Ok(Self::from_uuid(uuid)),
            None => Self::random(),
        }
    }

    /// The identity of this host, the same for every process that may read the same files: see the [module](self).
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
        let (identity, source) = Self::find(root)?;
        if !source.is_permanent() {
            tracing::warn!(nqn = %identity.nqn, "the host identity is {source} and lasts until the next boot");
        }
        Ok(identity)
    }

    /// The identity of the host whose file system is at `root`, and where it was found.
    ///
    /// # Errors
    ///
    /// Those of [`Self::load`].
    pub fn find(root: &Path) -> Result<(Self, HostSource), HostIdentityError> {
        let dir = root.join(CONFIG_DIR);
        if let Some(identity) = Self::from_files(&dir)? {
            return Ok((identity, HostSource::Files(dir)));
        }
        let (uuid, source) = derive::firmware(root)
            .or_else(|| derive::machine(root))
            .or_else(|| derive::boot(root))
            .ok_or(HostIdentityError::None { path: dir })?;
        Ok((Self::from_uuid(uuid), source))
    }

    /// The identity of which a name, an identifier, both or neither are given. A name with a UUID in it always goes with
    /// that identifier; anything else missing is `machine`'s.
    ///
    /// # Errors
    ///
    /// Those of `machine`, which is asked only if needed.
    pub fn complete<E>(
        nqn: Option<Nqn>,
        id: Option<HostId>,
        machine: impl FnOnce() -> Result<Self, E>,
    ) -> Result<Self, E> {
        match (nqn, id) {
            (Some(nqn), Some(id)) => Ok(Self { nqn, id }),
            (Some(nqn), None) => match nqn.uuid().filter(|uuid| !uuid.is_zero()) {
                Some(uuid) => Ok(Self { id: uuid.into(), nqn }),
                None => machine().map(|machine| Self { nqn, id: machine.id }),
            },
            (None, Some(id)) => machine().map(|machine| Self { nqn: machine.nqn, id }),
            (None, None) => machine(),
        }
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
}
