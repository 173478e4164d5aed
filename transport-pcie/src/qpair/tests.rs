use nvmf_core::dma::IoBuf;
use nvmf_core::spec::{AdminOpcode, NvmOpcode};
use nvmf_core::transport::TransportController;
use nvmf_core::{DmaPool, ErrorKind};

use nvmf_core::dma::DMA_PAGE;

use zerocopy::little_endian::U16;

use super::*;
use crate::PcieController;
use crate::testing::{Fake, opcode, setup};

const PAGE: u64 = DMA_PAGE as u64;

/// A device, its controller with an enabled admin queue, and an I/O queue pair of `entries`, not yet created.
pub(crate) struct Bench {
    pub(crate) fake: Fake,
    pub(crate) controller: PcieController,
    pub(crate) qpair: PcieQpair,
    pub(crate) tracker: Tracker,
    pub(crate) pool: DmaPool,
    /// Where the metadata of the next commands starts in its buffer.
    pub(crate) metadata_offset: usize,
}

impl Bench {
    pub(crate) fn new(entries: u16) -> Self {
        let fake = Fake::new();
        let controller = fake.controller();
        Self::on(fake, controller, entries)
    }

    /// An I/O queue pair of this controller.
    pub(crate) fn on(fake: Fake, mut controller: PcieController, entries: u16) -> Self {
        let qpair = controller.pcie_qpair(&setup(1, entries)).unwrap();
        let tracker = Tracker::new(entries - 1, u32::from(entries), true);
        Self { fake, controller, qpair, tracker, pool: DmaPool::new(), metadata_offset: 0 }
    }

    pub(crate) fn created(entries: u16) -> Self {
        let mut bench = Self::new(entries);
        bench.create();
        bench
    }

    pub(crate) fn create(&mut self) {
        for _ in 0..2 {
            assert!(matches!(self.qpair.poll_connect(Instant::now()), Ok(ConnectProgress::Admin(_))));
            self.qpair.admin_completed(&Cqe::default()).unwrap();
        }
        assert!(matches!(self.qpair.poll_connect(Instant::now()), Ok(ConnectProgress::Established)));
    }

    /// Submits a command on `buf`; returns its identifier.
    pub(crate) fn submit(&mut self, op: u32, opcode: NvmOpcode, buf: IoBuf) -> u16 {
        let mut sqe = Sqe::nvm(opcode, 1);
        let len = buf.len() as u32;
        self.tracker.put_buf(op, buf);
        let (slot, cid) = self.tracker.begin(op, 0, len, sqe.direction()).unwrap();
        // What is submitted is a piece: its metadata starts where the caller says.
        let metadata = self.tracker.buf(op).metadata().map(|metadata| metadata.len());
        if let Some(len) = metadata {
            self.tracker.set_metadata(slot, self.metadata_offset, (len - self.metadata_offset) as u32);
        }
        sqe.cid = U16::new(cid);
        self.qpair.submit(slot, &sqe, &self.tracker).unwrap();
        cid
    }

    pub(crate) fn flush_command(&mut self, op: u32) -> u16 {
        self.submit(op, NvmOpcode::FLUSH, IoBuf::None)
    }

    pub(crate) fn poll(&mut self) -> Vec<(u32, Status)> {
        self.qpair.poll(&mut self.tracker, usize::MAX).unwrap();
        self.take()
    }

    pub(crate) fn take(&mut self) -> Vec<(u32, Status)> {
        let count = self.tracker.completed();
        let done = (0..count)
            .map(|i| self.tracker.take_completed(i).map(|(op, _, _, cqe)| (op, cqe.status())).unwrap())
            .collect();
        self.tracker.clear_completed();
        done
    }

    pub(crate) fn poll_error(&mut self) -> Error {
        self.qpair.poll(&mut self.tracker, usize::MAX).unwrap_err()
    }

