// UNSAFETY: what makes it sound that the other side of a simulated connection writes to memory of this process on its own
// (docs/safety.md, A1): who listens gives its word. Nothing is accessed here.

//! Listening on the simulated fabric.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use super::{ListenerQueue, Notify, Sim, SimListener};

impl Sim {
    /// Listens on an address; port 0 is any that is free. `notify` is called when a connection is asked for.
    ///
    /// # Safety
    /// Whoever accepts connections is a device to the initiator (docs/safety.md, A1): with [`super::SimPeer::write`] it writes only where
    /// a command it has received and not answered says.
    ///
    /// # Errors
    /// `AddrInUse`.
    pub unsafe fn listen(&self, mut address: SocketAddr, notify: Notify) -> io::Result<SimListener> {
        let mut net = self.0.net();
        while address.port() == 0 {
            net.next_port = net.next_port.wrapping_add(1).max(1);
            let candidate = SocketAddr::new(address.ip(), net.next_port);
            if !net.listeners.contains_key(&candidate) {
                address = candidate;
            }
        }
        if net.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        net.listeners.insert(address, ListenerQueue { requests: VecDeque::new(), notify });
        drop(net);
        Ok(SimListener::new(self.clone(), address))
    }
}
