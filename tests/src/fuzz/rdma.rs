//! An NVMe/RDMA queue pair, as a hostile controller and a failing device treat it.

// UNSAFETY: a promise to write to no memory.
#[expect(unsafe_code, reason = "listens on the simulated fabric")]
mod listen;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::spec::rdma::CmAccept;
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status, fabrics};
use nvmf_core::transport::{ConnectProgress, QpairSetup, Quiesce, TransportController, TransportQpair};
use nvmf_core::{ControllerOptions, DmaPool, IoBuf, TransportId};
use nvmf_transport_rdma::sim::{CmEvent, Sim, SimConnection, SimPeer, WorkStatus};
use nvmf_transport_rdma::{RdmaQpair, RdmaTransport};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Bytes;

const ENTRIES: u16 = 8;
const SLOTS: u16 = ENTRIES - 1;
const MARK: u8 = 0xa5;
/// Inputs that ask for more are cut short.
const STEPS: usize = 600;

/// A command that was submitted and is not over.
struct Open {
    cid: u16,
    is_write: bool,
}

struct Rig {
    pool: DmaPool,
    tracker: Tracker,
    qpair: RdmaQpair<Sim>,
    peer: SimPeer,
    connection: SimConnection,
    open: HashMap<u32, Open>,
    next_op: u32,
    submitted: HashSet<u16>,
    /// Command identifiers the controller has taken and not answered.
    taken: VecDeque<u16>,
    /// Responses on their way, by command identifier.
    answers: HashMap<u16, Vec<[u8; 16]>>,
}

/// Identify data with any of the fields that shape capsules, and any answer to the connect request. None when it is refused.
fn connect(bytes: &mut Bytes<'_>) -> Option<Rig> {
    let sim = Sim::new();
    let listener = listen::listen(&sim);
    let trid = TransportId::rdma("192.0.2.1", 4420).expect("an address");
    let transport = RdmaTransport::with_provider(sim.clone());
    let mut controller = transport.controller(&trid, &ControllerOptions::default()).expect("a controller");
    let choice = bytes.byte();
    let mut identify = IdentifyController::new_zeroed();
    identify.sgls = U32::new(1 | 1 << 2 | 1 << 20);
    identify.ioccsz = U32::new(260);
    if choice & 1 != 0 {
        identify.sgls = U32::new(bytes.u64() as u32);
        identify.ioccsz = U32::new(bytes.u64() as u32);
        identify.icdoff = U16::new(bytes.u64() as u16);
        identify.msdbd = bytes.byte();
    }
    if controller.identified(&identify).is_err() {
        return None;
    }
    let now = Instant::now();
    let deadline = now + Duration::from_secs(60);
    let setup = QpairSetup { qid: 1, entries: ENTRIES, slots: SLOTS, deadline, priority: 0 };
    let mut qpair = controller.connect_qpair(&setup).expect("a queue pair");
    assert_eq!(qpair.poll_connect(now).expect("no answer yet"), ConnectProgress::Pending);
    let request = listener.next_request().expect("a connect request");
    let peer = if choice & 2 != 0 {
        let len = bytes.below(256);
        let private_data = bytes.take(len);
        if choice & 4 != 0 {
            request.reject_for(bytes.byte().into(), private_data);
            assert!(!matches!(qpair.poll_connect(now), Ok(ConnectProgress::Established)), "it was rejected");
            assert_eq!(give_up(&mut qpair, now), Quiesce::Done);
            return None;
        }
        request.accept(private_data, ENTRIES.into(), Arc::new(|| {}))
    } else {
        let granted = 1 + u16::from(choice >> 3) % ENTRIES;
        request.accept(CmAccept::new(granted).as_bytes(), granted.into(), Arc::new(|| {}))
    };
    match qpair.poll_connect(now) {
        Ok(ConnectProgress::Established) => {}
        Ok(progress) => panic!("{progress:?} after the connection was accepted"),
        Err(_) => {
            assert_eq!(give_up(&mut qpair, now), Quiesce::Done);
            return None;
        }
    }
    let connection = sim.connections().pop().expect("the connection");
    Some(Rig {
        pool: super::pool(),
        tracker: Tracker::new(SLOTS, u32::from(SLOTS), true),
        qpair,
        peer,
        connection,
        open: HashMap::new(),
        next_op: 0,
        submitted: HashSet::new(),
        taken: VecDeque::new(),
        answers: HashMap::new(),
    })
}

