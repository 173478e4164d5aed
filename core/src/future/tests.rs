use std::future::poll_fn;
use std::thread;
use std::time::Duration;

use super::*;
use crate::ErrorKind;
use crate::options::{ControllerOptions, IoQpairOptions};
use crate::spec::Status;
use crate::testing::{self, BLOCK, BLOCKS, Target, eventually, trid};

struct Bench {
    target: Target,
    qpair: AsyncQpair,
    ns: Namespace,
}

impl Bench {
    fn new() -> Self {
        Self::with(&testing::options())
    }

    fn with(options: &ControllerOptions) -> Self {
        let target = Target::new();
        let ctrlr = target.driver().connect(&trid("disk"), options).unwrap();
        let qpair = ctrlr.alloc_io_qpair(&IoQpairOptions::default()).unwrap();
        Self { target, qpair: AsyncQpair::new(qpair), ns: ctrlr.namespace(1).unwrap() }
    }

    fn buffers_out(&self) -> usize {
        self.qpair.lock().qpair.controller().pool().stats().outstanding
    }

    fn filled(&self, byte: u8) -> DmaBuf {
        let mut buf = self.qpair.alloc(BLOCK).unwrap();
        buf.fill(byte);
        buf
    }

    /// Whether the pool hands this address out again.
    fn is_free(&self, address: usize) -> bool {
        let bufs: Vec<DmaBuf> = (0..600).map(|_| self.qpair.alloc(BLOCK).unwrap()).collect();
        bufs.iter().any(|buf| buf.as_ptr().addr() == address)
    }
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// An executor that knows nothing of queue pairs: it sleeps until woken.
fn park_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park_timeout(Duration::from_secs(10)),
        }
    }
}

#[test]
fn dropped_future_keeps_buffer_until_completion() {
    let bench = Bench::new();
    bench.target.knobs().hold = true;
    let buf = bench.qpair.alloc(BLOCK).unwrap();
    let address = buf.as_ptr().addr();
    let mut future = bench.qpair.submit(IoCommand::read(&bench.ns, 0, buf));
    assert!(poll_once(&mut future).is_pending());
    drop(future);
    for _ in 0..10 {
        assert_eq!(bench.qpair.poll_once().unwrap(), 0);
    }
    assert_eq!(bench.buffers_out(), 1, "the controller may still write it");
    assert!(!bench.is_free(address));
    bench.target.knobs().hold = false;
    assert_eq!(bench.qpair.poll_once().unwrap(), 1);
    assert_eq!(bench.buffers_out(), 0);
    assert!(bench.is_free(address));
    assert!(bench.qpair.lock().waiting.is_empty());
}

#[test]
fn a_future_dropped_after_its_completion_returns_the_buffer() {
    let bench = Bench::new();
    let future = bench.qpair.submit(IoCommand::read(&bench.ns, 0, bench.filled(0)));
    assert_eq!(bench.qpair.poll_once().unwrap(), 1);
    assert_eq!(bench.buffers_out(), 1);
    drop(future);
    assert_eq!(bench.buffers_out(), 0);
}

#[test]
fn a_forgotten_future_is_no_danger_to_others() {
    let bench = Bench::new();
    let buf = bench.filled(1);
    let address = buf.as_ptr().addr();
    std::mem::forget(bench.qpair.submit(IoCommand::write(&bench.ns, 3, buf)));
    for n in 0..20 {
        let buf = block_on(&bench.qpair, bench.qpair.write(&bench.ns, 9, bench.filled(n))).unwrap().unwrap();
        assert_ne!(buf.as_ptr().addr(), address);
        assert!(buf.iter().all(|&b| b == n));
    }
    assert!(!bench.is_free(address), "its result waits for it for ever");
    let read = block_on(&bench.qpair, bench.qpair.read(&bench.ns, 3, bench.filled(0))).unwrap().unwrap();
    assert!(read.iter().all(|&b| b == 1), "the command was executed all the same");
}

#[test]
fn many_commands_of_one_task() {
    let bench = Bench::new();
    block_on(&bench.qpair, async {
        let write = |n: u8| bench.qpair.submit(IoCommand::write(&bench.ns, u64::from(n), bench.filled(n)));
        let mut writes: Vec<Option<IoFuture>> = (0..8).map(|n| Some(write(n))).collect();
        poll_fn(|cx| {
            for slot in &mut writes {
                if let Some(Poll::Ready(result)) = slot.as_mut().map(|future| Pin::new(future).poll(cx)) {
                    result.unwrap();
                    *slot = None;
                }
            }
            if writes.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        bench.qpair.flush(&bench.ns).await.unwrap();
        let all = bench.qpair.read(&bench.ns, 0, bench.qpair.alloc(8 * BLOCK).unwrap()).await.unwrap();
        for (n, block) in all.chunks(BLOCK).enumerate() {
            assert!(block.iter().all(|&b| b == n as u8), "block {n}");
        }
    })
    .unwrap();
    assert_eq!(bench.buffers_out(), 0);
}

#[test]
fn block_on_sleeps_until_a_late_completion() {
    let bench = Bench::new();
    bench.target.knobs().hold = true;
    let target = bench.target.clone();
    let helper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(60));
        target.knobs().hold = false;
    });
    block_on(&bench.qpair, bench.qpair.flush(&bench.ns)).unwrap().unwrap();
    assert!(helper.is_finished(), "it could not complete before");
    helper.join().unwrap();
}

