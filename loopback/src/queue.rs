//! One queue of the controller role, without I/O: what a front feeds commands to.
//!
//! ```text
//! front: command arrives ─▶ Queue::begin ─▶ Admit::Execute ─▶ (front fetches data) ─▶ Queue::execute ─▶ answer
//!                                       └─▶ Answer / Hold / Close: a fault or a broken rule
//!        woken up        ─▶ Queue::take_completions, Queue::due, Queue::is_closed
//! ```
//!
//! A queue starts unconnected; its first command has to be Connect, which makes it the admin queue of a new controller or an
//! I/O queue of one there is. Queues of an emulated PCI function, where there is no Connect, start attached. Dropping a queue
//! takes it away from its controller.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::nqn::NQN_FIELD_SIZE;
use nvmf_core::spec::fabrics::{
    CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, ConnectData, ConnectFields, FabricsType, InvalidParameter,
};
use nvmf_core::spec::log_page::AnaState;
use nvmf_core::spec::{AdminOpcode, Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::{HostId, Nqn};
use zerocopy::FromBytes;

use crate::config::MAX_ADMIN_ENTRIES;
use crate::controller::{self, Admin, Association, Controller, Local, Notify};
use crate::data::Data;
use crate::fault::Fault;
use crate::namespace::ActiveNamespace;
use crate::subsystem::SubsystemBuilder;
use crate::target::{Front, Target, count};

/// SQHD of a Connect response that grants to go without SQ flow control (Base 2.1 §6.3).
const NO_FLOW_CONTROL: u16 = u16::MAX;

/// How a command goes on.
#[derive(Debug)]
pub(crate) enum Admit {
    /// Fetch its data and execute it, with this fault in the answer.
    Execute(Option<Fault>),
    /// It is done already.
    Answer(Cqe),
    /// Hand it to [`Queue::hold`].
    Hold(Option<Duration>),
    /// Close the connection.
    Close,
}

/// What became of a command.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Cqe),
    /// It is answered later.
    Pending,
    /// It was the last one of this queue.
    AnswerAndClose(Cqe),
}

/// A held command whose time has come.
#[derive(Debug)]
pub(crate) enum Due {
    /// Go on with it and the data that came along.
    Execute(Sqe, Vec<u8>),
    Answer(Cqe),
}

#[derive(Debug)]
struct Held {
    sqe: Sqe,
    data: Vec<u8>,
    until: Option<Instant>,
}

#[derive(Debug)]
struct Link {
    controller: Arc<Controller>,
    qid: u16,
    epoch: u32,
    /// Entries of the queue.
    entries: u32,
    sqhd: u32,
    flow_control: bool,
    /// The namespace used last, and the generation of the table it is from.
    namespace: Option<(u64, Arc<ActiveNamespace>)>,
}

pub(crate) struct Queue {
    target: Arc<Target>,
    front: Front,
    notify: Notify,
    link: Option<Link>,
    held: Vec<Held>,
    /// The subsystem a fault adds once the command of this identifier was executed.
    log_change: Option<(u16, String)>,
}

type ConnectError = (Status, u32);

fn invalid_parameter(in_data: bool, offset: u16) -> ConnectError {
    (Status::CONNECT_INVALID_PARAMETERS.with_dnr(), InvalidParameter { offset, in_data }.to_dw0())
}

/// Offsets of Figures 549 and 550 that Connect Invalid Parameters points to.
const SQE_QID: u16 = 42;
const SQE_SQSIZE: u16 = 44;
const DATA_HOSTID: u16 = 0;
const DATA_CNTLID: u16 = 16;
const DATA_SUBNQN: u16 = 256;
const DATA_HOSTNQN: u16 = 512;

impl Queue {
    pub(crate) fn new(target: Arc<Target>, front: Front, notify: Notify) -> Self {
        Self { target, front, notify, link: None, held: Vec::new(), log_change: None }
    }

