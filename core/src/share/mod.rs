//! Several processes: a primary that initialises controllers, and secondaries that use what it has attached.
//!
//! The processes of an instance are of one user and find each other by name: the first takes a lock file and becomes the
//! primary, the others connect to its socket. A secondary has an admin queue of its own, a virtual one that the primary serves, and
//! I/O queues of its own, on which the primary has no part: connections of its own to a controller on a network, memory of its own that
//! the primary maps for a local one.
//!
//! A secondary that ends, in whatever way, gives back what it had when its connection closes. When the primary ends, controllers of
//! secondaries are lost: what is outstanding ends, and their remove callbacks are called.

mod admin_qpair;
mod channel;
mod client;
mod directory;
mod lent;
mod secondary;
mod server;
mod session;
pub mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use client::Instance;
pub use client::{Primary, PrimaryWatcher, Standing};
pub(crate) use secondary::SecondaryTransport;
pub(crate) use server::Server;

use directory::{Holder, Lock, Place};

use crate::error::{Error, Result};

/// How long a primary may take to get ready.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at a primary that is not ready.
const PAUSE: Duration = Duration::from_millis(10);

/// What a process is in its instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It initialises controllers and shares them; a driver that shares nothing is primary, too.
    Primary,
    /// It uses the controllers of the primary.
    Secondary,
}

/// A process of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Process {
    /// Process identifier.
    pub pid: u32,
    /// What it is.
    pub role: Role,
    /// Controllers it has attached.
    pub controllers: u16,
    /// I/O queues leased to it; 0 for the primary, which needs no lease.
    pub queues: u32,
}

/// How a process takes part in an instance.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    pub(crate) instance: String,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) patience: Duration,
    pub(crate) only: Option<Role>,
}

impl Sharing {
    pub(crate) fn new(instance: String) -> Self {
        Self { instance, directory: None, patience: DEFAULT_PATIENCE, only: None }
    }
}

/// What a process has become.
pub(crate) enum Joined {
    Primary(Place, Lock),
    Secondary(Arc<Instance>),
}

/// Becomes the primary if nobody is, else a secondary.
pub(crate) fn join(sharing: &Sharing) -> Result<Joined> {
    let place = Place::new(&sharing.instance, sharing.directory.as_deref())?;
    let deadline = Instant::now() + sharing.patience;
    let misuse = |what: String| Err(Error::api_misuse(what).peer(&place));
    if sharing.only != Some(Role::Secondary) {
        place.prepare()?;
    }
    let instance = Arc::new(Instance::new(place.clone()));
    loop {
        if sharing.only != Some(Role::Secondary)
            && let Some(lock) = place.try_lock()?
        {
            return Ok(Joined::Primary(place, lock));
        }
        if sharing.only == Some(Role::Primary) {
            return misuse(match place.holder() {
                Holder::Process(pid) => format!("process {pid} is the primary already"),
                _ => "another process is the primary already".to_owned(),
            });
        }
        let error = match instance.greet() {
            Ok(_) => return Ok(Joined::Secondary(instance)),
            Err(error) if is_not_there(&error) => error,
            Err(error) => return Err(error.doing("looking for the primary")),
        };
        // It has the lock and does not listen yet, or it is just ending, or there is none.
        let context = |error: Error| {
            error
                .doing("looking for the primary")
                .peer(&place)
                .hint("start one first, with `nvmf share` or a program of your own")
        };
        match place.holder() {
            Holder::Nobody if sharing.only.is_some() => {
                return Err(context(Error::disconnected("there is no primary")));
            }
            Holder::Dead(pid) if sharing.only.is_some() => {
                return Err(context(Error::disconnected(format!("the primary, process {pid}, is gone"))));
            }
            _ if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Holder::Process(pid) => {
                let state = format!("waiting for the primary, process {pid}, which is still initialising");
                return Err(context(Error::timed_out(state, sharing.patience)));
            }
            Holder::Unknown => {
                let state = "waiting for the primary, which is still initialising";
                return Err(context(Error::timed_out(state, sharing.patience)));
            }
            Holder::Nobody | Holder::Dead(_) => return Err(context(error)),
        }
    }
}

/// Whether an error means that nobody listens at the socket, or not any more.
fn is_not_there(error: &Error) -> bool {
    match error.kind() {
        crate::ErrorKind::Transport(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        }
        crate::ErrorKind::Disconnected(_) => true,
        _ => false,
    }
}
