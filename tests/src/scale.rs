//! What many connections of one thread cost: throughput, memory, processor time. The program `scale` prints it.

mod measure;
mod usage;

pub use measure::{Attached, Busy, Host, Idle, Share};
pub use usage::{cpu_time, resident};
