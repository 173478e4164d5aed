//! Options of controllers and I/O queue pairs. Defaults are SPDK's unless a reason is given.

use std::time::Duration;

use crate::host::HostIdentity;
use crate::proto::recovery::RecoveryPolicy;
use crate::qpair::TimeoutPolicy;

/// How a controller is connected and run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ControllerOptions {
    /// Who we are: host NQN and host identifier. `None`: the machine's own ([`HostIdentity::load`]), the same in every process.
    /// SPDK generates a random one; targets with access lists need the machine's own.
    pub host: Option<HostIdentity>,
    /// I/O queues to ask for (1..=65535); the controller may grant fewer. 1024.
    pub num_io_queues: u16,
    /// Entries of an I/O queue (2..=65536 but at most MQES), unless a queue pair's own options say otherwise. 256.
    pub io_queue_size: u16,
    /// I/O operations a queue pair accepts before it answers "queue full", unless its own options say otherwise. 512.
    pub io_queue_requests: u32,
    /// Entries of the admin queue (2..=4096). 32.
    pub admin_queue_size: u16,
    /// Keep alive timeout asked for; zero is off. 10 s. Keep alives are sent every half of it. Discovery controllers that are read
    /// once use none.
    pub keep_alive_timeout: Duration,
    /// Deadline of one admin command. 30 s.
    pub admin_timeout: Duration,
    /// Deadline of an I/O: so long it may go without any of its commands completing. When it passes, `timeout_policy` says what
    /// is done. `None` is never. 30 s, as in the Linux kernel (SPDK has none): a target that stops answering
    /// must not hold a caller for ever.
    pub io_timeout: Option<Duration>,
    /// What is done about an I/O that takes longer than `io_timeout`. The queue pair is given up.
    pub timeout_policy: TimeoutPolicy,
    /// Deadline for opening one connection: name resolution, transport connect, ICReq or RDMA CM, Fabrics Connect.
    /// 5 s. SPDK's 0.5 s for the Connect command is a frequent cause of trouble on busy targets.
    pub connect_timeout: Duration,
    /// Deadline for attaching as a whole, however many commands it takes. 120 s.
    pub attach_timeout: Duration,
    /// Connect a lost controller again on its own: at once, and then with this pause between attempts, as Linux's and SPDK's
    /// `reconnect_delay`. `None` or zero: it fails and the program decides ([`crate::Controller::reset`]). `None`, as in SPDK's
    /// library; Linux has 10 s. It covers loss of any connection of the controller, an unanswered keep alive and timeouts.
    pub reconnect_delay: Option<Duration>,
    /// How long after its loss a controller is attempted to be connected; then it fails for good. Linux's `ctrl_loss_tmo`, SPDK's
    /// `ctrlr_loss_timeout`. `None` is without end (-1 there); zero is not at all. 600 s, as in Linux.
    pub ctrl_loss_timeout: Option<Duration>,
    /// How long after the loss I/O that was not sent yet is held; then it fails, and so does new I/O, until the controller is back.
    /// Linux's and SPDK's `fast_io_fail_timeout`. `None`: as long as the controller is not failed (-1 in Linux, 0 in SPDK); zero:
    /// not at all. `None`.
    pub fast_io_fail_timeout: Option<Duration>,
    /// How often a Read, Compare or Verify that was sent and not completed when the connection was lost is sent again over the
    /// next one, instead of failing with [`crate::CommandError::Disconnected`]. 0. Anything that changes data is never sent again:
    /// the controller may still execute the first one.
    pub retry_after_reconnect: u8,
    /// Ask for a digest over PDU headers (NVMe/TCP).
    pub header_digest: bool,
    /// Ask for a digest over PDU data (NVMe/TCP).
    pub data_digest: bool,
    /// R2Ts the controller may have outstanding per command (NVMe/TCP, 1..=65536). 1: more helps only over long distances.
    pub max_r2t: u32,
    /// Ask to go without SQ flow control (Connect CATTR bit 2, Base 2.1 §6.3). A queue pair never has more commands outstanding than its
    /// queue has entries, so that nothing depends on it; a controller that does not grant it goes on as usual. Over NVMe/TCP one
    /// that does may leave out the response capsule of a read (SUCCESS in C2HData), which is one PDU less of two.
    pub disable_sq_flow_control: bool,
    /// Local address to connect from.
    pub src_addr: Option<String>,
    /// Local port to connect from.
    pub src_svcid: Option<String>,
    /// Local interface to connect through (SO_BINDTODEVICE), e.g. `eth0`.
    pub host_iface: Option<String>,
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged before the connection is given up. `None` is the
    /// operating system's choice.
    pub transport_ack_timeout: Option<Duration>,
    /// Type of service of the connection's packets (IP_TOS, IPV6_TCLASS); 0 leaves it alone.
    pub transport_tos: u8,
    /// Send small packets at once (NVMe/TCP, TCP_NODELAY). On. Off lets the operating system collect them, which helps nobody: batches
    /// are sent whole as it is.
    pub tcp_nodelay: bool,
    /// Acknowledge received data at once (NVMe/TCP, TCP_QUICKACK); the operating system may return to delayed acknowledgements on its
    /// own. Off.
    pub tcp_quickack: bool,
    /// Bytes of the socket's send buffer (NVMe/TCP, SO_SNDBUF); the kernel doubles it and has a limit, net.core.wmem_max. `None`: as
    /// the kernel sees fit, which grows with use; but 512 KiB if the controller is on this machine and the limit is not below that:
    /// writes of 128 KiB are up to a tenth faster.
    pub tcp_send_buffer: Option<u32>,
    /// Bytes of the socket's receive buffer (NVMe/TCP, SO_RCVBUF); net.core.rmem_max is its limit. `None`: as
    /// the kernel sees fit, also on this machine.
    pub tcp_receive_buffer: Option<u32>,
    /// Skip CC.SHN at detach.
    pub no_shn_notification: bool,
    /// Do not read the ANA log page.
    pub disable_read_ana_log_page: bool,
    /// Do not read the changed namespace list when the controller reports a change; rescan everything.
    pub disable_read_changed_ns_list_log_page: bool,
    /// Act on asynchronous events: after a namespace or ANA change the controller's namespaces are identified again, as far as they
    /// changed, and [`crate::Controller::on_event`] is told what is new. On. When off, events are only kept for
    /// [`crate::Controller::take_events`], and [`crate::Controller::rescan_namespaces`] is the program's to call.
    pub handle_events: bool,
    /// Let a thread of the driver process the admin queue: keep alives, asynchronous events, completions. On. When off, call
    /// [`crate::Controller::process_admin_completions`] at least every half keep alive timeout.
    pub background_admin: bool,
    /// Let I/O queues raise interrupts (PCIe), so that there is a descriptor to sleep on. On. Off for programs that only poll: no
    /// interrupt is ever raised for I/O then, and waiting for a queue pair is a short sleep.
    pub enable_interrupts: bool,
    /// Use shadow doorbells where the controller offers them (PCIe, Doorbell Buffer Config): doorbells go to memory, and the register is
    /// written only when the controller asks for it. On: emulated controllers gain much, others do not offer it.
    pub shadow_doorbells: bool,
    /// Put I/O submission queues into the controller's memory buffer (PCIe), if it has one that takes them and as long as there is room.
    /// Off.
    pub use_cmb_sqs: bool,
    /// Use generations in command identifiers, which tell late completions from new ones. On; off for controllers
    /// that only take small identifiers.
    pub cid_generations: bool,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            host: None,
            num_io_queues: 1024,
            io_queue_size: 256,
            io_queue_requests: 512,
            admin_queue_size: 32,
            keep_alive_timeout: Duration::from_secs(10),
            admin_timeout: Duration::from_secs(30),
            io_timeout: Some(Duration::from_secs(30)),
            timeout_policy: TimeoutPolicy::Disconnect,
            connect_timeout: Duration::from_secs(5),
            attach_timeout: Duration::from_secs(120),
            reconnect_delay: None,
            ctrl_loss_timeout: Some(Duration::from_secs(600)),
            fast_io_fail_timeout: None,
            retry_after_reconnect: 0,
            header_digest: false,
            data_digest: false,
            max_r2t: 1,
            disable_sq_flow_control: true,
            src_addr: None,
            src_svcid: None,
            host_iface: None,
            transport_ack_timeout: None,
            transport_tos: 0,
            tcp_nodelay: true,
            tcp_quickack: false,
            tcp_send_buffer: None,
            tcp_receive_buffer: None,
            no_shn_notification: false,
            disable_read_ana_log_page: false,
            disable_read_changed_ns_list_log_page: false,
            handle_events: true,
            background_admin: true,
            enable_interrupts: true,
            shadow_doorbells: true,
            use_cmb_sqs: false,
            cid_generations: true,
        }
    }
}

