//! The socket of one connection. [`Connection::turn`] does what can be done without blocking; a [`super::reactor`] calls it.

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token, Waker};
use rustix::io::{Errno, readv};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

use super::session::{Session, Space};
use crate::queue::Queue;
use crate::target::{Front, Target};

/// How long a host may take to read our last words.
const GOODBYE: Duration = Duration::from_millis(500);
/// Slices per send.
const SLICES: usize = 64;
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Where a connection is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Serving,
    /// Nothing more is read; what is left to be said is sent.
    Flushing(Instant),
    /// Everything is said. The host is given time to read it: closing a socket with unread data would reset the connection, and
    /// the host would lose the C2HTermReq.
    Goodbye(Instant),
}

/// What a turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// There was nothing to do.
    Idle,
    /// Something was received or sent.
    Busy,
    /// Stopped with something left to do though no event will say so: take another turn soon.
    More,
    /// The connection has ended.
    Over,
}

pub(super) struct Connection {
    /// Dropped before the socket is closed: a host that sees the end of its admin connection is rid of its controller.
    session: Session,
    stream: TcpStream,
    peer: SocketAddr,
    target: Arc<Target>,
    stage: Stage,
    /// Readiness is edge triggered: it holds until a call says otherwise.
    readable: bool,
    writable: bool,
    token: Token,
    /// Readiness is told of.
    registered: bool,
    rung: Arc<AtomicBool>,
    /// When its timers were last looked at.
    ticked: Instant,
}

impl Connection {
    /// Prepares to serve a connection. What happens to its controller elsewhere rings `waker`, with [`Connection::was_rung`].
    pub(super) fn new(
        target: Arc<Target>,
        mut stream: TcpStream,
        peer: SocketAddr,
        registry: &Registry,
        token: Token,
        waker: &Arc<Waker>,
    ) -> io::Result<Self> {
        // Answers are sent in batches, whole; waiting for more would only delay them.
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        registry.register(&mut stream, token, INTEREST)?;
        let rung = Arc::new(AtomicBool::new(false));
        let (bell, waker) = (Arc::clone(&rung), Arc::clone(waker));
        let notify = Arc::new(move || {
            bell.store(true, Ordering::Release);
            if let Err(error) = waker.wake() {
                tracing::error!(%error, "waking a connection's thread");
            }
        });
        let queue = Queue::new(Arc::clone(&target), Front::Tcp(local), notify);
        let ticked = Instant::now();
        let session = Session::new(Arc::clone(&target), queue, ticked);
        let (stage, readable, writable) = (Stage::Serving, true, true);
        Ok(Self {
            session,
            stream,
            peer,
            target,
            stage,
            readable,
            writable,
            token,
            registered: true,
            rung,
            ticked,
        })
    }

    /// From now on all turns are eager, and readiness need not be told of, unless the socket is full: no turn looks whether
    /// there is room again.
    pub(super) fn mute(&mut self, registry: &Registry) {
        if self.writable && registry.deregister(&mut self.stream).is_ok() {
            self.registered = false;
        }
    }

    /// Waits for room in the socket, and would not be told of it.
    pub(super) fn is_deaf(&self) -> bool {
        !self.writable && !self.registered
    }

    /// From now on readiness is told of, including what there is already.
    ///
    /// # Errors
    /// When it cannot be; the connection would hang.
    pub(super) fn unmute(&mut self, registry: &Registry) -> io::Result<()> {
        if !self.registered {
            registry.register(&mut self.stream, self.token, INTEREST)?;
            self.registered = true;
        }
        Ok(())
    }

    /// Whether something happened to its controller since the last call.
    pub(super) fn was_rung(&self) -> bool {
        // Looked at often, changed rarely.
        self.rung.load(Ordering::Acquire) && self.rung.swap(false, Ordering::AcqRel)
    }

