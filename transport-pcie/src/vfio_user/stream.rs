//! Messages over a unix stream socket, with descriptors beside them and a deadline on everything.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::capabilities::MAX_FDS;
use super::message::Header;

/// Read at once.
const CHUNK: usize = 4096;

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The other side closed the connection, perhaps within a message.
    #[error("the other side closed the connection")]
    Closed,
    /// A size that no message has, or more than is taken.
    #[error("a message that claims {size} bytes; {least} to {most} are possible", least = Header::SIZE)]
    Size {
        /// What the header says.
        size: u32,
        /// The most that is taken.
        most: usize,
    },
    /// More descriptors than are taken.
    #[error("more than {MAX_FDS} descriptors with one message")]
    Descriptors,
    /// The deadline passed.
    #[error("the deadline passed")]
    TimedOut,
    /// The operating system's error.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for StreamError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            error => Self::Io(error.into()),
        }
    }
}

/// A whole message. Its size is what its header says.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What follows.
    pub body: Vec<u8>,
    /// Descriptors that came with it, closed when dropped.
    pub fds: Vec<OwnedFd>,
}

/// Puts messages together out of what arrives.
#[derive(Debug)]
pub struct Receiver {
    /// Bytes a message may have, with its header.
    most: usize,
    got: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Receiver {
    /// Nothing yet; messages may have `most` bytes with their header.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, got: Vec::new(), fds: Vec::new() }
    }

    /// Whether a message has begun and is not complete.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.got.is_empty()
    }

    /// Takes what is there. `None` when the rest of the message has not arrived yet. Does not block.
    ///
    /// # Errors
    /// Once there is one, nothing that follows means anything: give the connection up.
    pub fn receive_now(&mut self, socket: &UnixStream) -> Result<Option<Message>, StreamError> {
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return Ok(self.take());
            }
            let mut bytes = [0; CHUNK];
            let bytes = &mut bytes[..missing.min(CHUNK)];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_FDS {
                return Err(StreamError::Descriptors);
            }
            if received.bytes == 0 {
                return Err(StreamError::Closed);
            }
            self.got.extend_from_slice(&bytes[..received.bytes.min(bytes.len())]);
        }
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// As [`Receiver::receive_now`], and when the deadline passes.
    pub fn receive(&mut self, socket: &UnixStream, deadline: Instant) -> Result<Message, StreamError> {
        loop {
            if let Some(message) = self.receive_now(socket)? {
                return Ok(message);
            }
            wait(socket, PollFlags::IN, deadline)?;
        }
    }

    /// Bytes that complete the header, or the message whose header is there.
    fn missing(&self) -> Result<usize, StreamError> {
        let Ok((header, rest)) = Header::read_from_prefix(&self.got) else {
            return Ok(Header::SIZE - self.got.len());
        };
        let size = header.msg_size.get();
        if size < Header::SIZE as u32 || size as usize > self.most {
            return Err(StreamError::Size { size, most: self.most });
        }
        Ok((size as usize - Header::SIZE).saturating_sub(rest.len()))
    }

    fn take(&mut self) -> Option<Message> {
        let (header, body) = Header::read_from_prefix(&self.got).ok()?;
        let message = Message { header, body: body.to_vec(), fds: std::mem::take(&mut self.fds) };
        self.got.clear();
        Some(message)
    }
}

/// Sends a message. Its descriptors go with its first byte.
///
/// # Errors
/// When it could not be sent whole before the deadline; the connection is of no use then.
pub fn send(
    socket: &UnixStream,
    header: &Header,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<(), StreamError> {
    if fds.len() > MAX_FDS {
        return Err(StreamError::Descriptors);
    }
    let mut sent = 0;
    while sent < Header::SIZE + body.len() {
        let head = header.as_bytes().get(sent..).unwrap_or_default();
        let tail = &body[sent.saturating_sub(Header::SIZE)..];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let parts = [IoSlice::new(head), IoSlice::new(tail)];
        match sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(bytes) => sent += bytes,
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sleeps until the descriptor can be read or written, or has an error.
fn wait(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> Result<(), StreamError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(StreamError::TimedOut);
    }
    sleep(&mut [PollFd::new(&fd, flags)], Some(left))?;
    Ok(())
}

/// Sleeps until one of these is ready, a signal comes, or the time is over.
fn sleep(fds: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let time = time.map(|time| Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    match poll(fds, time.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