impl ControllerOptions {
    pub(crate) fn recovery_policy(&self) -> RecoveryPolicy {
        RecoveryPolicy {
            reconnect_delay: self.reconnect_delay,
            ctrl_loss_timeout: self.ctrl_loss_timeout,
            fast_io_fail_timeout: self.fast_io_fail_timeout,
        }
    }
}

/// How an I/O queue pair is made. `None` takes the controller's value.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct IoQpairOptions {
    /// Queue priority for weighted round robin arbitration: 0 urgent (default), 1 high, 2 medium, 3 low.
    pub priority: u8,
    /// Entries of the queue.
    pub io_queue_size: Option<u16>,
    /// Operations accepted before "queue full".
    pub io_queue_requests: Option<u32>,
    /// Collect commands until [`crate::IoQpair::flush`] or [`crate::IoQpair::process_completions`] instead of sending each at once; also
    /// those of operations that waited for a place in the queue, when others have completed. Over TCP much data leaves in parts, so
    /// that a controller with little else to do can begin.
    pub delay_cmd_submit: bool,
    /// Connect again on its own when the controller is connected again, and hold what was not sent until then. `None`: if
    /// [`ControllerOptions::reconnect_delay`] is given. Otherwise a lost queue pair says so in every call and waits for
    /// [`crate::IoQpair::reconnect`].
    pub auto_reconnect: Option<bool>,
}

impl IoQpairOptions {
    /// Sets the entries of the queue.
    #[must_use]
    pub fn queue_size(mut self, entries: u16) -> Self {
        self.io_queue_size = Some(entries);
        self
    }

    /// Sets the operations accepted before "queue full".
    #[must_use]
    pub fn queue_requests(mut self, requests: u32) -> Self {
        self.io_queue_requests = Some(requests);
        self
    }

    /// Says whether it connects again on its own.
    #[must_use]
    pub fn auto_reconnect(mut self, on: bool) -> Self {
        self.auto_reconnect = Some(on);
        self
    }

    /// Collects commands until flushed or polled.
    #[must_use]
    pub fn delay_submit(mut self, delay: bool) -> Self {
        self.delay_cmd_submit = delay;
        self
    }
}
