//! The PCI front: an NVMe function, emulated in this process.
//!
//! ```text
//! host ─▶ BAR 0 ─▶ Registers ─▶ enable, reset              ┌─▶ Queue ─▶ Controller ─▶ …
//!            └───▶ doorbells ─▶ Signal ─▶ thread ─▶ Engine ─┤
//! client ──▶ MappedDoorbells ◀─ looked at ──┘                │
//!                                                           └─▶ rings, PRPs, SGLs: DeviceMemory
//! ```

mod cmb;
mod config_space;
mod data;
mod doorbells;
mod engine;
mod function;
// UNSAFETY: the promise of docs/safety.md, A1.
#[expect(unsafe_code, reason = "leave for the emulated function to access memory")]
mod grant;
mod interrupt;
mod queues;
mod registers;
mod ringer;
mod shadow;
mod signal;
#[cfg(test)]
mod tests;
mod vfio_user;

pub use function::{EmulatedDevice, EmulatedFunction, PciOptions};
pub use vfio_user::{VfioUserServer, VfioUserServerOptions};
