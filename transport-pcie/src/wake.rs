//! What a queue pair sleeps on: its interrupt, and everything that ends it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, epoll, eventfd};

/// Rings when the function is lost or stopped, for all its queue pairs and for good.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn ring(&self) {
        // Fails only when the counter is full, and then it rings anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that is readable as long as one of `sources` is. They may be closed before it.
///
/// Level-triggered: it is silenced by silencing the sources, and needs no system call of its own on the way.
pub(crate) fn any_of<'a>(sources: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<OwnedFd> {
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for source in sources {
        epoll::add(&all, source, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable(fd: &OwnedFd) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    #[test]
    fn readable_as_long_as_a_source_is() {
        let (mut ringer, mut listener) = UnixStream::pair().unwrap();
        let bell = Bell::new().unwrap();
        let all = any_of([listener.as_fd(), bell.as_fd()]).unwrap();
        for _ in 0..3 {
            assert!(!readable(&all));
            ringer.write_all(&[1]).unwrap();
            assert!(readable(&all) && readable(&all), "until it is silenced");
            listener.read_exact(&mut [0]).unwrap();
        }
        bell.ring();
        bell.ring();
        assert!(readable(&all) && readable(&all));
        drop(bell);
        assert!(!readable(&all));
        drop(ringer);
        assert!(readable(&all), "the other side is gone");
    }
}
