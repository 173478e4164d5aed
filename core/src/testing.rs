//! A fabrics target inside the test: enough of a controller to attach to, with knobs for what may go wrong.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, IntoBytes};

use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::host::HostIdentity;
use crate::nqn::Uuid;
use crate::options::ControllerOptions;
use crate::proto::Tracker;
use crate::spec::command::{AdminOpcode, NvmOpcode};
use crate::spec::discovery::{DiscoveryLogEntry, DiscoveryLogHeader, SubsystemType, TransportTypeCode};
use crate::spec::fabrics::{ConnectData, ConnectFields, FabricsType, InvalidParameter, property_set_value};
use crate::spec::features::FeatureId;
use crate::spec::identify::{Cns, IdentifyController};
use crate::spec::log_page::{GetLogPage, LogPageId};
use crate::spec::registers::{ControllerConfig, PropertyOffset, Shn, Version};
use crate::spec::{Cqe, Sqe, Status};
use crate::transport::{
    Capabilities, ConnectProgress, QpairSetup, Quiesce, Transport, TransportController, TransportQpair,
};
use crate::transport_id::{TransportId, TransportType};

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 256;
/// A vendor specific admin command, which [`Knobs::hold`] applies to as well.
pub(crate) const VENDOR_ADMIN: u8 = 0xc0;

/// What the target is to do, and what it has seen.
pub(crate) struct Knobs {
    /// Polls a connection takes.
    pub(crate) connect_polls: usize,
    /// Answer to every Fabrics Connect.
    pub(crate) connect_status: Status,
    /// I/O queues are told that there is no such controller.
    pub(crate) forget_controllers: bool,
    /// I/O queues are refused.
    pub(crate) refuse_io_queues: bool,
    /// Connections break at their next poll.
    pub(crate) cut: bool,
    /// I/O commands and [`VENDOR_ADMIN`] are kept without an answer.
    pub(crate) hold: bool,
    pub(crate) answer_keep_alive: bool,
    /// How long closing a connection takes.
    pub(crate) close_takes: Duration,
    /// CC.SHN is followed by CSTS.SHST.
    pub(crate) confirm_shutdown: bool,
    pub(crate) io_queues: u16,
    pub(crate) nsids: Vec<u32>,
    pub(crate) mdts: u8,
    pub(crate) discovery: Vec<DiscoveryLogEntry>,
    /// Asynchronous events to report.
    pub(crate) events: VecDeque<u32>,
    /// This event is reported whenever there is a request for one.
    pub(crate) endless_event: Option<u32>,
    /// Asynchronous events reported.
    pub(crate) events_reported: usize,
    /// The changed namespace list.
    pub(crate) changed: Vec<u32>,
    /// Namespaces that were identified, in order.
    pub(crate) identified: Vec<u32>,
    /// Commands to abort: queue and command identifier.
    aborted: Vec<(u16, u16)>,
    /// Connections made and closed, in order.
    pub(crate) log: Vec<String>,
    /// Connections there are.
    pub(crate) connections: usize,
    pub(crate) keep_alives: usize,
    /// Shutdown notifications.
    pub(crate) shutdowns: usize,
    /// Host NQNs of the Connect commands.
    pub(crate) hosts: Vec<String>,
    disk: Vec<u8>,
    next_cntlid: u16,
}

/// A target; clones are the same one.
#[derive(Clone)]
pub(crate) struct Target(Arc<Mutex<Knobs>>);

impl Target {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Knobs {
            connect_polls: 0,
            connect_status: Status::SUCCESS,
            forget_controllers: false,
            refuse_io_queues: false,
            cut: false,
            hold: false,
            answer_keep_alive: true,
            close_takes: Duration::ZERO,
            confirm_shutdown: true,
            io_queues: 4,
            nsids: vec![1],
            mdts: 0,
            discovery: Vec::new(),
            events: VecDeque::new(),
            endless_event: None,
            events_reported: 0,
            changed: Vec::new(),
            identified: Vec::new(),
            aborted: Vec::new(),
            log: Vec::new(),
            connections: 0,
            keep_alives: 0,
            shutdowns: 0,
            hosts: Vec::new(),
            disk: vec![0; BLOCKS as usize * BLOCK],
            next_cntlid: 1,
        })))
    }

    pub(crate) fn knobs(&self) -> MutexGuard<'_, Knobs> {
        // A failed assertion may have poisoned it; its message is to be seen, not this one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver that knows this target and no other.
    pub(crate) fn driver(&self) -> Driver {
        Driver::builder().transport(self.clone()).host(host(1)).build()
    }
}

