//! A TCP proxy that does harm: it stands between an initiator and any target, and cuts, halts, damages or delays the byte
//! streams at chosen offsets, or when told to. It listens on loopback only.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// How long a relay sleeps at most before it looks whether it was told to do something.
const TICK: Duration = Duration::from_millis(10);

/// What is done to a stream of bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Harm {
    /// Both directions are closed in good order (FIN).
    Cut,
    /// Both directions are reset (RST): what was sent and not yet read is lost.
    Reset,
    /// This direction ends (FIN), the other lives on.
    HalfClose,
    /// Nothing more is relayed in this direction; the connection stays open.
    Stall,
    /// The relay pauses.
    Delay(Duration),
    /// The bits of the next byte that are set here are turned.
    Flip(u8),
    /// So many bytes vanish.
    Swallow(u64),
}

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the host to the target.
    ToTarget,
    /// From the target to the host.
    ToHost,
}

/// What happens to one connection.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    events: [VecDeque<(u64, Harm)>; 2],
    segment: Option<usize>,
}

impl Plan {
    /// Everything is relayed as it comes.
    #[must_use]
    pub fn faithful() -> Self {
        Self::default()
    }

    /// Does `harm` once `at` bytes have passed in `direction`. Events of one direction are given in order.
    #[must_use]
    pub fn at(mut self, direction: Direction, at: u64, harm: Harm) -> Self {
        self.events[direction as usize].push_back((at, harm));
        self
    }

    /// Relays at most `bytes` at a time.
    #[must_use]
    pub fn segments(mut self, bytes: usize) -> Self {
        self.segment = Some(bytes.max(1));
        self
    }
}

/// The proxy. Dropping it closes everything.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    plans: Mutex<VecDeque<Plan>>,
    connections: Mutex<Vec<Weak<Connection>>>,
    accepted: AtomicU64,
    refusing: AtomicBool,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct Connection {
    /// Sources of the two directions: the host's socket, the target's socket.
    sockets: [TcpStream; 2],
    passed: [AtomicU64; 2],
    orders: [Mutex<VecDeque<Harm>>; 2],
    over: AtomicBool,
}

impl FaultProxy {
    /// A proxy before `target` that relays faithfully until told otherwise.
    ///
    /// # Errors
    /// When it cannot listen on loopback.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            plans: Mutex::default(),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("fault-proxy".to_owned())
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self { shared, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The plans of the next connections, in the order in which they are made; later ones are relayed faithfully.
    pub fn set_plans(&self, plans: impl IntoIterator<Item = Plan>) {
        *lock(&self.shared.plans) = plans.into_iter().collect();
    }

    /// Sends further connections to another target.
    pub fn set_target(&self, target: SocketAddr) {
        *lock(&self.shared.target) = target;
    }

    /// Closes further connections as soon as they are made, or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Ordering::SeqCst);
    }

    /// Does `harm` to one direction of the `pick`th of the living connections (modulo their number), wherever its streams are.
    /// False when there is none.
    pub fn strike(&self, pick: u64, direction: Direction, harm: Harm) -> bool {
        let living = self.living();
        let Some(connection) = usize::try_from(pick).ok().and_then(|n| living.get(n % living.len().max(1)))
        else {
            return false;
        };
        lock(&connection.orders[direction as usize]).push_back(harm);
        true
    }

    /// Connections made so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are being relayed.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.living().len()
    }

    /// Bytes relayed so far by each living connection, in the order in which they were made: to the target, to the host.
    #[must_use]
    pub fn passed(&self) -> Vec<[u64; 2]> {
        let count = |c: &Arc<Connection>| [0, 1].map(|i| c.passed[i].load(Ordering::SeqCst));
        self.living().iter().map(count).collect()
    }

    fn living(&self) -> Vec<Arc<Connection>> {
        lock(&self.shared.connections)
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|c| !c.over.load(Ordering::SeqCst))
            .collect()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for connection in self.living() {
            connection.close();
        }
        // The acceptor looks at `stopped` after each connection.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for connection in self.living() {
            connection.close();
        }
    }
}

