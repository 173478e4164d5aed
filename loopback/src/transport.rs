//! The in-process transport: a host in this process talks to the controller role without sockets or threads.
//!
//! Commands are executed by whoever polls the queue pair. What becomes ready at other times (asynchronous events, the end
//! of the controller) makes the queue pair's file descriptor readable.

use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::spec::{Cqe, Sqe, Status};
use nvmf_core::transport::{
    Capabilities, ConnectProgress, QpairSetup, Quiesce, TransportController, TransportQpair, TransportStats,
};
use nvmf_core::{ControllerOptions, Error, Result, Transport, TransportId, TransportType};
use zerocopy::little_endian::U16;

use crate::data::Data;
use crate::fault::Fault;
use crate::queue::{Admit, Due, Outcome, Queue};
use crate::registry;
use crate::target::{Front, Target, count};

/// A command identifier no host uses: FFFFh is reserved.
const NOBODY: u16 = u16::MAX;

/// Reaches the loopbacks of this process: `trtype:loop traddr:NAME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopbackTransport(());

impl LoopbackTransport {
    /// The transport. It reaches every loopback of this process, those yet to be built included.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

impl Transport for LoopbackTransport {
    fn trtype(&self) -> TransportType {
        TransportType::Loop
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        _options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        let target = registry::find(trid.traddr()).map_err(|running| {
            let running = if running.is_empty() { "none".to_owned() } else { running.join(", ") };
            Error::disconnected(format!(
                "no loopback of this name is running in this process (running: {running})"
            ))
            .doing("connecting in process")
            .peer(trid)
        })?;
        Ok(Box::new(LoopController { target }))
    }
}

struct LoopController {
    target: Arc<Target>,
}

impl TransportController for LoopController {
    fn capabilities(&self) -> Capabilities {
        Capabilities::fabrics()
    }

    fn create_qpair(&mut self, _setup: &QpairSetup) -> Result<Box<dyn TransportQpair>> {
        if self.target.is_refusing() {
            return Err(Error::disconnected(format!(
                "the loopback {} refuses connections",
                self.target.name
            )));
        }
        count(&self.target.counters.connections, 1);
        Ok(Box::new(LoopQpair::new(&self.target)?))
    }

    fn identified(&mut self, _identify: &IdentifyController) -> Result<()> {
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// Makes a file descriptor readable until it is silenced.
struct Bell {
    ringer: UnixStream,
    listener: UnixStream,
    ringing: AtomicBool,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let (ringer, listener) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Self { ringer, listener, ringing: AtomicBool::new(false) })
    }

    fn ring(&self) {
        if !self.ringing.swap(true, Ordering::AcqRel) {
            // One byte at a time fits always; whoever sleeps looks around now and then as well.
            let _ = (&self.ringer).write(&[1]);
        }
    }

    /// Whoever calls this has to look at everything afterwards: what rang before is not heard again.
    fn silence(&self) {
        if self.ringing.load(Ordering::Acquire) {
            let _ = (&self.listener).read(&mut [0; 8]);
            self.ringing.store(false, Ordering::Release);
        }
    }
}

struct LoopQpair {
    queue: Option<Queue>,
    bell: Arc<Bell>,
    /// Commands submitted and not yet executed, with their slots.
    pending: VecDeque<(u16, Sqe)>,
    /// For data in several buffers.
    scratch: Vec<u8>,
    stats: TransportStats,
}

fn closed() -> Error {
    Error::disconnected("the loopback closed the connection")
}

impl LoopQpair {
    fn new(target: &Arc<Target>) -> Result<Self> {
        let bell = Arc::new(Bell::new().map_err(|error| Error::from(error).doing("making a wake-up pipe"))?);
        let notify = Arc::clone(&bell);
        let queue = Queue::new(Arc::clone(target), Front::Loop, Arc::new(move || notify.ring()));
        Ok(Self {
            queue: Some(queue),
            bell,
            pending: VecDeque::new(),
            scratch: Vec::new(),
            stats: TransportStats::default(),
        })
    }

