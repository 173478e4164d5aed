//! Interrupts: descriptors that become readable.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// What signals one vector.
#[derive(Debug)]
pub(super) enum Interrupt {
    /// A pair of sockets; the host holds a copy of the listener.
    Pair { ringer: UnixStream, listener: UnixStream },
    /// An eventfd that somebody gave.
    Event(File),
}

impl Interrupt {
    /// A vector of our own, and the descriptor it makes readable.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ringer, listener) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        let host = listener.try_clone()?;
        Ok((Self::Pair { ringer, listener }, host.into()))
    }

    /// Makes the descriptor readable. An interrupt that nobody took yet and this one are one; errors mean the same.
    pub(super) fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        match self {
            Self::Pair { ringer, listener } => {
                // Never more than one interrupt in the socket, so that one read silences it, as it does an eventfd.
                let _ = (&*listener).read(&mut [0; 64]);
                let _ = (&*ringer).write(&one);
            }
            Self::Event(file) => {
                let _ = (&*file).write(&one);
            }
        }
    }
}
