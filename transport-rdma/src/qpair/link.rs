//! An endpoint with its queue pair, the memory of its capsules, and how work requests are named.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use nvmf_core::dma::SharedMemory;
use nvmf_core::{Error, Result};

use super::share::Member;
use crate::memory::{Memory, refused};
use crate::proto::Limits;
use crate::provider::{
    Access, Domain, Element, Endpoint, Provider, ReceiveRequest, Registration, SendBatch, SendRequest, Work,
    WorkCompletion,
};

/// Bytes of a response capsule.
pub(super) const RESPONSE_BYTES: usize = 16;
/// Bytes from one receive buffer to the next: a cache line, which the device writes.
const RESPONSE_STRIDE: usize = 64;
/// Capsules start on cache lines.
const CAPSULE_ALIGN: usize = 64;
/// The marker of the send queue; that of the receive queue is 1.
pub(super) const DRAIN_SEND: u32 = 0;

/// What a work request is; its number is in the lower half of the identifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The SEND of the command in this slot, which waits for it.
    Command,
    /// A SEND whose completion only accounts for requests.
    Account,
    /// The end of the key for the data of the command in this slot, which waits for it.
    Invalidate,
    /// The receive with this number.
    Receive,
    /// A marker behind everything posted before.
    Drain,
}

impl Kind {
    /// Bits of the identifier above its number.
    pub(super) const BITS: u32 = 3;
    /// In the order of their numbers.
    const ALL: [Self; 5] = [Self::Command, Self::Account, Self::Invalidate, Self::Receive, Self::Drain];

    pub(super) fn id(self, number: u32) -> u64 {
        (self as u64) << 32 | u64::from(number)
    }

    #[inline]
    pub(super) fn of(id: u64) -> Option<Self> {
        Self::ALL.get((id >> 32) as usize).copied()
    }
}

const _: () = assert!(Kind::ALL.len() <= 1 << Kind::BITS);

/// Memory for capsules, one per slot, and responses, one per receive.
pub(super) struct Ring<D: Domain> {
    pub(super) memory: SharedMemory,
    registration: D::Registration,
    base: u64,
    capsule_stride: usize,
    responses: usize,
    receives: u32,
}

impl<D: Domain> Ring<D> {
    pub(super) fn new(domain: &Arc<D>, slots: u16, receives: u32, limits: &Limits) -> Result<Self> {
        let capsule_stride = limits.capsule_bytes().next_multiple_of(CAPSULE_ALIGN);
        let responses = capsule_stride * usize::from(slots);
        let len = responses + RESPONSE_STRIDE * receives as usize;
        let memory = SharedMemory::allocate(len).map_err(|error| {
            Error::from(error).doing(format!("allocating {} KiB for capsules", len >> 10))
        })?;
        let extent = memory.extent();
        let registration = domain
            .register(extent.region(), extent.offset(), extent.len(), Access::Local)
            .map_err(|error| refused(&**domain, len, error))?;
        let base = (extent.region().address() + extent.offset()) as u64;
        Ok(Self { memory, registration, base, capsule_stride, responses, receives })
    }

    /// Where the capsule of a slot is.
    pub(super) fn capsule(&self, slot: u16) -> usize {
        self.capsule_stride * usize::from(slot)
    }

    /// Where the response of a receive is.
    pub(super) fn response(&self, index: u32) -> usize {
        self.responses + RESPONSE_STRIDE * index as usize
    }

    pub(super) fn element(&self, offset: usize, length: u32) -> Element {
        Element { address: self.base + offset as u64, length, key: self.registration.local_key() }
    }

    /// The receive with this number, if there is one.
    pub(super) fn receive(&self, index: u32) -> Option<ReceiveRequest> {
        (index < self.receives).then(|| ReceiveRequest {
            id: Kind::Receive.id(index),
            element: self.element(self.response(index), RESPONSE_BYTES as u32),
        })
    }
}

/// A queue pair, connected or being connected.
pub(super) struct Link<P: Provider> {
    pub(super) endpoint: P::Endpoint,
    ring: Option<Ring<P::Domain>>,
    pub(super) memory: Arc<Memory<P::Domain>>,
    /// Where its completions come from and its receives are, if not its own queues.
    member: Option<Member<P::Domain>>,
    /// Entries of the submission queue.
    pub(super) entries: u16,
    /// Commands the controller takes at once.
    pub(super) window: u32,
    /// Room of the send queue, markers apart.
    pub(super) sends: u32,
    /// Receives posted.
    pub(super) receives: u32,
    pub(super) send_elements: u32,
    /// Bytes that fit into a work request itself.
    pub(super) inline: u32,
    /// The last key of each slot's memory window; empty when data is accessed by the keys of regions.
    pub(super) windows: Vec<u32>,
}