    /// Everything there is to do. An error means that the queue pair is broken.
    fn work(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        let now = Instant::now();
        let queue = self.queue.as_mut().ok_or_else(closed)?;
        for cqe in queue.take_completions() {
            complete(tracker, cqe)?;
        }
        while let Some(due) = queue.due(now) {
            match due {
                Due::Answer(cqe) => complete(tracker, cqe)?,
                Due::Execute(sqe, _) => {
                    if let Some(slot) = tracker.lookup(sqe.cid.get()) {
                        execute(queue, &mut self.scratch, &mut self.stats, tracker, slot, &sqe, None)?;
                    }
                }
            }
        }
        while tracker.completed() < budget
            && let Some((slot, sqe)) = self.pending.pop_front()
        {
            match queue.begin(&sqe) {
                Admit::Execute(fault) => {
                    execute(queue, &mut self.scratch, &mut self.stats, tracker, slot, &sqe, fault)?;
                }
                Admit::Answer(cqe) => complete(tracker, cqe)?,
                Admit::Hold(delay) => queue.hold(sqe, Vec::new(), delay, now),
                Admit::Close => return Err(closed()),
            }
        }
        // An event request may have been answered while it was executed.
        for cqe in queue.take_completions() {
            complete(tracker, cqe)?;
        }
        if queue.is_closed(now) { Err(closed()) } else { Ok(()) }
    }
}

/// Executes a command on the data of its slot.
fn execute(
    queue: &mut Queue,
    scratch: &mut Vec<u8>,
    stats: &mut TransportStats,
    tracker: &mut Tracker,
    slot: u16,
    sqe: &Sqe,
    fault: Option<Fault>,
) -> Result<()> {
    let len = tracker.data_len(slot) as usize;
    let outcome = match tracker.direction(slot) {
        DataDirection::None => queue.execute(sqe, Data::None),
        DataDirection::HostToController => {
            stats.bytes_sent += len as u64;
            let whole = tracker.chunk(slot, 0);
            if whole.len() == len {
                queue.execute(sqe, Data::Out(whole))
            } else {
                gather(tracker, slot, len, scratch);
                queue.execute(sqe, Data::Out(scratch))
            }
        }
        DataDirection::ControllerToHost => {
            stats.bytes_received += len as u64;
            let whole = tracker.chunk_mut(slot, 0);
            if whole.len() == len {
                queue.execute(sqe, Data::In(whole))
            } else {
                scratch.clear();
                scratch.resize(len, 0);
                let outcome = queue.execute(sqe, Data::In(scratch));
                if !tracker.write(slot, 0, scratch) {
                    return Err(Error::exhausted("the command's buffers are shorter than its data"));
                }
                outcome
            }
        }
        DataDirection::Bidirectional => Outcome::Answer(queue.fail(sqe, Status::INVALID_FIELD.with_dnr())),
    };
    let (mut cqe, closing) = match outcome {
        Outcome::Answer(cqe) => (cqe, false),
        Outcome::AnswerAndClose(cqe) => (cqe, true),
        Outcome::Pending => return Ok(()),
    };
    match fault {
        Some(Fault::WrongCid) => cqe.cid = U16::new(NOBODY),
        Some(Fault::CorruptData) if cqe.status().is_success() => {
            if let Some(byte) = tracker.chunk_mut(slot, len as u32 / 2).first_mut() {
                *byte ^= 0xff;
            }
        }
        Some(Fault::DuplicateCompletion) => complete(tracker, cqe)?,
        _ => {}
    }
    complete(tracker, cqe)?;
    if closing { Err(closed()) } else { Ok(()) }
}

fn gather(tracker: &Tracker, slot: u16, len: usize, to: &mut Vec<u8>) {
    to.clear();
    while to.len() < len {
        let chunk = tracker.chunk(slot, to.len() as u32);
        if chunk.is_empty() {
            return;
        }
        to.extend_from_slice(chunk);
    }
}

fn complete(tracker: &mut Tracker, cqe: Cqe) -> Result<()> {
    let cid = cqe.cid.get();
    let Some(slot) = tracker.lookup(cid) else {
        return Err(Error::peer_misbehaved(format!(
            "a completion names command identifier {cid:#06x}, under which no command is outstanding"
        )));
    };
    tracker.complete(slot, cqe);
    Ok(())
}

impl TransportQpair for LoopQpair {
    fn poll_connect(&mut self, _now: Instant) -> Result<ConnectProgress> {
        Ok(ConnectProgress::Established)
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, _tracker: &Tracker) -> Result<()> {
        if self.queue.is_none() {
            return Err(closed());
        }
        self.pending.push_back((slot, *sqe));
        Ok(())
    }

    fn flush(&mut self, _tracker: &Tracker) -> Result<()> {
        if !self.pending.is_empty() {
            self.stats.sends += 1;
            self.bell.ring();
        }
        Ok(())
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        self.bell.silence();
        let before = tracker.completed();
        let result = self.work(tracker, budget);
        if tracker.completed() > before {
            self.stats.receives += 1;
        } else {
            self.stats.empty_receives += 1;
        }
        if result.is_err() {
            // Leaving the controller at once, as a closed connection would.
            self.queue = None;
            self.pending.clear();
        } else if !self.pending.is_empty() {
            self.bell.ring();
        }
        result
    }

    fn disconnect(&mut self, _now: Instant) -> Quiesce {
        // Data is only touched by our own calls.
        self.queue = None;
        self.pending.clear();
        Quiesce::Done
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.bell.listener.as_raw_fd())
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

#[cfg(test)]
mod tests;
