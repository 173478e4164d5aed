//! Probing: scans and discovery, and any number of controllers attaching side by side.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Driver;
use crate::controller::{
    Attach, Controller, Detach, DiscoveryLogOptions, DiscoveryLogRead, NAP, RemoveCallback,
};
use crate::error::{Error, Result};
use crate::options::ControllerOptions;
use crate::proto::discovery_log::DiscoveryLog;
use crate::spec::discovery::{DiscoveryLogEntry, SubsystemType};
use crate::transport::Transport;
use crate::transport_id::TransportId;
use crate::wait::{MAX_SLEEP, Waiter};

#[cfg(test)]
mod tests;

type ProbeFn<'a> = Box<dyn FnMut(&TransportId, &mut ControllerOptions) -> bool + 'a>;
type AttachFn<'a> = Box<dyn FnMut(Controller) + 'a>;
type AttachFailFn<'a> = Box<dyn FnMut(&TransportId, &Error) + 'a>;
type DoneFn<'a> = Box<dyn FnOnce(Result<Controller>) + 'a>;

/// What a probe tells its caller, as in SPDK.
#[derive(Default)]
#[must_use]
pub struct Callbacks<'a> {
    options: ControllerOptions,
    probe: Option<ProbeFn<'a>>,
    attach: Option<AttachFn<'a>>,
    attach_fail: Option<AttachFailFn<'a>>,
    remove: Option<RemoveCallback>,
}

impl<'a> Callbacks<'a> {
    /// Attaches whatever is found, with default options, and says nothing. A controller whose handle no attach callback
    /// keeps is given up again.
    pub fn new() -> Self {
        Self::default()
    }

    /// Options for discovery controllers, and those that every controller found is offered with.
    pub fn options(mut self, options: ControllerOptions) -> Self {
        self.options = options;
        self
    }

    /// Called for every controller found; may edit the options; `false` leaves the controller alone.
    pub fn probe(mut self, f: impl FnMut(&TransportId, &mut ControllerOptions) -> bool + 'a) -> Self {
        self.probe = Some(Box::new(f));
        self
    }

    /// Called for every controller that is ready. One attached already is given out again, unless it is a local one.
    pub fn attach(mut self, f: impl FnMut(Controller) + 'a) -> Self {
        self.attach = Some(Box::new(f));
        self
    }

    /// Called for every controller that could not be attached.
    pub fn attach_fail(mut self, f: impl FnMut(&TransportId, &Error) + 'a) -> Self {
        self.attach_fail = Some(Box::new(f));
        self
    }

    /// Called once for every attached controller that is lost later on, from whichever thread notices.
    pub fn remove(mut self, f: impl Fn(&TransportId) + Send + Sync + 'static) -> Self {
        self.remove = Some(Arc::new(f));
        self
    }
}

/// A probe or connect in progress.
#[must_use = "nothing happens unless it is polled"]
pub struct ProbeContext<'a> {
    driver: Driver,
    callbacks: Callbacks<'a>,
    /// `connect` instead of `probe`: who gets the one result.
    done: Option<DoneFn<'a>>,
    items: Vec<Item>,
    /// Why the scan failed, told once everything else is done.
    scan_error: Option<Error>,
    waiter: Option<Waiter>,
}

enum Item {
    Attaching(Attach),
    /// A discovery controller connecting, being read, being let go of.
    Discovering(Attach),
    Reading(DiscoveryLogRead),
    Leaving(Detach),
}

/// What became of an item in one step.
enum Step {
    Pending(Item),
    Attached(Controller),
    Failed(TransportId, Error),
    Log(Controller, DiscoveryLog),
    DiscoveryFailed(Error),
    Next(Item),
    Finished,
}

impl<'a> ProbeContext<'a> {
    fn new(driver: Driver, callbacks: Callbacks<'a>) -> Self {
        Self { driver, callbacks, done: None, items: Vec::new(), scan_error: None, waiter: None }
    }

