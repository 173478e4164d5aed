//! The protocol without I/O: credits and slots, and how a command's data is described.

pub mod capsule;
pub mod ledger;

pub use capsule::{Capsule, Limits, Piece};
pub use ledger::{Answered, Ledger, Signal, Violation};
