//! Sleeping until a file descriptor is ready, with a deadline.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// Longest sleep without a look at the world: a bound for events that reach no file descriptor.
pub(crate) const MAX_SLEEP: Duration = Duration::from_millis(100);

/// Waits on a few file descriptors. Registration is renewed for every wait, so that readiness that was there before
/// is seen (mio is edge-triggered).
#[derive(Debug)]
pub(crate) struct Waiter {
    poll: Poll,
    events: Events,
}

impl Waiter {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, events: Events::with_capacity(64) })
    }

    /// The epoll instance and its registry, for a waker.
    pub(crate) fn registry(&self) -> &mio::Registry {
        self.poll.registry()
    }

    /// Sleeps until one of `fds` is ready (for writing too where the flag is set), something else registered with
    /// [`Waiter::registry`] fires, or `timeout` passes. Returns whether anything was ready.
    pub(crate) fn wait(&mut self, fds: &[(RawFd, bool)], timeout: Duration) -> io::Result<bool> {
        let registry = self.poll.registry();
        let mut registered = Vec::with_capacity(fds.len());
        for &(fd, write) in fds {
            let interest = if write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            // A descriptor that cannot be watched (closed meanwhile, or listed twice) is simply not waited for.
            if registry.register(&mut SourceFd(&fd), Token(0), interest).is_ok() {
                registered.push(fd);
            }
        }
        let result = match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        };
        for fd in registered {
            // Fails only when the descriptor was closed, which ends its registration as well.
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        result.map(|()| !self.events.is_empty())
    }
}
