//! Keeps a number of I/Os outstanding on a queue pair until a job is done.

use std::collections::VecDeque;
use std::time::Duration;

use nvmf_core::spec::status::CommandKind;
use nvmf_core::{CommandError, DmaBuf, IoCommand, IoQpair, Namespace, Protection};

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

    /// The metadata that goes with a write, after [`Job::next`]; only where it is transferred.
    fn next_metadata(&mut self, _io: Io, _metadata: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }

    /// The metadata that came with a read, after [`Job::done`]; only where it is transferred.
    fn done_metadata(&mut self, _io: Io, _metadata: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
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
    /// For namespaces with metadata: what the I/Os say of its protection, where the first byte of the job is, from the start of
    /// the namespace.
    pub(crate) metadata: Option<(Protection, u64)>,
}

/// An I/O that was begun.
struct Slot {
    io: Io,
    /// Its data and metadata, once it is finished.
    buf: Option<(DmaBuf, Vec<u8>)>,
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
    let layout = plan.metadata.map(|(protection, start)| Layout::new(ns, protection, start));
    let capacity = layout.map_or(plan.io_size, |layout| layout.capacity(plan.io_size));
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
                    qpair.alloc(capacity)?
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
            let command = match (&layout, plan.direction) {
                (None, Direction::Read) => IoCommand::read(ns, slba, buf),
                (None, Direction::Write) => IoCommand::write(ns, slba, buf),
                (Some(layout), direction) => layout.command(qpair, ns, direction, io, buf, job)?,
            };
            qpair.submit(command, number).map_err(|error| Failure::from(error.error))?;
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
            let (data, metadata) = completion.buf.into_parts();
            let Some(mut buf) = data.into_one() else { continue };
            let metadata = match &layout {
                Some(layout) if plan.direction == Direction::Read => {
                    layout.unpack(slot.io, &mut buf, metadata.as_deref())
                }
                _ => Vec::new(),
            };
            if plan.in_order {
                slot.buf = Some((buf, metadata));
            } else {
                finish(job, slot.io, &buf, &metadata)?;
                spare.push(buf);
                slots[index] = None;
            }
        }
        // Give out what is next in order, forget what is done with.
        loop {
            match slots.front_mut() {
                Some(Some(Slot { io, buf: done @ Some(_) })) => {
                    if let Some((buf, metadata)) = done.take() {
                        finish(job, *io, &buf, &metadata)?;
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

fn finish(job: &mut impl Job, io: Io, data: &[u8], metadata: &[u8]) -> Result<(), Failure> {
    job.done(io, data)?;
    if metadata.is_empty() { Ok(()) } else { job.done_metadata(io, metadata) }
}

/// How blocks with metadata are in the buffers of an I/O. Jobs see data and metadata apart.
#[derive(Clone, Copy)]
struct Layout {
    block: usize,
    /// Bytes of metadata per block that are transferred.
    metadata: usize,
    /// It follows each block in the data buffer.
    extended: bool,
    protection: Protection,
    /// Where the job starts, bytes: there the stated reference tag is that of the block.
    start: u64,
}

impl Layout {
    fn new(ns: &Namespace, protection: Protection, start: u64) -> Self {
        let block = ns.block_size() as usize;
        let in_data = ns.data_len(1, &protection) as usize - block;
        let apart = ns.metadata_len(1, &protection) as usize;
        Self { block, metadata: in_data + apart, extended: ns.is_extended(), protection, start }
    }

    /// Bytes of the data buffer of an I/O with this much data.
    fn capacity(&self, data: usize) -> usize {
        if self.extended { data / self.block * (self.block + self.metadata) } else { data }
    }

    /// The command of an I/O, `buf` being as long as its data.
    fn command(
        &self,
        qpair: &IoQpair,
        ns: &Namespace,
        direction: Direction,
        io: Io,
        mut buf: DmaBuf,
        job: &mut impl Job,
    ) -> Result<IoCommand, Failure> {
        let (slba, blocks) = (io.offset / self.block as u64, io.len / self.block);
        let mut metadata = vec![0; blocks * self.metadata];
        if direction == Direction::Write && !metadata.is_empty() {
            job.next_metadata(io, &mut metadata)?;
        }
        let apart = if self.extended || metadata.is_empty() {
            buf.set_len(self.capacity(io.len));
            // From the end, so that no block is overwritten before it is moved.
            let stride = self.block + self.metadata;
            for index in (0..blocks).rev().filter(|_| self.metadata > 0 && direction == Direction::Write) {
                buf.copy_within(index * self.block..(index + 1) * self.block, index * stride);
                let from = &metadata[index * self.metadata..(index + 1) * self.metadata];
                buf[index * stride + self.block..(index + 1) * stride].copy_from_slice(from);
            }
            None
        } else {
            let mut apart = qpair.alloc(metadata.len())?;
            apart.copy_from_slice(&metadata);
            Some(apart)
        };
        let later = (io.offset - self.start) / self.block as u64;
        let protection =
            ns.protection().map_or(self.protection, |format| format.advance(later, &self.protection));
        Ok(match direction {
            Direction::Read => IoCommand::read_with_md(ns, slba, buf, apart, protection),
            Direction::Write => IoCommand::write_with_md(ns, slba, buf, apart, protection),
        })
    }

    /// Leaves the data in `buf`; returns the metadata.
    fn unpack(&self, io: Io, buf: &mut DmaBuf, apart: Option<&[u8]>) -> Vec<u8> {
        if let Some(apart) = apart {
            return apart.to_vec();
        }
        let (blocks, stride) = (io.len / self.block, self.block + self.metadata);
        let mut metadata = Vec::with_capacity(blocks * self.metadata);
        for index in (0..blocks).filter(|_| self.metadata > 0) {
            metadata.extend_from_slice(&buf[index * stride + self.block..(index + 1) * stride]);
            buf.copy_within(index * stride..index * stride + self.block, index * self.block);
        }
        buf.set_len(io.len);
        metadata
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
