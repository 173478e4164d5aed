// UNSAFETY: declarations of foreign functions and the structures they take, and finding the functions at run time. Nothing here
// is called but dlopen and dlsym; the layouts are asserted below. See docs/safety.md, R1.

//! The parts of the C interface of libibverbs and librdmacm that NVMe/RDMA needs.
//!
//! The libraries are opened at run time ([`Api::load`]), so that building needs none of them and a program starts where they are
//! missing. Names, layouts and constants are those of rdma-core's `infiniband/verbs.h` and `rdma/rdma_cma.h`, an
//! interface that is stable since version 1.1 (symbol versions IBVERBS_1.1, RDMACM_1.0).

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};

#[cfg(not(feature = "rdma-sys"))]
use libloading::os::unix::{Library, Symbol};

#[cfg(feature = "rdma-sys")]
mod linked;

/// libibverbs as the dynamic loader knows it.
pub(crate) const VERBS_LIBRARY: &str = "libibverbs.so.1";
/// librdmacm as the dynamic loader knows it.
pub(crate) const CM_LIBRARY: &str = "librdmacm.so.1";

/// Declares a structure and asserts its size and where its fields are.
macro_rules! layout {
    ($name:ident, $size:literal, { $($field:ident @ $offset:literal),* $(,)? }) => {
        const _: () = assert!(size_of::<$name>() == $size);
        $(const _: () = assert!(offset_of!($name, $field) == $offset);)*
    };
}

/// Something only the libraries look into.
#[repr(C)]
pub(crate) struct Opaque {
    _private: [u8; 0],
}

pub(crate) type PollCq = unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int;
pub(crate) type ReqNotifyCq = unsafe extern "C" fn(*mut Cq, c_int) -> c_int;
pub(crate) type PostSend = unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int;
pub(crate) type PostRecv = unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int;
pub(crate) type PostSrqRecv = unsafe extern "C" fn(*mut Srq, *mut RecvWr, *mut *mut RecvWr) -> c_int;
pub(crate) type AllocMw = unsafe extern "C" fn(*mut Pd, c_int) -> *mut Mw;
/// Since version 1.12 of the interface.
pub(crate) type RegDmaBufMr = unsafe extern "C" fn(*mut Pd, u64, usize, u64, c_int, c_int) -> *mut Mr;
pub(crate) type DeallocMw = unsafe extern "C" fn(*mut Mw) -> c_int;

/// `struct ibv_context_ops`: what verbs.h calls through in its inline functions.
#[repr(C)]
pub(crate) struct ContextOps {
    _compat: [*mut c_void; 7],
    pub(crate) alloc_mw: Option<AllocMw>,
    _bind_mw: *mut c_void,
    pub(crate) dealloc_mw: Option<DeallocMw>,
    _create_cq: *mut c_void,
    pub(crate) poll_cq: Option<PollCq>,
    pub(crate) req_notify_cq: Option<ReqNotifyCq>,
    _cq_and_srq: [*mut c_void; 7],
    pub(crate) post_srq_recv: Option<PostSrqRecv>,
    _qp: [*mut c_void; 4],
    pub(crate) post_send: Option<PostSend>,
    pub(crate) post_recv: Option<PostRecv>,
    _rest: [*mut c_void; 5],
}

layout!(ContextOps, 256, {
    alloc_mw @ 56, dealloc_mw @ 72, poll_cq @ 88, req_notify_cq @ 96, post_srq_recv @ 160, post_send @ 200, post_recv @ 208,
});

/// `struct ibv_context`.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) device: *mut Opaque,
    pub(crate) ops: ContextOps,
    pub(crate) cmd_fd: c_int,
    pub(crate) async_fd: c_int,
    pub(crate) num_comp_vectors: c_int,
}

const _: () = assert!(offset_of!(Context, ops) == 8);
const _: () = assert!(offset_of!(Context, cmd_fd) == 264);
const _: () = assert!(offset_of!(Context, num_comp_vectors) == 272);

/// `struct ibv_pd`.
#[repr(C)]
pub(crate) struct Pd {
    pub(crate) context: *mut Context,
    pub(crate) handle: u32,
}

layout!(Pd, 16, { context @ 0, handle @ 8 });