    /// A submission queue of an emulated PCI function's controller.
    ///
    /// # Errors
    /// The status Create I/O Submission Queue fails with.
    pub(crate) fn attached(
        target: Arc<Target>,
        controller: Arc<Controller>,
        qid: u16,
        entries: u32,
        notify: Notify,
    ) -> Result<Self, Status> {
        let epoch = match qid {
            0 => controller.epoch(),
            _ => controller.add_queue(qid, Arc::clone(&notify)).map_err(|(status, at_qid)| match at_qid {
                true => Status::INVALID_QUEUE_IDENTIFIER.with_dnr(),
                false => status,
            })?,
        };
        let link = Link { controller, qid, epoch, entries, sqhd: 0, flow_control: true, namespace: None };
        Ok(Self { target, front: Front::Pci, notify, link: Some(link), held: Vec::new(), log_change: None })
    }

    /// Queue identifier, once connected.
    pub(crate) fn qid(&self) -> Option<u16> {
        self.link.as_ref().map(|link| link.qid)
    }

    /// Commands that may be outstanding; before Connect there is one.
    pub(crate) fn entries(&self) -> u32 {
        self.link.as_ref().map_or(1, |link| link.entries)
    }

    /// Whether the queue is at its end and its connection has to be closed.
    pub(crate) fn is_closed(&self, now: Instant) -> bool {
        if self.target.is_stopped() {
            return true;
        }
        self.link.as_ref().is_some_and(|link| {
            link.controller.is_dead(now) || (link.qid != 0 && link.epoch != link.controller.epoch())
        })
    }

