//! Sleeping until a file descriptor is ready, with a deadline.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// The token of sources that are watched during one wait only.
pub(crate) const TRANSIENT: Token = Token(usize::MAX);

/// Longest sleep without a look at the world: a bound for events that reach no file descriptor.
pub(crate) const MAX_SLEEP: Duration = Duration::from_millis(100);

/// Events that one look or sleep reports at most; the others the next one reports.
const EVENTS: usize = 256;

/// Waits on a few file descriptors. Registration is renewed for every wait, so that readiness that was there before
/// is seen (mio is edge-triggered).
#[derive(Debug)]
pub(crate) struct Waiter {
    poll: Poll,
    events: Events,
    /// What [`Waiter::wait_edge`] watches.
    lasting: Option<(RawFd, u32)>,
    /// Memory for the list of what is watched during one wait.
    registered: Vec<RawFd>,
    /// What [`Waiter::look`] found.
    seen: Vec<Token>,
}

impl Waiter {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            lasting: None,
            registered: Vec::new(),
            seen: Vec::new(),
        })
    }

    /// The epoll instance and its registry, for a waker.
    pub(crate) fn registry(&self) -> &mio::Registry {
        self.poll.registry()
    }

    /// Sleeps until one of `fds` is ready (for writing too where the flag is set), something else registered with
    /// [`Waiter::registry`] fires, or `timeout` passes. Returns whether anything was ready.
    pub(crate) fn wait(&mut self, fds: &[(RawFd, bool)], timeout: Duration) -> io::Result<bool> {
        let registry = self.poll.registry();
        let mut registered = std::mem::take(&mut self.registered);
        for &(fd, write) in fds {
            let interest = if write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            // A descriptor that cannot be watched (closed meanwhile, or listed twice) is simply not waited for.
            if registry.register(&mut SourceFd(&fd), TRANSIENT, interest).is_ok() {
                registered.push(fd);
            }
        }
        let result = self.poll(timeout);
        for fd in registered.drain(..) {
            // Fails only when the descriptor was closed, which ends its registration as well.
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        self.registered = registered;
        result
    }

    /// As [`Waiter::wait`] for one descriptor that is seen edge-triggered: it stays registered as long as `source`, the descriptor and
    /// the number of the connection behind it, is the same.
    pub(crate) fn wait_edge(&mut self, source: (RawFd, u32), timeout: Duration) -> io::Result<bool> {
        if self.lasting != Some(source) {
            self.forget_edge();
            self.watch(source.0, Token(0))?;
            self.lasting = Some(source);
        }
        self.poll(timeout)
    }

    /// Watches no descriptor for longer than one wait any more.
    pub(crate) fn forget_edge(&mut self) {
        if let Some((fd, _)) = self.lasting.take() {
            self.unwatch(fd);
        }
    }

    /// Watches a descriptor until [`Waiter::unwatch`] or its end, edge-triggered, for reading and writing. What it is ready for now counts
    /// as an edge.
    pub(crate) fn watch(&self, fd: RawFd, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        match registry.register(&mut SourceFd(&fd), token, interest) {
            // Left over from a connection before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                registry.reregister(&mut SourceFd(&fd), token, interest)
            }
            other => other,
        }
    }

    pub(crate) fn unwatch(&self, fd: RawFd) {
        // Fails only when the descriptor was closed, which ends its registration as well.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
    }

    /// What is watched and ready now: how many, to be had from [`Waiter::seen`]. Who polls does this all the time: it is the system call
    /// and nothing around it, neither the C library's cancellation points nor a conversion of times.
    #[inline]
    pub(crate) fn look(&mut self) -> io::Result<usize> {
        self.seen.clear();
        let mut room = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(self.poll.registry(), &mut room, Some(&now)) {
            Ok((found, _)) => {
                // What mio gives the kernel with a descriptor is its token; a test below would notice if it were not.
                self.seen.extend(found.iter().map(|event| Token(event.data.u64() as usize)));
                Ok(found.len())
            }
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The tokens of what the last look found ready.
    pub(crate) fn seen(&self) -> impl Iterator<Item = Token> + '_ {
        self.seen.iter().copied()
    }

    /// Waits for what is watched.
    pub(crate) fn poll(&mut self, timeout: Duration) -> io::Result<bool> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(!self.events.is_empty()),
        }
    }

    /// The tokens of what the last wait found ready.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.events.iter().map(|event| event.token())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_look_finds_what_is_ready_once_and_says_which() {
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let mut waiter = Waiter::new().unwrap();
        assert_eq!(waiter.look().unwrap(), 0);
        for (number, (ours, _)) in pairs.iter().enumerate() {
            waiter.watch(ours.as_raw_fd(), Token(7 << 40 | number)).unwrap();
        }
        // That they can be written to.
        assert_eq!(waiter.look().unwrap(), 3);
        assert_eq!(waiter.look().unwrap(), 0);
        assert_eq!(waiter.seen().count(), 0);
        for number in [2, 0] {
            (&pairs[number].1).write_all(b"x").unwrap();
        }
        assert_eq!(waiter.look().unwrap(), 2);
        let mut seen: Vec<usize> = waiter.seen().map(|Token(token)| token).collect();
        seen.sort_unstable();
        assert_eq!(seen, [7 << 40, 7 << 40 | 2]);
        assert_eq!(waiter.look().unwrap(), 0, "edges show once");
        // A sleep sees the same descriptors.
        (&pairs[1].1).write_all(b"x").unwrap();
        assert!(waiter.poll(Duration::from_secs(10)).unwrap());
        assert_eq!(waiter.tokens().collect::<Vec<_>>(), [Token(7 << 40 | 1)]);
    }
}
