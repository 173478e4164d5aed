//! The controller behind the registers: enabling and resetting it, fetching commands, moving their data, completing them.
//!
//! Nothing here waits or knows threads: [`super::function`] says when doorbells were rung and when to look again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::dma::{DeviceMemory, DmaFault, device_write_barrier};
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::features::{AsyncEventConfig, FeatureId};
use nvmf_core::spec::log_page::{AsyncEvent, AsyncEventType, ErrorEvent, LogPageId};
use nvmf_core::spec::registers::{ControllerConfig, ControllerStatus, Shn, Shst};
use nvmf_core::spec::{AdminOpcode, Cqe, Sqe, Status};
use zerocopy::little_endian::U16;

use super::cmb::{Cmb, Place};
use super::data::Pieces;
use super::doorbells::MappedDoorbells;
use super::queues::{Cq, Limits, Queues, Sq};
use super::registers::{Registers, Written};
use super::shadow::ShadowDoorbells;
use crate::controller::{Controller, Notify};
use crate::data::Data;
use crate::fault::Fault;
use crate::queue::{Admit, Due, Outcome, Queue};
use crate::target::Target;

/// Commands taken off a submission queue before it is the next one's turn (round robin, Base 2.1 §3.4.4.1).
const BURST: usize = 8;
/// A command identifier no host uses: FFFFh is reserved.
const NOBODY: u16 = u16::MAX;
/// Where PSDT is in the flags of a command.
const PSDT_SHIFT: u8 = 6;
/// A scratch buffer larger than this is not kept.
const SCRATCH: usize = 4 << 20;

/// Why the controller stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// CSTS.CFS, for this reason.
    Fatal(&'static str),
    /// The function is pulled out, as a fault asked.
    Removed,
}

impl From<DmaFault> for Stop {
    fn from(fault: DmaFault) -> Self {
        tracing::debug!(%fault, "a ring is out of reach");
        Self::Fatal("a ring cannot be reached")
    }
}

/// What one look around came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pass {
    /// Something was done; there may be more.
    Busy,
    Idle,
    /// The function is gone.
    Removed,
}

/// Data on its way between the host's memory and the controller role. Used again for each command.
#[derive(Default)]
struct Mover {
    pieces: Pieces,
    /// Metadata apart from the data; in `scratch` it follows it.
    metadata: Pieces,
    scratch: Vec<u8>,
}

/// How the hardware behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// From CC.EN to CSTS.RDY.
    pub(super) ready: Duration,
    /// From CC.SHN to CSTS.SHST.
    pub(super) shutdown: Duration,
}

pub(super) struct Engine {
    target: Arc<Target>,
    controller: Arc<Controller>,
    notify: Notify,
    registers: Registers,
    queues: Queues,
    /// Doorbells that have to be looked at, while a client may have them mapped.
    pub(super) mapped: Option<MappedDoorbells>,
    mover: Mover,
    vectors: u16,
    /// Distance of two doorbells, bytes.
    stride: u64,
    timing: Timing,
    /// CC.EN has no effect, a scripted fault.
    pub(super) never_ready: bool,
    /// CSTS.CFS comes up instead of CSTS.RDY, a scripted fault.
    pub(super) fatal_when_enabled: bool,
    /// Clearing CC.EN has no effect, a scripted fault.
    pub(super) never_disabled: bool,
    /// CC.SHN has no effect, a scripted fault.
    pub(super) never_shut_down: bool,
    /// Shutdown processing goes on until then.
    shutdown_until: Option<Instant>,
    shadow: Option<ShadowDoorbells>,
    /// CC.EN was set; when it takes effect.
    ready_at: Option<Instant>,
    /// Where the next round starts.
    turn: usize,
    /// Vectors to be signalled.
    fired: Vec<u16>,
}

