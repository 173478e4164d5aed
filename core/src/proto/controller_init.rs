//! Controller initialisation as a machine without I/O: NVMe Base 2.1 §3.5 (memory- and message-based controllers).
//!
//! The caller asks [`ControllerInit::next`] what to do, does it, and reports with [`ControllerInit::complete`]. One thing
//! is asked for at a time. Time is an argument; every state has a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use zerocopy::FromBytes;

use crate::dma::DMA_PAGE;
use crate::error::{Error, Result};
use crate::spec::fabrics::PropertySize;
use crate::spec::features::FeatureId;
use crate::spec::identify::{
    Cns, ControllerType, Csi, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
    IdentifyNamespaceNvm, NamespaceDescriptor, NamespaceDescriptors, NamespaceList, ctratt,
};
use crate::spec::log_page::{GetLogPage, LogPageId};
use crate::spec::registers::{
    Cap, ControllerConfig, ControllerStatus, Crto, Css, PropertyOffset, Shst, Version,
};
use crate::spec::status::CommandKind;
use crate::spec::{AdminOpcode, Cqe, Sqe, Status};
use crate::transport::InitDelays;

mod again;
mod result;
mod state;
#[cfg(test)]
mod tests;

pub use again::ChangedNamespaces;
use result::is_whole_ana_log;
pub use result::{AnaGroup, InitResult, NamespaceInfo, parse_ana};
use state::State;

/// Largest memory page (CC.MPS) that queues are aligned to and padded for, bytes.
pub const MAX_PAGE: u64 = 2 << 20;
/// First and longest pause between two looks at CSTS.
/// What CRTO may ask for at most; it could say nine hours.
const READY_LIMIT: Duration = Duration::from_secs(600);
const CSTS_POLL: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(10));
/// CAP.CRMS: ready with media, the mode in use, and CRTO says how long that takes.
const CRWMS: u8 = 1;
/// How much later than the queue pair's own deadline connecting the admin queue is given up here.
pub const CONNECT_SLACK: Duration = Duration::from_secs(1);
/// Most namespaces taken notice of; 4 KiB of Identify data are kept for each.
pub const MAX_NAMESPACES: usize = 16_384;
/// Most bytes of an ANA log page read.
const MAX_ANA_LOG: u32 = 1 << 20;

/// What the machine has to know beforehand.
#[derive(Clone, Debug)]
pub struct InitConfig {
    /// Registers are properties, reached by commands.
    pub fabrics: bool,
    /// The subsystem asked for is a discovery subsystem.
    pub discovery: bool,
    /// Deadline of one admin command.
    pub admin_timeout: Duration,
    /// Deadline for connecting the admin queue, unless that of a command is longer.
    pub connect_timeout: Duration,
    /// I/O queues to ask for.
    pub num_io_queues: u16,
    /// Keep alive timeout requested in Connect; zero is off.
    pub keep_alive_timeout: Duration,
    /// Read the ANA log page.
    pub read_ana_log: bool,
    /// Host identifier to set on controllers that did not get it with Connect.
    pub host_id: [u8; 16],
    /// Largest transfer of one command of the transport, bytes; the controller's own limit is applied on top.
    pub max_transfer: u32,
    /// Pauses this controller needs.
    pub delays: InitDelays,
}

/// What to do next.
#[derive(Debug)]
pub enum Next {
    /// Do this and report the outcome.
    Do(Action),
    /// Nothing to do before this time.
    Wait(Instant),
    /// Initialisation is done: take the result.
    Ready,
}

/// Something only the outside can do.
#[derive(Debug)]
pub enum Action {
    /// Connect the admin queue, Fabrics Connect included.
    ConnectAdminQueue,
    /// Read a register or property.
    PropertyGet(PropertyOffset, PropertySize),
    /// Write a register or property.
    PropertySet(PropertyOffset, PropertySize, u64),
    /// Write AQA, ASQ and ACQ for the admin queue (memory-based controllers).
    SetAdminQueue,
    /// Let the transport prepare what it needs ([`crate::transport::TransportController::set_up`]; memory-based controllers).
    SetUpTransport(Box<IdentifyController>),
    /// Send an admin command.
    Admin(InitCommand),
}

