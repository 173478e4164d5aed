//! A thread that serves many connections: one epoll set, and a few connections looked at directly, and out of that set, while they
//! are busy: what a host sends costs that host more where somebody is to be told of it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Poll, Token, Waker};

use super::connection::{Connection, Turn};
use crate::target::Target;

const WAKER: Token = Token(usize::MAX);
/// Connections that are looked at without being asked for while the thread does not sleep.
const HOT: usize = 4;
/// Looks at the hot connections for one at all others.
const SPINS_PER_POLL: u32 = 16;
/// Looks at all connections after too many were busy to look at them directly, before that is tried again.
const CROWDED: u32 = 4096;
/// Fruitless looks after which a connection is hot no longer.
const MISSES: u32 = 512;

/// Hands connections to a reactor's thread.
pub(super) struct Reactor {
    inbox: Arc<Mutex<Vec<(TcpStream, SocketAddr)>>>,
    load: Arc<AtomicUsize>,
    waker: Arc<Waker>,
    thread: JoinHandle<()>,
}

impl Reactor {
    /// Starts the thread. It ends when the target is stopped.
    pub(super) fn start(target: Arc<Target>, index: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (inbox, load) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let worker = Worker {
            spin: target.config.tcp.busy_poll,
            target,
            poll,
            waker: Arc::clone(&waker),
            inbox: Arc::clone(&inbox),
            load: Arc::clone(&load),
            connections: Vec::new(),
            free: Vec::new(),
            hot: Vec::with_capacity(HOT),
            crowded: 0,
            more: Vec::new(),
            next: Vec::new(),
            due: None,
        };
        let name = format!("nvmf-loop-{index}");
        let thread = std::thread::Builder::new().name(name).spawn(move || worker.run())?;
        Ok(Self { inbox, load, waker, thread })
    }

    /// Connections it has.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Acquire)
    }

    pub(super) fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        self.load.fetch_add(1, Ordering::AcqRel);
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push((stream, peer));
        self.wake();
    }

    pub(super) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "waking a connection's thread");
        }
    }

    /// Waits for the end of the thread.
    pub(super) fn join(self) {
        self.wake();
        if self.thread.join().is_err() {
            tracing::error!("a thread serving connections panicked");
        }
    }
}

