//! Opening a connection without blocking: name resolution on a thread of its own, then the addresses in turn.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use nvmf_core::transport::ip::{self, Destination};
use nvmf_core::{ControllerOptions, Error, Result, TransportId};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// A dead peer of an idle I/O queue is noticed after a minute and a half: only the admin queue has keep alives.
const TCP_KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 3);

/// Bytes of the send buffer of a connection within this machine, which the kernel doubles: it takes a send whole (`SEND_MAX`). There is no
/// path to be filled: what the kernel holds beyond what the other side reads next only pushes what it copies to and from out of the
/// processor's caches. With less the other side soon has nothing to read.
const LOCAL_SEND_BUFFER: usize = 512 * 1024;

/// Congestion control of a connection within this machine: that of every kernel which does the least. There is nothing to be congested, and
/// one that paces, as BBR does, sets a timer for what could leave at once.
const LOCAL_CONGESTION_CONTROL: &str = "reno";

/// What a connection's socket is to be like.
#[derive(Clone, Debug)]
pub(crate) struct SocketOptions {
    /// Local address to bind; `None` leaves it to the routing table.
    local: Option<IpAddr>,
    local_scope: u32,
    /// Local port; 0 is any.
    local_port: u16,
    /// Interface to send and receive through.
    interface: Option<String>,
    priority: Option<u32>,
    tos: u8,
    ack_timeout: Option<Duration>,
    nodelay: bool,
    quickack: bool,
    send_buffer: Option<u32>,
    receive_buffer: Option<u32>,
}

impl SocketOptions {
    /// The transport identifier's values first, then those of the options.
    pub(crate) fn new(trid: &TransportId, options: &ControllerOptions) -> Result<Self> {
        let (local, local_scope) = match trid.host_traddr().or(options.src_addr.as_deref()) {
            None => (None, 0),
            Some(text) => {
                let (ip, scope) = ip::parse(text)?;
                (Some(ip), scope)
            }
        };
        let local_port = ip::local_port(trid, options)?;
        let priority = match trid.priority() {
            None => None,
            Some(value) => Some(
                u32::try_from(value)
                    .map_err(|_| Error::api_misuse(format!("the socket priority {value} is negative")))?,
            ),
        };
        Ok(Self {
            local,
            local_scope,
            local_port,
            interface: trid.host_iface().map(str::to_owned).or_else(|| options.host_iface.clone()),
            priority,
            tos: options.transport_tos,
            ack_timeout: options.transport_ack_timeout,
            nodelay: options.tcp_nodelay,
            quickack: options.tcp_quickack,
            send_buffer: options.tcp_send_buffer,
            receive_buffer: options.tcp_receive_buffer,
        })
    }

