//! An NVM subsystem in the *controller* role, embedded into a program: for demonstrations, benchmarks and tests of hosts.
//!
//! ```no_run
//! use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let loopback = Loopback::builder()
//!     .subsystem(
//!         SubsystemBuilder::new("nqn.2024-01.org.example:disk")
//!             .serial("0001")
//!             .namespace(Namespace::memory(64 << 20).block_size(4096))
//!             .namespace(Namespace::file("/tmp/disk.img", 1 << 30)),
//!     )
//!     .listen_tcp("127.0.0.1:0")
//!     .build()?;
//! println!("listening on {:?}", loopback.tcp_addrs());
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!   NVMe/TCP listener ─▶ a thread per connection ─┐
//!                                                 ├─▶ Queue ─▶ Controller ─▶ Subsystem ─▶ Namespace
//!   RDMA listener (simulated) ─▶ a thread per connection ─┤
//!   LoopbackTransport ─▶ the thread that polls ───┤     ▲
//!   EmulatedFunction ─▶ a thread per function ────┘   Faults
//! ```
//!
//! # What it does
//!
//! * NVM subsystems with namespaces in memory, in sparse files, or nowhere; a discovery subsystem with a log per host,
//!   referrals, and events when the log changes; lists of hosts that may connect.
//! * Dynamic controllers with Connect, properties, Identify, Get Log Page, features, asynchronous events, Abort, keep alive;
//!   Read, Write, Compare, Write Zeroes, Dataset Management, Verify, Write Uncorrectable, Flush.
//! * PCI functions emulated in process: registers, doorbells, rings, PRPs and SGLs, MSI-X.
//! * NVMe/TCP with digests, in-capsule data, R2T, any alignment, without TLS; and an in-process transport, `trtype:loop`.
//! * NVMe/RDMA over a simulated fabric (`nvmf_transport_rdma::sim`): keyed SGLs, lists of them, in-capsule data.
//! * Changes while hosts are connected, and [scripted faults](Faults).
//!
//! # What it does not
//!
//! * Metadata and protection information, fused commands, Copy, reservations, zones, Format, sanitize, namespace management by
//!   hosts, firmware updates; NVM subsystem reset over fabrics. Controller memory buffers, shadow doorbells.
//! * Authentication and TLS. Whoever can reach a listener can say to be any host: do not listen where that matters.
//! * Static controllers, persistent discovery registrations, priorities of queues.
//! * It stores data and keeps the protocol; it does not try to survive power loss beyond what Flush and FUA do for files.

#![deny(unsafe_code)]

mod backing;
mod config;
mod controller;
mod data;
mod discovery;
mod error;
mod fault;
mod loopback;
mod namespace;
mod pci;
mod queue;
mod rdma;
mod registry;
mod subsystem;
mod target;
mod tcp;
mod transport;

pub use config::{RdmaFrontOptions, TcpOptions};
pub use error::LoopbackError;
pub use fault::{Fault, Faults, Rule};
pub use loopback::{Builder, DEFAULT_NQN, Loopback, LoopbackStats};
pub use namespace::Namespace;
pub use pci::{EmulatedDevice, EmulatedFunction, PciOptions, VfioUserServer};
pub use subsystem::SubsystemBuilder;
pub use transport::LoopbackTransport;