/// `struct ibv_mr`.
#[repr(C)]
pub(crate) struct Mr {
    pub(crate) context: *mut Context,
    pub(crate) pd: *mut Pd,
    pub(crate) addr: *mut c_void,
    pub(crate) length: usize,
    pub(crate) handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

layout!(Mr, 48, { context @ 0, pd @ 8, addr @ 16, length @ 24, handle @ 32, lkey @ 36, rkey @ 40 });

/// `struct ibv_mw`.
#[repr(C)]
pub(crate) struct Mw {
    pub(crate) context: *mut Context,
    pub(crate) pd: *mut Pd,
    pub(crate) rkey: u32,
    pub(crate) handle: u32,
    pub(crate) kind: c_int,
}

layout!(Mw, 32, { context @ 0, pd @ 8, rkey @ 16, handle @ 20, kind @ 24 });

/// The start of `struct ibv_cq`.
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) context: *mut Context,
    pub(crate) channel: *mut CompChannel,
}

const _: () = assert!(offset_of!(Cq, channel) == 8);

/// The start of `struct ibv_srq`.
#[repr(C)]
pub(crate) struct Srq {
    pub(crate) context: *mut Context,
    pub(crate) srq_context: *mut c_void,
    pub(crate) pd: *mut Pd,
    pub(crate) handle: u32,
}

const _: () = assert!(offset_of!(Srq, pd) == 16);
const _: () = assert!(offset_of!(Srq, handle) == 24);

/// `struct ibv_srq_init_attr`, `struct ibv_srq_attr` included.
#[repr(C)]
pub(crate) struct SrqInitAttr {
    pub(crate) srq_context: *mut c_void,
    pub(crate) max_wr: u32,
    pub(crate) max_sge: u32,
    pub(crate) srq_limit: u32,
}

layout!(SrqInitAttr, 24, { srq_context @ 0, max_wr @ 8, max_sge @ 12, srq_limit @ 16 });

/// The start of `struct ibv_qp`.
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) context: *mut Context,
    pub(crate) qp_context: *mut c_void,
    pub(crate) pd: *mut Pd,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut Srq,
    pub(crate) handle: u32,
    pub(crate) qp_num: u32,
    pub(crate) state: c_int,
    pub(crate) qp_type: c_int,
}

const _: () = assert!(offset_of!(Qp, pd) == 16);
const _: () = assert!(offset_of!(Qp, send_cq) == 24);
const _: () = assert!(offset_of!(Qp, handle) == 48);
const _: () = assert!(offset_of!(Qp, qp_num) == 52);
const _: () = assert!(offset_of!(Qp, qp_type) == 60);

/// `struct ibv_comp_channel`.
#[repr(C)]
pub(crate) struct CompChannel {
    pub(crate) context: *mut Context,
    pub(crate) fd: c_int,
    pub(crate) refcnt: c_int,
}

layout!(CompChannel, 16, { context @ 0, fd @ 8, refcnt @ 12 });

/// `struct ibv_wc`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) status: u32,
    pub(crate) opcode: u32,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    /// Immediate data, or with [`WC_WITH_INV`] the key the peer invalidated.
    pub(crate) invalidated_rkey: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

layout!(Wc, 48, {
    wr_id @ 0, status @ 8, opcode @ 12, vendor_err @ 16, byte_len @ 20, invalidated_rkey @ 24, qp_num @ 28, wc_flags @ 36,
});

/// `struct ibv_sge`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

layout!(Sge, 16, { addr @ 0, length @ 8, lkey @ 12 });

/// `struct ibv_send_wr`, its last union as that of IBV_WR_BIND_MW.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SendWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut Self,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: u32,
    pub(crate) send_flags: c_uint,
    /// Immediate data or the key to invalidate.
    pub(crate) invalidate_rkey: u32,
    pub(crate) remote: [u64; 4],
    pub(crate) xrc: u64,
    pub(crate) bind: BindMw,
}

layout!(SendWr, 128, {
    wr_id @ 0, next @ 8, sg_list @ 16, num_sge @ 24, opcode @ 28, send_flags @ 32, invalidate_rkey @ 36, remote @ 40, bind @ 80,
});

/// What [`SendWr`] holds for IBV_WR_BIND_MW, `struct ibv_mw_bind_info` included.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BindMw {
    pub(crate) mw: *mut Mw,
    pub(crate) rkey: u32,
    pub(crate) mr: *mut Mr,
    pub(crate) addr: u64,
    pub(crate) length: u64,
    pub(crate) access: c_uint,
}

layout!(BindMw, 48, { mw @ 0, rkey @ 8, mr @ 16, addr @ 24, length @ 32, access @ 40 });

