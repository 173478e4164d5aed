//! Queue pairs over the simulated fabric, with the controller on the same thread.

mod bench;
mod data_path;
mod faults;
