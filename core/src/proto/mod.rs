//! Protocol state machines: bytes, register values, completions and "now" go in; commands, bytes and
//! deadlines come out. No sockets, no registers, no clock, no `unsafe`.

pub mod controller_init;
pub mod controller_shutdown;
pub mod discovery_log;
pub mod keep_alive;
pub mod recovery;
pub mod split;
pub mod tracker;

pub use tracker::Tracker;