struct Worker {
    target: Arc<Target>,
    poll: Poll,
    waker: Arc<Waker>,
    inbox: Arc<Mutex<Vec<(TcpStream, SocketAddr)>>>,
    load: Arc<AtomicUsize>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// How long to go on looking after the last traffic instead of sleeping.
    spin: Duration,
    /// Busy connections, and how often each was looked at in vain.
    hot: Vec<(usize, u32)>,
    /// For so many looks at all connections none is hot, because too many are busy.
    crowded: u32,
    /// Connections that have something left to do.
    more: Vec<usize>,
    next: Vec<usize>,
    /// No connection's deadline is earlier.
    due: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut now = Instant::now();
        let mut awake_until = now;
        let mut spins = 0;
        loop {
            let mut busy = self.serve_more(now);
            busy |= self.serve_hot(now);
            spins += 1;
            // The clock is read, and the others are looked at, in every 16th round only.
            if !self.hot.is_empty() && spins < SPINS_PER_POLL {
                continue;
            }
            spins = 0;
            self.crowded = self.crowded.saturating_sub(1);
            now = Instant::now();
            if busy {
                awake_until = now + self.spin;
            }
            if now >= awake_until {
                self.cool();
            }
            let asleep = now >= awake_until && self.more.is_empty();
            let timeout = if asleep {
                // Rounded up: a timer that fires early would only have to be set again.
                self.due.map(|due| due.saturating_duration_since(now) + Duration::from_millis(1))
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "waiting for hosts; their connections are given up");
                    return;
                }
                _ => {}
            }
            if asleep {
                now = Instant::now();
            }
            if !events.is_empty() {
                awake_until = now + self.spin;
            }
            let mut rung = false;
            for event in &events {
                let Token(index) = event.token();
                match self.connections.get_mut(index) {
                    Some(Some(connection)) => {
                        connection.ready(event);
                        if !self.hot.iter().any(|&(hot, _)| hot == index) {
                            self.turn(index, now, false);
                        }
                    }
                    Some(None) => {}
                    None => rung = true,
                }
            }
            if rung {
                self.take_new(now);
                self.serve_all(now, |connection| connection.was_rung());
                if self.target.is_stopped() {
                    self.serve_all(now, |_| true);
                    if self.connections.iter().all(Option::is_none) {
                        return;
                    }
                    // What is left says its last words; nobody rings any more.
                    self.due = Some(now + Duration::from_millis(20));
                }
            }
            if self.due.is_some_and(|due| due <= now) {
                self.serve_all(now, |_| true);
                self.due = self.connections.iter().flatten().filter_map(Connection::deadline).min();
                if self.target.is_stopped() && self.connections.iter().all(Option::is_none) {
                    return;
                }
            }
        }
    }

    fn take_new(&mut self, now: Instant) {
        let new = std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        for (stream, peer) in new {
            let index = self.free.pop().unwrap_or(self.connections.len());
            let target = Arc::clone(&self.target);
            let made = Connection::new(target, stream, peer, self.poll.registry(), Token(index), &self.waker);
            if index == self.connections.len() {
                self.connections.push(None);
            }
            match made {
                Ok(connection) => {
                    self.connections[index] = Some(connection);
                    self.turn(index, now, false);
                }
                Err(error) => {
                    tracing::warn!(%peer, %error, "serving a connection");
                    self.free.push(index);
                    self.load.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
    }

    fn serve_all(&mut self, now: Instant, which: impl Fn(&Connection) -> bool) {
        for index in 0..self.connections.len() {
            if self.connections[index].as_ref().is_some_and(&which) {
                self.turn(index, now, false);
            }
        }
    }

    fn serve_more(&mut self, now: Instant) -> bool {
        if self.more.is_empty() {
            return false;
        }
        let mut more = std::mem::replace(&mut self.more, std::mem::take(&mut self.next));
        for index in more.drain(..) {
            self.turn(index, now, false);
        }
        self.next = more;
        true
    }

    /// From now on no connection is looked at without being asked for. What they have left to do is done.
    fn cool(&mut self) {
        while let Some(&(index, _)) = self.hot.last() {
            if !self.more.contains(&index) {
                self.more.push(index);
            }
            self.cool_one(self.hot.len() - 1);
        }
    }

    /// A connection is told of from now on, and not looked at without that.
    fn cool_one(&mut self, place: usize) {
        let (index, _) = self.hot.swap_remove(place);
        self.unmute(index);
    }

    /// Returns whether the connection is still there.
    fn unmute(&mut self, index: usize) -> bool {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return false };
        let Err(error) = connection.unmute(self.poll.registry()) else { return true };
        tracing::error!(%error, "watching a connection; it is given up");
        self.end(index);
        false
    }

    fn end(&mut self, index: usize) {
        self.connections[index] = None;
        self.free.push(index);
        self.hot.retain(|&(hot, _)| hot != index);
        self.more.retain(|&more| more != index);
        self.load.fetch_sub(1, Ordering::AcqRel);
    }

    fn serve_hot(&mut self, now: Instant) -> bool {
        let mut busy = false;
        let mut place = 0;
        while let Some(&(index, misses)) = self.hot.get(place) {
            match self.turn(index, now, true) {
                Turn::Busy | Turn::More => {
                    busy = true;
                    self.hot[place].1 = 0;
                    place += 1;
                }
                Turn::Idle if misses < MISSES || self.hot.len() == 1 => {
                    self.hot[place].1 = misses.saturating_add(1);
                    place += 1;
                }
                // When it ended it was taken off the list.
                Turn::Over => {}
                Turn::Idle => self.cool_one(place),
            }
        }
        busy
    }

    /// Lets a connection do what it can.
    fn turn(&mut self, index: usize, now: Instant, eager: bool) -> Turn {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return Turn::Over };
        let turn = connection.turn(now, eager);
        if !eager && let Some(deadline) = connection.deadline() {
            self.due = Some(self.due.map_or(deadline, |due| due.min(deadline)));
        }
        let deaf = connection.is_deaf();
        match turn {
            Turn::Over => self.end(index),
            Turn::More if !eager && !self.more.contains(&index) => self.more.push(index),
            Turn::Busy if !eager && !self.spin.is_zero() && self.crowded == 0 => {
                if self.hot.len() == HOT {
                    // Looking at a few more often than at the others would not be fair.
                    self.cool();
                    self.crowded = CROWDED;
                } else if !self.hot.iter().any(|&(hot, _)| hot == index) {
                    self.hot.push((index, 0));
                    connection.mute(self.poll.registry());
                }
            }
            _ if deaf && !self.unmute(index) => return Turn::Over,
            _ => {}
        }
        turn
    }
}
