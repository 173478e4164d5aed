//! The PCI front: an NVMe function, emulated in this process.
//!
//! ```text
//! host ─▶ BAR 0 ─▶ Registers ─▶ enable, reset              ┌─▶ Queue ─▶ Controller ─▶ …
//!            └───▶ doorbells ─▶ Signal ─▶ thread ─▶ Engine ─┤
//! client ──▶ MappedDoorbells ◀─ looked at ──┘                │
//!                                                           └─▶ rings, PRPs, SGLs: DeviceMemory
//! ```

mod config_space;
mod data;
mod doorbells;
mod engine;
mod function;
mod interrupt;
mod queues;
mod registers;
mod signal;
#[cfg(test)]
mod tests;
mod vfio_user;

pub(crate) use config_space::VENDOR as PCI_VENDOR;
pub use function::{EmulatedDevice, EmulatedFunction, PciOptions};
pub use vfio_user::{VfioUserServer, VfioUserServerOptions};
