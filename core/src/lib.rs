//! A user-space NVMe and NVMe over Fabrics initiator: the core.
//!
//! ```text
//!        Driver ── probe / connect ──▶ Controller ── alloc_io_qpair ──▶ IoQpair ── submit / process_completions
//!          │                               │                               │
//!   registered Transports          admin queue, keep alive,         Tracker: commands in flight
//!   (PCIe, RDMA, TCP, yours)       events, namespaces               and the buffers they own
//!          ▼                               ▼                               ▼
//!      Transport  ────────────▶  TransportController  ─────────▶  TransportQpair
//! ```
//!
//! * [`spec`]: wire formats. [`proto`]: state machines without I/O. [`dma`]: memory devices may access.
//! * [`transport`]: what a transport implements. The core never names one; a program registers those it wants with
//!   [`Driver::builder`].
//! * [`Driver`], [`Controller`], [`Namespace`], [`IoQpair`]: the program model, SPDK's in Rust. Nothing blocks unless its
//!   name or documentation says so.
//!
//! A queue pair belongs to one thread and has no locks; a [`Controller`] is a cheap shared handle.

pub mod controller;
pub mod dma;
pub mod driver;
pub mod error;
pub mod future;
pub mod host;
pub mod key_string;
pub mod namespace;
pub mod nqn;
pub mod options;
pub mod poll_group;
pub mod protection;
pub mod proto;
pub mod qpair;
pub mod share;
pub mod spec;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod transport_id;
mod wait;

pub use controller::{
    AbortStats, AdminCommand, AdminPending, AdminResult, Controller, ControllerState, Detach,
    DiscoveryLogOptions, DiscoveryLogRead, Event, NamespaceChange,
};
pub use dma::{DmaBuf, DmaPool, DmaRegion, IoBuf};
pub use driver::{Callbacks, Driver, DriverBuilder, Hotplug, ProbeContext, SharedBuilder};
pub use error::{Error, ErrorKind, Result};
pub use host::HostIdentity;
pub use key_string::{KeyHash, KeyKind, KeyString, KeyStringError};
pub use namespace::Namespace;
pub use nqn::{HostId, Nqn};
pub use options::{ControllerOptions, IoQpairOptions};
pub use poll_group::{GroupKey, PollGroup};
pub use protection::{Protection, ProtectionError, ProtectionFormat};
pub use qpair::{
    CommandError, CommandId, Completion, IoCommand, IoQpair, QpairStats, SubmitError, TimedOut,
    TimeoutAction, TimeoutPolicy,
};
pub use share::{Process, Role};
pub use spec::log_page::AsyncEvent;
pub use transport::{
    Capabilities, HotplugEvent, HotplugMonitor, Transport, TransportController, TransportQpair,
};
pub use transport_id::{TransportId, TransportType};
