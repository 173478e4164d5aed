//! Poll groups of many connections: each is served whichever are busy, sleeping misses nothing, and losses are told of.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nvmf_core::{Completion, Controller, ControllerOptions, Driver, GroupKey, IoQpairOptions, PollGroup};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:7a1e0c5e-7e57-4c0f-9a55-0123456789ad";
const DEADLINE: Duration = Duration::from_secs(60);
const QPAIRS: usize = 40;

fn fixture() -> (Loopback, Controller, PollGroup, Vec<GroupKey>) {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20).block_size(512));
    let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build().unwrap();
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = target.tcp_trid(NQN).unwrap().unwrap();
    let controller = driver.connect(&trid, &ControllerOptions::default()).unwrap();
    let mut group = PollGroup::new();
    let options = IoQpairOptions::default().queue_size(9).queue_requests(16).delay_submit(true);
    let add = |_| group.add(controller.alloc_io_qpair(&options).unwrap());
    let keys = (0..QPAIRS).map(add).collect();
    (target, controller, group, keys)
}

/// Does `each` I/Os on each of `busy` with `depth` of them outstanding, sleeping when there is nothing.
fn load(
    controller: &Controller,
    group: &mut PollGroup,
    busy: &[GroupKey],
    depth: usize,
    each: usize,
    budget: usize,
) {
    let ns = controller.namespace(1).unwrap();
    let mut left = vec![each; busy.len()];
    let mut free: Vec<(usize, nvmf_core::IoBuf)> = Vec::new();
    for index in 0..busy.len() {
        for _ in 0..depth {
            free.push((index, controller.alloc(4096).unwrap().into()));
        }
    }
    let (mut open, start) = (0, Instant::now());
    while open > 0 || left.iter().any(|&left| left > 0) {
        let mut idle = Vec::new();
        for (index, buf) in free.drain(..) {
            if left[index] == 0 {
                idle.push((index, buf));
                continue;
            }
            left[index] -= 1;
            open += 1;
            let slba = (left[index] % 256) as u64 * 8;
            group.qpair_mut(busy[index]).unwrap().read(&ns, slba, buf, index as u64).unwrap();
        }
        free = idle;
        let n = group.process_completions(
            budget,
            |key, Completion { user_data, result, buf, .. }| {
                assert_eq!(busy[user_data as usize], key);
                result.unwrap();
                free.push((user_data as usize, buf));
            },
            |_, error| panic!("{error}"),
        );
        open -= n;
        if n == 0 {
            group.wait(Duration::from_millis(100)).unwrap();
        }
        assert!(start.elapsed() < DEADLINE, "{open} I/Os are missing");
    }
}

#[test]
fn few_and_many_busy_ones_among_idle_ones() {
    let (_target, controller, mut group, keys) = fixture();
    for (busy, depth, budget) in [(1, 1, 0), (1, 8, 3), (4, 4, 0), (5, 1, 0), (QPAIRS, 8, 0), (QPAIRS, 3, 1)]
    {
        load(&controller, &mut group, &keys[..busy], depth, 200, budget);
        load(&controller, &mut group, &keys[QPAIRS - busy..], depth, 50, budget);
    }
    // Those that were idle all the time were hardly looked at.
    let polls = |group: &mut PollGroup, key| group.qpair_mut(key).unwrap().stats().polls;
    let before = polls(&mut group, keys[20]);
    load(&controller, &mut group, &keys[..1], 1, 2000, 0);
    let looked = polls(&mut group, keys[20]) - before;
    assert!(looked < 1000, "an idle queue pair was polled {looked} times");
}

#[test]
fn a_sleeping_group_sleeps_and_misses_nothing() {
    let (_target, controller, mut group, keys) = fixture();
    load(&controller, &mut group, &keys, 1, 1, 0);
    // What connecting left at the sockets is taken note of; then nothing wakes it.
    let mut woken = 0;
    for _ in 0..10 {
        group.process_completions(0, |_, _| {}, |_, error| panic!("{error}"));
        woken += u32::from(group.wait(Duration::from_millis(5)).unwrap());
    }
    assert!(woken < 5, "woken {woken} times in 10 sleeps");
    let ns = controller.namespace(1).unwrap();
    for round in 0..50 {
        let key = keys[round * 7 % QPAIRS];
        group.qpair_mut(key).unwrap().read(&ns, 0, controller.alloc(512).unwrap(), 1).unwrap();
        // The command leaves although nothing polls before the sleep.
        let (mut done, start) = (0, Instant::now());
        while done == 0 {
            group.wait(Duration::from_secs(5)).unwrap();
            done = group.process_completions(0, |_, _| {}, |_, error| panic!("{error}"));
            assert!(start.elapsed() < DEADLINE);
        }
    }
}

#[test]
fn an_idle_group_that_is_only_polled_sees_losses() {
    for pause in [Duration::ZERO, Duration::from_millis(2)] {
        let (target, controller, mut group, keys) = fixture();
        load(&controller, &mut group, &keys, 1, 1, 0);
        for _ in 0..100 {
            group.process_completions(
                0,
                |_, _| panic!("nothing is outstanding"),
                |_, error| panic!("{error}"),
            );
        }
        target.disconnect_all();
        let (mut lost, start) = (BTreeSet::new(), Instant::now());
        while lost.len() < QPAIRS {
            group.process_completions(0, |_, _| {}, |key, _| lost.extend([key]));
            std::thread::sleep(pause);
            assert!(start.elapsed() < DEADLINE, "{} of {QPAIRS} losses were told", lost.len());
        }
    }
}

#[test]
fn losses_are_told_until_the_queue_pair_is_removed() {
    let (target, controller, mut group, keys) = fixture();
    load(&controller, &mut group, &keys, 1, 1, 0);
    target.disconnect_all();
    let (mut lost, start) = (BTreeSet::new(), Instant::now());
    while lost.len() < QPAIRS {
        let mut now = Vec::new();
        group.process_completions(0, |_, _| {}, |key, _| now.push(key));
        group.wait(Duration::from_millis(10)).unwrap();
        lost.extend(now);
        assert!(start.elapsed() < DEADLINE, "{} of {QPAIRS} losses were told", lost.len());
    }
    let mut again = BTreeSet::new();
    group.process_completions(
        0,
        |_, _| {},
        |key, _| {
            again.insert(key);
        },
    );
    assert_eq!(again, lost, "every call tells of them");
    for &key in &keys[1..] {
        assert!(group.remove(key).unwrap().failure().is_some());
    }
    let mut rest = Vec::new();
    group.process_completions(0, |_, _| {}, |key, _| rest.push(key));
    assert_eq!(rest, keys[..1]);
}