/// Gives the queue pair up, whether or not its work is flushed.
fn give_up(qpair: &mut RdmaQpair<Sim>, now: Instant) -> Quiesce {
    match qpair.disconnect(now) {
        Quiesce::Pending => {
            let end = qpair.disconnect(now + Duration::from_secs(10));
            assert_ne!(end, Quiesce::Pending, "nothing is waited for without end");
            end
        }
        end => end,
    }
}

impl Rig {
    /// Submits a command if there is a slot. False when the queue pair is broken.
    fn submit(&mut self, choice: u8) -> bool {
        if self.tracker.free_slots() == 0 {
            return true;
        }
        let op = (0..u32::from(SLOTS)).cycle().skip(self.next_op as usize);
        let op = op.take(SLOTS.into()).find(|op| !self.open.contains_key(op)).expect("an operation");
        self.next_op = (op + 1) % u32::from(SLOTS);
        let (mut sqe, len) = match choice % 8 {
            0 | 1 => (Sqe::nvm(NvmOpcode::READ, 1), 4096 * usize::from(choice >> 3)),
            2 | 3 => (Sqe::nvm(NvmOpcode::WRITE, 1), 512 * usize::from(choice >> 3)),
            4 => (fabrics::connect(1, ENTRIES - 1, choice >> 3, 0), 1024),
            _ => (Sqe::nvm(NvmOpcode::FLUSH, 1), 0),
        };
        let direction = sqe.direction();
        let mut left = len;
        let mut pieces = Vec::new();
        while left > 0 {
            // More pieces than descriptors: they are copied into one.
            let piece = if choice & 0x80 != 0 { left } else { left.min(700) };
            let mut buf = self.pool.alloc(piece).expect("memory");
            buf.fill(MARK);
            pieces.push(buf);
            left -= piece;
        }
        self.tracker.put_buf(op, IoBuf::from(pieces));
        let (slot, cid) = self.tracker.begin(op, 0, len as u32, direction).expect("a slot");
        sqe.cid = U16::new(cid);
        let is_write = direction == DataDirection::HostToController;
        self.submitted.insert(cid);
        self.open.insert(op, Open { cid, is_write });
        self.qpair.submit(slot, &sqe, &self.tracker).is_ok()
    }

    /// The controller sends a message.
    fn send(&mut self, message: &[u8], invalidate: Option<u32>) {
        if self.peer.send(message, invalidate).is_ok()
            && let Ok(cqe) = <[u8; 16]>::try_from(message)
        {
            let cid = u16::from_le_bytes([cqe[12], cqe[13]]);
            self.answers.entry(cid).or_default().push(cqe);
        }
    }

    /// False when the queue pair is broken.
    fn poll(&mut self, budget: usize) -> bool {
        let alive =
            self.qpair.flush(&self.tracker).is_ok() && self.qpair.poll(&mut self.tracker, budget).is_ok();
        assert!(self.tracker.completed() <= budget, "more than the budget");
        self.collect();
        alive
    }

    /// Every operation completes at most once, with a response that was sent for it, and the data of a write is what it was.
    fn collect(&mut self) {
        for index in 0..self.tracker.completed() {
            let (op, _, _, cqe) = self.tracker.take_completed(index).expect("a completion");
            let open = self.open.remove(&op).expect("an operation that is open");
            assert_eq!(cqe.cid.get(), open.cid, "another command's response");
            let sent =
                self.answers.get(&open.cid).is_some_and(|sent| sent.iter().any(|s| s == cqe.as_bytes()));
            assert!(sent, "a response that was never sent");
            let buf = self.tracker.take_buf(op);
            assert!(
                !open.is_write || buf.bufs().iter().all(|b| b.iter().all(|&byte| byte == MARK)),
                "a write's data changed"
            );
        }
        self.tracker.clear_completed();
    }

