//! Controllers that come and go on local buses.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Driver;
use crate::error::{Error, Result};
use crate::transport::{HotplugEvent, HotplugMonitor, Transport};

#[cfg(test)]
mod tests;

/// Tells when controllers come and go on the local buses of a driver's transports; made by [`Driver::hotplug`].
///
/// Nothing is attached on its own: after [`HotplugEvent::Inserted`], [`Driver::probe`] with the identifier offers the controller.
/// A controller that is attached and gone is given up when its [`HotplugEvent::Removed`] is told, and its remove callback is
/// called if it was not before.
pub struct Hotplug {
    driver: Driver,
    /// With the transports they belong to.
    monitors: Vec<(Arc<dyn Transport>, Box<dyn HotplugMonitor>)>,
    poll: Poll,
    told: VecDeque<HotplugEvent>,
}

impl Hotplug {
    pub(super) fn new(driver: Driver) -> Result<Self> {
        let mut monitors = Vec::new();
        for transport in driver.0.transports.iter().filter(|transport| transport.is_local()) {
            if let Some(monitor) = transport.hotplug()? {
                monitors.push((Arc::clone(transport), monitor));
            }
        }
        let poll = Poll::new()?;
        for (_, monitor) in &monitors {
            if let Some(fd) = monitor.event_fd() {
                poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
            }
        }
        Ok(Self { driver, monitors, poll, told: VecDeque::new() })
    }

    /// Becomes readable when there is something to [`Hotplug::poll`] for, and is silent again after a poll that returned `None`.
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    /// Whether [`Hotplug::event_fd`] tells of everything. Otherwise the operating system does not say when something changes, and
    /// [`Hotplug::poll`] has to be called now and then to have a look, once a second or so.
    #[must_use]
    pub fn is_notified(&self) -> bool {
        self.monitors.iter().all(|(_, monitor)| monitor.event_fd().is_some())
    }

    /// The next event; `None` when there is none for now. Never blocks.
    ///
    /// # Errors
    /// When a bus cannot be looked at.
    pub fn poll(&mut self) -> Result<Option<HotplugEvent>> {
        if let Some(event) = self.told.pop_front() {
            return Ok(Some(event));
        }
        self.silence()?;
        for (transport, monitor) in &mut self.monitors {
            let told = &mut self.told;
            monitor.poll(&mut |event| told.push_back(event))?;
            for event in told.iter() {
                if let HotplugEvent::Removed(trid) = event
                    && trid.trtype() == transport.trtype()
                {
                    self.driver.departed(&**transport, trid);
                }
            }
        }
        Ok(self.told.pop_front())
    }

    /// Waits for the next event, at most `timeout`.
    ///
    /// # Errors
    /// As [`Hotplug::poll`], and when the operating system cannot wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<HotplugEvent>> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if let Some(event) = self.poll()? {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let nap = if self.is_notified() { left } else { left.min(Duration::from_secs(1)) };
            self.sleep(nap)?;
        }
    }

    fn sleep(&mut self, time: Duration) -> Result<()> {
        match self.poll.poll(&mut Events::with_capacity(1), Some(time)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => {
                result.map_err(|error| Error::from(error).doing("waiting for controllers to come or go"))
            }
        }
    }

    /// Silences the descriptor until something new happens, or a monitor has not taken everything.
    fn silence(&mut self) -> Result<()> {
        self.sleep(Duration::ZERO)?;
        for (_, monitor) in &self.monitors {
            if let Some(fd) = monitor.event_fd() {
                self.poll.registry().reregister(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Hotplug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hotplug")
            .field(
                "transports",
                &self.monitors.iter().map(|(t, _)| t.trtype().to_string()).collect::<Vec<_>>(),
            )
            .field("is_notified", &self.is_notified())
            .finish_non_exhaustive()
    }
}