/// `struct ibv_recv_wr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RecvWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut Self,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
}

layout!(RecvWr, 32, { wr_id @ 0, next @ 8, sg_list @ 16, num_sge @ 24 });

/// `struct ibv_qp_cap`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct QpCap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

layout!(QpCap, 20, { max_inline_data @ 16 });

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub(crate) struct QpInitAttr {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut Srq,
    pub(crate) cap: QpCap,
    pub(crate) qp_type: c_int,
    pub(crate) sq_sig_all: c_int,
}

layout!(QpInitAttr, 64, { send_cq @ 8, recv_cq @ 16, srq @ 24, cap @ 32, qp_type @ 52, sq_sig_all @ 56 });

/// `struct ibv_qp_attr`, of which only the state is ever set here.
#[repr(C)]
pub(crate) struct QpAttr {
    pub(crate) qp_state: c_int,
    pub(crate) rest: [u32; 35],
}

const _: () = assert!(size_of::<QpAttr>() == 144);

/// `struct ibv_device_attr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct DeviceAttr {
    pub(crate) fw_ver: [u8; 64],
    pub(crate) guids: [u64; 2],
    pub(crate) max_mr_size: u64,
    pub(crate) page_size_cap: u64,
    pub(crate) ids: [u32; 3],
    pub(crate) max_qp: c_int,
    pub(crate) max_qp_wr: c_int,
    pub(crate) device_cap_flags: c_uint,
    pub(crate) max_sge: c_int,
    pub(crate) max_sge_rd: c_int,
    pub(crate) max_cq: c_int,
    pub(crate) max_cqe: c_int,
    pub(crate) max_mr: c_int,
    pub(crate) max_pd: c_int,
    pub(crate) max_qp_rd_atom: c_int,
    pub(crate) max_ee_rd_atom: c_int,
    pub(crate) max_res_rd_atom: c_int,
    pub(crate) max_qp_init_rd_atom: c_int,
    pub(crate) mixed: [u32; 13],
    pub(crate) max_srq: c_int,
    pub(crate) max_srq_wr: c_int,
    pub(crate) max_srq_sge: c_int,
    pub(crate) rest: [u32; 2],
}

layout!(DeviceAttr, 232, {
    fw_ver @ 0, max_mr_size @ 80, page_size_cap @ 88, max_qp @ 108, max_qp_wr @ 112, device_cap_flags @ 116, max_sge @ 120,
    max_cq @ 128, max_cqe @ 132, max_mr @ 136, max_qp_rd_atom @ 144, max_qp_init_rd_atom @ 156,
    max_srq @ 212, max_srq_wr @ 216,
});

/// `struct rdma_event_channel`.
#[repr(C)]
pub(crate) struct EventChannel {
    pub(crate) fd: c_int,
}

/// A `struct sockaddr_storage` without its rules of access.
pub(crate) type SockaddrStorage = [u64; 16];

/// `struct rdma_cm_id`.
#[repr(C)]
pub(crate) struct CmId {
    pub(crate) verbs: *mut Context,
    pub(crate) channel: *mut EventChannel,
    pub(crate) context: *mut c_void,
    pub(crate) qp: *mut Qp,
    pub(crate) src_addr: SockaddrStorage,
    pub(crate) dst_addr: SockaddrStorage,
    pub(crate) route_rest: [u64; 7],
    pub(crate) ps: c_int,
    pub(crate) port_num: u8,
    pub(crate) event: *mut CmEvent,
    pub(crate) cqs_and_srq: [*mut c_void; 5],
    pub(crate) pd: *mut Pd,
    pub(crate) qp_type: c_int,
}

layout!(CmId, 416, {
    verbs @ 0, channel @ 8, context @ 16, qp @ 24, src_addr @ 32, dst_addr @ 160, ps @ 344, port_num @ 348, event @ 352, pd @ 400,
});

/// `struct rdma_conn_param`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ConnParam {
    pub(crate) private_data: *const c_void,
    pub(crate) private_data_len: u8,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) flow_control: u8,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry_count: u8,
    pub(crate) srq: u8,
    pub(crate) qp_num: u32,
}

layout!(ConnParam, 24, {
    private_data @ 0, private_data_len @ 8, responder_resources @ 9, initiator_depth @ 10, flow_control @ 11, retry_count @ 12,
    rnr_retry_count @ 13, srq @ 14, qp_num @ 16,
});

