// UNSAFETY: the harness's word that it writes to no memory at all (docs/safety.md, A1). Nothing is accessed here.

//! Listening on the simulated fabric.

use std::sync::Arc;

use nvmf_transport_rdma::sim::{Sim, SimListener};

/// A listener whose side sends messages only.
pub(super) fn listen(sim: &Sim) -> SimListener {
    let address = "192.0.2.1:4420".parse().expect("an address");
    // SAFETY: `SimPeer::write` is not called.
    unsafe { sim.listen(address, Arc::new(|| {})) }.expect("a fabric of its own")
}
