//! Wire formats: what NVMe, NVMe over Fabrics and its transport bindings put into memory or on the wire.
//!
//! Plain data only: no I/O, no clock, no `unsafe`. Every structure is little-endian with alignment 1, its
//! size and the offsets of its fields are asserted at compile time, and every enumeration is an *open
//! enum* (a newtype with named constants), so that a value this crate does not know survives a round trip.
//!
//! Section and figure numbers refer to NVM Express Base Specification 2.1, NVM Command Set 1.1 and
//! NVMe/TCP Transport 1.1 unless a comment says otherwise.

#[macro_use]
mod open_enum;

pub mod command;
pub mod completion;
pub mod data_ptr;
pub mod dim;
pub mod discovery;
pub mod fabrics;
pub mod features;
pub mod identify;
pub mod log_page;
pub mod rdma;
pub mod registers;
pub mod status;
pub mod tcp;

pub use command::{AdminOpcode, NvmOpcode, Sqe};
pub use completion::Cqe;
pub use data_ptr::{DataPointer, SglDescriptor};
pub use status::Status;
