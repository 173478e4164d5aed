//! Asynchronous events: what they mean, and identifying again what they say has changed. NVMe Base 2.1 §5.1.2.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::admin::{Admin, Notices};
use super::admin_command::Sent;
use super::attach::Runner;
use super::{Controller, ControllerState, Info};
use crate::error::{Error, Result};
use crate::proto::controller_init::{ChangedNamespaces, ControllerInit, Next};
use crate::spec::log_page::{
    AnaState, AsyncEvent, AsyncEventType, ErrorEvent, GetLogPage, HealthEvent, LogPageId, NoticeEvent,
};

/// Shortest time between two times that namespaces are identified again on their own.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of the Changed Attached Namespace List log page.
const CHANGED_LIST: usize = 4096;

/// What happened to a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// It was lost, is connected again, or is given up.
    State(ControllerState),
    /// A namespace; [`Controller::namespace`] says how it is now.
    Namespace {
        /// Namespace identifier.
        nsid: u32,
        /// What happened to it.
        change: NamespaceChange,
    },
    /// This controller's path to a namespace.
    Ana {
        /// Namespace identifier.
        nsid: u32,
        /// The state it is in now. [`AnaState::INACCESSIBLE`] and worse: I/O through this controller fails.
        state: AnaState,
    },
    /// The discovery log is another one; read it ([`Controller::discovery_log`]), which lets the controller report the next
    /// change.
    DiscoveryLog,
    /// An error; reading the Error Information log page lets the controller report the next one.
    Error(ErrorEvent),
    /// A health warning; reading the SMART / Health Information log page lets the controller report the next one.
    Health(HealthEvent),
    /// Something else, as the controller reported it.
    Other(AsyncEvent),
}

/// What happened to a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NamespaceChange {
    /// It is there now.
    Added,
    /// It is not there any more.
    Removed,
    /// It has another size.
    Resized,
    /// It is another one under the same identifier, or has another format.
    Replaced,
}

impl Event {
    /// What is to be told at once; changes of namespaces are told when it is known what they are.
    pub(super) fn of(event: AsyncEvent) -> Option<Self> {
        Some(match event.event_type {
            AsyncEventType::ERROR => Self::Error(ErrorEvent(event.info)),
            AsyncEventType::HEALTH => Self::Health(HealthEvent(event.info)),
            AsyncEventType::NOTICE => match NoticeEvent(event.info) {
                NoticeEvent::NAMESPACE_ATTRIBUTE_CHANGED | NoticeEvent::ANA_CHANGE => return None,
                NoticeEvent::DISCOVERY_LOG_CHANGE => Self::DiscoveryLog,
                _ => Self::Other(event),
            },
            _ => Self::Other(event),
        })
    }
}

/// Called when something happened to a controller.
pub(super) type EventCallback = Arc<dyn Fn(&Controller, &Event) + Send + Sync>;

/// What may have changed since it was identified.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Stale {
    namespaces: bool,
    ana: bool,
}

impl Stale {
    pub(super) fn note(&mut self, event: AsyncEvent) {
        self.namespaces |= event.is_namespace_change();
        self.ana |= event.is_ana_change();
    }

    pub(super) fn is_any(self) -> bool {
        self.namespaces || self.ana
    }
}

/// Identifying again what changed, in small steps.
#[derive(Default)]
pub(super) struct Refresh {
    stage: Stage,
    /// The association it belongs to.
    association: u64,
    /// Not again before this time.
    not_before: Option<Instant>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    /// Reading which namespaces changed.
    Changed(Sent),
    Identifying(Box<ControllerInit>, Runner),
}

