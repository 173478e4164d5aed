//! The initiator's end of a simulated connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::epoll;

use super::peer::Pending;
use super::wire::{Qp, Wire};
use super::{Sim, SimDomain, SimFault, SimShared, count};
use crate::provider::{
    CmEvent, ConnectRequest, Domain, Endpoint, QueuePairSetup, ReceiveRequest, SendBatch, Work,
    WorkCompletion,
};

/// Reason of a rejection when nothing listens (InfiniBand: invalid service identifier).
const NO_SUCH_SERVICE: i32 = 8;

/// The initiator's end of a simulated connection.
pub struct SimEndpoint {
    wire: Arc<Wire>,
    destination: Option<SocketAddr>,
    /// Of its own events and the queues it shares.
    epoll: Option<OwnedFd>,
}

impl SimEndpoint {
    pub(super) fn new(sim: Sim) -> io::Result<Self> {
        Ok(Self { wire: Arc::new(Wire::new(sim)?), destination: None, epoll: None })
    }

    fn sim(&self) -> &Sim {
        &self.wire.sim
    }

    /// A scripted event, or the ordinary one.
    fn answer(&self, scripted: Option<Option<CmEvent>>, ordinary: CmEvent) {
        if let Some(event) = scripted.unwrap_or(Some(ordinary)) {
            self.wire.event(&mut self.wire.lock(), event);
        }
    }
}

impl Endpoint for SimEndpoint {
    type Domain = SimDomain;

    fn set_type_of_service(&mut self, _tos: u8) -> io::Result<()> {
        Ok(())
    }

    fn set_ack_timeout(&mut self, _exponent: u8) -> io::Result<()> {
        Ok(())
    }

    fn resolve_address(
        &mut self,
        _source: Option<SocketAddr>,
        destination: SocketAddr,
        _timeout: Duration,
    ) -> io::Result<()> {
        self.destination = Some(destination);
        let scripted = self.sim().0.fault(|fault| match fault {
            SimFault::Address(event) => Some(event.clone()),
            _ => None,
        });
        self.answer(scripted, CmEvent::AddressResolved);
        Ok(())
    }

    fn resolve_route(&mut self, _timeout: Duration) -> io::Result<()> {
        let scripted = self.sim().0.fault(|fault| match fault {
            SimFault::Route(event) => Some(event.clone()),
            _ => None,
        });
        self.answer(scripted, CmEvent::RouteResolved);
        Ok(())
    }

    fn domain(&mut self) -> io::Result<Arc<SimDomain>> {
        let mut net = self.wire.sim.0.net();
        if let Some(domain) = net.domain.upgrade().filter(|domain| !domain.is_lost()) {
            return Ok(domain);
        }
        let domain = Arc::new(SimDomain::new(self.wire.sim.clone()));
        net.domain = Arc::downgrade(&domain);
        Ok(domain)
    }

