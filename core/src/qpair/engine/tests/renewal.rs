//! Queue pairs that are given up and connect again: what is held, what is sent again, what ends.

use super::*;

const HOLD: Keep = Keep { hold: true, retries: 0 };
const LOST: Result<u64, CommandError> = Err(CommandError::Disconnected);
const NOT_SENT: Result<u64, CommandError> = Err(CommandError::NotSent);

/// Cuts the wire and returns what ends.
fn cut(bench: &mut Bench) -> Vec<Done> {
    bench.fake.wire().fail_poll = true;
    let mut done = Vec::new();
    for _ in 0..3 {
        bench.engine.process(0, &mut |d| done.push(d)).unwrap();
    }
    assert!(bench.engine.is_drained());
    done
}

fn results(done: &[Done]) -> Vec<(u64, Result<u64, CommandError>)> {
    done.iter().map(|d| (d.user_data, d.result)).collect()
}

#[test]
fn what_was_not_sent_is_sent_over_the_next_connection() {
    let mut bench = Bench::new(2, 8);
    bench.engine.set_keep(HOLD);
    for n in 0..5 {
        bench.read(n, 1, 8, n);
    }
    assert_eq!(results(&cut(&mut bench)), [(0, LOST), (1, LOST)]);
    assert_eq!(bench.engine.outstanding(), 3);
    assert!(!bench.engine.has_local_work(), "nothing to do but to wait");
    // More is taken, as much as there is room for.
    for n in 5..10 {
        bench.read(n, 1, 8, n);
    }
    let (error, _) = bench.engine.submit(bench.request(NvmOpcode::READ, 0, 1, 8, 99)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Exhausted(_)), "{error}");
    bench.renew(3);
    assert_eq!(bench.pieces(), [(2, 1), (3, 1), (4, 1)], "in order, and no more than there are slots");
    let mut seen = Vec::new();
    while bench.engine.outstanding() > 0 {
        bench.answer_all();
        seen.extend(user_data(&bench.poll()));
    }
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(bench.pool.stats().outstanding, 0);
}

#[test]
fn an_operation_of_which_a_part_was_sent_ends() {
    let mut bench = Bench::new(2, 8);
    bench.engine.set_keep(HOLD);
    // Four pieces, two of them sent.
    bench.read(0, 32, 8, 1);
    assert_eq!(results(&cut(&mut bench)), [(1, LOST)]);
    bench.renew(2);
    assert_eq!(bench.held(), 0);
    assert_eq!(bench.engine.outstanding(), 0);
}

#[test]
fn only_what_changes_nothing_is_sent_again_and_not_for_ever() {
    let mut bench = Bench::new(8, 8);
    bench.engine.set_keep(Keep { hold: true, retries: 2 });
    let opcodes = [
        (NvmOpcode::READ, true),
        (NvmOpcode::COMPARE, true),
        (NvmOpcode::WRITE, false),
        (NvmOpcode::WRITE_ZEROES, false),
        (NvmOpcode::DATASET_MANAGEMENT, false),
        (NvmOpcode::FLUSH, false),
    ];
    for (n, &(opcode, _)) in (0..).zip(&opcodes) {
        bench.submit(bench.request(opcode, n, 1, 8, n));
    }
    let mut fused = bench.request(NvmOpcode::COMPARE, 7, 1, 8, 7);
    fused.sqe.flags = 1;
    bench.submit(fused);
    let ended: Vec<u64> = results(&cut(&mut bench)).iter().map(|end| end.0).collect();
    assert_eq!(ended, [2, 3, 4, 5, 7]);
    for _ in 0..2 {
        let left = bench.engine.outstanding();
        assert_eq!(left, 2);
        bench.renew(8);
        assert_eq!(bench.pieces(), [(0, 1), (1, 1)]);
        if bench.engine.ops.iter().any(|op| op.retries == 2) {
            break;
        }
        assert!(cut(&mut bench).is_empty());
    }
    assert_eq!(results(&cut(&mut bench)), [(0, LOST), (1, LOST)], "sent three times in all");
}

#[test]
fn a_read_in_pieces_is_read_as_a_whole_again() {
    let mut bench = Bench::new(2, 4);
    bench.engine.set_keep(Keep { hold: true, retries: 1 });
    bench.read(10, 4, 1, 5);
    bench.answer(0, Status::SUCCESS);
    assert!(bench.poll().is_empty());
    assert!(cut(&mut bench).is_empty());
    bench.renew(8);
    assert_eq!(bench.pieces(), [(10, 1), (11, 1), (12, 1), (13, 1)]);
    bench.answer_all();
    let done = bench.poll();
    assert_eq!(user_data(&done), [5]);
    let bytes: Vec<u8> = done[0].buf.bufs()[0].chunks(BLOCK as usize).map(|block| block[0]).collect();
    assert_eq!(bytes, [10, 11, 12, 13]);
}

#[test]
fn a_read_that_failed_already_is_not_sent_again() {
    let mut bench = Bench::new(2, 4);
    bench.engine.set_keep(Keep { hold: true, retries: 1 });
    bench.read(10, 2, 1, 5);
    bench.answer(0, Status::UNRECOVERED_READ_ERROR);
    assert!(bench.poll().is_empty());
    let done = cut(&mut bench);
    assert_eq!(results(&done), [(5, Err(CommandError::Status(Status::UNRECOVERED_READ_ERROR)))]);
}