#[test]
fn errors_name_the_command_and_the_controller() {
    let bench = Bench::new();
    let error = block_on(&bench.qpair, bench.qpair.read(&bench.ns, BLOCKS, bench.filled(0)))
        .unwrap()
        .expect_err("past the end");
    assert_eq!(error.status(), Some(Status::LBA_OUT_OF_RANGE));
    let text = error.to_string();
    assert!(text.contains("Read failed") && text.contains("nqn.2024-01.org.example:disk"), "{text}");
    // One that is not even accepted.
    let error = block_on(&bench.qpair, bench.qpair.submit(IoCommand::read(&bench.ns, 0, IoBuf::None)))
        .unwrap()
        .expect_err("no data");
    assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)), "{error}");
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let bench = Bench::new();
    bench.target.knobs().hold = true;
    let held: Vec<IoFuture> = (0..8).map(|_| bench.qpair.submit(IoCommand::flush(&bench.ns))).collect();
    let mut refused = bench.qpair.submit(IoCommand::flush(&bench.ns));
    let Poll::Ready(Err(error)) = poll_once(&mut refused) else { panic!("refused at once") };
    assert!(matches!(error.kind(), ErrorKind::Exhausted(_)), "{error}");
    bench.target.knobs().hold = false;
    for future in held {
        block_on(&bench.qpair, future).unwrap().unwrap();
    }
}

#[test]
fn what_waited_for_a_place_in_the_queue_is_sent_before_anybody_sleeps() {
    let target = Target::new();
    let ctrlr = target.driver().connect(&trid("disk"), &testing::options()).unwrap();
    let options = IoQpairOptions::default().queue_size(2).delay_submit(true);
    let qpair = AsyncQpair::new(ctrlr.alloc_io_qpair(&options).unwrap());
    let ns = ctrlr.namespace(1).unwrap();
    let _futures: Vec<IoFuture> = (0..2).map(|_| qpair.submit(IoCommand::flush(&ns))).collect();
    assert_eq!(qpair.poll_once().unwrap(), 1, "there is one place");
    assert!(!qpair.has_local_work(), "the second is sent");
    assert_eq!(qpair.poll_once().unwrap(), 1);
}

#[test]
fn a_lost_queue_pair_ends_every_future_and_the_driver_of_it() {
    let bench = Bench::new();
    bench.target.knobs().hold = true;
    let futures: Vec<IoFuture> =
        (0..6).map(|n| bench.qpair.submit(IoCommand::read(&bench.ns, n, bench.filled(0)))).collect();
    assert_eq!(bench.qpair.poll_once().unwrap(), 0);
    bench.target.knobs().cut = true;
    for future in futures {
        let error = block_on(&bench.qpair, future).unwrap().expect_err("lost");
        assert!(error.to_string().contains("the target cut queue"), "{error}");
    }
    let error = block_on(&bench.qpair, bench.qpair.drive()).unwrap();
    assert!(error.to_string().contains("the target cut queue"), "{error}");
    assert_eq!(bench.buffers_out(), 0);
}

#[test]
fn a_command_without_answer_times_out() {
    let bench = Bench::with(&testing::impatient());
    bench.target.knobs().hold = true;
    let error = block_on(&bench.qpair, bench.qpair.flush(&bench.ns)).unwrap().expect_err("no answer");
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn a_task_of_another_runtime_is_woken_by_whoever_drives() {
    let bench = Bench::new();
    bench.target.knobs().hold = true;
    let driving = bench.qpair.clone();
    let driver = thread::spawn(move || block_on(&driving, driving.drive()).unwrap());
    let (qpair, ns) = (bench.qpair.clone(), bench.ns.clone());
    let task = thread::spawn(move || park_on(async { qpair.flush(&ns).await }));
    eventually(Duration::from_secs(5), "the task waits", || {
        bench.qpair.lock().waiting.values().any(|slot| matches!(slot, Slot::Pending(Some(_))))
    });
    bench.target.knobs().hold = false;
    task.join().unwrap().unwrap();
    bench.target.knobs().cut = true;
    let error = driver.join().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Disconnected(_)), "{error}");
}

#[test]
fn a_future_polled_after_its_end_says_so() {
    let bench = Bench::new();
    let mut future = bench.qpair.submit(IoCommand::flush(&bench.ns));
    bench.qpair.poll_once().unwrap();
    assert!(matches!(poll_once(&mut future), Poll::Ready(Ok(_))));
    let Poll::Ready(Err(error)) = poll_once(&mut future) else { panic!("an error") };
    assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)));
}

#[test]
fn dropping_everything_with_commands_in_flight_loses_no_memory() {
    let bench = Bench::new();
    let pool = bench.qpair.lock().qpair.controller().pool().clone();
    bench.target.knobs().hold = true;
    let future = bench.qpair.submit(IoCommand::read(&bench.ns, 0, bench.filled(0)));
    let target = bench.target.clone();
    drop(bench);
    assert_eq!(pool.stats().outstanding, 1, "the future holds the queue pair");
    drop(future);
    assert_eq!(pool.stats().outstanding, 0);
    assert_eq!(target.knobs().connections, 0);
}