pub(crate) fn host(number: u8) -> HostIdentity {
    HostIdentity::from_uuid(Uuid::from_bytes([number; 16]))
}

/// The identifier of the target's subsystem `name`.
pub(crate) fn trid(name: &str) -> TransportId {
    format!("trtype:loop traddr:here subnqn:nqn.2024-01.org.example:{name}").parse().unwrap()
}

/// Options without a background thread, with deadlines that a busy machine does not miss.
pub(crate) fn options() -> ControllerOptions {
    ControllerOptions {
        background_admin: false,
        admin_timeout: Duration::from_secs(20),
        io_timeout: Some(Duration::from_secs(20)),
        connect_timeout: Duration::from_secs(20),
        num_io_queues: 8,
        io_queue_size: 4,
        io_queue_requests: 8,
        ..ControllerOptions::default()
    }
}

/// The same, with deadlines a test can wait for.
pub(crate) fn impatient() -> ControllerOptions {
    let short = Duration::from_millis(500);
    ControllerOptions { admin_timeout: short, io_timeout: Some(short), ..options() }
}

/// An entry of the discovery log for the subsystem `name`.
pub(crate) fn entry(name: &str) -> DiscoveryLogEntry {
    let mut entry = DiscoveryLogEntry {
        trtype: TransportTypeCode::LOOP,
        subtype: SubsystemType::NVM,
        ..DiscoveryLogEntry::default()
    };
    entry.traddr[..4].copy_from_slice(b"here");
    let nqn = format!("nqn.2024-01.org.example:{name}");
    entry.subnqn[..nqn.len()].copy_from_slice(nqn.as_bytes());
    entry
}

impl Transport for Target {
    fn trtype(&self) -> TransportType {
        TransportType::Loop
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        _options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        let registers = Arc::new(Mutex::new(Registers { cc: 0, csts: 0, kato_ms: 0 }));
        Ok(Box::new(Ctrlr { target: self.clone(), registers, discovery: trid.is_discovery() }))
    }
}

/// The properties of one controller.
struct Registers {
    cc: u32,
    csts: u32,
    kato_ms: u32,
}

struct Ctrlr {
    target: Target,
    registers: Arc<Mutex<Registers>>,
    discovery: bool,
}

impl TransportController for Ctrlr {
    fn capabilities(&self) -> Capabilities {
        Capabilities::fabrics()
    }

    fn create_qpair(&mut self, setup: &QpairSetup) -> Result<Box<dyn TransportQpair>> {
        let mut knobs = self.target.knobs();
        knobs.connections += 1;
        knobs.log.push(format!("open {}", setup.qid));
        Ok(Box::new(Qpair {
            target: self.target.clone(),
            registers: Arc::clone(&self.registers),
            discovery: self.discovery,
            qid: setup.qid,
            polls_left: knobs.connect_polls,
            commands: VecDeque::new(),
            open: true,
        }))
    }

