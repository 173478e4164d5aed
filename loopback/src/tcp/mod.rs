//! The NVMe/TCP front: listeners, and threads that serve the connections.

mod connection;
mod output;
mod pdu;
mod reactor;
mod session;
#[cfg(test)]
pub(crate) mod wire;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZero;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::net::sockopt::set_tcp_congestion;

use crate::error::LoopbackError;
use crate::target::{Target, count};
use reactor::Reactor;

/// Congestion control of listeners that only this machine can reach. Every kernel has it.
const LOCAL_CONGESTION_CONTROL: &str = "reno";
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
        let listener = listener.map_err(|source| LoopbackError::Listen { address: resolved, source })?;
        if resolved.ip().is_loopback() {
            // Connections inherit it. Where the system's is BBR, that would pace what can leave at once; they work with either.
            let _ = set_tcp_congestion(&listener, LOCAL_CONGESTION_CONTROL);
        }
        listeners.push(listener);
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
        let threads = match target.config.tcp.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        let mut acceptor = Acceptor { target, listeners, poll, reactors: Vec::new() };
        for index in 0..threads {
            match Reactor::start(Arc::clone(&acceptor.target), index) {
                Ok(reactor) => acceptor.reactors.push(reactor),
                Err(error) if index == 0 => return Err(error),
                // Those there are do the work.
                Err(error) => {
                    tracing::warn!(%error, "starting a thread for connections");
                    break;
                }
            }
        }
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

struct Acceptor {
    target: Arc<Target>,
    listeners: Vec<TcpListener>,
    poll: Poll,
    reactors: Vec<Reactor>,
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
            for index in 0..self.listeners.len() {
                if !self.accept(index) {
                    pause = Some(ACCEPT_PAUSE);
                }
            }
        }
        self.listeners.clear();
        // They end together, not one after the other.
        self.reactors.iter().for_each(Reactor::wake);
        self.reactors.into_iter().for_each(Reactor::join);
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
            let served: usize = self.reactors.iter().map(Reactor::load).sum();
            if self.target.is_refusing() || served >= self.target.config.tcp.max_connections {
                tracing::info!(%peer, "connection refused");
                continue;
            }
            count(&self.target.counters.connections, 1);
            if let Some(reactor) = self.reactors.iter().min_by_key(|reactor| reactor.load()) {
                reactor.serve(stream, peer);
            }
        }
    }
}
