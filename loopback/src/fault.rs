//! Scripted faults: what a test, or somebody who wants to see an initiator suffer, makes a loopback do wrong.
//!
//! A [`Rule`] says which command a [`Fault`] happens to. Rules are pushed into [`Faults`] at any time and looked at in
//! order for every command; the first one that fits takes effect.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvmf_core::spec::fabrics::FabricsType;
use nvmf_core::spec::tcp::FatalErrorStatus;
use nvmf_core::spec::{AdminOpcode, Sqe, Status};

use crate::target::Front;

/// What happens to a command.
///
/// The faults from [`Fault::ShortData`] to [`Fault::WrongDatao`] are about PDUs and happen on NVMe/TCP connections only,
/// those from [`Fault::StuckPhase`] on are about rings and happen on emulated PCI functions only; elsewhere they are as if
/// the rule were not there.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It is not executed and completes with this status.
    CompleteWith(Status),
    /// It is not executed and never answered. An Abort command ends it.
    Drop,
    /// It is executed after this time. An Abort command ends it before.
    Delay(Duration),
    /// The connection is closed without a word; an emulated PCI function is gone, as if pulled out.
    Disconnect,
    /// The data it returns is altered (digests fit the altered data).
    CorruptData,
    /// Its completion names a command that is not outstanding.
    WrongCid,
    /// It completes twice.
    DuplicateCompletion,
    /// After it was executed the discovery log is another one: a subsystem of this name is added, unless it is there.
    DiscoveryLogChange(String),
    /// Of the data it returns, only this many bytes are sent, in a C2HData PDU that claims success and to be the last.
    ShortData(u32),
    /// These bytes are sent instead of an answer.
    Raw(Vec<u8>),
    /// The connection is ended by a C2HTermReq.
    Terminate(FatalErrorStatus, u32),
    /// It gets an R2T for a page of data it does not have to send.
    R2tOnRead,
    /// It gets a page of C2HData it did not ask for, and then completes.
    C2hOnWrite,
    /// The data digest of its C2HData is wrong.
    BadDataDigest,
    /// The header digest of its answer is wrong.
    BadHeaderDigest,
    /// The data offset of its last C2HData, or the offset of its R2T, is off by 4 KiB.
    WrongDatao,
    /// Its completion is written with the phase tag of the round before, so that the host does not see it; the queue goes on
    /// behind it.
    StuckPhase,
    /// It is not executed; the controller sets CSTS.CFS and stops until it is reset.
    FatalStatus,
}

impl Fault {
    /// Whether it can happen to a command that came by this way.
    fn happens_on(&self, front: Front) -> bool {
        match self {
            Self::CompleteWith(_)
            | Self::Drop
            | Self::Delay(_)
            | Self::Disconnect
            | Self::CorruptData
            | Self::WrongCid
            | Self::DiscoveryLogChange(_)
            | Self::DuplicateCompletion => true,
            Self::StuckPhase | Self::FatalStatus => front == Front::Pci,
            Self::ShortData(_)
            | Self::Raw(_)
            | Self::Terminate(..)
            | Self::R2tOnRead
            | Self::C2hOnWrite
            | Self::BadDataDigest
            | Self::BadHeaderDigest
            | Self::WrongDatao => matches!(front, Front::Tcp(_)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Any,
    Admin,
    Io,
}

/// Which commands a fault happens to. Made of a fault, then narrowed down; by default it is the next command on any
/// queue, once.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    class: Class,
    opcode: Option<u8>,
    fctype: Option<u8>,
    skip: u64,
    times: u64,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self::new(fault)
    }
}

impl Rule {
    /// The fault happens to the next command.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self { fault, class: Class::Any, opcode: None, fctype: None, skip: 0, times: 1 }
    }

    /// Only commands on admin queues (discovery controllers' included).
    #[must_use]
    pub fn admin(mut self) -> Self {
        self.class = Class::Admin;
        self
    }

    /// Only commands on I/O queues, their Connect included.
    #[must_use]
    pub fn io(mut self) -> Self {
        self.class = Class::Io;
        self
    }

    /// Only commands with this opcode.
    #[must_use]
    pub fn opcode(mut self, opcode: u8) -> Self {
        self.opcode = Some(opcode);
        self
    }

    /// Only fabrics commands of this type.
    #[must_use]
    pub fn fabrics(mut self, fctype: FabricsType) -> Self {
        self.opcode = Some(AdminOpcode::FABRICS.0);
        self.fctype = Some(fctype.0);
        self
    }

    /// The first `commands` that fit are spared.
    #[must_use]
    pub fn after(mut self, commands: u64) -> Self {
        self.skip = commands;
        self
    }