    fn create_queue_pair(
        &mut self,
        domain: &Arc<SimDomain>,
        setup: &QueuePairSetup,
        shared: Option<&Arc<SimShared>>,
    ) -> io::Result<u32> {
        let errno = self.sim().0.fault(|fault| match fault {
            SimFault::CreateQueuePair(errno) => Some(*errno),
            _ => None,
        });
        if let Some(errno) = errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let limits = self.sim().0.limits;
        if setup.sends.max(setup.receives) > limits.max_work_requests
            || setup.send_elements > limits.max_elements
            || setup.sends + setup.receives > limits.max_completions
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(shared) = shared {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for fd in [self.wire.bell().as_fd(), shared.bell()] {
                epoll::add(&epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            }
            self.epoll = Some(epoll);
        }
        let mut net = self.wire.sim.0.net();
        net.number += 1;
        let number = net.number;
        drop(net);
        let mut state = self.wire.lock();
        state.number = number;
        state.shared = shared.cloned();
        state.qp = Qp::Idle;
        state.domain = Some(Arc::clone(domain));
        state.room = (setup.sends, setup.receives);
        Ok(setup.inline)
    }

    fn make_windows(&mut self, count: u16) -> io::Result<Vec<u32>> {
        let state = self.wire.lock();
        let domain = state.domain.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(domain.make_windows(state.number, count))
    }

    fn queue_pair_number(&self) -> u32 {
        self.wire.lock().number
    }

    fn connect(&mut self, request: &ConnectRequest) -> io::Result<()> {
        count(&self.sim().0.counters.connects, 1);
        {
            let mut state = self.wire.lock();
            state.private_data = request.private_data;
            state.rnr_retry_count = request.rnr_retry_count;
        }
        let scripted = self.sim().0.fault(|fault| match fault {
            SimFault::Connect(event) => Some(event.clone()),
            _ => None,
        });
        let mut net = self.wire.sim.0.net();
        net.connections.push(Arc::downgrade(&self.wire));
        let listener = match (&scripted, self.destination) {
            (None, Some(destination)) => net.listeners.get_mut(&destination),
            _ => None,
        };
        let Some(listener) = listener else {
            drop(net);
            let rejected = CmEvent::Rejected { reason: NO_SUCH_SERVICE, private_data: Vec::new() };
            self.answer(scripted, rejected);
            return Ok(());
        };
        let wire: Weak<Wire> = Arc::downgrade(&self.wire);
        listener.requests.push_back(Pending { wire, private_data: request.private_data });
        let notify = Arc::clone(&listener.notify);
        drop(net);
        notify();
        Ok(())
    }

    fn next_event(&mut self) -> io::Result<Option<CmEvent>> {
        let mut state = self.wire.lock();
        let event = state.events.pop_front();
        self.wire.settle(&state);
        Ok(event)
    }

    fn disconnect(&mut self) -> io::Result<()> {
        self.wire.fail(&mut self.wire.lock(), None);
        Ok(())
    }

    fn destroy_queue_pair(&mut self) -> io::Result<()> {
        let mut state = self.wire.lock();
        if state.tampering.keep_alive {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.wire.fail(&mut state, None);
        state.qp = Qp::Destroyed;
        state.sends.clear();
        state.receives.clear();
        state.completions.clear();
        if let Some(domain) = state.domain.take() {
            domain.free_windows(state.number);
        }
        Ok(())
    }

    fn post_send(&mut self, batch: &SendBatch) -> io::Result<()> {
        let counters = &self.wire.sim.0.counters;
        count(&counters.doorbells, 1);
        let mut state = self.wire.lock();
        for request in &batch.requests {
            if state.sends.len() as u32 >= state.room.0 {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            count(&counters.sends, u64::from(request.work == Work::Send));
            count(&counters.unsignalled, u64::from(!request.signalled));
            let mut posted = state.spare.pop().unwrap_or_default();
            (posted.id, posted.signalled, posted.inline) = (request.id, request.signalled, false);
            posted.bytes.clear();
            posted.elements.clear();
            (posted.work, posted.key, posted.bind) = (request.work, request.first, None);
            match request.work {
                Work::Send => posted.elements.extend_from_slice(batch.elements_of(request)),
                Work::Bind => posted.bind = batch.binds.get(request.first as usize).copied(),
                Work::Invalidate => {}
            }
            if let (Some(domain), true) = (&state.domain, request.inline) {
                posted.inline = true;
                for element in &posted.elements {
                    domain.gather(element, &mut posted.bytes)?;
                }
            }
            state.sends.push_back(posted);
        }
        match state.qp {
            Qp::Error => self.wire.flush(&mut state),
            Qp::Connected if !state.tampering.stalled => self.wire.work_on_windows(&mut state),
            Qp::Connected => {}
            Qp::None | Qp::Idle | Qp::Destroyed => return Err(io::ErrorKind::NotConnected.into()),
        }
        let notify = state.notify.clone();
        drop(state);
        if let Some(notify) = notify {
            notify();
        }
        Ok(())
    }

    fn post_receive(&mut self, requests: &[ReceiveRequest]) -> io::Result<()> {
        let mut state = self.wire.lock();
        if matches!(state.qp, Qp::None | Qp::Destroyed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.shared.is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if state.receives.len() + requests.len() > state.room.1 as usize {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        state.receives.extend(requests);
        if state.qp == Qp::Error {
            self.wire.flush(&mut state);
        }
        Ok(())
    }

    fn poll_completions(&mut self, completions: &mut [WorkCompletion]) -> io::Result<usize> {
        let mut state = self.wire.lock();
        let count = completions.len().min(state.completions.len());
        for (to, from) in completions.iter_mut().zip(state.completions.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn request_notification(&self) -> io::Result<()> {
        count(&self.sim().0.counters.armed, 1);
        self.wire.lock().armed = true;
        Ok(())
    }

    fn take_notifications(&mut self) -> bool {
        let mut state = self.wire.lock();
        let notified = std::mem::take(&mut state.notified);
        self.wire.settle(&state);
        notified
    }

    fn trouble(&self) -> Option<String> {
        self.sim().0.net().trouble.clone()
    }

    fn event_fd(&self) -> RawFd {
        self.epoll.as_ref().unwrap_or(self.wire.bell()).as_raw_fd()
    }
}

impl Drop for SimEndpoint {
    fn drop(&mut self) {
        let mut state = self.wire.lock();
        self.wire.fail(&mut state, None);
        state.qp = Qp::Destroyed;
        state.domain = None;
        if let Some(notify) = state.notify.take() {
            notify();
        }
    }
}