    /// Begins to give the admin queue up, which deletes the I/O queue first, and answers that.
    pub(crate) fn retire(&self, admin: &mut PcieQpair, now: Instant) {
        let (asq, acq) = admin.ring_addresses();
        assert_eq!(admin.disconnect(now), Quiesce::Pending);
        assert_eq!(self.fake.state().registers[&0x14] & 1, 1, "CC.EN");
        let opcodes = [AdminOpcode::DELETE_IO_SQ, AdminOpcode::DELETE_IO_CQ];
        for (index, expected) in (0..).zip(opcodes) {
            assert_eq!(admin.disconnect(now), Quiesce::Pending);
            let sqe = self.fake.command(asq, index);
            assert_eq!((opcode(&sqe), sqe.cdw10.get()), (expected, 1));
            self.fake.post(acq, index, 0, sqe.cid.get(), Status::SUCCESS, true);
        }
    }

    pub(crate) fn delete_command(&mut self) -> AdminOpcode {
        assert_eq!(self.qpair.disconnect(Instant::now()), Quiesce::Pending);
        let sqe = self.qpair.quiesce_command().expect("a command");
        assert_eq!(sqe.cdw10.get(), 1, "the queue's identifier");
        assert_eq!(self.qpair.quiesce_command(), Some(sqe), "until its end is told");
        opcode(&sqe)
    }
}

fn status(status: Status) -> Cqe {
    Cqe::new(0, 0, status)
}

#[test]
fn queues_are_created_completion_queue_first() {
    let mut bench = Bench::new(8);
    let (sq, cq) = bench.qpair.ring_addresses();
    let Ok(ConnectProgress::Admin(sqe)) = bench.qpair.poll_connect(Instant::now()) else { panic!() };
    assert_eq!(opcode(&sqe), AdminOpcode::CREATE_IO_CQ);
    assert_eq!(
        (sqe.cdw10.get(), sqe.cdw11.get()),
        (7 << 16 | 1, 1 << 16 | 0b11),
        "size, contiguous, vector 1"
    );
    assert_eq!(sqe.dptr.lo.get(), cq);
    assert!(matches!(bench.qpair.poll_connect(Instant::now()), Ok(ConnectProgress::Pending)));
    bench.qpair.admin_completed(&Cqe::default()).unwrap();
    let Ok(ConnectProgress::Admin(sqe)) = bench.qpair.poll_connect(Instant::now()) else { panic!() };
    assert_eq!(opcode(&sqe), AdminOpcode::CREATE_IO_SQ);
    assert_eq!(
        (sqe.cdw10.get(), sqe.cdw11.get()),
        (7 << 16 | 1, 1 << 16 | 2 << 1 | 1),
        "priority 2, completion queue 1"
    );
    assert_eq!(sqe.dptr.lo.get(), sq);
    assert_eq!((sq % PAGE, cq % PAGE), (0, 0));
    bench.qpair.admin_completed(&Cqe::default()).unwrap();
    assert!(matches!(bench.qpair.poll_connect(Instant::now()), Ok(ConnectProgress::Established)));
}

#[test]
fn a_refused_submission_queue_leaves_only_the_completion_queue_to_delete() {
    let mut bench = Bench::new(8);
    let _ = bench.qpair.poll_connect(Instant::now());
    bench.qpair.admin_completed(&Cqe::default()).unwrap();
    let _ = bench.qpair.poll_connect(Instant::now());
    let error = bench.qpair.admin_completed(&status(Status::INVALID_QUEUE_SIZE)).unwrap_err();
    assert!(error.to_string().contains("Create I/O Submission Queue failed"), "{error}");
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_CQ);
    bench.qpair.quiesce_completed(Some(&Cqe::default()));
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Done);
}

