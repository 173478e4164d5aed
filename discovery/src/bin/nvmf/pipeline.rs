//! Keeps a number of I/Os outstanding on a queue pair until a job is done.

use std::collections::VecDeque;
use std::time::Duration;

use nvmf_core::spec::status::CommandKind;
use nvmf_core::{CommandError, DmaBuf, IoQpair, Namespace};

use crate::failure::Failure;
use crate::units;

/// Which way the data go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the controller.
    Read,
    /// To the controller.
    Write,
}

/// One I/O, in bytes from the start of the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Io {
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// What the I/Os are and what becomes of their data.
pub(crate) trait Job {
    /// The next I/O, at most `buf.capacity()` bytes long; `None` if there are no more. A write puts its data into `buf`,
    /// whose length is its capacity.
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Io>, Failure>;

    /// An I/O has succeeded.
    fn done(&mut self, io: Io, data: &[u8]) -> Result<(), Failure>;
}

/// How a job is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) direction: Direction,
    /// Largest I/O, bytes; a multiple of the block size.
    pub(crate) io_size: usize,
    /// I/Os outstanding at most.
    pub(crate) depth: usize,
    /// [`Job::done`] is called in the order of [`Job::next`].
    pub(crate) in_order: bool,
    /// Look again at once instead of sleeping until something arrives.
    pub(crate) poll: bool,
}

/// An I/O that was begun.
struct Slot {
    io: Io,
    /// Its data, once it is finished.
    buf: Option<DmaBuf>,
}

/// Longest sleep before deadlines are looked at again.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// Runs the job to its end or to the first failure.
pub(crate) fn run(
    qpair: &mut IoQpair,
    ns: &Namespace,
    plan: Plan,
    job: &mut impl Job,
) -> Result<(), Failure> {
    let mut spare: Vec<DmaBuf> = Vec::new();
    let mut allocated = 0;
    // Begun I/Os, oldest first; `base` is the number of the oldest.
    let mut slots: VecDeque<Option<Slot>> = VecDeque::new();
    let mut base = 0u64;
    let mut more = true;
    let mut finished = Vec::with_capacity(plan.depth);
    loop {
        while more && (allocated < plan.depth || !spare.is_empty()) {
            let mut buf = match spare.pop() {
                Some(buf) => buf,
                None => {
                    allocated += 1;
                    qpair.alloc(plan.io_size)?
                }
            };
            buf.set_len(plan.io_size);
            let Some(io) = job.next(&mut buf)? else {
                more = false;
                break;
            };
            buf.set_len(io.len);
            let slba = io.offset / u64::from(ns.block_size());
            let number = base + slots.len() as u64;
            slots.push_back(Some(Slot { io, buf: None }));
            match plan.direction {
                Direction::Read => qpair.read(ns, slba, buf, number),
                Direction::Write => qpair.write(ns, slba, buf, number),
            }
            .map_err(|error| Failure::from(error.error))?;
        }
        if slots.is_empty() {
            return Ok(());
        }
        let n = qpair.process_completions(0, |completion| finished.push(completion))?;
        match (n, plan.poll) {
            (0, true) => std::hint::spin_loop(),
            (0, false) => drop(qpair.wait(MAX_SLEEP)?),
            _ => {}
        }
        for completion in finished.drain(..) {
            let index = usize::try_from(completion.user_data - base).unwrap_or(usize::MAX);
            let Some(slot) = slots.get_mut(index).and_then(Option::as_mut) else { continue };
            if let Err(error) = completion.result {
                return Err(io_failure(qpair, plan.direction, ns, slot.io, error));
            }
            let Some(buf) = completion.buf.into_one() else { continue };
            if plan.in_order {
                slot.buf = Some(buf);
            } else {
                job.done(slot.io, &buf)?;
                spare.push(buf);
                slots[index] = None;
            }
        }
        // Give out what is next in order, forget what is done with.
        loop {
            match slots.front_mut() {
                Some(Some(Slot { io, buf: done @ Some(_) })) => {
                    if let Some(buf) = done.take() {
                        job.done(*io, &buf)?;
                        spare.push(buf);
                    }
                }
                Some(None) => {}
                _ => break,
            }
            slots.pop_front();
            base += 1;
        }
    }
}

fn io_failure(qpair: &IoQpair, direction: Direction, ns: &Namespace, io: Io, error: CommandError) -> Failure {
    let verb = match direction {
        Direction::Read => "reading",
        Direction::Write => "writing",
    };
    let what = format!(
        "{verb} {} at byte offset {} of namespace {}",
        units::bytes(io.len as u64),
        io.offset,
        ns.nsid()
    );
    match error {
        CommandError::Status(status) => {
            Failure::failed(format!("{what}: {}", status.describe(CommandKind::Nvm)))
        }
        _ => match qpair.failure() {
            Some(why) => Failure::unreachable(format!("{what}: {why}")),
            None => Failure::unreachable(format!("{what}: {error}")),
        },
    }
}

/// The I/O size for moving a lot of data: up to 128 KiB, no more than the controller takes at once, whole blocks.
pub(crate) fn bulk_io_size(ns: &Namespace) -> usize {
    let block = ns.block_size();
    let size = ns.max_transfer().min(128 * 1024).max(block);
    (size - size % block) as usize
}
