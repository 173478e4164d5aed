//! One connection: what both sides share, behind one lock.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::{Notify, Sim, SimDomain, SimShared, count};
use crate::provider::{Bind, CmEvent, Element, ReceiveRequest, Work, WorkCompletion, WorkStatus};

/// State of the initiator's queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Qp {
    /// Not made.
    None,
    /// Made, not connected.
    Idle,
    Connected,
    Error,
    Destroyed,
}

/// A request that was posted. Inline data was copied, other data is where it was.
#[derive(Default)]
pub(super) struct Posted {
    pub(super) work: Work,
    /// The key to be ended.
    pub(super) key: u32,
    /// The window to be bound.
    pub(super) bind: Option<Bind>,
    pub(super) id: u64,
    pub(super) signalled: bool,
    pub(super) inline: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) elements: Vec<Element>,
}

/// What is done to a connection.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tampering {
    /// Messages to the peer are not delivered.
    pub(super) stalled: bool,
    /// Completions of SENDs are kept back.
    pub(super) hold_sends: bool,
    /// Completions are lost.
    pub(super) lose: bool,
    /// Work is not flushed.
    pub(super) withhold_flush: bool,
    /// Destroying the queue pair fails.
    pub(super) keep_alive: bool,
    /// Completions bear this queue pair's number.
    pub(super) number: Option<u32>,
}

pub(super) struct State {
    pub(super) qp: Qp,
    pub(super) domain: Option<Arc<SimDomain>>,
    pub(super) events: VecDeque<CmEvent>,
    pub(super) sends: VecDeque<Posted>,
    /// Entries of `sends` that are done, for the memory they have: a device that allocated would spoil what is measured of its user.
    pub(super) spare: Vec<Posted>,
    pub(super) receives: VecDeque<ReceiveRequest>,
    pub(super) completions: VecDeque<WorkCompletion>,
    pub(super) held: VecDeque<WorkCompletion>,
    pub(super) room: (u32, u32),
    /// Its number.
    pub(super) number: u32,
    /// Where completions go and receives come from, if not its own queues.
    pub(super) shared: Option<Arc<SimShared>>,
    pub(super) armed: bool,
    pub(super) notified: bool,
    pub(super) tampering: Tampering,
    pub(super) private_data: [u8; 32],
    pub(super) rnr_retry_count: u8,
    /// Receives of the peer.
    pub(super) peer_receives: u32,
    /// The peer has accepted and not gone.
    pub(super) peer_present: bool,
    pub(super) notify: Option<Notify>,
}

pub(super) struct Wire {
    pub(super) sim: Sim,
    state: Mutex<State>,
    bell: OwnedFd,
}

