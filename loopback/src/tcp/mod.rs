//! The NVMe/TCP front: listeners, and a thread for each connection.

mod connection;
mod output;
mod pdu;
mod session;
#[cfg(test)]
pub(crate) mod wire;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::error::LoopbackError;
use crate::target::{Target, count};
use connection::Connection;

/// How long accepting pauses when the system cannot give us another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The listeners of a loopback; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

/// Opens listeners; `addresses` as users write them.
pub(crate) fn listen(addresses: &[String]) -> Result<Vec<TcpListener>, LoopbackError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bad = |source| LoopbackError::ListenAddress { address: address.clone(), source };
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let resolved = address.to_socket_addrs().map_err(bad)?.next().ok_or_else(none).map_err(bad)?;
        let listener = TcpListener::bind(resolved);
        listeners.push(listener.map_err(|source| LoopbackError::Listen { address: resolved, source })?);
    }
    Ok(listeners)
}

pub(crate) fn addresses(listeners: &[TcpListener]) -> Result<Vec<SocketAddr>, LoopbackError> {
    listeners.iter().map(|l| l.local_addr().map_err(LoopbackError::Start)).collect()
}

impl Server {
    pub(crate) fn start(target: Arc<Target>, mut listeners: Vec<TcpListener>) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener, Token(index), Interest::READABLE)?;
        }
        let waker = Arc::new(Waker::new(poll.registry(), Token(listeners.len()))?);
        let acceptor = Acceptor { target, listeners, poll, waker: Arc::clone(&waker), running: Vec::new() };
        let name = "nvmf-loop-accept".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || acceptor.run())?;
        Ok(Self { waker, thread: Some(thread) })
    }
}

impl Drop for Server {
    /// The target has been stopped before; every thread notices and ends within bounded time.
    fn drop(&mut self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "waking the listener's thread");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the listener's thread panicked");
        }
    }
}

struct Running {
    waker: Arc<Waker>,
    /// The thread has nothing left to do.
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

struct Acceptor {
    target: Arc<Target>,
    listeners: Vec<TcpListener>,
    poll: Poll,
    /// Wakes this thread.
    waker: Arc<Waker>,
    running: Vec<Running>,
}

impl Acceptor {
    fn run(mut self) {
        let mut events = Events::with_capacity(16);
        let mut pause = None;
        while !self.target.is_stopped() {
            match self.poll.poll(&mut events, pause.take()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "waiting for connections; no more are accepted");
                    break;
                }
                _ => {}
            }
            self.reap();
            for index in 0..self.listeners.len() {
                if !self.accept(index) {
                    pause = Some(ACCEPT_PAUSE);
                }
            }
        }
        self.listeners.clear();
        for running in &self.running {
            if let Err(error) = running.waker.wake() {
                tracing::error!(%error, "waking a connection's thread");
            }
        }
        for running in self.running.drain(..) {
            join(running);
        }
    }

    fn reap(&mut self) {
        for running in self.running.extract_if(.., |running| running.done.load(Ordering::Acquire)) {
            join(running);
        }
    }

    /// Accepts what is waiting. Returns whether all of it could be taken.
    fn accept(&mut self, index: usize) -> bool {
        loop {
            let (stream, peer) = match self.listeners[index].accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return true,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        tracing::warn!(%error, "accepting a connection; trying again shortly");
                        return false;
                    }
                },
            };
            if self.target.is_refusing() || self.running.len() >= self.target.config.tcp.max_connections {
                tracing::info!(%peer, "connection refused");
                continue;
            }
            count(&self.target.counters.connections, 1);
            let started =
                Connection::new(Arc::clone(&self.target), stream, peer).and_then(|(connection, waker)| {
                    let name = "nvmf-loop-conn".to_owned();
                    let done = Arc::new(AtomicBool::new(false));
                    let over = Over { done: Arc::clone(&done), acceptor: Arc::clone(&self.waker) };
                    let thread = std::thread::Builder::new().name(name).spawn(move || {
                        let _over = over;
                        connection.run();
                    })?;
                    Ok(Running { waker, done, thread })
                });
            match started {
                Ok(running) => self.running.push(running),
                Err(error) => tracing::warn!(%peer, %error, "serving a connection"),
            }
        }
    }
}

/// Has the acceptor take leave of a connection's thread, however that ends.
struct Over {
    done: Arc<AtomicBool>,
    acceptor: Arc<Waker>,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        if let Err(error) = self.acceptor.wake() {
            tracing::error!(%error, "waking the listener's thread");
        }
    }
}

fn join(running: Running) {
    if running.thread.join().is_err() {
        tracing::error!("a connection's thread panicked");
    }
}
