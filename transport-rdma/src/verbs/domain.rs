// UNSAFETY: calls into libibverbs and librdmacm. Every pointer given to them comes from them, or points to a structure that lives
// for the call; each object is destroyed once, by the owner of its handle, after everything made of it. See docs/safety.md, R1
// and R2.

//! Connection manager identifiers, protection domains and registrations.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvmf_core::DmaRegion;

use super::completion::VerbsShared;
use super::{by_errno, by_value};
use crate::provider::{Access, DeviceLimits, Domain, Registration};
use crate::sys::{self, Api};

/// A connection manager identifier on an event channel of its own.
pub(super) struct CmHandle {
    pub(super) api: Arc<Api>,
    pub(super) channel: NonNull<sys::EventChannel>,
    pub(super) id: NonNull<sys::CmId>,
}

// SAFETY: both libraries may be called from any thread; the handle is the only owner of what it points to.
unsafe impl Send for CmHandle {}
// SAFETY: a shared handle gives out nothing but the device's context, which is thread safe.
unsafe impl Sync for CmHandle {}

impl CmHandle {
    pub(super) fn new(api: Arc<Api>) -> io::Result<Self> {
        // SAFETY: no arguments.
        let channel = unsafe { (api.rdma_create_event_channel)() };
        let channel = NonNull::new(channel).ok_or_else(io::Error::last_os_error)?;
        let mut id = ptr::null_mut();
        // SAFETY: the channel was just made; `id` is written within the call.
        let returned =
            unsafe { (api.rdma_create_id)(channel.as_ptr(), &raw mut id, ptr::null_mut(), sys::PS_TCP) };
        let made = by_errno(returned)
            .and_then(|()| NonNull::new(id).ok_or_else(|| io::Error::other("rdma_create_id made nothing")));
        match made {
            Ok(id) => Ok(Self { api, channel, id }),
            Err(error) => {
                // SAFETY: the channel was made above and nothing is on it.
                unsafe { (api.rdma_destroy_event_channel)(channel.as_ptr()) };
                Err(error)
            }
        }
    }

    /// The context of the device the identifier is bound to; `None` while there is none.
    pub(super) fn context(&self) -> Option<NonNull<sys::Context>> {
        // SAFETY: the identifier lives; the library sets the field within calls of its owner only.
        NonNull::new(unsafe { (*self.id.as_ptr()).verbs })
    }

    /// Its local address, with the port taken out.
    fn local_address(&self) -> sys::SockaddrStorage {
        // SAFETY: as in `context`.
        let mut address = unsafe { (*self.id.as_ptr()).src_addr };
        // The port is in bytes 2 and 3 for both address families.
        let mut first = address[0].to_ne_bytes();
        first[2..4].fill(0);
        address[0] = u64::from_ne_bytes(first);
        address
    }
}

impl Drop for CmHandle {
    fn drop(&mut self) {
        // SAFETY: made by rdma_create_id, destroyed only here; its queue pair is gone before (the owner sees to that), and every
        // event was acknowledged when it was taken.
        let returned = unsafe { (self.api.rdma_destroy_id)(self.id.as_ptr()) };
        if let Err(error) = by_errno(returned) {
            tracing::warn!(%error, "an RDMA connection identifier could not be destroyed");
            return;
        }
        // SAFETY: made by rdma_create_event_channel; the only identifier on it is gone.
        unsafe { (self.api.rdma_destroy_event_channel)(self.channel.as_ptr()) };
    }
}

/// A protection domain of a device.
pub struct VerbsDomain {
    /// Bound to an address of the device for as long as the domain lives, so that librdmacm keeps the device open.
    anchor: CmHandle,
    pd: NonNull<sys::Pd>,
    name: String,
    limits: DeviceLimits,
    lost: AtomicBool,
    invalidation_flags: u32,
    /// Registrations that windows may be bound to, by local key.
    bindable: Mutex<HashMap<u32, NonNull<sys::Mr>>>,
}

// SAFETY: protection domains may be used from any thread.
unsafe impl Send for VerbsDomain {}
// SAFETY: registering and making queue pairs are thread safe calls.
unsafe impl Sync for VerbsDomain {}

