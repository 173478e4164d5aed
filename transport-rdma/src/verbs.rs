//! The provider over libibverbs and librdmacm.

// UNSAFETY: completion queues and shared receive queues.
#[expect(unsafe_code, reason = "calls into libibverbs")]
mod completion;
// UNSAFETY: protection domains, registrations and the connection manager's handles.
#[expect(unsafe_code, reason = "calls into libibverbs and librdmacm")]
mod domain;
// UNSAFETY: queue pairs and events.
#[expect(unsafe_code, reason = "calls into libibverbs and librdmacm")]
mod endpoint;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use nvmf_core::{Error, Result};

pub use completion::VerbsShared;
pub use domain::{VerbsDomain, VerbsRegistration};
pub use endpoint::VerbsEndpoint;

use crate::provider::Provider;
use crate::requirements::{Missing, Requirements};
use crate::sys::{self, Api, LoadError};

/// Domains by the address of their device's context. librdmacm opens a device once per process.
type Domains = Mutex<HashMap<usize, Weak<VerbsDomain>>>;

/// The machine's RDMA devices, through libibverbs and librdmacm, which are opened when first needed.
pub struct VerbsProvider {
    root: PathBuf,
    api: OnceLock<Result<Arc<Api>, LoadError>>,
    domains: Arc<Domains>,
}

impl VerbsProvider {
    /// This machine's.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root("/")
    }

    /// As another root directory shows it.
    #[must_use]
    pub fn with_root(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned(), api: OnceLock::new(), domains: Arc::default() }
    }

    /// What this machine has and lacks.
    #[must_use]
    pub fn requirements(&self) -> Requirements {
        Requirements::of(&self.root)
    }

    fn api(&self) -> Result<&Arc<Api>> {
        let loaded = self.api.get_or_init(|| Api::load().map(Arc::new));
        loaded.as_ref().map_err(|error| {
            let missing = if error.is_cm { Missing::ConnectionManager } else { Missing::Verbs };
            Error::unsupported(format!("RDMA is not available here: {error}")).hint(missing.remedy())
        })
    }
}

impl Default for VerbsProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for VerbsProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerbsProvider").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Provider for VerbsProvider {
    type Domain = VerbsDomain;
    type Endpoint = VerbsEndpoint;

    fn check(&self) -> Result<()> {
        match self.requirements().missing.first() {
            Some(missing) => Err(missing.error()),
            None => self.api().map(drop),
        }
    }

    fn endpoint(&self) -> Result<VerbsEndpoint> {
        let api = self.api()?;
        VerbsEndpoint::new(Arc::clone(api), Arc::clone(&self.domains)).map_err(|error| {
            // ENODEV: no device at all, no device with a driver, or no connection manager in the kernel.
            match self.requirements().missing.first() {
                Some(missing) => missing.error(),
                None if error.raw_os_error() == Some(libc::ENODEV) => Missing::Driver.error(),
                None => Error::from(error).doing("opening a channel to the RDMA connection manager"),
            }
        })
    }
}

/// What a function that returns -1 and sets errno says.
fn by_errno(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a function that returns an errno says.
fn by_value(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        // Some functions of old providers return -1 and set errno.
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Err(io::Error::from_raw_os_error(n)),
    }
}

/// An address as the libraries take it.
fn sockaddr(address: std::net::SocketAddr) -> sys::SockaddrStorage {
    use std::net::SocketAddr;
    let mut bytes = [0u8; 128];
    match address {
        SocketAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes[2..4].copy_from_slice(&v4.port().to_be_bytes());
            bytes[4..8].copy_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes[2..4].copy_from_slice(&v6.port().to_be_bytes());
            bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
            bytes[8..24].copy_from_slice(&v6.ip().octets());
            bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    let mut words = [0u64; 16];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}
