//! The client's end of a vfio-user connection: commands and their replies, each with a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use nvmf_core::{Error, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::capabilities::{Capabilities, MAX_FDS};
use super::message::{Command, Header, RegionAccess};
use super::stream::{Message, Receiver, StreamError, send};

/// How long a server may take over a reply unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Data of a message that a server may send; none but its own commands has that much.
const MAX_DATA: u32 = 64 << 10;
/// A command's body that is put together without an allocation.
const SMALL: usize = 64;
/// Room for the structures before the data.
const MAX_HEADERS: usize = 256;
/// Commands of the server that are answered before somebody else has a turn.
const MAX_SERVED: usize = 64;
/// Between attempts to connect to a server whose queue of connections is full.
const RETRY: Duration = Duration::from_millis(5);

/// The socket in a directory that is an address.
pub(super) const SOCKET: &str = "cntrl";

/// How a client behaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VfioUserOptions {
    /// How long the server may take over a reply, and over a connection.
    pub timeout: Duration,
    /// Whether registers are mapped where the server offers that; otherwise they are all reached by message.
    pub map_registers: bool,
    /// Whether registers are mapped even if the server could shorten their file later, after which an access ends this
    /// process with SIGBUS. For servers that are trusted not to; SPDK's uses such files.
    pub map_unsealed: bool,
    /// Directories that a probe without an address looks into, and that are watched for sockets that come and go: each socket
    /// in one, and each directory in one that has a socket `cntrl`, is a controller. They should exist when watching starts.
    pub directories: Vec<PathBuf>,
}

impl Default for VfioUserOptions {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, map_registers: true, map_unsealed: false, directories: Vec::new() }
    }
}

/// A connection to a server. Any thread may use it; commands are answered one after the other.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    state: Mutex<State>,
    /// Why it is of no use any more. Set once, and the socket is shut down then.
    failure: OnceLock<Error>,
    name: String,
    timeout: Duration,
    server: OnceLock<Capabilities>,
}

#[derive(Debug)]
struct State {
    receiver: Receiver,
    next_id: u16,
}

/// The socket that a traddr means: itself, or `cntrl` in this directory.
pub(super) fn socket_path(address: &str) -> PathBuf {
    let path = Path::new(address);
    if path.is_dir() { path.join(SOCKET) } else { path.to_owned() }
}