#[test]
fn doorbells_are_rung_once_per_batch_and_the_phase_turns_with_the_ring() {
    let mut bench = Bench::created(4);
    let (sq, cq) = bench.qpair.ring_addresses();
    let (mut tail, mut head, mut phase) = (0u64, 0u64, true);
    let mut acknowledged = Vec::new();
    for round in 0..7u64 {
        let batch = 1 + round % 3;
        let cids: Vec<u16> = (0..batch).map(|op| bench.flush_command(op as u32)).collect();
        bench.fake.state().rung.clear();
        bench.qpair.flush(&bench.tracker).unwrap();
        bench.qpair.flush(&bench.tracker).unwrap();
        for &cid in &cids {
            assert_eq!(bench.fake.command(sq, tail).cid.get(), cid);
            tail = (tail + 1) % 4;
        }
        let rung = std::mem::take(&mut bench.fake.state().rung);
        assert_eq!(rung.last(), Some(&(0x1008, tail as u32)), "one write for the batch");
        // What the last round completed is acknowledged along with the new commands.
        assert_eq!(rung[..rung.len() - 1], *acknowledged);
        assert!(bench.poll().is_empty(), "entries of the last round are not taken again");
        assert!(bench.fake.state().rung.is_empty());
        for &cid in &cids {
            bench.fake.post(cq, head, 1, cid, Status::SUCCESS, phase);
            head += 1;
            if head == 4 {
                (head, phase) = (0, !phase);
            }
        }
        assert_eq!(bench.poll().len() as u64, batch);
        assert!(bench.fake.state().rung.is_empty(), "it has room enough");
        acknowledged = vec![(0x100c, head as u32)];
    }
    assert!(bench.poll().is_empty());
    assert_eq!(
        bench.fake.state().rung,
        acknowledged,
        "nothing was submitted that it could have come along with"
    );
}

#[test]
fn a_far_controller_gets_the_same_commands() {
    const ENTRIES: u16 = 64;
    let mut bench = Bench::created(ENTRIES);
    bench.qpair.distance = Distance::far();
    let (sq, cq) = bench.qpair.ring_addresses();
    let mut posted = 0;
    // Many at a time, past the end of the ring.
    for round in 0..3 {
        let cids: Vec<u16> = (0..50).map(|op| bench.flush_command(op)).collect();
        assert!(bench.qpair.streamed, "more than {DEEP} are in flight");
        bench.qpair.flush(&bench.tracker).unwrap();
        assert!(!bench.qpair.streamed);
        for cid in cids {
            let index = posted % u64::from(ENTRIES);
            let sqe = bench.fake.command(sq, index);
            assert_eq!((sqe.cid.get(), sqe.opcode), (cid, NvmOpcode::FLUSH.0), "round {round}");
            bench.fake.post(cq, index, 1, cid, Status::SUCCESS, posted < u64::from(ENTRIES) || posted >= 128);
            posted += 1;
        }
        assert_eq!(bench.poll().len(), 50);
    }
    // One at a time is waited for, by a controller that has nothing else to do.
    bench.flush_command(0);
    assert!(!bench.qpair.streamed);
}

#[test]
fn the_budget_bounds_a_poll_and_the_rest_is_announced() {
    let mut bench = Bench::created(8);
    let (_, cq) = bench.qpair.ring_addresses();
    for op in 0..3 {
        let cid = bench.flush_command(op);
        bench.fake.post(cq, u64::from(op), 1, cid, Status::SUCCESS, true);
    }
    bench.qpair.poll(&mut bench.tracker, 2).unwrap();
    assert_eq!(bench.take().len(), 2);
    assert!(bench.qpair.has_local_work());
    assert_eq!(bench.poll(), [(2, Status::SUCCESS)]);
    assert!(!bench.qpair.has_local_work());
}