    /// It happens this often.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// It happens until [`Faults::clear`].
    #[must_use]
    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    fn fits(&self, qid: u16, sqe: &Sqe) -> bool {
        let class = match self.class {
            Class::Any => true,
            Class::Admin => qid == 0,
            Class::Io => qid != 0,
        };
        class
            && self.opcode.is_none_or(|opcode| opcode == sqe.opcode)
            && self.fctype.is_none_or(|fctype| fctype == sqe.fctype())
    }
}

/// The faults of one loopback; a cheap shared handle.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether there are rules: what the hot path looks at.
    any: AtomicBool,
    fired: AtomicU64,
    rules: Mutex<VecDeque<Rule>>,
}

impl Faults {
    fn rules(&self) -> MutexGuard<'_, VecDeque<Rule>> {
        self.0.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule behind those there are. It holds for commands that arrive from now on.
    pub fn push(&self, rule: impl Into<Rule>) {
        let rule = rule.into();
        if rule.times > 0 {
            self.rules().push_back(rule);
            self.0.any.store(true, Ordering::Release);
        }
    }

    /// Removes all rules. Commands that are delayed or dropped stay so.
    pub fn clear(&self) {
        self.rules().clear();
        self.0.any.store(false, Ordering::Release);
    }

    /// How often a rule took effect so far.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.0.fired.load(Ordering::Acquire)
    }

    /// Whether rules are left that have not taken effect as often as they shall.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.0.any.load(Ordering::Acquire)
    }

    /// The fault that happens to this command.
    pub(crate) fn next(&self, qid: u16, sqe: &Sqe, front: Front) -> Option<Fault> {
        if !self.pending() {
            return None;
        }
        let mut rules = self.rules();
        let fits = |rule: &&mut Rule| rule.fits(qid, sqe) && rule.fault.happens_on(front);
        // A rule that still spares commands does not keep those behind it from taking effect.
        let rule = rules.iter_mut().filter(fits).find_map(|rule| match rule.skip {
            0 => Some(rule),
            _ => {
                rule.skip -= 1;
                None
            }
        })?;
        if rule.times != u64::MAX {
            rule.times -= 1;
        }
        let fault = rule.fault.clone();
        rules.retain(|rule| rule.times > 0);
        self.0.any.store(!rules.is_empty(), Ordering::Release);
        self.0.fired.fetch_add(1, Ordering::AcqRel);
        tracing::debug!(
            ?fault,
            qid,
            opcode = sqe.opcode,
            cid = sqe.cid.get(),
            "a scripted fault takes effect"
        );
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use nvmf_core::spec::NvmOpcode;

    use super::*;

    fn wire() -> Front {
        Front::Tcp(([127, 0, 0, 1], 4420).into())
    }

    #[test]
    fn rules_fit_by_queue_opcode_and_count() {
        let faults = Faults::default();
        let read = Sqe::nvm(NvmOpcode::READ, 1);
        let flush = Sqe::nvm(NvmOpcode::FLUSH, 1);
        assert_eq!(faults.next(1, &read, wire()), None);
        faults.push(Rule::new(Fault::Drop).io().opcode(NvmOpcode::READ.0).after(1).times(2));
        faults.push(Fault::Disconnect);
        assert_eq!(
            faults.next(0, &read, wire()),
            Some(Fault::Disconnect),
            "the first rule is for I/O queues"
        );
        assert_eq!(faults.next(1, &flush, wire()), None);
        assert_eq!(faults.next(1, &read, wire()), None, "spared");
        assert_eq!(faults.next(1, &read, wire()), Some(Fault::Drop));
        assert_eq!(faults.next(1, &read, wire()), Some(Fault::Drop));
        assert_eq!(faults.next(1, &read, wire()), None);
        assert!(!faults.pending());
        assert_eq!(faults.fired(), 3);
    }

    #[test]
    fn wire_faults_wait_for_a_wire() {
        let faults = Faults::default();
        faults.push(Fault::BadDataDigest);
        let connect = nvmf_core::spec::fabrics::connect(0, 31, 0, 0);
        assert_eq!(faults.next(0, &connect, Front::Loop), None);
        assert_eq!(faults.next(0, &connect, Front::Pci), None);
        assert_eq!(faults.next(0, &connect, wire()), Some(Fault::BadDataDigest));
        faults.push(Fault::FatalStatus);
        assert_eq!(faults.next(0, &connect, wire()), None);
        assert_eq!(faults.next(0, &connect, Front::Pci), Some(Fault::FatalStatus));
        faults.push(Rule::new(Fault::Drop).fabrics(FabricsType::PROPERTY_GET).always());
        assert_eq!(faults.next(0, &connect, wire()), None);
        faults.clear();
        assert!(!faults.pending());
    }
}