impl<P: Provider> Link<P> {
    /// Makes the capsules' memory of a new queue pair and posts all receives, unless they are shared.
    #[expect(clippy::too_many_arguments, reason = "the numbers of one queue pair")]
    pub(super) fn new(
        endpoint: P::Endpoint,
        memory: Arc<Memory<P::Domain>>,
        member: Option<Member<P::Domain>>,
        slots: u16,
        entries: u16,
        sends: u32,
        receives: u32,
        send_elements: u32,
        inline: u32,
        windows: Vec<u32>,
        limits: &Limits,
    ) -> Result<Self> {
        let own = if member.is_some() { 0 } else { receives };
        let ring = Ring::new(memory.domain(), slots, own, limits)?;
        let window = u32::from(slots).min(receives);
        let mut link = Self {
            endpoint,
            ring: Some(ring),
            memory,
            member,
            entries,
            window,
            sends,
            receives,
            send_elements,
            inline,
            windows,
        };
        if own > 0 {
            let requests: Vec<_> = (0..own).filter_map(|index| link.ring().ok()?.receive(index)).collect();
            link.endpoint
                .post_receive(&requests)
                .map_err(|error| Error::from(error).doing(format!("posting {own} RDMA receives")))?;
        }
        Ok(link)
    }

    /// Whether its completion queue is not its own.
    #[inline]
    pub(super) fn is_member(&self) -> bool {
        self.member.is_some()
    }

    /// Whether a program sleeps on its descriptor, and woke for something other than a completion.
    #[inline]
    pub(super) fn is_asleep(&self) -> bool {
        self.member.as_ref().is_some_and(Member::is_asleep)
    }

    /// The identifier of a SEND.
    #[inline]
    pub(super) fn name(&self, id: u64) -> u64 {
        self.member.as_ref().map_or(id, |member| member.name(id))
    }

    /// Takes completions, at most as many as there is room for; with shared queues the responses as well.
    #[inline]
    pub(super) fn poll(
        &mut self,
        completions: &mut [WorkCompletion],
        responses: &mut [[u8; RESPONSE_BYTES]],
    ) -> Result<usize> {
        match &mut self.member {
            None => self
                .endpoint
                .poll_completions(completions)
                .map_err(|error| Error::disconnected(format!("the completion queue failed: {error}"))),
            Some(member) => member.take(completions, responses),
        }
    }

    /// For who is about to sleep: asks for a notification. Whether something may be there all the same.
    pub(super) fn may_have_more(&self, armed: &Cell<bool>) -> bool {
        match &self.member {
            Some(member) => member.may_have_more(),
            None if armed.get() => false,
            // A completion that came before this raises nothing: poll once more.
            None => {
                armed.set(self.endpoint.request_notification().is_ok());
                true
            }
        }
    }

    pub(super) fn ring(&self) -> Result<&Ring<P::Domain>> {
        self.ring.as_ref().ok_or_else(super::closed)
    }

    /// Moves the queue pair to the error state and posts a marker behind everything that is posted on either queue.
    pub(super) fn begin_flush(&mut self) -> io::Result<()> {
        self.endpoint.disconnect()?;
        let Some(ring) = &self.ring else { return Err(io::ErrorKind::NotConnected.into()) };
        let send = SendRequest {
            work: Work::Send,
            id: self.name(Kind::Drain.id(DRAIN_SEND)),
            first: 0,
            count: 1,
            signalled: true,
            inline: false,
        };
        let elements = vec![ring.element(0, RESPONSE_BYTES as u32)];
        // Receives that are shared stay where they are.
        if self.member.is_none() {
            let element = ring.element(ring.responses, RESPONSE_BYTES as u32);
            self.endpoint.post_receive(&[ReceiveRequest { id: Kind::Drain.id(1), element }])?;
        }
        self.endpoint.post_send(&SendBatch { requests: vec![send], elements, binds: Vec::new() })
    }

    /// Destroys the queue pair. After an error the device may still access memory: that of the capsules is leaked.
    pub(super) fn destroy(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(ring) = self.ring.take() else { return Ok(()) };
        let destroyed = self.endpoint.destroy_queue_pair();
        if destroyed.is_err() {
            let Ring { memory, registration, .. } = ring;
            memory.leak();
            std::mem::forget(registration);
            if let Some(member) = self.member.take() {
                member.leak();
            }
        }
        // Only now: nothing more comes for it.
        self.member = None;
        destroyed
    }
}

impl<P: Provider> Drop for Link<P> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "an RDMA queue pair could not be destroyed");
        }
    }
}