#[test]
fn completions_that_make_no_sense_end_the_queue_pair() {
    type Spoil = fn(&mut Cqe);
    let cases: [(&str, Spoil); 3] = [
        ("command identifier", |cqe| cqe.cid = U16::new(0x7777)),
        ("for submission queue 9", |cqe| cqe.sqid = U16::new(9)),
        ("consumed up to entry 8", |cqe| cqe.sqhd = U16::new(8)),
    ];
    for (expected, spoil) in cases {
        let mut bench = Bench::created(8);
        let (_, cq) = bench.qpair.ring_addresses();
        let mut cqe = Cqe::new(bench.flush_command(0), 1, Status::SUCCESS);
        cqe.sqid = U16::new(1);
        cqe.status_phase = U16::new(1);
        spoil(&mut cqe);
        bench.fake.post_raw(cq, 0, &cqe);
        let error = bench.poll_error();
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_repeated_completion_is_not_taken_twice() {
    let mut bench = Bench::created(8);
    let (_, cq) = bench.qpair.ring_addresses();
    let cid = bench.flush_command(0);
    bench.fake.post(cq, 0, 1, cid, Status::SUCCESS, true);
    bench.fake.post(cq, 1, 1, cid, Status::SUCCESS, true);
    assert!(matches!(bench.poll_error().kind(), ErrorKind::PeerMisbehaved(_)));
    assert_eq!(bench.take().len(), 1);
}

#[test]
fn data_moves_between_device_and_buffer_in_place() {
    let mut bench = Bench::created(8);
    let (sq, cq) = bench.qpair.ring_addresses();
    let buf = bench.pool.alloc(8192).unwrap();
    let cid = bench.submit(0, NvmOpcode::READ, buf.into());
    let sqe = bench.fake.command(sq, 0);
    {
        let state = bench.fake.state();
        state.memory.write(sqe.dptr.lo.get(), &[0xab; 4096]).unwrap();
        state.memory.write(sqe.dptr.hi.get(), &[0xcd; 4096]).unwrap();
    }
    bench.fake.post(cq, 0, 1, cid, Status::SUCCESS, true);
    assert_eq!(bench.poll().len(), 1);
    let buf = bench.tracker.take_buf(0).into_one().unwrap();
    assert!(buf[..4096].iter().all(|&b| b == 0xab) && buf[4096..].iter().all(|&b| b == 0xcd));
}

#[test]
fn buffers_of_odd_lengths_are_copied_both_ways() {
    let mut bench = Bench::created(8);
    let (sq, cq) = bench.qpair.ring_addresses();
    let bufs = |pool: &DmaPool, byte: u8| -> IoBuf {
        let part = |len: usize, byte: u8| {
            let mut buf = pool.alloc(len).unwrap();
            buf.fill(byte);
            buf
        };
        vec![part(512, byte), part(1536, byte + 1), part(2048, byte + 2)].into()
    };
    let (write, read) = (bufs(&bench.pool, 1), bufs(&bench.pool, 0));
    let w = bench.submit(0, NvmOpcode::WRITE, write);
    let r = bench.submit(1, NvmOpcode::READ, read);
    let mut data = [0; 4096];
    {
        let (at, to) = (bench.fake.command(sq, 0).dptr.lo.get(), bench.fake.command(sq, 1).dptr.lo.get());
        let state = bench.fake.state();
        state.memory.read(at, &mut data).unwrap();
        state.memory.write(to, &data).unwrap();
    }
    assert_eq!((data[511], data[512], data[2047], data[2048]), (1, 2, 2, 3));
    bench.fake.post(cq, 0, 1, w, Status::SUCCESS, true);
    bench.fake.post(cq, 1, 1, r, Status::SUCCESS, true);
    assert_eq!(bench.poll().len(), 2);
    let all: Vec<u8> = bench.tracker.take_buf(1).bufs().iter().flat_map(|b| b.to_vec()).collect();
    assert_eq!(all, data);
}

#[test]
fn metadata_is_pointed_to_in_place_or_copied_to_a_dword() {
    let mut bench = Bench::created(8);
    let (sq, cq) = bench.qpair.ring_addresses();
    let both = |pool: &DmaPool, byte: u8| {
        let mut metadata = pool.alloc(18).unwrap();
        metadata.fill(byte);
        IoBuf::with_metadata(pool.alloc(1024).unwrap(), metadata)
    };
    for (round, offset) in [(0, 4), (2, 2)] {
        bench.metadata_offset = offset;
        let (write, read) = (both(&bench.pool, 7), both(&bench.pool, 9));
        let w = bench.submit(0, NvmOpcode::WRITE, write);
        let r = bench.submit(1, NvmOpcode::READ, read);
        let (w_sqe, r_sqe) = (bench.fake.command(sq, round), bench.fake.command(sq, round + 1));
        assert!(w_sqe.flags == 0 && r_sqe.flags == 0, "PRPs");
        assert!(w_sqe.mptr.get().is_multiple_of(4) && r_sqe.mptr.get().is_multiple_of(4));
        let copied = bench.qpair.bounce.iter().flatten().count();
        assert_eq!(copied, if offset == 2 { 2 } else { 0 });
        let mut seen = vec![0; 18 - offset];
        {
            let state = bench.fake.state();
            state.memory.read(w_sqe.mptr.get(), &mut seen).unwrap();
            state.memory.write(r_sqe.mptr.get(), &vec![5; 18 - offset]).unwrap();
        }
        assert_eq!(seen, vec![7; 18 - offset]);
        bench.fake.post(cq, round, 1, w, Status::SUCCESS, true);
        bench.fake.post(cq, round + 1, 1, r, Status::SUCCESS, true);
        assert_eq!(bench.poll().len(), 2);
        let metadata = bench.tracker.take_buf(1).into_parts().1.unwrap();
        assert_eq!(metadata[..], [vec![9; offset], vec![5; 18 - offset]].concat());
        drop(bench.tracker.take_buf(0));
    }
    assert_eq!(bench.pool.stats().outstanding, 0);
}

#[test]
fn a_command_that_cannot_be_mapped_fails_alone() {
    let mut bench = Bench::created(8);
    bench.fake.state().refuse_mapping = true;
    let buf = bench.pool.alloc(4096).unwrap();
    bench.submit(3, NvmOpcode::READ, buf.into());
    assert!(bench.qpair.has_local_work());
    assert_eq!(bench.poll(), [(3, Status::DATA_TRANSFER_ERROR)]);
    bench.fake.state().refuse_mapping = false;
    let buf = bench.pool.alloc(4096).unwrap();
    bench.submit(2, NvmOpcode::READ, buf.into());
    assert!(!bench.qpair.has_local_work());
}

#[test]
fn mappings_of_memory_nobody_uses_are_taken_back() {
    let mut bench = Bench::created(8);
    let (_, cq) = bench.qpair.ring_addresses();
    for i in 0..6 {
        let pool = DmaPool::new();
        let cid = bench.submit(0, NvmOpcode::READ, pool.alloc(4 << 20 >> 1).unwrap().into());
        bench.fake.post(cq, i, 1, cid, Status::SUCCESS, true);
        assert_eq!(bench.poll().len(), 1);
        drop(bench.tracker.take_buf(0));
    }
    assert!(bench.controller.shared().mapped() <= 3, "the rings and what was used last");
}

#[test]
fn interrupts_are_silenced_before_the_last_look() {
    let mut bench = Bench::created(8);
    let (_, cq) = bench.qpair.ring_addresses();
    assert!(bench.qpair.event_fd().is_some());
    let cid = bench.flush_command(0);
    bench.fake.post(cq, 0, 1, cid, Status::SUCCESS, true);
    bench.fake.fire(1);
    assert_eq!(bench.poll().len(), 1);
    assert!(bench.fake.signalled(1), "not yet: a busy queue pair is spared the system call");
    bench.fake.fire(1);
    assert!(bench.poll().is_empty());
    assert!(!bench.fake.signalled(1));
    let second = bench.controller.pcie_qpair(&setup(2, 4)).unwrap();
    let third = bench.controller.pcie_qpair(&setup(3, 4)).unwrap();
    assert!(second.event_fd().is_some());
    assert!(third.event_fd().is_none(), "three vectors only: the admin queue's and two");
}

#[test]
fn a_queue_is_quiet_once_both_rings_are_deleted() {
    let mut bench = Bench::created(8);
    bench.flush_command(0);
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_SQ);
    bench.qpair.quiesce_completed(Some(&Cqe::default()));
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_CQ);
    bench.qpair.quiesce_completed(Some(&status(Status::INVALID_QUEUE_IDENTIFIER)));
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Done);
    assert_eq!(bench.fake.state().isolated, 0);
}

