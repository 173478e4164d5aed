//! A scripted session: attach, 64 I/Os of mixed kinds on one queue pair, detach; every outcome judged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{
    CommandError, Completion, Controller, ControllerOptions, Driver, IoBuf, IoCommand, IoQpair,
    IoQpairOptions,
};
use nvmf_core::{Namespace, TransportId};

use crate::history::{History, fill_version};
use crate::workload::copy_in;
use crate::workload::copy_out;

/// I/Os of one session.
pub const IOS: usize = 64;
/// Blocks each I/O has to itself.
const STRIDE: u64 = 4;

/// How a session ended.
#[derive(Debug)]
pub struct Ended {
    /// I/Os accepted; each of them completed once.
    pub submitted: usize,
    /// I/Os that succeeded.
    pub succeeded: usize,
    /// Why it ended early.
    pub error: Option<anyhow::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Write,
    Zeroes,
    Read,
    Compare,
    Flush,
}

struct Pending {
    kind: Kind,
    slba: u64,
    blocks: u64,
    submitted: Instant,
}

/// Writes, zeroes and flushes first, then reads and compares of the same places; sizes of one to four blocks.
fn script(i: usize) -> (Kind, u64, u64) {
    let place = (i % (IOS / 2)) as u64;
    let kind = match (i < IOS / 2, place % 8) {
        (_, 7) => Kind::Flush,
        (true, 3) => Kind::Zeroes,
        (true, _) => Kind::Write,
        (false, 5) => Kind::Compare,
        (false, _) => Kind::Read,
    };
    (kind, place * STRIDE, 1 + place % STRIDE)
}

/// One session with the target at `trid`, whose namespace 1 has the history given. Versions written are `version`.
///
/// # Errors
/// When anything but the loss of the connection happens: an I/O that completes twice or never, a buffer that does not come
/// back, contents that cannot be explained. What the harm done to the connection causes is in [`Ended::error`].
pub fn run(
    driver: &Driver,
    trid: &TransportId,
    options: &ControllerOptions,
    history: &mut History,
    version: u64,
    limit: Duration,
) -> Result<Ended> {
    let mut ended = Ended { submitted: 0, succeeded: 0, error: None };
    let controller = match driver.connect(trid, options) {
        Ok(controller) => controller,
        Err(error) => {
            ended.error = Some(error.into());
            return Ok(ended);
        }
    };
    let outcome = ios(&controller, history, version, limit, &mut ended)?;
    // Always, so that the next session finds no controller that is still attached.
    let detached = controller.detach();
    ended.error = outcome.err().or_else(|| detached.err().map(Into::into));
    Ok(ended)
}

