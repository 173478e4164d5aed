//! One admin command: built, sent, waited for — blocking, polled or as a future.

use std::borrow::Cow;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::admin::Admin;
use super::{AdminResult, Controller, admin_error};
use crate::dma::IoBuf;
use crate::error::{Error, Result};
use crate::qpair::CommandId;
use crate::spec::features::FeatureId;
use crate::spec::identify::Cns;
use crate::spec::log_page::{GetLogPage, LogPageId};
use crate::spec::status::CommandKind;
use crate::spec::{AdminOpcode, Sqe};
use crate::wait::{MAX_SLEEP, Waiter};

/// An admin command being prepared.
#[derive(Debug)]
#[must_use = "nothing is sent before `submit`, `wait` or `.await`"]
pub struct AdminCommand {
    controller: Controller,
    sqe: Sqe,
    data_in: usize,
    data_out: Vec<u8>,
    timeout: Duration,
    name: Cow<'static, str>,
    /// Part of connecting the controller: sent although it is not ready.
    connecting: bool,
}

impl AdminCommand {
    pub(super) fn new(controller: Controller, sqe: Sqe) -> Self {
        let name = AdminOpcode(sqe.opcode).name().unwrap_or("admin command");
        let timeout = controller.options().admin_timeout;
        Self {
            controller,
            sqe,
            data_in: 0,
            data_out: Vec::new(),
            timeout,
            name: name.into(),
            connecting: false,
        }
    }

    /// The controller returns `len` bytes.
    pub fn data_in(mut self, len: usize) -> Self {
        self.data_in = len;
        self
    }

    /// `bytes` are sent with it.
    pub fn data_out(mut self, bytes: Vec<u8>) -> Self {
        self.data_out = bytes;
        self
    }

    /// Deadline; [`crate::ControllerOptions::admin_timeout`] otherwise. When it passes, the admin queue is given up.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What it is called in messages.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Marks it as part of connecting the controller.
    pub(super) fn while_connecting(mut self) -> Self {
        self.connecting = true;
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the admin queue is lost or full, or there is no memory.
    pub fn submit(self) -> Result<AdminPending> {
        let controller = self.controller.clone();
        let sent = self.send()?;
        Ok(AdminPending { controller, sent, finished: false })
    }

    /// Sends it, unless another thread is at the admin queue: `None`, unless `wait`. For commands without data.
    pub(crate) fn try_submit(&self, wait: bool) -> Option<Result<AdminPending>> {
        let controller = &self.controller;
        let mut admin = controller.lock_if_free_or(wait)?;
        let id = admin.submit(self.sqe, IoBuf::None, self.timeout, self.connecting);
        drop(admin);
        Some(self.sent(id).map(|sent| AdminPending { controller: controller.clone(), sent, finished: false }))
    }

    /// Sends it, for somebody who keeps no handle of the controller.
    pub(super) fn send(mut self) -> Result<Sent> {
        let data_out = std::mem::take(&mut self.data_out);
        let buf = match (self.data_in, data_out.len()) {
            (0, 0) => IoBuf::None,
            (0, _) => IoBuf::One(self.controller.pool().copy_from(&data_out)?),
            (_, 0) => IoBuf::One(self.controller.alloc(self.data_in)?),
            _ => return Err(Error::api_misuse("an admin command with data both ways").doing(self.name)),
        };
        let id = self.controller.lock().submit(self.sqe, buf, self.timeout, self.connecting);
        self.sent(id)
    }

    /// It was handed to the admin queue.
    fn sent(&self, id: Result<CommandId>) -> Result<Sent> {
        let id = id.map_err(|error| error.doing(self.name.clone()).peer(self.controller.trid()))?;
        if self.controller.in_background() {
            self.controller.0.thread.wake();
        }
        let fabrics = self.sqe.opcode == AdminOpcode::FABRICS.0;
        let set = if fabrics { CommandKind::Fabrics } else { CommandKind::Admin };
        Ok(Sent { id, set, name: self.name.clone(), returns: self.data_in > 0 })
    }

    /// Sends it and waits for the result.
    ///
    /// # Errors
    /// When the controller fails it, it times out, or the admin queue is lost.
    pub fn wait(self) -> Result<AdminResult> {
        self.submit()?.wait()
    }
}

impl IntoFuture for AdminCommand {
    type Output = Result<AdminResult>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.submit()?.await })
    }
}

