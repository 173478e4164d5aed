//! How an I/O queue pair follows its controller: it loses its connection with the controller's, and connects again.

use std::time::Instant;

use super::{CommandError, Create, IoQpair};
use crate::controller::Phase;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{ControllerOptions, IoQpairOptions};
use crate::qpair::engine::{Done, Keep};
use crate::transport::TransportQpair;

/// What a queue pair needs to connect again.
pub(super) struct Follow<Q> {
    pub(super) create: Create<Q>,
    pub(super) options: IoQpairOptions,
    /// The association it is connected in, or was.
    pub(super) association: u64,
    /// It connects again on its own.
    auto: bool,
    /// The controller as a whole is to be connected again when this connection is lost.
    whole: bool,
    retries: u8,
    /// It was connected: failing to connect for the first time is final.
    established: bool,
    /// It was made anew and has not been connected since.
    fresh: bool,
    /// Why it will not connect any more.
    end: Option<Error>,
}

impl<Q> Follow<Q> {
    pub(super) fn new(
        create: Create<Q>,
        options: IoQpairOptions,
        association: u64,
        of_controller: &ControllerOptions,
    ) -> Self {
        let policy = of_controller.recovery_policy().delay().is_some();
        Self {
            create,
            auto: options.auto_reconnect.unwrap_or(policy),
            whole: policy,
            options,
            association,
            retries: of_controller.retry_after_reconnect,
            established: false,
            fresh: false,
            end: None,
        }
    }

    fn keep(&self, hold: bool) -> Keep {
        Keep { hold, retries: if hold { self.retries } else { 0 } }
    }
}

impl<Q: TransportQpair> IoQpair<Q> {
    /// Connects a lost queue pair again, after all its operations were completed and the controller is connected. For queue pairs
    /// that do not do so on their own ([`crate::IoQpairOptions::auto_reconnect`]). [`IoQpair::poll_connect`] and
    /// [`IoQpair::process_completions`] drive it, and what is submitted before it is connected waits. (It waits for a thread that
    /// processes the admin queue just then; queue pairs that reconnect on their own do not.)
    ///
    /// # Errors
    /// When it is not lost, operations are outstanding, the controller is not connected or grants fewer queues than before.
    pub fn reconnect(&mut self) -> Result<()> {
        self.notice_loss();
        if !self.engine.is_given_up() {
            return Err(Error::api_misuse("the queue pair is not lost").peer(self.controller.trid()));
        }
        if !self.engine.is_drained() || self.engine.outstanding() > 0 {
            return Err(Error::api_misuse(
                "the queue pair has operations outstanding; process their completions first",
            )
            .peer(self.controller.trid()));
        }
        self.renew(Instant::now(), true, &mut |_| {})
    }

    /// Whether it will work again on its own: it is connecting, or waits for its controller to be connected again.
    #[must_use]
    pub fn is_reconnecting(&self) -> bool {
        let follow = &self.follow;
        follow.established
            && (self.engine.is_connecting()
                || (self.engine.is_given_up()
                    && follow.auto
                    && follow.end.is_none()
                    && self.controller.link().phase != Phase::Lost))
    }

    /// It is connected.
    pub(super) fn connected(&mut self) {
        (self.follow.established, self.follow.fresh) = (true, false);
        self.engine.set_keep(self.follow.keep(self.follow.auto));
    }

    /// Gives the connection up when the controller is not connected any more, or anew.
    #[inline(always)]
    pub(super) fn notice_loss(&mut self) {
        if !self.controller.is_linked(self.follow.association) {
            self.take_loss();
        }
    }

    #[cold]
    fn take_loss(&mut self) {
        if !self.engine.is_given_up() {
            let error = match self.controller.failure() {
                None => Error::disconnected("the controller was connected anew"),
                // It was lost before, and the first attempt to connect it again was refused by the time this is noticed.
                Some(refused) if matches!(refused.kind(), ErrorKind::Command { .. }) => {
                    Error::disconnected(format!("the controller was lost; {refused}"))
                }
                Some(reason) => reason,
            };
            self.engine.fail(error, CommandError::Disconnected, Instant::now());
        }
    }

    /// What a queue pair that is given up does about it. `f` gets operations that cannot be sent any more.
    pub(super) fn follow(&mut self, f: &mut dyn FnMut(Done)) {
        if !self.follow.established || !self.follow.auto || self.follow.end.is_some() {
            return;
        }
        let link = self.controller.link();
        let hold = matches!(link.phase, Phase::Ready | Phase::Down);
        self.engine.set_keep(self.follow.keep(hold));
        if link.phase != Phase::Ready || !self.engine.is_drained() {
            return;
        }
        if link.association == self.follow.association && self.follow.whole {
            // What else is wrong with the controller is not known; and only the end of the association makes it let go of
            // the commands of this queue.
            self.controller.request_recovery(link.association);
            return;
        }
        let result = match self.engine.failure() {
            // Once more would be no different.
            Some(error) if link.association == self.follow.association && self.follow.fresh => {
                Err(error.clone())
            }
            _ => self.renew(Instant::now(), false, f),
        };
        let Err(error) = result else { return };
        if self.controller.link() != link {
            // The controller was lost meanwhile.
            return;
        }
        tracing::debug!(%error, "an I/O queue pair cannot connect again");
        if matches!(error.kind(), ErrorKind::Exhausted(_)) || !self.follow.whole {
            self.follow.end = Some(error);
            self.engine.set_keep(self.follow.keep(false));
        } else {
            self.controller.request_recovery(link.association);
        }
    }

    /// Whether its end is to be told: nothing brings it back on its own.
    pub(super) fn is_over(&self) -> bool {
        let follow = &self.follow;
        !follow.established
            || !follow.auto
            || follow.end.is_some()
            || self.controller.link().phase == Phase::Lost
    }

    pub(super) fn end(&self) -> Option<&Error> {
        self.follow.end.as_ref()
    }

    /// Begins to connect it again; unless `wait`, only if no other thread is at the controller, and else with the next poll.
    fn renew(&mut self, now: Instant, wait: bool, f: &mut dyn FnMut(Done)) -> Result<()> {
        let follow = &mut self.follow;
        let renewed =
            self.controller.renew_io_qpair(self.qid, &follow.options, &mut follow.create, now, wait)?;
        let Some((renewal, link)) = renewed else { return Ok(()) };
        let (info, before) = (self.controller.info(), follow.association);
        // A namespace that is another one now, or has another format, must not get commands that were made for the one before.
        self.engine.drop_held(|sqe| !info.is_still(sqe.nsid.get(), before), f);
        (follow.association, follow.fresh) = (link.association, true);
        self.assist = None;
        self.engine.renew(renewal, now);
        if let Some(shares) = &self.shares {
            self.engine.transport_mut().join_group(shares);
        }
        Ok(())
    }
}