/// `struct rdma_cm_event`, its union as that of connected services.
#[repr(C)]
pub(crate) struct CmEvent {
    pub(crate) id: *mut CmId,
    pub(crate) listen_id: *mut CmId,
    pub(crate) event: u32,
    pub(crate) status: c_int,
    pub(crate) conn: ConnParam,
    pub(crate) rest: [u64; 4],
}

layout!(CmEvent, 80, { id @ 0, listen_id @ 8, event @ 16, status @ 20, conn @ 24 });

pub(crate) const QPT_RC: c_int = 2;
pub(crate) const QPS_ERR: c_int = 6;
pub(crate) const QP_STATE: c_int = 1;
pub(crate) const WR_SEND: u32 = 2;
pub(crate) const WR_LOCAL_INV: u32 = 7;
pub(crate) const WR_BIND_MW: u32 = 8;
pub(crate) const SEND_SIGNALED: c_uint = 2;
pub(crate) const SEND_INLINE: c_uint = 8;
pub(crate) const WC_RECV: u32 = 128;
pub(crate) const WC_WITH_INV: c_uint = 8;
/// How Linux's soft-RoCE says the same to programs: by the kernel's own flag, IB_WC_WITH_INVALIDATE.
pub(crate) const WC_WITH_INV_RXE: c_uint = 4;
pub(crate) const ACCESS_LOCAL_WRITE: c_int = 1;
pub(crate) const ACCESS_REMOTE_WRITE: c_int = 2;
pub(crate) const ACCESS_REMOTE_READ: c_int = 4;
pub(crate) const ACCESS_MW_BIND: c_int = 16;
pub(crate) const MW_TYPE_2: c_int = 2;
pub(crate) const DEVICE_MEM_WINDOW_TYPE_2B: c_uint = 1 << 24;
pub(crate) const PS_TCP: c_int = 0x106;
pub(crate) const OPTION_ID: c_int = 0;
pub(crate) const OPTION_ID_TOS: c_int = 0;
pub(crate) const OPTION_ID_ACK_TIMEOUT: c_int = 3;

/// Both libraries, opened.
#[cfg(not(feature = "rdma-sys"))]
pub(crate) struct Libraries {
    verbs: Library,
    cm: Library,
}

