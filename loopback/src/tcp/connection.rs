//! The socket of one connection, and the thread that serves it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::session::Session;
use crate::queue::Queue;
use crate::target::{Front, Target};

const STREAM: Token = Token(0);
const WAKER: Token = Token(1);
/// How long a host may take to read our last words.
const GOODBYE: Duration = Duration::from_millis(500);
/// Longest sleep while saying goodbye.
const GOODBYE_STEP: Duration = Duration::from_millis(20);

pub(super) struct Connection {
    /// Dropped before the socket is closed: a host that sees the end of its admin connection is rid of its controller.
    session: Session,
    stream: TcpStream,
    peer: SocketAddr,
    poll: Poll,
    target: Arc<Target>,
}

impl Connection {
    /// Prepares to serve a connection. The waker makes its thread look at what happened elsewhere.
    pub(super) fn new(
        target: Arc<Target>,
        mut stream: TcpStream,
        peer: SocketAddr,
    ) -> io::Result<(Self, Arc<Waker>)> {
        // Answers are sent in batches, whole; waiting for more would only delay them.
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut stream, STREAM, Interest::READABLE | Interest::WRITABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let bell = Arc::clone(&waker);
        let notify = Arc::new(move || {
            if let Err(error) = bell.wake() {
                tracing::error!(%error, "waking a connection's thread");
            }
        });
        let queue = Queue::new(Arc::clone(&target), Front::Tcp(local), notify);
        let session = Session::new(Arc::clone(&target), queue, Instant::now());
        Ok((Self { session, stream, peer, poll, target }, waker))
    }

    /// Serves the connection until it ends.
    pub(super) fn run(mut self) {
        match self.serve() {
            Ok(()) => tracing::debug!(peer = %self.peer, "connection closed"),
            Err(error) => tracing::debug!(peer = %self.peer, %error, "connection lost"),
        }
        if self.session.is_terminated() {
            self.say_goodbye();
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        // Readiness is edge triggered: it holds until a call says otherwise.
        let (mut readable, mut writable) = (true, true);
        loop {
            let now = Instant::now();
            self.session.tick(now);
            let stalled = self.session.process(now);
            while writable && !self.session.pending_output().is_empty() {
                match self.stream.write(self.session.pending_output()) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => self.session.consume_output(n),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable = false,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if stalled && self.session.wants_input() {
                continue;
            }
            if self.session.is_closing() {
                if writable || self.target.is_stopped() {
                    return Ok(());
                }
            } else if readable && self.session.wants_input() {
                let mut spaces = self.session.spaces();
                let room: usize = spaces.iter().map(|space| space.len()).sum();
                match self.stream.read_vectored(&mut spaces) {
                    Ok(0) => return Ok(()),
                    Ok(n) => {
                        self.session.filled(n);
                        // A short read means that there is no more for now.
                        readable = n == room;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => readable = false,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let timeout = self.session.deadline().map(|deadline| {
                // Rounded up: a timer that fires early would only have to be set again.
                deadline.saturating_duration_since(now) + Duration::from_millis(1)
            });
            let timeout = if self.session.is_closing() { Some(GOODBYE) } else { timeout };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if self.session.is_closing() && events.is_empty() {
                return Ok(());
            }
            for event in events.iter().filter(|event| event.token() == STREAM) {
                readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                writable |= event.is_writable() || event.is_write_closed() || event.is_error();
            }
        }
    }

    /// Lets the host read the C2HTermReq: closing a socket with unread data would reset the connection and discard it.
    fn say_goodbye(&mut self) {
        // An error means that there is nobody left to talk to.
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let until = Instant::now() + GOODBYE;
        let mut discarded = [0; 16 * 1024];
        let mut events = Events::with_capacity(8);
        while Instant::now() < until && !self.target.is_stopped() {
            match self.stream.read(&mut discarded) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.poll.poll(&mut events, Some(GOODBYE_STEP)).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}
