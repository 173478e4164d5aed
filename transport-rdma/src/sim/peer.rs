//! The other end of a simulated connection, and what can be done to one from outside.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use nvmf_core::spec::rdma::CmRequest;

use super::wire::{Qp, State, Wire};
use super::{Notify, Sim};
use crate::provider::{CmEvent, WorkCompletion, WorkStatus};

/// Reason of a rejection with private data (InfiniBand: rejected by the consumer).
const CONSUMER: i32 = 28;

/// A connect request on its way to a listener.
pub(super) struct Pending {
    pub(super) wire: Weak<Wire>,
    pub(super) private_data: [u8; 32],
}

/// Somebody who takes connections. Closed when dropped.
pub struct SimListener {
    sim: Sim,
    address: SocketAddr,
}

impl SimListener {
    pub(super) fn new(sim: Sim, address: SocketAddr) -> Self {
        Self { sim, address }
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next connect request whose initiator still waits.
    #[must_use]
    pub fn next_request(&self) -> Option<SimRequest> {
        let mut net = self.sim.0.net();
        let listener = net.listeners.get_mut(&self.address)?;
        while let Some(pending) = listener.requests.pop_front() {
            if let Some(wire) = pending.wire.upgrade() {
                return Some(SimRequest { wire, private_data: pending.private_data });
            }
        }
        None
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let closed = self.sim.0.net().listeners.remove(&self.address);
        for pending in closed.into_iter().flat_map(|listener| listener.requests) {
            if let Some(wire) = pending.wire.upgrade() {
                SimRequest { wire, private_data: pending.private_data }.reject(&[]);
            }
        }
    }
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimListener({})", self.address)
    }
}

/// A connect request.
pub struct SimRequest {
    wire: Arc<Wire>,
    private_data: [u8; 32],
}

impl SimRequest {
    /// Its private data.
    #[must_use]
    pub fn private_data(&self) -> [u8; 32] {
        self.private_data
    }

    /// Its private data as NVMe has it.
    #[must_use]
    pub fn request(&self) -> CmRequest {
        zerocopy::transmute!(self.private_data)
    }

    /// Accepts with private data and posts so many receives. `notify` is called when there is something to do for the peer.
    #[must_use]
    pub fn accept(self, private_data: &[u8], receives: u32, notify: Notify) -> SimPeer {
        let mut state = self.wire.lock();
        if state.qp == Qp::Idle {
            state.qp = Qp::Connected;
            state.peer_present = true;
            state.peer_receives = receives;
            state.notify = Some(notify);
            let private_data = private_data.to_vec();
            self.wire.event(&mut state, CmEvent::Established { private_data });
        }
        drop(state);
        SimPeer { wire: self.wire }
    }

    /// Rejects with private data.
    pub fn reject(self, private_data: &[u8]) {
        self.reject_for(CONSUMER, private_data);
    }

    /// Rejects for a reason of the connection manager.
    pub fn reject_for(self, reason: i32, private_data: &[u8]) {
        let private_data = private_data.to_vec();
        self.wire.event(&mut self.wire.lock(), CmEvent::Rejected { reason, private_data });
    }
}

impl fmt::Debug for SimRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimRequest").field(&self.request()).finish()
    }
}

/// The accepting end of a connection. Dropping it disconnects.
pub struct SimPeer {
    wire: Arc<Wire>,
}