impl VerbsDomain {
    /// A domain on the device `handle` found.
    pub(super) fn new(handle: &CmHandle) -> io::Result<Self> {
        let api = Arc::clone(&handle.api);
        let not_bound = || io::Error::from_raw_os_error(libc::ENODEV);
        let context = handle.context().ok_or_else(not_bound)?;
        let anchor = CmHandle::new(Arc::clone(&api))?;
        let mut address = handle.local_address();
        // SAFETY: the identifier is new; the address lives for the call.
        by_errno(unsafe { (api.rdma_bind_addr)(anchor.id.as_ptr(), (&raw mut address).cast()) })?;
        if anchor.context() != Some(context) {
            return Err(not_bound());
        }
        let (name, limits) = describe(&api, context)?;
        // SAFETY: the context is open as long as the anchor is bound to it.
        let pd = unsafe { (api.ibv_alloc_pd)(context.as_ptr()) };
        let pd = NonNull::new(pd).ok_or_else(io::Error::last_os_error)?;
        // Soft devices have an interface below them.
        let soft = Path::new("/sys/class/infiniband").join(&name).join("parent").exists();
        Ok(Self {
            anchor,
            pd,
            name,
            limits,
            lost: AtomicBool::new(false),
            invalidation_flags: sys::WC_WITH_INV | if soft { sys::WC_WITH_INV_RXE } else { 0 },
            bindable: Mutex::default(),
        })
    }

    pub(super) fn api(&self) -> &Arc<Api> {
        &self.anchor.api
    }

    pub(super) fn context(&self) -> Option<NonNull<sys::Context>> {
        self.anchor.context()
    }

    pub(super) fn pd(&self) -> NonNull<sys::Pd> {
        self.pd
    }

    /// The flags of a completion by which it says that the peer has invalidated a key.
    pub(super) fn invalidation_flags(&self) -> u32 {
        self.invalidation_flags
    }

    /// What a call has registered; null is what the library says then.
    fn registered(
        self: &Arc<Self>,
        mr: *mut sys::Mr,
        region: &DmaRegion,
        access: Access,
    ) -> io::Result<VerbsRegistration> {
        let mr = NonNull::new(mr).ok_or_else(io::Error::last_os_error)?;
        let registration = VerbsRegistration { mr, region: region.clone(), domain: Arc::clone(self) };
        if access == Access::Windows {
            self.bindable().insert(registration.local_key(), mr);
        }
        Ok(registration)
    }

