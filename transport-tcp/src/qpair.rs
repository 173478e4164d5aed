//! One queue pair: a socket and a [`Connection`].

use std::io::{IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nvmf_core::proto::Tracker;
use nvmf_core::spec::Sqe;
use nvmf_core::transport::ip::Destination;
use nvmf_core::transport::{ConnectProgress, QpairSetup, Quiesce, TransportQpair, TransportStats};
use nvmf_core::{Error, ErrorKind, Result};
use rustix::io::{Errno, readv, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use socket2::Socket;

use crate::proto::{Connection, ConnectionParams, SEND_MAX};
use crate::socket::{Connector, SocketOptions};

/// Slices per send.
const SLICES: usize = 64;
/// Bytes received in one poll after which it ends with the completions it has. Their successors leave the sooner: else a controller that
/// answers many large reads at once has nothing to do until the host has taken all of them, and then the host waits for the next.
const POLL_BYTES: u64 = 512 * 1024;
/// Bytes read and dropped when a connection is given up, so that closing does not reset it before the peer has read why.
const DRAIN_MAX: usize = 1024 * 1024;

#[derive(Debug)]
enum Phase {
    /// Resolving and connecting.
    Opening(Box<Connector>),
    /// Exchanging ICReq and ICResp.
    Initializing,
    Running,
    /// Given up, for this reason.
    Failed(Error),
}

/// An address shared by the queues of one controller: all go where the admin queue went, even if a name has many addresses.
pub(crate) type Pinned = Arc<Mutex<Option<SocketAddr>>>;

/// A NVMe/TCP queue pair.
#[derive(Debug)]
pub struct TcpQpair {
    phase: Phase,
    socket: Option<Socket>,
    connection: Connection,
    peer: Option<SocketAddr>,
    pinned: Pinned,
    qid: u16,
    started: Instant,
    deadline: Instant,
    /// Sending failed. What the peer said before is read first: it may say why.
    send_error: Option<Error>,
    /// Polling stopped, at its budget or with `POLL_BYTES`, before the socket was seen empty.
    unread: bool,
    stats: TransportStats,
}

/// What a receive brought.
enum Received {
    Nothing,
    /// Less than there was room for: the socket is empty.
    Some,
    /// All there was room for.
    Full,
}

impl TcpQpair {
    pub(crate) fn new(
        setup: &QpairSetup,
        destination: &Destination,
        options: SocketOptions,
        params: ConnectionParams,
        pinned: Pinned,
    ) -> Result<Self> {
        let started = Instant::now();
        let known = *pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let connector = match known {
            Some(address) if setup.qid != 0 => {
                Connector::new(&Destination::Address(address), options, started, setup.deadline)?
            }
            _ => Connector::new(destination, options, started, setup.deadline)?,
        };
        Ok(Self {
            phase: Phase::Opening(Box::new(connector)),
            socket: None,
            connection: Connection::new(params),
            peer: None,
            pinned,
            qid: setup.qid,
            started,
            deadline: setup.deadline,
            send_error: None,
            unread: false,
            stats: TransportStats::default(),
        })
    }

    /// The address connected to, once connected.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn queue_name(&self) -> String {
        if self.qid == 0 { "the admin queue".to_owned() } else { format!("I/O queue {}", self.qid) }
    }

    /// Adds to an error which connection it is about.
    fn context(&self, error: Error) -> Error {
        let error = error.doing(format!("NVMe/TCP connection of {}", self.queue_name()));
        match self.peer {
            Some(peer) => error.peer(peer),
            None => error,
        }
    }

    fn failed(&mut self, error: Error) -> Error {
        let error = self.context(error);
        self.phase = Phase::Failed(error.clone());
        error
    }

    fn check_running(&self) -> Result<()> {
        match &self.phase {
            Phase::Running => Ok(()),
            Phase::Failed(error) => Err(error.clone()),
            Phase::Opening(_) | Phase::Initializing => {
                Err(Error::api_misuse("the queue pair was used before its connection was established"))
            }
        }
    }

    // --- connecting ------------------------------------------------------------------------------------------------

    fn connect_step(&mut self, now: Instant) -> Result<ConnectProgress> {
        if let Phase::Opening(connector) = &mut self.phase {
            let Some((socket, peer)) = connector.poll(now)? else { return Ok(ConnectProgress::Pending) };
            self.socket = Some(socket);
            self.peer = Some(peer);
            self.phase = Phase::Initializing;
        }
        match &self.phase {
            Phase::Running => return Ok(ConnectProgress::Established),
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Initializing | Phase::Opening(_) => {}
        }
        self.send_staged()?;
        while !self.connection.process_connect()? {
            let Some(socket) = &self.socket else { return Err(closed()) };
            let room = self.connection.connect_target();
            match receive(socket, room) {
                Ok(0) => return Err(self.end_of_stream(0)),
                Ok(n) => {
                    self.stats.receives += 1;
                    self.stats.bytes_received += n as u64;
                    self.connection.connect_received(n);
                }
                Err(Errno::AGAIN) => {
                    self.stats.empty_receives += 1;
                    // Many may connect at the same time: they share the receive buffer as well.
                    self.connection.park();
                    if now < self.deadline {
                        return Ok(ConnectProgress::Pending);
                    }
                    let after = now.saturating_duration_since(self.started);
                    return Err(Error::timed_out("waiting for the ICResp", after)
                        .hint("something accepts connections there; is it an NVMe/TCP target?"));
                }
                Err(error) => return Err(receive_error(error)),
            }
        }
        self.phase = Phase::Running;
        self.connection.park();
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = self.peer;
        Ok(ConnectProgress::Established)
    }

    /// Sends what needs no tracker.
    fn send_staged(&mut self) -> Result<()> {
        let Some(socket) = &self.socket else { return Err(closed()) };
        loop {
            let bytes = self.connection.transmit_staged();
            if bytes.is_empty() {
                return Ok(());
            }
            match retry_on_intr(|| send(socket, bytes, SendFlags::NOSIGNAL)) {
                Ok(n) => {
                    self.stats.sends += 1;
                    self.stats.bytes_sent += n as u64;
                    self.connection.sent(n);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(send_error(error)),
            }
        }
    }

    // --- running ---------------------------------------------------------------------------------------------------

    fn receive(&mut self, tracker: &mut Tracker) -> Result<Received> {
        let Some(socket) = &self.socket else { return Err(closed()) };
        let target = self.connection.recv_target(tracker);
        let room = target.len();
        if room == 0 {
            return Ok(Received::Nothing);
        }
        let result = if target.direct.is_empty() {
            receive(socket, target.staging)
        } else if target.staging.is_empty() {
            receive(socket, target.direct)
        } else {
            let mut slices = [IoSliceMut::new(target.direct), IoSliceMut::new(target.staging)];
            retry_on_intr(|| readv(socket, &mut slices))
        };
        match result {
            Ok(0) => Err(self.end_of_stream(tracker.in_flight())),
            Ok(n) => {
                self.stats.receives += 1;
                self.stats.bytes_received += n as u64;
                self.connection.received(n, tracker);
                Ok(if n < room { Received::Some } else { Received::Full })
            }
            Err(Errno::AGAIN) => {
                self.stats.empty_receives += 1;
                Ok(Received::Nothing)
            }
            Err(error) => Err(receive_error(error)),
        }
    }

    fn end_of_stream(&self, in_flight: usize) -> Error {
        let situation = self.connection.situation();
        let error = Error::new(ErrorKind::Disconnected(
            match in_flight {
                0 => format!("the controller closed it {situation}"),
                1 => format!("the controller closed it {situation}, with 1 command outstanding"),
                n => format!("the controller closed it {situation}, with {n} commands outstanding"),
            }
            .into(),
        ));
        if self.connection.is_running() {
            error
        } else {
            error.hint("is it an NVMe/TCP target that serves this host, and without TLS?")
        }
    }

    fn send(&mut self, tracker: &Tracker) -> Result<()> {
        if self.send_error.is_some() {
            return Ok(());
        }
        let Some(socket) = &self.socket else { return Err(closed()) };
        while self.connection.wants_transmit() {
            self.connection.fill(tracker)?;
            let (result, offered) = match self.connection.transmit_one() {
                Some(one) => (retry_on_intr(|| send(socket, one, SendFlags::NOSIGNAL)), one.len()),
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = self.connection.transmit_slices(tracker, SEND_MAX, &mut slices);
                    let slices = &slices[..count];
                    if slices.is_empty() {
                        return Err(Error::api_misuse("the buffer of a command is shorter than its data"));
                    }
                    let sent = retry_on_intr(|| {
                        sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
                    });
                    (sent, slices.iter().map(|slice| slice.len()).sum::<usize>())
                }
            };
            match result {
                Ok(n) => {
                    self.stats.sends += 1;
                    self.stats.bytes_sent += n as u64;
                    self.connection.sent(n);
                    if n < offered {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    self.send_error = Some(send_error(error));
                    break;
                }
            }
        }
        Ok(())
    }

    fn poll_running(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        self.connection.release_held(tracker);
        if self.connection.is_paused() {
            self.connection.process(tracker, budget)?;
        }
        // Until a receive says otherwise.
        self.unread = true;
        let enough = self.stats.bytes_received.saturating_add(POLL_BYTES);
        let done = |completed, received| completed >= budget || completed > 0 && received >= enough;
        while !done(tracker.completed(), self.stats.bytes_received) {
            let received = self.receive(tracker)?;
            if let Received::Nothing = received {
                self.unread = false;
                self.connection.received_nothing();
                if let Some(error) = self.send_error.take() {
                    return Err(error);
                }
                break;
            }
            self.connection.process(tracker, budget)?;
            // A short receive emptied the socket: no second look at it.
            if let Received::Some = received {
                self.unread = false;
                break;
            }
        }
        if self.connection.wants_transmit() {
            self.send(tracker)?;
            self.connection.release_held(tracker);
        }
        self.connection.park();
        Ok(())
    }
}

impl TransportQpair for TcpQpair {
    fn poll_connect(&mut self, now: Instant) -> Result<ConnectProgress> {
        self.connect_step(now).map_err(|error| {
            // The H2CTermReq, if one is due. That it can not be sent is of no interest any more.
            let _ = self.send_staged();
            self.failed(error)
        })
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        self.check_running()?;
        let mut result = self.connection.submit(slot, sqe, tracker);
        if result.is_ok() && self.connection.take_due() {
            result = self.send(tracker);
        }
        result.map_err(|error| self.failed(error))
    }

    fn flush(&mut self, tracker: &Tracker) -> Result<()> {
        self.check_running()?;
        self.send(tracker).map_err(|error| self.failed(error))
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        self.check_running()?;
        self.poll_running(tracker, budget).map_err(|error| {
            // Tells the peer why, if there is something to tell.
            let _ = self.send(tracker);
            self.failed(error)
        })
    }

    fn disconnect(&mut self, _now: Instant) -> Quiesce {
        if let Some(socket) = self.socket.take() {
            // An orderly end lets the peer read what was sent last. Unread bytes would turn close into a reset.
            if socket.shutdown(Shutdown::Write).is_ok() && self.connection.failure().is_some() {
                let mut sink = [0; 4096];
                let mut left = DRAIN_MAX;
                while left > 0
                    && let Ok(n @ 1..) = receive(&socket, &mut sink)
                {
                    left = left.saturating_sub(n);
                }
            }
        }
        if !matches!(self.phase, Phase::Failed(_)) {
            self.phase = Phase::Failed(self.context(closed()));
        }
        // Only this process touches the buffers, and it does so no more.
        Quiesce::Done
    }

    fn event_fd(&self) -> Option<RawFd> {
        match (&self.socket, &self.phase) {
            (Some(socket), _) => Some(socket.as_raw_fd()),
            (None, Phase::Opening(connector)) => connector.event_fd(),
            (None, _) => None,
        }
    }

    fn wants_write(&self) -> bool {
        matches!(self.phase, Phase::Opening(_)) || self.connection.wants_transmit()
    }

    fn is_event_driven(&self) -> bool {
        true
    }

    fn has_local_work(&self) -> bool {
        self.connection.is_paused() || self.unread
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

fn closed() -> Error {
    Error::disconnected("the queue pair is closed")
}

fn receive_error(error: Errno) -> Error {
    Error::disconnected(format!("receiving failed: {error}"))
}

fn send_error(error: Errno) -> Error {
    Error::disconnected(format!("sending failed: {error}"))
}

/// Receives what is there. As the sends of this module a plain system call: the C library's are points where a thread may be
/// cancelled, which costs two atomic operations each in a program of several threads.
fn receive(socket: &Socket, room: &mut [u8]) -> Result<usize, Errno> {
    retry_on_intr(|| recv(socket, &mut *room, RecvFlags::empty()).map(|(_, received)| received))
}
