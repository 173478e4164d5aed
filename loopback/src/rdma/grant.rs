// UNSAFETY: the front's word that it writes to memory as a controller does (docs/safety.md, A1). Nothing is accessed here.

//! Listening where hosts let us write to their memory.

use std::io;
use std::net::SocketAddr;

use nvmf_transport_rdma::sim::{Notify, Sim, SimListener};

/// A listener whose connections are served by [`super::session`], and by nobody else.
pub(super) fn listen(sim: &Sim, address: SocketAddr, notify: Notify) -> io::Result<SimListener> {
    // SAFETY: a session writes the data of a command while it executes it, into the memory the command's SGL names, and answers
    // it afterwards. Nothing is written for a command that was answered.
    unsafe { sim.listen(address, notify) }
}