impl Wire {
    pub(super) fn new(sim: Sim) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = State {
            qp: Qp::None,
            domain: None,
            events: VecDeque::new(),
            sends: VecDeque::new(),
            spare: Vec::new(),
            receives: VecDeque::new(),
            completions: VecDeque::new(),
            held: VecDeque::new(),
            room: (0, 0),
            number: 0,
            shared: None,
            armed: false,
            notified: false,
            tampering: Tampering::default(),
            private_data: [0; 32],
            rnr_retry_count: 7,
            peer_receives: 0,
            peer_present: false,
            notify: None,
        };
        Ok(Self { sim, state: Mutex::new(state), bell })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    fn ring(&self) {
        // Full means that it is readable already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor say what the state says.
    pub(super) fn settle(&self, state: &State) {
        let mut bytes = [0; 8];
        // Empty is what it should be.
        let _ = rustix::io::read(&self.bell, &mut bytes);
        if state.notified || !state.events.is_empty() {
            self.ring();
        }
    }

    pub(super) fn event(&self, state: &mut State, event: CmEvent) {
        state.events.push_back(event);
        self.ring();
    }

    pub(super) fn complete(&self, state: &mut State, completion: WorkCompletion) {
        if state.tampering.lose {
            return;
        }
        if state.tampering.hold_sends && !completion.is_receive && completion.status == WorkStatus::SUCCESS {
            state.held.push_back(completion);
            return;
        }
        self.enqueue(state, completion);
    }

    fn enqueue(&self, state: &mut State, completion: WorkCompletion) {
        let queue_pair = state.tampering.number.unwrap_or(state.number);
        let completion = WorkCompletion { queue_pair, ..completion };
        if let Some(shared) = &state.shared {
            shared.complete(completion);
            return;
        }
        state.completions.push_back(completion);
        if std::mem::take(&mut state.armed) {
            state.notified = true;
            self.ring();
        }
    }

    /// The queue pair fails: `first` completes with its own status, the rest is flushed.
    pub(super) fn fail(&self, state: &mut State, first: Option<WorkCompletion>) {
        if !matches!(state.qp, Qp::Connected | Qp::Idle) {
            return;
        }
        state.qp = Qp::Error;
        while let Some(held) = state.held.pop_front() {
            self.enqueue(state, held);
        }
        if let Some(first) = first {
            self.complete(state, first);
        }
        self.flush(state);
        if let Some(notify) = state.notify.clone() {
            notify();
        }
    }

    /// Flushes what is posted on a failed queue pair.
    pub(super) fn flush(&self, state: &mut State) {
        if state.tampering.withhold_flush {
            return;
        }
        let flushed = |id, is_receive| WorkCompletion {
            id,
            is_receive,
            status: WorkStatus::FLUSHED,
            ..WorkCompletion::default()
        };
        while let Some(send) = state.sends.pop_front() {
            self.complete(state, flushed(send.id, false));
        }
        while let Some(receive) = state.receives.pop_front() {
            self.complete(state, flushed(receive.id, true));
        }
    }

    /// Does what is to be done to windows before the next SEND.
    pub(super) fn work_on_windows(&self, state: &mut State) {
        while state.sends.front().is_some_and(|posted| posted.work != Work::Send)
            && let Some(domain) = state.domain.clone()
            && let Some(posted) = state.sends.pop_front()
        {
            let done = match posted.bind {
                Some(bind) => domain.bind(state.number, &bind).is_ok(),
                None => domain.invalidate(state.number, posted.key, false),
            };
            let completion = WorkCompletion { id: posted.id, ..WorkCompletion::default() };
            if !done {
                tracing::debug!(?posted.work, "work on a memory window that cannot be done");
                let first = WorkCompletion { status: WorkStatus::WINDOW_BIND, ..completion };
                return self.fail(state, Some(first));
            }
            if posted.signalled {
                self.complete(state, completion);
            }
            state.spare.push(posted);
        }
    }

    /// Takes the oldest message to the peer, if there is one and the peer has a receive for it.
    pub(super) fn deliver(&self, state: &mut State) -> Option<Vec<u8>> {
        if state.qp != Qp::Connected || state.tampering.stalled {
            return None;
        }
        let domain = state.domain.clone()?;
        let failed = |id, status| Some(WorkCompletion { id, status, ..WorkCompletion::default() });
        self.work_on_windows(state);
        let id = state.sends.front()?.id;
        if state.peer_receives == 0 {
            count(&self.sim.0.counters.not_ready, 1);
            if state.rnr_retry_count < 7 {
                state.sends.pop_front();
                self.fail(state, failed(id, WorkStatus::RNR_RETRY_EXCEEDED));
            }
            return None;
        }
        let send = state.sends.pop_front()?;
        let mut bytes = send.bytes.clone();
        if !send.inline {
            for element in &send.elements {
                if let Err(error) = domain.gather(element, &mut bytes) {
                    tracing::debug!(%error, "a SEND of memory that is not registered");
                    self.fail(state, failed(id, WorkStatus::LOCAL_PROTECTION));
                    return None;
                }
            }
        }
        state.peer_receives -= 1;
        if send.signalled {
            self.complete(state, WorkCompletion { id, ..WorkCompletion::default() });
        }
        state.spare.push(send);
        Some(bytes)
    }

    /// A message from the peer.
    pub(super) fn message(&self, state: &mut State, bytes: &[u8], invalidate: Option<u32>) -> io::Result<()> {
        let not_connected = || io::Error::from(io::ErrorKind::NotConnected);
        if state.qp != Qp::Connected {
            return Err(not_connected());
        }
        let domain = state.domain.clone().ok_or_else(not_connected)?;
        let receive = match &state.shared {
            Some(shared) => shared.take_receive(),
            None => state.receives.pop_front(),
        };
        let Some(receive) = receive else {
            count(&self.sim.0.counters.not_ready, 1);
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut completion = WorkCompletion {
            id: receive.id,
            is_receive: true,
            length: bytes.len() as u32,
            invalidated: invalidate,
            ..WorkCompletion::default()
        };
        if bytes.len() > receive.element.length as usize {
            completion.status = WorkStatus::LOCAL_LENGTH;
        } else if domain.scatter(&receive.element, bytes).is_err() {
            completion.status = WorkStatus::LOCAL_PROTECTION;
        }
        if completion.status == WorkStatus::SUCCESS {
            if let Some(key) = invalidate {
                domain.invalidate(state.number, key, true);
            }
            self.complete(state, completion);
            return Ok(());
        }
        self.fail(state, Some(completion));
        Err(io::ErrorKind::ConnectionReset.into())
    }
}