    /// Registrations that windows may be bound to, by local key. None of them ends while this is held.
    pub(super) fn bindable(&self) -> MutexGuard<'_, HashMap<u32, NonNull<sys::Mr>>> {
        self.bindable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The flags of a registration, for a range that lies in the region.
fn checked(region: &DmaRegion, offset: usize, len: usize, access: Access) -> io::Result<i32> {
    if offset.checked_add(len).is_none_or(|end| end > region.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(match access {
        Access::Local => sys::ACCESS_LOCAL_WRITE,
        Access::Remote => sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_WRITE | sys::ACCESS_REMOTE_READ,
        Access::Windows => sys::ACCESS_LOCAL_WRITE | sys::ACCESS_MW_BIND,
    })
}

/// Name and limits of a device.
fn describe(api: &Api, context: NonNull<sys::Context>) -> io::Result<(String, DeviceLimits)> {
    // SAFETY: all fields are numbers.
    let mut attr: sys::DeviceAttr = unsafe { std::mem::zeroed() };
    // SAFETY: the context is open; the structure is written within the call.
    by_value(unsafe { (api.ibv_query_device)(context.as_ptr(), &raw mut attr) })?;
    // SAFETY: the context is open.
    let device = unsafe { (*context.as_ptr()).device };
    // SAFETY: the device belongs to the open context.
    let name = unsafe { (api.ibv_get_device_name)(device) };
    let name = if name.is_null() {
        "?".to_owned()
    } else {
        // SAFETY: a string that ends in NUL and lives as long as the device.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    };
    let positive = |n: i32| u32::try_from(n).unwrap_or(0);
    let limits = DeviceLimits {
        max_registration: attr.max_mr_size,
        max_work_requests: positive(attr.max_qp_wr),
        max_elements: positive(attr.max_sge),
        max_completions: positive(attr.max_cqe),
        max_reads: u8::try_from(attr.max_qp_rd_atom.clamp(0, 255)).unwrap_or(0),
        max_shared_receives: if attr.max_srq > 0 { positive(attr.max_srq_wr) } else { 0 },
        windows: attr.device_cap_flags & sys::DEVICE_MEM_WINDOW_TYPE_2B != 0,
    };
    Ok((name, limits))
}

impl Drop for VerbsDomain {
    fn drop(&mut self) {
        // SAFETY: made by ibv_alloc_pd; registrations and queue pairs hold an Arc of the domain, so all of them are gone.
        let returned = unsafe { (self.anchor.api.ibv_dealloc_pd)(self.pd.as_ptr()) };
        if let Err(error) = by_value(returned) {
            tracing::warn!(%error, device = self.name, "a protection domain could not be freed");
        }
    }
}

impl Domain for VerbsDomain {
    type Registration = VerbsRegistration;
    type Shared = VerbsShared;

    fn device(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> DeviceLimits {
        self.limits
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    fn register(
        self: &Arc<Self>,
        region: &DmaRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<VerbsRegistration> {
        let flags = checked(region, offset, len, access)?;
        let address = ptr::with_exposed_provenance_mut(region.address() + offset);
        // SAFETY: the range lies in the region, which the registration keeps mapped until it has ended.
        let mr = unsafe { (self.api().ibv_reg_mr)(self.pd.as_ptr(), address, len, flags) };
        self.registered(mr, region, access)
    }

    fn register_dma_buf(
        self: &Arc<Self>,
        region: &DmaRegion,
        offset: usize,
        len: usize,
        access: Access,
    ) -> io::Result<VerbsRegistration> {
        let flags = checked(region, offset, len, access)?;
        let Some((file, start)) = region.dma_buf() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let Some(register) = self.api().dma_buf.0 else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{} has no such function", sys::VERBS_LIBRARY),
            ));
        };
        // Named by the region's addresses, as all memory is; both are in whole pages.
        let (within, address) = (start + offset as u64, (region.address() + offset) as u64);
        // SAFETY: the file is open for the call, and the device keeps the dma-buf itself after that. The range lies in the region, whose
        // addresses are not given to others before the registration has ended.
        let mr = unsafe { register(self.pd.as_ptr(), within, len, address, file.as_raw_fd(), flags) };
        self.registered(mr, region, access)
    }

    fn share(self: &Arc<Self>, completions: u32, receives: u32) -> io::Result<VerbsShared> {
        VerbsShared::new(self, completions, receives)
    }
}

/// Registered memory.
pub struct VerbsRegistration {
    mr: NonNull<sys::Mr>,
    region: DmaRegion,
    domain: Arc<VerbsDomain>,
}

// SAFETY: a registration may be ended from any thread; its keys do not change.
unsafe impl Send for VerbsRegistration {}
// SAFETY: as above.
unsafe impl Sync for VerbsRegistration {}

impl Registration for VerbsRegistration {
    fn local_key(&self) -> u32 {
        // SAFETY: the registration lives; the field was set when it was made.
        unsafe { (*self.mr.as_ptr()).lkey }
    }

    fn remote_key(&self) -> u32 {
        // SAFETY: as in `local_key`.
        unsafe { (*self.mr.as_ptr()).rkey }
    }
}

impl Drop for VerbsRegistration {
    fn drop(&mut self) {
        self.domain.bindable().remove(&self.local_key());
        // SAFETY: made by ibv_reg_mr or ibv_reg_dmabuf_mr, ended only here.
        let returned = unsafe { (self.domain.api().ibv_dereg_mr)(self.mr.as_ptr()) };
        if let Err(error) = by_value(returned) {
            tracing::error!(%error, region = ?self.region, "memory could not be deregistered; it is given up");
            self.region.leak();
        }
    }
}
