//! What the rdma-sys crate says about the structures: sizes, and where the fields used here are.

use std::mem::{offset_of, size_of};

/// Asserts that a structure of this crate has the size and the fields' places of one of rdma-sys.
macro_rules! same {
    ($ours:ident = $theirs:ident { $($our_field:ident = $($their_field:ident).+),* $(,)? }) => {
        const _: () = assert!(size_of::<super::$ours>() == size_of::<rdma_sys::$theirs>());
        same!(fields $ours = $theirs { $($our_field = $($their_field).+),* });
    };
    (fields $ours:ident = $theirs:ident { $($our_field:ident = $($their_field:ident).+),* $(,)? }) => {
        $(const _: () = assert!(
            offset_of!(super::$ours, $our_field) == offset_of!(rdma_sys::$theirs, $($their_field).+)
        );)*
    };
}

same!(ContextOps = ibv_context_ops {
    alloc_mw = alloc_mw, dealloc_mw = dealloc_mw, poll_cq = poll_cq, req_notify_cq = req_notify_cq,
    post_srq_recv = post_srq_recv, post_send = post_send, post_recv = post_recv,
});
same!(fields Context = ibv_context {
    device = device, ops = ops, cmd_fd = cmd_fd, async_fd = async_fd, num_comp_vectors = num_comp_vectors,
});
same!(Pd = ibv_pd { context = context, handle = handle });
same!(Mr = ibv_mr { addr = addr, length = length, lkey = lkey, rkey = rkey });
same!(Mw = ibv_mw { pd = pd, rkey = rkey });
same!(fields Cq = ibv_cq { context = context, channel = channel });
same!(fields Srq = ibv_srq { context = context, pd = pd, handle = handle });
same!(SrqInitAttr = ibv_srq_init_attr {
    srq_context = srq_context, max_wr = attr.max_wr, max_sge = attr.max_sge, srq_limit = attr.srq_limit,
});
same!(fields Qp = ibv_qp { pd = pd, send_cq = send_cq, handle = handle, qp_num = qp_num, qp_type = qp_type });
same!(CompChannel = ibv_comp_channel { context = context, fd = fd, refcnt = refcnt });
same!(Wc = ibv_wc {
    wr_id = wr_id, status = status, opcode = opcode, vendor_err = vendor_err, byte_len = byte_len, qp_num = qp_num,
    wc_flags = wc_flags, dlid_path_bits = dlid_path_bits,
});
same!(Sge = ibv_sge { addr = addr, length = length, lkey = lkey });
same!(SendWr = ibv_send_wr {
    wr_id = wr_id, next = next, sg_list = sg_list, num_sge = num_sge, opcode = opcode, send_flags = send_flags, remote = wr,
});
same!(RecvWr = ibv_recv_wr { wr_id = wr_id, next = next, sg_list = sg_list, num_sge = num_sge });
same!(QpCap = ibv_qp_cap { max_send_wr = max_send_wr, max_inline_data = max_inline_data });
same!(QpInitAttr = ibv_qp_init_attr {
    send_cq = send_cq, recv_cq = recv_cq, srq = srq, cap = cap, qp_type = qp_type, sq_sig_all = sq_sig_all,
});
same!(QpAttr = ibv_qp_attr { qp_state = qp_state });
same!(DeviceAttr = ibv_device_attr {
    max_mr_size = max_mr_size, max_qp = max_qp, max_qp_wr = max_qp_wr, device_cap_flags = device_cap_flags, max_sge = max_sge,
    max_cq = max_cq, max_cqe = max_cqe, max_mr = max_mr, max_qp_rd_atom = max_qp_rd_atom,
    max_qp_init_rd_atom = max_qp_init_rd_atom, max_srq = max_srq, max_srq_wr = max_srq_wr,
});
same!(EventChannel = rdma_event_channel { fd = fd });
same!(CmId = rdma_cm_id {
    verbs = verbs, channel = channel, context = context, qp = qp, src_addr = route, ps = ps, port_num = port_num, event = event,
    pd = pd, qp_type = qp_type,
});
same!(ConnParam = rdma_conn_param {
    private_data = private_data, private_data_len = private_data_len, responder_resources = responder_resources,
    initiator_depth = initiator_depth, flow_control = flow_control, retry_count = retry_count,
    rnr_retry_count = rnr_retry_count, srq = srq, qp_num = qp_num,
});
same!(CmEvent = rdma_cm_event { id = id, listen_id = listen_id, event = event, status = status, conn = param });