/// An admin command of the initialisation.
#[derive(Debug)]
pub struct InitCommand {
    /// In words, for messages.
    pub name: &'static str,
    /// The command.
    pub sqe: Sqe,
    /// Bytes the controller returns.
    pub data_in: u32,
    /// Bytes sent with it.
    pub data_out: Vec<u8>,
}

/// What came of an [`Action`].
#[derive(Debug)]
pub enum Outcome<'a> {
    /// [`Action::ConnectAdminQueue`]: the controller identifier.
    Connected {
        /// CNTLID from the Connect response; none for memory-based controllers.
        cntlid: Option<u16>,
    },
    /// [`Action::PropertyGet`]: the value.
    Property(u64),
    /// [`Action::PropertySet`], [`Action::SetAdminQueue`], [`Action::SetUpTransport`]: done.
    Done,
    /// [`Action::Admin`]: the completion and the data returned.
    Admin(&'a Cqe, &'a [u8]),
}

/// The machine.
#[derive(Debug)]
pub struct ControllerInit {
    config: InitConfig,
    state: State,
    /// An action was handed out and its outcome not yet reported.
    busy: bool,
    deadline: Instant,
    /// How long the current state may take, for the message.
    limit: Duration,
    not_before: Option<Instant>,
    pause: Duration,
    cc: ControllerConfig,
    mps: u8,
    /// Zero on controllers without.
    crto: Crto,
    result: InitResult,
    /// Index of the namespace being identified.
    cursor: usize,
    list_after: u32,
    ana: Vec<u8>,
    ana_len: u32,
    /// Only the namespaces are read again; what was set stays set.
    rescan: bool,
    /// Namespaces that need not be identified again if they are still listed.
    unchanged: BTreeMap<u32, NamespaceInfo>,
    /// Namespaces that have to be identified.
    unidentified: BTreeSet<u32>,
}

impl ControllerInit {
    /// A machine at its start.
    #[must_use]
    pub fn new(config: InitConfig, now: Instant) -> Self {
        // The queue pair has a deadline of its own, and knows better what it waited for.
        let limit = config.admin_timeout.max(config.connect_timeout) + CONNECT_SLACK;
        let (discovery, delay) = (config.discovery, config.delays.before_init);
        Self {
            config,
            state: State::ConnectAdminQueue,
            busy: false,
            deadline: now + delay + limit,
            limit,
            not_before: (!delay.is_zero()).then(|| now + delay),
            pause: CSTS_POLL.0,
            cc: ControllerConfig(0),
            mps: 0,
            crto: Crto(0),
            result: InitResult::blank(discovery),
            cursor: 0,
            list_after: 0,
            ana: Vec::new(),
            ana_len: 0,
            rescan: false,
            unchanged: BTreeMap::new(),
            unidentified: BTreeSet::new(),
        }
    }

