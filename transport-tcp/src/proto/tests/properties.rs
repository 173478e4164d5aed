//! What holds for any split of the stream, and for any bytes at all.

use nvmf_core::spec::tcp::{FLAG_LAST, FLAG_SUCCESS};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Script {
    terms: Terms,
    /// Whether it is a read, its length, how many data PDUs or R2Ts it takes, whether SUCCESS replaces the response.
    commands: Vec<(bool, usize, usize, bool)>,
    /// Sizes of the receives, over and over.
    steps: Vec<usize>,
}

fn terms() -> impl Strategy<Value = Terms> {
    (any::<bool>(), any::<bool>(), 0u8..32, 0u8..32).prop_map(|(header_digest, data_digest, cpda, hpda)| {
        Terms { header_digest, data_digest, cpda, hpda, maxr2t_z: 0 }
    })
}

fn script() -> impl Strategy<Value = Script> {
    let command = (any::<bool>(), prop_oneof![1usize..5000, 20_000usize..120_000], 1usize..5, any::<bool>());
    let step = prop_oneof![1usize..40, 100usize..5000, 10_000usize..100_000, Just(usize::MAX)];
    (terms(), proptest::collection::vec(command, 1..8), proptest::collection::vec(step, 1..20))
        .prop_map(|(terms, commands, steps)| Script { terms, commands, steps })
}

/// `len` cut into `parts`, as (offset, length).
fn cut(len: usize, parts: usize) -> Vec<(usize, usize)> {
    let size = len.div_ceil(parts).max(1);
    (0..len).step_by(size).map(|at| (at, size.min(len - at))).collect()
}

/// All that a session showed to the outside.
#[derive(PartialEq, Debug)]
struct Outcome {
    completions: Vec<(u32, Status, Vec<u8>)>,
    sent: Vec<Sent>,
}

/// Runs a session in which the controller sends everything for one command after the other, received in `steps`.
fn run(script: &Script, steps: &[usize]) -> Outcome {
    let terms = script.terms;
    let mut rig = Rig::running(terms);
    let mut steps = steps.iter().copied().cycle();
    let mut sent = Vec::new();
    let cids: Vec<u16> = (0u32..)
        .zip(&script.commands)
        .map(|(op, &(is_read, len, ..))| {
            rig.submit(op, if is_read { NvmOpcode::READ } else { NvmOpcode::WRITE }, len, 16_384)
        })
        .collect();
    sent.extend(rig.transmit());
    let mut stream = Vec::new();
    for (&cid, &(is_read, len, parts, flag)) in cids.iter().zip(&script.commands) {
        let pieces = cut(len, parts);
        for &(offset, piece) in &pieces {
            if is_read {
                let last = offset + piece == len;
                let flags = if last { FLAG_LAST } else { 0 } | if last && flag { FLAG_SUCCESS } else { 0 };
                stream.extend(terms.c2h(cid, offset as u32, &patterned(offset, piece), flags));
            } else if len > 4096 {
                stream.extend(terms.r2t(cid, offset as u16, offset as u32, piece as u32));
                feed_all(&mut rig, &stream, &mut steps);
                stream.clear();
                sent.extend(rig.transmit());
            }
        }
        if !is_read || !flag {
            stream.extend(terms.response(cid, Status::SUCCESS));
        }
    }
    feed_all(&mut rig, &stream, &mut steps);
    sent.extend(rig.transmit());
    Outcome { completions: rig.completions(), sent }
}

fn feed_all(rig: &mut Rig, mut stream: &[u8], steps: &mut impl Iterator<Item = usize>) {
    while !stream.is_empty() {
        let n = steps.next().unwrap().min(stream.len());
        rig.feed_in(&stream[..n], n).unwrap();
        stream = &stream[n..];
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_split_of_the_stream_has_the_same_outcome(script in script()) {
        let whole = run(&script, &[usize::MAX]);
        prop_assert_eq!(whole.completions.len(), script.commands.len());
        for (op, status, data) in &whole.completions {
            prop_assert_eq!(*status, Status::SUCCESS);
            prop_assert!(*data == patterned(0, script.commands[*op as usize].1));
        }
        prop_assert!(run(&script, &script.steps) == whole);
        let total: usize = script.commands.iter().map(|command| command.1).sum();
        if total < 20_000 {
            prop_assert!(run(&script, &[1]) == whole);
        }
    }

    #[test]
    fn any_bytes_end_in_an_error_or_in_waiting(
        terms in terms(),
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        connected in any::<bool>(),
    ) {
        if connected {
            let mut rig = Rig::running(terms);
            rig.read(0, 4096);
            rig.write(1, 65_536);
            let _ = rig.feed(&bytes);
            prop_assert_eq!(rig.tracker.completed(), 0);
        } else {
            let mut rig = Rig::new(terms, terms.params());
            if let Ok(running) = rig.connect(&bytes) {
                prop_assert!(!running);
            }
        }
    }

    /// Good PDUs with a few bytes changed: gets deeper than noise.
    #[test]
    fn damaged_sessions_never_panic_and_never_touch_other_memory(
        terms in terms(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        step in prop_oneof![Just(usize::MAX), 1usize..300],
    ) {
        let mut rig = Rig::running(terms);
        let (read, write) = (rig.read(0, 2000), rig.write(1, 65_536));
        let mut stream = terms.c2h(read, 0, &patterned(0, 1000), 0);
        stream.extend(terms.r2t(write, 9, 0, 30_000));
        stream.extend(terms.c2h(read, 1000, &patterned(1000, 1000), FLAG_LAST));
        stream.extend(terms.response(read, Status::SUCCESS));
        for (index, value) in damage {
            let at = index.index(stream.len());
            stream[at] ^= value;
        }
        let result = rig.feed_in(&stream, step);
        rig.connection.fill(&rig.tracker).unwrap();
        dissect(terms, &rig.transmit_some(usize::MAX));
        if result.is_err() {
            prop_assert!(rig.connection.failure().is_some());
        }
        if let Some(slot) = rig.tracker.lookup(write) {
            let written: Vec<u8> = (0..4).flat_map(|k| rig.tracker.chunk(slot, k * 16_384)[..1].to_vec()).collect();
            let expected: Vec<u8> = (0..4).map(|k| pattern(k * 16_384)).collect();
            prop_assert_eq!(written, expected, "the data of a write was overwritten");
        }
    }
}