impl SimPeer {
    /// The next message, for which a receive is used up; `None` while there is none.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut state = self.wire.lock();
        self.wire.deliver(&mut state)
    }

    /// Posts more receives.
    pub fn post_receives(&mut self, receives: u32) {
        self.wire.lock().peer_receives += receives;
    }

    /// Reads the initiator's memory. After an error the connection is broken.
    ///
    /// # Errors
    /// `PermissionDenied` when the key does not allow it, `NotConnected`.
    pub fn read(&mut self, address: u64, key: u32, to: &mut [u8]) -> io::Result<()> {
        self.access(|state| match &state.domain {
            Some(domain) => domain.remote_read(state.number, address, key, to),
            None => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    /// Writes the initiator's memory. After an error the connection is broken.
    ///
    /// # Errors
    /// As [`SimPeer::read`].
    pub fn write(&mut self, address: u64, key: u32, bytes: &[u8]) -> io::Result<()> {
        self.access(|state| match &state.domain {
            Some(domain) => domain.remote_write(state.number, address, key, bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    fn access(&mut self, access: impl FnOnce(&State) -> io::Result<()>) -> io::Result<()> {
        // The lock is held meanwhile: once a queue pair is destroyed, no access is under way.
        let mut state = self.wire.lock();
        if state.qp != Qp::Connected {
            return Err(io::ErrorKind::NotConnected.into());
        }
        access(&state).inspect_err(|_| self.wire.fail(&mut state, None))
    }

    /// Sends a message, and with it invalidates a key of the initiator's.
    ///
    /// # Errors
    /// `NotConnected`; `WouldBlock` when the initiator has no receive posted; `ConnectionReset` when it does not fit.
    pub fn send(&mut self, bytes: &[u8], invalidate: Option<u32>) -> io::Result<()> {
        let mut state = self.wire.lock();
        self.wire.message(&mut state, bytes, invalidate)
    }

    /// Whether the connection is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.wire.lock().qp == Qp::Connected
    }
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        let mut state = self.wire.lock();
        state.notify = None;
        if std::mem::take(&mut state.peer_present) && state.qp == Qp::Connected {
            self.wire.event(&mut state, CmEvent::Disconnected);
        }
    }
}

impl fmt::Debug for SimPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimPeer").field("connected", &self.is_connected()).finish()
    }
}

/// A connection, for whoever wants to do something to it.
#[derive(Clone)]
pub struct SimConnection(Arc<Wire>);

impl SimConnection {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self(wire)
    }

    /// The queue it is, from the connect request.
    #[must_use]
    pub fn qid(&self) -> u16 {
        let request: CmRequest = zerocopy::transmute!(self.0.lock().private_data);
        request.qid.get()
    }

    /// Whether it is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.lock().qp == Qp::Connected
    }

    /// An event of the connection manager.
    pub fn event(&self, event: CmEvent) {
        self.0.event(&mut self.0.lock(), event);
    }

    /// The queue pair fails. With a status the oldest SEND there is, or else the oldest receive, fails so; all else is flushed.
    pub fn fail(&self, status: Option<WorkStatus>) {
        let mut state = self.0.lock();
        let first = status.and_then(|status| {
            let (id, is_receive) = match state.sends.pop_front() {
                Some(send) => (send.id, false),
                None => (state.receives.pop_front()?.id, true),
            };
            Some(WorkCompletion { id, status, is_receive, vendor: 0x77, ..WorkCompletion::default() })
        });
        self.0.fail(&mut state, first);
    }

    /// While `stalled`, the peer gets no messages.
    pub fn stall(&self, stalled: bool) {
        let mut state = self.0.lock();
        state.tampering.stalled = stalled;
        if let Some(notify) = state.notify.clone() {
            drop(state);
            notify();
        }
    }

    /// While `hold`, completions of SENDs are kept back; afterwards they all come.
    pub fn hold_sends(&self, hold: bool) {
        let mut state = self.0.lock();
        state.tampering.hold_sends = hold;
        while !hold && let Some(completion) = state.held.pop_front() {
            self.0.complete(&mut state, completion);
        }
    }

    /// While `lose`, completions of any kind are lost.
    pub fn lose_completions(&self, lose: bool) {
        self.0.lock().tampering.lose = lose;
    }

    /// A failed queue pair does not flush its work.
    pub fn withhold_flush(&self) {
        self.0.lock().tampering.withhold_flush = true;
    }

    /// The queue pair cannot be destroyed.
    pub fn refuse_destroy(&self) {
        self.0.lock().tampering.keep_alive = true;
    }

    /// Completions bear the number of another queue pair, or of none.
    pub fn misname(&self, number: u32) {
        self.0.lock().tampering.number = Some(number);
    }

    /// Number of the queue pair.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.lock().number
    }

    /// A message from the peer, whatever the peer does.
    ///
    /// # Errors
    /// As [`SimPeer::send`].
    pub fn inject(&self, bytes: &[u8], invalidate: Option<u32>) -> io::Result<()> {
        self.0.message(&mut self.0.lock(), bytes, invalidate)
    }

    /// Receives posted by the initiator and not used, if need be by all that share them.
    #[must_use]
    pub fn receives(&self) -> usize {
        let state = self.0.lock();
        state.shared.as_ref().map_or(state.receives.len(), |shared| shared.receives())
    }
}

impl fmt::Debug for SimConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimConnection").field("qid", &self.qid()).finish_non_exhaustive()
    }
}