    /// When to look at [`Queue::due`] and [`Queue::is_closed`] again, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let held = self.held.iter().filter_map(|held| held.until).min();
        let keep_alive = self.link.as_ref().and_then(|link| link.controller.keep_alive_deadline());
        [held, keep_alive].into_iter().flatten().min()
    }

    /// Takes note of a command that arrived.
    pub(crate) fn begin(&mut self, sqe: &Sqe) -> Admit {
        if let Some(link) = &mut self.link {
            link.sqhd = (link.sqhd + 1) % link.entries;
        }
        // Connect tells which queue it is about before the queue knows.
        let connects = sqe.opcode == AdminOpcode::FABRICS.0 && sqe.fctype() == FabricsType::CONNECT.0;
        let qid = self.qid().unwrap_or(if connects { ConnectFields::of(sqe).qid } else { 0 });
        match self.target.faults.next(qid, sqe, self.front) {
            None => Admit::Execute(None),
            Some(Fault::CompleteWith(status)) => Admit::Answer(self.answer(sqe, status)),
            Some(Fault::Drop) => Admit::Hold(None),
            Some(Fault::Delay(delay)) => Admit::Hold(Some(delay)),
            Some(Fault::Disconnect) => Admit::Close,
            Some(Fault::DiscoveryLogChange(subnqn)) => {
                self.log_change = Some((sqe.cid.get(), subnqn));
                Admit::Execute(None)
            }
            Some(fault) => Admit::Execute(Some(fault)),
        }
    }

    /// Keeps a command, with the data that came along, until its time comes or it is aborted.
    pub(crate) fn hold(&mut self, sqe: Sqe, data: Vec<u8>, delay: Option<Duration>, now: Instant) {
        if let Some(link) = &self.link {
            link.controller.hold(link.qid, sqe.cid.get());
        }
        self.held.push(Held { sqe, data, until: delay.map(|delay| now + delay) });
    }

    /// A held command that is to go on.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.held.is_empty() {
            return None;
        }
        let link = self.link.as_ref();
        let aborted =
            |held: &Held| link.is_some_and(|link| link.controller.was_aborted(link.qid, held.sqe.cid.get()));
        let ripe = |held: &Held| held.until.is_some_and(|until| until <= now);
        let index = self.held.iter().position(|held| aborted(held) || ripe(held))?;
        let was_aborted = aborted(&self.held[index]);
        let held = self.held.swap_remove(index);
        if let Some(link) = &self.link {
            link.controller.unhold(link.qid, held.sqe.cid.get());
        }
        if was_aborted {
            return Some(Due::Answer(self.answer(&held.sqe, Status::ABORT_REQUESTED)));
        }
        Some(Due::Execute(held.sqe, held.data))
    }

    /// Completions of commands that were pending.
    pub(crate) fn take_completions(&mut self) -> Vec<Cqe> {
        match &self.link {
            Some(link) if link.qid == 0 => {
                let sqhd = self.sqhd();
                let completions = link.controller.take_completions().into_iter();
                completions.map(|cqe| Cqe { sqhd: sqhd.into(), ..cqe }).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether SQHD counts: the host has not asked to go without, or is not connected yet.
    pub(crate) fn has_flow_control(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.flow_control)
    }

    fn sqhd(&self) -> u16 {
        match &self.link {
            Some(link) if link.flow_control => link.sqhd as u16,
            _ => 0,
        }
    }

    /// A completion without a result.
    pub(crate) fn answer(&self, sqe: &Sqe, status: Status) -> Cqe {
        Cqe::new(sqe.cid.get(), self.sqhd(), status)
    }

    /// Gives a command up because of what its front found: counted and logged like any other failure.
    pub(crate) fn fail(&self, sqe: &Sqe, status: Status) -> Cqe {
        count(&self.target.counters.failed_commands, 1);
        if let Some(link) = &self.link {
            link.controller.log_error(link.qid, sqe, status);
        }
        self.answer(sqe, status)
    }

    /// Executes a command.
    pub(crate) fn execute(&mut self, sqe: &Sqe, data: Data<'_>) -> Outcome {
        let outcome = self.run(sqe, data);
        if let Some((_, subnqn)) = self.log_change.take_if(|(cid, _)| *cid == sqe.cid.get())
            && self.target.add_subsystem(SubsystemBuilder::new(subnqn)).is_err()
        {
            self.target.discovery_changed();
        }
        outcome
    }

    fn run(&mut self, sqe: &Sqe, data: Data<'_>) -> Outcome {
        let counters = &self.target.counters;
        match &self.link {
            Some(link) if link.qid != 0 => count(&counters.io_commands, 1),
            _ => count(&counters.admin_commands, 1),
        }
        if sqe.opcode == AdminOpcode::FABRICS.0 && self.front != Front::Pci {
            return self.fabrics(sqe, data);
        }
        let Some(link) = &mut self.link else {
            return Outcome::Answer(self.fail(sqe, Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
        };
        if !link.controller.is_ready() {
            if self.is_closed(Instant::now()) {
                // The connection is about to end, and that is the answer.
                return Outcome::Pending;
            }
            return Outcome::Answer(self.fail(sqe, Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
        }
        if link.qid == 0 {
            return match link.controller.admin(sqe, data) {
                Ok(Admin::Done(result)) => {
                    Outcome::Answer(self.answer(sqe, Status::SUCCESS).with_result64(result))
                }
                Ok(Admin::Later) => Outcome::Pending,
                Err(status) => Outcome::Answer(self.fail(sqe, status)),
            };
        }
        let len = match &data {
            Data::None => 0,
            Data::Out(data) => data.len() as u64,
            Data::In(data) => data.len() as u64,
        };
        match link.nvm(sqe, data, self.target.config.max_transfer()) {
            Ok(()) => {
                match NvmOpcode(sqe.opcode) {
                    NvmOpcode::READ => {
                        count(&counters.reads, 1);
                        count(&counters.bytes_read, len);
                    }
                    NvmOpcode::WRITE => {
                        count(&counters.writes, 1);
                        count(&counters.bytes_written, len);
                    }
                    _ => {}
                }
                Outcome::Answer(self.answer(sqe, Status::SUCCESS))
            }
            Err(status) => Outcome::Answer(self.fail(sqe, status)),
        }
    }

    /// Bytes of data a command moves, and of metadata apart from it, where nothing but the command says so (PRPs). A command
    /// that cannot be executed moves none.
    ///
    /// # Errors
    /// Invalid Field, when the data is more than MDTS allows.
    pub(crate) fn lengths(&mut self, sqe: &Sqe) -> Result<(usize, usize), Status> {
        let front = self.front;
        let Some(link) = &mut self.link else { return Ok((0, 0)) };
        let (len, metadata) = match link.qid {
            0 => (controller::data_len(sqe), 0),
            _ => link.find(sqe.nsid.get()).map_or((0, 0), |namespace| namespace.lengths(sqe, front)),
        };
        match (usize::try_from(len), usize::try_from(metadata)) {
            (Ok(bytes), Ok(metadata)) if len <= self.target.config.max_transfer() => Ok((bytes, metadata)),
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    /// Whether anybody wants the data of a command: a namespace that stores nothing does not.
    pub(crate) fn moves_data(&mut self, sqe: &Sqe) -> bool {
        let io = self.link.as_mut().filter(|link| link.qid != 0);
        let namespace = io.and_then(|link| link.find(sqe.nsid.get()));
        !namespace.is_some_and(|namespace| namespace.drops_data(sqe))
    }

    // --- fabrics commands --------------------------------------------------------------------------------------

    fn fabrics(&mut self, sqe: &Sqe, data: Data<'_>) -> Outcome {
        let fctype = FabricsType(sqe.fctype());
        if fctype == FabricsType::CONNECT {
            return Outcome::Answer(match self.connect(sqe, data) {
                Ok(cqe) => cqe,
                Err((status, dw0)) => {
                    tracing::debug!(%status, dw0, "a Connect was refused");
                    self.fail(sqe, status).with_dw0(dw0)
                }
            });
        }
        let Some(link) = &self.link else {
            return Outcome::Answer(self.fail(sqe, Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
        };
        let admin = link.qid == 0;
        let result = match fctype {
            FabricsType::PROPERTY_GET if admin => {
                data.none().and_then(|()| link.controller.property_get(sqe))
            }
            FabricsType::PROPERTY_SET if admin => {
                data.none().and_then(|()| link.controller.property_set(sqe)).map(|()| 0)
            }
            FabricsType::DISCONNECT if admin => Err(Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr()),
            FabricsType::DISCONNECT if sqe.cdw10.get() as u16 != 0 => {
                Err(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr())
            }
            FabricsType::DISCONNECT => return Outcome::AnswerAndClose(self.answer(sqe, Status::SUCCESS)),
            // Authentication is not supported, properties belong to the admin queue.
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        };
        Outcome::Answer(match result {
            Ok(value) => self.answer(sqe, Status::SUCCESS).with_result64(value),
            Err(status) => self.fail(sqe, status),
        })
    }

    /// Connect (Base 2.1 §6.3).
    fn connect(&mut self, sqe: &Sqe, data: Data<'_>) -> Result<Cqe, ConnectError> {
        let status = |status: Status| (status.with_dnr(), 0);
        if self.link.is_some() {
            return Err(status(Status::COMMAND_SEQUENCE_ERROR));
        }
        let fields = ConnectFields::of(sqe);
        if fields.recfmt != 0 {
            return Err(status(Status::CONNECT_INCOMPATIBLE_FORMAT));
        }
        let bytes = data.sent(size_of::<ConnectData>()).map_err(|s| (s, 0))?;
        let Ok(data) = ConnectData::ref_from_bytes(bytes) else {
            return Err(status(Status::INVALID_DATA_SGL_LENGTH));
        };
        let hostid = HostId::from_bytes(data.hostid);
        if hostid.is_zero() {
            return Err(invalid_parameter(true, DATA_HOSTID));
        }
        let name = |field: &[u8; NQN_FIELD_SIZE], offset| {
            Nqn::from_wire(field).map_err(|_| invalid_parameter(true, offset))
        };
        let subnqn = name(&data.subnqn, DATA_SUBNQN)?;
        let hostnqn = name(&data.hostnqn, DATA_HOSTNQN)?;
        let subsystem = self.target.find(&subnqn).ok_or(invalid_parameter(true, DATA_SUBNQN))?;
        if !subsystem.allows(&hostnqn) {
            let at = InvalidParameter { offset: DATA_HOSTNQN, in_data: true };
            return Err((Status::CONNECT_INVALID_HOST.with_dnr(), at.to_dw0()));
        }
        let most = if fields.qid == 0 { MAX_ADMIN_ENTRIES } else { self.target.config.max_queue_entries };
        let entries = u32::from(fields.sqsize_z) + 1;
        if entries < 2 || entries > most {
            return Err(invalid_parameter(false, SQE_SQSIZE));
        }
        let cntlid = data.cntlid.get();
        let (controller, epoch) = if fields.qid == 0 {
            if cntlid != CNTLID_DYNAMIC {
                return Err(invalid_parameter(true, DATA_CNTLID));
            }
            let (front, kato_ms) = (self.front, fields.kato_ms);
            let association = Association { hostnqn, hostid, front, kato_ms, local: Local::default() };
            let limit = self.target.config.max_controllers;
            let made = subsystem.add_controller(limit, |cntlid| {
                let (target, subsystem) = (Arc::clone(&self.target), Arc::clone(&subsystem));
                Controller::new(cntlid, target, subsystem, association, Arc::clone(&self.notify))
            });
            (made.ok_or((Status::CONNECT_CONTROLLER_BUSY, 0))?, 0)
        } else {
            if subsystem.is_discovery() {
                return Err(invalid_parameter(false, SQE_QID));
            }
            // A controller behind registers has no association to join.
            let controller = subsystem.controller(cntlid).filter(|controller| controller.front != Front::Pci);
            let controller = controller.ok_or(invalid_parameter(true, DATA_CNTLID))?;
            if controller.hostnqn != hostnqn {
                return Err(invalid_parameter(true, DATA_HOSTNQN));
            }
            if controller.hostid != hostid {
                return Err(invalid_parameter(true, DATA_HOSTID));
            }
            let added = controller.add_queue(fields.qid, Arc::clone(&self.notify));
            let epoch = added.map_err(|(status, at_qid)| match at_qid {
                true => invalid_parameter(false, SQE_QID),
                false => (status, 0),
            })?;
            (controller, epoch)
        };
        tracing::info!(subnqn = %subnqn, hostnqn = %controller.hostnqn, cntlid = controller.cntlid, qid = fields.qid, entries, "queue connected");
        let cntlid = controller.cntlid;
        let flow_control = fields.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL == 0;
        // The Connect command itself is the first one taken off the queue.
        let (qid, sqhd) = (fields.qid, 1 % entries);
        self.link = Some(Link { controller, qid, epoch, entries, sqhd, flow_control, namespace: None });
        let mut cqe = self.answer(sqe, Status::SUCCESS).with_dw0(cntlid.into());
        if !flow_control {
            cqe.sqhd = NO_FLOW_CONTROL.into();
        }
        Ok(cqe)
    }
}

impl Link {
    /// Executes a command of the NVM command set.
    fn nvm(&mut self, sqe: &Sqe, data: Data<'_>, max_transfer: u64) -> Result<(), Status> {
        let subsystem = &self.controller.subsystem;
        // Base 2.1 §8.1.1.8: what I/O commands get while their ANA group is not accessible.
        match subsystem.ana_state() {
            AnaState::INACCESSIBLE => return Err(Status::ANA_INACCESSIBLE),
            AnaState::PERSISTENT_LOSS => return Err(Status::ANA_PERSISTENT_LOSS),
            AnaState::CHANGE => return Err(Status::ANA_TRANSITION),
            _ => {}
        }
        let front = self.controller.front;
        let nsid = sqe.nsid.get();
        if nsid == u32::MAX && sqe.opcode == NvmOpcode::FLUSH.0 {
            data.none()?;
            return subsystem.namespaces().iter().try_for_each(|namespace| namespace.flush());
        }
        let namespace = self.find(nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        namespace.execute(sqe, data, max_transfer, front)
    }

    fn find(&mut self, nsid: u32) -> Option<&ActiveNamespace> {
        let subsystem = &self.controller.subsystem;
        let generation = subsystem.generation();
        match &self.namespace {
            Some((of, namespace)) if *of == generation && namespace.nsid == nsid => {}
            _ => self.namespace = subsystem.namespace(nsid).map(|namespace| (generation, namespace)),
        }
        self.namespace.as_ref().map(|(_, namespace)| &**namespace)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.controller.remove_queue(link.qid, link.epoch);
        }
    }
}

#[cfg(test)]
mod tests;