impl Engine {
    pub(super) fn new(
        target: Arc<Target>,
        controller: Arc<Controller>,
        notify: Notify,
        dstrd: u8,
        vectors: u16,
        timing: Timing,
        cmb: Option<Cmb>,
    ) -> Self {
        let registers = Registers::new(controller.cap(), target.config.version, dstrd, cmb);
        let queues = Queues::new(target.config.max_io_queues);
        Self {
            target,
            controller,
            notify,
            registers,
            queues,
            mapped: None,
            mover: Mover::default(),
            vectors,
            stride: 4 << dstrd,
            timing,
            never_ready: false,
            fatal_when_enabled: false,
            never_disabled: false,
            never_shut_down: false,
            shutdown_until: None,
            shadow: None,
            ready_at: None,
            turn: 0,
            fired: Vec::new(),
        }
    }

    // --- registers ---------------------------------------------------------------------------------------------

    pub(super) fn read32(&mut self, offset: u64, now: Instant) -> u32 {
        self.advance(now);
        let mut csts = self.controller.csts();
        if self.controller.is_dead(now) {
            csts = csts.with_cfs(true);
        }
        let shutting_down = self.never_shut_down || self.shutdown_until.is_some_and(|until| now < until);
        if csts.shst() == Shst::COMPLETE && shutting_down {
            csts = csts.with_shst(Shst::OCCURRING);
        }
        self.registers.read32(offset, csts)
    }

    pub(super) fn write32(&mut self, offset: u64, value: u32, now: Instant) {
        self.advance(now);
        match self.registers.write32(offset, value) {
            Written::Stored => {}
            Written::SubsystemReset => self.reset(true),
            Written::Config(before) => self.configured(before, now),
        }
        self.advance(now);
    }

    fn configured(&mut self, before: ControllerConfig, now: Instant) {
        let cc = self.registers.cc();
        if cc.shn() != Shn::NONE && cc.shn() != before.shn() {
            self.shutdown_until = Some(now + self.timing.shutdown);
        }
        match (before.en(), cc.en()) {
            (false, true) => {
                self.ready_at = (!self.never_ready).then_some(now + self.timing.ready);
            }
            (true, false) if self.never_disabled => {}
            (true, false) => {
                self.stop();
                self.controller.start_over();
                self.controller.write_cc(cc);
            }
            // A change, or a shutdown, of a controller that is not enabled yet leaves it so.
            (true, true) => self.controller.write_cc(cc.with_en(self.is_enabled())),
            (false, false) => self.controller.write_cc(cc),
        }
    }

    /// Whether CC.EN took effect.
    fn is_enabled(&self) -> bool {
        self.queues.sq(0).is_some()
    }

    /// Queues go; registers stay.
    fn stop(&mut self) {
        self.ready_at = None;
        self.shadow = None;
        self.shutdown_until = None;
        self.queues.clear();
        self.fired.clear();
    }

    /// Whether the host uses shadow doorbells.
    pub(super) fn has_shadow(&self) -> bool {
        self.shadow.is_some()
    }

    /// Submission queues in the controller memory buffer.
    pub(super) fn queues_in_buffer(&self) -> usize {
        let queues = self.queues.active().iter().filter_map(|&qid| self.queues.sq(qid));
        queues.filter(|sq| sq.is_in_buffer()).count()
    }

    /// The host has moved BAR 2.
    pub(super) fn move_cmb(&mut self, bar: u64) {
        self.registers.move_cmb(bar);
    }

    /// A reset of the function, or of the NVM subsystem through this controller.
    pub(super) fn reset(&mut self, by_subsystem_reset: bool) {
        self.stop();
        self.registers.reset_all(by_subsystem_reset);
        self.controller.start_over();
        if by_subsystem_reset {
            let others = self.controller.subsystem.controllers().into_iter();
            for other in others.filter(|other| !Arc::ptr_eq(other, &self.controller)) {
                other.kill("an NVM subsystem reset");
            }
        }
    }

    /// CSTS.CFS, as if the controller had failed.
    pub(super) fn fail(&self, why: &str) {
        self.controller.fatal(why);
    }

    /// Lets happen what is due.
    fn advance(&mut self, now: Instant) {
        if self.ready_at.is_some_and(|at| at <= now) {
            self.ready_at = None;
            self.enable();
        }
    }