    /// A non-blocking socket for connecting to `peer`.
    fn open(&self, peer: &SocketAddr) -> Result<Socket> {
        let socket = Socket::new(Domain::for_address(*peer), Type::STREAM.nonblocking(), Some(Protocol::TCP))
            .map_err(|error| Error::from(error).doing("opening a TCP socket"))?;
        let failed = |what: String| move |error: io::Error| Error::from(error).doing(what);
        socket.set_tcp_nodelay(self.nodelay).map_err(failed("setting TCP_NODELAY".to_owned()))?;
        if self.quickack {
            socket.set_tcp_quickack(true).map_err(failed("setting TCP_QUICKACK".to_owned()))?;
        }
        if peer.ip().to_canonical().is_loopback() {
            // Before connecting: once BBR was there the kernel goes on pacing.
            set_local_congestion_control(&socket);
        }
        // Before connecting: the window that is offered depends on them.
        if let Some(bytes) = self.send_buffer {
            let set = socket.set_send_buffer_size(bytes as usize);
            set.map_err(failed(format!("setting SO_SNDBUF to {bytes} bytes")))?;
        }
        if let Some(bytes) = self.receive_buffer {
            let set = socket.set_recv_buffer_size(bytes as usize);
            set.map_err(failed(format!("setting SO_RCVBUF to {bytes} bytes")))?;
        }
        let (time, interval, retries) = TCP_KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        socket.set_tcp_keepalive(&keepalive).map_err(failed("setting TCP keepalive".to_owned()))?;
        if let Some(timeout) = self.ack_timeout {
            socket
                .set_tcp_user_timeout(Some(timeout))
                .map_err(failed(format!("setting TCP_USER_TIMEOUT to {timeout:?}")))?;
        }
        if self.tos != 0 {
            let tos = u32::from(self.tos);
            if peer.is_ipv4() { socket.set_tos_v4(tos) } else { socket.set_tclass_v6(tos) }
                .map_err(failed(format!("setting the type of service to {tos:#04x}")))?;
        }
        if let Some(priority) = self.priority {
            socket.set_priority(priority).map_err(|error| {
                failed(format!("setting the socket priority to {priority}"))(error)
                    .hint("priorities above 6 need CAP_NET_ADMIN")
            })?;
        }
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes())).map_err(|error| {
                failed(format!("binding to interface {interface}"))(error).hint(
                    "is that its name, and may this user bind to interfaces (CAP_NET_RAW on old kernels)?",
                )
            })?;
        }
        if self.local.is_some() || self.local_port != 0 {
            let any: IpAddr = match peer {
                SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let local = ip::socket_addr(self.local.unwrap_or(any), self.local_port, self.local_scope);
            if local.is_ipv4() != peer.is_ipv4() {
                return Err(Error::api_misuse(format!(
                    "{local} can not connect to {peer}: different address families"
                )));
            }
            socket.bind(&SockAddr::from(local)).map_err(|error| {
                let in_use = error.kind() == io::ErrorKind::AddrInUse;
                let error = failed(format!("binding to the local address {local}"))(error);
                if in_use {
                    error.hint("a fixed local port serves one connection only, but every queue has its own")
                } else {
                    error.hint("is it an address of this machine?")
                }
            })?;
        }
        Ok(socket)
    }

    /// Sets what depends on where the peer turned out to be.
    fn suit(&self, socket: &Socket, peer: SocketAddr) {
        let ours = socket.local_addr().ok().and_then(|address| address.as_socket());
        if !ours.is_some_and(|ours| is_same_machine(ours.ip(), peer.ip())) {
            return;
        }
        set_local_congestion_control(socket);
        if self.send_buffer.is_none() && is_granted(LOCAL_SEND_BUFFER, peer) {
            // As it is the connection works too.
            let _ = socket.set_send_buffer_size(LOCAL_SEND_BUFFER);
        }
    }
}

/// Whether a socket gets a send buffer of `bytes`. The kernel cuts what it is asked for to its limit (net.core.wmem_max, by default 208 KiB
/// in older ones), and does not choose any more for a socket that was told: another one is asked.
fn is_granted(bytes: usize, peer: SocketAddr) -> bool {
    Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP)).is_ok_and(|trial| {
        trial.set_send_buffer_size(bytes).is_ok()
            && trial.send_buffer_size().is_ok_and(|got| got >= 2 * bytes)
    })
}

fn set_local_congestion_control(socket: &Socket) {
    // As it is the connection works too.
    let _ = rustix::net::sockopt::set_tcp_congestion(socket, LOCAL_CONGESTION_CONTROL);
}

/// Whether a connection between these addresses stays in this machine.
fn is_same_machine(ours: IpAddr, peer: IpAddr) -> bool {
    ours == peer || peer.to_canonical().is_loopback()
}

#[derive(Debug)]
enum Stage {
    Resolving(Receiver<io::Result<Vec<SocketAddr>>>),
    /// Another address is to be tried.
    Next,
    Connecting {
        socket: Socket,
        peer: SocketAddr,
        until: Instant,
    },
    /// Connected and handed out, or failed for good.
    Over,
}

