//! What every block of a namespace may hold, given the writes done to it and how they ended.
//!
//! A write that was acknowledged is there. One that ended without an answer may be there, or not, or may still arrive:
//! the target may have it in hand although its connection is gone. A read has to be explainable by one of these.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::workload::fill_block;

/// The history of blocks that were all zeroes at first. Versions start from 1; two writes never share one.
#[derive(Debug)]
pub struct History {
    block_size: usize,
    settle: Duration,
    blocks: HashMap<u64, Block>,
    /// Writes whose fate is not known, ever.
    unknown: u64,
    /// Reads of blocks that a write of unknown fate explains.
    resolved: u64,
}

#[derive(Debug)]
struct Block {
    /// What it may hold.
    held: Vec<u64>,
    /// What may still arrive, and until when.
    late: Vec<(u64, Instant)>,
}

impl Default for Block {
    fn default() -> Self {
        Self { held: vec![0], late: Vec::new() }
    }
}

/// The contents of version `version` of block `lba`; version 0 is all zeroes.
pub fn fill_version(block: &mut [u8], lba: u64, version: u64) {
    if version == 0 { block.fill(0) } else { fill_block(block, lba, version) }
}

impl Block {
    /// What can no longer arrive did arrive before now, or never will.
    fn settle(&mut self, now: Instant) {
        let Self { held, late } = self;
        late.retain(|(version, until)| {
            if *until <= now && !held.contains(version) {
                held.push(*version);
            }
            *until > now
        });
    }
}

impl History {
    /// A history of blocks of `block_size` bytes; a write without an answer may arrive up to `settle` after it was given up.
    #[must_use]
    pub fn new(block_size: usize, settle: Duration) -> Self {
        Self { block_size, settle, blocks: HashMap::new(), unknown: 0, resolved: 0 }
    }

    /// Blocks `lba` to `lba + blocks` were written with `version`, or with zeroes when it is 0, and the target said so.
    pub fn acknowledged(&mut self, lba: u64, blocks: u64, version: u64, now: Instant) {
        for lba in lba..lba + blocks {
            let block = self.blocks.entry(lba).or_default();
            block.settle(now);
            block.held = vec![version];
        }
    }

    /// The write ended with an error status: any part of it may have been done, but nothing more will be.
    pub fn failed(&mut self, lba: u64, blocks: u64, version: u64, now: Instant) {
        for lba in lba..lba + blocks {
            let block = self.blocks.entry(lba).or_default();
            block.settle(now);
            if !block.held.contains(&version) {
                block.held.push(version);
            }
        }
    }

    /// The write ended without an answer.
    pub fn unknown(&mut self, lba: u64, blocks: u64, version: u64, now: Instant) {
        self.unknown += 1;
        for lba in lba..lba + blocks {
            let block = self.blocks.entry(lba).or_default();
            block.settle(now);
            block.late.push((version, now + self.settle));
        }
    }

    /// Blocks from `lba` on were read, at some time between `submitted` and `now`, and hold `data`.
    ///
    /// # Errors
    /// When no order of the writes explains it.
    pub fn read(&mut self, lba: u64, data: &[u8], submitted: Instant, now: Instant) -> Result<()> {
        let mut expected = vec![0; self.block_size];
        for (lba, found) in (lba..).zip(data.chunks(self.block_size)) {
            let block = self.blocks.entry(lba).or_default();
            // The read may be older than what has settled since.
            block.settle(submitted);
            let explanation =
                block.held.iter().chain(block.late.iter().map(|(version, _)| version)).copied().find(|v| {
                    fill_version(&mut expected, lba, *v);
                    found == expected
                });
            let Some(version) = explanation else {
                let word = |at: usize| {
                    found.get(at..at + 8).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b))
                };
                bail!(
                    "block {lba} holds what no write explains: it says block {:?} version {:?}; possible are {:?}, late {:?}",
                    word(0),
                    word(8),
                    block.held,
                    block.late.iter().map(|(v, _)| *v).collect::<Vec<_>>()
                );
            };
            if block.held.len() + block.late.len() > 1 {
                self.resolved += 1;
            }
            block.held = vec![version];
            block.settle(now);
        }
        Ok(())
    }

    /// Writes that ended without an answer.
    #[must_use]
    pub fn unknown_writes(&self) -> u64 {
        self.unknown
    }

    /// Reads of a block whose contents were not known before.
    #[must_use]
    pub fn resolved_reads(&self) -> u64 {
        self.resolved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    fn block(lba: u64, version: u64) -> Vec<u8> {
        let mut data = vec![0; 512];
        if version > 0 {
            fill_block(&mut data, lba, version);
        }
        data
    }

    struct Case {
        history: History,
        now: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self { history: History::new(512, SETTLE), now: Instant::now() }
        }

        fn sees(&mut self, version: u64) -> bool {
            self.history.read(7, &block(7, version), self.now, self.now).is_ok()
        }
    }

    #[test]
    fn acknowledged_is_there() {
        let mut case = Case::new();
        assert!(case.sees(0));
        case.history.acknowledged(7, 1, 1, case.now);
        assert!(!case.sees(0), "it was overwritten");
        assert!(case.sees(1));
        assert!(case.history.read(7, &block(8, 1), case.now, case.now).is_err(), "that is another block's");
        let mut torn = block(7, 1);
        torn[511] ^= 1;
        assert!(case.history.read(7, &torn, case.now, case.now).is_err());
        case.history.acknowledged(7, 1, 0, case.now);
        assert!(case.sees(0) && !case.sees(1), "zeroed");
    }

    #[test]
    fn unknown_may_be_there_and_a_read_tells() {
        let mut case = Case::new();
        case.history.acknowledged(7, 1, 1, case.now);
        case.history.unknown(7, 1, 2, case.now);
        assert!(case.sees(1) && case.sees(2), "first not, then late");
        assert!(!case.sees(1), "what was replaced does not return");
        case.now += SETTLE;
        assert!(case.sees(2));
        assert_eq!((case.history.unknown_writes(), case.history.resolved_reads()), (1, 2));
    }

    #[test]
    fn a_late_write_may_overtake_an_acknowledged_one_but_not_for_ever() {
        let mut case = Case::new();
        case.history.unknown(7, 1, 1, case.now);
        case.history.acknowledged(7, 1, 2, case.now);
        case.now += SETTLE;
        // Whether it arrived late is unknown until somebody looks.
        case.history.acknowledged(8, 1, 3, case.now);
        assert!(case.sees(1));
        assert!(!case.sees(2));
        case.history.acknowledged(7, 1, 4, case.now);
        assert!(!case.sees(1) && case.sees(4));
    }

    #[test]
    fn failed_may_be_there_at_once_or_never() {
        let mut case = Case::new();
        case.history.acknowledged(7, 1, 1, case.now);
        case.history.failed(7, 1, 2, case.now);
        assert!(case.sees(1));
        assert!(!case.sees(2), "the read told");
    }
}