/// Declares the table of functions, and how it is filled from the two libraries.
macro_rules! api {
    ($($library:ident { $($name:ident($($argument:ty),*) $(-> $result:ty)?;)* })*) => {
        /// The functions of both libraries.
        pub(crate) struct Api {
            $($(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
            /// What not every version of the libraries has.
            pub(crate) dma_buf: DmaBuf,
            /// Keeps the libraries in memory.
            #[cfg(not(feature = "rdma-sys"))]
            #[expect(dead_code, reason = "held to keep the functions where they are")]
            pub(crate) libraries: Libraries,
        }

        impl Api {
            #[cfg(not(feature = "rdma-sys"))]
            fn from_libraries(libraries: Libraries) -> Result<Self, LoadError> {
                $($(
                    // SAFETY: the type is that of rdma-core's header; the symbol lives as long as the library, which is kept.
                    let $name = unsafe { libraries.$library.get(stringify!($name).as_bytes()) }
                        .map(|found: Symbol<unsafe extern "C" fn($($argument),*) $(-> $result)?>| *found)
                        .map_err(|error| LoadError::new(stringify!($library), &error))?;
                )*)*
                let dma_buf = DmaBuf::of(&libraries);
                Ok(Self { $($($name,)*)* dma_buf, libraries })
            }

            /// The functions the program is linked with.
            #[cfg(feature = "rdma-sys")]
            pub(crate) fn load() -> Result<Self, LoadError> {
                Ok(Self {
                    $($(
                        // SAFETY: the type is that of rdma-core's header, with structures whose layouts are asserted to be those of
                        // rdma-sys.
                        $name: unsafe {
                            std::mem::transmute::<*const (), unsafe extern "C" fn($($argument),*) $(-> $result)?>(
                                rdma_sys::$name as *const (),
                            )
                        },
                    )*)*
                    dma_buf: DmaBuf::linked(),
                })
            }
        }
    };
}

api! {
    verbs {
    ibv_query_device(*mut Context, *mut DeviceAttr) -> c_int;
    ibv_get_device_name(*mut Opaque) -> *const c_char;
    ibv_alloc_pd(*mut Context) -> *mut Pd;
    ibv_dealloc_pd(*mut Pd) -> c_int;
    ibv_reg_mr(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_dereg_mr(*mut Mr) -> c_int;
    ibv_create_comp_channel(*mut Context) -> *mut CompChannel;
    ibv_destroy_comp_channel(*mut CompChannel) -> c_int;
    ibv_create_cq(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    ibv_destroy_cq(*mut Cq) -> c_int;
    ibv_create_srq(*mut Pd, *mut SrqInitAttr) -> *mut Srq;
    ibv_destroy_srq(*mut Srq) -> c_int;
    ibv_get_cq_event(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events(*mut Cq, c_uint);
    ibv_modify_qp(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_destroy_qp(*mut Qp) -> c_int;
    }
    cm {
    rdma_create_event_channel() -> *mut EventChannel;
    rdma_destroy_event_channel(*mut EventChannel);
    rdma_create_id(*mut EventChannel, *mut *mut CmId, *mut c_void, c_int) -> c_int;
    rdma_destroy_id(*mut CmId) -> c_int;
    rdma_bind_addr(*mut CmId, *mut c_void) -> c_int;
    rdma_resolve_addr(*mut CmId, *mut c_void, *mut c_void, c_int) -> c_int;
    rdma_resolve_route(*mut CmId, c_int) -> c_int;
    rdma_create_qp(*mut CmId, *mut Pd, *mut QpInitAttr) -> c_int;
    rdma_connect(*mut CmId, *mut ConnParam) -> c_int;
    rdma_disconnect(*mut CmId) -> c_int;
    rdma_get_cm_event(*mut EventChannel, *mut *mut CmEvent) -> c_int;
    rdma_ack_cm_event(*mut CmEvent) -> c_int;
    rdma_set_option(*mut CmId, c_int, c_int, *mut c_void, usize) -> c_int;
    }
}

/// `ibv_reg_dmabuf_mr`, where the library has it.
pub(crate) struct DmaBuf(pub(crate) Option<RegDmaBufMr>);

impl DmaBuf {
    #[cfg(not(feature = "rdma-sys"))]
    fn of(libraries: &Libraries) -> Self {
        // SAFETY: the type is that of rdma-core's header; the symbol lives as long as the library, which the table keeps.
        let found: Result<Symbol<RegDmaBufMr>, _> = unsafe { libraries.verbs.get(b"ibv_reg_dmabuf_mr") };
        Self(found.ok().map(|found| *found))
    }

    /// Of the library the program is linked with, which may be older or newer than the one it was built with.
    #[cfg(feature = "rdma-sys")]
    fn linked() -> Self {
        // SAFETY: a name that ends in NUL, looked for in what the program is linked with.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"ibv_reg_dmabuf_mr".as_ptr()) };
        // SAFETY: null, or a function of the type that rdma-core's header gives it.
        Self(unsafe { std::mem::transmute::<*mut c_void, Option<RegDmaBufMr>>(found) })
    }
}

/// A library or one of its functions was not found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct LoadError {
    /// The connection manager's library, rather than that of verbs.
    pub(crate) is_cm: bool,
    detail: String,
}

#[cfg(not(feature = "rdma-sys"))]
impl LoadError {
    fn new(library: &str, error: &libloading::Error) -> Self {
        Self { is_cm: library == "cm", detail: error.to_string() }
    }
}

#[cfg(not(feature = "rdma-sys"))]
impl Api {
    /// Opens the libraries.
    pub(crate) fn load() -> Result<Self, LoadError> {
        Self::from_libraries(Libraries { verbs: open(VERBS_LIBRARY, "verbs")?, cm: open(CM_LIBRARY, "cm")? })
    }
}

#[cfg(not(feature = "rdma-sys"))]
fn open(name: &str, library: &str) -> Result<Library, LoadError> {
    // SAFETY: the initialisation functions of these libraries have no preconditions; they are made for being loaded by any
    // program.
    unsafe { Library::new(name) }.map_err(|error| LoadError::new(library, &error))
}

/// Whether the dynamic loader finds a library.
#[cfg(not(feature = "rdma-sys"))]
pub(crate) fn is_loadable(name: &str) -> bool {
    open(name, "").is_ok()
}

/// Whether the dynamic loader finds a library: it has, or this program would not run.
#[cfg(feature = "rdma-sys")]
pub(crate) fn is_loadable(_name: &str) -> bool {
    true
}