    /// CC.EN takes effect (Base 2.1 §3.5.1).
    fn enable(&mut self) {
        let controller = Arc::clone(&self.controller);
        controller.write_cc(self.registers.cc());
        if self.fatal_when_enabled {
            return controller.fatal("a scripted fault");
        }
        if !controller.is_ready() {
            return;
        }
        let (aqa, [asq, acq]) = (self.registers.aqa(), self.registers.admin_bases());
        if aqa.asqs_z() == 0 || aqa.acqs_z() == 0 {
            // The result is undefined; this says so.
            return controller.fatal("the admin queue has less than two entries");
        }
        let page = self.registers.cc().page_size();
        if !asq.is_multiple_of(page) || !acq.is_multiple_of(page) {
            return controller.fatal("the admin queue does not start at a memory page");
        }
        let entries = |size_z: u16| u32::from(size_z) + 1;
        let (target, notify) = (Arc::clone(&self.target), Arc::clone(&self.notify));
        match Queue::attached(target, Arc::clone(&controller), 0, entries(aqa.asqs_z()), notify) {
            Ok(queue) => {
                self.new_doorbell(0);
                self.new_doorbell(1);
                // Vector 0 is the admin completion queue's (NVMe over PCIe 1.1 §3.5.1).
                self.queues.add_cq(0, Cq::new(acq, entries(aqa.acqs_z()), Some(0)));
                self.queues.add_sq(0, Sq::new(asq, entries(aqa.asqs_z()), 0, queue));
            }
            Err(_) => controller.fatal("there is no admin queue"),
        }
    }

    // --- doorbells ---------------------------------------------------------------------------------------------

    fn takes_commands(&self, now: Instant) -> bool {
        self.is_enabled() && self.controller.is_ready() && !self.controller.is_dead(now)
    }

    /// A doorbell was written; `None` when there is none there.
    pub(super) fn doorbell(&mut self, index: Option<usize>, value: u32, now: Instant) {
        if !self.takes_commands(now) {
            return;
        }
        if let (Some(shadow), Some(index)) = (self.shadow, index)
            && shadow.covers(index)
        {
            // What is in memory may be newer; that it was rung is all that counts.
            return;
        }
        let missing = Err(ErrorEvent::INVALID_DOORBELL_REGISTER);
        if let Err(event) = index.map_or(missing, |index| self.queues.doorbell(index, value)) {
            tracing::debug!(?index, value, %event, "a doorbell was written wrongly");
            wrong_doorbell(&self.controller, event);
        }
    }

    fn new_doorbell(&mut self, index: usize) {
        if let Some(mapped) = &mut self.mapped {
            mapped.reset(index);
        }
    }

    /// Whether doorbells may be written that nobody is told of.
    pub(super) fn is_mapped(&self) -> bool {
        self.mapped.is_some() && self.is_enabled()
    }

    /// Looks at the doorbells a client may have mapped.
    pub(super) fn look(&mut self, now: Instant) {
        for position in 0..self.queues.active().len() {
            let Some((qid, cqid)) =
                self.queues.active().get(position).and_then(|&qid| Some((qid, self.queues.sq(qid)?.cqid)))
            else {
                break;
            };
            for index in [2 * usize::from(qid), 2 * usize::from(cqid) + 1] {
                if let Some(value) = self.mapped.as_mut().and_then(|mapped| mapped.news(index)) {
                    self.doorbell(Some(index), value, now);
                }
            }
        }
    }

    /// Reads the doorbells that are in memory. Whether there is something new.
    fn poll_shadow(&mut self, memory: &DeviceMemory) -> Result<bool, Stop> {
        let Some(shadow) = self.shadow else { return Ok(false) };
        let controller = &self.controller;
        Ok(self.queues.poll_shadow(shadow, memory, |index, event| {
            tracing::debug!(index, %event, "a shadow doorbell was written wrongly");
            wrong_doorbell(controller, event);
        })?)
    }

    /// Before this side sleeps: asks for doorbells in registers, and looks once more at those in memory.
    fn arm(&mut self, memory: &DeviceMemory) -> Result<bool, Stop> {
        let Some(shadow) = self.shadow else { return Ok(false) };
        self.queues.arm_shadow(shadow, memory)?;
        device_write_barrier();
        self.poll_shadow(memory)
    }

