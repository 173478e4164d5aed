// UNSAFETY: calls into libibverbs. Every pointer given to it comes from it, or points to a structure that lives for the call; each
// object is destroyed once, by the owner of its handle, after everything made of it. The functions of the data path are those of the
// context's table, as in the inline functions of verbs.h. See docs/safety.md, R1 and R2.

//! Completion queues, of one queue pair or shared by several together with a receive queue.

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::by_value;
use super::domain::VerbsDomain;
use super::endpoint::sge;
use crate::provider::{POLL_BATCH, ReceiveRequest, SharedQueues, WorkCompletion, WorkStatus};
use crate::sys;

/// Completion queue events acknowledged together: each call takes a lock.
const ACK_BATCH: u32 = 64;

/// A completion queue with an event channel of its own.
pub(super) struct CompletionQueue {
    domain: Arc<VerbsDomain>,
    channel: NonNull<sys::CompChannel>,
    cq: NonNull<sys::Cq>,
    /// Events that were taken and not acknowledged yet.
    unacknowledged: u32,
    poll_cq: sys::PollCq,
    req_notify_cq: sys::ReqNotifyCq,
    invalidation_flags: u32,
    completions: [sys::Wc; POLL_BATCH],
}

// SAFETY: the library may be called from any thread, and the queue owns its objects.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    pub(super) fn new(domain: &Arc<VerbsDomain>, entries: u32) -> io::Result<Self> {
        let api = domain.api();
        let gone = || io::Error::from_raw_os_error(libc::ENODEV);
        let context = domain.context().ok_or_else(gone)?.as_ptr();
        // SAFETY: the context is open as long as the domain lives; its table does not change.
        let ops = unsafe { &(*context).ops };
        let (Some(poll_cq), Some(req_notify_cq)) = (ops.poll_cq, ops.req_notify_cq) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // SAFETY: the context is open.
        let channel = unsafe { (api.ibv_create_comp_channel)(context) };
        let channel = NonNull::new(channel).ok_or_else(io::Error::last_os_error)?;
        let entries = libc::c_int::try_from(entries).unwrap_or(libc::c_int::MAX);
        // SAFETY: context and channel are open; vector 0 always exists.
        let cq = unsafe { (api.ibv_create_cq)(context, entries, ptr::null_mut(), channel.as_ptr(), 0) };
        let Some(cq) = NonNull::new(cq) else {
            let error = io::Error::last_os_error();
            // SAFETY: made above, used by nothing.
            let _ = unsafe { (api.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        Ok(Self {
            invalidation_flags: domain.invalidation_flags(),
            domain: Arc::clone(domain),
            channel,
            cq,
            unacknowledged: 0,
            poll_cq,
            req_notify_cq,
            completions: [sys::Wc::default(); POLL_BATCH],
        })
    }

    pub(super) fn handle(&self) -> NonNull<sys::Cq> {
        self.cq
    }

    /// The descriptor of the event channel.
    pub(super) fn fd(&self) -> RawFd {
        // SAFETY: the channel lives.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    pub(super) fn poll(&mut self, completions: &mut [WorkCompletion]) -> io::Result<usize> {
        let room = completions.len().min(POLL_BATCH);
        // SAFETY: the completion queue lives; there is room for that many completions.
        let found =
            unsafe { (self.poll_cq)(self.cq.as_ptr(), room as libc::c_int, self.completions.as_mut_ptr()) };
        let found =
            usize::try_from(found).map_err(|_| io::Error::other("the completion queue failed"))?.min(room);
        for (to, wc) in completions.iter_mut().zip(&self.completions[..found]) {
            let is_receive = wc.opcode & sys::WC_RECV != 0;
            let invalidates = is_receive && wc.wc_flags & self.invalidation_flags != 0;
            *to = WorkCompletion {
                id: wc.wr_id,
                status: WorkStatus(wc.status),
                vendor: wc.vendor_err,
                is_receive,
                length: wc.byte_len,
                invalidated: invalidates.then_some(wc.invalidated_rkey),
                queue_pair: wc.qp_num,
            };
        }
        Ok(found)
    }

    pub(super) fn request_notification(&self) -> io::Result<()> {
        // SAFETY: the completion queue lives.
        by_value(unsafe { (self.req_notify_cq)(self.cq.as_ptr(), 0) })
    }

    pub(super) fn take_notification(&mut self) -> bool {
        let api = self.domain.api();
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        // A queue that was armed once raises one event.
        // SAFETY: the channel lives and does not block; the pointers are written within the call.
        if unsafe { (api.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut cq, &raw mut context) } != 0 {
            return false;
        }
        self.unacknowledged += 1;
        if self.unacknowledged == ACK_BATCH {
            self.unacknowledged = 0;
            // SAFETY: as many events as were taken; the channel has one completion queue.
            unsafe { (api.ibv_ack_cq_events)(self.cq.as_ptr(), ACK_BATCH) };
        }
        true
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let api = self.domain.api();
        if self.unacknowledged > 0 {
            // SAFETY: as many events as were taken and not acknowledged; destroying waits for that.
            unsafe { (api.ibv_ack_cq_events)(self.cq.as_ptr(), self.unacknowledged) };
        }
        // SAFETY: made in `new`, destroyed only here; its queue pairs are gone, because each of them owns it or a share of it.
        let cq = by_value(unsafe { (api.ibv_destroy_cq)(self.cq.as_ptr()) });
        // SAFETY: its only completion queue is gone.
        let channel = by_value(unsafe { (api.ibv_destroy_comp_channel)(self.channel.as_ptr()) });
        if let Err(error) = cq.and(channel) {
            tracing::warn!(%error, "a completion queue could not be destroyed");
        }
    }
}

/// A completion queue and a receive queue of several queue pairs.
pub struct VerbsShared {
    srq: NonNull<sys::Srq>,
    post_srq_recv: sys::PostSrqRecv,
    domain: Arc<VerbsDomain>,
    queue: Mutex<CompletionQueue>,
}

// SAFETY: the library may be called from any thread, and the completion queue is behind a lock.
unsafe impl Send for VerbsShared {}
// SAFETY: posting to a shared receive queue is thread safe; the rest is behind a lock.
unsafe impl Sync for VerbsShared {}

impl VerbsShared {
    pub(super) fn new(domain: &Arc<VerbsDomain>, completions: u32, receives: u32) -> io::Result<Self> {
        let queue = CompletionQueue::new(domain, completions)?;
        let gone = || io::Error::from_raw_os_error(libc::ENODEV);
        let context = domain.context().ok_or_else(gone)?.as_ptr();
        // SAFETY: the context is open as long as the domain lives; its table does not change.
        let post_srq_recv = unsafe { (*context).ops.post_srq_recv };
        let post_srq_recv = post_srq_recv.ok_or(io::ErrorKind::Unsupported)?;
        let mut attr =
            sys::SrqInitAttr { srq_context: ptr::null_mut(), max_wr: receives, max_sge: 1, srq_limit: 0 };
        // SAFETY: the domain lives; the structure lives for the call.
        let srq = unsafe { (domain.api().ibv_create_srq)(domain.pd().as_ptr(), &raw mut attr) };
        let srq = NonNull::new(srq).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { srq, post_srq_recv, domain: Arc::clone(domain), queue: Mutex::new(queue) })
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, CompletionQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn receive_queue(&self) -> NonNull<sys::Srq> {
        self.srq
    }
}

impl SharedQueues for VerbsShared {
    fn post_receive(&self, requests: &[ReceiveRequest]) -> io::Result<()> {
        post_receives(requests, &mut Vec::new(), &mut Vec::new(), |first, bad| {
            // SAFETY: the queue lives; the list is one of `post_receives`.
            unsafe { (self.post_srq_recv)(self.srq.as_ptr(), first, bad) }
        })
    }

    fn poll_completions(&self, completions: &mut [WorkCompletion]) -> io::Result<usize> {
        self.queue().poll(completions)
    }

    fn request_notification(&self) -> io::Result<()> {
        self.queue().request_notification()
    }

    fn take_notifications(&self) -> bool {
        self.queue().take_notification()
    }
}

impl Drop for VerbsShared {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed only here; its queue pairs are gone, because each of them owns a share of it.
        let returned = unsafe { (self.domain.api().ibv_destroy_srq)(self.srq.as_ptr()) };
        if let Err(error) = by_value(returned) {
            tracing::warn!(%error, "a shared receive queue could not be destroyed");
        }
    }
}

/// Posts receives with a function that takes a list: of requests and elements in vectors that do not move during the call, which
/// copies them. The memory the elements name is checked by the device against its registrations.
pub(super) fn post_receives(
    requests: &[ReceiveRequest],
    elements: &mut Vec<sys::Sge>,
    receives: &mut Vec<sys::RecvWr>,
    post: impl FnOnce(*mut sys::RecvWr, *mut *mut sys::RecvWr) -> libc::c_int,
) -> io::Result<()> {
    if requests.is_empty() {
        return Ok(());
    }
    elements.clear();
    elements.extend(requests.iter().map(|request| sge(&request.element)));
    let first_element = elements.as_mut_ptr();
    receives.clear();
    for (index, request) in requests.iter().enumerate() {
        receives.push(sys::RecvWr {
            wr_id: request.id,
            next: ptr::null_mut(),
            sg_list: first_element.wrapping_add(index),
            num_sge: 1,
        });
    }
    let first = receives.as_mut_ptr();
    for index in 1..receives.len() {
        receives[index - 1].next = first.wrapping_add(index);
    }
    let mut bad = ptr::null_mut();
    by_value(post(first, &raw mut bad))
}