    /// What is going on, in words.
    #[must_use]
    pub fn state(&self) -> &'static str {
        self.state.text()
    }

    /// When the current state's time is up.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to do next. While an action's outcome is outstanding, [`Next::Wait`] until its deadline.
    ///
    /// # Errors
    /// When the current state's deadline has passed.
    pub fn next(&mut self, now: Instant) -> Result<Next> {
        if self.state == State::Ready {
            return Ok(Next::Ready);
        }
        // Between two looks at CSTS, one that falls due at the deadline is still taken: the status may have changed
        // since, and the caller may have been asleep.
        let last_look = self.not_before.is_some() && !self.busy;
        if now >= self.deadline && !last_look {
            return Err(self.timed_out());
        }
        if self.busy {
            return Ok(Next::Wait(self.deadline));
        }
        if let Some(time) = self.not_before.map(|time| time.min(self.deadline))
            && now < time
        {
            return Ok(Next::Wait(time));
        }
        self.not_before = None;
        self.busy = true;
        Ok(Next::Do(self.action()))
    }

    fn timed_out(&self) -> Error {
        Error::timed_out(self.state.text(), self.limit)
    }

    /// What was found out so far; complete after [`Next::Ready`].
    #[must_use]
    pub fn result(&self) -> &InitResult {
        &self.result
    }

    fn action(&self) -> Action {
        use PropertySize::{Dword, Qword};
        match self.state {
            State::ConnectAdminQueue => Action::ConnectAdminQueue,
            State::ReadVs => Action::PropertyGet(PropertyOffset::VS, Dword),
            State::ReadCap => Action::PropertyGet(PropertyOffset::CAP, Qword),
            State::ReadCrto => Action::PropertyGet(PropertyOffset::CRTO, Dword),
            State::CheckEn => Action::PropertyGet(PropertyOffset::CC, Dword),
            State::DisableWaitReady1 | State::DisableWaitReady0 | State::EnableWaitReady1 => {
                Action::PropertyGet(PropertyOffset::CSTS, Dword)
            }
            State::SetEn0 => {
                Action::PropertySet(PropertyOffset::CC, Dword, u64::from(self.cc.with_en(false).0))
            }
            State::SetAdminQueue => Action::SetAdminQueue,
            State::Enable => Action::PropertySet(PropertyOffset::CC, Dword, u64::from(self.cc.0)),
            State::Identify => identify("Identify Controller", Cns::CONTROLLER, 0, 0),
            State::SetUpTransport => Action::SetUpTransport(self.result.identify.clone()),
            State::ConfigureAer => set_feature(
                "Set Features (asynchronous event configuration)",
                FeatureId::ASYNC_EVENT_CONFIG,
                self.wanted_events(),
                Vec::new(),
            ),
            State::KeepAliveTimeout => Action::Admin(InitCommand {
                name: "Get Features (keep alive timer)",
                sqe: Sqe::admin(AdminOpcode::GET_FEATURES, 0)
                    .with_cdw10(u32::from(FeatureId::KEEP_ALIVE_TIMER.0)),
                data_in: 0,
                data_out: Vec::new(),
            }),
            State::IdentifyControllerNvm => {
                identify("Identify I/O Command Set specific Controller", Cns::CSI_CONTROLLER, 0, 0)
            }
            State::SetNumQueues => {
                let n = u32::from(self.config.num_io_queues.max(1) - 1);
                set_feature(
                    "Set Features (number of queues)",
                    FeatureId::NUMBER_OF_QUEUES,
                    n | n << 16,
                    Vec::new(),
                )
            }
            State::ActiveNamespaces => {
                identify("Identify Active Namespace ID list", Cns::ACTIVE_NAMESPACE_LIST, self.list_after, 0)
            }
            State::IdentifyNamespace => identify("Identify Namespace", Cns::NAMESPACE, self.nsid(), 0),
            State::NamespaceDescriptors => identify(
                "Identify Namespace Identification Descriptors",
                Cns::NAMESPACE_DESCRIPTORS,
                self.nsid(),
                0,
            ),
            State::NamespaceNvm => identify(
                "Identify I/O Command Set specific Namespace",
                Cns::CSI_NAMESPACE,
                self.nsid(),
                u32::from(Csi::NVM.0) << 24,
            ),
            State::AnaLog => {
                let offset = self.ana.len() as u32;
                let len = (self.ana_len - offset).min(self.log_chunk());
                let read = GetLogPage {
                    lid: LogPageId::ANA,
                    lsp: 0,
                    retain_event: false,
                    lsi: 0,
                    numd_z: len / 4 - 1,
                    offset: u64::from(offset),
                };
                Action::Admin(InitCommand {
                    name: "Get Log Page (ANA)",
                    sqe: read.to_sqe(0),
                    data_in: len,
                    data_out: Vec::new(),
                })
            }
            State::HostBehavior => {
                // Base 2.1 Figure 408: byte 2 LBAFEE, extended LBA formats are understood.
                let mut data = vec![0u8; 512];
                data[2] = 1;
                set_feature("Set Features (host behavior support)", FeatureId::HOST_BEHAVIOR_SUPPORT, 0, data)
            }
            State::HostId => set_feature(
                "Set Features (host identifier)",
                FeatureId::HOST_IDENTIFIER,
                1, // EXHID: 128 bits
                self.config.host_id.to_vec(),
            ),
            State::Ready => unreachable!("a ready controller needs no action"),
        }
    }

    /// Reports what came of the action handed out last.
    ///
    /// # Errors
    /// When the controller cannot be used: fatal status, a command that must not fail did, data that makes no sense.
    pub fn complete(&mut self, outcome: Outcome<'_>, now: Instant) -> Result<()> {
        if !std::mem::replace(&mut self.busy, false) {
            return Err(Error::api_misuse("an outcome was reported for which no action was outstanding"));
        }
        match outcome {
            Outcome::Connected { cntlid } if self.state == State::ConnectAdminQueue => {
                self.result.cntlid = cntlid.unwrap_or(0);
                self.enter(State::ReadVs, now);
            }
            Outcome::Property(value) => self.property(value, now)?,
            Outcome::Done => match self.state {
                State::SetEn0 => {
                    self.enter_wait(State::DisableWaitReady0, now);
                    let delay = self.config.delays.after_disable;
                    if !delay.is_zero() {
                        self.not_before = Some(now + delay);
                        self.deadline += delay;
                    }
                }
                State::SetAdminQueue => self.enter(State::Enable, now),
                State::Enable => self.enter_wait(State::EnableWaitReady1, now),
                State::SetUpTransport => self.enter(State::ConfigureAer, now),
                _ => return Err(self.mismatch()),
            },
            Outcome::Admin(cqe, data) => self.admin(cqe, data, now)?,
            Outcome::Connected { .. } => return Err(self.mismatch()),
        }
        Ok(())
    }

    fn mismatch(&self) -> Error {
        Error::api_misuse(format!("an outcome was reported that does not fit {}", self.state.text()))
    }

    fn property(&mut self, value: u64, now: Instant) -> Result<()> {
        let csts = ControllerStatus(value as u32);
        match self.state {
            State::ReadVs => {
                self.result.version = Version(value as u32);
                self.enter(State::ReadCap, now);
            }
            State::ReadCap => {
                self.result.cap = Cap(value);
                if self.result.cap.min_page_size() > MAX_PAGE {
                    return Err(Error::unsupported(format!(
                        "the controller's smallest page is {} bytes (CAP.MPSMIN), above {MAX_PAGE}",
                        self.result.cap.min_page_size()
                    )));
                }
                self.mps = self.result.cap.select_mps(DMA_PAGE as u64).ok_or_else(|| {
                    Error::unsupported(format!(
                        "the controller's smallest page, 2^{} bytes (CAP.MPSMIN), is larger than its largest, 2^{} (CAP.MPSMAX)",
                        12 + self.result.cap.mpsmin(),
                        12 + self.result.cap.mpsmax()
                    ))
                })?;
                let next = if self.result.cap.crms() & CRWMS != 0 { State::ReadCrto } else { State::CheckEn };
                self.enter(next, now);
            }
            State::ReadCrto => {
                self.crto = Crto(value as u32);
                self.enter(State::CheckEn, now);
            }
            State::CheckEn => {
                self.cc = ControllerConfig(value as u32);
                // Base 2.1 §3.5.1: an enabled controller has to be disabled first, and that only once it is ready. A
                // disabled one may still be busy with an earlier reset.
                let wait = if self.cc.en() { State::DisableWaitReady1 } else { State::DisableWaitReady0 };
                self.enter_wait(wait, now);
            }
            // One that was shut down and left enabled may never become ready again (Base 2.1 §3.6.1).
            State::DisableWaitReady1 if csts.rdy() || csts.cfs() || csts.shst() == Shst::COMPLETE => {
                self.enter(State::SetEn0, now);
            }
            State::DisableWaitReady0 if !csts.rdy() => self.enter_disabled(now),
            State::EnableWaitReady1 if csts.cfs() => {
                return Err(Error::new(crate::error::ErrorKind::ControllerFatal));
            }
            State::EnableWaitReady1 if csts.rdy() => self.enter(State::Identify, now),
            State::DisableWaitReady1 | State::DisableWaitReady0 | State::EnableWaitReady1 => {
                if now >= self.deadline {
                    return Err(self.timed_out());
                }
                self.not_before = Some(now + self.pause);
                self.pause = (self.pause * 2).min(CSTS_POLL.1);
            }
            _ => return Err(self.mismatch()),
        }
        Ok(())
    }

    fn enter_disabled(&mut self, now: Instant) {
        self.cc = ControllerConfig(0)
            .with_en(true)
            .with_css(self.result.cap.css().to_select())
            .with_mps(self.mps)
            .with_iosqes(6)
            .with_iocqes(4);
        self.enter(if self.config.fabrics { State::Enable } else { State::SetAdminQueue }, now);
    }

    fn enter(&mut self, state: State, now: Instant) {
        tracing::trace!(from = self.state.text(), to = state.text(), "controller initialisation");
        self.state = state;
        self.limit = self.config.admin_timeout;
        self.deadline = now + self.limit;
    }

    /// Enters a state that polls CSTS; CAP.TO bounds it (Base 2.1 §3.1.4.1; units of 500 ms, at least one). Becoming ready may take longer
    /// than that can say (CRTO.CRWMT, §3.1.4.21), but never less: there are controllers whose CRTO is zero, and [`READY_LIMIT`] at most.
    fn enter_wait(&mut self, state: State, now: Instant) {
        self.enter(state, now);
        self.limit = self.result.cap.ready_timeout().max(Duration::from_millis(500));
        if state != State::DisableWaitReady0 {
            self.limit = self.limit.max(self.crto.ready_with_media().min(READY_LIMIT));
        }
        self.deadline = now + self.limit;
        self.pause = CSTS_POLL.0;
    }

    fn wanted_events(&self) -> u32 {
        // Bits 4:0: SMART / health critical warnings. The notices in bits 31:8 are those of OAES (Base 2.1 Figure 395).
        const NOTICES: u32 = 1 << 8 | 1 << 9 | 1 << 11 | 1 << 31;
        let health = if self.result.discovery { 0 } else { 0x1f };
        self.result.identify.oaes.get() & NOTICES | health
    }

    fn admin(&mut self, cqe: &Cqe, data: &[u8], now: Instant) -> Result<()> {
        let status = cqe.status();
        let ok = status.is_success();
        let fail = |name: &'static str| Err(Error::command(CommandKind::Admin, name, status));
        match self.state {
            State::Identify => {
                if !ok {
                    return fail("Identify Controller");
                }
                *self.result.identify = parse(data, "Identify Controller")?;
                if self.result.identify.cntrltype == ControllerType::DISCOVERY {
                    self.result.discovery = true;
                }
                self.enter(
                    if self.config.fabrics { State::ConfigureAer } else { State::SetUpTransport },
                    now,
                );
            }
            State::ConfigureAer => {
                if ok {
                    self.result.async_events = self.wanted_events();
                } else {
                    tracing::debug!(%status, "asynchronous event configuration was refused");
                }
                let keep_alive = !self.config.keep_alive_timeout.is_zero()
                    && (self.result.discovery || self.result.identify.kas.get() != 0);
                if keep_alive { self.enter(State::KeepAliveTimeout, now) } else { self.after_keep_alive(now) }
            }
            State::KeepAliveTimeout => {
                // A controller without the feature keeps the value of Connect.
                let adopted = Duration::from_millis(u64::from(cqe.dw0.get()));
                self.result.keep_alive_timeout =
                    if ok && !adopted.is_zero() { adopted } else { self.config.keep_alive_timeout };
                self.after_keep_alive(now);
            }
            State::IdentifyControllerNvm => {
                if ok {
                    self.result.identify_nvm =
                        IdentifyControllerNvm::read_from_prefix(data).ok().map(|(nvm, _)| nvm);
                }
                self.enter(State::SetNumQueues, now);
            }
            State::SetNumQueues => {
                if !ok {
                    return fail("Set Features (number of queues)");
                }
                // DW0: granted submission queues 15:0 and completion queues 31:16, 0's based.
                let granted = (cqe.dw0.get() & 0xffff).min(cqe.dw0.get() >> 16) + 1;
                self.result.num_io_queues =
                    granted.min(u32::from(self.config.num_io_queues)).min(65_535) as u16;
                self.enter(State::ActiveNamespaces, now);
            }
            State::ActiveNamespaces => self.active_namespaces(ok, status, data, now)?,
            State::IdentifyNamespace => {
                if ok {
                    let identify: IdentifyNamespace = parse(data, "Identify Namespace")?;
                    if identify.nsze.get() == 0 {
                        self.drop_namespace(now);
                    } else {
                        if let Some(ns) = self.result.namespaces.get_mut(self.cursor) {
                            ns.nguid = identify.nguid();
                            ns.eui64 = identify.eui64();
                            *ns.identify = identify;
                        }
                        let descriptors = self.result.version >= Version::V1_3;
                        if descriptors {
                            self.enter(State::NamespaceDescriptors, now);
                        } else {
                            self.next_namespace(now);
                        }
                    }
                } else {
                    // It went away since it was listed, or belongs to a command set without this structure.
                    tracing::debug!(nsid = self.nsid(), %status, "namespace left out");
                    self.drop_namespace(now);
                }
            }
            State::NamespaceDescriptors => {
                if ok {
                    self.descriptors(data);
                }
                // What CNS 05h returns for another command set has another layout.
                let nvm = self.namespace().is_some_and(|ns| Csi(ns.csi) == Csi::NVM);
                if nvm && self.cc.css() == Css::ALL_SUPPORTED {
                    self.enter(State::NamespaceNvm, now);
                } else {
                    self.next_namespace(now);
                }
            }
            State::NamespaceNvm => {
                if ok && let Some(ns) = self.result.namespaces.get_mut(self.cursor) {
                    ns.nvm = IdentifyNamespaceNvm::read_from_prefix(data).ok().map(|(nvm, _)| Box::new(nvm));
                }
                self.next_namespace(now);
            }
            State::AnaLog => self.ana_log(ok, data, now),
            State::HostBehavior => {
                self.enter(if self.config.fabrics { State::Ready } else { State::HostId }, now);
            }
            State::HostId => self.enter(State::Ready, now),
            _ => return Err(self.mismatch()),
        }
        Ok(())
    }

    fn after_keep_alive(&mut self, now: Instant) {
        let next = if self.result.discovery {
            // A discovery controller has no I/O queues and no namespaces.
            State::Ready
        } else if self.cc.css() == Css::ALL_SUPPORTED {
            State::IdentifyControllerNvm
        } else {
            State::SetNumQueues
        };
        self.enter(next, now);
    }

    fn active_namespaces(&mut self, ok: bool, status: Status, data: &[u8], now: Instant) -> Result<()> {
        let mut full = false;
        if ok {
            let before = self.result.namespaces.len();
            for nsid in NamespaceList::new(data, self.list_after) {
                let nsid = nsid.map_err(|e| Error::peer_misbehaved(e.to_string()))?;
                if self.result.namespaces.len() == MAX_NAMESPACES {
                    tracing::warn!(
                        limit = MAX_NAMESPACES,
                        "more active namespaces than can be kept; the rest are left out"
                    );
                    break;
                }
                self.list_after = nsid;
                let listed = self.listed(nsid);
                self.result.namespaces.push(listed);
            }
            full = self.result.namespaces.len() - before == NamespaceList::CAPACITY
                && self.result.namespaces.len() < MAX_NAMESPACES
                && self.list_after < 0xffff_fffd;
        } else if self.result.version < Version::V1_1 || status.is(Status::INVALID_FIELD) {
            // Controllers of version 1.0 have no list, and some later ones neither: namespaces are 1..=NN.
            let nn = self.result.identify.nn.get().min(MAX_NAMESPACES as u32);
            self.result.namespaces = (1..=nn).map(|nsid| self.listed(nsid)).collect();
        } else {
            return Err(Error::command(CommandKind::Admin, "Identify Active Namespace ID list", status));
        }
        if full {
            self.enter(State::ActiveNamespaces, now);
        } else {
            self.cursor = 0;
            self.continue_namespaces(now);
        }
        Ok(())
    }

    fn namespace(&self) -> Option<&NamespaceInfo> {
        self.result.namespaces.get(self.cursor)
    }

    fn nsid(&self) -> u32 {
        self.namespace().map_or(0, |ns| ns.nsid)
    }

    /// Leaves out the namespace that was asked about: marked now, taken out with all others at the end, since there may be many.
    fn drop_namespace(&mut self, now: Instant) {
        if let Some(ns) = self.result.namespaces.get_mut(self.cursor) {
            ns.nsid = 0;
        }
        self.next_namespace(now);
    }

    fn next_namespace(&mut self, now: Instant) {
        self.cursor += 1;
        self.continue_namespaces(now);
    }

    fn continue_namespaces(&mut self, now: Instant) {
        self.skip_identified();
        if self.cursor < self.result.namespaces.len() {
            self.enter(State::IdentifyNamespace, now);
        } else {
            self.result.namespaces.retain(|ns| ns.nsid != 0);
            self.after_namespaces(now);
        }
    }

    fn descriptors(&mut self, data: &[u8]) {
        let Some(ns) = self.result.namespaces.get_mut(self.cursor) else { return };
        for descriptor in NamespaceDescriptors::new(data) {
            match descriptor {
                Ok(NamespaceDescriptor::Eui64(id)) => ns.eui64 = nonzero(id).or(ns.eui64),
                Ok(NamespaceDescriptor::Nguid(id)) => ns.nguid = nonzero(id).or(ns.nguid),
                Ok(NamespaceDescriptor::Uuid(id)) => ns.uuid = nonzero(id),
                Ok(NamespaceDescriptor::CommandSet(csi)) => ns.csi = csi.0,
                Ok(_) => {}
                Err(error) => {
                    // Names are a convenience; a namespace without them can still be used.
                    tracing::warn!(nsid = ns.nsid, %error, "namespace identification descriptor left out");
                }
            }
        }
    }

    fn after_namespaces(&mut self, now: Instant) {
        let identify = &self.result.identify;
        if self.config.read_ana_log && identify.reports_ana() {
            // Header of 16 bytes, a descriptor of 32 per group, four bytes per namespace (Base 2.1 §5.1.12.1.13).
            let namespaces = match identify.mnan.get() {
                0 => identify.nn.get(),
                mnan => mnan.min(identify.nn.get()),
            };
            let len = 16u64 + 32 * u64::from(identify.nanagrpid.get()) + 4 * u64::from(namespaces);
            self.ana_len = len.min(u64::from(MAX_ANA_LOG)) as u32;
            self.enter(State::AnaLog, now);
        } else {
            self.after_ana(now);
        }
    }

    fn ana_log(&mut self, ok: bool, data: &[u8], now: Instant) {
        // The page may end before the length estimated; a controller then refuses what lies beyond.
        if ok && data.len().is_multiple_of(4) {
            self.ana.extend_from_slice(data);
            let more = (self.ana.len() as u32) < self.ana_len && !data.is_empty();
            if more && !is_whole_ana_log(&self.ana) {
                return self.enter(State::AnaLog, now);
            }
        }
        if !self.ana.is_empty() {
            self.result.ana_groups = parse_ana(&self.ana);
        }
        self.after_ana(now);
    }

    /// Bytes of a log page asked for at once, a multiple of 4.
    fn log_chunk(&self) -> u32 {
        let page = self.result.cap.min_page_size();
        let mdts = self.result.identify.max_transfer_size(page).unwrap_or(u64::MAX);
        let limit = u64::from(self.config.max_transfer).min(mdts).clamp(4096, 64 * 1024);
        limit as u32 & !3
    }

    fn after_ana(&mut self, now: Instant) {
        let next = if self.rescan {
            State::Ready
        } else if self.result.identify.has_attribute(ctratt::EXTENDED_LBA_FORMATS) {
            State::HostBehavior
        } else if self.config.fabrics {
            State::Ready
        } else {
            State::HostId
        };
        self.enter(next, now);
    }
}

fn nonzero<const N: usize>(id: [u8; N]) -> Option<[u8; N]> {
    (id != [0; N]).then_some(id)
}

fn parse<T: FromBytes>(data: &[u8], what: &str) -> Result<T> {
    T::read_from_prefix(data)
        .map(|(value, _)| value)
        .map_err(|_| Error::peer_misbehaved(format!("{what} returned only {} bytes", data.len())))
}

fn identify(name: &'static str, cns: Cns, nsid: u32, cdw11: u32) -> Action {
    Action::Admin(InitCommand {
        name,
        sqe: Sqe::admin(AdminOpcode::IDENTIFY, nsid).with_cdw10(u32::from(cns.0)).with_cdw11(cdw11),
        data_in: 4096,
        data_out: Vec::new(),
    })
}

fn set_feature(name: &'static str, feature: FeatureId, cdw11: u32, data_out: Vec<u8>) -> Action {
    Action::Admin(InitCommand {
        name,
        sqe: Sqe::admin(AdminOpcode::SET_FEATURES, 0).with_cdw10(u32::from(feature.0)).with_cdw11(cdw11),
        data_in: 0,
        data_out,
    })
}