/// The outer error is a verdict, the inner one the harm's effect.
fn ios(
    controller: &Controller,
    history: &mut History,
    version: u64,
    limit: Duration,
    ended: &mut Ended,
) -> Result<Result<()>> {
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = match controller.alloc_io_qpair(&IoQpairOptions::default()) {
        Ok(qpair) => qpair,
        Err(error) => return Ok(Err(error.into())),
    };
    // Two batches: what is read was written before.
    for batch in [0..IOS / 2, IOS / 2..IOS] {
        let lost = run_batch(&mut qpair, &ns, batch, history, version, limit, ended)?;
        ensure!(qpair.outstanding() == 0, "{} operations are left over", qpair.outstanding());
        if let Some(error) = lost {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

fn run_batch(
    qpair: &mut IoQpair,
    ns: &Namespace,
    batch: std::ops::Range<usize>,
    history: &mut History,
    version: u64,
    limit: Duration,
    ended: &mut Ended,
) -> Result<Option<anyhow::Error>> {
    let first = batch.start;
    let mut pending: Vec<Option<Pending>> = Vec::new();
    let mut lost = None;
    for i in batch {
        let (kind, slba, blocks) = script(i);
        let command = command(qpair, ns, (kind, slba, blocks), version)?;
        if let Err(refused) = qpair.submit(command, i as u64) {
            ensure!(!qpair.is_connected(), "submitting I/O {i}: {refused}");
            lost = Some(refused.error.into());
            break;
        }
        ended.submitted += 1;
        pending.push(Some(Pending { kind, slba, blocks, submitted: Instant::now() }));
    }
    let began = Instant::now();
    let mut left = pending.len();
    while left > 0 {
        let mut done = Vec::new();
        let polled = qpair.process_completions(0, |completion| done.push(completion));
        let idle = done.is_empty();
        for completion in done {
            let slot =
                usize::try_from(completion.user_data)?.checked_sub(first).and_then(|i| pending.get_mut(i));
            let id = completion.user_data;
            let io = slot
                .and_then(Option::take)
                .with_context(|| format!("I/O {id} completed twice, or was never submitted"))?;
            left -= 1;
            if judge(&completion, &io, ns, history, version)
                .with_context(|| format!("I/O {id}, {:?}", io.kind))?
            {
                ended.succeeded += 1;
            }
        }
        match polled {
            Ok(_) if idle => {
                let _ = qpair.wait(Duration::from_millis(20));
            }
            Ok(_) => {}
            Err(error) => {
                ensure!(left == 0, "the queue pair is gone with {left} I/Os that never completed: {error}");
                lost = Some(error.into());
            }
        }
        ensure!(began.elapsed() < limit, "{left} I/Os did not complete within {limit:?}");
    }
    Ok(lost.or_else(|| qpair.failure().map(|e| e.clone().into())))
}

fn command(
    qpair: &IoQpair,
    ns: &Namespace,
    (kind, slba, blocks): (Kind, u64, u64),
    version: u64,
) -> Result<IoCommand> {
    let size = ns.block_size() as usize;
    let buf = || qpair.alloc(usize::try_from(blocks)? * size).map_err(anyhow::Error::from);
    let filled = || -> Result<IoBuf> {
        let mut data = vec![0; usize::try_from(blocks)? * size];
        for (lba, block) in (slba..).zip(data.chunks_mut(size)) {
            fill_version(block, lba, version);
        }
        let mut buf = IoBuf::from(buf()?);
        copy_in(&mut buf, &data);
        Ok(buf)
    };
    Ok(match kind {
        Kind::Write => IoCommand::write(ns, slba, filled()?),
        Kind::Zeroes => IoCommand::write_zeroes(ns, slba, blocks),
        Kind::Read => IoCommand::read(ns, slba, buf()?),
        Kind::Compare => IoCommand::compare(ns, slba, filled()?),
        Kind::Flush => IoCommand::flush(ns),
    })
}

/// Whether it succeeded.
fn judge(c: &Completion, io: &Pending, ns: &Namespace, history: &mut History, version: u64) -> Result<bool> {
    let now = Instant::now();
    let expected = if matches!(io.kind, Kind::Flush | Kind::Zeroes) {
        0
    } else {
        io.blocks * u64::from(ns.block_size())
    };
    ensure!(c.buf.len() as u64 == expected, "{} bytes of buffer came back of {expected}", c.buf.len());
    let written = match io.kind {
        Kind::Write => Some(version),
        Kind::Zeroes => Some(0),
        _ => None,
    };
    match (c.result, written) {
        (Ok(_), Some(version)) => history.acknowledged(io.slba, io.blocks, version, now),
        (Ok(_), None) if io.kind == Kind::Read => {
            history.read(io.slba, &copy_out(&c.buf), io.submitted, now)?
        }
        // Equal to what was to be compared with: as good as a read of it.
        (Ok(_), None) if io.kind == Kind::Compare => {
            history.read(io.slba, &copy_out(&c.buf), io.submitted, now)?
        }
        (Ok(_), None) => {}
        (Err(CommandError::Disconnected | CommandError::TimedOut | CommandError::Aborted), Some(version)) => {
            history.unknown(io.slba, io.blocks, version, now);
        }
        (Err(CommandError::Disconnected | CommandError::TimedOut | CommandError::Aborted), None) => {}
        (Err(error), _) => bail!("it failed although only the connection was harmed: {error}"),
    }
    Ok(c.result.is_ok())
}

/// Reads everything a session touches and holds it against the history.
///
/// # Errors
/// When a read fails or cannot be explained.
pub fn check(qpair: &mut IoQpair, ns: &Namespace, history: &mut History) -> Result<()> {
    let blocks = IOS as u64 / 2 * STRIDE;
    let submitted = Instant::now();
    let buf =
        qpair.read_blocking(ns, 0, qpair.alloc(usize::try_from(blocks)? * ns.block_size() as usize)?)?;
    history.read(0, &buf, submitted, Instant::now())
}
