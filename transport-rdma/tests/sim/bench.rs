// UNSAFETY: the tests' word that they write to memory as a controller does (docs/safety.md, A1). Nothing is accessed here.

//! A queue pair over the simulated fabric and, on the same thread, the controller it talks to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use nvmf_core::dma::{DmaPool, IoBuf};
use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::data_ptr::{SglDescriptor, SglType};
use nvmf_core::spec::fabrics;
use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::spec::rdma::CmAccept;
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::transport::{
    ConnectProgress, GroupShares, QpairSetup, Quiesce, TransportController, TransportQpair,
};
use nvmf_core::{ControllerOptions, Error, Result, TransportId};
use nvmf_transport_rdma::sim::{Sim, SimConnection, SimListener, SimPeer};
use nvmf_transport_rdma::{RdmaController, RdmaOptions, RdmaQpair, RdmaTransport};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What the controller says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) ioccsz: u32,
    pub(crate) icdoff: u16,
    pub(crate) msdbd: u8,
    pub(crate) sgls: u32,
}

/// Keyed SGLs, offsets; 4 KiB of data in capsules.
pub(crate) const IDENTITY: Identity =
    Identity { ioccsz: 260, icdoff: 0, msdbd: 4, sgls: 1 | 1 << 2 | 1 << 20 };

pub(crate) fn trid(address: SocketAddr) -> TransportId {
    TransportId::rdma(&address.ip().to_string(), address.port()).unwrap()
}

/// A controller that listens.
pub(crate) struct Target {
    pub(crate) sim: Sim,
    pub(crate) listener: SimListener,
    pub(crate) controller: RdmaController<Sim>,
    /// Receives the controller grants each queue.
    pub(crate) crqsize: u16,
}

impl Target {
    pub(crate) fn new(sim: Sim) -> Self {
        Self::with(sim, RdmaOptions::default(), &ControllerOptions::default(), IDENTITY)
    }

    pub(crate) fn with(sim: Sim, rdma: RdmaOptions, options: &ControllerOptions, identity: Identity) -> Self {
        // SAFETY: the tests write where the commands say that they have taken.
        let listener = unsafe { sim.listen("192.0.2.1:0".parse().unwrap(), Arc::new(|| {})) }.unwrap();
        let transport = RdmaTransport::with_provider(sim.clone()).with_options(rdma);
        let mut controller = transport.controller(&trid(listener.local_addr()), options).unwrap();
        let mut identify = IdentifyController::new_zeroed();
        identify.ioccsz = U32::new(identity.ioccsz);
        identify.icdoff = U16::new(identity.icdoff);
        identify.msdbd = identity.msdbd;
        identify.sgls = U32::new(identity.sgls);
        identify.cntlid = U16::new(0x0a0b);
        controller.identified(&identify).unwrap();
        Self { sim, listener, controller, crqsize: 0 }
    }

    pub(crate) fn qpair(&mut self, qid: u16, entries: u16) -> RdmaQpair<Sim> {
        self.qpair_within(qid, entries, Duration::from_secs(60))
    }

    pub(crate) fn qpair_within(&mut self, qid: u16, entries: u16, time: Duration) -> RdmaQpair<Sim> {
        let setup =
            QpairSetup { qid, entries, slots: entries - 1, deadline: Instant::now() + time, priority: 0 };
        self.controller.connect_qpair(&setup).unwrap()
    }

    /// Connects a queue pair and accepts it.
    pub(crate) fn connect(&mut self, qid: u16, entries: u16) -> Bench {
        let qpair = self.qpair(qid, entries);
        self.accept(qpair, entries)
    }

    /// Connects a queue pair of a poll group.
    pub(crate) fn connect_in(&mut self, shares: &GroupShares, qid: u16, entries: u16) -> Bench {
        let mut qpair = self.qpair(qid, entries);
        qpair.join_group(shares);
        self.accept(qpair, entries)
    }

    fn accept(&mut self, mut qpair: RdmaQpair<Sim>, entries: u16) -> Bench {
        assert_eq!(qpair.poll_connect(Instant::now()).unwrap(), ConnectProgress::Pending);
        let request = self.listener.next_request().expect("a connect request");
        let granted = if self.crqsize == 0 { entries } else { self.crqsize };
        let peer = request.accept(CmAccept::new(granted).as_bytes(), u32::from(granted), Arc::new(|| {}));
        assert_eq!(qpair.poll_connect(Instant::now()).unwrap(), ConnectProgress::Established);
        let connection = self.sim.connections().pop().unwrap();
        Bench {
            tracker: Tracker::new(entries - 1, 4096, true),
            qpair,
            peer,
            connection,
            pool: DmaPool::new(),
            next_op: 0,
            operations: HashMap::new(),
        }
    }
}

/// A connected queue pair, its tracker, and the controller's end.
pub(crate) struct Bench {
    pub(crate) qpair: RdmaQpair<Sim>,
    pub(crate) tracker: Tracker,
    pub(crate) peer: SimPeer,
    pub(crate) connection: SimConnection,
    pub(crate) pool: DmaPool,
    next_op: u32,
    /// Operations by slot.
    operations: HashMap<u16, u32>,
}