    /// Takes note of what the operating system says about the socket.
    pub(super) fn ready(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// When another turn is needed though nothing happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Serving => self.session.deadline(),
            Stage::Flushing(until) | Stage::Goodbye(until) => Some(until),
        }
    }

    /// Receives once, executes what came, and sends the answers. `eager` looks at the socket whether or not it was said to be
    /// readable.
    pub(super) fn turn(&mut self, now: Instant, eager: bool) -> Turn {
        let result = match self.stage {
            Stage::Serving => self.serve(now, eager),
            Stage::Flushing(until) => self.finish(now, until),
            Stage::Goodbye(until) => self.say_goodbye(now, until),
        };
        match result {
            Ok(Turn::Over) => tracing::debug!(peer = %self.peer, "connection closed"),
            Ok(turn) => return turn,
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "connection lost");
                // What was received before may have been the reason to terminate it.
                if self.stage == Stage::Serving && self.session.is_terminated() {
                    return self.end(now);
                }
            }
        }
        Turn::Over
    }

    fn serve(&mut self, now: Instant, eager: bool) -> io::Result<Turn> {
        let mut turn = Turn::Idle;
        if (self.readable || eager) && self.session.wants_input() {
            let (room, received) = match self.session.space() {
                // TCP takes so many bytes off its queue and copies none (tcp(7)).
                Space::Drop(memory) => {
                    let room = memory.len();
                    (room, recv(&self.stream, memory, RecvFlags::TRUNC).map(|(_, n)| n))
                }
                Space::Fill([payload, mut rest]) if payload.is_empty() => {
                    // A plain receive is cheaper.
                    let room = rest.len();
                    (room, recv(&self.stream, &mut *rest, RecvFlags::empty()).map(|(_, n)| n))
                }
                Space::Fill(mut both) => {
                    let room = both.iter().map(|space| space.len()).sum();
                    (room, readv(&self.stream, &mut both))
                }
            };
            match received {
                Ok(0) => return Ok(Turn::Over),
                Ok(n) => {
                    self.session.filled(n);
                    // A short read means that there is no more for now.
                    self.readable = n == room;
                    turn = if self.readable { Turn::More } else { Turn::Busy };
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    if eager && self.has_nothing_else(now) {
                        return Ok(Turn::Idle);
                    }
                }
                Err(Errno::INTR) => turn = Turn::More,
                Err(error) => return Err(error.into()),
            }
        }
        self.session.tick(now);
        self.ticked = now;
        loop {
            let stalled = self.session.process(now);
            if self.send()? && turn == Turn::Idle {
                turn = Turn::Busy;
            }
            if !stalled || !self.session.wants_input() {
                break;
            }
        }
        if self.session.is_closing() {
            let until = now + GOODBYE;
            self.stage = Stage::Flushing(until);
            return self.finish(now, until);
        }
        // Reading waited for room.
        if self.readable && self.session.wants_input() {
            turn = Turn::More;
        }
        Ok(turn)
    }

    /// When the socket has nothing either, there is nothing to do: its timers were looked at, and no output waits that would be
    /// taken. What happens elsewhere rings.
    fn has_nothing_else(&self, now: Instant) -> bool {
        self.ticked == now && !(self.writable && self.session.has_output()) && !self.session.is_closing()
    }

    /// Sends what is pending, as far as the socket takes it. Returns whether that was anything.
    fn send(&mut self) -> io::Result<bool> {
        let mut any = false;
        while self.writable && self.session.has_output() {
            let sent = match self.session.output_one() {
                Some(one) => send(&self.stream, one, SendFlags::NOSIGNAL),
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = self.session.output_slices(&mut slices);
                    let mut control = SendAncillaryBuffer::default();
                    sendmsg(&self.stream, &slices[..count], &mut control, SendFlags::NOSIGNAL)
                }
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.session.consume_output(n);
                    any = true;
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(any)
    }

    fn finish(&mut self, now: Instant, until: Instant) -> io::Result<Turn> {
        self.send()?;
        if !self.session.has_output() {
            return Ok(if self.session.is_terminated() { self.end(now) } else { Turn::Over });
        }
        Ok(if self.target.is_stopped() || now >= until { Turn::Over } else { Turn::Idle })
    }

    /// Says that nothing more will come.
    fn end(&mut self, now: Instant) -> Turn {
        // An error means that there is nobody left to talk to.
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return Turn::Over;
        }
        self.stage = Stage::Goodbye(now + GOODBYE);
        Turn::More
    }

    #[cold]
    #[inline(never)]
    fn say_goodbye(&mut self, now: Instant, until: Instant) -> io::Result<Turn> {
        let mut discarded = [0; 16 * 1024];
        if now >= until || self.target.is_stopped() {
            return Ok(Turn::Over);
        }
        match recv(&self.stream, &mut discarded, RecvFlags::empty()) {
            Ok((_, 0)) => Ok(Turn::Over),
            Ok(_) => Ok(Turn::More),
            Err(Errno::AGAIN) => Ok(Turn::Idle),
            Err(error) => Err(error.into()),
        }
    }
}
