//! Memory of a command belongs to nobody else until the device cannot write it any more, whatever became of the command's owner.
//!
//! Each test takes all memory that can be had while a device withholds a command that will write, fills it, lets the device write,
//! and looks whether anything has changed.

use std::ops::Range;

use nvmf_core::dma::RegionId;
use nvmf_core::future::AsyncQpair;
use nvmf_core::{DmaPool, IoCommand};

use super::*;

const LEN: usize = 4096;
/// How long the device withholds the command.
const LATE: Duration = Duration::from_millis(700);
const FILL: u8 = 0xa5;

/// Where a buffer is.
fn place(buf: &DmaBuf) -> (RegionId, Range<usize>) {
    let extent = buf.extent().unwrap();
    (extent.region().id(), extent.offset()..extent.offset() + extent.len())
}

/// All memory of the pool's regions that is free, and more: filled.
struct Hoard {
    bufs: Vec<DmaBuf>,
}

impl Hoard {
    /// Takes more buffers than two regions have, and checks that none is the one the device may write.
    fn take(pool: &DmaPool, withheld: &(RegionId, Range<usize>)) -> Self {
        let mut bufs: Vec<DmaBuf> = (0..1200).map(|_| pool.alloc(LEN).unwrap()).collect();
        for buf in &mut bufs {
            let (region, range) = place(buf);
            let apart = range.end <= withheld.1.start || range.start >= withheld.1.end;
            assert!(region != withheld.0 || apart, "memory of a command in flight was given away");
            buf.fill(FILL);
        }
        Self { bufs }
    }

    fn is_untouched(&self) -> bool {
        self.bufs.iter().all(|buf| buf.iter().all(|&byte| byte == FILL))
    }
}

struct Late {
    bench: Bench,
    controller: Controller,
    ns: Namespace,
    pool: DmaPool,
}

/// A device whose next read is late, of blocks that are not what a hoard is filled with.
fn late(name: &str, change: impl FnOnce(&mut ControllerOptions)) -> Late {
    let bench = bench(name);
    let mut options = ControllerOptions::default();
    change(&mut options);
    let controller = bench.driver.connect(&trid(), &options).unwrap();
    let ns = namespace(&controller, 2);
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    qpair.write_blocking(&ns, 0, filled(&controller, LEN, 1)).unwrap();
    drop(qpair);
    let pool = controller.pool().clone();
    Late { bench, controller, ns, pool }
}

impl Late {
    fn withhold(&self) {
        self.bench.function.faults().push(Rule::new(Fault::Delay(LATE)).io());
    }

    fn reads(&self) -> u64 {
        self.bench.loopback.stats().reads
    }

