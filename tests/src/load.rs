//! Random I/O that goes on while connections come and go: every operation must end exactly once, and every block must hold what its
//! writes allow.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{CommandError, IoBuf, IoCommand, IoQpair, Namespace};

use crate::rng::Rng;
use crate::workload::{copy_out, fill_block};

/// What a block may hold.
#[derive(Default)]
struct Block {
    /// The version written last, of those whose outcome is known; 0 before the first.
    known: u64,
    /// Versions of writes whose outcome is not known. Each may be executed at any time.
    unknown: BTreeSet<u64>,
}

struct Pending {
    slba: u64,
    blocks: u64,
    version: Option<u64>,
}

/// How operations ended so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ends {
    /// Well.
    pub succeeded: u64,
    /// With an unknown outcome.
    pub disconnected: u64,
    /// Not sent.
    pub not_sent: u64,
    /// Refused when they were submitted.
    pub refused: u64,
}

/// The load of one queue pair on a range of blocks that is its own and holds zeroes.
pub struct Load {
    rng: Rng,
    range: (u64, u64),
    depth: usize,
    blocks: HashMap<u64, Block>,
    pending: HashMap<u64, Pending>,
    next: u64,
    /// How operations ended so far.
    pub ends: Ends,
}

impl Load {
    /// A load of `depth` operations on `len` blocks from `first` on.
    #[must_use]
    pub fn new(seed: u64, first: u64, len: u64, depth: usize) -> Self {
        Self {
            rng: Rng::new(seed),
            range: (first, len),
            depth,
            blocks: HashMap::new(),
            pending: HashMap::new(),
            next: 1,
            ends: Ends::default(),
        }
    }

    /// Operations that have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Submits as much as there shall be.
    ///
    /// # Errors
    /// When a buffer cannot be had.
    pub fn submit(&mut self, qpair: &mut IoQpair, ns: &Namespace) -> Result<()> {
        for _ in 0..self.depth * 4 {
            if self.pending.len() >= self.depth {
                break;
            }
            let blocks = 1 + self.rng.below(16);
            let slba = self.range.0 + self.rng.below(self.range.1 - blocks + 1);
            if self.pending.values().any(|p| p.slba < slba + blocks && slba < p.slba + p.blocks) {
                continue;
            }
            let id = self.next;
            self.next += 1;
            let version = (self.rng.below(2) == 0).then_some(id);
            let size = ns.block_size() as usize;
            let mut buf = qpair.alloc(blocks as usize * size)?;
            if let Some(version) = version {
                for (lba, block) in (slba..).zip(buf.chunks_mut(size)) {
                    fill_block(block, lba, version);
                }
            }
            let command = match version {
                Some(_) => IoCommand::write(ns, slba, buf),
                None => IoCommand::read(ns, slba, buf),
            };
            match qpair.submit(command, id) {
                Ok(_) => drop(self.pending.insert(id, Pending { slba, blocks, version })),
                Err(_) => {
                    self.ends.refused += 1;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Processes completions once. Returns whether the queue pair is lost.
    ///
    /// # Errors
    /// When an operation ends twice or in a way it must not, or a block holds something else than it may.
    pub fn process(&mut self, qpair: &mut IoQpair, ns: &Namespace) -> Result<bool> {
        let mut done = Vec::new();
        let result = qpair.process_completions(0, |completion| done.push(completion));
        for completion in done {
            let id = completion.user_data;
            let pending = self.pending.remove(&id).with_context(|| format!("I/O {id} ended twice"))?;
            self.ended(&pending, completion.result, &completion.buf, ns)
                .with_context(|| format!("I/O {id} (block {} + {})", pending.slba, pending.blocks))?;
        }
        match result {
            Ok(0) => {
                qpair.wait(Duration::from_millis(1))?;
                Ok(false)
            }
            Ok(_) => Ok(false),
            Err(error) => {
                ensure!(self.pending.is_empty(), "{} I/Os are left over after {error}", self.pending.len());
                Ok(true)
            }
        }
    }

    /// Waits for what is outstanding.
    ///
    /// # Errors
    /// As [`Load::process`]; also when it takes more than a minute.
    pub fn drain(&mut self, qpair: &mut IoQpair, ns: &Namespace) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.pending.is_empty() {
            ensure!(Instant::now() < deadline, "{} I/Os do not end: {qpair:?}", self.pending.len());
            self.process(qpair, ns)?;
        }
        ensure!(qpair.outstanding() == 0, "{} operations left over", qpair.outstanding());
        Ok(())
    }

    fn ended(
        &mut self,
        pending: &Pending,
        result: Result<u64, CommandError>,
        buf: &IoBuf,
        ns: &Namespace,
    ) -> Result<()> {
        let lbas = pending.slba..pending.slba + pending.blocks;
        match (result, pending.version) {
            (Ok(_), Some(version)) => {
                lbas.for_each(|lba| self.blocks.entry(lba).or_default().known = version);
                self.ends.succeeded += 1;
            }
            (Ok(_), None) => {
                let data = copy_out(buf);
                for (lba, found) in lbas.zip(data.chunks(ns.block_size() as usize)) {
                    self.check(lba, found)?;
                }
                self.ends.succeeded += 1;
            }
            (Err(CommandError::NotSent), _) => self.ends.not_sent += 1,
            (Err(CommandError::Disconnected | CommandError::TimedOut), version) => {
                if let Some(version) = version {
                    for lba in lbas {
                        self.blocks.entry(lba).or_default().unknown.insert(version);
                    }
                }
                self.ends.disconnected += 1;
            }
            (Err(error), _) => bail!("{error}"),
        }
        Ok(())
    }

    fn check(&self, lba: u64, found: &[u8]) -> Result<()> {
        let default = Block::default();
        let block = self.blocks.get(&lba).unwrap_or(&default);
        let mut expected = vec![0; found.len()];
        for &version in block.unknown.iter().chain([&block.known]) {
            match version {
                0 => expected.fill(0),
                _ => fill_block(&mut expected, lba, version),
            }
            if found == expected {
                return Ok(());
            }
        }
        bail!(
            "block {lba} holds version {:?} instead of {} or one of {:?}",
            found.get(8..16).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes)),
            block.known,
            block.unknown
        )
    }

    /// Reads every block of the range and checks it, again where the connection is lost meanwhile and comes back.
    ///
    /// # Errors
    /// When a block holds something else than it may, or cannot be read.
    pub fn verify(&self, qpair: &mut IoQpair, ns: &Namespace) -> Result<()> {
        ensure!(self.pending.is_empty(), "I/Os are outstanding");
        let deadline = Instant::now() + Duration::from_secs(60);
        for lba in self.range.0..self.range.0 + self.range.1 {
            loop {
                let buf = qpair.alloc(ns.block_size() as usize)?;
                match qpair.read_blocking(ns, lba, buf) {
                    Ok(buf) => break self.check(lba, &buf)?,
                    Err(error) if error.status().is_none() && Instant::now() < deadline => {
                        ensure!(qpair.is_reconnecting() || qpair.is_connected(), "{error}");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}
