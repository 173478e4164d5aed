//! A SOCK_SEQPACKET socket: whole packets, with descriptors, without blocking.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::wire::{MAX_FDS, MAX_PACKET};

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
    /// Room for the longest packet, made once.
    scratch: Mutex<Vec<u8>>,
}

/// A packet, with descriptors.
pub(super) type Packet = (Vec<u8>, Vec<OwnedFd>);

/// What there was to receive.
pub(super) enum Received {
    /// Nothing for now.
    Nothing,
    /// The other side is gone.
    Closed,
    /// A packet, with descriptors.
    Packet(Vec<u8>, Vec<OwnedFd>),
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl Channel {
    /// Connects to whoever listens at `path`.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::new(socket))
    }

    fn new(fd: OwnedFd) -> Self {
        Self { fd, scratch: Mutex::default() }
    }

    /// Both ends of a connection without a name.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::new(a), Self::new(b)))
    }

    /// One that came with a message.
    pub(super) fn received(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self::new(fd))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// User and process at the other end, as they were when it connected.
    pub(super) fn peer(&self) -> io::Result<(u32, u32)> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.fd)?;
        Ok((credentials.uid.as_raw(), credentials.pid.as_raw_nonzero().get().unsigned_abs()))
    }

    /// Sends a packet; `false` when there is no room now.
    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            return match rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(_) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Receives a packet. One that is longer than any message, or has more descriptors, is an error.
    pub(super) fn receive(&self) -> io::Result<Received> {
        let mut bytes = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.resize(MAX_PACKET + 1, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut reset = false;
        let received = loop {
            match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                // The other side closed with something of ours unread. What it said before is still to be read, and told once this
                // error is.
                Err(Errno::CONNRESET) if !reset => reset = true,
                Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Received::Closed),
                Err(error) => return Err(error.into()),
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) || received.bytes > MAX_PACKET
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet longer than any message"));
        }
        if received.bytes == 0 {
            return Ok(Received::Closed);
        }
        Ok(Received::Packet(bytes[..received.bytes].to_vec(), fds))
    }

    /// Sends a packet, waiting for room.
    pub(super) fn send_by(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<()> {
        while !self.send(bytes, fds)? {
            wait(&[(self.as_fd(), true)], left(deadline)?)?;
        }
        Ok(())
    }

    /// Waits for a packet; `None` when the other side is gone.
    pub(super) fn receive_by(&self, deadline: Instant) -> io::Result<Option<Packet>> {
        loop {
            match self.receive()? {
                Received::Packet(bytes, fds) => return Ok(Some((bytes, fds))),
                Received::Closed => return Ok(None),
                Received::Nothing => wait(&[(self.as_fd(), false)], left(deadline)?)?,
            }
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Sleeps until one of these can be read (and written, where that is asked for), or the time has passed.
pub(super) fn wait(fds: &[(BorrowedFd<'_>, bool)], time: Duration) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, write)| {
            let flags = if *write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            PollFd::from_borrowed_fd(*fd, flags)
        })
        .collect();
    let time = Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    match rustix::event::poll(&mut fds, Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The socket that connections are made to.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, for this user only.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        // The mode of the socket file is that of the descriptor.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, 64)?;
        Ok(Self(socket))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<Channel>> {
        match rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(Channel::new(fd))),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Wakes a thread that sleeps on its descriptor.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn ring(&self) {
        // Fails only when the counter is full: then it is ringing.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl std::task::Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        self.ring();
    }
}
