//! What several of these test programs need.

use std::time::{Duration, Instant};

use nvmf_core::Nqn;
use nvmf_loopback::Loopback;

/// No host has a discovery controller of the target's; it may notice the end of a connection a moment later.
#[track_caller]
pub(crate) fn nothing_is_left(target: &Loopback) {
    let end = Instant::now() + Duration::from_secs(10);
    while target.controllers(Nqn::DISCOVERY) > 0 {
        assert!(Instant::now() < end, "something is left behind");
        std::thread::sleep(Duration::from_millis(2));
    }
}
