//! A controller: properties, asynchronous events, keep alive, and the state the admin commands work on.
//!
//! Everything here is reached through [`crate::queue::Queue`], which has checked that the command belongs to the
//! controller. Nothing blocks and nothing does I/O but on the namespaces' backing.

mod features;
mod identify;
mod log_page;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvmf_core::spec::dim::{DimData, dim_task};
use nvmf_core::spec::fabrics::{PropertySize, property_set_value};
use nvmf_core::spec::features::{AsyncEventConfig, FeatureSelect, NumberOfQueues};
use nvmf_core::spec::identify::IDENTIFY_SIZE;
use nvmf_core::spec::log_page::{AsyncEvent, ErrorLogEntry, GetLogPage, LogPageId, NoticeEvent};
use nvmf_core::spec::registers::{Cap, ControllerConfig, ControllerStatus, Css, PropertyOffset, Shn, Shst};
use nvmf_core::spec::{AdminOpcode, Cqe, Sqe, Status};
use nvmf_core::{HostId, Nqn};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

use crate::config::{ERROR_LOG_ENTRIES, MAX_AERS};
use crate::data::Data;
use crate::subsystem::Subsystem;
use crate::target::{Front, Target};
use features::Features;

/// Wakes whoever serves a queue.
pub(crate) type Notify = Arc<dyn Fn() + Send + Sync>;

/// "Invalid Field in Command", not to be retried.
pub(crate) const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();

/// No keep alive deadline.
const NEVER: u64 = u64::MAX;

/// How a controller takes an admin command.
pub(crate) enum Admin {
    /// It is done; the 64-bit result.
    Done(u64),
    /// It is answered later, through [`Controller::take_completions`].
    Later,
}

pub(crate) struct Controller {
    pub(crate) cntlid: u16,
    pub(crate) hostnqn: Nqn,
    pub(crate) hostid: HostId,
    pub(crate) front: Front,
    pub(crate) local: Local,
    pub(crate) subsystem: Arc<Subsystem>,
    target: Arc<Target>,
    /// CSTS.RDY, for the hot path.
    ready: AtomicBool,
    dead: AtomicBool,
    /// Counts resets: I/O queues of an earlier life of the controller are gone.
    epoch: AtomicU32,
    /// When the keep alive timer runs out, milliseconds since the target's start.
    keep_alive_until: AtomicU64,
    state: Mutex<State>,
}

struct State {
    cc: ControllerConfig,
    csts: ControllerStatus,
    features: Features,
    /// Outstanding Asynchronous Event Requests.
    aers: VecDeque<u16>,
    events: VecDeque<AsyncEvent>,
    /// By event type: reported, and masked until this log page is read (Base 2.1 §5.1.2).
    masked: [Option<LogPageId>; 8],
    /// Completions of the admin queue that are ready.
    completions: Vec<Cqe>,
    changed_namespaces: BTreeSet<u32>,
    error_log: VecDeque<ErrorLogEntry>,
    error_count: u64,
    queues: BTreeMap<u16, Notify>,
    /// Commands held back by a fault, which an Abort can reach: queue and command identifier, whether it was aborted.
    held: BTreeMap<(u16, u16), bool>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("cntlid", &self.cntlid)
            .field("subnqn", self.subsystem.nqn())
            .field("hostnqn", &self.hostnqn)
            .finish_non_exhaustive()
    }
}

/// The association a new controller is made for.
pub(crate) struct Association {
    pub(crate) hostnqn: Nqn,
    pub(crate) hostid: HostId,
    pub(crate) front: Front,
    pub(crate) kato_ms: u32,
    pub(crate) local: Local,
}

/// What a controller behind registers says of itself that others do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Local {
    /// CAP.MPSMIN and CAP.MPSMAX.
    pub(crate) pages: (u8, u8),
    /// Doorbell Buffer Config is there.
    pub(crate) shadow_doorbells: bool,
    /// PCI vendor.
    pub(crate) vendor: u16,
    /// RTD3E, microseconds.
    pub(crate) shutdown_us: u32,
}

