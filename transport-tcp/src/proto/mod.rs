//! The NVMe/TCP protocol without sockets: bytes in, bytes out, completions to the tracker.
//!
//! [`Connection`] is the host side of one connection. Whoever drives it receives into
//! [`Connection::recv_target`], calls [`Connection::process`], and sends what
//! [`Connection::transmit_slices`] shows. There is no clock in here and nothing blocks; every byte received
//! is hostile until checked.

mod connection;
pub mod digest;
mod header;
mod staging;
#[cfg(test)]
mod tests;
mod tx_queue;

pub use connection::{Connection, ConnectionParams, RecvTarget, SEND_MAX};