/// An admin command that was sent. The result stays with the controller until it is taken or forgotten.
#[derive(Debug)]
pub(super) struct Sent {
    id: CommandId,
    set: CommandKind,
    name: Cow<'static, str>,
    returns: bool,
}

impl Sent {
    /// The result, if it has arrived; to be taken once.
    pub(super) fn take(&self, controller: &Controller, waker: Option<&Waker>) -> Option<Result<AdminResult>> {
        self.take_from(controller.lock(), controller, waker)
    }

    fn take_from(
        &self,
        mut admin: MutexGuard<'_, Admin>,
        controller: &Controller,
        waker: Option<&Waker>,
    ) -> Option<Result<AdminResult>> {
        let (result, buf) = admin.take(self.id, waker)?;
        Some(match result {
            Ok(value) => {
                let data = match buf {
                    IoBuf::One(buf) if self.returns => buf.to_vec(),
                    _ => Vec::new(),
                };
                Ok(AdminResult { value, data })
            }
            Err(error) => {
                Err(admin_error(self.set, &self.name, error, admin.reason()).peer(controller.trid()))
            }
        })
    }

    pub(super) fn forget(&self, controller: &Controller) {
        controller.lock().forget(self.id);
    }
}

/// An admin command that was sent. Dropping it does not take the command back; its result is then ignored.
#[derive(Debug)]
#[must_use = "the result is lost when this is dropped"]
pub struct AdminPending {
    controller: Controller,
    sent: Sent,
    finished: bool,
}

impl AdminPending {
    /// The result, if it has arrived. Does not block; processes the admin queue unless the background thread does.
    pub fn poll_result(&mut self) -> Option<Result<AdminResult>> {
        self.poll_with(None, true)
    }

    /// The same; unless `wait`, `None` as well while another thread is at the admin queue.
    pub(crate) fn poll_with(&mut self, waker: Option<&Waker>, wait: bool) -> Option<Result<AdminResult>> {
        if let Some(result) = self.take(waker, wait) {
            return Some(result);
        }
        if !self.controller.in_background() {
            let admin = self.controller.lock_if_free_or(wait)?;
            // A failure of the queue completes this command as well.
            let _ = self.controller.process_admin(admin);
            return self.take(waker, wait);
        }
        None
    }

    fn take(&mut self, waker: Option<&Waker>, wait: bool) -> Option<Result<AdminResult>> {
        let admin = self.controller.lock_if_free_or(wait)?;
        let result = self.sent.take_from(admin, &self.controller, waker)?;
        self.finished = true;
        Some(result)
    }

    /// Waits for the result. Bounded by the command's deadline.
    ///
    /// # Errors
    /// When the controller fails the command, it times out, or the admin queue is lost.
    pub fn wait(mut self) -> Result<AdminResult> {
        let mut waiter = None;
        loop {
            let seen = self.controller.arrivals();
            if let Some(result) = self.poll_result() {
                return result;
            }
            self.controller.wait_arrival(seen, &mut waiter)?;
        }
    }
}

