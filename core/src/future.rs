//! Futures over a queue pair, for any runtime.
//!
//! [`AsyncQpair`] hands out one future per command. They share the queue pair's slots: dropping a future does not take the
//! command back, its buffer stays with the slot until the completion and then returns to the pool.
//!
//! Somebody has to move the data. Each future polls the queue pair when it is polled itself; [`AsyncQpair::drive`] is a
//! future that keeps doing so, to be spawned next to the others. Programs with a reactor watch
//! [`AsyncQpair::event_source`] instead and call [`AsyncQpair::poll_once`] when it is ready. [`block_on`] is a minimal
//! executor that sleeps on the descriptor.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::dma::{DmaBuf, IoBuf};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::protection::Protection;
use crate::qpair::{CommandError, CommandId, Completion, IoCommand, IoQpair};
use crate::spec::status::CommandKind;
use crate::transport::TransportQpair;
use crate::wait::MAX_SLEEP;

#[cfg(test)]
mod tests;

/// A queue pair whose commands are futures. Cheap to clone; clones share the queue pair.
pub struct AsyncQpair<Q: TransportQpair = Box<dyn TransportQpair>>(Arc<Mutex<State<Q>>>);

struct State<Q: TransportQpair> {
    qpair: IoQpair<Q>,
    waiting: HashMap<CommandId, Slot>,
}

enum Slot {
    Pending(Option<Waker>),
    Done(Completion),
}

impl<Q: TransportQpair> AsyncQpair<Q> {
    /// Takes a queue pair over. Completions of operations that are outstanding on it already are ignored; their
    /// buffers return to the pool.
    #[must_use]
    pub fn new(qpair: IoQpair<Q>) -> Self {
        Self(Arc::new(Mutex::new(State { qpair, waiting: HashMap::new() })))
    }

    /// A zeroed buffer.
    ///
    /// # Errors
    /// When the operating system has no memory.
    pub fn alloc(&self, len: usize) -> Result<DmaBuf> {
        self.lock().qpair.alloc(len)
    }

    /// Submits a command. The future's result holds the data buffer.
    pub fn submit(&self, command: IoCommand) -> IoFuture<Q> {
        let mut state = self.lock();
        let what = command.name();
        match state.qpair.submit(command, 0) {
            Ok(id) => {
                state.waiting.insert(id, Slot::Pending(None));
                IoFuture { shared: self.clone(), what, stage: Stage::Sent(id) }
            }
            Err(error) => IoFuture { shared: self.clone(), what, stage: Stage::Refused(error.error) },
        }
    }

    /// Reads into `buf` from block `slba`.
    ///
    /// # Errors
    /// When the command fails or the queue pair is lost.
    pub async fn read(&self, ns: &Namespace, slba: u64, buf: DmaBuf) -> Result<DmaBuf> {
        one(self.submit(IoCommand::read(ns, slba, buf)).await?)
    }

    /// Writes `buf` to block `slba`.
    ///
    /// # Errors
    /// When the command fails or the queue pair is lost.
    pub async fn write(&self, ns: &Namespace, slba: u64, buf: DmaBuf) -> Result<DmaBuf> {
        one(self.submit(IoCommand::write(ns, slba, buf)).await?)
    }

    /// Reads data, and metadata into `md` where the namespace has it apart from the data; see [`IoCommand::read_with_md`].
    /// Gives both buffers back.
    ///
    /// # Errors
    /// When the command fails or the queue pair is lost.
    pub async fn read_with_md(
        &self,
        ns: &Namespace,
        slba: u64,
        buf: DmaBuf,
        md: Option<DmaBuf>,
        protection: Protection,
    ) -> Result<(DmaBuf, Option<DmaBuf>)> {
        two(self.submit(IoCommand::read_with_md(ns, slba, buf, md, protection)).await?)
    }