    fn identified(&mut self, _identify: &IdentifyController) -> Result<()> {
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

struct Qpair {
    target: Target,
    registers: Arc<Mutex<Registers>>,
    discovery: bool,
    qid: u16,
    polls_left: usize,
    /// Taken and not answered.
    commands: VecDeque<(u16, Sqe)>,
    open: bool,
}

/// Status and DW1:DW0 of a completion.
type Answer = (Status, u64);

const OK: Option<Answer> = Some((Status::SUCCESS, 0));

impl Qpair {
    fn close(&mut self) {
        if std::mem::replace(&mut self.open, false) {
            let delay = self.target.knobs().close_takes;
            std::thread::sleep(delay);
            let mut knobs = self.target.knobs();
            knobs.connections -= 1;
            knobs.log.push(format!("close {}", self.qid));
        }
    }

    /// The answer to a command; `None` keeps it.
    fn answer(&self, knobs: &mut Knobs, slot: u16, sqe: &Sqe, tracker: &mut Tracker) -> Option<Answer> {
        let aborted = (self.qid, sqe.cid.get());
        if let Some(index) = knobs.aborted.iter().position(|&command| command == aborted) {
            knobs.aborted.remove(index);
            return Some((Status::ABORT_REQUESTED, 0));
        }
        if sqe.opcode == AdminOpcode::FABRICS.0 {
            self.fabrics(knobs, slot, sqe, tracker)
        } else if self.qid == 0 {
            self.admin(knobs, slot, sqe, tracker)
        } else {
            io(knobs, slot, sqe, tracker)
        }
    }

    fn fabrics(&self, knobs: &mut Knobs, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Option<Answer> {
        let mut registers = self.registers.lock().unwrap();
        match FabricsType(sqe.fctype()) {
            FabricsType::CONNECT => {
                let fields = ConnectFields::of(sqe);
                assert_eq!(fields.qid, self.qid);
                let (data, _) = ConnectData::read_from_prefix(tracker.chunk(slot, 0)).unwrap();
                knobs.hosts.push(String::from_utf8_lossy(&data.hostnqn).trim_end_matches('\0').to_owned());
                if self.qid == 0 {
                    registers.kato_ms = fields.kato_ms;
                    knobs.next_cntlid += 1;
                }
                if self.qid != 0 && knobs.forget_controllers {
                    let at_fault = InvalidParameter::CNTLID.to_dw0();
                    return Some((Status::CONNECT_INVALID_PARAMETERS, at_fault.into()));
                }
                if self.qid != 0 && knobs.refuse_io_queues {
                    return Some((Status::CONNECT_CONTROLLER_BUSY, 0));
                }
                Some((knobs.connect_status, u64::from(knobs.next_cntlid - 1)))
            }
            FabricsType::PROPERTY_GET => {
                let value = match PropertyOffset(sqe.cdw11.get()) {
                    PropertyOffset::CAP => 127 | 1 << 16 | 2 << 24 | 1 << 37,
                    PropertyOffset::VS => u64::from(Version::V1_4.0),
                    PropertyOffset::CC => u64::from(registers.cc),
                    PropertyOffset::CSTS => u64::from(registers.csts),
                    _ => return Some((Status::INVALID_FIELD, 0)),
                };
                Some((Status::SUCCESS, value))
            }
            FabricsType::PROPERTY_SET => {
                registers.cc = property_set_value(sqe) as u32;
                let cc = ControllerConfig(registers.cc);
                let notified = cc.shn() != Shn::NONE;
                knobs.shutdowns += usize::from(notified);
                let shut_down = notified && knobs.confirm_shutdown;
                registers.csts = u32::from(cc.en()) | u32::from(shut_down) << 3;
                OK
            }
            _ => Some((Status::INVALID_OPCODE, 0)),
        }
    }

    fn admin(&self, knobs: &mut Knobs, slot: u16, sqe: &Sqe, tracker: &mut Tracker) -> Option<Answer> {
        let nsid = sqe.nsid.get();
        let mut send = |bytes: &[u8]| {
            let len = bytes.len().min(tracker.data_len(slot) as usize);
            assert!(tracker.write(slot, 0, &bytes[..len]));
            OK
        };
        match AdminOpcode(sqe.opcode) {
            AdminOpcode::IDENTIFY => match Cns(sqe.cdw10.get() as u8) {
                Cns::CONTROLLER => {
                    let mut data = [0; 4096];
                    data[77] = knobs.mdts;
                    data[92..96].copy_from_slice(&0x8000_0100u32.to_le_bytes()); // OAES
                    data[111] = if self.discovery { 2 } else { 1 };
                    data[259] = 1; // AERL
                    data[320] = 1; // KAS
                    data[516] = 8; // NN
                    send(&data)
                }
                Cns::ACTIVE_NAMESPACE_LIST => {
                    let ids = knobs.nsids.iter().filter(|&&id| id > nsid);
                    send(&ids.flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
                }
                Cns::NAMESPACE if knobs.nsids.contains(&nsid) => {
                    knobs.identified.push(nsid);
                    let mut data = [0; 4096];
                    data[..8].copy_from_slice(&BLOCKS.to_le_bytes());
                    data[130] = 9;
                    send(&data)
                }
                Cns::NAMESPACE_DESCRIPTORS => OK,
                _ => Some((Status::INVALID_FIELD, 0)),
            },
            AdminOpcode::SET_FEATURES => {
                let queues = u64::from(knobs.io_queues - 1);
                let count = FeatureId(sqe.cdw10.get() as u8) == FeatureId::NUMBER_OF_QUEUES;
                Some((Status::SUCCESS, if count { queues | queues << 16 } else { 0 }))
            }
            AdminOpcode::GET_FEATURES => {
                Some((Status::SUCCESS, u64::from(self.registers.lock().unwrap().kato_ms)))
            }
            AdminOpcode::GET_LOG_PAGE => {
                let dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13];
                let read = GetLogPage::from_cdw10_13(dwords.map(|dword| dword.get()));
                if read.lid == LogPageId::CHANGED_NAMESPACES {
                    let mut page: Vec<u8> = knobs.changed.iter().flat_map(|id| id.to_le_bytes()).collect();
                    page.resize(4096, 0);
                    return send(&page);
                }
                let header = DiscoveryLogHeader::new(1, knobs.discovery.len() as u64);
                let mut page = header.as_bytes().to_vec();
                page.extend_from_slice(knobs.discovery.as_bytes());
                send(page.get(read.offset as usize..).unwrap_or_default())
            }
            AdminOpcode::KEEP_ALIVE if !knobs.answer_keep_alive => None,
            AdminOpcode::KEEP_ALIVE => {
                knobs.keep_alives += 1;
                OK
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                let event = knobs.events.pop_front().or(knobs.endless_event)?;
                knobs.events_reported += 1;
                Some((Status::SUCCESS, u64::from(event)))
            }
            AdminOpcode::ABORT => {
                knobs.aborted.push((sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16));
                OK
            }
            AdminOpcode(VENDOR_ADMIN) if knobs.hold => None,
            AdminOpcode(VENDOR_ADMIN) => Some((Status::SUCCESS, u64::from(sqe.cdw10.get()))),
            _ => Some((Status::INVALID_OPCODE, 0)),
        }
    }
}

fn io(knobs: &mut Knobs, slot: u16, sqe: &Sqe, tracker: &mut Tracker) -> Option<Answer> {
    if knobs.hold {
        return None;
    }
    let first = sqe.slba() as usize * BLOCK;
    let last = first + tracker.data_len(slot) as usize;
    match NvmOpcode(sqe.opcode) {
        NvmOpcode::FLUSH => OK,
        _ if last > knobs.disk.len() => Some((Status::LBA_OUT_OF_RANGE, 0)),
        NvmOpcode::READ => {
            assert!(tracker.write(slot, 0, &knobs.disk[first..last]));
            OK
        }
        NvmOpcode::WRITE => {
            let mut done = 0;
            while first + done < last {
                let chunk = tracker.chunk(slot, done as u32);
                knobs.disk[first + done..first + done + chunk.len()].copy_from_slice(chunk);
                done += chunk.len();
            }
            OK
        }
        _ => Some((Status::INVALID_OPCODE, 0)),
    }
}

impl TransportQpair for Qpair {
    fn poll_connect(&mut self, _now: Instant) -> Result<ConnectProgress> {
        if self.polls_left > 0 {
            self.polls_left -= 1;
            return Ok(ConnectProgress::Pending);
        }
        Ok(ConnectProgress::Established)
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, _tracker: &Tracker) -> Result<()> {
        self.commands.push_back((slot, *sqe));
        Ok(())
    }

    fn flush(&mut self, _tracker: &Tracker) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        let target = self.target.clone();
        let mut knobs = target.knobs();
        if knobs.cut {
            return Err(Error::disconnected(format!("the target cut queue {}", self.qid)));
        }
        for _ in 0..self.commands.len() {
            let Some((slot, sqe)) = self.commands.pop_front() else { break };
            let answer = match tracker.completed() < budget {
                true => self.answer(&mut knobs, slot, &sqe, tracker),
                false => None,
            };
            match answer {
                Some((status, value)) => {
                    tracker.complete(slot, Cqe::new(sqe.cid.get(), 0, status).with_result64(value));
                }
                None => self.commands.push_back((slot, sqe)),
            }
        }
        Ok(())
    }

    fn disconnect(&mut self, _now: Instant) -> Quiesce {
        self.close();
        Quiesce::Done
    }

    fn event_fd(&self) -> Option<RawFd> {
        None
    }
}

impl Drop for Qpair {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits until `condition` holds; fails the test after `limit`.
pub(crate) fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