    /// When to look around again, if nothing is rung before.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.takes_commands(now) {
            return self.ready_at;
        }
        let queues = self.queues.active().iter().filter_map(|&qid| self.queues.sq(qid)?.queue.deadline());
        queues.chain(self.ready_at).min()
    }

    /// Vectors to be signalled since the last call, each once.
    pub(super) fn take_fired(&mut self, to: &mut Vec<u16>) {
        to.append(&mut self.fired);
    }

    // --- commands ----------------------------------------------------------------------------------------------

    /// Looks around once: what was held back, then up to [`BURST`] commands of each queue.
    pub(super) fn pass(&mut self, memory: &DeviceMemory, now: Instant) -> Pass {
        self.advance(now);
        if !self.takes_commands(now) {
            return Pass::Idle;
        }
        let outcome = match self.pass_queues(memory, now) {
            Ok(false) => self.arm(memory),
            outcome => outcome,
        };
        self.collect_interrupts();
        match outcome {
            Ok(true) => Pass::Busy,
            Ok(false) => Pass::Idle,
            Err(Stop::Removed) => Pass::Removed,
            Err(Stop::Fatal(why)) => {
                self.controller.fatal(why);
                Pass::Idle
            }
        }
    }

    fn pass_queues(&mut self, memory: &DeviceMemory, now: Instant) -> Result<bool, Stop> {
        self.poll_shadow(memory)?;
        for cq in self.queues.cqs_mut() {
            cq.write(memory)?;
        }
        self.answer_pending(memory)?;
        let mut busy = false;
        let (first, count) = (self.turn, self.queues.active().len());
        for index in (0..count).map(|step| (first + step) % count) {
            // Queues may come and go on the way.
            let Some(&qid) = self.queues.active().get(index) else { break };
            busy |= self.held(qid, memory, now)?;
            for _ in 0..BURST {
                if !self.command(qid, memory, now)? {
                    break;
                }
                busy = true;
                // The next time it is the turn of the one behind the last that was served.
                self.turn = index + 1;
            }
        }
        // An event request may have been answered by a command.
        self.answer_pending(memory)?;
        Ok(busy)
    }

    /// Writes completions of admin commands that were pending.
    fn answer_pending(&mut self, memory: &DeviceMemory) -> Result<(), Stop> {
        if let Some((sq, cq)) = self.queues.pair(0) {
            for cqe in sq.queue.take_completions() {
                complete(0, sq, cq, cqe, None, memory)?;
            }
        }
        Ok(())
    }

    fn collect_interrupts(&mut self) {
        for cq in self.queues.cqs_mut() {
            if let Some(vector) = cq.take_interrupt()
                && !self.fired.contains(&vector)
            {
                self.fired.push(vector);
            }
        }
    }

    /// Goes on with commands that faults held back. They are few.
    fn held(&mut self, qid: u16, memory: &DeviceMemory, now: Instant) -> Result<bool, Stop> {
        let mut any = false;
        while let Some((sq, cq)) = self.queues.pair(qid)
            && let Some(due) = sq.queue.due(now)
        {
            any = true;
            match due {
                Due::Answer(cqe) => complete(qid, sq, cq, cqe, None, memory)?,
                Due::Execute(sqe, _) => self.execute(qid, &sqe, None, memory)?,
            }
        }
        Ok(any)
    }

    /// Takes one command off a queue; `false` when there is none, or no room for its completion.
    fn command(&mut self, qid: u16, memory: &DeviceMemory, now: Instant) -> Result<bool, Stop> {
        let Some((sq, cq)) = self.queues.pair(qid) else { return Ok(false) };
        if !cq.has_room() {
            return Ok(false);
        }
        let Some(sqe) = sq.fetch(memory)? else { return Ok(false) };
        match sq.queue.begin(&sqe) {
            Admit::Execute(Some(Fault::FatalStatus)) => return Err(Stop::Fatal("a scripted fault")),
            Admit::Execute(fault) => self.execute(qid, &sqe, fault, memory)?,
            Admit::Answer(cqe) => complete(qid, sq, cq, cqe, None, memory)?,
            Admit::Hold(delay) => sq.queue.hold(sqe, Vec::new(), delay, now),
            Admit::Close => return Err(Stop::Removed),
        }
        Ok(true)
    }

    fn execute(
        &mut self,
        qid: u16,
        sqe: &Sqe,
        fault: Option<Fault>,
        memory: &DeviceMemory,
    ) -> Result<(), Stop> {
        let own = if qid == 0 { self.own_command(sqe) } else { None };
        let Some((sq, cq)) = self.queues.pair(qid) else { return Ok(()) };
        let cqe = match own {
            Some(Ok(())) => Some(sq.queue.answer(sqe, Status::SUCCESS)),
            Some(Err(status)) => Some(sq.queue.fail(sqe, status)),
            None => {
                let page = self.registers.cc().page_size();
                self.mover.execute(&mut sq.queue, sqe, fault.as_ref(), memory, page)
            }
        };
        if let Some(cqe) = cqe {
            complete(qid, sq, cq, cqe, fault, memory)?;
        }
        Ok(())
    }

    /// Admin commands that are about rings, and rules that only hold where there are rings. `None` leaves a command to the
    /// controller role.
    fn own_command(&mut self, sqe: &Sqe) -> Option<Result<(), Status>> {
        const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
        // Admin commands use PRPs and are never fused (Base 2.1 Figure 92, PSDT and FUSE).
        if sqe.flags >> PSDT_SHIFT != 0 || sqe.flags & 3 != 0 {
            return Some(Err(INVALID_FIELD));
        }
        Some(match AdminOpcode(sqe.opcode) {
            AdminOpcode::CREATE_IO_CQ => self.create_cq(sqe),
            AdminOpcode::CREATE_IO_SQ => self.create_sq(sqe),
            AdminOpcode::DOORBELL_BUFFER_CONFIG if self.controller.local.shadow_doorbells => {
                let page = self.registers.cc().page_size();
                ShadowDoorbells::from_command(sqe, self.stride, page).map(|shadow| self.shadow = Some(shadow))
            }
            AdminOpcode::DELETE_IO_SQ => self.queues.delete_sq(sqe.cdw10.get() as u16),
            AdminOpcode::DELETE_IO_CQ => self.queues.delete_cq(sqe.cdw10.get() as u16),
            // The number of queues is settled once there is one, a completion queue as well (§5.1.25.1.5).
            AdminOpcode::SET_FEATURES
                if FeatureId(sqe.cdw10.get() as u8) == FeatureId::NUMBER_OF_QUEUES
                    && self.queues.any_io() =>
            {
                Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr())
            }
            _ => return None,
        })
    }

    fn limits(&self) -> Limits {
        Limits {
            granted: self.controller.granted_queues(),
            max_entries: self.controller.cap().max_queue_entries(),
            vectors: self.vectors,
            cc: self.registers.cc(),
            page: self.registers.cc().page_size(),
        }
    }

    fn create_cq(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let new = self.queues.check_create_cq(sqe, &self.limits())?;
        // CMBSZ.CQS is not set.
        if self.registers.place(new.base, u64::from(new.entries) * 16) != Place::Host {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        self.new_doorbell(2 * usize::from(new.qid) + 1);
        self.queues.add_cq(new.qid, Cq::new(new.base, new.entries, new.other));
        Ok(())
    }

    fn create_sq(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let new = self.queues.check_create_sq(sqe, &self.limits())?;
        let place = self.registers.place(new.base, u64::from(new.entries) * 64);
        if place == Place::Across {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let (target, controller) = (Arc::clone(&self.target), Arc::clone(&self.controller));
        let queue = Queue::attached(target, controller, new.qid, new.entries, Arc::clone(&self.notify))?;
        self.new_doorbell(2 * usize::from(new.qid));
        let cqid = new.other.unwrap_or(0);
        let mut sq = Sq::new(new.base, new.entries, cqid, queue);
        if let (Place::Buffer(offset), Some(cmb)) = (place, self.registers.cmb()) {
            sq = sq.within(cmb.memory.clone(), offset);
        }
        self.queues.add_sq(new.qid, sq);
        Ok(())
    }
}

/// Tells the host of a doorbell that makes no sense.
fn wrong_doorbell(controller: &Controller, event: ErrorEvent) {
    let event = AsyncEvent {
        event_type: AsyncEventType::ERROR,
        info: event.0,
        log_page: LogPageId::ERROR_INFORMATION,
    };
    controller.raise(event, AsyncEventConfig(0));
}

impl Mover {
    /// Executes a command with the data its pointer names; `None` when it is answered later.
    fn execute(
        &mut self,
        queue: &mut Queue,
        sqe: &Sqe,
        fault: Option<&Fault>,
        memory: &DeviceMemory,
        page: u64,
    ) -> Option<Cqe> {
        let moves = queue.moves_data(sqe);
        let outcome = match self.prepare(queue, sqe, memory, page) {
            Err(status) => Outcome::Answer(queue.fail(sqe, status)),
            Ok((0, _)) => queue.execute(sqe, Data::None),
            Ok((len, metadata_len)) => {
                let buffer = &mut self.scratch[..len + metadata_len];
                if sqe.direction() == DataDirection::HostToController {
                    let (data, metadata) = buffer.split_at_mut(len);
                    let gathered = if moves { self.pieces.gather(memory, data) } else { Ok(()) };
                    match gathered.and_then(|()| self.metadata.gather(memory, metadata)) {
                        Ok(()) => queue.execute(sqe, Data::Out(buffer)),
                        Err(status) => Outcome::Answer(queue.fail(sqe, status)),
                    }
                } else {
                    let mut outcome = queue.execute(sqe, Data::In(buffer));
                    if let Outcome::Answer(cqe) = &mut outcome
                        && moves
                        && cqe.status().is_success()
                    {
                        if fault == Some(&Fault::CorruptData) {
                            buffer[len / 2] ^= 0xff;
                        }
                        let (data, metadata) = buffer.split_at(len);
                        let scattered = self.pieces.scatter(memory, data);
                        if let Err(status) = scattered.and_then(|()| self.metadata.scatter(memory, metadata))
                        {
                            *cqe = queue.fail(sqe, status);
                        }
                    }
                    outcome
                }
            }
        };
        if self.scratch.len() > SCRATCH {
            self.scratch = Vec::new();
        }
        match outcome {
            Outcome::Answer(cqe) | Outcome::AnswerAndClose(cqe) => Some(cqe),
            Outcome::Pending => None,
        }
    }

    /// Finds the command's memory and makes room for its data and metadata. The lengths of both.
    fn prepare(
        &mut self,
        queue: &mut Queue,
        sqe: &Sqe,
        memory: &DeviceMemory,
        page: u64,
    ) -> Result<(usize, usize), Status> {
        let (len, metadata_len) = queue.lengths(sqe)?;
        let direction = sqe.direction();
        if len == 0 || !matches!(direction, DataDirection::HostToController | DataDirection::ControllerToHost)
        {
            return Ok((0, 0));
        }
        let to_host = direction == DataDirection::ControllerToHost;
        match sqe.flags >> PSDT_SHIFT {
            0 => self.pieces.prp(memory, sqe.dptr, len, page)?,
            1 | 2 => self.pieces.sgl(memory, sqe.dptr.as_sgl(), len, to_host)?,
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        }
        self.metadata.metadata(memory, sqe, metadata_len, to_host)?;
        let both = len + metadata_len;
        if self.scratch.len() < both {
            self.scratch.resize(both, 0);
        }
        Ok((len, metadata_len))
    }
}

/// Posts a completion, as the fault wants it.
fn complete(
    qid: u16,
    sq: &Sq,
    cq: &mut Cq,
    mut cqe: Cqe,
    fault: Option<Fault>,
    memory: &DeviceMemory,
) -> Result<(), DmaFault> {
    cqe.sqid = U16::new(qid);
    cqe.sqhd = U16::new(sq.head());
    match fault {
        Some(Fault::WrongCid) => cqe.cid = U16::new(NOBODY),
        Some(Fault::DuplicateCompletion) => cq.push(cqe, false, memory)?,
        _ => {}
    }
    cq.push(cqe, fault == Some(Fault::StuckPhase), memory)
}

/// What a function that is gone answers.
pub(super) const ALL_ONES: u32 = ControllerStatus::ALL_ONES.0;
