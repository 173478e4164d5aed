//! Random I/O against a model of what every block holds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{Completion, IoBuf, IoCommand, IoQpair, Namespace};

use crate::rng::Rng;

/// Fills one block: its number and version, then a stream derived from both, so that a misplaced, stale or torn
/// block shows.
pub fn fill_block(block: &mut [u8], lba: u64, version: u64) {
    let mut rng = Rng::new(lba.wrapping_mul(0x1000_0000_01b3) ^ version.rotate_left(32) ^ 0x5eed);
    for (i, word) in block.chunks_mut(8).enumerate() {
        let value = match i {
            0 => lba,
            1 => version,
            _ => rng.next_u64(),
        };
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

/// Random reads and writes of one namespace through one queue pair, every read checked.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Seed of everything that is random.
    pub seed: u64,
    /// I/Os to do.
    pub ios: u64,
    /// I/Os outstanding.
    pub depth: usize,
    /// Smallest and largest I/O, blocks.
    pub blocks: (u64, u64),
    /// Range of blocks used: first and how many.
    pub range: (u64, u64),
    /// Cut data into several buffers now and then.
    pub vectored: bool,
}

struct Pending {
    slba: u64,
    blocks: u64,
    /// Version written; none for a read.
    version: Option<u64>,
}

impl Workload {
    /// A workload over all of `ns`.
    #[must_use]
    pub fn new(ns: &Namespace, seed: u64, ios: u64, depth: usize) -> Self {
        Self { seed, ios, depth, blocks: (1, 8), range: (0, ns.blocks()), vectored: false }
    }

    /// Sets smallest and largest I/O, blocks.
    #[must_use]
    pub fn sized(mut self, min: u64, max: u64) -> Self {
        self.blocks = (min, max);
        self
    }

    /// Uses only `len` blocks from `first` on.
    #[must_use]
    pub fn within(mut self, first: u64, len: u64) -> Self {
        self.range = (first, len);
        self
    }

    /// Cuts data into several buffers now and then.
    #[must_use]
    pub fn vectored(mut self) -> Self {
        self.vectored = true;
        self
    }

    /// Runs it. Blocks not written by it before are not judged.
    ///
    /// # Errors
    /// When an I/O fails, completes twice, or a block does not hold what was written last.
    pub fn run(&self, qpair: &mut IoQpair, ns: &Namespace) -> Result<()> {
        let mut rng = Rng::new(self.seed);
        let block = ns.block_size() as usize;
        let mut model: HashMap<u64, u64> = HashMap::new();
        let mut pending: HashMap<u64, Pending> = HashMap::new();
        let (mut started, mut finished) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(300);
        while finished < self.ios {
            while started < self.ios && pending.len() < self.depth {
                let blocks = self.blocks.0 + rng.below(self.blocks.1 - self.blocks.0 + 1);
                let slba = self.range.0 + rng.below(self.range.1 - blocks + 1);
                // I/Os that overlap have no defined order; such a place is left for later.
                if pending.values().any(|p| p.slba < slba + blocks && slba < p.slba + p.blocks) {
                    if pending.is_empty() { continue } else { break }
                }
                let id = started;
                let version = (rng.below(2) == 0).then_some(id + 1);
                let mut buf = self.alloc(qpair, &mut rng, blocks as usize * block)?;
                if let Some(version) = version {
                    let mut data = vec![0; blocks as usize * block];
                    for (i, b) in data.chunks_mut(block).enumerate() {
                        fill_block(b, slba + i as u64, version);
                    }
                    copy_in(&mut buf, &data);
                }
                let command = match version {
                    Some(_) => IoCommand::write(ns, slba, buf),
                    None => IoCommand::read(ns, slba, buf),
                };
                qpair.submit(command, id).context("submitting")?;
                pending.insert(id, Pending { slba, blocks, version });
                started += 1;
            }
            let mut done = Vec::new();
            let n = qpair.process_completions(0, |c| done.push(c)).context("processing completions")?;
            for completion in done {
                let id = completion.user_data;
                let p = pending
                    .remove(&id)
                    .with_context(|| format!("I/O {id} completed twice or was never submitted"))?;
                check(&completion, &p, block, &mut model)
                    .with_context(|| format!("I/O {id} of {self:?} (lba {} + {})", p.slba, p.blocks))?;
                finished += 1;
            }
            if n == 0 {
                qpair.wait(Duration::from_millis(50))?;
            }
            ensure!(Instant::now() < deadline, "{} I/Os still outstanding after five minutes", pending.len());
        }
        ensure!(qpair.outstanding() == 0, "{} operations left over", qpair.outstanding());
        Ok(())
    }

    fn alloc(&self, qpair: &IoQpair, rng: &mut Rng, len: usize) -> Result<IoBuf> {
        if !self.vectored || rng.below(2) == 0 {
            return Ok(qpair.alloc(len)?.into());
        }
        let mut bufs = Vec::new();
        let mut left = len;
        while left > 0 {
            let n = (1 + rng.below(left as u64) as usize).min(left);
            bufs.push(qpair.alloc(n)?);
            left -= n;
        }
        Ok(bufs.into())
    }
}

/// Copies `data` into a buffer of the same length.
pub fn copy_in(buf: &mut IoBuf, data: &[u8]) {
    let mut at = 0;
    while at < data.len() {
        let chunk = buf.chunk_mut(at);
        let n = chunk.len();
        chunk.copy_from_slice(&data[at..at + n]);
        at += n;
    }
}

/// The bytes of a buffer.
#[must_use]
pub fn copy_out(buf: &IoBuf) -> Vec<u8> {
    buf.bufs().iter().flat_map(|b| b.to_vec()).collect()
}

fn check(completion: &Completion, p: &Pending, block: usize, model: &mut HashMap<u64, u64>) -> Result<()> {
    completion.result?;
    ensure!(
        completion.buf.len() as u64 == p.blocks * block as u64,
        "the buffer came back with another length"
    );
    if let Some(version) = p.version {
        model.extend((p.slba..p.slba + p.blocks).map(|lba| (lba, version)));
        return Ok(());
    }
    let data = copy_out(&completion.buf);
    let mut expected = vec![0; block];
    for (lba, found) in (p.slba..).zip(data.chunks(block)) {
        let Some(&version) = model.get(&lba) else { continue };
        fill_block(&mut expected, lba, version);
        if found != expected {
            let at = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(0);
            bail!(
                "block {lba} should hold version {version} but differs at byte {at}: found block {:?} version {:?}",
                found.first_chunk().map(|b| u64::from_le_bytes(*b)),
                found.get(8..16).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)),
            );
        }
    }
    Ok(())
}
