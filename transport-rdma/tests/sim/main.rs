//! Queue pairs over the simulated fabric, with the controller on the same thread.

// UNSAFETY: the tests are a device.
#[expect(unsafe_code, reason = "the controller's part of docs/safety.md, A1")]
mod bench;
mod data_path;
mod faults;
mod group;
mod windows;