impl Connection {
    /// Connects and agrees on version and capabilities.
    pub(super) fn open(address: &str, timeout: Duration) -> Result<Self> {
        let path = socket_path(address);
        let socket = connect(&path, timeout).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "is the server running, and is this its socket or the directory of it?"
                }
                io::ErrorKind::ConnectionRefused => "a socket is left there, but no server listens on it",
                io::ErrorKind::PermissionDenied => {
                    "the socket belongs to somebody else: check its permissions"
                }
                io::ErrorKind::TimedOut => "the server accepts no connections; it may serve another client",
                _ => {
                    "the address must be that of a vfio-user socket, or of a directory with a socket `cntrl`"
                }
            };
            Error::from(error).doing("connecting to the vfio-user server").peer(path.display()).hint(hint)
        })?;
        Self::over(socket, address, timeout)
    }

    /// The same over a socket that is connected.
    pub(super) fn over(socket: UnixStream, name: &str, timeout: Duration) -> Result<Self> {
        let receiver = Receiver::new(Header::SIZE + MAX_HEADERS + MAX_DATA as usize);
        let connection = Self {
            socket,
            state: Mutex::new(State { receiver, next_id: 0 }),
            failure: OnceLock::new(),
            name: name.to_owned(),
            timeout,
            server: OnceLock::new(),
        };
        let (body, _) =
            connection.call(Command::VERSION, &[&Capabilities::ours(MAX_DATA).encode()], &[]).map_err(
                |error| error.hint("is it a vfio-user server, and is no other client attached to it?"),
            )?;
        let server = Capabilities::decode(&body).map_err(|error| {
            Error::unsupported(format!("the server answers VERSION with {error}"))
                .doing("agreeing on a version")
                .peer(name)
        })?;
        connection.server.get_or_init(|| server);
        Ok(connection)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Descriptors one message may have.
    pub(super) fn max_fds(&self) -> usize {
        self.server.get().map_or(0, |server| server.max_msg_fds as usize).min(MAX_FDS)
    }

    /// Data one message may have.
    pub(super) fn max_data(&self) -> usize {
        self.server.get().map_or(0, |server| server.max_data_xfer_size.min(MAX_DATA) as usize)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a command, waits for its reply and returns the reply's body and descriptors.
    pub(super) fn call(
        &self,
        command: Command,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let deadline = Instant::now() + self.timeout;
        let mut state = self.state();
        let context = |error: Error| error.doing(command.name()).peer(&self.name);
        self.usable().map_err(context)?;
        let message = self
            .send(&mut state, command, body, fds, 0, deadline)
            .and_then(|id| self.reply(&mut state, id, command, deadline));
        let message = message.map_err(|error| context(self.fail(error)))?;
        if message.header.has(Header::ERROR) {
            return Err(context(refused(message.header.error.get())));
        }
        Ok((message.body, message.fds))
    }

    /// The same for a reply that starts with a structure and has nothing else.
    pub(super) fn call_for<T>(&self, command: Command, body: &[&[u8]]) -> Result<T>
    where
        T: FromBytes + KnownLayout + Immutable,
    {
        let (reply, _) = self.call(command, body, &[])?;
        T::read_from_bytes(&reply).map_err(|_| self.misbehaved(command, reply.len()))
    }

    /// Sends a command that has no reply.
    pub(super) fn post(&self, command: Command, body: &[&[u8]]) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut state = self.state();
        let context = |error: Error| error.doing(command.name()).peer(&self.name);
        self.usable().map_err(context)?;
        self.send(&mut state, command, body, &[], Header::NO_REPLY, deadline)
            .map(drop)
            .map_err(|error| context(self.fail(error)))
    }

    /// A reply of the wrong size. The connection itself is sound: the size was that of its header.
    pub(super) fn misbehaved(&self, command: Command, size: usize) -> Error {
        Error::peer_misbehaved(format!("the reply to {} has {size} bytes", command.name())).peer(&self.name)
    }

    /// Reads a region, in as many messages as it takes.
    pub(super) fn region_read(&self, region: u32, offset: u64, to: &mut [u8]) -> Result<()> {
        let most = self.max_data().max(8);
        for (index, part) in to.chunks_mut(most).enumerate() {
            let access = RegionAccess {
                offset: (offset + (index * most) as u64).into(),
                region: region.into(),
                count: (part.len() as u32).into(),
            };
            let (body, _) =
                self.call(Command::REGION_READ, &[zerocopy::IntoBytes::as_bytes(&access)], &[])?;
            let reply = RegionAccess::read_from_prefix(&body);
            let Ok((_, data)) =
                reply.ok().filter(|(said, data)| *said == access && data.len() == part.len()).ok_or(())
            else {
                return Err(self.misbehaved(Command::REGION_READ, body.len()));
            };
            part.copy_from_slice(data);
        }
        Ok(())
    }

    /// Writes a region. `posted` does not wait for the reply, nor ask for one.
    pub(super) fn region_write(&self, region: u32, offset: u64, from: &[u8], posted: bool) -> Result<()> {
        let most = self.max_data().max(8);
        for (index, part) in from.chunks(most).enumerate() {
            let access = RegionAccess {
                offset: (offset + (index * most) as u64).into(),
                region: region.into(),
                count: (part.len() as u32).into(),
            };
            let body = [zerocopy::IntoBytes::as_bytes(&access), part];
            if posted {
                self.post(Command::REGION_WRITE, &body)?;
                continue;
            }
            let reply: RegionAccess = self.call_for(Command::REGION_WRITE, &body)?;
            if reply != access {
                return Err(Error::peer_misbehaved("the reply to REGION_WRITE is about another access")
                    .peer(&self.name));
            }
        }
        Ok(())
    }

    /// Whether the server is gone, as far as can be told without waiting. Answers commands of the server.
    pub(super) fn is_lost(&self) -> bool {
        if self.failure.get().is_some() {
            return true;
        }
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Who holds it finds out.
            Err(TryLockError::WouldBlock) => return false,
        };
        for _ in 0..MAX_SERVED {
            let outcome = match state.receiver.receive_now(&self.socket) {
                Ok(None) => return false,
                Ok(Some(message)) => self.refuse(&message, Instant::now() + self.timeout),
                Err(error) => Err(self.stream_error(error, "waiting for nothing")),
            };
            if let Err(error) = outcome {
                self.fail(error);
                return true;
            }
        }
        false
    }

    /// Ends the connection. What the server holds of it is released by that, if it lives and behaves.
    pub(super) fn close(&self) {
        self.fail(Error::disconnected("closed by this side"));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |error| {
            Err(Error::disconnected(format!("the connection to the vfio-user server was given up: {error}")))
        })
    }

    /// Gives the connection up.
    fn fail(&self, error: Error) -> Error {
        self.failure.get_or_init(|| error.clone());
        // The server learns of it; our descriptor stays, so that who sleeps on it wakes up.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        error
    }

    fn send(
        &self,
        state: &mut State,
        command: Command,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        flags: u32,
        deadline: Instant,
    ) -> Result<u16> {
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        // Doorbells and registers fit into the first, so that none of them allocates.
        let (mut small, large);
        let len = body.iter().map(|part| part.len()).sum();
        let body = if len <= SMALL {
            small = [0; SMALL];
            let mut rest = &mut small[..];
            for part in body {
                let (now, later) = rest.split_at_mut(part.len());
                now.copy_from_slice(part);
                rest = later;
            }
            &small[..len]
        } else {
            large = body.concat();
            &large[..]
        };
        let header = Header::command(id, command, len, flags);
        send(&self.socket, &header, body, fds, deadline)
            .map_err(|error| self.stream_error(error, "sending a command"))?;
        Ok(id)
    }

    /// Waits for the reply to this command.
    fn reply(&self, state: &mut State, id: u16, command: Command, deadline: Instant) -> Result<Message> {
        loop {
            let message = state
                .receiver
                .receive(&self.socket, deadline)
                .map_err(|error| self.stream_error(error, "waiting for a reply"))?;
            if message.header.is_reply() == Some(false) {
                self.refuse(&message, deadline)?;
                continue;
            }
            if message.header.is_reply().is_none()
                || message.header.msg_id.get() != id
                || message.header.command != command
            {
                return Err(Error::peer_misbehaved(format!(
                    "an answer to command {:#x} {}, while {id:#x} {} waits for one (flags {:#x})",
                    message.header.msg_id,
                    message.header.command.name(),
                    command.name(),
                    message.header.flags
                )));
            }
            return Ok(message);
        }
    }

    /// Answers a command of the server. None is supported: all memory it is told of has a file.
    fn refuse(&self, message: &Message, deadline: Instant) -> Result<()> {
        if message.header.is_reply() != Some(false) {
            return Err(Error::peer_misbehaved("a reply to a command that was never sent"));
        }
        if message.header.has(Header::NO_REPLY) {
            return Ok(());
        }
        let refusal = message.header.refusal(Errno::OPNOTSUPP.raw_os_error());
        send(&self.socket, &refusal, &[], &[], deadline)
            .map_err(|error| self.stream_error(error, "refusing a command of the server"))
    }

    fn stream_error(&self, error: StreamError, state: &'static str) -> Error {
        match error {
            StreamError::Closed => Error::disconnected("the vfio-user server closed the connection"),
            StreamError::Size { .. } | StreamError::Descriptors => Error::peer_misbehaved(error.to_string()),
            StreamError::TimedOut => Error::timed_out(state, self.timeout),
            StreamError::Io(error) => error.into(),
        }
    }
}

/// The error of a reply that refuses.
fn refused(errno: u32) -> Error {
    let errno = i32::try_from(errno).unwrap_or(0);
    if [Errno::OPNOTSUPP.raw_os_error(), Errno::NOSYS.raw_os_error()].contains(&errno) {
        return Error::unsupported("the vfio-user server does not know this command");
    }
    if !(1..4096).contains(&errno) {
        return io::Error::other("the vfio-user server refuses without a reason").into();
    }
    io::Error::from_raw_os_error(errno).into()
}

/// Connects without ever blocking: a listener whose queue is full keeps others waiting.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => thread::sleep(RETRY),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}