    /// One thing that happens. False when the queue pair is broken.
    fn step(&mut self, bytes: &mut Bytes<'_>) -> bool {
        let choice = bytes.byte();
        match choice % 16 {
            0..3 => return self.submit(bytes.byte()),
            3 | 4 => {
                if let Some(capsule) = self.peer.receive() {
                    let sqe = Sqe::read_from_prefix(&capsule).expect("a whole entry").0;
                    // It may have been answered before it was taken.
                    assert!(self.submitted.contains(&sqe.cid.get()), "a command that was never submitted");
                    self.taken.push_back(sqe.cid.get());
                }
            }
            5..8 => {
                // The answer to a command, right but for what the input says.
                let at = usize::from(choice >> 4).min(self.taken.len().saturating_sub(1));
                if let Some(cid) = self.taken.remove(at) {
                    let mut cqe = Cqe::new(cid, 0, Status::SUCCESS);
                    cqe.sqhd = U16::new(u16::from(bytes.byte()).wrapping_sub(1));
                    self.peer.post_receives(1);
                    self.send(cqe.as_bytes(), None);
                }
            }
            8 => {
                let cid = u16::from(choice >> 4) | u16::from(bytes.byte()) << 8;
                self.send(Cqe::new(cid, bytes.byte().into(), Status::SUCCESS).as_bytes(), None);
            }
            9 => {
                let len = bytes.below(40);
                let message = bytes.fill(len);
                self.send(&message, None);
            }
            10 => {
                let key = bytes.u64() as u32;
                let cid = self.taken.pop_front().unwrap_or_default();
                self.send(Cqe::new(cid, 0, Status::SUCCESS).as_bytes(), Some(key));
            }
            11 => {
                self.connection.event(match choice >> 4 {
                    0 => CmEvent::Disconnected,
                    1 => CmEvent::DeviceRemoved,
                    2 => CmEvent::AddressChanged,
                    3 => CmEvent::Unreachable(-i32::from(bytes.byte())),
                    4 => CmEvent::TimeWaitExit,
                    5 => CmEvent::Established { private_data: bytes.fill(32) },
                    6 => CmEvent::Rejected { reason: bytes.byte().into(), private_data: bytes.fill(4) },
                    other => CmEvent::Other(other.into()),
                });
            }
            12 => self.connection.hold_sends(choice & 0x10 != 0),
            13 => match choice >> 4 {
                0 => self.connection.fail(None),
                1 => self.connection.fail(Some(WorkStatus(bytes.byte().into()))),
                2 => self.connection.lose_completions(true),
                3 => self.connection.withhold_flush(),
                4 => self.connection.stall(true),
                5 => self.connection.stall(false),
                _ => self.peer.post_receives(1),
            },
            _ => return self.poll(usize::from(bytes.byte())),
        }
        true
    }
}

/// Any messages, events and failures on a queue pair in use: each command ends at most once and by its own response, and giving up
/// comes to an end.
pub(super) fn responses(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let Some(mut rig) = connect(&mut bytes) else { return };
    let mut alive = true;
    for _ in 0..STEPS {
        if bytes.is_empty() || !alive {
            break;
        }
        alive = rig.step(&mut bytes);
    }
    rig.collect();
    if !alive {
        assert!(rig.qpair.poll(&mut rig.tracker, 8).is_err(), "it stays broken");
        assert_eq!(rig.tracker.completed(), 0, "nothing completes on a broken queue pair");
    }
    assert_eq!(give_up(&mut rig.qpair, Instant::now()), Quiesce::Done);
    assert!(!rig.peer.is_connected(), "the connection is up after it was given up");
    assert_eq!(rig.tracker.in_flight(), rig.open.len(), "commands in flight");
}