impl Controller {
    pub(crate) fn new(
        cntlid: u16,
        target: Arc<Target>,
        subsystem: Arc<Subsystem>,
        association: Association,
        admin_queue: Notify,
    ) -> Self {
        let features = Features::new(&target.config, association.kato_ms);
        let controller = Self {
            cntlid,
            hostnqn: association.hostnqn,
            hostid: association.hostid,
            front: association.front,
            local: association.local,
            subsystem,
            target,
            ready: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            keep_alive_until: AtomicU64::new(NEVER),
            state: Mutex::new(State {
                cc: ControllerConfig(0),
                csts: ControllerStatus(0),
                features,
                aers: VecDeque::new(),
                events: VecDeque::new(),
                masked: [None; 8],
                completions: Vec::new(),
                changed_namespaces: BTreeSet::new(),
                error_log: VecDeque::new(),
                error_count: 0,
                queues: BTreeMap::from([(0, admin_queue)]),
                held: BTreeMap::new(),
            }),
        };
        controller.restart_keep_alive(&controller.lock().features);
        controller
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock; should it, the state is as whole as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether commands other than fabrics ones are taken: CC.EN and CSTS.RDY.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    // --- life --------------------------------------------------------------------------------------------------

    /// Ends the controller: its queues are closed as soon as they notice.
    pub(crate) fn kill(&self, why: &str) {
        if !self.dead.swap(true, Ordering::AcqRel) {
            tracing::info!(subnqn = %self.subsystem.nqn(), cntlid = self.cntlid, why, "controller ended");
        }
        self.ready.store(false, Ordering::Release);
        let queues: Vec<Notify> = self.lock().queues.values().cloned().collect();
        queues.iter().for_each(|notify| notify());
    }

    /// Whether the controller is gone. Also looks at the keep alive timer (Base 2.1 §3.9).
    pub(crate) fn is_dead(&self, now: Instant) -> bool {
        if self.dead.load(Ordering::Acquire) {
            return true;
        }
        let until = self.keep_alive_until.load(Ordering::Acquire);
        if until != NEVER && self.target.millis(now) >= until {
            self.kill("the keep alive timer ran out");
            return true;
        }
        false
    }

    /// When the keep alive timer runs out.
    pub(crate) fn keep_alive_deadline(&self) -> Option<Instant> {
        match self.keep_alive_until.load(Ordering::Acquire) {
            NEVER => None,
            until => Some(self.target.started + Duration::from_millis(until)),
        }
    }

    /// KATO as it is set.
    pub(crate) fn keep_alive_timeout(&self) -> Duration {
        Duration::from_millis(self.lock().features.kato_ms.into())
    }

    fn restart_keep_alive(&self, features: &Features) {
        let until = match features.kato_ms {
            0 => NEVER,
            ms => self.target.millis(Instant::now()) + u64::from(ms),
        };
        self.keep_alive_until.store(until, Ordering::Release);
    }

    // --- queues ------------------------------------------------------------------------------------------------

    /// Takes an I/O queue in. `Err` is the status Connect fails with; `true` when the queue identifier is at fault.
    pub(crate) fn add_queue(&self, qid: u16, notify: Notify) -> Result<u32, (Status, bool)> {
        let mut state = self.lock();
        if !self.is_ready() {
            return Err((Status::COMMAND_SEQUENCE_ERROR.with_dnr(), false));
        }
        let granted = state.features.granted_queues(&self.target.config);
        // Fabrics know pairs only; on PCI the two kinds are created, and counted, one by one.
        let most = if self.front == Front::Pci { granted.submission } else { granted.usable_pairs() };
        if u32::from(qid) > most {
            return Err((Status::CONNECT_INVALID_PARAMETERS.with_dnr(), true));
        }
        if state.queues.contains_key(&qid) {
            return Err((Status::COMMAND_SEQUENCE_ERROR.with_dnr(), false));
        }
        state.queues.insert(qid, notify);
        Ok(self.epoch())
    }

    /// A queue is closed. Without its admin queue the controller ends (Base 2.1 §3.3.2).
    pub(crate) fn remove_queue(&self, qid: u16, epoch: u32) {
        let ends = qid == 0 && self.front != Front::Pci;
        if ends {
            self.subsystem.remove_controller(self.cntlid);
            self.kill("its admin queue was closed");
        }
        let mut state = self.lock();
        if ends || (qid != 0 && epoch == self.epoch()) {
            state.queues.remove(&qid);
        }
        state.held.retain(|&(held_qid, _), _| held_qid != qid);
    }

    /// A command is held back by a fault.
    pub(crate) fn hold(&self, qid: u16, cid: u16) {
        self.lock().held.insert((qid, cid), false);
    }

    /// A held command goes on, or its queue asks whether it was aborted meanwhile.
    pub(crate) fn unhold(&self, qid: u16, cid: u16) {
        self.lock().held.remove(&(qid, cid));
    }

    pub(crate) fn was_aborted(&self, qid: u16, cid: u16) -> bool {
        self.lock().held.get(&(qid, cid)).copied().unwrap_or(false)
    }

    // --- properties --------------------------------------------------------------------------------------------

    pub(crate) fn cap(&self) -> Cap {
        let mqes_z = u64::from(self.target.config.max_queue_entries - 1);
        // CQR (16), TO 10 s (31:24), CSS: NVM command set (37) and, but for discovery, CNS 1Ch (43).
        let css = if self.subsystem.is_discovery() { 1 << 37 } else { 1 << 37 | 1 << 43 };
        let (min, max) = self.local.pages;
        Cap(mqes_z | 1 << 16 | 20 << 24 | css | u64::from(min) << 48 | u64::from(max) << 52)
    }

    pub(crate) fn property_get(&self, sqe: &Sqe) -> Result<u64, Status> {
        let (offset, size) = property(sqe)?;
        let value = match offset {
            PropertyOffset::CAP => self.cap().0,
            PropertyOffset::VS => u64::from(self.target.config.version.0),
            PropertyOffset::CC => u64::from(self.lock().cc.0),
            PropertyOffset::CSTS => u64::from(self.lock().csts.0),
            _ => return Err(INVALID_FIELD),
        };
        if offset.is_64_bit() != (size == PropertySize::Qword) {
            return Err(INVALID_FIELD);
        }
        Ok(value)
    }

    pub(crate) fn property_set(&self, sqe: &Sqe) -> Result<(), Status> {
        let (offset, size) = property(sqe)?;
        // CC is the only property that can be written: NSSR and the others are not supported, CAP, VS and CSTS read only.
        if offset != PropertyOffset::CC || size != PropertySize::Dword {
            return Err(INVALID_FIELD);
        }
        self.write_cc(ControllerConfig(property_set_value(sqe) as u32));
        Ok(())
    }

    pub(crate) fn write_cc(&self, cc: ControllerConfig) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.cc, cc);
        if cc.en() && !before.en() {
            state.csts = if self.can_enable(cc) {
                ControllerStatus(0).with_rdy(true)
            } else {
                tracing::debug!(?cc, "the controller cannot be enabled so");
                ControllerStatus(0).with_cfs(true)
            };
            self.ready.store(state.csts.rdy(), Ordering::Release);
        } else if !cc.en() && before.en() {
            self.reset(&mut state);
        }
        if cc.shn() != Shn::NONE && before.shn() != cc.shn() {
            // Nothing has to be saved: shutdown is done at once.
            state.csts = state.csts.with_shst(Shst::COMPLETE);
        }
    }

    fn can_enable(&self, cc: ControllerConfig) -> bool {
        let css = match cc.css() {
            Css::NVM => true,
            Css::ALL_SUPPORTED => self.cap().css().io_command_sets(),
            _ => false,
        };
        // On PCI the sizes may be set as late as before the first I/O queue is created (Base 2.1 §3.1.4.5).
        let unset = self.front == Front::Pci && cc.iosqes() == 0 && cc.iocqes() == 0;
        let sizes = self.subsystem.is_discovery() || unset || (cc.iosqes() == 6 && cc.iocqes() == 4);
        let (min, max) = self.local.pages;
        css && sizes && (min..=max).contains(&cc.mps()) && cc.ams() == 0
    }

    /// A controller level reset: I/O queues are deleted, events forgotten, features as at the start. On fabrics the admin queue
    /// and with it the association stay (Base 2.1 §3.7.2), so that event requests have to be answered; on PCI the admin queue
    /// goes as well and whoever serves it drops the answers.
    fn reset(&self, state: &mut State) {
        self.ready.store(false, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let kato_ms = if self.front == Front::Pci { 0 } else { state.features.kato_ms };
        state.csts = ControllerStatus(0);
        state.features = Features::new(&self.target.config, kato_ms);
        self.restart_keep_alive(&state.features);
        state.events.clear();
        state.masked = [None; 8];
        state.changed_namespaces.clear();
        while let Some(cid) = state.aers.pop_front() {
            state.complete(Cqe::new(cid, 0, Status::ABORTED_SQ_DELETION));
        }
        let admin = state.queues.remove(&0);
        state.queues.values().for_each(|notify| notify());
        state.queues = admin.into_iter().map(|notify| (0, notify)).collect();
    }

    // --- behind registers --------------------------------------------------------------------------------------

    pub(crate) fn csts(&self) -> ControllerStatus {
        self.lock().csts
    }

    /// Queues the host may create.
    pub(crate) fn granted_queues(&self) -> NumberOfQueues {
        self.lock().features.granted_queues(&self.target.config)
    }

    /// CSTS.CFS: nothing works until the next reset (Base 2.1 §9.5).
    pub(crate) fn fatal(&self, why: &str) {
        tracing::warn!(subnqn = %self.subsystem.nqn(), cntlid = self.cntlid, why, "controller fatal status");
        self.ready.store(false, Ordering::Release);
        let mut state = self.lock();
        state.csts = state.csts.with_cfs(true);
    }

    /// A controller level reset that comes from the function, whatever CC is: all is as at the start, and a controller that
    /// was killed is there again. What was outstanding gets no answer.
    pub(crate) fn start_over(&self) {
        let mut state = self.lock();
        state.cc = ControllerConfig(0);
        self.reset(&mut state);
        state.completions.clear();
        self.dead.store(false, Ordering::Release);
    }

    // --- asynchronous events -----------------------------------------------------------------------------------

    /// Something happened; the host hears of it if it asked for events of this kind.
    pub(crate) fn raise(&self, event: AsyncEvent, kind: AsyncEventConfig) {
        let mut state = self.lock();
        if state.features.async_events.contains(kind) && !state.events.contains(&event) {
            state.events.push_back(event);
            state.deliver();
        }
    }

    pub(crate) fn namespace_changed(&self, nsid: u32) {
        self.lock().changed_namespaces.insert(nsid);
        let event =
            AsyncEvent::notice(NoticeEvent::NAMESPACE_ATTRIBUTE_CHANGED, LogPageId::CHANGED_NAMESPACES);
        self.raise(event, AsyncEventConfig::NAMESPACE_ATTRIBUTE);
    }

    /// Completions of the admin queue that became ready since the last call, without SQHD.
    pub(crate) fn take_completions(&self) -> Vec<Cqe> {
        std::mem::take(&mut self.lock().completions)
    }

    /// A log page was read: events it stands for may be reported again.
    fn log_page_read(&self, lid: LogPageId) {
        let mut state = self.lock();
        for masked in &mut state.masked {
            if *masked == Some(lid) {
                *masked = None;
            }
        }
        if lid == LogPageId::CHANGED_NAMESPACES {
            state.changed_namespaces.clear();
        }
        state.deliver();
    }

    fn async_event_request(&self, cid: u16) -> Result<Admin, Status> {
        let mut state = self.lock();
        if state.aers.len() >= MAX_AERS {
            return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr());
        }
        state.aers.push_back(cid);
        state.deliver();
        Ok(Admin::Later)
    }

    // --- admin commands ----------------------------------------------------------------------------------------

    /// Executes an admin command that is not a fabrics command.
    pub(crate) fn admin(&self, sqe: &Sqe, data: Data<'_>) -> Result<Admin, Status> {
        let opcode = AdminOpcode(sqe.opcode);
        if sqe.flags & 3 != 0 {
            return Err(INVALID_FIELD);
        }
        match opcode {
            AdminOpcode::IDENTIFY => self.identify(sqe, data).map(|()| Admin::Done(0)),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(sqe, data).map(|()| Admin::Done(0)),
            AdminOpcode::GET_FEATURES => self.get_features(sqe, data).map(|dw0| Admin::Done(dw0.into())),
            AdminOpcode::SET_FEATURES => self.set_features(sqe, data).map(|dw0| Admin::Done(dw0.into())),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                data.none()?;
                self.async_event_request(sqe.cid.get())
            }
            AdminOpcode::KEEP_ALIVE => {
                data.none()?;
                self.restart_keep_alive(&self.lock().features);
                Ok(Admin::Done(0))
            }
            AdminOpcode::ABORT if !self.subsystem.is_discovery() => {
                data.none()?;
                Ok(Admin::Done(self.abort(sqe)))
            }
            AdminOpcode::DISCOVERY_INFORMATION_MANAGEMENT
                if self.subsystem.is_discovery() && self.target.config.central_discovery =>
            {
                self.discovery_information(sqe, data).map(|()| Admin::Done(0))
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    /// Discovery Information Management (Base 2.1 §5.3.4).
    fn discovery_information(&self, sqe: &Sqe, data: Data<'_>) -> Result<(), Status> {
        let Data::Out(bytes) = data else { return Err(INVALID_FIELD) };
        let data = DimData::parse(bytes).map_err(|error| {
            tracing::debug!(%error, "a registration was refused");
            INVALID_FIELD
        })?;
        match self.target.register(dim_task(sqe), data) {
            true => Ok(()),
            false => Err(INVALID_FIELD),
        }
    }

    /// Abort (Base 2.1 §5.1.1). DW0 bit 0 says whether the command was *not* aborted. Commands are executed as they come;
    /// what can be aborted are event requests and commands a fault holds back.
    fn abort(&self, sqe: &Sqe) -> u64 {
        let (sqid, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
        let mut state = self.lock();
        if sqid == 0
            && let Some(index) = state.aers.iter().position(|&aer| aer == cid)
        {
            state.aers.remove(index);
            state.complete(Cqe::new(cid, 0, Status::ABORT_REQUESTED));
            return 0;
        }
        let Some(aborted) = state.held.get_mut(&(sqid, cid)) else { return 1 };
        *aborted = true;
        if let Some(notify) = state.queues.get(&sqid) {
            notify();
        }
        0
    }

    /// Puts a failed command into the Error Information log.
    pub(crate) fn log_error(&self, qid: u16, sqe: &Sqe, status: Status) {
        let mut state = self.lock();
        state.error_count += 1;
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = U64::new(state.error_count);
        entry.sqid = U16::new(qid);
        entry.cid = sqe.cid;
        entry.status_phase = U16::new(status.0 << 1);
        entry.parameter_error_location = U16::MAX_VALUE;
        entry.lba = U64::new(if qid == 0 { 0 } else { sqe.slba() });
        entry.nsid = if sqe.opcode == AdminOpcode::FABRICS.0 { U32::ZERO } else { sqe.nsid };
        entry.opcode = sqe.opcode;
        entry.log_page_version = 1;
        state.error_log.truncate(ERROR_LOG_ENTRIES - 1);
        state.error_log.push_front(entry);
    }
}

impl State {
    /// Completes event requests as far as there are requests and events whose type is not masked.
    fn deliver(&mut self) {
        while !self.aers.is_empty() {
            let masked = &self.masked;
            let next = self.events.iter().position(|e| masked[usize::from(e.event_type.0 & 7)].is_none());
            let Some(event) = next.and_then(|index| self.events.remove(index)) else { return };
            let Some(cid) = self.aers.pop_front() else { return };
            self.masked[usize::from(event.event_type.0 & 7)] = Some(event.log_page);
            self.complete(Cqe::new(cid, 0, Status::SUCCESS).with_dw0(event.to_dw0()));
        }
    }

    fn complete(&mut self, cqe: Cqe) {
        self.completions.push(cqe);
        if let Some(notify) = self.queues.get(&0) {
            notify();
        }
    }
}

/// Bytes of data an admin command other than fabrics ones moves.
pub(crate) fn data_len(sqe: &Sqe) -> u64 {
    match AdminOpcode(sqe.opcode) {
        AdminOpcode::IDENTIFY => IDENTIFY_SIZE as u64,
        AdminOpcode::GET_LOG_PAGE => {
            GetLogPage::from_cdw10_13([sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13].map(U32::get)).length()
        }
        AdminOpcode::GET_FEATURES
            if FeatureSelect((sqe.cdw10.get() >> 8) as u8 & 7) == FeatureSelect::SUPPORTED_CAPABILITIES =>
        {
            0
        }
        AdminOpcode::GET_FEATURES | AdminOpcode::SET_FEATURES => features::data_len(sqe) as u64,
        _ => 0,
    }
}

/// Offset and size of a property command (Base 2.1 Figures 557 and 559).
fn property(sqe: &Sqe) -> Result<(PropertyOffset, PropertySize), Status> {
    let size = match sqe.cdw10.get() & 7 {
        0 => PropertySize::Dword,
        1 => PropertySize::Qword,
        _ => return Err(INVALID_FIELD),
    };
    Ok((PropertyOffset(sqe.cdw11.get()), size))
}