impl Refresh {
    /// When it may begin again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.not_before
    }

    /// One step.
    pub(super) fn step(
        &mut self,
        controller: &Controller,
        mut admin: MutexGuard<'_, Admin>,
        now: Instant,
        notices: &mut Notices,
    ) {
        if self.association != admin.association() {
            (self.stage, self.association) = (Stage::Idle, admin.association());
        }
        if matches!(self.stage, Stage::Idle) {
            if !controller.options().handle_events {
                admin.stale = Stale::default();
            }
            if !admin.stale.is_any() || self.not_before.is_some_and(|time| now < time) {
                return;
            }
            self.not_before = Some(now + REFRESH_PAUSE);
        }
        let stale = match self.stage {
            Stage::Idle => std::mem::take(&mut admin.stale),
            _ => Stale::default(),
        };
        drop(admin);
        if let Err(error) = self.advance(controller, stale, now, notices) {
            tracing::warn!(%error, trid = %controller.trid(), "namespaces could not be identified again");
            if let Stage::Identifying(_, runner) = &mut self.stage {
                runner.abandon(controller);
            }
            self.stage = Stage::Idle;
        }
    }

    fn advance(
        &mut self,
        controller: &Controller,
        stale: Stale,
        now: Instant,
        notices: &mut Notices,
    ) -> Result<()> {
        loop {
            match &mut self.stage {
                Stage::Idle if stale.namespaces => {
                    if controller.options().disable_read_changed_ns_list_log_page {
                        self.identify(controller, ChangedNamespaces::Any, now);
                        continue;
                    }
                    let read = GetLogPage::new(LogPageId::CHANGED_NAMESPACES, 0, CHANGED_LIST as u64)
                        .ok_or_else(|| Error::api_misuse("the size of the changed namespace list"))?;
                    let command = controller.admin(read.to_sqe(u32::MAX)).data_in(CHANGED_LIST);
                    self.stage = Stage::Changed(command.name("Get Log Page (changed namespaces)").send()?);
                    return Ok(());
                }
                Stage::Idle => {
                    let known = controller.info().init.clone();
                    let machine = ControllerInit::reread_ana(controller.init_config(), known, now);
                    self.stage = Stage::Identifying(Box::new(machine), Runner::Idle);
                }
                Stage::Changed(sent) => {
                    let Some(result) = sent.take(controller, None) else { return Ok(()) };
                    let changed = match result {
                        Ok(result) => ChangedNamespaces::parse(&result.data),
                        // Without the list it may be any.
                        Err(error) if error.status().is_some() => ChangedNamespaces::Any,
                        Err(error) => return Err(error),
                    };
                    self.identify(controller, changed, now);
                }
                Stage::Identifying(machine, runner) => {
                    if !runner.poll(controller, now, &mut |outcome| machine.complete(outcome, now))? {
                        return machine.next(now).map(drop);
                    }
                    match machine.next(now)? {
                        Next::Do(action) => runner.begin(action, controller, false)?,
                        Next::Wait(_) => return Ok(()),
                        Next::Ready => {
                            let result = machine.result().clone();
                            self.stage = Stage::Idle;
                            notices.events.extend(controller.identified_again(result));
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn identify(&mut self, controller: &Controller, changed: ChangedNamespaces, now: Instant) {
        tracing::debug!(?changed, "namespaces changed");
        let known = controller.info().init.clone();
        let machine = ControllerInit::rescan_changed(controller.init_config(), known, changed, now);
        self.stage = Stage::Identifying(Box::new(machine), Runner::Idle);
    }
}

impl Info {
    /// What is new.
    pub(super) fn changes_since(&self, before: &Self) -> Vec<Event> {
        let mut events = Vec::new();
        let namespace = |nsid, change| Event::Namespace { nsid, change };
        let find = |info: &Self, nsid| info.namespaces.iter().find(|ns| ns.nsid() == nsid).cloned();
        for known in &before.namespaces {
            if find(self, known.nsid()).is_none() {
                events.push(namespace(known.nsid(), NamespaceChange::Removed));
            }
        }
        for ns in &self.namespaces {
            let nsid = ns.nsid();
            match find(before, nsid) {
                None => events.push(namespace(nsid, NamespaceChange::Added)),
                Some(known) => {
                    if !known.is_same(ns) {
                        events.push(namespace(nsid, NamespaceChange::Replaced));
                    } else if known.blocks() != ns.blocks() {
                        events.push(namespace(nsid, NamespaceChange::Resized));
                    }
                    if let Some(state) = ns.ana_state().filter(|_| known.ana_state() != ns.ana_state()) {
                        events.push(Event::Ana { nsid, state });
                    }
                }
            }
        }
        events
    }
}

impl Controller {
    /// Calls `f` from now on for everything that happens to the controller, instead of what was given before. It is called by
    /// whichever thread processes the admin queue, with no lock held, and must not block: keep alives wait for it. It may use the
    /// handle it is given, but keeping one in it keeps the controller.
    pub fn on_event(&self, f: impl Fn(&Self, &Event) + Send + Sync + 'static) {
        self.lock().on_event = Some(Arc::new(f));
    }

    pub(super) fn tell(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let callback = self.lock().on_event.clone();
        for event in events {
            tracing::debug!(?event, "controller event");
            self.0.watchers.tell(&event);
            if let Some(callback) = &callback {
                callback(self, &event);
            }
        }
    }
}