    /// Writes data and metadata; see [`AsyncQpair::read_with_md`].
    ///
    /// # Errors
    /// When the command fails or the queue pair is lost.
    pub async fn write_with_md(
        &self,
        ns: &Namespace,
        slba: u64,
        buf: DmaBuf,
        md: Option<DmaBuf>,
        protection: Protection,
    ) -> Result<(DmaBuf, Option<DmaBuf>)> {
        two(self.submit(IoCommand::write_with_md(ns, slba, buf, md, protection)).await?)
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// When the command fails or the queue pair is lost.
    pub async fn flush(&self, ns: &Namespace) -> Result<()> {
        self.submit(IoCommand::flush(ns)).await.map(drop)
    }

    /// Processes completions once and wakes whoever waited for them. Returns how many there were; more may be here already
    /// ([`AsyncQpair::has_local_work`]).
    ///
    /// # Errors
    /// When the queue pair is lost.
    pub fn poll_once(&self) -> Result<usize> {
        let mut wakers = Vec::new();
        let result = self.lock().poll(&mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    /// The queue pair's descriptor and whether to watch it for writing too, for an event loop of one's own. It does not tell of
    /// [`AsyncQpair::has_local_work`].
    #[must_use]
    pub fn event_source(&self) -> Option<(RawFd, bool)> {
        self.lock().qpair.event_source()
    }

    /// Whether waiting for the descriptor would miss work that is here already: call [`AsyncQpair::poll_once`] until it is not.
    #[must_use]
    pub fn has_local_work(&self) -> bool {
        self.lock().qpair.has_local_work()
    }

    /// A future that keeps processing completions for as long as the queue pair lives, giving way to others after every
    /// round. It ends when the queue pair is lost.
    pub fn drive(&self) -> Drive<Q> {
        Drive(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State<Q>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: TransportQpair> State<Q> {
    fn poll(&mut self, wakers: &mut Vec<Waker>) -> Result<usize> {
        let waiting = &mut self.waiting;
        let result = self.qpair.process_completions(0, |completion| {
            let id = completion.id;
            match waiting.get_mut(&id) {
                Some(slot) => {
                    if let Slot::Pending(Some(waker)) = std::mem::replace(slot, Slot::Done(completion)) {
                        wakers.push(waker);
                    }
                }
                // Its future was dropped: the buffer goes back to the pool here.
                None => drop(completion),
            }
        });
        if matches!(result, Ok(1..)) {
            // What waited for a place in the queue: whoever sleeps on the descriptor now sends nothing.
            self.qpair.flush();
        }
        result
    }
}

fn one(buf: IoBuf) -> Result<DmaBuf> {
    buf.into_one().ok_or_else(|| Error::disconnected("the buffer was given up"))
}

fn two(buf: IoBuf) -> Result<(DmaBuf, Option<DmaBuf>)> {
    let (data, metadata) = buf.into_parts();
    Ok((one(data)?, metadata))
}

impl<Q: TransportQpair> Clone for AsyncQpair<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A command in progress.
#[must_use = "the result, and with it the buffer, is lost when this is dropped"]
pub struct IoFuture<Q: TransportQpair = Box<dyn TransportQpair>> {
    shared: AsyncQpair<Q>,
    what: &'static str,
    stage: Stage,
}

enum Stage {
    Sent(CommandId),
    Refused(Error),
    Taken,
}

impl<Q: TransportQpair> Future for IoFuture<Q> {
    type Output = Result<IoBuf>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = match std::mem::replace(&mut self.stage, Stage::Taken) {
            Stage::Sent(id) => id,
            Stage::Refused(error) => return Poll::Ready(Err(error)),
            Stage::Taken => {
                return Poll::Ready(Err(Error::api_misuse("a future was polled after it was done")));
            }
        };
        let mut wakers = Vec::new();
        let mut state = self.shared.lock();
        if matches!(state.waiting.get(&id), Some(Slot::Pending(_))) {
            // A failure completes this command as well; it is told below.
            let _ = state.poll(&mut wakers);
        }
        let completion = match state.waiting.remove(&id) {
            Some(Slot::Done(completion)) => Some(completion),
            _ => {
                state.waiting.insert(id, Slot::Pending(Some(cx.waker().clone())));
                None
            }
        };
        let failure = completion.as_ref().and_then(|_| state.qpair.failure().cloned());
        let peer = state.qpair.controller().trid().clone();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        let Some(completion) = completion else {
            self.stage = Stage::Sent(id);
            return Poll::Pending;
        };
        Poll::Ready(match completion.result {
            Ok(_) => Ok(completion.buf),
            Err(CommandError::Status(status)) => {
                Err(Error::command(CommandKind::Nvm, self.what, status).peer(peer))
            }
            Err(other) => Err(failure
                .unwrap_or_else(|| Error::disconnected(other.to_string()))
                .doing(self.what)
                .peer(peer)),
        })
    }
}

impl<Q: TransportQpair> Drop for IoFuture<Q> {
    fn drop(&mut self) {
        if let Stage::Sent(id) = self.stage {
            self.shared.lock().waiting.remove(&id);
        }
    }
}

/// See [`AsyncQpair::drive`].
#[must_use = "futures do nothing unless polled"]
pub struct Drive<Q: TransportQpair = Box<dyn TransportQpair>>(AsyncQpair<Q>);

impl<Q: TransportQpair> Future for Drive<Q> {
    type Output = Error;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Error> {
        match self.0.poll_once() {
            Ok(_) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(error),
        }
    }
}

/// Runs a future to its end on this thread, processing `qpair`'s completions and sleeping on its descriptor in between.
///
/// # Errors
/// When the operating system cannot wait.
pub fn block_on<Q: TransportQpair, T>(qpair: &AsyncQpair<Q>, future: impl Future<Output = T>) -> Result<T> {
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if flag.0.swap(false, Ordering::AcqRel)
            && let Poll::Ready(value) = future.as_mut().poll(&mut cx)
        {
            return Ok(value);
        }
        // A lost queue pair completes every command, which wakes the future.
        if matches!(qpair.poll_once(), Ok(0)) && !flag.0.load(Ordering::Acquire) {
            qpair.lock().qpair.wait(MAX_SLEEP)?;
        } else {
            flag.0.store(true, Ordering::Release);
        }
    }
}