    pub(super) fn probe(
        driver: Driver,
        trid: Option<&TransportId>,
        callbacks: Callbacks<'a>,
    ) -> Result<Self> {
        let mut context = Self::new(driver, callbacks);
        let Some(trid) = trid else {
            let locals: Vec<_> =
                context.driver.0.transports.iter().filter(|t| t.is_local()).cloned().collect();
            for transport in locals {
                context.scan(&*transport, None)?;
            }
            return Ok(context);
        };
        let transport = Arc::clone(context.driver.transport(trid)?);
        if transport.is_local() {
            context.scan(&*transport, Some(trid))?;
        } else if trid.is_discovery() {
            let mut options = context.callbacks.options.clone();
            // Read once and let go of; nothing to be kept alive.
            options.keep_alive_timeout = Duration::ZERO;
            let attach = context.driver.start(trid, &options)?;
            context.items.push(Item::Discovering(attach));
        } else {
            context.offer(trid.clone());
        }
        Ok(context)
    }

    pub(super) fn connect(
        driver: Driver,
        trid: &TransportId,
        options: &ControllerOptions,
        done: DoneFn<'a>,
    ) -> Result<Self> {
        let mut context = Self::new(driver, Callbacks::new());
        let host = context.driver.host_for(trid, options)?;
        if let Some(controller) = context.driver.find_attached(trid, &host) {
            done(Ok(controller));
            return Ok(context);
        }
        let attach = context.driver.start(trid, options)?;
        context.done = Some(done);
        context.items.push(Item::Attaching(attach));
        Ok(context)
    }

    /// Offers what is on a local bus and not attached.
    fn scan(&mut self, transport: &dyn Transport, filter: Option<&TransportId>) -> Result<()> {
        self.driver.give_up_departed(transport);
        let mut found = Vec::new();
        transport.scan(filter, &mut |trid| found.push(trid))?;
        for trid in found {
            if !self.driver.is_taken(&trid) {
                self.offer(trid);
            }
        }
        Ok(())
    }

    /// Asks the probe callback about a controller and starts attaching it.
    fn offer(&mut self, trid: TransportId) {
        let mut options = self.callbacks.options.clone();
        if !self.callbacks.probe.as_mut().is_none_or(|probe| probe(&trid, &mut options)) {
            return;
        }
        // A log may list the same path twice.
        if self.items.iter().any(|item| matches!(item, Item::Attaching(attach) if *attach.trid() == trid)) {
            return;
        }
        let host = match self.driver.host_for(&trid, &options) {
            Ok(host) => host,
            Err(error) => return self.failed(&trid, error),
        };
        if let Some(controller) = self.driver.find_attached(&trid, &host) {
            if let Some(attach) = &mut self.callbacks.attach {
                attach(controller);
            }
            return;
        }
        match self.driver.start(&trid, &options) {
            Ok(attach) => self.items.push(Item::Attaching(attach)),
            Err(error) => self.failed(&trid, error),
        }
    }

    fn failed(&mut self, trid: &TransportId, error: Error) {
        if let Some(done) = self.done.take() {
            done(Err(error));
        } else if let Some(attach_fail) = &mut self.callbacks.attach_fail {
            attach_fail(trid, &error);
        } else {
            tracing::warn!(%trid, %error, "controller could not be attached");
        }
    }