/// A connection being opened.
#[derive(Debug)]
pub(crate) struct Connector {
    options: SocketOptions,
    stage: Stage,
    /// Addresses not tried yet, the next one last.
    addresses: Vec<SocketAddr>,
    /// Why the addresses tried did not work.
    last_error: Option<Error>,
    tried: Vec<SocketAddr>,
    name: String,
    started: Instant,
    deadline: Instant,
}

impl Connector {
    pub(crate) fn new(
        destination: &Destination,
        options: SocketOptions,
        started: Instant,
        deadline: Instant,
    ) -> Result<Self> {
        let (name, stage, addresses) = match destination {
            Destination::Address(address) => (address.to_string(), Stage::Next, vec![*address]),
            Destination::Name { host, port, family } => (
                format!("{host}:{port}"),
                Stage::Resolving(ip::resolve(host.clone(), *port, *family)?),
                Vec::new(),
            ),
        };
        Ok(Self { options, stage, addresses, last_error: None, tried: Vec::new(), name, started, deadline })
    }

    /// The file descriptor that becomes writable when there is something to do.
    pub(crate) fn event_fd(&self) -> Option<RawFd> {
        match &self.stage {
            Stage::Connecting { socket, .. } => Some(socket.as_raw_fd()),
            _ => None,
        }
    }

    /// Goes on as far as possible without blocking.
    pub(crate) fn poll(&mut self, now: Instant) -> Result<Option<(Socket, SocketAddr)>> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Resolving(receiver) => match receiver.try_recv() {
                    Ok(Ok(mut addresses)) => {
                        addresses.reverse();
                        self.addresses = addresses;
                        self.stage = Stage::Next;
                    }
                    Ok(Err(error)) => {
                        return Err(Error::from(error)
                            .doing(format!("resolving {}", self.name))
                            .hint("is the host name right, and does this machine's resolver know it?"));
                    }
                    Err(TryRecvError::Empty) if now < self.deadline => {
                        self.stage = Stage::Resolving(receiver);
                        return Ok(None);
                    }
                    Err(TryRecvError::Empty) => {
                        let after = now.duration_since(self.started);
                        return Err(Error::timed_out(format!("resolving {}", self.name), after));
                    }
                    Err(TryRecvError::Disconnected) => {
                        return Err(Error::exhausted(format!("the thread resolving {} died", self.name)));
                    }
                },
                Stage::Next => {
                    let Some(peer) = self.addresses.pop() else { return Err(self.no_address_left()) };
                    self.tried.push(peer);
                    self.stage = match self.start(peer, now) {
                        Ok(stage) => stage,
                        Err(error) => self.next_after(error),
                    };
                }
                Stage::Connecting { socket, peer, until } => match connected(&socket, peer) {
                    Ok(true) => {
                        self.options.suit(&socket, peer);
                        return Ok(Some((socket, peer)));
                    }
                    Ok(false) if now < until => {
                        self.stage = Stage::Connecting { socket, peer, until };
                        return Ok(None);
                    }
                    Ok(false) => {
                        let after = now.duration_since(self.started);
                        let error = Error::timed_out(format!("connecting to {peer}"), after).hint(
                            "nothing answers: is the address right, or does a firewall drop the packets?",
                        );
                        self.stage = self.next_after(error);
                    }
                    Err(error) => self.stage = self.next_after(explain(error, peer)),
                },
                Stage::Over => return Err(Error::disconnected("the connection is closed")),
            }
        }
    }

    fn start(&self, peer: SocketAddr, now: Instant) -> Result<Stage> {
        let socket = self.options.open(&peer)?;
        match socket.connect(&SockAddr::from(peer)) {
            Ok(()) => {}
            Err(error) if in_progress(&error) => {}
            Err(error) => return Err(explain(error, peer)),
        }
        // What time is left is shared by the addresses that are left.
        let share = self.deadline.saturating_duration_since(now) / (self.addresses.len() as u32 + 1);
        Ok(Stage::Connecting { socket, peer, until: now + share })
    }

    fn next_after(&mut self, error: Error) -> Stage {
        tracing::debug!(%error, left = self.addresses.len(), "connecting failed");
        self.last_error = Some(error);
        Stage::Next
    }

    fn no_address_left(&mut self) -> Error {
        let Some(error) = self.last_error.take() else {
            return Error::unsupported(format!("{} has no address of the family asked for", self.name));
        };
        if self.tried.len() < 2 {
            return error;
        }
        let tried: Vec<String> = self.tried.iter().map(ToString::to_string).collect();
        error.doing(format!("connecting to {} (tried {})", self.name, tried.join(", ")))
    }
}

