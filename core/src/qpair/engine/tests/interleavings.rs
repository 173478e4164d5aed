//! Everything at once, in any order.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Submit { write: bool, blocks: u64, max_blocks: u32 },
    Answer { pick: usize, ok: bool },
    Stray(u16),
    Poll(usize),
    Cancel(usize),
    Abort(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 1u64..20, 1u32..9)
            .prop_map(|(write, blocks, max_blocks)| Step::Submit { write, blocks, max_blocks }),
        6 => (any::<usize>(), prop_oneof![5 => Just(true), 1 => Just(false)])
            .prop_map(|(pick, ok)| Step::Answer { pick, ok }),
        1 => any::<u16>().prop_map(Step::Stray),
        4 => (0usize..5).prop_map(Step::Poll),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => any::<usize>().prop_map(Step::Abort),
    ]
}

/// What the test knows of an accepted operation.
struct Known {
    id: CommandId,
    slba: u64,
    write: bool,
    address: usize,
    len: usize,
}

fn check(done: Done, live: &mut HashMap<u64, Known>, leaked: bool) -> Result<(), TestCaseError> {
    let known = live.remove(&done.user_data);
    let known = known.ok_or_else(|| TestCaseError::fail("completed twice, or never submitted"))?;
    prop_assert_eq!(done.id, known.id);
    let Some(buf) = done.buf.into_one() else {
        prop_assert!(leaked, "the buffer is missing");
        prop_assert!(done.result.is_err());
        return Ok(());
    };
    prop_assert_eq!(buf.as_ptr().addr(), known.address);
    prop_assert_eq!(buf.len(), known.len);
    if done.result.is_ok() {
        for (n, block) in buf.chunks(BLOCK as usize).enumerate() {
            let expected = if known.write { done.user_data as u8 } else { (known.slba + n as u64) as u8 };
            prop_assert!(block.iter().all(|&b| b == expected), "block {} holds foreign data", n);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_accepted_operation_completes_once_with_its_own_buffer(
        steps in proptest::collection::vec(step(), 1..150),
        slots in 1u16..6,
        connect_after in 0usize..20,
        end in 0u8..4,
    ) {
        let mut bench = Bench::fabrics(slots, 10);
        let mut live: HashMap<u64, Known> = HashMap::new();
        let mut accepted = 0u64;
        for (n, step) in steps.into_iter().enumerate() {
            if bench.engine.is_connecting() {
                if n >= connect_after {
                    bench.fake.wire().connect = ConnectProgress::Established;
                    if bench.held() > 0 {
                        bench.answer(0, Status::SUCCESS);
                    }
                }
                bench.connect().unwrap();
            }
            let connecting = bench.engine.is_connecting();
            match step {
                Step::Submit { write, blocks, max_blocks } => {
                    let opcode = if write { NvmOpcode::WRITE } else { NvmOpcode::READ };
                    let slba = accepted * 1000;
                    let mut request = bench.request(opcode, slba, blocks, max_blocks, accepted);
                    if let IoBuf::One(buf) = &mut request.buf {
                        buf.fill(accepted as u8);
                    }
                    let address = request.buf.bufs()[0].as_ptr().addr();
                    let len = request.buf.len();
                    match bench.engine.submit(request) {
                        Ok(id) => {
                            live.insert(accepted, Known { id, slba, write, address, len });
                            accepted += 1;
                        }
                        Err((error, buf)) => {
                            prop_assert!(matches!(error.kind(), ErrorKind::Exhausted(_)));
                            prop_assert_eq!(live.len(), 10);
                            prop_assert_eq!(buf.bufs()[0].as_ptr().addr(), address);
                        }
                    }
                }
                Step::Answer { pick, ok } if !connecting && bench.held() > 0 => {
                    let status = if ok { Status::SUCCESS } else { Status::UNRECOVERED_READ_ERROR };
                    bench.answer(pick % bench.held(), status);
                }
                Step::Stray(cid) if !connecting => {
                    let known = bench.fake.wire().held.iter().any(|(_, sqe)| sqe.cid.get() == cid);
                    if !known {
                        bench.fake.wire().completions.push_back(Cqe::new(cid, 0, Status::SUCCESS));
                    }
                }
                Step::Poll(max) => {
                    let mut done = Vec::new();
                    let count = bench.engine.process(max, &mut |d| done.push(d)).unwrap();
                    prop_assert_eq!(count, done.len());
                    prop_assert!(max == 0 || count <= max);
                    for done in done {
                        check(done, &mut live, false)?;
                    }
                }
                Step::Cancel(pick) | Step::Abort(pick) if !live.is_empty() => {
                    let mut ids: Vec<CommandId> = live.values().map(|known| known.id).collect();
                    ids.sort_by_key(|id| id.op);
                    let id = ids[pick % ids.len()];
                    let mut done = None;
                    if matches!(step, Step::Cancel(_)) {
                        bench.engine.cancel(id, |d| done = Some(d));
                    } else if !bench.engine.cancel(id, |d| done = Some(d)) {
                        prop_assert!(!bench.engine.abort_targets(id).is_empty());
                    }
                    if let Some(done) = done {
                        prop_assert_eq!(done.result, Err(CommandError::Aborted));
                        check(done, &mut live, false)?;
                    }
                }
                _ => {}
            }
            prop_assert_eq!(bench.engine.outstanding(), live.len());
            let in_flight = bench.held();
            prop_assert!(in_flight <= usize::from(slots));
        }
        match end {
            // All is answered.
            0 => {
                bench.fake.wire().connect = ConnectProgress::Established;
                for _ in 0..1000 {
                    if bench.engine.is_connecting() {
                        bench.answer_all();
                        bench.connect().unwrap();
                        continue;
                    }
                    bench.answer_all();
                    for done in bench.poll() {
                        check(done, &mut live, false)?;
                    }
                }
            }
            // The connection breaks.
            1 | 2 => {
                bench.fake.wire().quiesce = if end == 1 { Quiesce::Done } else { Quiesce::Unconfirmed };
                bench.engine.fail(broken(), CommandError::Disconnected, clock());
                for done in bench.drain().0 {
                    check(done, &mut live, end == 2)?;
                }
            }
            // It is dropped: what is left never completes, and nothing is lost.
            _ => live.clear(),
        }
        prop_assert!(live.is_empty(), "{} operations never completed", live.len());
        let stats = bench.engine.stats();
        prop_assert_eq!(stats.submitted, accepted);
        if end != 3 {
            prop_assert_eq!(stats.completed, accepted);
        }
        let pool = bench.pool.clone();
        drop(bench);
        prop_assert_eq!(pool.stats().outstanding, 0);
    }
}
