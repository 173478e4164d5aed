//! The function for hosts in other processes: a vfio-user server on a unix socket.
//!
//! One client at a time, as many as come after each other. A client can do to the function what a host can do to a device it
//! owns, and nothing to this process: what it sends is checked, what it does not take is not waited for, and its memory is
//! accessed only where it cannot be taken away under the access.

mod session;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvmf_core::Error;
use nvmf_transport_pcie::vfio_user::stream::{Receiver, StreamError, send};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::session::{MAX_MESSAGE, Session};
use super::function::EmulatedFunction;
use crate::error::LoopbackError;

/// How long a client may take to send the rest of a message it began, or to take a reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client is listened to that is refused anyway.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// Name of the socket in a directory, as SPDK has it.
const SOCKET: &str = "cntrl";

/// Serves an [`EmulatedFunction`] to other processes over a vfio-user socket, `trtype:vfiouser`.
///
/// Ends, and removes the socket, when dropped. Whoever can connect to the socket can read and write the namespaces: its
/// permissions are those of any file that this process makes.
#[derive(Debug)]
pub struct VfioUserServer {
    path: PathBuf,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// How a server behaves.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VfioUserServerOptions {
    /// Whether memory of a client is mapped even if the client could shorten its file later, after which an access ends this
    /// process with SIGBUS. For clients that are trusted not to; those whose memory is hugepages, SPDK among them, have no
    /// other. Off.
    pub map_unsealed: bool,
}

#[derive(Debug)]
struct Stop {
    told: AtomicBool,
    /// Closing the first makes the second readable.
    bell: UnixStream,
}

impl VfioUserServer {
    /// Listens on `path`, or on the socket `cntrl` in it if it is a directory. A socket there that nobody listens on any more
    /// is replaced.
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody listens on it.
    pub fn listen(function: &EmulatedFunction, path: impl AsRef<Path>) -> Result<Self, LoopbackError> {
        Self::listen_with(function, path, VfioUserServerOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`VfioUserServer::listen`].
    pub fn listen_with(
        function: &EmulatedFunction,
        path: impl AsRef<Path>,
        options: VfioUserServerOptions,
    ) -> Result<Self, LoopbackError> {
        let path = path.as_ref();
        let path = if path.is_dir() { path.join(SOCKET) } else { path.to_owned() };
        let listener =
            bind(&path).map_err(|source| LoopbackError::ListenVfioUser { path: path.clone(), source })?;
        let start = || -> io::Result<_> {
            listener.set_nonblocking(true)?;
            let (bell, ear) = UnixStream::pair()?;
            let stop = Arc::new(Stop { told: AtomicBool::new(false), bell });
            let (function, other) = (function.clone(), Arc::clone(&stop));
            let name = format!("nvmf-vfio-user-{}", function.identity().name);
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || serve(&listener, &function, options, &other, &ear))?;
            Ok((stop, thread))
        };
        match start() {
            Ok((stop, thread)) => Ok(Self { path, stop, thread: Some(thread) }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(LoopbackError::Start(error))
            }
        }
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for VfioUserServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.stop.told.store(true, Ordering::Release);
        let _ = self.stop.bell.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            // Nobody listens on what is left of a process that was killed.
            let left = is_socket
                && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if !left {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// The thread: takes one client after the other until it is told to stop or the function is gone.
fn serve(
    listener: &UnixListener,
    function: &EmulatedFunction,
    options: VfioUserServerOptions,
    stop: &Stop,
    ear: &UnixStream,
) {
    while !stop.told.load(Ordering::Acquire) && !function.is_removed() {
        match listener.accept() {
            Ok((socket, _)) => {
                tracing::debug!(function = %function.identity(), "a vfio-user client");
                match client(&socket, function, options, stop, ear) {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::debug!(function = %function.identity(), %error, "a vfio-user client is gone")
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&[listener.as_fd(), ear.as_fd()], None);
            }
            Err(error) => {
                // Out of descriptors, most likely: they may come back.
                tracing::warn!(%error, "accepting a vfio-user client");
                wait(&[ear.as_fd()], Some(Duration::from_millis(100)));
            }
        }
    }
}

/// Serves one client to its end.
fn client(
    socket: &UnixStream,
    function: &EmulatedFunction,
    options: VfioUserServerOptions,
    stop: &Stop,
    ear: &UnixStream,
) -> Result<(), Error> {
    // Dropping it resets the function and takes the client's memory away from it.
    let device = match function.open() {
        Ok(device) => device,
        Err(error) => {
            let gone = |error: StreamError| Error::disconnected(error.to_string());
            let deadline = Instant::now() + BUSY_TIMEOUT;
            let first = Receiver::new(MAX_MESSAGE).receive(socket, deadline).map_err(gone)?;
            let refusal = first.header.refusal(Errno::BUSY.raw_os_error());
            send(socket, &refusal, &[], &[], deadline).map_err(gone)?;
            return Err(error);
        }
    };
    let mut session = Session::new(function, options);
    let mut receiver = Receiver::new(MAX_MESSAGE);
    let mut began: Option<Instant> = None;
    let gone = |error: StreamError| Error::disconnected(error.to_string());
    while !stop.told.load(Ordering::Acquire) && !function.is_removed() {
        if let Some(message) = receiver.receive_now(socket).map_err(gone)? {
            began = None;
            let Some(reply) = session.answer(message)? else { continue };
            let fds: Vec<BorrowedFd<'_>> = reply.fds.iter().map(AsFd::as_fd).collect();
            send(socket, &reply.header, &reply.body, &fds, Instant::now() + CLIENT_TIMEOUT).map_err(gone)?;
            continue;
        }
        let left = if receiver.is_partial() {
            let began = *began.get_or_insert_with(Instant::now);
            let left = CLIENT_TIMEOUT.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(Error::timed_out("waiting for the rest of a message", CLIENT_TIMEOUT));
            }
            Some(left)
        } else {
            None
        };
        wait(&[socket.as_fd(), ear.as_fd(), device.removal()], left);
    }
    Ok(())
}
/// Sleeps until one of these can be read or the time is over.
fn wait(fds: &[BorrowedFd<'_>], time: Option<Duration>) {
    let mut fds: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let time = time.map(|time| Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    // Interrupted by a signal: whoever waits looks again anyway.
    let _ = poll(&mut fds, time.as_ref());
}

#[cfg(test)]
mod tests;