/// Whether `socket` is connected; the error if connecting failed.
fn connected(socket: &Socket, peer: SocketAddr) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::InvalidInput) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    // A connect to a local ephemeral port nobody listens on can meet itself (simultaneous open).
    if socket.local_addr()?.as_socket() == Some(peer) {
        return Err(Errno::CONNREFUSED.into());
    }
    Ok(true)
}

fn in_progress(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INPROGRESS)
        || matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A connect error, with what to look at.
fn explain(error: io::Error, peer: SocketAddr) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::ConnectionRefused => "is an NVMe/TCP target listening there?",
        io::ErrorKind::TimedOut => {
            "nothing answers: is the address right, or does a firewall drop the packets?"
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "there is no route: is the address right, and is the interface up?"
        }
        io::ErrorKind::AddrNotAvailable => "is the local address one of this machine, and are ports left?",
        io::ErrorKind::PermissionDenied => "a local firewall rule forbids it",
        io::ErrorKind::InvalidInput if matches!(peer, SocketAddr::V6(v6) if v6.scope_id() == 0) => {
            "a link-local IPv6 address needs its interface, e.g. fe80::1%eth0"
        }
        _ => return Error::from(error).doing(format!("connecting to {peer}")),
    };
    Error::from(error).doing(format!("connecting to {peer}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// A connection to this machine.
    fn connected_with(options: &ControllerOptions) -> Socket {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        let trid = format!("trtype:TCP traddr:127.0.0.1 trsvcid:{}", peer.port()).parse().unwrap();
        let options = SocketOptions::new(&trid, options).unwrap();
        let now = Instant::now();
        let deadline = now + Duration::from_secs(5);
        let mut connector = Connector::new(&Destination::Address(peer), options, now, deadline).unwrap();
        loop {
            if let Some((socket, _)) = connector.poll(Instant::now()).unwrap() {
                return socket;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn connections_within_this_machine_have_a_small_send_buffer_unless_told_otherwise() {
        let send_buffer_with = |options: &_| connected_with(options).send_buffer_size().unwrap();
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 4420));
        let told = {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.set_send_buffer_size(LOCAL_SEND_BUFFER).unwrap();
            socket.send_buffer_size().unwrap()
        };
        let mut options = ControllerOptions::default();
        // A limit below it leaves the choice to the kernel, which makes it neither that nor what is left of it.
        assert_eq!(send_buffer_with(&options) == told, is_granted(LOCAL_SEND_BUFFER, peer));
        // The kernel doubles it.
        options.tcp_send_buffer = Some(100_000);
        assert_eq!(send_buffer_with(&options), 200_000);
    }

    #[test]
    fn what_the_kernel_would_cut_is_not_asked_for() {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 4420));
        assert!(is_granted(16_384, peer));
        assert!(!is_granted(1 << 30, peer));
    }

    #[test]
    fn connections_within_this_machine_are_not_paced() {
        let socket = connected_with(&ControllerOptions::default());
        assert_eq!(rustix::net::sockopt::tcp_congestion(&socket).unwrap(), LOCAL_CONGESTION_CONTROL);
    }

    #[test]
    fn a_machine_knows_its_own_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (ours, peer, same) in [
            ("127.0.0.1", "127.0.0.2", true),
            ("::1", "::1", true),
            ("::ffff:10.0.0.1", "::ffff:127.0.0.1", true),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("fd00::1", "fd00::2", false),
        ] {
            assert_eq!(is_same_machine(ip(ours), ip(peer)), same, "{ours} to {peer}");
        }
    }
}