impl Connection {
    fn close(&self) {
        self.over.store(true, Ordering::SeqCst);
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Closing the last descriptor resets the connection; the other relay lets go within a tick.
    fn reset(&self) {
        for socket in &self.sockets {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether the relay of this direction goes on.
    fn suffer(&self, direction: usize, harm: Harm, state: &mut State) -> bool {
        match harm {
            Harm::Cut => self.close(),
            Harm::Reset => self.reset(),
            Harm::HalfClose => {
                let _ = self.sockets[1 - direction].shutdown(Shutdown::Write);
                state.mute = true;
            }
            Harm::Stall => state.mute = true,
            Harm::Delay(time) => {
                let end = Instant::now() + time;
                while Instant::now() < end && !self.over.load(Ordering::SeqCst) {
                    std::thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
                }
            }
            Harm::Flip(mask) => state.flip ^= mask,
            Harm::Swallow(bytes) => state.swallow += bytes,
        }
        !self.over.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct State {
    /// What is read is thrown away.
    mute: bool,
    flip: u8,
    swallow: u64,
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for host in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(host) = host else { continue };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        if shared.refusing.load(Ordering::SeqCst) {
            continue;
        }
        let plan = lock(&shared.plans).pop_front().unwrap_or_default();
        let address = *lock(&shared.target);
        // Who cannot be reached closes the host's connection.
        let Ok(target) = TcpStream::connect_timeout(&address, Duration::from_secs(5)) else { continue };
        if let Err(error) = relay(host, target, plan, shared) {
            eprintln!("fault proxy: {error}");
        }
    }
}

fn relay(host: TcpStream, target: TcpStream, plan: Plan, shared: &Shared) -> io::Result<()> {
    for socket in [&host, &target] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TICK))?;
    }
    let connection = Arc::new(Connection {
        sockets: [host, target],
        passed: Default::default(),
        orders: Default::default(),
        over: AtomicBool::new(false),
    });
    let mut connections = lock(&shared.connections);
    connections.retain(|c| c.strong_count() > 0);
    connections.push(Arc::downgrade(&connection));
    drop(connections);
    for (direction, events) in plan.events.into_iter().enumerate() {
        let connection = Arc::clone(&connection);
        std::thread::Builder::new().name(format!("relay-{direction}")).spawn(move || {
            let reset = pump(&connection, direction, events, plan.segment).is_err();
            if reset && !connection.over.load(Ordering::SeqCst) {
                connection.close();
            }
        })?;
    }
    Ok(())
}

/// Relays one direction until it ends. An error is one of the sockets': the connection is over.
fn pump(
    connection: &Connection,
    direction: usize,
    mut events: VecDeque<(u64, Harm)>,
    segment: Option<usize>,
) -> io::Result<()> {
    let (mut from, mut to) = (&connection.sockets[direction], &connection.sockets[1 - direction]);
    let mut buf = vec![0; 64 * 1024];
    let mut state = State::default();
    let mut passed = 0;
    loop {
        // What was ordered, then what was planned for this offset.
        loop {
            let ordered = lock(&connection.orders[direction]).pop_front();
            let harm = match ordered {
                Some(harm) => harm,
                None => match events.front() {
                    Some((at, _)) if *at <= passed => match events.pop_front() {
                        Some((_, harm)) => harm,
                        None => break,
                    },
                    _ => break,
                },
            };
            if !connection.suffer(direction, harm, &mut state) {
                return Ok(());
            }
        }
        if connection.over.load(Ordering::SeqCst) {
            return Ok(());
        }
        let until_event = events.front().map_or(u64::MAX, |(at, _)| at - passed);
        let most = buf
            .len()
            .min(segment.unwrap_or(usize::MAX))
            .min(usize::try_from(until_event).unwrap_or(usize::MAX));
        let n = match from.read(&mut buf[..most]) {
            Ok(0) => {
                if !state.mute {
                    let _ = to.shutdown(Shutdown::Write);
                }
                // A side that has nothing more to say may still listen.
                return Ok(());
            }
            Ok(n) => n,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        passed += n as u64;
        connection.passed[direction].store(passed, Ordering::SeqCst);
        if state.mute {
            continue;
        }
        let lost = usize::try_from(state.swallow).unwrap_or(usize::MAX).min(n);
        state.swallow -= lost as u64;
        let data = &mut buf[lost..n];
        if let Some(first) = data.first_mut() {
            *first ^= std::mem::take(&mut state.flip);
        }
        send(&mut to, data, connection)?;
    }
}

/// Writes everything, unless the connection ends meanwhile.
fn send(to: &mut &TcpStream, mut data: &[u8], connection: &Connection) -> io::Result<()> {
    while !data.is_empty() && !connection.over.load(Ordering::SeqCst) {
        match to.write(data) {
            Ok(n) => data = &data[n..],
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
