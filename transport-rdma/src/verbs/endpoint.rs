// UNSAFETY: calls into libibverbs and librdmacm. Every pointer given to them comes from them, or points to a structure that lives
// for the call; each object is destroyed once, by the owner of its handle, after everything made of it. The functions of the data
// path are those of the context's table, as in the inline functions of verbs.h. See docs/safety.md, R1 and R2.

//! One end of a connection: identifier, event channels and queue pair.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::event::epoll;

use super::completion::{CompletionQueue, VerbsShared, post_receives};
use super::domain::{CmHandle, VerbsDomain};
use super::{Domains, by_errno, by_value, sockaddr};
use crate::provider::{
    Bind, CmEvent, ConnectRequest, Domain, Element, Endpoint, QueuePairSetup, ReceiveRequest, SendBatch,
    Work, WorkCompletion,
};
use crate::requirements::port_trouble;
use crate::sys::{self, Api};

/// Private data of an event that is worth keeping, bytes.
const MAX_PRIVATE_DATA: usize = 256;

const NO_BIND: sys::BindMw =
    sys::BindMw { mw: ptr::null_mut(), rkey: 0, mr: ptr::null_mut(), addr: 0, length: 0, access: 0 };

/// Where completions go.
enum Completions {
    Own(Box<CompletionQueue>),
    /// Receives come from there, too.
    Shared(#[expect(dead_code, reason = "kept for as long as the queue pair uses it")] Arc<VerbsShared>),
}

/// The queue pair and what belongs to it.
struct Queues {
    domain: Arc<VerbsDomain>,
    completions: Completions,
    qp: NonNull<sys::Qp>,
    post_send: sys::PostSend,
    post_recv: sys::PostRecv,
    /// Memory windows that were only ever bound on this queue pair.
    windows: Vec<NonNull<sys::Mw>>,
}

/// One end of a connection.
pub struct VerbsEndpoint {
    /// Dropped, and thus destroyed, before the identifier.
    queues: Option<Queues>,
    handle: CmHandle,
    domains: Arc<Domains>,
    /// Watches both event channels.
    epoll: OwnedFd,
    elements: Vec<sys::Sge>,
    sends: Vec<sys::SendWr>,
    receives: Vec<sys::RecvWr>,
}

// SAFETY: both libraries may be called from any thread, and the endpoint owns its objects. The vectors hold pointers only within
// calls.
unsafe impl Send for VerbsEndpoint {}

impl VerbsEndpoint {
    pub(super) fn new(api: Arc<Api>, domains: Arc<Domains>) -> io::Result<Self> {
        let handle = CmHandle::new(api)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: the channel lives.
        let fd = unsafe { (*handle.channel.as_ptr()).fd };
        watch(&epoll, fd)?;
        Ok(Self {
            queues: None,
            handle,
            domains,
            epoll,
            elements: Vec::new(),
            sends: Vec::new(),
            receives: Vec::new(),
        })
    }

    fn api(&self) -> &Api {
        &self.handle.api
    }

    fn set_option(&self, option: libc::c_int, mut value: u8) -> io::Result<()> {
        let id = self.handle.id.as_ptr();
        // SAFETY: the option's value is one byte, which lives for the call.
        by_errno(unsafe {
            (self.api().rdma_set_option)(id, sys::OPTION_ID, option, (&raw mut value).cast(), 1)
        })
    }

