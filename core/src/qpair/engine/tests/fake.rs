//! A transport that does what the test says, and an engine on it.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use super::*;

pub(super) const BLOCK: u32 = 512;

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
}

/// The engine's clock in these tests; it stands still unless the test moves it.
pub(super) fn clock() -> Instant {
    NOW.get()
}

/// What the fake transport was given and what it is to do.
pub(super) struct Wire {
    pub(super) connect: ConnectProgress,
    /// Commands taken and not completed, in order.
    pub(super) held: Vec<(u16, Sqe)>,
    /// Every command ever taken.
    pub(super) taken: Vec<Sqe>,
    /// Taken and not yet flushed.
    pub(super) unflushed: usize,
    /// Completions for the next polls.
    pub(super) completions: VecDeque<Cqe>,
    /// Completions that named no command in flight.
    pub(super) strays: usize,
    pub(super) takes_device_memory: bool,
    pub(super) fail_submit: bool,
    pub(super) fail_flush: bool,
    pub(super) fail_poll: bool,
    pub(super) quiesce: Quiesce,
    /// Admin commands it needs before it is quiesced.
    pub(super) quiesce_commands: u32,
    pub(super) disconnects: usize,
    /// Buffers out of the pool when the first disconnect came.
    pub(super) out_at_disconnect: usize,
    pub(super) pool: DmaPool,
}

#[derive(Clone)]
pub(super) struct Fake(Arc<Mutex<Wire>>);

impl Fake {
    pub(super) fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }
}

pub(super) fn broken() -> Error {
    Error::disconnected("the wire was cut")
}

impl TransportQpair for Fake {
    fn poll_connect(&mut self, _now: Instant) -> Result<ConnectProgress> {
        let wire = self.wire();
        if wire.fail_poll { Err(broken()) } else { Ok(wire.connect) }
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        assert_eq!(tracker.lookup(sqe.cid.get()), Some(slot));
        let mut wire = self.wire();
        assert_eq!(wire.connect, ConnectProgress::Established, "a command before the connection");
        assert_eq!(wire.disconnects, 0, "a command after the queue pair was given up");
        if wire.fail_submit {
            return Err(broken());
        }
        let clash = wire.held.iter().any(|(held, other)| *held == slot || other.cid == sqe.cid);
        assert!(!clash, "slot or identifier in use");
        wire.held.push((slot, *sqe));
        wire.taken.push(*sqe);
        wire.unflushed += 1;
        Ok(())
    }

    fn flush(&mut self, _tracker: &Tracker) -> Result<()> {
        let mut wire = self.wire();
        wire.unflushed = 0;
        if wire.fail_flush { Err(broken()) } else { Ok(()) }
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        let mut wire = self.wire();
        while tracker.completed() < budget
            && let Some(cqe) = wire.completions.pop_front()
        {
            let Some(slot) = tracker.lookup(cqe.cid.get()) else {
                wire.strays += 1;
                continue;
            };
            let index = wire.held.iter().position(|(held, _)| *held == slot).expect("held");
            let (_, sqe) = wire.held.remove(index);
            if tracker.direction(slot) == DataDirection::ControllerToHost {
                // Every block says which one it is.
                for (i, offset) in (0..tracker.data_len(slot)).step_by(BLOCK as usize).enumerate() {
                    let block = [(sqe.slba() + i as u64) as u8; BLOCK as usize];
                    assert!(tracker.write(slot, offset, &block));
                }
            }
            tracker.complete(slot, cqe);
        }
        if wire.fail_poll { Err(broken()) } else { Ok(()) }
    }

    fn take_device_memory(&mut self, _region: &crate::DmaRegion) -> Result<()> {
        if self.wire().takes_device_memory { Ok(()) } else { Err(crate::transport::copies()) }
    }

    fn disconnect(&mut self, _now: Instant) -> Quiesce {
        let mut wire = self.wire();
        if wire.disconnects == 0 {
            wire.out_at_disconnect = wire.pool.stats().outstanding;
        }
        wire.disconnects += 1;
        wire.quiesce
    }

    fn quiesce_command(&mut self) -> Option<Sqe> {
        let left = self.wire().quiesce_commands;
        (left > 0).then(|| Sqe::default().with_cdw10(left))
    }

    fn quiesce_completed(&mut self, cqe: Option<&Cqe>) {
        let mut wire = self.wire();
        wire.quiesce_commands -= 1;
        if cqe.is_none() {
            wire.quiesce = Quiesce::Unconfirmed;
        } else if wire.quiesce_commands == 0 {
            wire.quiesce = Quiesce::Done;
        }
    }

    fn event_fd(&self) -> Option<RawFd> {
        None
    }
}

pub(super) struct Bench {
    pub(super) engine: Engine<Fake>,
    pub(super) fake: Fake,
    pub(super) pool: DmaPool,
}

impl Bench {
    /// Another connection for the queue pair, of so many slots, which is connected at once.
    pub(super) fn renew(&mut self, slots: u16) {
        self.fake = Self::wire_for(&self.pool);
        self.fake.wire().connect = ConnectProgress::Established;
        let renewal = Renewal {
            transport: self.fake.clone(),
            slots,
            generations: true,
            connect: None,
            connect_timeout: Duration::from_secs(5),
        };
        self.engine.renew(renewal, clock());
        assert!(matches!(self.connect(), Ok(Connecting::Ready(None))));
    }