#[test]
fn a_queue_that_cannot_be_deleted_keeps_its_memory() {
    let mut bench = Bench::created(8);
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_SQ);
    bench.qpair.quiesce_completed(Some(&status(Status::INTERNAL_ERROR)));
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Unconfirmed);
    assert!(bench.qpair.quiesce_command().is_none());
    let cq = bench.qpair.ring_addresses().1;
    let Bench { fake, controller, qpair, .. } = bench;
    drop(qpair);
    // The device goes on writing into memory that is still there.
    fake.post(cq, 0, 1, 0, Status::SUCCESS, true);
    drop(controller);
    assert_eq!(fake.state().isolated, 1);
}

#[test]
fn a_creation_under_way_is_awaited_before_anything_is_deleted() {
    let mut bench = Bench::new(8);
    let _ = bench.qpair.poll_connect(Instant::now());
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Pending);
    assert!(bench.qpair.quiesce_command().is_none());
    bench.qpair.quiesce_completed(Some(&Cqe::default()));
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_CQ);
    bench.qpair.quiesce_completed(Some(&Cqe::default()));
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Done);
}

#[test]
fn disabling_the_controller_quiets_every_queue() {
    let mut bench = Bench::created(8);
    let mut admin = bench.controller.pcie_qpair(&setup(0, 32)).unwrap();
    let registers = bench.controller.admin_queue().unwrap();
    assert_eq!((registers.aqa, registers.asq, registers.acq), {
        let (asq, acq) = admin.ring_addresses();
        (31 << 16 | 31, asq, acq)
    });
    bench.retire(&mut admin, Instant::now());
    assert_eq!(admin.disconnect(Instant::now()), Quiesce::Done);
    assert_eq!(bench.fake.state().registers[&0x14] & 1, 0, "CC.EN");
    assert!(matches!(bench.poll_error().kind(), ErrorKind::Disconnected(_)));
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Done);
    assert!(bench.qpair.quiesce_command().is_none());
    assert!(bench.controller.pcie_qpair(&setup(0, 32)).is_err(), "it is stopped for good");
    let fake = bench.fake.clone();
    drop((bench, admin));
    assert!(fake.state().dropped);
    assert_eq!(fake.state().isolated, 0);
}