    /// Waits until the device has executed the read.
    fn executed(&self) {
        until("the device executes the read", || self.reads() > 0);
        // It counts before it writes.
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: never");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn refuse_deletion(bench: &Bench) {
    let refuse = Rule::new(Fault::CompleteWith(Status::INTERNAL_ERROR));
    bench.function.faults().push(refuse.admin().opcode(AdminOpcode::DELETE_IO_SQ.0).always());
}

#[test]
fn of_a_future_that_was_dropped() {
    let late = late("owner-future", |_| {});
    let qpair = AsyncQpair::new(late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap());
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    late.withhold();
    drop(qpair.submit(IoCommand::read(&late.ns, 0, buf)));
    let hoard = Hoard::take(&late.pool, &withheld);
    assert_eq!(late.pool.stats().outstanding, hoard.bufs.len() + 1);
    until("the command completes", || {
        qpair.poll_once().unwrap();
        late.pool.stats().outstanding == hoard.bufs.len()
    });
    assert_eq!(late.reads(), 1, "the buffer came back after the device wrote it, not before");
    assert!(hoard.is_untouched());
    // Now it is as good as any other.
    let again: Vec<DmaBuf> = (0..2000).map(|_| late.pool.alloc(LEN).unwrap()).collect();
    assert!(again.iter().any(|buf| place(buf) == withheld));
}

#[test]
fn of_a_queue_pair_that_was_dropped() {
    let late = late("owner-qpair", |_| {});
    let mut qpair = late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    late.withhold();
    qpair.read(&late.ns, 0, buf, 0).unwrap();
    drop(qpair);
    // The deletion of the queue has ended the command: the device has nothing left to write with.
    let hoard = Hoard::take(&late.pool, &(RegionId(0), 0..0));
    assert_eq!(late.pool.stats().outstanding, hoard.bufs.len());
    std::thread::sleep(LATE + Duration::from_millis(100));
    assert_eq!(late.reads(), 0);
    assert!(hoard.is_untouched());
}

#[test]
fn of_a_queue_pair_that_was_dropped_and_cannot_be_deleted() {
    let late = late("owner-stuck", |_| {});
    let mut qpair = late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    late.withhold();
    refuse_deletion(&late.bench);
    qpair.read(&late.ns, 0, buf, 0).unwrap();
    drop(qpair);
    assert_eq!(late.reads(), 0, "still withheld");
    let hoard = Hoard::take(&late.pool, &withheld);
    late.executed();
    assert!(hoard.is_untouched(), "what the device wrote late belongs to nobody");
    // And never will: not even when everything else is free.
    drop(hoard);
    Hoard::take(&late.pool, &withheld);
}

#[test]
fn of_a_command_that_timed_out_on_a_queue_that_cannot_be_deleted() {
    let late = late("owner-timeout", |options| options.io_timeout = Some(Duration::from_millis(150)));
    let mut qpair = late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    late.withhold();
    refuse_deletion(&late.bench);
    qpair.read(&late.ns, 0, buf, 0).unwrap();
    let mut results = Vec::new();
    until("the timeout is told", || {
        qpair.process_completions(0, |done| results.push((done.result, done.buf.len()))).is_err()
    });
    assert_eq!(results, [(Err(CommandError::TimedOut), 0)], "the buffer does not come back");
    drop(qpair);
    let hoard = Hoard::take(&late.pool, &withheld);
    late.executed();
    assert!(hoard.is_untouched());
}

#[test]
fn of_a_controller_that_was_dropped() {
    let late = late("owner-controller", |_| {});
    let mut qpair = late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    late.withhold();
    qpair.read(&late.ns, 0, buf, 0).unwrap();
    let Late { bench, controller, pool, .. } = late;
    // Its queue pair keeps it.
    drop(controller);
    let hoard = Hoard::take(&pool, &withheld);
    assert!(hoard.is_untouched());
    drop((qpair, bench.driver));
    until("everything is given back", || pool.stats().outstanding == hoard.bufs.len());
    std::thread::sleep(LATE);
    assert_eq!(bench.loopback.stats().reads, 0, "the controller was disabled");
    assert!(hoard.is_untouched());
}

#[test]
fn of_a_controller_that_was_failed_and_does_not_stop() {
    // A function that cannot be cut off either, and stays in this process's hands.
    let bench =
        bench_with("owner-zombie", &PciOptions::new(), |device| Box::new(Zombie(Some(Box::new(device)))));
    let controller = attach(&bench);
    let ns = namespace(&controller, 2);
    let pool = controller.pool().clone();
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    qpair.write_blocking(&ns, 0, filled(&controller, LEN, 1)).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    bench.function.never_disabled(true);
    refuse_deletion(&bench);
    bench.function.faults().push(Rule::new(Fault::Delay(LATE)).io());
    qpair.read(&ns, 0, buf, 0).unwrap();
    controller.fail();
    let mut ended = Vec::new();
    let start = Instant::now();
    while qpair.process_completions(0, |done| ended.push((done.result, done.buf.len()))).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(ended, [(Err(CommandError::Disconnected), 0)], "once, and without its buffer");
    drop((qpair, controller));
    let hoard = Hoard::take(&pool, &withheld);
    until("the device executes the read", || bench.loopback.stats().reads > 0);
    std::thread::sleep(Duration::from_millis(50));
    assert!(hoard.is_untouched());
}

#[test]
fn of_a_command_whose_abort_was_refused() {
    let late = late("owner-abort", |_| {});
    let mut qpair = late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    late.withhold();
    let refuse = Rule::new(Fault::CompleteWith(Status::INTERNAL_ERROR));
    late.bench.function.faults().push(refuse.admin().opcode(AdminOpcode::ABORT.0));
    let id = qpair.read(&late.ns, 0, buf, 0).unwrap();
    assert!(qpair.abort(id, |done| panic!("{done:?}")).unwrap());
    let hoard = Hoard::take(&late.pool, &withheld);
    let mut back = None;
    until("the command completes", || {
        qpair.process_completions(0, |done| back = Some((done.result, done.buf))).unwrap();
        back.is_some()
    });
    let (result, buf) = back.unwrap();
    assert_eq!(result, Ok(0));
    let buf = buf.into_one().unwrap();
    assert_eq!(place(&buf), withheld);
    assert!(buf[..] == filled(&late.controller, LEN, 1)[..], "the late data is where it was asked for");
    assert!(hoard.is_untouched());
}

#[test]
fn of_a_command_that_was_aborted() {
    let late = late("owner-aborted", |_| {});
    let mut qpair = late.controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
    let buf = qpair.alloc(LEN).unwrap();
    let withheld = place(&buf);
    late.withhold();
    let id = qpair.read(&late.ns, 0, buf, 0).unwrap();
    assert!(qpair.abort(id, |done| panic!("not before its completion: {done:?}")).unwrap());
    let mut back = None;
    until("the aborted command completes", || {
        qpair.process_completions(0, |done| back = Some((done.result, done.buf))).unwrap();
        back.is_some()
    });
    let (result, buf) = back.unwrap();
    assert!(matches!(result, Err(CommandError::Status(s)) if s.is(Status::ABORT_REQUESTED)), "{result:?}");
    assert_eq!(place(&buf.into_one().unwrap()), withheld);
    std::thread::sleep(LATE);
    assert_eq!(late.reads(), 0);
}

/// A function that cannot be cut off from memory, and whose memory stays mapped when it is given up.
struct Zombie(Option<Box<EmulatedDevice>>);

impl Zombie {
    fn device(&mut self) -> &mut EmulatedDevice {
        self.0.as_mut().unwrap()
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        Box::leak(self.0.take().unwrap());
    }
}

impl PciDevice for Zombie {
    fn identity(&self) -> nvmf_transport_pcie::PciIdentity {
        self.0.as_ref().unwrap().identity()
    }

    fn bar0(&mut self) -> nvmf_core::Result<nvmf_transport_pcie::Bar0> {
        self.device().bar0()
    }

    fn dma_map(&mut self, grant: &nvmf_core::dma::DmaGrant) -> nvmf_core::Result<u64> {
        self.device().dma_map(grant)
    }

    fn dma_unmap(&mut self, _region: RegionId) -> nvmf_core::Result<()> {
        Err(nvmf_core::Error::disconnected("nothing can be unmapped"))
    }

    fn max_vectors(&self) -> u16 {
        0
    }

    fn enable_interrupts(&mut self, _vectors: u16) -> nvmf_core::Result<Vec<std::os::fd::OwnedFd>> {
        Err(nvmf_core::Error::unsupported("no interrupts"))
    }

    fn reset(&mut self) -> nvmf_core::Result<()> {
        Err(nvmf_core::Error::unsupported("no reset"))
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> nvmf_core::Result<()> {
        self.device().read_config(offset, to)
    }

    fn write_config(&mut self, offset: u32, from: &[u8]) -> nvmf_core::Result<()> {
        self.device().write_config(offset, from)
    }

    fn isolate(&mut self) -> bool {
        false
    }
}