impl Future for AdminPending {
    type Output = Result<AdminResult>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.poll_with(Some(cx.waker()), true) {
            Some(result) => Poll::Ready(result),
            None => {
                if !self.controller.in_background() {
                    // Nobody else looks at the admin queue.
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for AdminPending {
    fn drop(&mut self) {
        if !self.finished {
            self.sent.forget(&self.controller);
        }
    }
}

impl Controller {
    pub(super) fn in_background(&self) -> bool {
        self.0.background.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Identify: the 4,096 bytes of structure `cns` for `nsid`.
    ///
    /// # Errors
    /// When the controller fails the command or is lost.
    pub fn identify_structure(&self, cns: Cns, nsid: u32) -> Result<Vec<u8>> {
        let sqe = Sqe::admin(AdminOpcode::IDENTIFY, nsid).with_cdw10(u32::from(cns.0));
        Ok(self.admin(sqe).data_in(4096).wait()?.data)
    }

    /// Get Log Page: `len` bytes from the start of a log page, in as many commands as it takes. `nsid` is FFFFFFFFh for
    /// the controller's own pages.
    ///
    /// # Errors
    /// When `len` is not a multiple of 4, the controller fails a command or is lost.
    pub fn log_page(&self, page: LogPageId, nsid: u32, len: usize) -> Result<Vec<u8>> {
        let misuse = || Error::api_misuse(format!("a log page is read in multiples of 4 bytes, not {len}"));
        if len == 0 || !len.is_multiple_of(4) {
            return Err(misuse());
        }
        let chunk = self.log_chunk() as usize;
        let mut data = Vec::with_capacity(len.min(1 << 20));
        while data.len() < len {
            let n = (len - data.len()).min(chunk);
            let Some(read) = GetLogPage::new(page, data.len() as u64, n as u64) else { return Err(misuse()) };
            data.extend_from_slice(&self.admin(read.to_sqe(nsid)).data_in(n).wait()?.data);
        }
        Ok(data)
    }

    /// Bytes of a log page asked for at once.
    pub(super) fn log_chunk(&self) -> u32 {
        self.max_transfer().clamp(4096, 64 * 1024) & !4095
    }

    /// Get Features: DW0 of the current value.
    ///
    /// # Errors
    /// When the controller fails the command or is lost.
    pub fn get_features(&self, feature: FeatureId, nsid: u32, cdw11: u32) -> Result<u32> {
        let sqe =
            Sqe::admin(AdminOpcode::GET_FEATURES, nsid).with_cdw10(u32::from(feature.0)).with_cdw11(cdw11);
        Ok(self.admin(sqe).wait()?.dw0())
    }

    /// Set Features, without saving. Returns DW0.
    ///
    /// # Errors
    /// When the controller fails the command or is lost.
    pub fn set_features(&self, feature: FeatureId, nsid: u32, cdw11: u32) -> Result<u32> {
        let sqe =
            Sqe::admin(AdminOpcode::SET_FEATURES, nsid).with_cdw10(u32::from(feature.0)).with_cdw11(cdw11);
        Ok(self.admin(sqe).wait()?.dw0())
    }

    /// Processes the admin queue, unless the background thread does.
    pub(super) fn pump(&self) {
        if !self.in_background() {
            // A failure shows in what was waited for.
            let _ = self.process_admin_completions();
        }
    }

    /// How many admin completions arrived so far.
    pub(crate) fn arrivals(&self) -> u64 {
        self.lock().arrivals
    }

    /// Sleeps until more admin completions than `seen` arrived, or a moment has passed.
    pub(crate) fn wait_arrival(&self, seen: u64, waiter: &mut Option<Waiter>) -> Result<()> {
        if self.in_background() {
            let admin = self.lock();
            let (admin, timeout) = self
                .0
                .arrived
                .wait_timeout_while(admin, MAX_SLEEP, |admin| admin.arrivals == seen)
                .unwrap_or_else(PoisonError::into_inner);
            drop(admin);
            if timeout.timed_out() {
                // Deadlines must not depend on another thread. A failure shows in the result.
                let _ = self.process_admin_completions();
            }
            return Ok(());
        }
        let waiter = match waiter {
            Some(waiter) => waiter,
            none => none.insert(Waiter::new()?),
        };
        let sources: Vec<_> = self.admin_event_source().into_iter().collect();
        // Without a descriptor (name resolution) a short nap has to do.
        let nap = if sources.is_empty() { Duration::from_millis(2) } else { Duration::from_millis(10) };
        waiter.wait(&sources, nap)?;
        Ok(())
    }
}