/// A command as the controller sees it.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) sqe: Sqe,
    pub(crate) capsule: Vec<u8>,
}

impl Command {
    pub(crate) fn cid(&self) -> u16 {
        self.sqe.cid.get()
    }

    pub(crate) fn sgl(&self) -> SglDescriptor {
        self.sqe.dptr.as_sgl()
    }
}

impl Bench {
    /// Submits a command with these buffers; returns its command identifier.
    pub(crate) fn submit(&mut self, sqe: Sqe, buf: impl Into<IoBuf>) -> Result<u16> {
        let op = self.next_op;
        self.next_op += 1;
        let buf = buf.into();
        let len = buf.len() as u32;
        self.tracker.put_buf(op, buf);
        let direction = sqe.direction();
        let (slot, cid) = self.tracker.begin(op, 0, len, direction).expect("a free slot");
        self.operations.insert(slot, op);
        let mut sqe = sqe;
        sqe.cid = U16::new(cid);
        self.qpair.submit(slot, &sqe, &self.tracker)?;
        Ok(cid)
    }

    pub(crate) fn read(&mut self, len: usize) -> Result<u16> {
        let buf = self.pool.alloc(len).unwrap();
        self.submit(Sqe::nvm(NvmOpcode::READ, 1), buf)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<u16> {
        let buf = self.pool.copy_from(bytes).unwrap();
        self.submit(Sqe::nvm(NvmOpcode::WRITE, 1), buf)
    }

    pub(crate) fn connect_command(&mut self, qid: u16, entries: u16, cattr: u8) -> u16 {
        let data = self.pool.alloc(1024).unwrap();
        self.submit(fabrics::connect(qid, entries - 1, cattr, 0), data).unwrap()
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.qpair.flush(&self.tracker)
    }

    /// The next command at the controller, which posts its receive again.
    pub(crate) fn take(&mut self) -> Option<Command> {
        let capsule = self.peer.receive()?;
        self.peer.post_receives(1);
        let sqe = Sqe::read_from_bytes(&capsule[..64]).unwrap();
        Some(Command { sqe, capsule })
    }

    pub(crate) fn answer(&mut self, cid: u16) {
        self.answer_with(Cqe::new(cid, 0, Status::SUCCESS));
    }

    pub(crate) fn answer_with(&mut self, cqe: Cqe) {
        self.peer.send(cqe.as_bytes(), None).unwrap();
    }

    /// Serves a command: data in memory is filled with, or checked to be, `byte`.
    pub(crate) fn serve(&mut self, command: &Command, byte: u8) {
        let sgl = command.sgl();
        if sgl.sgl_type() == SglType::KEYED_DATA_BLOCK {
            let mut data = vec![byte; sgl.keyed_length() as usize];
            if command.sqe.direction() == DataDirection::ControllerToHost {
                self.peer.write(sgl.address.get(), sgl.key(), &data).unwrap();
            } else {
                self.peer.read(sgl.address.get(), sgl.key(), &mut data).unwrap();
                assert!(data.iter().all(|&found| found == byte), "data of {:#x}", command.cid());
            }
        }
        self.answer(command.cid());
    }

    pub(crate) fn poll(&mut self) -> Result<()> {
        self.qpair.poll(&mut self.tracker, usize::MAX)
    }

    /// What completed: command identifier and data.
    pub(crate) fn completed(&mut self) -> Vec<(u16, Vec<u8>)> {
        let mut done = Vec::new();
        for index in 0..self.tracker.completed() {
            let (op, _, _, cqe) = self.tracker.take_completed(index).unwrap();
            self.operations.retain(|_, known| *known != op);
            let buf = self.tracker.take_buf(op);
            done.push((cqe.cid.get(), buf.bufs().iter().flat_map(|buf| buf.to_vec()).collect()));
        }
        self.tracker.clear_completed();
        done
    }

    /// Polls and takes what completed.
    pub(crate) fn drain(&mut self) -> Vec<(u16, Vec<u8>)> {
        self.poll().unwrap();
        self.completed()
    }

    /// Whether the queue pair's descriptor is readable now.
    pub(crate) fn is_readable(&self) -> bool {
        let mut poll = mio::Poll::new().unwrap();
        let fd = self.qpair.event_fd().unwrap();
        poll.registry().register(&mut SourceFd(&fd), mio::Token(0), mio::Interest::READABLE).unwrap();
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        !events.is_empty()
    }

    /// Polls until the queue pair fails.
    pub(crate) fn failure(&mut self) -> Error {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match self.poll() {
                Err(error) => return error,
                Ok(()) => assert!(Instant::now() < until, "the queue pair does not fail"),
            }
        }
    }

    /// Gives the queue pair up until there is an answer.
    pub(crate) fn quiesce(&mut self) -> Quiesce {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match self.qpair.disconnect(Instant::now()) {
                Quiesce::Pending => assert!(Instant::now() < until, "it does not quiesce"),
                end => return end,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
