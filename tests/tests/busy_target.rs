//! A target that looks at busy connections instead of sleeping until it is told of them: what it no longer asks to be told of must
//! not be missed.

use std::time::{Duration, Instant};

use nvmf_core::{Controller, ControllerOptions, Driver, IoQpair, IoQpairOptions, Namespace as Ns};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder, TcpOptions};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:7a1e0c5e-7e57-4c0f-9a55-0123456789ae";
const BUSY_POLL: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(30);
const LONG: usize = 128 * 1024;

fn fixture(busy_poll: Duration) -> (Loopback, Controller, Ns) {
    let tcp = TcpOptions::new().threads(1).busy_poll(busy_poll);
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512));
    let target = Loopback::builder().subsystem(subsystem).tcp(tcp).listen_tcp("127.0.0.1:0").build().unwrap();
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = target.tcp_trid(NQN).unwrap().unwrap();
    // Traffic on the admin queue would let the target look again at what it has missed.
    let mut options = ControllerOptions::default();
    options.keep_alive_timeout = Duration::ZERO;
    let controller = driver.connect(&trid, &options).unwrap();
    let ns = controller.namespace(1).unwrap();
    (target, controller, ns)
}

fn qpair(controller: &Controller) -> IoQpair {
    let options = IoQpairOptions::default().queue_size(129).queue_requests(128).delay_submit(true);
    controller.alloc_io_qpair(&options).unwrap()
}

/// Polls until `count` I/Os have succeeded.
fn finish(qpair: &mut IoQpair, mut count: usize) {
    let deadline = Instant::now() + DEADLINE;
    while count > 0 {
        assert!(Instant::now() < deadline, "{count} I/Os do not complete");
        qpair
            .process_completions(0, |completion| {
                completion.result.unwrap();
                count -= 1;
            })
            .unwrap();
    }
}

/// So many I/Os one after the other that the target looks at the connection by itself.
fn warm(qpair: &mut IoQpair, ns: &Ns) {
    for _ in 0..100 {
        let buf = qpair.alloc(4096).unwrap();
        qpair.read(ns, 0, buf, 0).unwrap();
        qpair.flush();
        finish(qpair, 1);
    }
}

#[test]
fn a_busy_connection_whose_socket_fills_goes_on_when_it_empties() {
    // The target never ceases to look, or does while it is stuck.
    for busy_poll in [2 * DEADLINE, BUSY_POLL] {
        let (_target, controller, ns) = fixture(busy_poll);
        let mut qpair = qpair(&controller);
        // The second time with the connection as it was left by the first.
        for _ in 0..2 {
            warm(&mut qpair, &ns);
            // 16 MiB, more than both sockets take.
            for place in 0..128 {
                let buf = qpair.alloc(LONG).unwrap();
                qpair.read(&ns, place * (LONG as u64 / 512), buf, place).unwrap();
            }
            qpair.flush();
            std::thread::sleep(BUSY_POLL * 2);
            finish(&mut qpair, 128);
        }
    }
}

#[test]
fn a_connection_that_was_busy_is_heard_after_silence() {
    let (_target, controller, ns) = fixture(BUSY_POLL);
    let mut qpair = qpair(&controller);
    for silence in [BUSY_POLL / 2, BUSY_POLL * 2, BUSY_POLL * 5] {
        warm(&mut qpair, &ns);
        std::thread::sleep(silence);
        warm(&mut qpair, &ns);
    }
}

#[test]
fn more_busy_connections_than_are_looked_at_are_all_served() {
    let (target, controller, ns) = fixture(BUSY_POLL);
    let mut qpairs: Vec<IoQpair> = (0..8).map(|_| qpair(&controller)).collect();
    // First few enough, then too many, then few again; the others are silent meanwhile.
    for busy in [2, 8, 3, 1, 8] {
        for _ in 0..200 {
            for qpair in &mut qpairs[..busy] {
                let buf = qpair.alloc(4096).unwrap();
                qpair.write(&ns, 0, buf, 0).unwrap();
                qpair.flush();
            }
            qpairs[..busy].iter_mut().for_each(|qpair| finish(qpair, 1));
        }
    }
    // One that ends while it is looked at is noticed.
    drop(qpairs);
    drop(controller);
    let deadline = Instant::now() + DEADLINE;
    while target.controllers(NQN) > 0 {
        assert!(Instant::now() < deadline, "the target does not notice that its host has gone");
        std::thread::sleep(Duration::from_millis(1));
    }
}
