//! What can go wrong while setting a loopback up or changing it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use nvmf_core::nqn::NqnError;
use nvmf_core::transport_id::TransportIdError;

/// Why a loopback could not be built or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopbackError {
    /// A name given is no NQN.
    #[error("{name:?} is no valid NQN: {source}")]
    Nqn {
        /// What was given.
        name: String,
        /// What is wrong with it.
        source: NqnError,
    },
    /// The discovery NQN was given to an ordinary subsystem.
    #[error(
        "the discovery NQN names the discovery subsystem, which is always there; give the subsystem another name"
    )]
    DiscoveryNqn,
    /// Two subsystems of the same name.
    #[error("there is a subsystem {0} already; remove it first or choose another name")]
    SubsystemExists(String),
    /// No subsystem of this name.
    #[error("there is no subsystem {0}")]
    NoSuchSubsystem(String),
    /// The namespace identifier is taken, or none a namespace may have.
    #[error("namespace identifier {nsid} of {subnqn} is in use or not in 1..={max}")]
    NamespaceId {
        /// The subsystem.
        subnqn: String,
        /// The identifier asked for.
        nsid: u32,
        /// The largest one allowed.
        max: u32,
    },
    /// The subsystem has no such namespace.
    #[error("{subnqn} has no namespace {nsid}")]
    NoSuchNamespace {
        /// The subsystem.
        subnqn: String,
        /// The identifier asked for.
        nsid: u32,
    },
    /// A block size that is not a power of two between 512 and 65,536.
    #[error("a block size of {0} bytes is not possible: choose a power of two from 512 to 65536")]
    BlockSize(u32),
    /// A size that holds no whole block.
    #[error("a namespace of {bytes} bytes holds no whole block of {block_size} bytes")]
    TooSmall {
        /// Size asked for.
        bytes: u64,
        /// Its block size.
        block_size: u32,
    },
    /// Metadata that the namespace cannot have.
    #[error("this metadata is not possible: {0}")]
    Metadata(String),
    /// The subsystem has as many controllers as it may have.
    #[error("{0} has as many controllers as it may have; allow more with Builder::max_controllers")]
    TooManyControllers(String),
    /// A limit out of its range.
    #[error("{what} of {value} is out of range: it has to be {range}")]
    OutOfRange {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
    /// A loopback of this name is running in this process.
    #[error("a loopback named {0:?} is running in this process already")]
    NameTaken(String),
    /// The name cannot be a transport address.
    #[error("{name:?} cannot be the name of a loopback: {source}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        source: TransportIdError,
    },
    /// The backing file cannot be opened or brought to its size.
    #[error("opening {} as a namespace: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The backing cannot be resized.
    #[error("resizing the namespace: {0}")]
    Resize(io::Error),
    /// The listener's address cannot be understood.
    #[error("{address:?} is no address to listen on (expected e.g. 127.0.0.1:4420): {source}")]
    ListenAddress {
        /// What was given.
        address: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The listener cannot be opened.
    #[error("listening on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system answered.
        source: io::Error,
    },
    /// The vfio-user socket cannot be made.
    #[error("listening on the vfio-user socket {}: {source}", path.display())]
    ListenVfioUser {
        /// Where.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A thread, wake-up pipe or epoll instance cannot be made.
    #[error("starting the loopback: {0}")]
    Start(io::Error),
}