#[test]
fn nothing_is_read_into_memory_that_was_given_up() {
    let mut bench = Bench::new(2, 4);
    bench.engine.set_keep(Keep { hold: true, retries: 1 });
    bench.read(10, 1, 1, 5);
    bench.read(11, 1, 1, 6);
    bench.read(12, 1, 1, 7);
    bench.fake.wire().quiesce = Quiesce::Unconfirmed;
    let done = cut(&mut bench);
    assert_eq!(results(&done), [(5, LOST), (6, LOST)]);
    assert!(done.iter().all(|d| d.buf.is_empty()), "the memory stays away");
    bench.renew(2);
    assert_eq!(bench.pieces(), [(12, 1)]);
}

#[test]
fn nothing_begins_anew_before_the_queue_is_quiesced() {
    let mut bench = Bench::new(2, 4);
    bench.engine.set_keep(HOLD);
    bench.read(10, 1, 1, 5);
    bench.fake.wire().quiesce = Quiesce::Pending;
    bench.fake.wire().fail_poll = true;
    for _ in 0..5 {
        assert!(bench.poll().is_empty());
        assert!(bench.engine.is_given_up() && !bench.engine.is_drained());
        assert!(bench.engine.has_local_work());
    }
    bench.read(11, 1, 1, 6);
    bench.fake.wire().quiesce = Quiesce::Done;
    assert_eq!(results(&bench.poll()), [(5, LOST)]);
    assert!(bench.engine.is_drained());
    bench.renew(2);
    assert_eq!(bench.pieces(), [(11, 1)]);
}

#[test]
fn what_is_held_ends_when_it_is_not_to_be_held_any_more() {
    let mut bench = Bench::new(2, 8);
    bench.engine.set_keep(HOLD);
    for n in 0..4 {
        bench.read(n, 1, 8, n);
    }
    assert_eq!(cut(&mut bench).len(), 2);
    bench.engine.set_keep(Keep::default());
    assert!(bench.engine.has_local_work());
    let mut done = Vec::new();
    // One at a time, as the caller wishes.
    for _ in 0..2 {
        assert_eq!(bench.engine.process(1, &mut |d| done.push(d)).unwrap(), 1);
    }
    assert_eq!(results(&done), [(2, NOT_SENT), (3, NOT_SENT)]);
    assert_eq!(bench.engine.process(0, &mut |_| {}).unwrap_err().to_string(), broken().to_string());
    assert!(bench.engine.submit(bench.request(NvmOpcode::READ, 0, 1, 8, 0)).is_err());
    // Held again: the next connection may come.
    bench.engine.set_keep(HOLD);
    bench.read(9, 1, 8, 9);
    bench.poll();
    bench.renew(2);
    assert_eq!(bench.pieces(), [(9, 1)]);
}

#[test]
fn held_operations_can_be_cancelled_and_dropped() {
    let mut bench = Bench::new(1, 8);
    bench.engine.set_keep(HOLD);
    let ids: Vec<_> = (0..4).map(|n| bench.read(n, 1, 8, n)).collect();
    cut(&mut bench);
    let mut done = Vec::new();
    assert!(bench.engine.cancel(ids[2], |d| done.push(d)));
    assert_eq!(results(&done), [(2, Err(CommandError::Aborted))]);
    done.clear();
    // Of another namespace than before.
    let other = Request { sqe: Sqe::nvm(NvmOpcode::READ, 2), ..bench.request(NvmOpcode::READ, 8, 1, 8, 8) };
    bench.submit(other);
    bench.engine.drop_held(|sqe| sqe.nsid.get() == 1, &mut |d| done.push(d));
    assert_eq!(results(&done), [(1, NOT_SENT), (3, NOT_SENT)]);
    bench.renew(4);
    assert_eq!(bench.pieces(), [(8, 1)]);
    drop(bench.engine);
    assert_eq!(bench.pool.stats().outstanding, 2, "only what this test holds");
    drop(done);
}

#[test]
fn late_operations_are_reported_as_often_as_they_are_late() {
    let mut bench = Bench::new(2, 8);
    bench.engine.report_late();
    let timeout = DEADLINE_SCAN * 10;
    for n in 0..3 {
        let request = Request { timeout: Some(timeout).into(), ..bench.request(NvmOpcode::READ, n, 1, 8, n) };
        bench.submit(request);
    }
    let mut late = Vec::new();
    for _ in 0..35 {
        advance(DEADLINE_SCAN);
        // Not every poll looks at the clock.
        for _ in 0..IDLE_POLLS_PER_CLOCK {
            assert!(bench.poll().is_empty());
        }
        late.extend(bench.engine.take_late().iter().map(|late| (late.user_data, late.times)));
    }
    assert_eq!(late, [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)], "what waits for a slot is not late");
    assert!(bench.engine.failure().is_none());
    assert_eq!(bench.engine.find(1).map(|id| id.op), Some(CONNECT_OP + 2));
    assert!(bench.engine.find(7).is_none());
    bench.answer_all();
    assert_eq!(user_data(&bench.poll()), [0, 1]);
}