    /// One step of everything in progress. Never blocks. Returns whether all is done.
    ///
    /// # Errors
    /// When all is done and looking for controllers failed (once).
    pub fn poll(&mut self) -> Result<bool> {
        let now = Instant::now();
        for item in std::mem::take(&mut self.items) {
            match step(item, now) {
                Step::Pending(item) | Step::Next(item) => self.items.push(item),
                Step::Attached(controller) => {
                    self.driver.register(&controller);
                    controller.start_life(self.callbacks.remove.clone());
                    if let Some(done) = self.done.take() {
                        done(Ok(controller));
                    } else if let Some(attach) = &mut self.callbacks.attach {
                        attach(controller);
                    }
                }
                Step::Failed(trid, error) => self.failed(&trid, error),
                Step::DiscoveryFailed(error) => self.scan_error = Some(error),
                Step::Log(controller, log) => {
                    let parent = controller.trid().clone();
                    self.items.push(Item::Leaving(controller.detach_async()));
                    for entry in &log.records {
                        self.offer_entry(entry, &parent);
                    }
                }
                Step::Finished => {}
            }
        }
        if !self.items.is_empty() {
            return Ok(false);
        }
        match self.scan_error.take() {
            Some(error) => Err(error),
            None => Ok(true),
        }
    }

    fn offer_entry(&mut self, entry: &DiscoveryLogEntry, parent: &TransportId) {
        if entry.subtype != SubsystemType::NVM {
            // Referrals and the entry of the discovery subsystem itself are not storage.
            tracing::debug!(subnqn = %entry.subnqn(), subtype = %entry.subtype, "discovery entry is no NVM subsystem");
            return;
        }
        match TransportId::of_log_entry(entry, parent) {
            Ok(trid) if self.driver.has_transport(trid.trtype()) => self.offer(trid),
            Ok(trid) => {
                let error = super::not_registered(&trid, &self.driver.0.transports);
                self.failed(&trid, error);
            }
            Err(error) => self.failed(parent, error.doing("reading a discovery log entry")),
        }
    }

    /// Descriptors to wait on (and whether for writing too) while [`ProbeContext::poll`] has nothing to do, for an
    /// event loop of one's own. Poll again after 10 ms at the latest: some waits have no descriptor.
    #[must_use]
    pub fn event_sources(&self) -> Vec<(RawFd, bool)> {
        self.items
            .iter()
            .filter_map(|item| match item {
                Item::Attaching(attach) | Item::Discovering(attach) => attach.event_source(),
                Item::Reading(read) => read.controller().admin_event_source(),
                Item::Leaving(_) => None,
            })
            .collect()
    }

    /// Sleeps until [`ProbeContext::poll`] may have something to do, at most `timeout`.
    ///
    /// # Errors
    /// When the operating system cannot wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        let sources = self.event_sources();
        let waiter = match &mut self.waiter {
            Some(waiter) => waiter,
            none => none.insert(Waiter::new()?),
        };
        let nap = if sources.len() == self.items.len() { Duration::from_millis(10) } else { NAP };
        waiter.wait(&sources, nap.min(timeout))?;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        while !self.poll()? {
            self.wait(MAX_SLEEP)?;
        }
        Ok(())
    }
}

fn step(item: Item, now: Instant) -> Step {
    match item {
        Item::Attaching(mut attach) => match attach.poll(now) {
            Ok(None) => Step::Pending(Item::Attaching(attach)),
            Ok(Some(controller)) => Step::Attached(controller),
            Err(error) => Step::Failed(attach.trid().clone(), error),
        },
        Item::Discovering(mut attach) => match attach.poll(now) {
            Ok(None) => Step::Pending(Item::Discovering(attach)),
            Ok(Some(controller)) => {
                let read = controller.read_discovery_log(&DiscoveryLogOptions::new());
                Step::Next(Item::Reading(read))
            }
            Err(error) => Step::DiscoveryFailed(error),
        },
        Item::Reading(mut read) => match read.poll() {
            Ok(None) => Step::Pending(Item::Reading(read)),
            Ok(Some(log)) => Step::Log(read.controller().clone(), log),
            Err(error) => {
                read.controller().clone().close();
                Step::DiscoveryFailed(error)
            }
        },
        Item::Leaving(mut detach) => match detach.poll() {
            Ok(false) => Step::Pending(Item::Leaving(detach)),
            Ok(true) => Step::Finished,
            Err(error) => {
                tracing::debug!(%error, "the discovery controller did not confirm its shutdown");
                Step::Finished
            }
        },
    }
}
