//! Interrupts: descriptors that become readable.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::ringer::{Lines, Ringer};

/// What signals one vector.
#[derive(Debug)]
enum Interrupt {
    /// A pair of sockets; the host holds a copy of the listener.
    Pair { ringer: UnixStream, listener: UnixStream },
    /// An eventfd that somebody gave, at this vector of the ringer.
    Event(Arc<Lines>),
}

/// What signals the vectors of a function.
#[derive(Debug)]
pub(super) struct Interrupts {
    vectors: u16,
    lines: Vec<Option<Interrupt>>,
    /// Rings eventfds.
    ringer: Ringer,
}

impl Interrupts {
    pub(super) fn new(vectors: u16) -> Self {
        Self { vectors, lines: Vec::new(), ringer: Ringer::default() }
    }

    /// Vectors `0..vectors` of our own, and the descriptors they make readable.
    pub(super) fn enable(&mut self, vectors: u16) -> io::Result<Vec<OwnedFd>> {
        let pairs = (0..vectors).map(|_| Interrupt::pair()).collect::<io::Result<Vec<_>>>()?;
        let (ours, theirs): (Vec<_>, _) = pairs.into_iter().unzip();
        self.lines = ours.into_iter().map(Some).collect();
        Ok(theirs)
    }

    /// Signals a vector through an eventfd, or no longer. Vectors beyond those there are take no notice.
    pub(super) fn set(&mut self, vector: u16, eventfd: Option<OwnedFd>) {
        if vector >= self.vectors {
            return;
        }
        let index = usize::from(vector);
        if self.lines.len() <= index {
            self.lines.resize_with(index + 1, || None);
        }
        self.lines[index] = match eventfd {
            Some(fd) => self.ringer.set(self.vectors, vector, fd).map(Interrupt::Event),
            None => {
                self.ringer.unset(vector);
                None
            }
        };
    }

    /// Turns all of them off.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.ringer.stop();
    }

    /// Signals a vector, if it is on. Never blocks.
    pub(super) fn ring(&self, vector: u16) {
        if let Some(Some(interrupt)) = self.lines.get(usize::from(vector)) {
            interrupt.ring(vector);
        }
    }
}

impl Interrupt {
    fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ringer, listener) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        let host = listener.try_clone()?;
        Ok((Self::Pair { ringer, listener }, host.into()))
    }

    /// Makes the descriptor readable. An interrupt that nobody took yet and this one are one; errors mean the same.
    fn ring(&self, vector: u16) {
        match self {
            Self::Pair { ringer, listener } => {
                // Never more than one interrupt in the socket, so that one read silences it, as it does an eventfd.
                let _ = (&*listener).read(&mut [0; 64]);
                let _ = (&*ringer).write(&1u64.to_ne_bytes());
            }
            Self::Event(lines) => lines.ring(vector),
        }
    }
}