    fn wire_for(pool: &DmaPool) -> Fake {
        Fake(Arc::new(Mutex::new(Wire {
            connect: ConnectProgress::Pending,
            held: Vec::new(),
            taken: Vec::new(),
            unflushed: 0,
            completions: VecDeque::new(),
            strays: 0,
            takes_device_memory: false,
            fail_submit: false,
            fail_flush: false,
            fail_poll: false,
            quiesce: Quiesce::Done,
            quiesce_commands: 0,
            disconnects: 0,
            out_at_disconnect: 0,
            pool: pool.clone(),
        })))
    }

    /// A connected queue pair without Fabrics Connect.
    pub(super) fn new(slots: u16, ops: u32) -> Self {
        let mut bench = Self::connecting(slots, ops, None);
        bench.fake.wire().connect = ConnectProgress::Established;
        assert!(matches!(bench.engine.poll_connect(clock()), Ok(Connecting::Ready(None))));
        bench
    }

    pub(super) fn connecting(slots: u16, ops: u32, connect: Option<FabricsConnect>) -> Self {
        let pool = DmaPool::new();
        let fake = Self::wire_for(&pool);
        let timeout = Duration::from_secs(5);
        let mut engine = Engine::new(fake.clone(), slots, ops, true, connect, timeout, clock());
        engine.clock = clock;
        Self { engine, fake, pool }
    }

    pub(super) fn fabrics(slots: u16, ops: u32) -> Self {
        let mut bench = Self::connecting(slots, ops, None);
        let data = IoBuf::One(bench.pool.alloc(1024).unwrap());
        bench.engine.connect = Some(FabricsConnect { sqe: fabrics::connect(1, 31, 0, 0), data });
        bench
    }

    pub(super) fn connect(&mut self) -> Result<Connecting> {
        self.engine.poll_connect(clock())
    }

    /// A read or write of `blocks` from `slba` in pieces of at most `max_blocks`.
    pub(super) fn request(
        &self,
        opcode: NvmOpcode,
        slba: u64,
        blocks: u64,
        max_blocks: u32,
        user_data: u64,
    ) -> Request {
        let span = Span {
            slba,
            blocks,
            block_bytes: BLOCK,
            max_blocks,
            boundary: 0,
            metadata_bytes: 0,
            ref_tag_bits: 0,
        };
        let buf = self.pool.alloc(blocks as usize * BLOCK as usize).unwrap();
        Request {
            sqe: Sqe::nvm(opcode, 1),
            span: Some(span),
            buf: buf.into(),
            user_data,
            timeout: Timeout::default(),
        }
    }

    pub(super) fn submit(&mut self, request: Request) -> CommandId {
        self.engine.submit(request).map_err(|(error, _)| error).expect("accepted")
    }

    pub(super) fn read(&mut self, slba: u64, blocks: u64, max_blocks: u32, user_data: u64) -> CommandId {
        let request = self.request(NvmOpcode::READ, slba, blocks, max_blocks, user_data);
        self.submit(request)
    }

    /// Completes the `index`-th command held.
    pub(super) fn answer(&self, index: usize, status: Status) {
        let mut wire = self.fake.wire();
        let cid = wire.held[index].1.cid.get();
        let cqe = Cqe::new(cid, 0, status).with_result64(0x0123_4567_89ab_cdef);
        wire.completions.push_back(cqe);
    }

    pub(super) fn answer_all(&self) {
        let count = self.held();
        (0..count).for_each(|index| self.answer(index, Status::SUCCESS));
    }

    pub(super) fn held(&self) -> usize {
        self.fake.wire().held.len()
    }

    /// First block and number of blocks of the commands held.
    pub(super) fn pieces(&self) -> Vec<(u64, u32)> {
        let wire = self.fake.wire();
        wire.held.iter().map(|(_, sqe)| (sqe.slba(), (sqe.cdw12.get() & 0xffff) + 1)).collect()
    }

    pub(super) fn poll(&mut self) -> Vec<Done> {
        let mut done = Vec::new();
        self.engine.process(0, &mut |d| done.push(d)).expect("the queue pair is alive");
        done
    }

    /// Processes until the failure is reported.
    pub(super) fn drain(&mut self) -> (Vec<Done>, Error) {
        let mut done = Vec::new();
        for _ in 0..1000 {
            let before = done.len();
            match self.engine.process(0, &mut |d| done.push(d)) {
                Ok(n) => assert_eq!(n, done.len() - before),
                Err(error) => {
                    assert_eq!(done.len(), before, "completions come before the error");
                    assert_eq!(self.engine.outstanding(), 0);
                    return (done, error);
                }
            }
        }
        panic!("the failure is never reported");
    }
}

pub(super) fn one(buf: IoBuf) -> DmaBuf {
    buf.into_one().expect("the buffer comes back")
}

pub(super) fn user_data(done: &[Done]) -> Vec<u64> {
    done.iter().map(|d| d.user_data).collect()
}

pub(super) fn advance(by: Duration) {
    NOW.set(NOW.get() + by);
}
