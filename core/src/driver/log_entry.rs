//! From an entry of a discovery log to an identifier that can be connected to.

use std::net::IpAddr;

use crate::error::{Error, Result};
use crate::spec::discovery::DiscoveryLogEntry;
use crate::transport_id::{AddressFamily, TransportId, TransportType};

impl TransportId {
    /// The transport identifier of a discovery log entry, with what is ours (host NQN, local address and interface, priority) from
    /// `parent`, that of the discovery controller the entry comes from.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] for a transport type without a name, [`crate::ErrorKind::PeerMisbehaved`] for a name
    /// that is no NQN, and what is wrong with the address.
    pub fn of_log_entry(entry: &DiscoveryLogEntry, parent: &Self) -> Result<Self> {
        let trtype = TransportType::from_wire(entry.trtype.0)
            .ok_or_else(|| Error::unsupported(format!("transport type {}", entry.trtype)))?;
        let subnqn = entry.subnqn();
        let subnqn = crate::nqn::Nqn::new(&subnqn)
            .map_err(|error| Error::peer_misbehaved(format!("subsystem NQN {subnqn:?}: {error}")))?;
        let adrfam = AddressFamily::from_wire(entry.adrfam.0);
        let mut trid = Self::new(trtype, adrfam, &entry.traddr())?.with_subnqn(subnqn);
        let service = entry.trsvcid();
        if !service.is_empty() && service != "none" {
            trid = trid.with_trsvcid(&service)?;
        }
        if let Some(nqn) = parent.hostnqn() {
            trid = trid.with_hostnqn(nqn.clone());
        }
        if trtype == parent.trtype() {
            // An address of ours reaches only targets of its own family; for others the system chooses.
            if let Some(address) = parent.host_traddr().filter(|address| may_reach(address, &trid)) {
                trid = trid.with_host_traddr(address)?;
            }
            if let Some(iface) = parent.host_iface() {
                trid = trid.with_host_iface(iface)?;
            }
            if let Some(priority) = parent.priority() {
                trid = trid.with_priority(priority);
            }
        }
        Ok(trid)
    }
}

/// Whether the local address may be the source of a connection to `trid`: unless both are known to be of different
/// families.
fn may_reach(local: &str, trid: &TransportId) -> bool {
    let bare = local.split_once('%').map_or(local, |(address, _scope)| address);
    match (bare.parse::<IpAddr>(), trid.adrfam()) {
        (Ok(IpAddr::V4(_)), Some(family)) => family == AddressFamily::Ipv4,
        (Ok(IpAddr::V6(_)), Some(family)) => family == AddressFamily::Ipv6,
        _ => true,
    }
}