    /// The completion queue that is this queue pair's alone.
    fn own_queue(&mut self) -> io::Result<&mut CompletionQueue> {
        match self.queues.as_mut().map(|queues| &mut queues.completions) {
            Some(Completions::Own(queue)) => Ok(queue),
            Some(Completions::Shared(_)) => Err(io::ErrorKind::InvalidInput.into()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Makes a library's descriptor non-blocking and watches it.
fn watch(epoll: &OwnedFd, fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor belongs to an event channel that the caller holds.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    epoll::add(epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    Ok(())
}

/// Milliseconds for the library; at least one.
fn millis(timeout: Duration) -> libc::c_int {
    libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX).max(1)
}

impl Queues {
    fn new(
        handle: &CmHandle,
        epoll: &OwnedFd,
        domain: &Arc<VerbsDomain>,
        setup: &QueuePairSetup,
        shared: Option<&Arc<VerbsShared>>,
    ) -> io::Result<(Self, u32)> {
        let gone = || io::Error::from_raw_os_error(libc::ENODEV);
        let context = domain.context().ok_or_else(gone)?.as_ptr();
        // SAFETY: the context is open as long as the domain lives; its table does not change.
        let ops = unsafe { &(*context).ops };
        let (Some(post_send), Some(post_recv)) = (ops.post_send, ops.post_recv) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let (completions, cq, srq, fd) = match shared {
            Some(shared) => {
                let queue = shared.queue();
                let completions = Completions::Shared(Arc::clone(shared));
                (completions, queue.handle(), shared.receive_queue().as_ptr(), queue.fd())
            }
            None => {
                let queue = CompletionQueue::new(domain, setup.sends.saturating_add(setup.receives))?;
                let (cq, fd) = (queue.handle(), queue.fd());
                (Completions::Own(Box::new(queue)), cq, ptr::null_mut(), fd)
            }
        };
        let (qp, inline) = Self::create_qp(handle, domain, cq, srq, setup)?;
        let domain = Arc::clone(domain);
        let queues = Self { domain, completions, qp, post_send, post_recv, windows: Vec::new() };
        match watch(epoll, fd) {
            Ok(()) => Ok((queues, inline)),
            Err(error) => queues.destroy(handle).and(Err(error)),
        }
    }

    fn create_qp(
        handle: &CmHandle,
        domain: &VerbsDomain,
        cq: NonNull<sys::Cq>,
        srq: *mut sys::Srq,
        setup: &QueuePairSetup,
    ) -> io::Result<(NonNull<sys::Qp>, u32)> {
        let mut inline = setup.inline;
        loop {
            let mut attr = sys::QpInitAttr {
                qp_context: ptr::null_mut(),
                send_cq: cq.as_ptr(),
                recv_cq: cq.as_ptr(),
                srq,
                cap: sys::QpCap {
                    max_send_wr: setup.sends,
                    max_recv_wr: setup.receives,
                    max_send_sge: setup.send_elements,
                    max_recv_sge: 1,
                    max_inline_data: inline,
                },
                qp_type: sys::QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: identifier, domain and completion queue are of one device; the structure lives for the call.
            let returned = unsafe {
                (handle.api.rdma_create_qp)(handle.id.as_ptr(), domain.pd().as_ptr(), &raw mut attr)
            };
            match by_errno(returned) {
                Ok(()) => {
                    // SAFETY: the identifier lives; the call has set the field.
                    let qp = NonNull::new(unsafe { (*handle.id.as_ptr()).qp })
                        .ok_or_else(|| io::Error::other("rdma_create_qp made nothing"))?;
                    return Ok((qp, attr.cap.max_inline_data));
                }
                // A device that takes no inline data, or not as much.
                Err(_) if inline > 0 => inline = 0,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes memory windows of type 2.
    fn make_windows(&mut self, count: u16) -> io::Result<Vec<u32>> {
        let gone = || io::Error::from_raw_os_error(libc::ENODEV);
        let context = self.domain.context().ok_or_else(gone)?.as_ptr();
        // SAFETY: as in `new`.
        let alloc = unsafe { (*context).ops.alloc_mw }.ok_or(io::ErrorKind::Unsupported)?;
        let mut keys = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            // SAFETY: the domain lives as long as the queues.
            let window = unsafe { alloc(self.domain.pd().as_ptr(), sys::MW_TYPE_2) };
            let window = NonNull::new(window).ok_or_else(io::Error::last_os_error)?;
            self.windows.push(window);
            // SAFETY: just made; the field was set when it was.
            keys.push(unsafe { (*window.as_ptr()).rkey });
        }
        Ok(keys)
    }

    /// A request to bind a window, as the library takes it.
    fn bind(
        &self,
        bind: &Bind,
        bindable: Option<&HashMap<u32, NonNull<sys::Mr>>>,
    ) -> io::Result<sys::BindMw> {
        let window = self.windows.get(usize::from(bind.window)).ok_or(io::ErrorKind::InvalidInput)?;
        let mr =
            bindable.and_then(|known| known.get(&bind.element.key)).ok_or(io::ErrorKind::InvalidInput)?;
        let access = if bind.writable { sys::ACCESS_REMOTE_WRITE } else { sys::ACCESS_REMOTE_READ };
        Ok(sys::BindMw {
            mw: window.as_ptr(),
            rkey: bind.key,
            mr: mr.as_ptr(),
            addr: bind.element.address,
            length: u64::from(bind.element.length),
            access: access as libc::c_uint,
        })
    }

    /// Ends the windows of a queue pair that is about to be destroyed.
    fn free_windows(&mut self) {
        let Some(context) = self.domain.context() else { return };
        // SAFETY: as in `new`.
        let Some(dealloc) = (unsafe { (*context.as_ptr()).ops.dealloc_mw }) else { return };
        for window in self.windows.drain(..) {
            // SAFETY: made by the function's counterpart, freed only here; nothing is posted that names it.
            if let Err(error) = by_value(unsafe { dealloc(window.as_ptr()) }) {
                tracing::warn!(%error, "a memory window could not be freed");
            }
        }
    }

    /// Destroys the queue pair, then what is left. After an error the device may still be using it all, and it is kept.
    fn destroy(mut self, handle: &CmHandle) -> io::Result<()> {
        let api = &*handle.api;
        // The queue pair is in the error state: nothing is accessed through them any more. Soft-RoCE does not end one they are bound to.
        self.free_windows();
        // SAFETY: made by rdma_create_qp on this identifier, destroyed only here.
        if let Err(error) = by_value(unsafe { (api.ibv_destroy_qp)(self.qp.as_ptr()) }) {
            // Both must outlive the queue pair.
            std::mem::forget(self.domain);
            std::mem::forget(self.completions);
            return Err(error);
        }
        // SAFETY: the identifier lives; it must not name the queue pair any more.
        unsafe { (*handle.id.as_ptr()).qp = ptr::null_mut() };
        Ok(())
    }
}

impl Endpoint for VerbsEndpoint {
    type Domain = VerbsDomain;

    fn set_type_of_service(&mut self, tos: u8) -> io::Result<()> {
        self.set_option(sys::OPTION_ID_TOS, tos)
    }

    fn set_ack_timeout(&mut self, exponent: u8) -> io::Result<()> {
        self.set_option(sys::OPTION_ID_ACK_TIMEOUT, exponent.min(31))
    }

    fn resolve_address(
        &mut self,
        source: Option<SocketAddr>,
        destination: SocketAddr,
        timeout: Duration,
    ) -> io::Result<()> {
        let mut source = source.map(sockaddr);
        let mut destination = sockaddr(destination);
        let source = source.as_mut().map_or(ptr::null_mut(), |address| address.as_mut_ptr().cast());
        let id = self.handle.id.as_ptr();
        // SAFETY: the addresses live for the call, which copies them.
        by_errno(unsafe {
            (self.api().rdma_resolve_addr)(id, source, destination.as_mut_ptr().cast(), millis(timeout))
        })
    }

    fn resolve_route(&mut self, timeout: Duration) -> io::Result<()> {
        // SAFETY: the identifier lives.
        by_errno(unsafe { (self.api().rdma_resolve_route)(self.handle.id.as_ptr(), millis(timeout)) })
    }

    fn domain(&mut self) -> io::Result<Arc<VerbsDomain>> {
        let context = self.handle.context().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.retain(|_, domain| domain.strong_count() > 0);
        let key = context.as_ptr().addr();
        match domains.get(&key).and_then(std::sync::Weak::upgrade) {
            Some(domain) if !domain.is_lost() => Ok(domain),
            _ => {
                let domain = Arc::new(VerbsDomain::new(&self.handle)?);
                domains.insert(key, Arc::downgrade(&domain));
                Ok(domain)
            }
        }
    }

    fn create_queue_pair(
        &mut self,
        domain: &Arc<VerbsDomain>,
        setup: &QueuePairSetup,
        shared: Option<&Arc<VerbsShared>>,
    ) -> io::Result<u32> {
        if self.queues.is_some() || self.handle.context() != domain.context() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (queues, inline) = Queues::new(&self.handle, &self.epoll, domain, setup, shared)?;
        self.queues = Some(queues);
        self.sends.reserve(setup.sends as usize);
        self.receives.reserve(setup.receives as usize);
        Ok(inline)
    }

    fn make_windows(&mut self, count: u16) -> io::Result<Vec<u32>> {
        self.queues.as_mut().ok_or(io::ErrorKind::NotConnected)?.make_windows(count)
    }

    fn queue_pair_number(&self) -> u32 {
        // SAFETY: the queue pair lives; its number does not change.
        self.queues.as_ref().map_or(0, |queues| unsafe { (*queues.qp.as_ptr()).qp_num })
    }

    fn connect(&mut self, request: &ConnectRequest) -> io::Result<()> {
        let mut param = sys::ConnParam {
            private_data: request.private_data.as_ptr().cast(),
            private_data_len: request.private_data.len() as u8,
            responder_resources: request.responder_resources,
            initiator_depth: 0,
            flow_control: 1,
            retry_count: request.retry_count,
            rnr_retry_count: request.rnr_retry_count,
            srq: 0,
            qp_num: 0,
        };
        // SAFETY: the structure and the private data live for the call, which copies them.
        by_errno(unsafe { (self.api().rdma_connect)(self.handle.id.as_ptr(), &raw mut param) })
    }

    fn next_event(&mut self) -> io::Result<Option<CmEvent>> {
        let mut event = ptr::null_mut();
        // SAFETY: the channel lives; the pointer is written within the call.
        let returned =
            unsafe { (self.api().rdma_get_cm_event)(self.handle.channel.as_ptr(), &raw mut event) };
        if let Err(error) = by_errno(returned) {
            let none = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if none { Ok(None) } else { Err(error) };
        }
        let Some(event) = NonNull::new(event) else { return Ok(None) };
        // SAFETY: the event is ours until it is acknowledged below.
        let translated = translate(unsafe { event.as_ref() });
        // SAFETY: taken above, acknowledged once; nothing points into it any more.
        by_errno(unsafe { (self.api().rdma_ack_cm_event)(event.as_ptr()) })?;
        Ok(Some(translated))
    }

    fn disconnect(&mut self) -> io::Result<()> {
        // SAFETY: the identifier lives. The call moves the queue pair to the error state, then tells the peer.
        let told = by_errno(unsafe { (self.api().rdma_disconnect)(self.handle.id.as_ptr()) });
        let Some(queues) = &self.queues else { return told };
        // Without a connection the call may have failed before it came to that; twice does no harm.
        let mut attr = sys::QpAttr { qp_state: sys::QPS_ERR, rest: [0; 35] };
        // SAFETY: the queue pair lives; the structure lives for the call.
        by_value(unsafe { (self.api().ibv_modify_qp)(queues.qp.as_ptr(), &raw mut attr, sys::QP_STATE) })
    }

    fn destroy_queue_pair(&mut self) -> io::Result<()> {
        match self.queues.take() {
            Some(queues) => queues.destroy(&self.handle),
            None => Ok(()),
        }
    }

    fn post_send(&mut self, batch: &SendBatch) -> io::Result<()> {
        let Some(queues) = &self.queues else { return Err(io::ErrorKind::NotConnected.into()) };
        self.elements.clear();
        self.elements.extend(batch.elements.iter().map(sge));
        self.sends.clear();
        // Held until everything is posted: no registration that a window is bound to ends meanwhile.
        let bindable = (!batch.binds.is_empty()).then(|| queues.domain.bindable());
        for request in &batch.requests {
            let mut work = sys::SendWr {
                wr_id: request.id,
                next: ptr::null_mut(),
                sg_list: ptr::null_mut(),
                num_sge: 0,
                opcode: sys::WR_SEND,
                send_flags: if request.signalled { sys::SEND_SIGNALED } else { 0 },
                invalidate_rkey: 0,
                remote: [0; 4],
                xrc: 0,
                bind: NO_BIND,
            };
            match request.work {
                Work::Send => {
                    let (first, count) = (request.first as usize, request.count as usize);
                    let elements = self.elements.get_mut(first..first + count);
                    let elements = elements.ok_or(io::ErrorKind::InvalidInput)?;
                    work.sg_list = elements.as_mut_ptr();
                    work.num_sge = request.count as libc::c_int;
                    if request.inline {
                        work.send_flags |= sys::SEND_INLINE;
                    }
                }
                Work::Bind => {
                    let bind = batch.binds.get(request.first as usize).ok_or(io::ErrorKind::InvalidInput)?;
                    work.opcode = sys::WR_BIND_MW;
                    work.bind = queues.bind(bind, bindable.as_deref())?;
                }
                Work::Invalidate => {
                    work.opcode = sys::WR_LOCAL_INV;
                    work.invalidate_rkey = request.first;
                }
            }
            self.sends.push(work);
        }
        if self.sends.is_empty() {
            return Ok(());
        }
        let first = self.sends.as_mut_ptr();
        for index in 1..self.sends.len() {
            self.sends[index - 1].next = first.wrapping_add(index);
        }
        let mut bad = ptr::null_mut();
        // SAFETY: a list of requests and elements in vectors that do not move during the call, which copies them. The memory the
        // elements name is checked by the device against its registrations.
        by_value(unsafe { (queues.post_send)(queues.qp.as_ptr(), first, &raw mut bad) })?;
        for bind in &batch.binds {
            if let Some(window) = queues.windows.get(usize::from(bind.window)) {
                // SAFETY: the window lives; only this thread uses it. Its key is the user's to keep up to date (ibv_bind_mw(3)).
                unsafe { (*window.as_ptr()).rkey = bind.key };
            }
        }
        Ok(())
    }

    fn post_receive(&mut self, requests: &[ReceiveRequest]) -> io::Result<()> {
        let Some(queues) = &self.queues else { return Err(io::ErrorKind::NotConnected.into()) };
        if matches!(queues.completions, Completions::Shared(_)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        post_receives(requests, &mut self.elements, &mut self.receives, |first, bad| {
            // SAFETY: the queue pair lives; the list is one of `post_receives`.
            unsafe { (queues.post_recv)(queues.qp.as_ptr(), first, bad) }
        })
    }

    fn poll_completions(&mut self, completions: &mut [WorkCompletion]) -> io::Result<usize> {
        self.own_queue()?.poll(completions)
    }

    fn request_notification(&self) -> io::Result<()> {
        match &self.queues.as_ref().ok_or(io::ErrorKind::NotConnected)?.completions {
            Completions::Own(queue) => queue.request_notification(),
            Completions::Shared(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn take_notifications(&mut self) -> bool {
        self.own_queue().is_ok_and(CompletionQueue::take_notification)
    }

    fn trouble(&self) -> Option<String> {
        let device = self.queues.as_ref()?.domain.device();
        // SAFETY: the identifier lives; the library sets the field within calls of its owner only.
        let port = unsafe { (*self.handle.id.as_ptr()).port_num };
        port_trouble(Path::new("/"), device, port)
    }

    fn event_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

pub(super) fn sge(element: &Element) -> sys::Sge {
    sys::Sge { addr: element.address, length: element.length, lkey: element.key }
}

fn translate(event: &sys::CmEvent) -> CmEvent {
    let private_data = || {
        let len = usize::from(event.conn.private_data_len).min(MAX_PRIVATE_DATA);
        if event.conn.private_data.is_null() || len == 0 {
            return Vec::new();
        }
        // SAFETY: the library says that so many bytes are there, in memory that belongs to the event.
        unsafe { std::slice::from_raw_parts(event.conn.private_data.cast::<u8>(), len) }.to_vec()
    };
    // `enum rdma_cm_event_type`.
    match event.event {
        0 => CmEvent::AddressResolved,
        1 => CmEvent::AddressError(event.status),
        2 => CmEvent::RouteResolved,
        3 => CmEvent::RouteError(event.status),
        6 => CmEvent::ConnectError(event.status),
        7 => CmEvent::Unreachable(event.status),
        8 => CmEvent::Rejected { reason: event.status, private_data: private_data() },
        9 => CmEvent::Established { private_data: private_data() },
        10 => CmEvent::Disconnected,
        11 => CmEvent::DeviceRemoved,
        14 => CmEvent::AddressChanged,
        15 => CmEvent::TimeWaitExit,
        other => CmEvent::Other(other),
    }
}

impl Drop for VerbsEndpoint {
    fn drop(&mut self) {
        if let Err(error) = self.destroy_queue_pair() {
            tracing::error!(%error, "an RDMA queue pair could not be destroyed");
        }
    }
}