#[test]
fn a_controller_that_stays_ready_is_cut_off_in_time() {
    for isolates in [true, false] {
        let mut bench = Bench::created(8);
        let mut admin = bench.controller.pcie_qpair(&setup(0, 32)).unwrap();
        {
            let mut state = bench.fake.state();
            (state.stubborn, state.isolates) = (true, isolates);
        }
        let now = Instant::now();
        bench.retire(&mut admin, now);
        assert_eq!(admin.disconnect(now), Quiesce::Pending);
        assert_eq!(admin.disconnect(now + Duration::from_millis(499)), Quiesce::Pending);
        let expected = if isolates { Quiesce::Done } else { Quiesce::Unconfirmed };
        assert_eq!(admin.disconnect(now + Duration::from_millis(501)), expected);
        assert_eq!(bench.qpair.disconnect(now), expected, "one answer for all");
        assert_eq!(bench.fake.state().isolated, 1);
    }
}

#[test]
fn a_vanished_function_is_noticed_and_cut_off() {
    let mut bench = Bench::created(8);
    bench.flush_command(0);
    bench.fake.state().vanished = true;
    let start = Instant::now();
    let error = loop {
        match bench.qpair.poll(&mut bench.tracker, usize::MAX) {
            Ok(()) => assert!(start.elapsed() < Duration::from_secs(5), "not noticed"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("is gone"), "{error}");
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Done);
    assert_eq!(bench.fake.state().isolated, 1);
    assert!(bench.controller.registers().unwrap().read32(0x1c).is_err());
}

#[test]
fn a_fatal_status_ends_the_queue_pair() {
    let mut bench = Bench::created(8);
    bench.fake.state().registers.insert(0x1c, 3);
    let start = Instant::now();
    let error = loop {
        match bench.qpair.poll(&mut bench.tracker, usize::MAX) {
            Ok(()) => assert!(start.elapsed() < Duration::from_secs(5), "not noticed"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), ErrorKind::ControllerFatal), "{error}");
}

#[test]
fn a_lost_admin_queue_leaves_a_queue_unconfirmed_until_the_controller_is_stopped() {
    let mut bench = Bench::created(8);
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_SQ);
    bench.qpair.quiesce_completed(None);
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Unconfirmed);
    let mut admin = bench.controller.pcie_qpair(&setup(0, 32)).unwrap();
    bench.retire(&mut admin, Instant::now());
    assert_eq!(admin.disconnect(Instant::now()), Quiesce::Done);
    assert_eq!(bench.qpair.disconnect(Instant::now()), Quiesce::Done);
}
