//! Test harness: a conformance suite that is one body of code for every transport, and a workload that knows what
//! every block must hold.

pub mod conformance;
pub mod load;
pub mod rng;
pub mod workload;
