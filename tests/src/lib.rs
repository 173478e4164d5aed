//! Test harness: a conformance suite that is one body of code for every transport, and a workload that knows what
//! every block must hold.

pub mod conformance;
// UNSAFETY: system calls that make dma-bufs.
#[expect(unsafe_code, reason = "ioctls that make dma-bufs")]
pub mod dma_buf;
pub mod fuzz;
pub mod history;
pub mod load;
pub mod metadata;
pub mod program;
pub mod proxy;
pub mod rig;
pub mod rng;
pub mod scale;
pub mod session;
pub mod soak;
pub mod tiny;
pub mod workload;
